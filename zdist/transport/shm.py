"""Shared memory: large values in files of /dev/shm that the other processes of this host map.

A *segment* is one immutable file, ``zdist-UID-SESSION/DIGEST_OF_THE_KEY``: written under another name and renamed, so
what can be opened is whole; never truncated, rewritten or used again. Its owner unlinks it when it drops the value, and
mappings keep the pages for as long as they are looked at, so an array made from one never changes. A reader maps
copy-on-write: the array is its own, and pages that it does not write to stay common.

Each process has a directory of its own with a lock for its life (`zdist.transport.scratch`), which is swept when it was
killed. ``$ZDIST_SHM_DIR`` names another place than /dev/shm.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import queue
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from zdist import limits
from zdist.core.store import Pieces
from zdist.log import get_logger
from zdist.protocol.messages import Attempt, Key, Session
from zdist.transport.scratch import Scratch, sweep
from zdist.transport.segment import (
    Header,
    as_bytes,
    check,
    describe,
    file_name,
    fill,
    load,
    map_file,
    mappings,
    padded,
    views,
)

__all__ = ["Mapped", "Segment", "SharedMemory", "connect", "default_limit", "root", "sweep_all"]


class Bytes(Protocol):
    """What is to be written: a blob."""

    @property
    def nbytes(self) -> int: ...
    @property
    def pieces(self) -> Sequence[Any]: ...


def root() -> Path:
    """Where segments lie."""
    return Path(os.environ.get("ZDIST_SHM_DIR") or "/dev/shm")


def prefix() -> str:
    """How the directories of this user's processes begin."""
    return f"zdist-{os.getuid()}-"


def default_limit() -> int:
    """Half of what is free there, in bytes; 0 where there is no shared memory."""
    try:
        about = os.statvfs(root())
    except OSError:
        return 0
    return about.f_bavail * about.f_frsize // 2


def sweep_all(session: Session = "") -> None:
    """Remove what processes of this user have left behind that were killed; with ``session``, that one."""
    if root().is_dir():
        sweep(root(), prefix() + session)


def connect(session: Session, limit: int | None, *, adopt: bool = False) -> SharedMemory | None:
    """This process's part of shared memory, or None where there is to be none (``limit`` 0) or cannot be any.

    ``limit``: bytes that it may put there; None for `default_limit`.
    """
    if limit is None:
        limit = default_limit()
    if not limit:
        return None
    try:
        return SharedMemory(session, limit, adopt=adopt)
    except (OSError, ImportError, AttributeError) as exc:
        get_logger("shm").info("shm.off", reason=f"{type(exc).__name__}: {exc}", directory=str(root()))
        return None


