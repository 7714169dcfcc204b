"""The node: how many workers run on a host, which they are, and what happens when one ends. PURE.

A worker is *alive* from the command that starts it until the driver says that its process has ended. Every start gets a
session of its own; the index, and with it the name, is taken over by the replacement. The broker was told of a worker
that is *leaving*: it copies its data elsewhere and dismisses it, and the replacement is there by then. One that is
*ending* has been sent a signal.
"""

from __future__ import annotations

import hashlib
import signal
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zdist import limits
from zdist.core.deaths import death_text
from zdist.core.machine import CONTROL, Machine, Route, aligned, require
from zdist.core.mirror import Copy
from zdist.core.slot import Running
from zdist.core.supervised import Ended, EndWorker, Look, StartWorker, WorkerInfo
from zdist.errors import InvariantError, ProtocolError
from zdist.protocol.messages import (
    Adjust,
    Adjusted,
    Alive,
    Attempt,
    Dismiss,
    Interrupt,
    Key,
    Leaving,
    Message,
    Mirror,
    Overdue,
    Pong,
    Stop,
    Welcome,
    WorkerDied,
)

__all__ = ["EndWorker", "Ended", "Look", "NodeMachine", "StartWorker", "WorkerInfo"]

SIGTERM: Final = int(signal.SIGTERM)
SIGKILL: Final = int(signal.SIGKILL)


