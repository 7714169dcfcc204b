"""Transitions of tasks: done, failed, lost, released, forgotten, and what each does to the tasks around it. PURE.

Every walk over the graph keeps its own stack: chains are as long as users make them. The rules the walks restore: an
active task's inputs are active or in memory; what nobody needs is withdrawn or dropped (``tidy``); a spec stays while
a client wants it or a dependent is in the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zdist.limits import MAX_KEY, MAX_RECOMPUTES, MAX_TEXT, OWN_FRAME
from zdist.protocol.messages import (
    Abort,
    ActorGone,
    Cancelled,
    Done,
    Drop,
    Erred,
    Failed,
    Finished,
    Killed,
    Locate,
    Lost,
    Replicate,
    payload_size,
)
from zdist_broker.placement import Placement
from zdist_broker.recovery import is_stub
from zdist_broker.state import (
    ASSIGNED,
    EARLY,
    FAILED,
    FORGOTTEN,
    KILLED,
    LAZY,
    LOST,
    MEMORY,
    OVERDUE,
    PINNED,
    RAISED,
    READY,
    RELEASED,
    WAITING,
    Client,
    Failure,
    Function,
    Placing,
    Tables,
    Task,
    Trouble,
    Worker,
)
from zdist_broker.withdrawing import unplace


class Lifecycle:
    """What may happen to a task once it is in the table."""

    def __init__(self, tables: Tables, placement: Placement) -> None:
        self.tables = tables
        self.placement = placement

    # --- completions --------------------------------------------------------------------------------

    def done(self, worker: Worker, message: Done, now: float) -> None:
        tables = self.tables
        tasks, assigned, held, alone = tables.tasks, worker.assigned, worker.held, worker.alone
        last: Function | None = None
        row: Any
        total = n = 0
        for key, attempt, micros, nbytes, value, kind in message.rows:
            task = tasks.get(key)
            if task is None or task.attempt != attempt or task.worker is not worker:
                self.stale(worker, key, task)
                continue
            fn = task.fn
            if fn is not last:
                if last is not None and n:
                    last.learn(total // n)
                    worker.completed += n
                    tables.tally.completed += n
                last, total, n = fn, 0, 0
            total += micros
            n += 1
            early = task.flags & EARLY
            if task.flags or task.waiting or task.terms.pool.resources:  # type: ignore[union-attr]
                self.placement.unassign(task)
                task.flags = task.waiting = 0
            else:
                del assigned[key]
                worker.count -= 1
                worker.load -= task.cost
                task.worker = None
            task.state = MEMORY
            if nbytes < 0 or len(kind) > MAX_KEY:
                nbytes, kind = max(nbytes, 0), kind[:MAX_KEY]
            task.nbytes = nbytes
            task.type = kind
            task.holders = alone
            held[key] = task
            if value is not None:
                size = len(value) if type(value) is bytes else payload_size(value)
                if size <= OWN_FRAME:
                    tables.keep(task, value, size)
                else:  # no value of that size travels with a completion
                    value = None
            who = task.who
            for client in who if not early or value is None else ():  # else they have it, or hear of it soon
                if value is not None and not client.crowded:
                    row = (key, attempt, nbytes, value, (), kind)
                else:
                    row = (key, attempt, nbytes, None, tables.holders(task, client), kind)
                if client.kind is Finished:
                    client.rows.append(row)
                else:
                    tables.post(client, Finished, row)
            if task.dependents:
                self.arrived(task)
            if task.deps:
                self._unuse(task)
            if not who and not task.users:
                self.tidy([task])
        if last is not None and n:
            last.learn(total // n)
            worker.completed += n
            tables.tally.completed += n
        worker.victim = False
        self.placement.touched[worker] = None

    def stale(self, peer: Worker | Client, key: str, task: Task | None) -> None:
        """A result of an attempt that does not count: the peer need not keep it."""
        self.tables.ignored += 1
        if len(key) <= MAX_KEY and (task is None or (task.worker is not peer and key not in peer.held)):
            self.tables.post(peer, Drop, key)
            placing = self.tables.placing.get(key)
            if placing is not None and isinstance(peer, Worker) and peer in placing.targets:  # the copy that was
                del placing.targets[peer]  # ordered goes, too
                if placing.task.state == MEMORY and placing.task.holders:
                    self.replicate(placing, peer)

    def replicate(self, placing: Placing, worker: Worker) -> None:
        """Ask a worker for one of the copies."""
        task = placing.task
        placing.targets[worker] = None
        where = self.tables.holders(task, worker)
        self.tables.post(worker, Replicate, (task.key, task.attempt, task.nbytes, where))

    def arrived(self, task: Task) -> None:
        """The task's data has come to be: dependents that waited for it may go on."""
        placement = self.placement
        told: dict[Worker, None] = {}
        for dependent in task.dependents or ():
            state = dependent.state
            if state == WAITING:
                dependent.waiting -= 1
                if not dependent.waiting:
                    placement.enqueue(dependent)
            elif state == ASSIGNED:
                placement.resume(dependent)
                assert dependent.worker is not None
                if task.holders is not dependent.worker.alone:  # which knows that it has it
                    told[dependent.worker] = None
        for worker in told:
            self.tables.post(worker, Locate, placement.located(task, worker))

    def _unuse(self, task: Task) -> None:
        """The task is active no more: its inputs have one user less."""
        loose = []
        for dep in task.deps:
            dep.users -= 1
            if not dep.users and not dep.who:
                loose.append(dep)
        if loose:
            self.tidy(loose)

    def erred(self, worker: Worker, message: Erred, now: float) -> None:
        for key, attempt, _micros, payload, text in message.rows:
            task = self.tables.tasks.get(key)
            if task is None or task.attempt != attempt or task.worker is not worker:
                self.tables.ignored += 1
                continue
            trouble = task.trouble = task.trouble or Trouble()
            trouble.errors += 1
            assert task.terms is not None
            if trouble.errors <= task.terms.retries:
                self.placement.requeue(task)
            else:
                self.placement.give_up(task)
                self.fail(task, (RAISED, payload, key, text[:MAX_TEXT]))

    def died(self, task: Task, text: str) -> None:
        """The worker died while it ran the task."""
        trouble = task.trouble = task.trouble or Trouble()
        trouble.deaths += 1
        allowed = self.tables.allowed_deaths
        if trouble.deaths <= allowed:
            self.placement.requeue(task)
            return
        self.placement.unassign(task)
        times = f"{trouble.deaths} workers died while they ran it ({allowed} deaths are allowed)"
        self.fail(task, (KILLED, b"", task.key, f"{task.key}: {times}; the last was {text}"))

    def overdue(self, task: Task) -> None:
        """Its time is over, and its worker will be replaced: a failure like any other, so retries are made."""
        trouble = task.trouble = task.trouble or Trouble()
        trouble.errors += 1
        terms, worker = task.terms, task.worker
        assert terms is not None and worker is not None
        if trouble.errors <= terms.retries:
            return self.placement.requeue(task)
        self.placement.give_up(task)
        text = f"{task.key} ran for longer than its timeout of {terms.timeout:g} s, at last on worker {worker.name}"
        self.fail(task, (OVERDUE, b"", task.key, text))

    def fail(self, task: Task, failure: Failure) -> None:
        """The task has failed for good, and with it every active task that depends on it. It is assigned no more."""
        if failure[2] == task.key:  # else it was said of the task that raised
            self.tables.tally.failure(task.key, failure[3])
        stack: list[Task] = [task]
        loose: list[Task] = []
        while stack:
            t = stack.pop()
            if t.state == FAILED:
                continue
            if t.state != RELEASED:
                if t is not task:
                    self._withdraw(t)
                for dep in t.deps:
                    dep.users -= 1
                loose += t.deps
            t.state = FAILED
            t.flags = t.waiting = 0
            t.trouble = t.trouble or Trouble()
            t.trouble.failure = failure
            for client in t.who:
                self.announce(client, t)
            stack += [d for d in t.dependents or () if d.state <= ASSIGNED]
            loose.append(t)
        self.tidy(loose)

    def announce(self, client: Client, task: Task) -> None:
        """Tell a client that wants the task how it ended, if it has."""
        if task.state == MEMORY:
            self.tables.finished(client, task)
        elif task.state == FAILED:
            assert task.trouble is not None
            how, payload, culprit, text = task.trouble.failure
            if how == LOST:
                self.tables.post(client, ActorGone, (task.key, text))
            elif how != RAISED:
                self.tables.post(client, Killed, (task.key, text, how == OVERDUE))
            else:
                self.tables.post(client, Failed, (task.key, payload, culprit, text))

    # --- no longer needed ----------------------------------------------------------------------------

    def _withdraw(self, task: Task) -> None:
        """Take an active task out of its queue, or from its worker. The caller gives it its new state."""
        if task.state == READY:
            self.placement.dequeue(task, WAITING)
        elif task.state == ASSIGNED:
            worker = self.placement.unassign(task)
            self.tables.post(worker, Abort, (task.key, task.attempt))
            if task.key not in worker.held:  # a copy of an earlier attempt may have come there meanwhile
                self.tables.post(worker, Drop, task.key)

    def tidy(self, tasks: Iterable[Task]) -> None:
        """Withdraw, drop or forget those of the tasks, and of what they stood for, that nobody needs or seeks."""
        stack = list(tasks)
        while stack:
            task = stack.pop()
            if task.who or task.users or task.state == FORGOTTEN or task.flags & PINNED:
                continue
            if task.state <= ASSIGNED:
                self._withdraw(task)
                task.state = RELEASED
                task.waiting = 0
                for dep in task.deps:
                    dep.users -= 1
                    if not dep.users:
                        stack.append(dep)
            elif task.state == MEMORY and task.dependents:
                self._drop(task)
            if not task.dependents and not (task.state == RELEASED and task.fn and task.key in self.tables.sought):
                stack += task.deps
                self.forget(task)

    def _drop(self, task: Task) -> None:
        """Let the data go where it can be had again: what a client holds is part of its dependents' specs."""
        self.tables.discard(task)
        for holder in task.holders:
            if isinstance(holder, Worker):
                self.tables.remove_holder(task, holder, tell=True)
        if not task.holders:
            task.state = RELEASED
        unplace(self.tables, task.key)

    def forget(self, task: Task) -> None:
        """Take a task that nobody needs and nothing depends on out of the table."""
        tables = self.tables
        key = task.key
        del tables.tasks[key]
        task.state = FORGOTTEN
        if task.value is not None:
            tables.discard(task)
        for holder in task.holders:
            del holder.held[key]
            if holder.kind is Drop:
                holder.rows.append(key)
            else:
                tables.drop(holder, key)
        task.holders = ()
        task.args = b""
        for dep in task.deps:
            if dep.dependents is not None:
                del dep.dependents[task]
        task.deps = ()  # a queue may still have the record for a while
        fn = task.fn
        if tables.placing:
            unplace(tables, key)
        if tables.blind:
            tables.blind.pop(task, None)
        if fn is not None:
            fn.uses -= 1
            if not fn.uses and not fn.owners:
                tables.functions.pop(fn.digest, None)

    # --- lost and computed again -----------------------------------------------------------------------

    def lost(self, tasks: list[Task], reason: str) -> None:
        """These were in memory and have no copy left: compute again what is needed, as far back as it takes."""
        tables, placement = self.tables, self.placement
        for task in tasks:
            task.state = RELEASED
            told: dict[Worker, None] = {}
            for d in task.dependents or ():
                if d.state == READY:
                    placement.dequeue(d, WAITING)
                    d.waiting += 1
                elif d.state == WAITING:
                    d.waiting += 1
                elif d.state == ASSIGNED:
                    placement.stall(d)
                    assert d.worker is not None
                    told[d.worker] = None
            for worker in told:
                tables.post(worker, Locate, (task.key, task.nbytes, (), None))
            unplace(tables, task.key)
            trouble = task.trouble = task.trouble or Trouble()
            trouble.recomputes += 1
            if task.fn is not None:
                for client in task.who:
                    tables.post(client, Lost, task.key)
        needed = [task for task in tasks if task.who or task.users]
        for task in needed:
            assert task.trouble is not None
            times = task.trouble.recomputes
            if times > MAX_RECOMPUTES:
                self.fail(
                    task, (KILLED, b"", task.key, f"{task.key}: its result was lost {times} times, last: {reason}")
                )
        for task in needed:
            if task.state == RELEASED:
                self.revive(task, reason)
        self.tidy(tasks)

    def revive(self, task: Task, reason: str) -> None:
        """A released task is needed again, and so is whatever it needs. It ends active, failed or cancelled."""
        order = self.lineage(task)
        for t in order:
            if t.lives:
                why = reason if t.trouble is not None and t.trouble.recomputes else "nobody held it"
                self.fail(t, (LOST, b"", t.key, f"actor {t.key} is gone, and its state with it: {why}"))
                continue
            states = [dep.state for dep in t.deps]
            if FAILED in states:
                culprit = t.deps[states.index(FAILED)].trouble
                assert culprit is not None
                self.fail(t, culprit.failure)
                continue
            if t.fn is None or RELEASED in states:
                continue  # data that is gone, or something computed from it
            for dep in t.deps:
                dep.users += 1
            t.waiting = sum(state != MEMORY for state in states)
            t.state = WAITING
            t.flags &= ~LAZY
            if not t.waiting:
                self.placement.enqueue(t)
        if task.state == RELEASED:
            why = reason if task.fn is None else f"an input of {task.key} is gone for good: {reason}"
            stub = next(filter(is_stub, order), None)
            told = f"scattered data lost: {why}" if stub is None else f"depends on {stub.key[:80]}, which nobody holds"
            self.cancel([task], told)
        self.tidy(order)

    def lineage(self, task: Task) -> list[Task]:
        """The released tasks that must be computed for this one, inputs first."""
        order: dict[Task, None] = {}
        stack = [(task, False)]
        while stack:
            t, ready = stack.pop()
            if ready:
                order[t] = None
            elif t not in order:
                stack.append((t, True))
                stack += [(dep, False) for dep in t.deps if dep.state == RELEASED and dep not in order]
        return list(order)

    def cancel(self, tasks: Iterable[Task], reason: str) -> None:
        """Nobody gets these, nor any active task that depends on them."""
        stack: list[Task] = list(tasks)
        loose: list[Task] = []
        while stack:
            task = stack.pop()
            for client in task.who:
                self.tables.post(client, Cancelled, (task.key, reason, client.wants.pop(task.key)))
            task.who = ()
            task.flags &= ~PINNED
            stack += [d for d in task.dependents or () if d.state <= ASSIGNED]
            if task.state <= ASSIGNED:
                self._withdraw(task)
                task.state = RELEASED
                task.waiting = 0
                for dep in task.deps:
                    dep.users -= 1
                loose += task.deps
            loose.append(task)
        self.tidy(loose)

    def retry(self, tasks: list[Task]) -> None:
        """Start failed tasks, and the failed ones that they depend on, from the beginning."""
        again: dict[Task, None] = {}
        stack = list(tasks)
        while stack:
            task = stack.pop()
            if task.state == FAILED and task not in again:
                again[task] = None
                stack += task.deps
        for task in again:
            task.trouble = None
            task.state = RELEASED
            for client in task.who:
                self.tables.post(client, Lost, task.key)
        for task in again:
            if task.state == RELEASED and task.who:
                self.revive(task, "its data was released")
        self.tidy(again)