class SharedMemory:
    """Segments of one process, and its look into those of others. Any thread may call.

    ``adopt``: what is mapped from others becomes a segment of this process too, by a link to the same file, so that it
    can be handed on and outlives its first holder. Raises OSError where no directory can be made.
    """

    def __init__(self, session: Session, limit: int, *, adopt: bool = False) -> None:
        load()
        self.limit = limit
        self.adopt = adopt
        self.scratch = Scratch(root(), prefix(), session)
        self.directory = str(self.scratch.path)
        self.pid = os.getpid()
        self.used = 0  # bytes of all segments
        self.current: dict[str, int] = {}  # by name: serial of the segment whose file stands there
        self.serials = itertools.count(1)
        self.closed = False
        self.full = False  # said so
        self.lock = threading.RLock()  # held for moments only; segments come here when they are collected
        self.unwanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.cleaner: threading.Thread | None = None

    # --- writing -----------------------------------------------------------------------------------

    def write(self, key: Key, attempt: Attempt, blob: Bytes) -> Segment | None:
        """Put a blob there; None if it is small or there is no room, and it has to stay where it is."""
        if blob.nbytes < limits.SHM_MIN:
            return None
        pieces = [piece for piece in map(as_bytes, blob.pieces) if piece.nbytes]
        header, packed = describe(key, attempt, [piece.nbytes for piece in pieces])
        if not self._reserve(header.size):
            return None
        temporary = f"{self.directory}/new-{next(self.serials)}"
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fill(fd, padded(packed, pieces, header.table))
                return self._own(fd, temporary, header)
            finally:
                os.close(fd)
        except (OSError, ValueError) as exc:
            self._give_back(header.size)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            self._say_full(f"{type(exc).__name__}: {exc}")
            return None

    def _reserve(self, size: int) -> bool:
        with self.lock:
            if self.closed:
                return False
            if self.used + size <= self.limit:
                self.used += size
                if self.cleaner is None:
                    self.cleaner = threading.Thread(target=self._clean, name="zdist-shm", daemon=True)
                    self.cleaner.start()
                return True
        self._say_full(f"{self.used} of {self.limit} bytes are in use")
        return False

    def _give_back(self, size: int) -> None:
        with self.lock:
            self.used -= size

    def _say_full(self, reason: str) -> None:
        if not self.full and not self.closed:
            self.full = True
            get_logger("shm").info("shm.full", reason=reason, note="further values stay in the process's own memory")

    def _own(self, fd: int, temporary: str, header: Header) -> Segment:
        """Put a finished file into its place, which may be that of an earlier computation."""
        name = file_name(header.key)
        memory = map_file(fd, header.size, private=False)
        serial = next(self.serials)
        inode = os.fstat(fd).st_ino
        with self.lock:
            os.rename(temporary, f"{self.directory}/{name}")
            self.current[name] = serial
        return Segment(self, name, serial, inode, memory, header)

    def let_go(self, segment: Segment) -> None:
        """Nobody refers to a segment of this process any more."""
        if os.getpid() != self.pid:
            return  # a forked child's copy
        with self.lock:
            self.used -= segment.header.size
            if self.closed or not segment.shared:
                return
            del self.current[segment.name]
            doomed = f"{self.directory}/old-{segment.serial}"
            with contextlib.suppress(OSError):  # somebody has swept here by hand
                os.rename(f"{self.directory}/{segment.name}", doomed)
        self.unwanted.put(doomed)

    def _clean(self) -> None:
        """Unlink what is not wanted, in a thread of its own: the kernel takes its time to free large files."""
        while (path := self.unwanted.get()) is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)

    # --- reading -----------------------------------------------------------------------------------

    def read(self, holder: Session, rows: Iterable[tuple[Key, Attempt]]) -> tuple[dict[Key, Segment | Mapped], str]:
        """Map what of these lies in the holder's directory, of the attempt asked for (-1: any) or a newer one.

        The second value says why the directory cannot be used at all, "" if it can.
        """
        found: dict[Key, Segment | Mapped] = {}
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            directory = os.open(root() / f"{prefix()}{holder}", flags)
        except OSError as exc:
            return found, f"no shared memory of its holder here ({exc.strerror})"
        try:
            for key, attempt in rows:
                blob = self._open(directory, key, attempt)
                if blob is not None:
                    found[key] = blob
        except (OSError, ValueError) as exc:
            return found, f"its holder's shared memory cannot be read: {exc}"
        finally:
            os.close(directory)
        return found, ""

    def _open(self, directory: int, key: Key, attempt: Attempt) -> Segment | Mapped | None:
        try:
            fd = os.open(file_name(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
        except FileNotFoundError:
            return None
        try:
            header = check(fd)
            if header.key != key or header.attempt < attempt:
                return None
            if self.adopt and (segment := self._adopt(directory, fd, header)) is not None:
                return segment
            if mappings() >= limits.SHM_MAPPINGS:
                raise ValueError(f"this process has {mappings()} mappings already")
            return Mapped(map_file(fd, header.size, private=True), header)
        finally:
            os.close(fd)

    def _adopt(self, directory: int, fd: int, header: Header) -> Segment | None:
        """Make another's segment one of our own as well; None if that is not possible."""
        if not self._reserve(header.size):
            return None
        temporary = f"{self.directory}/new-{next(self.serials)}"
        try:
            # with a directory, as Python follows links (linkat) only then
            os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=directory, follow_symlinks=True)
            return self._own(fd, temporary, header)
        except OSError:  # dropped by its holder just now, or there is no /proc
            self._give_back(header.size)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            return None

    # --- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove all of it; what is mapped stays mapped. Idempotent."""
        with self.lock:
            if self.closed or os.getpid() != self.pid:
                return
            self.closed = True
        if self.cleaner is not None:
            self.unwanted.put(None)
            self.cleaner.join(1.0)
        self.scratch.remove()


class Segment:
    """A blob in shared memory that belongs to this process; its file goes when nobody refers to it any more."""

    __slots__ = ("__weakref__", "_bytes", "header", "inode", "memory", "name", "serial")

    def __init__(
        self, memory: SharedMemory, name: str, serial: int, inode: int, mapping: mmap.mmap, header: Header
    ) -> None:
        self.memory = memory
        self.name = name
        self.serial = serial
        self.inode = inode
        self.header = header
        self._bytes = Pieces(views(mapping, header, writable=False))

    @property
    def nbytes(self) -> int:
        """Bytes of the blob."""
        return self.header.nbytes

    @property
    def attempt(self) -> Attempt:
        """Which computation of its key it is of."""
        return self.header.attempt

    @property
    def shared(self) -> bool:
        """Does its file stand where others look for it? Not if a newer computation has taken the place."""
        return self.memory.current.get(self.name) == self.serial

    @property
    def pieces(self) -> list[Any]:
        """A copy-on-write mapping of its own for each taker."""
        try:
            fd = os.open(f"{self.memory.directory}/{self.name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_ino == self.inode:
                    return views(map_file(fd, self.header.size, private=True), self.header, writable=True)
            finally:
                os.close(fd)
        except OSError:  # the file is gone, our own mapping is not
            pass
        return self._bytes.pieces

    def slice(self, offset: int, length: int) -> list[Any]:
        """Buffers covering ``length`` bytes from ``offset`` on, as far as there are any."""
        return self._bytes.slice(offset, length)

    def __del__(self) -> None:
        self.memory.let_go(self)

    def __repr__(self) -> str:
        return f"<Segment {self.header.key} attempt {self.attempt}, {self.nbytes} B>"


class Mapped:
    """A blob in the shared memory of another process, mapped copy-on-write by this one."""

    __slots__ = ("_taken", "_views", "header")
    shared = False

    def __init__(self, mapping: mmap.mmap, header: Header) -> None:
        self.header = header
        self._views = views(mapping, header, writable=True)
        self._taken = False

    @property
    def nbytes(self) -> int:
        """Bytes of the blob."""
        return self.header.nbytes

    @property
    def attempt(self) -> Attempt:
        """Which computation of its key it is of."""
        return self.header.attempt

    @property
    def pieces(self) -> list[Any]:
        """For the first taker the mapping itself, for others something to copy from."""
        if self._taken:
            return [bytes(view) for view in self._views]
        self._taken = True
        return self._views

    def slice(self, offset: int, length: int) -> list[Any]:
        """Buffers covering ``length`` bytes from ``offset`` on, as far as there are any."""
        return Pieces([view.toreadonly() for view in self._views]).slice(offset, length)
