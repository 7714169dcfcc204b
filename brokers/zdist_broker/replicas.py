"""Copies of results and data on workers as clients order them: so many of each key, or bytes evenly spread. PURE.

A copy is made first and another dropped after, and never the last one, nor one that a task on its worker is about to
use. What was ordered is looked at again and again until nothing is left to do, so it does not matter what happens to
keys and workers meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heapreplace, nlargest
from typing import Any, Final, NamedTuple

from zdist.core.machine import require
from zdist.limits import COPIES_AHEAD, COPY_PAUSE, MAX_SESSIONS, MOVES
from zdist.protocol.messages import Answer
from zdist_broker import parse
from zdist_broker.data import Data
from zdist_broker.intake import UNKNOWN
from zdist_broker.lifecycle import Lifecycle
from zdist_broker.queries import Queries, Request
from zdist_broker.state import FAILED, MEMORY, RELEASED, Client, Placing, Tables, Task, Worker
from zdist_broker.withdrawing import unplace, withdraw

TOLERANCE: Final = 1.05  # a worker with so many times the mean is as good as even


class Move(NamedTuple):
    """A key that is to lie on another worker."""

    task: Task
    source: Worker
    target: Worker


class Order:
    """What a client waits for. ``look(order, item, now)`` does the next thing for an item; True: none is left."""

    __slots__ = ("active", "client", "done", "failed", "look", "names", "number", "req", "todo")

    def __init__(
        self, client: Client, req: int, items: Iterable[Any], look: Callable[[Order, Any, float], bool]
    ) -> None:
        self.client = client
        self.req = req
        self.look = look
        self.todo: deque[Any] = deque(items)
        self.active: deque[Any] = deque()  # begun; looked at in their order
        self.failed: dict[str, str] = {}  # keys, and why there are no such copies
        self.done: list[int] = []  # bytes of each key that was moved
        self.names: frozenset[str] = frozenset()  # of workers that may hold the copies; none for any
        self.number = 0  # of copies; 0: on all of these workers


class Replicas:
    """The answers to "replicate" and "rebalance"."""

    def __init__(self, tables: Tables, data: Data, lifecycle: Lifecycle, queries: Queries) -> None:
        self.tables = tables
        self.data = data
        self.recovery = data.recovery
        self.lifecycle = lifecycle
        self.queries = queries
        self.orders: list[Order] = []
        self.look_at: float | None = None
        queries.asks["replicate"] = (_replicate_args, self._replicate)
        queries.asks["rebalance"] = (_rebalance_args, self._rebalance)

    # --- orders ---------------------------------------------------------------------------------------

    def _replicate(self, client: Client, req: int, args: Any, now: float) -> Any:
        keys, number, names = args
        if not self._chosen(names):
            raise Request("there is no worker that could hold a copy")
        order = Order(client, req, keys, self._copied)
        order.names, order.number = frozenset(names or ()), number
        return self._begin(order, now)

    def _rebalance(self, client: Client, req: int, args: Any, now: float) -> Any:
        keys, names = args
        return self._begin(Order(client, req, self._plan(self._chosen(names), keys), self._moved), now)

    def _chosen(self, names: Any) -> list[Worker]:
        return [worker for worker in self.queries.chosen(names) if not worker.leaving]

    def _begin(self, order: Order, now: float) -> Queries:
        order.client.asking += 1
        self.orders.append(order)
        self.look_at = now
        return self.queries

    def gone(self, client: Client) -> None:
        """Nobody waits for its orders any more."""
        self.orders = [order for order in self.orders if order.client is not client]

    def tick(self, now: float) -> None:
        """See how far the orders are, and answer those of which nothing is left."""
        if self.look_at is None or now < self.look_at:
            return
        for order in list(self.orders):
            active, todo, look = order.active, order.todo, order.look
            while active and look(order, active[0], now):
                active.popleft()
            while todo and len(active) < COPIES_AHEAD:
                item = todo.popleft()
                if not look(order, item, now):
                    active.append(item)
            if not active:
                self.orders.remove(order)
                order.client.asking -= 1
                value = {"failed": order.failed, "keys": len(order.done), "bytes": sum(order.done)}
                self.tables.tell(order.client, Answer(order.req, True, value))
        self.look_at = now + COPY_PAUSE if self.orders else None

    def check(self) -> None:
        """Raise InvariantError if an order is nobody's, or would never be looked at."""
        require(not any(order.client.gone for order in self.orders), "copies are ordered by a client that is gone")
        require(self.look_at is not None or not self.orders, "ordered copies are never looked at")

    # --- so many copies -----------------------------------------------------------------------------------

    def _copied(self, order: Order, key: str, now: float) -> bool:
        task = self.tables.tasks.get(key)
        if task is None or task.state in (FAILED, RELEASED) or (task.state == MEMORY and _unwanted(task)):
            failed, until = task is not None and task.state == FAILED, self.recovery.until
            if not failed and until is not None and now < until:
                return False  # its client may be about to claim it
            order.failed[key] = "its task has failed" if failed else UNKNOWN
            return True
        if task.state != MEMORY:
            return False  # it is being computed again
        if task.lives:
            order.failed[key] = "it is an actor, which lives where it was made"
            return True
        there = [
            w
            for w in self.tables.workers.values()
            if w.subscribed and not w.leaving and (not order.names or w.name in order.names or w.address in order.names)
        ]
        copies = [w for w in there if key in w.held]
        number = min(order.number or len(there), len(there))
        if not there or (task.stuck and len(copies) < number):
            order.failed[key] = task.stuck or "none of the workers that were to hold it is left"
            return True
        copies.sort(key=lambda worker: len(worker.held))  # those that hold the most let go
        for worker in copies[number:]:
            self._let_go(task, worker)
        if len(copies) >= number:
            return True
        if task.holders:
            self.data.copy(task, order.names, number)
        elif any(needed.fn is None for needed in self.lifecycle.lineage(task)):
            order.failed[key] = "no worker holds it, and what it was made of is gone"
            return True
        else:  # only the broker has its value at hand, and workers copy from workers
            self.tables.discard(task)
            self.lifecycle.lost([task], "no worker holds it")
        return False

    def _let_go(self, task: Task, worker: Worker) -> None:
        """Drop a copy that is one too many, unless a task there is about to use it."""
        others = any(holder is not worker for holder in task.holders)
        if others and not any(d.worker is worker for d in task.dependents or ()):
            self.tables.remove_holder(task, worker, tell=False)
            withdraw(self.tables, worker, task.key)
            for client in task.who:
                self.tables.finished(client, task)

    # --- evenly spread ------------------------------------------------------------------------------------

    def _plan(self, workers: list[Worker], keys: Any) -> list[Move]:
        """Moves that take from those workers that hold more than the mean, largest first, to the one with the least."""
        held = {w: sum(task.nbytes for task in w.held.values()) for w in workers}
        even = TOLERANCE * sum(held.values()) / max(len(held), 1)
        least = [(held[w], place) for place, w in enumerate(workers) if not w.paused and held[w] < even]
        heapify(least)
        wanted = None if keys is None else frozenset(keys)
        moves: list[Move] = []
        for source in [w for w in workers if held[w] > even]:
            mine = (task for task in source.held.values() if self._may_move(task, source, wanted))
            for task in nlargest(MOVES, mine, key=lambda task: task.nbytes):
                if not least or held[source] <= even:
                    break
                target = workers[least[0][1]]
                after = held[target] + task.nbytes
                if TOLERANCE * after < held[source] and task.key not in target.held:
                    moves.append(Move(task, source, target))
                    held[source] -= task.nbytes
                    held[target] = after
                    heapreplace(least, (after, least[0][1]))
        return moves

    def _may_move(self, task: Task, source: Worker, wanted: frozenset[str] | None) -> bool:
        if (wanted is not None and task.key not in wanted) or task.key in self.tables.placing:
            return False
        if task.stuck or task.lives:
            return False
        return task.nbytes > 0 and not any(d.worker is source for d in task.dependents or ())

    def _moved(self, order: Order, move: Move, now: float) -> bool:
        task, source, target = move
        only = frozenset((target.name,))
        placing = self.tables.placing.get(task.key)
        gone = source.gone or target.gone or target.leaving
        if task.state != MEMORY or task.stuck or task.lives or _unwanted(task) or gone:
            if placing is not None and placing.task is task and placing.allowed == only:
                unplace(self.tables, task.key)
            return True
        if target in task.holders:
            if source in task.holders:
                self._let_go(task, source)
                order.done.append(task.nbytes)
            return True
        if placing is not None:
            return placing.allowed != only  # else somebody has it copied for another reason, and it stays
        self.tables.placing[task.key] = placing = Placing(task, only, 1)
        self.data.advance(placing)
        return False


def _unwanted(task: Task) -> bool:
    """Its client keeps it as part of other tasks' specs only: workers drop their copies."""
    return not (task.who or task.users)


def _values(what: str, args: Any, count: int) -> Any:
    if not isinstance(args, tuple | list) or len(args) != count:
        raise ValueError(f"{what}: {parse.shown(args)} is not a list of {count} values")
    return args


def _replicate_args(args: Any) -> tuple[Any, ...]:
    keys, number, names = _values("replicate", args, 3)
    return (
        parse.keys("keys", keys),
        0 if number is None else parse.whole("n", number, 1, MAX_SESSIONS),
        None if names is None else parse.names("workers", names),
    )


def _rebalance_args(args: Any) -> tuple[Any, ...]:
    keys, names = _values("rebalance", args, 2)
    return None if keys is None else parse.keys("keys", keys), None if names is None else parse.names("workers", names)
