"""Worker processes as the operating system has them: how they are started, what they write, how they end."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from zdist import limits
from zdist.core import slot as slots
from zdist.core.naming import resource_text
from zdist.errors import AddressRefused
from zdist.transport.security import check_bind, is_local

__all__ = ["Output", "WorkerProcess", "WorkerSettings", "child_environment", "python_command"]

# The module that a worker process runs. It lies above this package because it gives tasks their client.
WORKER_MODULE: Final = "zdist.cluster.worker"
READ_SIZE: Final = 1 << 16
ONE_THREAD: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerSettings(NamedTuple):
    """What all workers of a node have in common; sizes in bytes."""

    control: str
    token_file: str = ""  # else each worker finds the token as this process did
    threads: int = 1
    data_bind: str = ""  # ending in "/": each worker appends its session id
    data_ports: tuple[int, int] | None = None
    advertise: str = ""
    memory_limit: int = 0
    shared_memory: int | None = None  # of all workers together; 0: none, None: half of what is free
    tags: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()  # modules or files
    resources: tuple[tuple[str, float], ...] = ()
    insecure: bool = False
    log_level: str = ""
    log_format: str = ""
    drain: float = limits.DRAIN  # seconds that a SIGTERM leaves for tasks and data

    def bind(self) -> str:
        """Where data sockets listen: as told; on all interfaces if others have to reach them; "" for the loopback.

        Raises AddressRefused for what a network can reach, unless ``insecure``.
        """
        if self.data_bind:
            check_bind(self.data_bind, self.insecure)
            return self.data_bind
        if not self.advertise and is_local(self.control):
            return ""
        if not self.insecure:
            why = f"--advertise {self.advertise}" if self.advertise else f"a broker on another machine ({self.control})"
            raise AddressRefused(
                f"with {why} the workers' data sockets have to be reached over the network, where anyone could read "
                "data and run code here; give --insecure if the network is trusted"
            )
        return "tcp://0.0.0.0:0"

    def arguments(self, node: str, session: str, name: str, slot: str) -> list[str]:
        """Command line of one worker; the token is never on it."""
        out = ["--control", self.control, "--node", node, "--session", session, "--name", name]
        out += ["--nthreads", str(self.threads), "--slot", slot]
        bind = self.bind()
        options = {
            "--token-file": self.token_file,
            "--data-bind": bind + session if bind.endswith("/") else bind,
            "--data-ports": "-".join(map(str, self.data_ports or ())),
            "--advertise": self.advertise,
            "--memory-limit": str(self.memory_limit) if self.memory_limit else "",
            "--shared-memory": "" if self.shared_memory is None else str(self.shared_memory),
            "--log-level": self.log_level,
            "--log-format": self.log_format,
        }
        for option, value in options.items():
            if value:
                out += [option, value]
        for tag in self.tags:
            out += ["--tag", tag]
        for module in self.preload:
            out += ["--preload", module]
        for resource, amount in self.resources:
            out += ["--resource", resource_text(resource, amount)]
        if self.insecure:
            out.append("--insecure")
        return out


def python_command(module: str) -> list[str]:
    """Run a module with this interpreter; the working directory cannot shadow the standard library (-P)."""
    return [sys.executable, "-P", "-m", module]


def child_environment() -> dict[str, str]:
    """The environment of a process that we start: zdist can be imported there also from a source tree."""
    env = dict(os.environ)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        roots = [root]
        brokers = os.path.join(root, "brokers")
        if os.path.isdir(os.path.join(brokers, "zdist_broker")):
            roots.append(brokers)
        known = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
        env["PYTHONPATH"] = os.pathsep.join(roots + [path for path in known if path not in roots])
    return env


class WorkerProcess:
    """One worker's process, its output and its slot.

    Starting it raises OSError. ``exited(session)`` is called from a thread of its own as soon as the process has ended.
    """

    def __init__(
        self, settings: WorkerSettings, node: str, session: str, name: str, slot: str, exited: Callable[[str], None]
    ) -> None:
        self.session = session
        self.name = name
        self.slot = slot
        self.slot_fd = -1
        self.tail: deque[bytes] = deque(maxlen=limits.LOG_TAIL)
        self.partial = b""
        env = child_environment()
        for variable in ONE_THREAD:  # tasks run side by side already
            env.setdefault(variable, "1")
        self.process = subprocess.Popen(
            python_command(WORKER_MODULE) + settings.arguments(node, session, name, slot),
            stdin=subprocess.PIPE,  # the lifeline: it closes however this process ends
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=env,
            start_new_session=True,  # Ctrl-C at a terminal is for the node
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        os.set_blocking(self.output, False)
        threading.Thread(target=self._wait, args=(exited,), name=f"wait-{name}", daemon=True).start()

    def _wait(self, exited: Callable[[str], None]) -> None:
        self.process.wait()
        exited(self.session)

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        with contextlib.suppress(OSError):
            self.process.send_signal(number)

    def read(self) -> bytes | None:
        """Whole lines that it has written since; None at the end of its output."""
        try:
            data = os.read(self.output, READ_SIZE)
        except BlockingIOError:
            return b""
        if not data:
            return None
        data = self.partial + data
        cut = data.rfind(b"\n") + 1
        if not cut and len(data) > limits.MAX_TEXT:
            cut = len(data)
        self.partial = data[cut:]
        self.tail.extend(data[:cut].splitlines())
        return data[:cut]

    def rest(self) -> bytes:
        """What is left of the output of a process that has ended, with a last line that has no end."""
        pieces = []
        while data := self.read():  # a child of the worker may hold the pipe open: stop where it is empty
            pieces.append(data)
        if self.partial:
            self.tail.append(self.partial)
            pieces.append(self.partial + b"\n")
            self.partial = b""
        return b"".join(pieces)

    def lines(self) -> list[str]:
        """The last lines of its output."""
        return [line.decode("utf-8", "replace") for line in self.tail]

    def running(self) -> list[slots.Running]:
        """What its slot says that it runs, or ran when it ended; nothing before it has made one."""
        if self.slot_fd < 0:
            try:
                self.slot_fd = os.open(self.slot, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return []
        return slots.read(lambda length, offset: os.pread(self.slot_fd, length, offset))

    def close(self) -> None:
        """Give back the pipes and the slot of a process that has ended."""
        if self.slot_fd >= 0:
            os.close(self.slot_fd)
            self.slot_fd = -1
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(OSError):
            os.unlink(self.slot)


class Output:
    """Passes the workers' lines on to a descriptor that may be slow, without ever waiting for it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pending: deque[bytes] = deque()
        self.size = 0
        self.broken = False

    @property
    def full(self) -> bool:
        """Too much is waiting: the workers' pipes are not read for now."""
        return self.size > limits.MIB

    def write(self, data: bytes) -> None:
        """Queue whole lines."""
        if data and not self.broken:
            self.pending.append(data)
            self.size += len(data)

    def flush(self, wait: float = 0.0) -> None:
        """Write what the descriptor takes; ``wait`` seconds at most for each piece."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        while self.pending and poller.poll(wait * 1000):
            data = self.pending.popleft()
            try:  # a pipe that polls as writable takes this much without blocking
                written = os.write(self.fd, data[: select.PIPE_BUF])
            except OSError:
                self.broken = True
                self.pending.clear()
                self.size = 0
                return
            self.size -= written
            if written < len(data):
                self.pending.appendleft(data[written:])
