"""The broker's invariants, each said once. Costs time in proportion to the tables: for tests. PURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zdist.core.machine import require
from zdist.limits import BROKER_CACHE
from zdist.protocol.messages import payload_size
from zdist_broker.pool import Pool
from zdist_broker.state import (
    ASSIGNED,
    FAILED,
    FORGOTTEN,
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
        require(task.key == key, f"{task} is listed as {key}")
        for dep in task.deps:
            dependents.setdefault(dep, {})[task] = None
        if task.fn is not None:
            uses[task.fn.digest] = uses.get(task.fn.digest, 0) + 1
            require(tables.functions.get(task.fn.digest) is task.fn, f"{task}: its function is not in the table")
        if task.state == READY:
            require(task.terms is not None, f"{task} has no terms")
            ready[task.terms.pool] = ready.get(task.terms.pool, 0) + 1  # type: ignore[union-attr]
    for task in tables.tasks.values():
        _check_task(machine, task, dependents.get(task, {}))
    for worker in tables.workers.values():
        _check_worker(machine, worker)
    for client in tables.clients.values():
        _check_client(machine, client)
    for fn in tables.functions.values():
        require(fn.uses == uses.get(fn.digest, 0), f"function {fn.name}: its uses are miscounted")
        owners = sum(fn in c.functions for c in tables.clients.values())
        require(fn.owners == owners, f"function {fn.name}: its owners are miscounted")
        require(bool(fn.uses or fn.owners), f"function {fn.name} is kept for nobody")
    _check_pools(machine, ready)
    _check_rest(machine)


def _check_task(machine: BrokerMachine, task: Task, dependents: dict[Task, None]) -> None:
    tables, state = machine.tables, task.state
    require(state != FORGOTTEN, f"{task} is in the table")
    require((task.dependents or {}).keys() == dependents.keys(), f"{task}: its dependents are others")
    users = sum(d.state <= ASSIGNED for d in dependents)
    require(task.users == users, f"{task}: {task.users} users counted, there are {users}")
    require(len(set(task.who)) == len(task.who), f"{task}: a client wants it twice")
    for client in task.who:
        require(tables.clients.get(client.session) is client, f"{task} is wanted by {client}, which is gone")
        require(task.key in client.wants, f"{task}: {client} knows of no want")
    for dep in task.deps:
        require(tables.tasks.get(dep.key) is dep, f"{task} depends on {dep}, which is not in the table")
        if state <= ASSIGNED:
            require(dep.state <= MEMORY, f"{task} is active and depends on {dep}")
    missing = sum(dep.state != MEMORY for dep in task.deps) if state <= ASSIGNED else 0
    require(task.waiting == missing, f"{task} waits for {task.waiting} inputs, {missing} are missing")
    needed = bool(task.who or task.users or task.flags & PINNED)
    if state == WAITING:
        require(missing > 0, f"{task} has all its inputs")
    elif state == READY:
        require(missing == 0, f"{task} lacks inputs")
        require(any(t is task for t in _entries(task.terms.pool)), f"{task} is in no queue")  # type: ignore[union-attr]
    elif state == MEMORY and task.fn is not None:
        require(needed, f"{task} is kept for nobody")
    if state <= ASSIGNED:
        require(task.fn is not None and needed, f"{task} is pursued for nobody")
    if state >= MEMORY:
        require(not task.flags, f"{task} has flags {task.flags}")
        require(bool(task.who or dependents), f"{task} is kept for nobody")
    if state == RELEASED:
        require(not task.who and not task.users, f"{task} is needed")
    require((task.worker is not None) == (state == ASSIGNED), f"{task} is with {task.worker}")
    if task.worker is not None:
        require(task.worker.assigned.get(task.key) is task, f"{task}: {task.worker} does not have it on its books")
    if state == MEMORY:
        require(bool(task.holders) or task.value is not None, f"{task} has no copy anywhere")
        if not needed:
            require(all(isinstance(h, Client) for h in task.holders), f"{task}: a worker holds it for nobody")
    else:
        require(not task.holders and task.value is None, f"{task} has data")
    require(len(set(task.holders)) == len(task.holders), f"{task}: a holder is listed twice")
    for holder in task.holders:
        require(not holder.gone and holder.held.get(task.key) is task, f"{task}: {holder} does not hold it")
    require((task.value is not None) == (task in tables.cache), f"{task}: its value is not accounted for")
    if state == FAILED:
        require(task.trouble is not None, f"{task} has no reason")


def _entries(pool: Pool) -> list[Task]:
    return [*pool.tail, *(task for _, task in pool.heap)]


def _check_worker(machine: BrokerMachine, worker: Worker) -> None:
    tables = machine.tables
    require(not worker.gone and machine.peers.get(worker.session) is worker, f"{worker} is gone and listed")
    for key, task in worker.assigned.items():
        require(tables.tasks.get(key) is task and task.worker is worker, f"{worker}: {task} is not assigned to it")
    for key, task in worker.held.items():
        require(tables.tasks.get(key) is task and worker in task.holders, f"{worker} does not hold {task}")
    working = [t for t in worker.assigned.values() if not t.waiting]
    counted = [t for t in working if not t.flags & SECEDED]
    require(worker.count == len(counted), f"{worker}: {worker.count} tasks counted, there are {len(counted)}")
    load = sum(t.cost for t in counted)
    require(worker.load == load, f"{worker}: a load of {worker.load}, the sum is {load}")
    used: dict[str, float] = {}
    for task in working:
        for name, amount in task.terms.pool.resources:  # type: ignore[union-attr]
            used[name] = used.get(name, 0.0) + amount
    for name, total in worker.resources.items():
        free = worker.free.get(name, 0.0)
        require(abs(total - used.get(name, 0.0) - free) < 1e-6, f"{worker}: {free} of {name} counted as free")
    for pool in worker.pools:
        require(worker in pool.members, f"{worker} is no member of {pool.place}")
    require(not worker.runs, f"{worker}: rows of Run were left over")


def _check_client(machine: BrokerMachine, client: Client) -> None:
    tables = machine.tables
    require(not client.gone and machine.peers.get(client.session) is client, f"{client} is gone and listed")
    for key in client.wants:
        task = tables.tasks.get(key)
        require(task is not None and client in task.who, f"{client} wants {key}, which does not know it")
    for key, task in client.held.items():
        require(tables.tasks.get(key) is task and client in task.holders, f"{client} does not hold {task}")
        require(task.fn is None, f"{client} holds {task}")


def _check_pools(machine: BrokerMachine, ready: dict[Pool, int]) -> None:
    pools = list(machine.placement.pools.values())
    for pool in ready:
        require(pool in pools, f"class {pool.place} has tasks and is not in the table")
    for pool in pools:
        live = ready.get(pool, 0)
        require(pool.live == live, f"class {pool.place}: {pool.live} tasks counted, there are {live}")
        order = [task.priority for task in pool.tail]
        require(order == sorted(order), f"class {pool.place}: its queue is out of order")
        for worker in (*pool.members, *pool.free, *pool.ahead):
            require(machine.tables.workers.get(worker.session) is worker, f"class {pool.place}: {worker} is gone")
            require(pool in worker.pools, f"class {pool.place}: {worker} does not know it")
        require(not (pool.free.keys() & pool.ahead.keys()), f"class {pool.place}: a worker is in both rings")


def _check_rest(machine: BrokerMachine) -> None:
    tables = machine.tables
    cached = sum(payload_size(t.value or b"") for t in tables.cache)
    require(tables.cached == cached, f"{tables.cached} bytes of values counted, there are {cached}")
    require(0 <= cached <= BROKER_CACHE, f"{cached} bytes of values are kept")
    for key, placing in tables.placing.items():
        require(tables.tasks.get(key) is placing.task, f"{key} is being placed and is not in the table")
        require(placing.task.state == MEMORY, f"{placing.task} is being placed")
        require(all(not w.gone for w in placing.targets), f"{key} is being placed on a worker that is gone")
    known = {**tables.clients, **tables.workers, **tables.nodes}
    require(machine.peers == known, "peers are listed by one role and not by the other")
    for pending in machine.queries.pending.values():
        require(not pending.client.gone and bool(pending.addresses), "an answer is pending for nobody or from nobody")
