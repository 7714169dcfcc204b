"""The broker's invariants, each said once. Costs time in proportion to the tables: for tests. PURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zdist.core.machine import require
from zdist.errors import InvariantError
from zdist.limits import BROKER_CACHE
from zdist.protocol.messages import payload_size
from zdist_broker.pool import Pool
from zdist_broker.state import (
    ASSIGNED,
    FAILED,
    FORGOTTEN,
    LAZY,
    MEMORY,
    PINNED,
    READY,
    RELEASED,
    SECEDED,
    WAITING,
    Client,
    Task,
    Worker,
)

if TYPE_CHECKING:
    from zdist_broker.machine import BrokerMachine


def check(machine: BrokerMachine) -> None:
    """Raise InvariantError at the first contradiction."""
    tables = machine.tables
    ready: dict[Pool, int] = {}
    uses: dict[bytes, int] = {}
    dependents: dict[Task, dict[Task, None]] = {}
    for key, task in tables.tasks.items():
        if task.key != key:
            raise InvariantError(f"{task} is listed as {key}")
        for dep in task.deps:
            dependents.setdefault(dep, {})[task] = None
        if task.fn is not None:
            uses[task.fn.digest] = uses.get(task.fn.digest, 0) + 1
            if tables.functions.get(task.fn.digest) is not task.fn:
                raise InvariantError(f"{task}: its function is not in the table")
        if task.state == READY:
            if task.terms is None:
                raise InvariantError(f"{task} has no terms")
            ready[task.terms.pool] = ready.get(task.terms.pool, 0) + 1
    for task in tables.tasks.values():
        _check_task(machine, task, dependents.get(task, {}))
    for worker in tables.workers.values():
        _check_worker(machine, worker)
    for client in tables.clients.values():
        _check_client(machine, client)
    for fn in tables.functions.values():
        if fn.uses != uses.get(fn.digest, 0):
            raise InvariantError(f"function {fn.name}: its uses are miscounted")
        owners = sum(fn in c.functions for c in tables.clients.values())
        if fn.owners != owners:
            raise InvariantError(f"function {fn.name}: its owners are miscounted")
        if not (bool(fn.uses or fn.owners)):
            raise InvariantError(f"function {fn.name} is kept for nobody")
    machine.shared.check()
    machine.setups.check()
    _check_pools(machine, ready)
    _check_rest(machine)


def _check_task(machine: BrokerMachine, task: Task, dependents: dict[Task, None]) -> None:
    tables, state = machine.tables, task.state
    if state == FORGOTTEN:
        raise InvariantError(f"{task} is in the table")
    if (task.dependents or {}).keys() != dependents.keys():
        raise InvariantError(f"{task}: its dependents are others")
    users = sum(d.state <= ASSIGNED for d in dependents)
    if task.users != users:
        raise InvariantError(f"{task}: {task.users} users counted, there are {users}")
    if len(set(task.who)) != len(task.who):
        raise InvariantError(f"{task}: a client wants it twice")
    for client in task.who:
        if tables.clients.get(client.session) is not client:
            raise InvariantError(f"{task} is wanted by {client}, which is gone")
        if task.key not in client.wants:
            raise InvariantError(f"{task}: {client} knows of no want")
    for dep in task.deps:
        if tables.tasks.get(dep.key) is not dep:
            raise InvariantError(f"{task} depends on {dep}, which is not in the table")
        if state <= ASSIGNED and dep.state > MEMORY:
            raise InvariantError(f"{task} is active and depends on {dep}")
    missing = sum(dep.state != MEMORY for dep in task.deps) if state <= ASSIGNED else 0
    if task.waiting != missing:
        raise InvariantError(f"{task} waits for {task.waiting} inputs, {missing} are missing")
    needed = bool(task.who or task.users or task.flags & PINNED)
    if state == WAITING:
        if missing <= 0:
            raise InvariantError(f"{task} has all its inputs")
    elif state == READY:
        if missing != 0:
            raise InvariantError(f"{task} lacks inputs")
    elif state == MEMORY and task.fn is not None and not (needed):
        raise InvariantError(f"{task} is kept for nobody")
    if state <= ASSIGNED and not (task.fn is not None and needed):
        raise InvariantError(f"{task} is pursued for nobody")
    if state >= MEMORY:
        if task.flags & ~(LAZY if state == RELEASED else 0):
            raise InvariantError(f"{task} has flags {task.flags}")
        if not (bool(task.who or dependents) or (state == RELEASED and task.fn and task.key in tables.sought)):
            raise InvariantError(f"{task} is kept for nobody")
    if state == RELEASED and (task.users or (task.who and not task.flags & LAZY)):
        raise InvariantError(f"{task} is needed")
    if not ((task.worker is not None) == (state == ASSIGNED)):
        raise InvariantError(f"{task} is with {task.worker}")
    if task.worker is not None and task.worker.assigned.get(task.key) is not task:
        raise InvariantError(f"{task}: {task.worker} does not have it on its books")
    if state == MEMORY:
        if not (bool(task.holders) or task.value is not None):
            raise InvariantError(f"{task} has no copy anywhere")
        if not needed and not (all(isinstance(h, Client) for h in task.holders)):
            raise InvariantError(f"{task}: a worker holds it for nobody")
    else:
        if not (not task.holders and task.value is None):
            raise InvariantError(f"{task} has data")
    if len(set(task.holders)) != len(task.holders):
        raise InvariantError(f"{task}: a holder is listed twice")
    for holder in task.holders:
        if not (not holder.gone and holder.held.get(task.key) is task):
            raise InvariantError(f"{task}: {holder} does not hold it")
    if not ((task.value is not None) == (task in tables.cache)):
        raise InvariantError(f"{task}: its value is not accounted for")
    if state == FAILED and task.trouble is None:
        raise InvariantError(f"{task} has no reason")


def _check_worker(machine: BrokerMachine, worker: Worker) -> None:
    tables = machine.tables
    if not (not worker.gone and machine.peers.get(worker.session) is worker):
        raise InvariantError(f"{worker} is gone and listed")
    for key, task in worker.assigned.items():
        if not (tables.tasks.get(key) is task and task.worker is worker):
            raise InvariantError(f"{worker}: {task} is not assigned to it")
    for key, task in worker.held.items():
        if not (tables.tasks.get(key) is task and worker in task.holders):
            raise InvariantError(f"{worker} does not hold {task}")
    working = [t for t in worker.assigned.values() if not t.waiting]
    counted = [t for t in working if not t.flags & SECEDED]
    if worker.count != len(counted):
        raise InvariantError(f"{worker}: {worker.count} tasks counted, there are {len(counted)}")
    load = sum(t.cost for t in counted)
    if worker.load != load:
        raise InvariantError(f"{worker}: a load of {worker.load}, the sum is {load}")
    used: dict[str, float] = {}
    for task in working:
        for name, amount in task.terms.pool.resources:  # type: ignore[union-attr]
            used[name] = used.get(name, 0.0) + amount
    for name, total in worker.resources.items():
        free = worker.free.get(name, 0.0)
        if abs(total - used.get(name, 0.0) - free) >= 1e-6:
            raise InvariantError(f"{worker}: {free} of {name} counted as free")
    for pool in worker.pools:
        if worker not in pool.members:
            raise InvariantError(f"{worker} is no member of {pool.place}")
    if worker.runs:
        raise InvariantError(f"{worker}: rows of Run were left over")


def _check_client(machine: BrokerMachine, client: Client) -> None:
    tables = machine.tables
    if not (not client.gone and machine.peers.get(client.session) is client):
        raise InvariantError(f"{client} is gone and listed")
    for key in client.wants:
        task = tables.tasks.get(key)
        if not (task is not None and client in task.who):
            raise InvariantError(f"{client} wants {key}, which does not know it")
    for key, task in client.held.items():
        if not (tables.tasks.get(key) is task and client in task.holders):
            raise InvariantError(f"{client} does not hold {task}")
        if task.fn is not None:
            raise InvariantError(f"{client} holds {task}")


def _check_pools(machine: BrokerMachine, ready: dict[Pool, int]) -> None:
    pools = list(machine.placement.pools.values())
    for pool in ready:
        if pool not in pools:
            raise InvariantError(f"class {pool.place} has tasks and is not in the table")
    for pool in pools:
        live = ready.get(pool, 0)
        if pool.live != live:
            raise InvariantError(f"class {pool.place}: {pool.live} tasks counted, there are {live}")
        queued = {task: None for task in (*pool.tail, *(t for _, t in pool.heap)) if task.state == READY}
        require(len(queued) == live, f"class {pool.place}: {live} tasks are ready, {len(queued)} of them queued")
        require(len({task.priority for task in queued}) == live, f"class {pool.place}: two tasks have the same place")
        order = [task.priority for task in pool.tail]
        if order != sorted(order):
            raise InvariantError(f"class {pool.place}: its queue is out of order")
        for worker in (*pool.members, *pool.free, *pool.ahead):
            if machine.tables.workers.get(worker.session) is not worker:
                raise InvariantError(f"class {pool.place}: {worker} is gone")
            if pool not in worker.pools:
                raise InvariantError(f"class {pool.place}: {worker} does not know it")
        if pool.free.keys() & pool.ahead.keys():
            raise InvariantError(f"class {pool.place}: a worker is in both rings")


def _check_rest(machine: BrokerMachine) -> None:
    tables = machine.tables
    cached = sum(payload_size(t.value or b"") for t in tables.cache)
    if tables.cached != cached:
        raise InvariantError(f"{tables.cached} bytes of values counted, there are {cached}")
    if not (0 <= cached <= BROKER_CACHE):
        raise InvariantError(f"{cached} bytes of values are kept")
    for key, placing in tables.placing.items():
        if tables.tasks.get(key) is not placing.task:
            raise InvariantError(f"{key} is being placed and is not in the table")
        if placing.task.state != MEMORY:
            raise InvariantError(f"{placing.task} is being placed")
        if not (all(not w.gone for w in placing.targets)):
            raise InvariantError(f"{key} is being placed on a worker that is gone")
    known = {**tables.clients, **tables.workers, **tables.nodes}
    require(machine.peers == known, "peers are listed by one role and not by the other")
    machine.lanes.check()
    machine.recovery.check()
    machine.intake.heirs.check()
    machine.intake.sought.check()
    machine.absent.check()
    machine.replicas.check()
    for pending in machine.queries.pending.values():
        require(not pending.client.gone and bool(pending.addresses), "an answer is pending for nobody or from nobody")
