"""The node's process: one thread that looks after worker processes, and a driver that talks to the broker.

Everything that happens to this process ends in one queue: commands of the machine, ends of workers, signals. The main
thread sleeps in one poll over the queue's wake-up pipe, the workers' output and the lifeline.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from zdist import limits
from zdist.core.machine import Log
from zdist.core.node import Ended, EndWorker, Look, NodeMachine, StartWorker
from zdist.errors import ZdistError
from zdist.log import get_logger
from zdist.node.process import Output, WorkerProcess, WorkerSettings
from zdist.transport import shm
from zdist.transport.host import host_id
from zdist.transport.scratch import Scratch
from zdist.transport.security import NODES, runtime_dir, sweep_runtime
from zdist.transport.spill import memory_in_use, sweep_spilled

if TYPE_CHECKING:
    from zdist.transport.driver import Driver

__all__ = ["Supervisor"]

LIFELINE_LINE = 1 << 16  # bytes of one order on the lifeline


class WorkerEnded(NamedTuple):
    """A worker's process is gone."""

    session: str


class StopNode(NamedTuple):
    """A signal has asked this process to end; ``drain``: in good order."""

    reason: str
    drain: bool


class Supervisor:
    """Runs one node until it is told to stop.

    Parameters: ``settings`` of the workers, with the broker's address; ``token``, which finds the cluster's; the node's
    ``name``; how many ``workers``; ``lifeline``, a descriptor whose end ends the node and that may carry orders,
    answered on ``answers``; ``stderr``, where the workers' output goes; ``runtime``, a directory for the slots
    (default: its own). Raises AddressRefused where the workers' data sockets could be reached over a network without
    leave.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        token: Callable[[], str],
        name: str,
        workers: int,
        *,
        lifeline: int | None = None,
        answers: int | None = None,
        stderr: int = 2,
        runtime: str | None = None,
    ) -> None:
        settings.bind()  # refuse a bad address before anything is started
        limit = shm.default_limit() if settings.shared_memory is None else settings.shared_memory
        self.settings = settings._replace(shared_memory=limit // max(1, workers))
        shm.sweep_all()
        sweep_spilled()
        self.token = token
        self.session = "n-" + os.urandom(8).hex()
        self.hostname = socket.gethostname()
        self.machine = NodeMachine(
            self.session,
            name,
            workers,
            hostname=self.hostname,
            host=host_id(),
            pid=os.getpid(),
            memory_limit=settings.memory_limit,
        )
        self.lifeline = lifeline
        self.answers = answers
        self.orders = b""
        if not runtime:
            sweep_runtime()
        self.own_runtime = None if runtime else Scratch(runtime_dir(), NODES)
        self.runtime = runtime or (str(self.own_runtime.path) if self.own_runtime else "")
        self.driver: Driver | None = None
        self.workers: dict[str, WorkerProcess] = {}
        self.outputs: dict[int, WorkerProcess] = {}
        self.output = Output(stderr)
        self.queue: deque[Any] = deque()
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        self.ended: Ended | None = None
        self.alone_since = time.monotonic()  # without a broker
        self.logger = get_logger(role="node", name=name)

    # --- the loop ----------------------------------------------------------------------------------

    def run(self) -> int:
        """Start the workers, connect, and serve until the last worker has ended; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)
        try:
            # The workers take longest to come up, so they are started before this process loads ZeroMQ.
            self.machine.start(time.monotonic())
            self._take_commands()
            self._work()
            self._connect()
            while self.ended is None:
                self._wait()
                self._work()
        finally:
            self._close()
        return self.ended.code

    def _connect(self) -> None:
        from zdist.transport.driver import Driver

        self.driver = Driver(
            self.machine,
            session=self.session,
            token=self.token,
            control=self.settings.control,
            name="node",
            execute=self.put,
            # a program that starts its own broker knows of it, and a loaded machine may be slow to bring that up
            patience=limits.NOTICE if self.lifeline is None else limits.HANDSHAKE_TIMEOUT,
        )
        self.driver.start()

    def _close(self) -> None:
        for worker in self.workers.values():  # only after an error of our own: nothing is left behind
            worker.signal(signal.SIGKILL)
        if self.driver is not None:
            self.driver.close(1.0 if self.driver.connected else 0.1)  # nobody hears the goodbye
        self.output.flush(0.2)
        for worker in self.workers.values():
            worker.close()
        if self.own_runtime is not None:
            self.own_runtime.remove()

    def put(self, item: Any) -> None:
        """Queue a command or an event for the main thread; any thread may call it, and it never blocks."""
        self.queue.append(item)
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self.wake_write, b"\0")

    def _signalled(self, number: int, frame: object) -> None:
        self.put(StopNode(f"the node received {signal.Signals(number).name}", number == signal.SIGTERM))

    def _wait(self) -> None:
        """Sleep until something happens, and take in what processes wrote."""
        poller = select.poll()
        poller.register(self.wake_read, select.POLLIN)
        if self.lifeline is not None:
            poller.register(self.lifeline, select.POLLIN)
        if self.output.pending:
            poller.register(self.output.fd, select.POLLOUT)
        if not self.output.full:
            for fd in self.outputs:
                poller.register(fd, select.POLLIN)
        for fd, _event in poller.poll():
            if fd == self.wake_read:
                os.read(fd, 1 << 16)
            elif fd == self.lifeline:
                self._read_lifeline(fd)
            elif fd in self.outputs:
                self._read_output(fd)
        self.output.flush()

    def _read_output(self, fd: int) -> None:
        data = self.outputs[fd].read()
        if data is None:
            del self.outputs[fd]  # it has closed its output; its end is another matter
        else:
            self.output.write(data)

    # --- the queue -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while self.queue:
            item = self.queue.popleft()
            if isinstance(item, StartWorker):
                self._start_worker(item)
            elif isinstance(item, EndWorker):
                if (worker := self.workers.get(item.session)) is not None:
                    worker.signal(item.signal)
            elif isinstance(item, WorkerEnded):
                self._worker_ended(item.session)
            elif isinstance(item, Look):
                self._look()
            elif isinstance(item, StopNode):
                if item.drain:
                    self._tell(self.machine.drain, item.reason, self.settings.drain if self.driver else 0.0)
                else:
                    self._tell(self.machine.stop, item.reason)
            elif isinstance(item, Ended):
                self.ended = item
            else:
                raise ZdistError(f"the node does not know the command {item!r}")

    def _start_worker(self, command: StartWorker) -> None:
        slot = os.path.join(self.runtime, command.session + ".slot")
        try:
            worker = WorkerProcess(
                self.settings,
                self.session,
                command.session,
                command.name,
                slot,
                lambda session: self.put(WorkerEnded(session)),
            )
        except OSError as exc:
            self._tell(self.machine.worker_failed, command.session, f"{type(exc).__name__}: {exc}")
            return
        self.workers[command.session] = worker
        self.outputs[worker.output] = worker
        self._tell(self.machine.worker_started, command.session, worker.pid)

    def _worker_ended(self, session: str) -> None:
        worker = self.workers.pop(session)
        self.outputs.pop(worker.output, None)
        self.output.write(worker.rest())
        running = tuple((key, attempt) for key, attempt, _until in worker.running())
        self._tell(self.machine.worker_exited, session, worker.process.returncode, worker.lines(), running)
        worker.close()
        self._clean_up(session)

    def _look(self) -> None:
        """Tell the machine what the workers run."""
        if self.driver is not None:
            seen = {session: worker.running() for session, worker in self.workers.items()}
            memory = {}
            if self.settings.memory_limit:
                memory = {session: memory_in_use(worker.pid) for session, worker in self.workers.items()}
            with self.driver.lock:
                late = self.machine.seen(seen, memory, self.driver.now())
            if late:
                self.driver.wake()
            if self.machine.stopping is None or self.driver.connected:
                self.alone_since = self.driver.now()
            elif self.driver.now() - self.alone_since > limits.NOTICE:  # nobody is there to copy data, or to dismiss
                self._tell(self.machine.stop, self.machine.stopping)

    def _clean_up(self, session: str) -> None:
        """A killed worker leaves its socket's file and its shared memory behind."""
        shm.sweep_all(session)
        sweep_spilled(session)
        bind = self.settings.data_bind
        if bind.startswith("ipc://") and bind.endswith("/"):
            with contextlib.suppress(OSError):
                os.unlink(bind.removeprefix("ipc://") + session)

    # --- the machine ---------------------------------------------------------------------------------

    def _tell(self, method: Callable[..., None], *args: Any) -> None:
        """Call the machine with the time; what it wants done comes through the queue."""
        if self.driver is None:
            method(*args, time.monotonic())
            self._take_commands()
        else:
            with self.driver.lock:
                method(*args, self.driver.now())
            self.driver.wake()

    def _take_commands(self) -> None:
        """Before there is a driver: queue the machine's commands here."""
        commands, self.machine.commands = self.machine.commands, []
        for command in commands:
            if isinstance(command, Log):
                self.logger.log(command.level, command.event, **command.fields)
            else:
                self.put(command)

    # --- the lifeline ----------------------------------------------------------------------------------

    def _read_lifeline(self, fd: int) -> None:
        data = os.read(fd, LIFELINE_LINE)
        if not data:
            self.lifeline = None
            self._tell(self.machine.stop, "the program that started the node has closed it or ended")
            return
        *lines, self.orders = (self.orders + data).split(b"\n")
        for line in lines:
            order = line.decode("utf-8", "replace")
            self._answer({"order": order, **self._order(order.split())})

    def _order(self, words: list[str]) -> dict[str, Any]:
        match words:
            case ["scale", number] if number.isdecimal() and int(number) <= limits.MAX_WORKERS:
                self._tell(self.machine.scale, int(number))
            case ["workers"]:
                pass
            case _:
                return {"error": f"the node does not know the order {' '.join(words)!r}"}
        with self.driver.lock if self.driver is not None else contextlib.nullcontext():
            return {
                "wanted": self.machine.wanted,
                "workers": {
                    worker.name: {"session": worker.session, "pid": worker.pid, "ending": worker.ending}
                    for worker in self.machine.alive.values()
                },
            }

    def _answer(self, answer: dict[str, Any]) -> None:
        if self.answers is not None:
            with contextlib.suppress(OSError):
                os.write(self.answers, json.dumps(answer).encode() + b"\n")
