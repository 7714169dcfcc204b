"""Broker and node processes as their parent holds them: commands, lifelines, the line that says where they listen."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import threading
import time
import weakref
from typing import IO, Any, Final

from zdist import limits
from zdist.errors import ClusterClosed, ZdistError
from zdist.node.process import child_environment, python_command

__all__ = ["Child", "broker_command", "node_command", "readable"]

ANSWER_TIMEOUT: Final = 10.0  # seconds for a node to answer an order


def broker_command(
    bind: str,
    *,
    token_file: str = "",
    bulk_bind: str = "",
    inline_result: int = limits.INLINE_RESULT,
    allowed_deaths: int = limits.ALLOWED_DEATHS,
    log_level: str,
    log_format: str,
) -> list[str]:
    """Command line of a broker; ``--lifeline``, ``--first`` or ``--insecure`` may be added."""
    out = [*python_command("zdist_broker"), "--bind", bind, "--log-level", log_level, "--log-format", log_format]
    out += ["--inline-result", str(inline_result), "--allowed-deaths", str(allowed_deaths)]
    if token_file:
        out += ["--token-file", token_file]
    if bulk_bind:
        out += ["--bulk-bind", bulk_bind]
    return out


def node_command(
    control: str, *, name: str, workers: int, threads: int, log_level: str, log_format: str, **options: str
) -> list[str]:
    """Command line of a node; ``options`` by their names with underscores, those that are empty are left out."""
    out = [*python_command("zdist.node"), "--control", control, "--name", name, "--nworkers", str(workers)]
    out += ["--nthreads", str(threads), "--log-level", log_level, "--log-format", log_format]
    for option, value in options.items():
        if value:
            out += ["--" + option.replace("_", "-"), value]
    return out


_children: weakref.WeakSet[Child] = weakref.WeakSet()


class Child:
    """A process in a session of its own that ends when its standard input closes, so when this process ends.

    Raises OSError if it cannot be started.
    """

    def __init__(self, what: str, command: list[str]) -> None:
        self.what = what
        self.lock = threading.Lock()
        self.buffer = b""
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the program, not for its cluster
        )
        _children.add(self)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def line(self, timeout: float) -> str:
        """The next line that it writes. Raises ZdistError if it ends or is silent for ``timeout`` seconds."""
        end = time.monotonic() + timeout
        stdout = _pipe(self.process.stdout)
        while b"\n" not in self.buffer:
            if not readable(stdout.fileno(), end - time.monotonic()):
                raise ZdistError(f"{self.what} (pid {self.process.pid}) has said nothing for {timeout:g} s")
            data = os.read(stdout.fileno(), 1 << 16)
            if not data:
                code = self.wait(1.0)
                how = "has closed its output" if code is None else f"ended with code {code}"
                raise ZdistError(
                    f"{self.what} (pid {self.process.pid}) {how}; what it wrote to standard error says why"
                )
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode("utf-8", "replace").strip()

    def ask(self, order: str) -> dict[str, Any]:
        """Give a node an order and return its answer. Raises ClusterClosed if it has ended."""
        with self.lock:
            try:
                _pipe(self.process.stdin).write(order.encode() + b"\n")
                answer: dict[str, Any] = {}
                while answer.get("order") != order:  # else it answers an earlier one that was given up
                    answer = json.loads(self.line(ANSWER_TIMEOUT))
            except (OSError, ValueError) as exc:
                raise ClusterClosed(f"{self.what} (pid {self.process.pid}) has ended: {exc}") from None
        if "error" in answer:
            raise ZdistError(answer["error"])
        return answer

    def wait(self, timeout: float) -> int | None:
        """Its exit code, or None if it has not ended in time."""
        try:
            return self.process.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            return None

    def close(self, timeout: float) -> None:
        """Close the lifeline, wait, and kill what is still there after ``timeout`` seconds; idempotent."""
        self.cut()
        if self.wait(timeout) is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def cut(self) -> None:
        """Let go of the lifeline."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


def readable(fd: int, timeout: float) -> bool:
    """Wait until there is something to read, or the end; False after ``timeout`` seconds."""
    poller = select.poll()  # select() knows no descriptors over 1023
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout) * 1000))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None or pipe.closed:
        raise ValueError("its pipe is closed")
    return pipe


def _in_child() -> None:
    """A forked process must not keep its parent's clusters alive, nor end them."""
    for child in _children:
        child.cut()
        child.process.returncode = 0  # not ours to wait for


os.register_at_fork(after_in_child=_in_child)
