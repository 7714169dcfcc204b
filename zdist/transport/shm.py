"""Shared memory: large values in files of /dev/shm that the other processes of this host map.

A *segment* is a file, ``zdist-UID-SESSION/DIGEST_OF_THE_KEY``: written under another name and renamed, so what can be
opened under this one is whole; it is never truncated. A reader maps copy-on-write: the array is its own, and pages that
it does not write to stay common. Whoever maps it claims it (`zdist.transport.claims`) until the last view is gone, so
an array never changes: when its owner drops the value it takes the name away, and writes another value into the file
only if nobody claims it. Filling pages that are there takes a third of the time that fresh ones take. What finds no use
is unlinked within seconds.

Each process has a directory of its own with a lock for its life (`zdist.transport.scratch`), which is swept when it was
killed. ``$ZDIST_SHM_DIR`` names another place than /dev/shm.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from zdist import limits
from zdist.core.store import Pieces
from zdist.log import get_logger
from zdist.protocol.fields import serves
from zdist.protocol.messages import Attempt, Key, Session
from zdist.transport import claims
from zdist.transport.blobs import Ended, Mapped, Segment
from zdist.transport.mapping import Turnstile, mappings
from zdist.transport.scratch import Scratch, sweep
from zdist.transport.segment import (
    MAX_MAKER,
    Header,
    as_bytes,
    check,
    describe,
    file_name,
    fill,
    maker,
    padded,
    views,
)

__all__ = ["Mapped", "Segment", "SharedMemory", "connect", "default_limit", "peek", "root", "sweep_all"]


SPARE: Final = "spare-"  # how the names of files begin that can be written anew


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
    except (OSError, AttributeError) as exc:
        get_logger("shm").info("shm.off", reason=f"{type(exc).__name__}: {exc}", directory=str(root()))
        return None


class _Spare(NamedTuple):
    """A file of this process that nobody wants by its name any more."""

    path: str
    inode: int
    room: int  # bytes
    since: float


class SharedMemory:
    """Segments of one process, and its look into those of others. Any thread may call.

    ``adopt``: what is mapped from others becomes a segment of this process too, by a link to the same file, so that it
    can be handed on and outlives its first holder. Raises OSError where no directory can be made.
    """

    def __init__(self, session: Session, limit: int, *, adopt: bool = False) -> None:
        if len(session.encode()) > MAX_MAKER:
            raise ValueError(f"session {session} is longer than {MAX_MAKER} bytes")
        self.session = session
        self.limit = limit
        self.adopt = adopt
        self.scratch = Scratch(root(), prefix(), session)
        self.directory = str(self.scratch.path)
        try:
            self.users = claims.make(self.directory)
        except BaseException:
            self.scratch.remove()
            raise
        self.pid = os.getpid()
        self.used = 0  # bytes of all segments
        self.current: dict[str, int] = {}  # by name: serial of the segment whose file stands there
        self.spares: list[_Spare] = []  # oldest first
        self.serials = itertools.count(1)
        self.closed = False
        self.full = False  # said so
        self.turnstile: Turnstile[Ended] = Turnstile(self._let_go)
        self.unwanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # paths; "" to look around, None to end
        self.cleaner: threading.Thread | None = None
        self.cleaned = True  # the cleaner sleeps until it is told, or has not been started
        self.starting = threading.RLock()  # garbage collection may come here while it is held
        mappings.join(self._wake)

    # --- writing -----------------------------------------------------------------------------------

    def write(self, key: Key, attempt: Attempt, blob: Bytes) -> Segment | None:
        """Put a blob there; None if it is small or there is no room, and it has to stay where it is. In both cases
        nobody finds there any more what had its key before."""
        segment = self._write(key, attempt, blob) if blob.nbytes >= limits.SHM_MIN else None
        if segment is None and self.current:
            self._take_away(file_name(key))
        return segment

    def _take_away(self, name: str) -> None:
        with self.turnstile.lock:
            if self.current.pop(name, None) is not None and os.getpid() == self.pid:
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.directory}/{name}")

    def _write(self, key: Key, attempt: Attempt, blob: Bytes) -> Segment | None:
        pieces = [piece for piece in map(as_bytes, blob.pieces) if piece.nbytes]
        header, packed = describe(self.session, key, attempt, [piece.nbytes for piece in pieces])
        spare = self._reserve(header.size)
        if spare is None:
            return None
        try:
            fd = os.open(spare.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fill(fd, padded(packed, pieces, header.table))
                if spare.inode:
                    claims.unlock(self.users, spare.inode)
                view = mappings.map(fd, self.directory, private=False)
                return self._own(fd, spare.path, view, header, self.directory)
            finally:
                os.close(fd)
        except (OSError, ValueError) as exc:
            self._give_back(spare)
            self._say_full(f"{type(exc).__name__}: {exc}")
            return None
        except BaseException:  # Ctrl-C
            self._give_back(spare)
            raise

    def _reserve(self, size: int) -> _Spare | None:
        """A file to write to: one that is locked for this, or one of inode 0 that is not there yet; None if there is no
        room for it."""
        with self.turnstile.lock:
            if self.closed:
                return None
            for spare in self.spares:
                fits = size <= spare.room <= size + size // 4 and self.used + spare.room <= self.limit
                if fits and claims.lock(self.users, spare.inode):
                    self.spares.remove(spare)
                    self.used += spare.room
                    return spare
            if self._fits(size):
                return _Spare(self._new_path(), 0, size, 0.0)
        self._say_full(f"{self.used} of {self.limit} bytes are in use")
        return None

    def _fits(self, size: int) -> bool:
        """Count a new file of this size in, and spares out that are in its way."""
        if self.closed or self.used + size > self.limit:
            return False
        self.used += size
        self._trim(self.limit - self.used)
        return True

    def _trim(self, most: int) -> None:
        """Keep spares of ``most`` bytes."""
        kept = sum([spare.room for spare in self.spares])
        while kept > most:
            spare = self.spares.pop(0)
            kept -= spare.room
            self.unwanted.put(spare.path)

    def _new_path(self) -> str:
        return f"{self.directory}/new-{next(self.serials)}"

    def _give_back(self, spare: _Spare) -> None:
        with self.turnstile.lock:
            self.used -= spare.room
        with contextlib.suppress(OSError):
            os.unlink(spare.path)
            claims.unlock(self.users, spare.inode)

    def _say_full(self, reason: str) -> None:
        if not self.full and not self.closed:
            self.full = True
            get_logger("shm").info("shm.full", reason=reason, note="further values stay in the process's own memory")

    def _own(self, fd: int, temporary: str, view: Any, header: Header, origin: str) -> Segment:
        """Put a finished file into its place, which may be that of an earlier computation."""
        about = os.fstat(fd)
        name, serial = file_name(header.key), next(self.serials)
        with self.turnstile.lock:
            os.rename(temporary, f"{self.directory}/{name}")
            self.current[name] = serial
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # still there if both were links to one file, which rename leaves alone
        segment = Segment(self, serial, about.st_ino, about.st_size, origin, view, header)
        self.turnstile.settle()
        self._wake()
        return segment

    def _let_go(self, ended: Ended) -> None:
        """Nobody refers to a segment of this process any more."""
        if os.getpid() != self.pid:
            return  # a forked child's copy
        self.used -= ended.room
        if self.closed or self.current.get(ended.name) != ended.serial:
            return
        del self.current[ended.name]
        path = f"{self.directory}/{SPARE}{ended.serial}"
        try:
            os.rename(f"{self.directory}/{ended.name}", path)
        except OSError:  # somebody has swept here by hand
            return
        if ended.inode:
            self.spares.append(_Spare(path, ended.inode, ended.room, time.monotonic()))
            self._trim(limits.SEGMENTS_KEPT)
        else:
            self.unwanted.put(path)

    # --- the cleaner -------------------------------------------------------------------------------

    def _wake(self) -> None:
        """There is something that will have to be given back."""
        if self.cleaned and not self.closed:
            self.unwanted.put("")
            if self.cleaner is None:
                with self.starting:
                    thread = threading.Thread(target=self._clean, name="zdist-shm", daemon=True)
                    if self.cleaner is None and not self.closed:
                        self.cleaner = thread
                        thread.start()

    def _clean(self) -> None:
        """A thread of its own, as the kernel takes its time to free large files: unlink what is not wanted, and in time
        what nobody has used again."""
        swept = time.monotonic()
        while True:
            self.cleaned = True  # first, lest what comes now goes unseen
            if self.used or self.spares or mappings.live or mappings.idle:
                self.cleaned = False
            pause = max(swept + limits.REGION_IDLE / 2 - time.monotonic(), 0.0)
            try:
                path = self.unwanted.get(timeout=None if self.cleaned else pause)
            except queue.Empty:
                path = ""
            if path is None:
                return
            if path:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            if time.monotonic() >= swept + limits.REGION_IDLE / 2:
                swept = time.monotonic()
                self._sweep(swept)

    def _sweep(self, now: float) -> None:
        mappings.sweep(now)
        self.turnstile.settle()
        with self.turnstile.lock:
            while self.spares and now - self.spares[0].since >= limits.REGION_IDLE:
                self.unwanted.put(self.spares.pop(0).path)

    # --- reading -----------------------------------------------------------------------------------

    def read(self, holder: Session, rows: Iterable[tuple[Key, Attempt]]) -> tuple[dict[Key, Segment | Mapped], str]:
        """Map what of these lies in the holder's directory, of the attempt asked for (-1: any) or a newer one.

        The second value says why the directory cannot be used at all, "" if it can.
        """
        found: dict[Key, Segment | Mapped] = {}
        try:
            directory = _directory(holder)
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
            self._wake()
        return found, ""

    def _open(self, directory: int, key: Key, attempt: Attempt) -> Segment | Mapped | None:
        try:
            fd = _segment(directory, key)
        except FileNotFoundError:
            return None
        try:
            seen = _look(fd, key, attempt, private=not self.adopt)
            if seen is None:
                return None
            view, header, origin = seen
            if self.adopt:
                if (segment := self._adopt(directory, fd, view, header, origin)) is not None:
                    return segment
                view = mappings.map(fd, origin, private=True)
            return Mapped(view, header)
        finally:
            os.close(fd)

    def _adopt(self, directory: int, fd: int, view: Any, header: Header, origin: str) -> Segment | None:
        """Make another's segment one of our own as well; None if that is not possible."""
        room, temporary = os.fstat(fd).st_size, self._new_path()
        with self.turnstile.lock:
            if not self._fits(room):
                return None
        try:
            # with a directory, as Python follows links (linkat) only then
            os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=directory, follow_symlinks=True)
            return self._own(fd, temporary, view, header, origin)
        except OSError:  # dropped by its holder just now, or there is no /proc
            self._give_back(_Spare(temporary, 0, room, 0.0))
            return None

    # --- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove all of it; what is mapped stays mapped. Idempotent."""
        if self.closed or os.getpid() != self.pid:
            return
        with self.turnstile.lock:
            if self.closed:
                return
            self.closed = True
        with self.starting:
            cleaner = self.cleaner
        if cleaner is not None:
            self.unwanted.put(None)
            if cleaner is not threading.current_thread():
                cleaner.join(1.0)
        self.scratch.remove()
        os.close(self.users)
        mappings.leave(self._wake)


