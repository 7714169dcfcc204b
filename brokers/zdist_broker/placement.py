"""Which task runs where: capacity, rotation, locality. PURE.

Capacity is derived from the assigned set: a task that waits for lost data or has seceded does not count. Work queued
ahead of a worker's threads grows with the measured durations of the functions in it, never before they are known.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import Any

from zdist.limits import (
    AHEAD_TASKS,
    BYTES_PER_MICRO,
    FOLLOW_MICROS,
    FOLLOWED,
    FOLLOWERS,
    HOLDERS_TOLD,
    INLINED_BYTES,
    INLINED_DEPS,
    MESSAGE_ROWS,
    POOLS_KEPT,
    RUN_MICROS,
    RUN_ROWS,
    RUNS_FROM,
)
from zdist.protocol.messages import Define, Drop, Options, Run, TakeBack, TimeLimit, payload_size
from zdist_broker.pool import Place, Pool
from zdist_broker.rows import parts
from zdist_broker.state import (
    ASSIGNED,
    EARLY,
    MEMORY,
    READY,
    SECEDED,
    WAITING,
    Function,
    Tables,
    Task,
    Terms,
    Worker,
)

_LAST = 1 << 80  # after every priority


class Placement:
    """The queues, the workers' room, and the assignments of a turn."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.pools: dict[Place, Pool] = {}
        self.prune_at = POOLS_KEPT  # so many classes are there when those without tasks are looked for,
        self.offers = 0  # or so many offers were made to classes since
        self.default = self.pool(((), False, (), ()))
        self.terms: dict[Options, Terms] = {}
        self.touched: dict[Worker, None] = {}  # their room has changed since the last turn
        self.dirty: dict[Pool, None] = {}  # have new tasks, or members that were touched
        self.loaded: dict[Worker, None] = {}  # have tasks queued beyond their threads
        self.assigned: list[Worker] = []  # have rows of Run to send
        self.leading: dict[Task, None] = {}  # assigned in this turn, or before, to tasks that may follow them
        self.starving: dict[Pool, None] = {}  # have tasks and no worker that may take them

    # --- classes ------------------------------------------------------------------------------------

    def terms_for(self, options: Options) -> Terms:
        """The shared record of these options."""
        terms = self.terms.get(options)
        if terms is None:
            if len(self.terms) >= POOLS_KEPT:  # only a cache: tasks keep theirs
                self.terms.clear()
            place = (options.workers, options.allow_other, options.resources, options.tags)
            terms = self.terms[options] = Terms(options, self.pool(place))
        return terms

    def pool(self, place: Place) -> Pool:
        pool = self.pools.get(place)
        if pool is None:
            if len(self.pools) >= self.prune_at:
                self._prune()
            pool = self.pools[place] = Pool(place)
            self._refit(pool)
        return pool

    def _prune(self) -> None:
        """Forget classes that no task belongs to. It is done when as much work was spent on classes as it costs."""
        self.terms.clear()
        used = {task.terms.pool for task in self.tables.tasks.values() if task.terms is not None}
        used.add(self.default)
        for place, pool in list(self.pools.items()):
            if pool not in used:
                for worker in list(pool.members):
                    pool.remove(worker)
                del self.pools[place]
        self.prune_at = max(POOLS_KEPT, 2 * len(self.pools))
        self.offers = 0

    def _refit(self, pool: Pool) -> None:
        """Determine a class's workers anew."""
        workers = [w for w in self.tables.workers.values() if w.subscribed]
        members = [w for w in workers if pool.matches(w)]
        if not members and pool.place[1]:
            members = [w for w in workers if pool.matches(w, anyone=True)]
        keep = dict.fromkeys(members)
        for worker in list(pool.members):
            if worker not in keep:
                pool.remove(worker)
        for worker in members:
            pool.admit(worker)
            self.touched[worker] = None

    def fit(self, worker: Worker) -> None:
        """A worker has come, gone, or changed what it offers."""
        here = worker.subscribed and not worker.gone
        for pool in self.pools.values():
            if pool.place[1]:
                self._refit(pool)
            elif here and pool.matches(worker):
                pool.admit(worker)
            else:
                pool.remove(worker)
        if here:
            self.touched[worker] = None
        else:
            self.touched.pop(worker, None)
            self.loaded.pop(worker, None)

    # --- a task's way through a queue and a worker ---------------------------------------------------

    def enqueue(self, task: Task) -> None:
        """All inputs are there."""
        assert task.terms is not None
        task.state = READY
        pool = task.terms.pool
        pool.push(task)
        self.dirty[pool] = None

    def dequeue(self, task: Task, state: int) -> None:
        """A task that was ready is so no more."""
        assert task.terms is not None
        task.state = state
        task.terms.pool.withdraw()

    def charge(self, task: Task, worker: Worker, sign: int) -> None:
        """An assigned task begins (1) or ceases (-1) to count against its worker's capacity."""
        if not task.flags & SECEDED:
            worker.count += sign
            worker.load += sign * task.cost
        assert task.terms is not None
        if task.terms.pool.resources:
            free = worker.free
            for name, amount in task.terms.pool.resources:
                free[name] = free.get(name, 0.0) - sign * amount
        self.touched[worker] = None

    def secede(self, task: Task, worker: Worker, back: bool) -> None:
        """The task leaves its worker's threads, but keeps its resources."""
        if back == bool(task.flags & SECEDED):
            task.flags ^= SECEDED
            if not task.waiting:
                sign = 1 if back else -1
                worker.count += sign
                worker.load += sign * task.cost
            self.touched[worker] = None

    def unassign(self, task: Task) -> Worker:
        """Take the task off its worker's books; the caller gives it its new state."""
        worker = task.worker
        assert worker is not None
        del worker.assigned[task.key]
        if not task.waiting:
            self.charge(task, worker, -1)
        task.flags &= ~(SECEDED | EARLY)
        task.worker = None
        self.touched[worker] = None
        return worker

    def give_up(self, task: Task) -> None:
        """An attempt is over without a result. A copy of an earlier one may have come to its worker meanwhile."""
        worker = self.unassign(task)
        if not worker.gone and task.key not in worker.held:
            self.tables.post(worker, Drop, task.key)

    def take_all_back(self, worker: Worker) -> None:
        """Nothing new is to start there: ask for what has not."""
        rows = [(task.key, task.attempt) for task in worker.assigned.values()]
        for part in parts(rows, MESSAGE_ROWS) if rows else ():
            self.tables.tell(worker, TakeBack(tuple(part)))

    def requeue(self, task: Task) -> None:
        """An attempt is over without a result: start another when the inputs are there."""
        self.give_up(task)
        task.state = WAITING
        if not task.waiting:
            self.enqueue(task)

    def stall(self, task: Task) -> None:
        """One more input of an assigned task is gone: it waits, and its capacity is for who makes the input again."""
        if not task.waiting and task.worker is not None:
            self.charge(task, task.worker, -1)
        task.waiting += 1

    def resume(self, task: Task) -> None:
        """An input of an assigned task is back."""
        task.waiting -= 1
        if not task.waiting and task.worker is not None:
            self.charge(task, task.worker, 1)
            if task.dependents:
                self.leading[task] = None

    def located(self, dep: Task, worker: Worker, *, inline: bool = True) -> tuple[str, int, tuple[str, ...], Any]:
        """A dependency as a worker is told of it: what it holds itself it needs no value for."""
        if dep.key in worker.held:
            return (dep.key, dep.nbytes, worker.sessions, None)
        value = dep.value
        if value is not None and ((inline and worker.inlined < INLINED_BYTES) or not dep.holders):
            worker.inlined += len(value) if type(value) is bytes else payload_size(value)
            return (dep.key, dep.nbytes, (), value)
        return (dep.key, dep.nbytes, self.tables.holders(dep, worker), None)

    # --- a turn -------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Assign what can be assigned: what is ready, and what can only go on where that runs."""
        self._assign_ready()
        if self.leading:
            leading, self.leading = self.leading, {}
            for task in leading:
                if task.state == ASSIGNED:
                    self._follow(task)

    def _assign_ready(self) -> None:
        """In order of priority across the classes."""
        dirty = self.dirty
        if len(self.pools) > POOLS_KEPT:
            self.offers += len(self.touched) * len(self.pools)
            if self.offers > len(self.tables.tasks):
                self._prune()
        for worker in self.touched:
            worker.inlined = 0
            if worker.count > worker.threads:
                self.loaded[worker] = None
            else:
                self.loaded.pop(worker, None)
            for pool in worker.pools:
                pool.offer(worker)
                if pool.live:
                    dirty[pool] = None
        self.touched = {}
        if not dirty:
            return
        self.dirty = {}
        if len(dirty) == 1:
            for pool in dirty:
                self._drain(pool, _LAST)
            return
        heap = []
        for n, pool in enumerate(dirty):
            if pool.live:
                heap.append((pool.head().priority, n, pool))
        heapify(heap)
        while heap:
            _, n, pool = heap[0]
            limit = min((entry[0] for entry in heap[1:3]), default=_LAST)
            following = self._drain(pool, limit)
            if following is None:
                heappop(heap)
            else:
                heapreplace(heap, (following, n, pool))

    def _drain(self, pool: Pool, limit: int) -> int | None:
        """Assign a class's tasks up to a priority; the next one's priority if that is beyond, else None."""
        heap, tail, pick, assign = pool.heap, pool.tail, pool.pick, self._assign
        many, last, last_fn, rest = len(pool.members) >= RUNS_FROM, None, None, 0
        while pool.live:
            task = tail[0] if not heap and tail[0].state == READY else pool.head()
            if task.priority > limit:
                return task.priority
            worker = self._prefer(task, pool) if task.deps else None
            if worker is None and rest and last and last_fn and task.fn is last_fn and pool.takes(last, last_fn):
                worker, rest = last, rest - 1
            elif worker is None:
                worker = pick(task.fn)  # type: ignore[arg-type]  # data is never queued
                if many and task.fn.measured:  # type: ignore[union-attr]
                    last, last_fn, rest = worker, task.fn, RUN_MICROS // task.fn.cost  # type: ignore[union-attr]
                if worker is None:
                    if not pool.members:
                        self.starving[pool] = None
                    return None
            if heap and heap[0][1] is task:
                heappop(heap)
            else:
                tail.popleft()
            pool.live -= 1
            assign(task, worker)
        return None

    def _prefer(self, task: Task, pool: Pool) -> Worker | None:
        """The worker that holds most of the inputs, if it has room and going elsewhere would not be sooner."""
        weights: dict[Worker, int] = {}
        for dep in task.deps:
            if len(dep.holders) <= HOLDERS_TOLD:  # what is nearly everywhere decides nothing
                weight = dep.nbytes if dep.value is None else 1
                for holder in dep.holders:
                    if isinstance(holder, Worker):
                        weights[holder] = weights.get(holder, 0) + weight
        if not weights:
            return None
        best = max(weights, key=weights.__getitem__) if len(weights) > 1 else next(iter(weights))
        if best.paused or best not in pool.members or (pool.resources and not pool.affords(best)):
            return None
        if best.count < best.threads:
            return best
        fn = task.fn
        assert fn is not None
        if not fn.measured or best.victim or best.load + fn.cost > best.budget or best.count >= AHEAD_TASKS:
            return None
        if pool.idle() and weights[best] // BYTES_PER_MICRO <= best.load // best.threads:
            return None
        return best

    def _assign(self, task: Task, worker: Worker) -> None:
        tables, fn, terms = self.tables, task.fn, task.terms
        assert fn is not None and terms is not None
        tables.attempt = task.attempt = attempt = tables.attempt + 1
        task.state = ASSIGNED
        task.worker = worker
        task.cost = cost = fn.cost
        worker.assigned[task.key] = task
        if not task.waiting:
            worker.count += 1
            worker.load += cost
            if worker.count > worker.threads:
                self.loaded[worker] = None
            if terms.pool.resources:
                for name, amount in terms.pool.resources:
                    worker.free[name] -= amount
            if task.dependents:
                self.leading[task] = None
        inline = len(task.deps) <= INLINED_DEPS  # a task with very many inputs fetches them
        deps = tuple([self.located(dep, worker, inline=inline) for dep in task.deps]) if task.deps else ()
        deliver = 0
        if task.who and not task.dependents:
            who, host = task.who, worker.host
            deliver = 2 if who[0].near == host or (len(who) > 1 and any(c.near == host for c in who)) else 1
        if terms.timeout:
            tables.post(worker, TimeLimit, (task.key, attempt, terms.timeout))
        row = (task.key, attempt, task.priority, deliver, task.args, deps)
        runs = worker.runs
        rows = runs.get(fn)
        if rows is None:
            if not runs:
                self.assigned.append(worker)
            runs[fn] = [row]
        else:
            rows.append(row)

    def _follow(self, task: Task) -> None:
        """Assign the links of a chain behind an assigned task to its worker, which then goes on by itself.

        They wait there for their inputs, and count against its capacity when these are there.
        """
        worker = task.worker
        assert worker is not None
        while task.dependents is not None and len(task.dependents) == 1:
            (follower,) = task.dependents
            if follower.state != WAITING or not self._follows(follower, worker):
                return
            self._assign(follower, worker)
            task = follower

    def _follows(self, task: Task, worker: Worker) -> bool:
        """Whether all that this short task waits for is assigned to the worker, for this task alone."""
        fn, terms = task.fn, task.terms
        assert fn is not None and terms is not None
        if not fn.measured or fn.micros > FOLLOW_MICROS or len(worker.assigned) - worker.count >= FOLLOWERS:
            return False
        if len(task.deps) > FOLLOWED:  # each of them would look at all of them
            return False
        pool = terms.pool
        if worker.paused or worker.gone or pool.resources or worker not in pool.members:
            return False
        if any(other.live and other.head().priority < task.priority for other in worker.pools):
            return False  # it would go ahead of what is more urgent
        for dep in task.deps:
            if dep.state != MEMORY and (dep.worker is not worker or len(dep.dependents or ()) != 1):
                return False
        return True

    def adopt(self, task: Task, worker: Worker, attempt: int, flags: int = 0) -> None:
        """An assignment that was made by the task's client itself, or by an earlier broker."""
        assert task.fn is not None
        task.attempt = attempt
        task.state = ASSIGNED
        task.flags |= flags
        task.worker = worker
        task.cost = task.fn.cost
        worker.assigned[task.key] = task
        if not task.waiting:
            self.charge(task, worker, 1)

    def confirm(self, task: Task) -> None:
        """Order at once what a lane may have brought the worker already: nothing is done twice."""
        fn, worker = task.fn, task.worker
        assert fn is not None and worker is not None
        task.flags &= ~EARLY
        self._define(worker, fn)
        self.tables.tell(worker, Run(fn.digest, ((task.key, task.attempt, task.priority, 2, task.args, ()),)))

    def _define(self, worker: Worker, fn: Function) -> None:
        if worker.session not in fn.workers:
            fn.workers.add(worker.session)
            self.tables.tell(worker, Define(fn.digest, fn.name, fn.blob))

    def flush(self) -> None:
        """Post the turn's Run messages, each after the function's first Define there."""
        tables = self.tables
        for worker in self.assigned:
            for fn, rows in worker.runs.items():
                self._define(worker, fn)
                for part in parts(rows, MESSAGE_ROWS if not any(row[5] for row in rows) else RUN_ROWS):
                    tables.tell(worker, Run(fn.digest, tuple(part)))
            worker.runs = {}
            worker.inlined = 0
        self.assigned = []
