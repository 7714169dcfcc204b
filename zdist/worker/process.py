"""A worker: its machine, driver and thread pool, in a process of its own or in a thread of another's."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from zdist import context, limits, log
from zdist.core.actors import Perform
from zdist.core.machine import CONTROL
from zdist.core.memory import Spill
from zdist.core.slot import Running
from zdist.core.transfer import Map
from zdist.core.worker import Exit, Freeze, RunCall, Share, WorkerMachine
from zdist.errors import ClusterClosed, ZdistError
from zdist.protocol.actors import Seed
from zdist.protocol.messages import NodeEnded
from zdist.serialize.assembly import BlobMemory
from zdist.serialize.regions import regions
from zdist.transport import shm
from zdist.transport.driver import Driver
from zdist.transport.host import host_id
from zdist.transport.options import add_worker_options
from zdist.transport.security import TokenSource
from zdist.transport.spill import memory_in_use
from zdist.worker.actors import end_all, plant
from zdist.worker.executor import Executor
from zdist.worker.logs import Records
from zdist.worker.slots import Slots

__all__ = ["Settings", "Worker", "main", "parser"]

SWITCH_INTERVAL: Final = 0.0005  # seconds; a thread that answers data gets the GIL from a task that soon
GRACE: Final = 1.0  # seconds that a worker takes to end in good order
LOOPBACK: Final = "tcp://127.0.0.1:0"


class Settings(NamedTuple):
    """What a worker is told at its start. ``memory_limit`` in bytes, 0 for none; ``slot`` is a file's path.
    ``shared_memory``: bytes that it may put there, 0 for no use of it at all, None for half of what is free.

    ``token``: the cluster token, or a function that finds it, asked before each hello.
    """

    control: str
    token: str | Callable[[], str]
    session: str = ""
    name: str = ""
    node: str = ""
    threads: int = 1
    data_bind: str = ""
    data_ports: tuple[int, int] | None = None
    advertise: str = ""
    memory_limit: int = 0
    shared_memory: int | None = None
    tags: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    resources: tuple[tuple[str, float], ...] = ()
    slot: str = ""
    insecure: bool = False


class Worker:
    """One worker, also what `get_worker` gives to tasks.

    ``own_process``: this process is the worker's alone, so all of its log records are the worker's. Raises
    AddressRefused or OSError where the data socket cannot be bound or the slot file made.
    """

    def __init__(self, settings: Settings, *, own_process: bool = False) -> None:
        self.settings = settings
        self.session = settings.session or "w-" + secrets.token_hex(8)
        self.nthreads = settings.threads
        self.broker_address = settings.control
        self.reason = ""  # why it has ended
        self.code = 0
        self.ended = threading.Event()
        self._closing = threading.Lock()
        self._closed = threading.Event()
        token = settings.token
        self.memory = shm.connect(self.session, settings.shared_memory, adopt=True)
        self.machine = WorkerMachine(
            self.session,
            token() if callable(token) else token,
            name=settings.name or self.session,
            node=settings.node,
            host=host_id(),
            pid=os.getpid(),
            threads=settings.threads,
            memory_limit=settings.memory_limit,
            tags=settings.tags,
            resources=dict(settings.resources),
            shared=limits.SHM_MIN if self.memory is not None else 0,
        )
        self.machine.fetcher.memory = BlobMemory()
        if own_process:
            self.machine.memory.usage = self.memory_in_use
            if settings.memory_limit:
                regions.keep = min(regions.keep, int(limits.REGIONS_SHARE * settings.memory_limit))
        self.slots = Slots(settings.slot or None, settings.threads)
        self.driver = Driver(
            self.machine,
            session=self.session,
            token=token,
            control=settings.control,
            name=self.name,
            execute=self._execute,
            data_bind=settings.data_bind or LOOPBACK,
            ports=settings.data_ports,
            advertise=settings.advertise or None,
            insecure=settings.insecure,
            patience=float("inf") if settings.node else limits.NOTICE,  # its node tells of a broker that is away
        )
        self.address = self.machine.address = self.driver.data_address or ""
        self.executor = Executor(self.machine, self.driver, self, settings.threads, self.slots)
        self.plugins = self.executor.plugins
        self.records = Records(self, own_process)

    @property
    def name(self) -> str:
        """Tells it apart from all other workers of the cluster."""
        return self.machine.name

    @property
    def token(self) -> str:
        """The cluster token, as it is now: another broker may have brought another."""
        token = self.settings.token
        return token() if callable(token) else token

    @property
    def id(self) -> str:
        """Session id, under dask's name for it."""
        return self.session

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.address}, {self.nthreads} threads, {len(self.machine.tasks)} tasks>"

    def start(self) -> None:
        """Say hello to the broker and take work."""
        logging.getLogger().addHandler(self.records)
        self.driver.start()
        self.executor.start()

    def end(self, reason: str, code: int = 0) -> None:
        """Let whoever waits for the end of this worker know that it is over; any thread or signal handler may."""
        if not self.ended.is_set():
            self.reason, self.code = reason, code
            self.ended.set()

    def held(self, key: str, attempt: int) -> Any | None:
        """For the client of its tasks: what is held here of a result, None if it is not (or of another attempt)."""
        entry = self.machine.store.get(key)
        return entry if entry is not None and entry.attempt == attempt and (entry.has_value or entry.blob) else None

    def value_of(self, held: Any) -> Any:
        """The object itself, without a copy; for an actor its seed. Raises SerializationError."""
        return self.executor.value_of(held, held.key)

    def plant(self, instance: Any, task: Any, name: str) -> Seed:
        """Have an object live on here as an actor, made by a running task (`zdist.core.actors.Maker`)."""
        return plant(self.executor, instance, task.key, task.attempt, name)

    def memory_in_use(self) -> int:
        """Bytes of its own memory, and of what it has put into shared memory."""
        return memory_in_use() + (self.memory.used if self.memory is not None else 0)

    def running(self) -> list[Running]:
        """What its threads run now."""
        return self.slots.running()

    def close(self, timeout: float = GRACE, reason: str = "") -> None:
        """Say goodbye to the broker and stop; idempotent. Tasks that still run are left to themselves."""
        if not self._closing.acquire(blocking=False):
            self._closed.wait(timeout)  # whoever came first may still be about to say goodbye
            return
        self.end(reason or "closed")
        self.executor.stop(timeout / 2)
        end_all(self.machine)
        self.plugins.close()
        with contextlib.suppress(ZdistError):  # the broker may be gone already
            context.close_client_of(self)
        self.driver.close(timeout / 2, self.reason)
        if self.memory is not None:
            self.memory.close()
        self.executor.spill.close()
        logging.getLogger().removeHandler(self.records)
        self._closed.set()

    def orphaned(self) -> None:
        """The node is gone. The broker hears so at once, whatever the tasks here are doing."""
        with self.driver.lock:
            self.machine.send(CONTROL, NodeEnded())
        with contextlib.suppress(ClusterClosed):  # what is unread when a socket closes may take what was sent with it
            self.driver.drive(lambda: self.driver.confirmed, GRACE / 2)
        self.end("the node has ended", 1)
        self.close()  # the main thread may be busy with a signal or a task's leftovers

    def _execute(self, command: Any) -> None:
        """Do a command of the machine; the machine's lock is held."""
        kind = type(command)
        if kind is Freeze or kind is Share or kind is Spill:
            self.executor.freeze(command)
        elif kind is Map:
            assert self.memory is not None
            found, closed = self.memory.read(command.holder, command.rows)
            self.machine.fetcher.mapped(command.req, found, closed, self.driver.now())
        elif kind is RunCall:
            self.executor.call(command)
        elif kind is Perform:
            command.body.put(command)
        elif kind is Exit:
            self.end(command.reason, command.code)
        else:
            raise ZdistError(f"a worker does not know the command {command!r}")


