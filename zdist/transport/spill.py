"""Values on disk: a worker's memory is limited, and what it holds for others may be more than that.

A value is a file of the pieces of its blob. It is read by mapping it copy-on-write, so that any byte range can be
served without reading all of it, and the pages are the kernel's to take back. Where: ``$ZDIST_SPILL_DIR``, else the
directory for temporary files.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from zdist.log import get_logger
from zdist.protocol.messages import Session
from zdist.transport.scratch import Scratch, sweep

__all__ = ["SpillDirectory", "Spilled", "memory_in_use", "sweep_spilled"]

ALIGN: Final = 64
VECTOR: Final = 256  # buffers of one write
MAPPED: Final = 1 << 20  # bytes from which a value is mapped instead of read
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def root() -> Path:
    """Where workers' directories lie."""
    return Path(os.environ.get("ZDIST_SPILL_DIR") or tempfile.gettempdir())


def prefix() -> str:
    """How the directories of this user's workers begin."""
    return f"zdist-spill-{os.getuid()}-"


def sweep_spilled(session: Session = "") -> None:
    """Remove what workers of this user have left behind that were killed; with ``session``, that one."""
    if root().is_dir():
        sweep(root(), prefix() + session)


def memory_in_use(pid: int | str = "self") -> int:
    """Bytes of memory that are a process's own: not files that it has mapped. 0 where that cannot be told."""
    try:
        file = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)  # open() takes three times as long
        try:
            _size, resident, shared = os.read(file, 256).split()[:3]
        finally:
            os.close(file)
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * PAGE


class Spilled:
    """A blob on disk; its file is gone when it is."""

    __slots__ = ("nbytes", "path", "sizes")
    shared: ClassVar[bool] = False
    spilled: ClassVar[bool] = True

    def __init__(self, path: str, sizes: list[int]) -> None:
        self.path = path
        self.sizes = sizes
        self.nbytes = sum(sizes)

    @property
    def pieces(self) -> list[memoryview]:
        """All of it, mapped; the taker may write to it, which changes nothing here."""
        with open(self.path, "rb") as file:
            small = self.nbytes < MAPPED  # a mapping keeps a descriptor
            view = memoryview(bytearray(file.read()) if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        found, at = [], 0
        for size in self.sizes:
            found.append(view[at : at + size])
            at = _padded(at + size)
        return found

    def slice(self, offset: int, length: int) -> list[memoryview]:
        """Buffers covering ``length`` bytes from ``offset`` on, as far as there are any."""
        found = []
        for piece in self.pieces:
            if offset < piece.nbytes and length > 0:
                found.append(piece[offset : offset + length])
                length -= found[-1].nbytes
            offset = max(0, offset - piece.nbytes)
        return found

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.unlink(self.path)


class SpillDirectory:
    """Where one worker writes its values; made when the first is written."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.scratch: Scratch | None = None
        self.serials = itertools.count(1)
        self.failed = False  # said so

    def write(self, pieces: Sequence[Any]) -> Spilled | None:
        """Write a blob's pieces; None if the disk does not take them."""
        views = [memoryview(piece).cast("B") for piece in pieces]
        views = [view for view in views if view.nbytes]
        path = ""
        try:
            if self.scratch is None:
                self.scratch = Scratch(root(), prefix(), self.session)
            path = f"{self.scratch.path}/{next(self.serials)}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, views)
            finally:
                os.close(fd)
        except OSError as exc:
            if not self.failed:
                self.failed = True
                get_logger("spill").warning("spill.failed", reason=str(exc), directory=str(root()))
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        self.failed = False
        return Spilled(path, [view.nbytes for view in views])

    def close(self) -> None:
        """Remove all of it."""
        if self.scratch is not None:
            self.scratch.remove()


def _padded(at: int) -> int:
    return -(-at // ALIGN) * ALIGN


def _write(fd: int, views: list[memoryview]) -> None:
    buffers, at = [], 0
    for view in views:
        if gap := _padded(at) - at:
            buffers.append(memoryview(bytes(gap)))
        buffers.append(view)
        at = _padded(at) + view.nbytes
    while buffers:
        done = os.writev(fd, buffers[:VECTOR])
        while buffers and done >= buffers[0].nbytes:
            done -= buffers.pop(0).nbytes
        if done:
            buffers[0] = buffers[0][done:]
