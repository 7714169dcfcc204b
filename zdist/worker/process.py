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
from typing import Any, Final, NamedTuple

from zdist import context, log
from zdist.core.worker import Exit, Freeze, RunCall, WorkerMachine
from zdist.errors import ZdistError
from zdist.transport.driver import Driver
from zdist.transport.host import host_id
from zdist.transport.security import find_token
from zdist.worker.executor import Executor
from zdist.worker.logs import Records
from zdist.worker.slots import Slots

__all__ = ["Settings", "Worker", "main", "parser"]

SWITCH_INTERVAL: Final = 0.0005  # seconds; a thread that answers data gets the GIL from a task that soon
GRACE: Final = 1.0  # seconds that a worker takes to end in good order
LOOPBACK: Final = "tcp://127.0.0.1:0"


class Settings(NamedTuple):
    """What a worker is told at its start. ``memory_limit`` in bytes, 0 for none; ``slot`` is a file's path."""

    control: str
    token: str
    session: str = ""
    name: str = ""
    node: str = ""
    threads: int = 1
    data_bind: str = ""
    data_ports: tuple[int, int] | None = None
    advertise: str = ""
    memory_limit: int = 0
    tags: tuple[str, ...] = ()
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
        self.name = settings.name or self.session
        self.nthreads = settings.threads
        self.broker_address = settings.control
        self.token = settings.token
        self.reason = ""  # why it has ended
        self.code = 0
        self.ended = threading.Event()
        self._closing = threading.Lock()
        self._closed = False
        self.machine = WorkerMachine(
            self.session,
            settings.token,
            name=self.name,
            node=settings.node,
            host=host_id(),
            pid=os.getpid(),
            threads=settings.threads,
            memory_limit=settings.memory_limit,
            tags=settings.tags,
            resources=dict(settings.resources),
        )
        slots = Slots(settings.slot or None, settings.threads)
        self.driver = Driver(
            self.machine,
            session=self.session,
            token=settings.token,
            control=settings.control,
            name=self.name,
            execute=self._execute,
            data_bind=settings.data_bind or LOOPBACK,
            ports=settings.data_ports,
            advertise=settings.advertise or None,
            insecure=settings.insecure,
        )
        self.address = self.machine.address = self.driver.data_address or ""
        self.executor = Executor(self.machine, self.driver, self, settings.threads, slots)
        self.records = Records(self, own_process)

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

    def close(self, timeout: float = GRACE, reason: str = "") -> None:
        """Say goodbye to the broker and stop; idempotent. Tasks that still run are left to themselves."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self.end(reason or "closed")
        self.executor.stop(timeout / 2)
        with contextlib.suppress(ZdistError):  # the broker may be gone already
            context.close_client_of(self)
        self.driver.close(timeout / 2, self.reason)
        logging.getLogger().removeHandler(self.records)

    def _execute(self, command: Any) -> None:
        """Do a command of the machine; the machine's lock is held."""
        kind = type(command)
        if kind is Freeze:
            self.executor.freeze(command)
        elif kind is RunCall:
            self.executor.call(command)
        elif kind is Exit:
            self.end(command.reason, command.code)
        else:
            raise ZdistError(f"a worker does not know the command {command!r}")


def _ports(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    try:
        first, last = int(low), int(high or low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of ports LO-HI") from None
    if not 0 < first <= last < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of ports LO-HI between 1 and 65535")
    return first, last


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        if name:
            return name, float(amount)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no NAME=AMOUNT")


def parser() -> argparse.ArgumentParser:
    """The options of a worker process; sizes in bytes."""
    out = argparse.ArgumentParser("python -m zdist.worker", description="One worker; nodes start and watch it.")
    out.add_argument("--control", required=True, metavar="ADDRESS", help="of the broker")
    out.add_argument("--token-file", default=None, help="default: $ZDIST_TOKEN, or found by the broker's address")
    out.add_argument("--session", default="", metavar="ID")
    out.add_argument("--name", default="")
    out.add_argument("--node", default="", metavar="SESSION", help="whose heartbeat keeps this worker alive")
    out.add_argument("--nthreads", type=int, default=1)
    out.add_argument("--data-bind", default="", metavar="ADDRESS", help="of the data socket; default: loopback")
    out.add_argument("--data-ports", type=_ports, default=None, metavar="LO-HI")
    out.add_argument("--advertise", default="", metavar="HOST", help="under which others reach the data socket")
    out.add_argument("--memory-limit", type=int, default=0, metavar="BYTES")
    out.add_argument("--tag", action="append", default=[], dest="tags")
    out.add_argument("--resource", action="append", default=[], type=_resource, dest="resources", metavar="NAME=AMOUNT")
    out.add_argument("--slot", default="", metavar="PATH", help="file that tells the node what runs")
    out.add_argument("--insecure", action="store_true", help="allow a data socket that a network can reach")
    out.add_argument("--log-level", default="info", choices=list(log.LEVELS))
    out.add_argument("--log-format", default="auto", choices=log.FORMATS)
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
            token=find_token(args.control, args.token_file),
            session=args.session,
            name=args.name,
            node=args.node,
            threads=args.nthreads,
            data_bind=args.data_bind,
            data_ports=args.data_ports,
            advertise=args.advertise,
            memory_limit=args.memory_limit,
            tags=tuple(args.tags),
            resources=tuple(args.resources),
            slot=args.slot,
            insecure=args.insecure,
        )
        worker = Worker(settings, own_process=True)
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
        worker.end("the node has ended", 1)
        worker.close(GRACE / 4)  # the main thread may be busy with a signal or a task's leftovers
        _exit(1)

    threading.Thread(target=watch, name="zdist-lifeline", daemon=True).start()


def _exit(code: int) -> None:
    """End at once: threads that tasks have left behind, and finalizers, must not keep the process."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
