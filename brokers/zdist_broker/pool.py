"""Tasks of one placement class that are ready, in order, and the workers that may take them. PURE."""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, TypeAlias

from zdist.limits import AHEAD_TASKS

if TYPE_CHECKING:
    from zdist_broker.state import Function, Task, Worker

__all__ = ["Place", "Pool"]

# (workers by address or name, others allowed where there is no such worker, resources, tags)
Place: TypeAlias = tuple[tuple[str, ...], bool, tuple[tuple[str, float], ...], tuple[str, ...]]

_READY: Final = 1
_GHOSTS: Final = 64  # entries of tasks that are no longer ready, beyond the live ones, before they are swept out
_SLACK: Final = 1e-9  # sums of fractions do not come out even


class Pool:
    """A queue and two rings of workers.

    Tasks that arrive in order of priority go to ``tail``, which costs the same however long it is; the few that do not
    (tasks taken back, dependents) to ``heap``. Entries of tasks that have left the state READY are skipped when met.

    ``free`` are workers with an idle thread, ``ahead`` those that may get work in advance. Both are hints: a worker
    that turns out not to have room leaves its ring and comes back when the scheduler is told that it has changed.
    """

    __slots__ = ("ahead", "free", "heap", "live", "members", "place", "resources", "tail")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.resources = place[2]
        self.tail: deque[Task] = deque()
        self.heap: list[tuple[int, Task]] = []
        self.live = 0  # tasks in state READY
        self.members: dict[Worker, None] = {}
        self.free: OrderedDict[Worker, None] = OrderedDict()
        self.ahead: OrderedDict[Worker, None] = OrderedDict()

    # --- tasks ----------------------------------------------------------------------------------------

    def push(self, task: Task) -> None:
        """Queue a task that has just become ready."""
        self.live += 1
        tail = self.tail
        if not tail or tail[-1].priority < task.priority:
            tail.append(task)
        else:
            heappush(self.heap, (task.priority, task))

    def withdraw(self) -> None:
        """A queued task is no longer ready; its entry stays until it is met or swept out."""
        self.live -= 1
        if len(self.tail) + len(self.heap) > 2 * self.live + _GHOSTS:
            self.tail = deque(t for t in self.tail if t.state == _READY)
            self.heap = [(p, t) for p, t in self.heap if t.state == _READY]
            heapify(self.heap)

    def head(self) -> Task:
        """The next task, left in the queue; there must be one (``live``)."""
        tail, heap = self.tail, self.heap
        while tail and tail[0].state != _READY:
            tail.popleft()
        while heap and heap[0][1].state != _READY:
            heappop(heap)
        if heap and not (tail and tail[0].priority <= heap[0][0]):
            return heap[0][1]
        return tail[0]

    # --- workers --------------------------------------------------------------------------------------

    def matches(self, worker: Worker, *, anyone: bool = False) -> bool:
        """Whether the class's tasks may run there (``anyone``: whatever workers it names)."""
        names, _, resources, tags = self.place
        if names and not anyone and worker.name not in names and worker.address not in names:
            return False
        have = worker.resources
        return all(tag in worker.tags for tag in tags) and all(
            have.get(name, 0.0) + _SLACK >= amount for name, amount in resources
        )

    def affords(self, worker: Worker) -> bool:
        """Whether the worker has the class's resources to spare now."""
        free = worker.free
        return all(free.get(name, 0.0) + _SLACK >= amount for name, amount in self.resources)

    def pick(self, fn: Function) -> Worker | None:
        """The next worker in turn that has room for one more task of the function."""
        free, ahead = self.free, self.ahead
        while free:
            worker = next(iter(free))
            if worker.count < worker.threads:
                if not self.resources or self.affords(worker):
                    free.move_to_end(worker)
                    return worker
            elif not worker.victim:
                ahead[worker] = None
            del free[worker]
        if fn.measured:
            while ahead:
                worker = next(iter(ahead))
                if self.takes(worker, fn):
                    ahead.move_to_end(worker)
                    return worker
                del ahead[worker]
        return None

    def takes(self, worker: Worker, fn: Function) -> bool:
        """Whether a task of this function may be queued behind what the worker has."""
        return (
            fn.measured
            and worker.load + fn.cost <= worker.budget
            and worker.count < AHEAD_TASKS
            and not worker.victim
            and (not self.resources or self.affords(worker))
        )

    def idle(self) -> bool:
        """Whether some worker has an idle thread."""
        free = self.free
        while free:
            worker = next(iter(free))
            if worker.count < worker.threads:
                return True
            del free[worker]
            if not worker.victim:
                self.ahead[worker] = None
        return False

    def offer(self, worker: Worker) -> None:
        """A member's room has changed."""
        if worker.paused:
            self.free.pop(worker, None)
            self.ahead.pop(worker, None)
        elif worker.count < worker.threads:
            self.ahead.pop(worker, None)
            self.free[worker] = None
            self.free.move_to_end(worker, last=False)  # a lone task finds the worker that is awake; bursts still rotate
        elif worker not in self.free and not worker.victim:
            self.ahead[worker] = None

    def admit(self, worker: Worker) -> None:
        if worker not in self.members:
            self.members[worker] = None
            worker.pools[self] = None

    def remove(self, worker: Worker) -> None:
        if worker in self.members:
            del self.members[worker]
            del worker.pools[self]
            self.free.pop(worker, None)
            self.ahead.pop(worker, None)