def parser() -> argparse.ArgumentParser:
    """The options of a worker process; sizes in bytes."""
    out = argparse.ArgumentParser("python -m zdist.worker", description="One worker; nodes start and watch it.")
    add_worker_options(out)
    out.add_argument("--session", default="", metavar="ID")
    out.add_argument("--name", default="")
    out.add_argument("--node", default="", metavar="SESSION", help="whose heartbeat keeps this worker alive")
    out.add_argument("--slot", default="", metavar="PATH", help="file that tells the node what runs")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run a worker until it is told to stop or its node is gone. Never returns once the worker has started."""
    args = parser().parse_args(argv)
    log.configure(args.log_format, args.log_level)
    _log_for_tasks(args.log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a client's terminal is for the client
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        settings = Settings(
            control=args.control,
            token=TokenSource(args.control, args.token_file),
            session=args.session,
            name=args.name,
            node=args.node,
            threads=args.nthreads,
            data_bind=args.data_bind,
            data_ports=args.data_ports,
            advertise=args.advertise,
            memory_limit=args.memory_limit,
            shared_memory=args.shared_memory,
            tags=tuple(args.tags),
            preload=tuple(args.preload),
            resources=tuple(args.resources),
            slot=args.slot,
            insecure=args.insecure,
        )
        worker = Worker(settings, own_process=True)
        for name in settings.preload:
            worker.plugins.preload(name)
    except (ZdistError, OSError, ValueError) as exc:
        print(f"zdist worker: {exc}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda number, frame: worker.end("the worker received SIGTERM"))
    _watch_lifeline(worker)
    gc.collect()
    gc.freeze()  # what is loaded by now stays; collections need not look at it
    worker.start()
    worker.ended.wait()
    worker.close(GRACE, worker.reason)
    _exit(worker.code)
    return worker.code


def _log_for_tasks(level: str) -> None:
    """Records of tasks are kept from the given level on; warnings and errors also go to the node's log."""
    root = logging.getLogger()
    root.setLevel(log.LEVELS[level])
    errors = logging.StreamHandler()
    errors.setLevel(logging.WARNING)
    root.addHandler(errors)


def _watch_lifeline(worker: Worker) -> None:
    """Standard input is a pipe from the node: when it closes, however the node ended, so does the worker.

    Tasks that read standard input find it empty.
    """
    if sys.stdin is None or os.isatty(0):
        return
    lifeline = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(lifeline, 1 << 12):
                pass
        worker.orphaned()
        _exit(1)

    threading.Thread(target=watch, name="zdist-lifeline", daemon=True).start()


def _exit(code: int) -> None:
    """End at once: threads that tasks have left behind, and finalizers, must not keep the process."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