# --- those of others -----------------------------------------------------------------------------------


def _directory(holder: Session) -> int:
    return os.open(root() / f"{prefix()}{holder}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _segment(directory: int, key: Key) -> int:
    return os.open(file_name(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)


def _look(fd: int, key: Key, attempt: Attempt, *, private: bool) -> tuple[Any, Header, str] | None:
    """A segment mapped, its header, and the directory of its maker; None if it is not what is looked for."""
    origin = f"{root()}/{prefix()}{maker(fd)}"
    try:
        view = mappings.map(fd, origin, private=private)
    except BlockingIOError:
        return None  # its holder has dropped it in this moment, and uses it again
    header = check(fd)
    if header is None or header.key != key or not serves(header.attempt, attempt):
        return None
    return view, header, origin


def peek(holder: Session, keys: Iterable[Key]) -> list[tuple[Attempt, Pieces]]:
    """The blobs of a holder on this host, to be read for as long as anything refers to them, and which attempt each is
    of. Raises OSError or ValueError unless all of them lie there."""
    found = []
    directory = _directory(holder)
    try:
        for key in keys:
            fd = _segment(directory, key)
            try:
                seen = _look(fd, key, -1, private=False)
            finally:
                os.close(fd)
            if seen is None:
                raise ValueError(f"what lies there is not {key}")
            found.append((seen[1].attempt, Pieces(views(seen[0], seen[1], writable=False))))
    finally:
        os.close(directory)
    return found