class NodeMachine(Machine[Route]):
    """Keeps ``workers`` worker processes alive.

    Parameters: the node's session id and name; ``workers``, how many to keep; ``hostname``, for people; ``host``, as
    `zdist.transport.host.host_id` names it; ``pid`` of the node's process. Call `start` once, then report what happens
    to the processes with `worker_started`, `worker_failed` and `worker_exited`.
    """

    role = "node"

    def __init__(
        self,
        session: str,
        name: str,
        workers: int,
        *,
        hostname: str = "",
        host: str = "",
        pid: int = 0,
        memory_limit: int = 0,
    ) -> None:
        super().__init__()
        self.session = session
        self.name = name
        self.hostname = hostname
        self.host = host
        self.pid = pid
        self.memory_limit = memory_limit  # bytes, of each worker; 0: none
        self.wanted = min(workers, limits.MAX_WORKERS)
        self.alone = self.wanted == 1  # a single worker bears the node's own name
        self.alive: dict[str, WorkerInfo] = {}
        self.starts = 0
        self.quick: dict[int, int] = {}  # index: deaths at once, in a row
        self.due: dict[int, float] = {}  # index: when its replacement may start
        self.retired: dict[int, None] = {}  # indices without a worker, until the next order how many to keep
        self.look_at = 0.0
        self.copy = Copy()  # of what clients share
        self.reports: deque[WorkerDied] = deque(maxlen=limits.DEATHS_KEPT)
        self.unanswered: list[int] = []  # Adjust requests whose workers have not all ended yet
        self.stopping: str | None = None
        self.code = 0
        self.ended = False
        self.handlers: dict[type, Callable[..., None]] = {
            Adjust: self._adjust, Stop: self._stop, Pong: self._pong, Interrupt: self._interrupt,
            Dismiss: self._dismiss, Mirror: self._mirror,
        }  # fmt: skip

    # --- endpoint ----------------------------------------------------------------------------------

    def hello_info(self) -> dict[str, Any]:
        """Fields of Hello.info for a node."""
        return {"name": self.name, "host": self.host, "pid": self.pid, "address": "", "workers": self.keeps()}

    def authorize(self, token: str) -> None:
        """A node sends no data requests, so only the session layer needs the token."""

    def welcomed(self, welcome: Welcome, now: float) -> None:
        """A broker that knows nothing of this node may know workers that have died since: tell it again."""
        if welcome.fresh:
            if self.alive:  # also at the first welcome: an earlier broker may have welcomed them alone
                self.send(CONTROL, Alive(tuple(w.session for w in self.alive.values() if not w.ending)))
            if welcome.epoch != self.copy.epoch:  # else that broker has it
                for part in self.copy.offer():
                    self.send(CONTROL, part)
            for report in self.reports:
                self.send(CONTROL, report)
            leaving = tuple(w.session for w in self.alive.values() if w.leaving and not w.ending)
            if leaving:
                reason = self.stopping or "its node told it to leave before this broker came"
                self.send(CONTROL, Leaving(leaving, True, reason, self.keeps()))

    def refused(self, code: str, text: str, now: float) -> None:
        """The broker will not have this node: end all."""
        self.log("error", "node.refused", code=code, text=text)
        self._end(f"refused by the broker: {text}", 1, now)

    def handle(self, route: Route, message: Message, now: float) -> None:
        """Take in a message of the broker."""
        handler = self.handlers.get(type(message))
        if handler is None or route.channel != "control":
            raise ProtocolError(f"a node has no use for {type(message).__name__} on its {route.channel} channel")
        handler(message, now)

    def turn(self, now: float) -> None:
        """Nothing is saved up between turns."""

    def deadline(self) -> float | None:
        """When `tick` is next needed: a replacement is due, or patience with an ending worker is over."""
        taken = self._taken()
        times = [when for index, when in self.due.items() if index < self.wanted and index not in taken]
        if self.alive:
            times.append(self.look_at)
        times += [worker.kill_at for worker in self.alive.values() if worker.kill_at is not None]
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Do what has become due."""
        for worker in self.alive.values():
            if worker.kill_at is None or now < worker.kill_at:
                continue
            worker.kill_at = None
            if worker.ending:
                self.commands.append(EndWorker(worker.session, SIGKILL))
            else:
                self.log("warning", "worker.not_dismissed", worker=worker.name, session=worker.session)
                self._end_worker(worker, now)
        if self.alive and now >= self.look_at:
            self.look_at = aligned(now, limits.LOOK)
            self.commands.append(Look())
        self._settle(now)

    def _taken(self) -> set[int]:  # by workers that stay
        return {worker.index for worker in self.alive.values() if not worker.leaving}

    # --- limits of what runs ------------------------------------------------------------------------

    def seen(self, workers: dict[str, list[Running]], memory: dict[str, int], now: float) -> bool:
        """What the workers' slots say that they run, and the bytes of memory that they use. One that has run something
        for too long is replaced, one that uses too much is killed.

        Returns whether there was one.
        """
        late = self._too_large(memory, workers, now)
        for session, running in workers.items():
            worker = self.alive.get(session)
            if worker is None or worker.ending:
                continue
            rows = tuple(
                (key, attempt)
                for key, attempt, until in running
                if (key, attempt) not in worker.given_up
                and ((until and now >= until) or now >= worker.interrupted.get((key, attempt), now + 1))
            )
            if rows:
                late = True
                worker.given_up.update(rows)
                self.log("warning", "worker.overdue", worker=worker.name, session=session, keys=[r[0] for r in rows])
                self.send(CONTROL, Overdue(session, rows))
                self._leave([worker], limits.REPLACE_GRACE, False, "a task there was given up", now)
        if late:
            self._settle(now)
        return late

    def _too_large(self, memory: dict[str, int], running: dict[str, list[Running]], now: float) -> bool:
        """Kill those above the last mark; replace those that run nothing and stay above the one before."""
        most = limits.KILL_MARK * self.memory_limit
        found = False
        for session, used in memory.items():
            worker = self.alive.get(session)
            if not self.memory_limit or worker is None or worker.why:
                continue
            if used > most:
                mib = limits.MIB
                worker.why = f"it used {used // mib} MiB of memory, and its limit is {self.memory_limit // mib} MiB"
                self.log("error", "worker.memory", worker=worker.name, used=used, limit=self.memory_limit)
                self.commands.append(EndWorker(session, SIGKILL))
                found = True
            elif not worker.leaving:
                idle = used > limits.PAUSE_MARK * self.memory_limit and not running.get(session)
                worker.idle_looks = worker.idle_looks + 1 if idle else 0
                if worker.idle_looks * limits.LOOK >= limits.FULL_AND_IDLE:
                    self.log("warning", "worker.does_not_shrink", worker=worker.name, used=used)
                    # not to stay, as overdue ones: its data has another place as soon as its replacement has come
                    self._leave([worker], limits.SCALE_GRACE, False, "its memory does not shrink", now)
                    found = True
        return found

    def _interrupt(self, message: Interrupt, now: float) -> None:
        worker = self.alive.get(message.worker)
        if worker is not None:
            if len(worker.interrupted) > limits.INTERRUPTED:
                worker.interrupted.clear()
            worker.interrupted |= dict.fromkeys(message.rows, now + limits.INTERRUPT_GRACE)

    # --- leaving in good order ----------------------------------------------------------------------

    def drain(self, reason: str, patience: float, now: float) -> None:
        """End the node when what runs has come to an end and its data is elsewhere, ``patience`` seconds later at most.

        At once when it is told so again. A broker that is still to come hears of it in its welcome: workers connect on
        their own, and may hold data before their node is known.
        """
        if self.stopping is not None or patience <= 0:
            return self._end(reason, 0, now)
        self.log("info", "node.draining", reason=reason, workers=len(self.alive), seconds=patience)
        self.stopping = reason
        self.wanted = 0
        self._leave(list(self.alive.values()), patience, True, reason, now)
        self._settle(now)

    def _leave(self, workers: list[WorkerInfo], patience: float, stay: bool, reason: str, now: float) -> None:
        workers = [worker for worker in workers if not worker.ending and not (worker.leaving and stay)]
        for worker in workers:
            worker.leaving = True
            worker.kill_at = now + patience if worker.kill_at is None else min(worker.kill_at, now + patience)
        if workers:
            self.send(CONTROL, Leaving(tuple(worker.session for worker in workers), stay, reason, self.keeps()))

    def _dismiss(self, message: Dismiss, now: float) -> None:
        for session in message.workers:
            worker = self.alive.get(session)
            if worker is not None:
                if message.retire and not worker.leaving:
                    self.retired[worker.index] = None
                    self.send(CONTROL, Adjusted(0, self.keeps()))
                worker.leaving = True
                self._end_worker(worker, now)
        self._settle(now)

    # --- orders ------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start the first workers; they connect on their own, so no welcome is waited for."""
        self._settle(now)

    def scale(self, workers: int, now: float) -> None:
        """Keep this many workers from now on; the ones with the highest index go first."""
        require(workers >= 0, f"a node cannot keep {workers} workers")
        if self.stopping is None:
            self._keep(workers)
            self._settle(now)

    def keeps(self) -> int:
        """How many workers it has or starts, besides those that leave for good."""
        return self.wanted - sum(index < self.wanted for index in self.retired)

    def _keep(self, workers: int) -> None:
        self.wanted = min(workers, limits.MAX_WORKERS)
        self.retired.clear()

    def stop(self, reason: str, now: float) -> None:
        """End all workers, then the node (a signal, or the lifeline has closed)."""
        self._end(reason, 0, now)

    def _adjust(self, message: Adjust, now: float) -> None:
        if message.workers > limits.MAX_WORKERS:
            self.log("warning", "node.too_many_workers", asked=message.workers, limit=limits.MAX_WORKERS)
        if self.stopping is None:
            if message.workers >= 0:
                self._keep(message.workers)
            if message.restart:
                self.quick.clear()
                self.due.clear()
                for worker in self.alive.values():
                    self._end_worker(worker, now)
        self.unanswered.append(message.req)
        self._settle(now)

    def _mirror(self, message: Mirror, now: float) -> None:
        confirmed = self.copy.take(message)
        if confirmed is not None:
            self.send(CONTROL, confirmed)

    def _stop(self, message: Stop, now: float) -> None:
        self._end(message.reason, 0, now)

    def _pong(self, message: Pong, now: float) -> None:
        pass

    def _end(self, reason: str, code: int, now: float) -> None:
        if self.stopping is None or not all(worker.ending for worker in self.alive.values()):
            self.log("info", "node.stopping", reason=reason, workers=len(self.alive))
            self.stopping = reason
            self.code = code
            self.wanted = 0
            for worker in self.alive.values():
                self._end_worker(worker, now)
            self._settle(now)

    # --- what happened to the processes ----------------------------------------------------------------

    def worker_started(self, session: str, pid: int, now: float) -> None:
        """The process of a worker is there."""
        worker = self.alive.get(session)
        if worker is None:
            raise InvariantError(f"worker {session} started, but the node never asked for it or was told of its end")
        worker.pid = pid
        worker.started = now
        self.log("info", "worker.started", worker=worker.name, session=session, worker_pid=pid)

    def worker_failed(self, session: str, text: str, now: float) -> None:
        """No process could be had for a worker; the broker never heard of it, so only the log does."""
        worker = self.alive.pop(session, None)
        if worker is not None:
            self.log("error", "worker.start_failed", worker=worker.name, error=text)
            self._replace_later(worker, now)
            self._settle(now)

    def worker_exited(
        self, session: str, code: int, lines: list[str], running: tuple[tuple[Key, Attempt], ...], now: float
    ) -> None:
        """A worker's process has ended: report it at once and replace it.

        ``code`` is negative for a signal; ``lines`` are the last ones that it wrote; ``running`` is what its slot says.
        """
        worker = self.alive.pop(session, None)
        if worker is None:
            return
        text = death_text(worker.name, worker.pid, self.hostname, code, lines, worker.why)
        report = WorkerDied(session, code, text, running, worker.ending)
        self.reports.append(report)
        self.send(CONTROL, report)
        if worker.ending:
            self.log("info", "worker.ended", worker=worker.name, session=session, code=code)
        else:
            self.log("warning", "worker.died", worker=worker.name, session=session, code=code, running=len(running))
            if not worker.leaving:
                self._replace_later(worker, now)
        self._settle(now)

    def _replace_later(self, worker: WorkerInfo, now: float) -> None:
        """Replace at once, unless workers in this place die at once again and again."""
        index = worker.index
        if now - worker.started > limits.QUICK_DEATH:
            self.quick.pop(index, None)
            return
        deaths = self.quick[index] = self.quick.get(index, 0) + 1
        if deaths > 1:
            pause = min(limits.RESTART_PAUSE * 2 ** min(deaths - 2, 16), limits.RESTART_PAUSE_MAX)
            self.due[index] = now + pause
            self.log("warning", "worker.restart_delayed", worker=worker.name, deaths=deaths, seconds=pause)

    # --- towards what is wanted ------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """End what is too much, start what is missing and due, answer what has been carried out."""
        if self.stopping is None:
            surplus = [worker for worker in self.alive.values() if worker.index >= self.wanted]
            self._leave(surplus, limits.SCALE_GRACE, True, "the node keeps fewer workers", now)
            taken = self._taken()
            for index in range(self.wanted):
                if index not in taken and index not in self.retired and self.due.get(index, now) <= now:
                    self.due.pop(index, None)
                    self._start_worker(index, now)
        elif not self.alive and not self.ended:
            self.ended = True
            self.commands.append(Ended(self.code, self.stopping))
        if self.unanswered and not any(w.leaving or w.ending for w in self.alive.values()):
            for req in self.unanswered:
                self.send(CONTROL, Adjusted(req, self.keeps()))
            self.unanswered.clear()

    def _start_worker(self, index: int, now: float) -> None:
        self.starts += 1
        number = f"{self.session}/{self.starts}"
        session = "w-" + hashlib.blake2b(number.encode(), digest_size=8).hexdigest()
        name = self.name if self.alone and index == 0 else f"{self.name}-{index}"
        self.alive[session] = WorkerInfo(index, session, name, now)
        self.commands.append(StartWorker(index, session, name))

    def _end_worker(self, worker: WorkerInfo, now: float) -> None:
        if not worker.ending:
            worker.ending = True
            worker.kill_at = now + limits.END_GRACE
            self.commands.append(EndWorker(worker.session, SIGTERM))

    def check(self) -> None:
        """One worker per index besides those that leave, no more than wanted, nothing alive after the end."""
        staying = [worker for worker in self.alive.values() if not worker.leaving]
        indices = [worker.index for worker in staying]
        require(len(set(indices)) == len(indices), f"two workers of node {self.name} share an index: {indices}")
        for worker in staying:
            require(worker.ending or worker.index < self.wanted, f"worker {worker.name} is not wanted and stays")
            require(worker.ending or worker.kill_at is None, f"worker {worker.name} is to be killed without an order")
        if self.stopping is not None:
            require(self.wanted == 0, f"node {self.name} is stopping and wants {self.wanted} workers")
        require(not (self.ended and self.alive), f"node {self.name} has ended before its workers {list(self.alive)}")
        if self.stopping is None:
            known = {*indices, *self.due, *self.retired}
            missing = [index for index in range(self.wanted) if index not in known]
            require(not missing, f"node {self.name} has forgotten its workers {missing}")
