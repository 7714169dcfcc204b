"""Workers that leave in good order: nothing new starts there, what only they hold is copied, then they are dismissed.

A node announces it (SIGTERM, fewer workers wanted, a task that ran out of time), or a client asks for it (``retire``).
What a leaving worker still holds is looked at again and again, since what runs there may leave results. PURE.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zdist.limits import LEASE_NODE, LEAVE_COPIES, LEAVE_PAUSE, MAX_REASON, MAX_WORKERS, PLACE_SILENT
from zdist.protocol.messages import Adjusted, Dismiss, Leaving, Overdue, Stop
from zdist_broker import parse
from zdist_broker.data import Data
from zdist_broker.lifecycle import Lifecycle
from zdist_broker.queries import Queries, Request, Restart
from zdist_broker.state import FAILED, MEMORY, RELEASED, Client, Node, Placing, Tables, Task, Worker

HELD = 20_000  # keys that a look at leaving workers may go through without a longer pause


class Leave:
    """How one worker leaves."""

    __slots__ = ("announced", "dismissed", "reason", "replace", "reqs", "retire", "since", "stay")

    def __init__(self, reason: str, since: float) -> None:
        self.reason = reason
        self.since = since
        self.announced = False  # by its node, which ends it whatever becomes of what it holds
        self.dismissed = False
        self.stay = False  # what runs there may come to an end
        self.retire = False  # its node does not replace it
        self.replace = False  # a client has ordered it, and waits for the next one
        self.reqs: list[int] = []  # clients' orders that wait for its end


class Departures:
    """Which workers are leaving, and what is done for that."""

    def __init__(self, tables: Tables, data: Data, lifecycle: Lifecycle, queries: Queries) -> None:
        self.tables = tables
        self.recovery = data.recovery
        self.data = data
        self.lifecycle = lifecycle
        self.queries = queries
        self.leaves: dict[Worker, Leave] = {}
        self.absent: dict[str, tuple[Node, str, bool]] = {}  # workers that have not come (again) yet
        self.look_at: float | None = None
        names = parse.names
        queries.asks["retire"] = (lambda args: names("workers", args), self._retire)
        queries.asks["restart_workers"] = (_names_and_seconds, self._replace)

    # --- it is announced, or asked for ----------------------------------------------------------------

    def announced(self, node: Node, message: Leaving, now: float) -> None:
        """A node wants to end workers."""
        node.keeps = min(message.keeps, MAX_WORKERS)
        for session in message.workers:
            worker = self.tables.workers.get(session)
            if worker is None:
                if len(self.absent) < MAX_WORKERS:
                    self.absent[session] = (node, message.reason[:MAX_REASON], message.stay)
            elif worker.node == node.session:
                self._begin(worker, message.reason[:MAX_REASON], message.stay, now).announced = True

    def joined(self, worker: Worker, now: float) -> None:
        """A worker has come that may be about to go."""
        known = self.absent.pop(worker.session, None)
        if known is not None and worker.node == known[0].session:
            self._begin(worker, known[1], known[2], now).announced = True
        if self.queries.restarts:
            self.look_at = now

    def forget(self, node: Node, session: str = "") -> None:
        """A worker of the node has ended, or the node itself."""
        for name in [n for n, (of, _, _) in self.absent.items() if of is node and session in ("", n)]:
            del self.absent[name]

    def adjusted(self, node: Node, message: Adjusted, now: float) -> None:
        """A node has as many workers as it was told to keep, or was told not to replace one."""
        node.keeps = min(message.workers, MAX_WORKERS)
        if message.req:
            self.queries.adjusted(node, message, now)

    def overdue(self, node: Node, message: Overdue, now: float) -> None:
        """Tasks have run for too long; of those that were cancelled nothing is on the books any more."""
        worker = self.tables.workers.get(message.worker)
        if worker is None or worker.node != node.session:
            self.tables.ignored += 1
            return
        worker.leaving = worker.paused = True  # so that no retry starts there
        for key, attempt in message.rows:
            task = worker.assigned.get(key)
            if task is not None and task.attempt == attempt:
                self.lifecycle.overdue(task)

    def _retire(self, client: Client, req: int, names: Any, now: float) -> Any:
        chosen = self.queries.chosen(names)
        if not chosen:
            return {}
        actors = [task.key for w in chosen for task in w.held.values() if task.lives]
        if actors:
            some = ", ".join(actors[:5]) + (", …" if len(actors) > 5 else "")
            raise Request(f"{len(actors)} actors live there and cannot be moved ({some}): release them first")
        others = [w for w in self._staying() if w not in chosen]
        going = dict.fromkeys((*chosen, *self.leaves))
        held = len({key for w in going for key, task in w.held.items() if self._only_here(task, going)})
        if held and not others and not self._starts(dict.fromkeys((*chosen, *self._retiring()))):
            raise Request(f"no worker would be left, and {held} results or pieces of data are nowhere else")
        pending = self.queries.pend(client, req)
        for worker in chosen:
            pending.addresses[worker.session] = worker.address
            leave = self._begin(worker, f"retired by client {client.name}", True, now)
            leave.retire = True
            leave.reqs.append(self.queries.req)
        return self.queries

    def _replace(self, client: Client, req: int, args: Any, now: float) -> Any:
        names, seconds = args
        chosen = self.queries.chosen(names)
        for worker in chosen:
            if worker in self.leaves:  # what runs there need not come to an end any more
                self._restart(worker, client.name, now)
        deadline = None if seconds is None else now + seconds
        # those that leave are replaced, or not, whatever becomes of this order
        restart = Restart(client, req, {w.session: None for w in chosen}, len(self._staying()), deadline, gently=True)
        client.asking += 1
        self.queries.restarts.append(restart)
        self.look_at = now
        return self.queries

    def _restart_in_turn(self, now: float) -> bool:
        """Those whom clients have ordered to be replaced go while another stays; the last one when another has come, or
        if nothing is lost by it. Whether one waits."""
        orders = [order for order in self.queries.restarts if order.gently]
        due = [w for w in self.tables.workers.values() if not w.leaving and any(w.session in o.old for o in orders)]
        staying = self._staying()
        for worker in sorted(due, key=lambda worker: len(worker.held)):
            ordered = [order for order in orders if worker.session in order.old]
            if not any(other is not worker for other in staying):
                if self._others_come(worker):
                    return True
                kept = self._irreplaceable(worker, dict.fromkeys((worker, *self.leaves)))
                if kept is not None:
                    for order in ordered:
                        self.queries.restarted(order, False, _last(worker, kept))
                    return False
            staying = [other for other in staying if other is not worker]
            self._restart(worker, ordered[0].client.name, now)
        return False

    def _restart(self, worker: Worker, who: str, now: float) -> None:
        self._begin(worker, f"restarted by client {who}", False, now).replace = True

    def _begin(self, worker: Worker, reason: str, stay: bool, now: float) -> Leave:
        leave = self.leaves.get(worker)
        if leave is None:
            leave = self.leaves[worker] = Leave(reason, now)
            leave.stay = stay
            worker.leaving = worker.paused = True
            self.data.placement.touched[worker] = None
            self.data.placement.take_all_back(worker)
        leave.stay = leave.stay and stay
        self.look_at = now
        return leave

    def _put_off(self, worker: Worker, why: str) -> None:
        """It stays, until others have come if it is still to be restarted; it is not retired."""
        for req in self.leaves.pop(worker).reqs:
            self.queries.failed(req, why)
        worker.leaving = False
        worker.paused = worker.full or not worker.threads
        self.data.placement.touched[worker] = None
        self.data.advance_all()

    # --- until it may go ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """See to what is still to be copied; dismiss those of whom nothing is needed any more."""
        if self.look_at is None or now < self.look_at:
            return
        waits = self._restart_in_turn(now)
        leaves = list(self.leaves.items())
        for worker, leave in leaves:
            if not self._copy(worker, leave, now) and not (leave.stay and worker.assigned):
                node = self.tables.nodes.get(worker.node)  # it may come later than its workers, whom it replaces
                leave.dismissed = True
                if node is not None:
                    self.tables.tell(node, Dismiss((worker.session,), leave.retire))
                elif not leave.retire or not worker.node or now >= leave.since + LEASE_NODE:
                    self.tables.tell(worker, Stop(leave.reason))
        held = sum(len(worker.held) for worker in self.leaves)
        self.look_at = now + LEAVE_PAUSE * (1 + held / HELD) if leaves or waits else None  # also for who was put off

    def _copy(self, worker: Worker, leave: Leave, now: float) -> bool:
        """Have everything that only leaving workers hold copied; whether something of that is still to come."""
        placing = self.tables.placing
        until = self.recovery.until
        # after a crash it may hold what it has not announced yet, or what clients are about to claim
        left = not worker.subscribed or bool(self.recovery.copies) or (until is not None and now < until)
        begun = 0
        staying = self._staying()
        if not staying and (leave.stay or leave.replace) and not self._coming(worker):
            # nobody could take what it holds, and nobody is about to come before it goes
            kept = None if leave.announced or leave.dismissed else self._irreplaceable(worker, self.leaves)
            if kept is None:
                return left
            self._put_off(worker, _last(worker, kept))
            return True
        for task in list(worker.held.values()):
            if not self._only_here(task, self.leaves):
                continue
            left = True
            copying = placing.get(task.key)
            if copying is None:
                if begun == LEAVE_COPIES:
                    break
                begun += 1
                copying = placing[task.key] = Placing(task, frozenset(), 1)
                self.data.advance(copying)
            elif copying.allowed and not any(
                (w.name in copying.allowed or w.address in copying.allowed) and now - w.seen <= PLACE_SILENT
                for w in staying
            ):
                copying.allowed = frozenset()  # better elsewhere than nowhere
                self.data.advance(copying)
        return left

    def _staying(self) -> list[Worker]:
        return [w for w in self.tables.workers.values() if w.subscribed and not w.leaving]

    def _coming(self, waiting: Worker) -> bool:
        """Whether a worker that stays has come and takes nothing yet, or is about to be started by its node."""
        if any(not worker.leaving for worker in self.tables.workers.values()):
            return True
        # two that clients have ordered to be replaced do not wait for each other; who was announced is not kept anyway
        replaced = [worker for worker, leave in self.leaves.items() if leave.replace and not leave.announced]
        own = self.leaves[waiting]
        ordered = replaced if own.replace and not own.announced else ()
        return self._starts(dict.fromkeys((*ordered, *self._retiring())))

    def _others_come(self, last: Worker) -> bool:
        """Whether somebody comes before the only one goes that stays."""
        if any(worker is not last and not worker.leaving for worker in self.tables.workers.values()):
            return True
        return self._starts(dict.fromkeys((last, *self._retiring())))

    def _retiring(self) -> list[Worker]:
        """Those whose nodes have still to be told not to replace them."""
        return [worker for worker, leave in self.leaves.items() if leave.retire and not leave.dismissed]

    def _starts(self, filled: Iterable[Worker]) -> bool:
        """Whether a node starts a worker that is in the place of none of these."""
        kept = {session: node.keeps for session, node in self.tables.nodes.items()}
        for worker in filled:
            if worker.node in kept:
                kept[worker.node] -= 1
        return any(number > 0 for number in kept.values())

    def _only_here(self, task: Task, leaving: Any) -> bool:
        """Whether no worker would have the task's data (that the broker has a value at hand ends when it is killed)."""
        copied = not task.stuck and not task.lives  # else it cannot be
        needed = task.state == MEMORY and bool(task.who or task.users) and copied
        return needed and all(holder in leaving for holder in task.holders)

    def _irreplaceable(self, worker: Worker, leaving: Any) -> Task | None:
        """Something that no worker would have, and that could not be computed again; not actors, which end with it."""
        seen: dict[Task, None] = {}
        for kept in worker.held.values():
            needed = kept.state == MEMORY and bool(kept.who or kept.users) and not kept.lives
            stack = [kept] if needed and all(holder in leaving for holder in kept.holders) else []
            while stack:
                task = stack.pop()
                if task.fn is None or task.state == FAILED or task.lives:
                    return kept
                new = [dep for dep in task.deps if dep.state in (RELEASED, FAILED) and dep not in seen]
                seen.update(dict.fromkeys(new))
                stack += new
        return None

    def gone(self, worker: Worker) -> None:
        """It is out of the tables."""
        leave = self.leaves.pop(worker, None)
        for req in leave.reqs if leave is not None else ():
            self.queries.answered(worker, req, worker.name)


def _last(worker: Worker, kept: Task) -> str:
    return f"{worker.name} is the only worker, and {kept.key} could not be computed again: add one first"


def _names_and_seconds(args: Any) -> tuple[Any, float | None]:
    if not isinstance(args, tuple | list) or len(args) != 2:
        raise ValueError(f"{parse.shown(args)} is not a list of workers and a number of seconds")
    names, seconds = args
    return parse.names("workers", names), None if seconds is None else parse.amount("seconds", seconds)
