"""Files of shared memory as memory of this process.

Looking at fresh pages takes five times as long as the rest of a gather, so a mapping that nobody looks at any more is
kept for a moment: when its maker writes the next value into the same file, the pages are there. What it was used for is
not seen by the next user: private pages, those that were written to, are thrown away first.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from zdist import limits
from zdist.transport.claims import Claims

__all__ = ["Mappings", "Turnstile", "mappings"]

PAGE: Final = mmap.PAGESIZE
NORESERVE: Final = 0x4000  # MAP_NORESERVE: most pages of a private mapping are never written to
ENTRY: Final = 8  # bytes of an entry of /proc/self/pagemap; the last has these bits
PRESENT, SWAPPED, OF_FILE = 0x80, 0x40, 0x20
PRISTINE: Final = bytes(
    [bits for bits in range(256) if not bits & (PRESENT | SWAPPED) or bits & (PRESENT | OF_FILE) == PRESENT | OF_FILE]
)
# An attribute of a mapping's buffer that ends with it. Of all that weak references can watch only code objects are not
# tracked by the garbage collector, which calls back before the finalizers of a cycle run, and these may still look.
_TOKEN: Final = (lambda: None).__code__
T = TypeVar("T")


class Turnstile(Generic[T]):
    """A lock, and what garbage collection ends: it strikes anywhere, also in the middle of a `with` of the same thread,
    and then ``end`` is called when that is over.

    Use ``with turnstile.lock: …`` and then ``turnstile.settle()``: a context manager of ours could be left locked by
    Ctrl-C.
    """

    def __init__(self, end: Callable[[T], None]) -> None:
        self._end = end
        self._ended: deque[T] = deque()
        self.lock: Any = threading.RLock()

    def ended(self, what: T) -> None:
        """``end(what)`` is called now, or by `settle` once this thread is out."""
        self._ended.append(what)
        self.settle()

    def settle(self) -> None:
        """End what has ended meanwhile."""
        if self._ended and not self.lock._is_owned():
            with self.lock:
                while self._ended:
                    self._end(self._ended.popleft())

    def renew(self) -> None:
        """In a forked child, whose other threads are gone."""
        self.lock = threading.RLock()
        self._ended.clear()


class _Byte(ctypes.Union):
    """Arrays of it show themselves as plain bytes (format B), which no other type of ctypes does."""

    _fields_ = (("byte", ctypes.c_ubyte),)


class _Libc:
    """The C library's own calls: a Python mmap keeps a descriptor, and ends when its last view does."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        size, number = ctypes.c_size_t, ctypes.c_int
        self.mmap, self.munmap, self.madvise = library.mmap, library.munmap, library.madvise
        self.mmap.argtypes = [size, size, number, number, number, ctypes.c_long]
        self.mmap.restype = size
        self.munmap.argtypes = [size, size]
        self.madvise.argtypes = [size, size, number]

    @staticmethod
    def error() -> OSError:
        number = ctypes.get_errno()
        return OSError(number, os.strerror(number))


class Mapping:
    """One mapping; ``token`` tells when its last view is gone."""

    __slots__ = ("address", "claim", "file", "private", "since", "size", "token")

    def __init__(self, address: int, size: int, file: tuple[int, int], private: bool) -> None:
        self.address = address
        self.size = size  # bytes, whole pages
        self.file = file  # device and inode
        self.private = private
        self.claim = ""  # the maker's directory; "" where none is held
        self.token: Any = None  # a weak reference
        self.since = 0.0  # when it became idle


class Mappings:
    """All of this process. Any thread may call."""

    def __init__(self) -> None:
        self.libc = _Libc()
        self.claims = Claims()
        self.live: set[Mapping] = set()
        self.idle: dict[tuple[tuple[int, int], bool], Mapping] = {}  # oldest first
        self.kept = 0  # bytes of these
        self.keepers: list[Callable[[], None]] = []  # those that call `sweep` every second or so, once they are awake
        self.turnstile: Turnstile[Mapping] = Turnstile(self._end)

    def __len__(self) -> int:
        return len(self.live)

    def map(self, fd: int, maker: str, *, private: bool) -> Any:
        """A segment that was made in the directory ``maker``, as an object with a buffer: writable and copy-on-write if
        ``private``, else not to be written to.

        It is claimed for as long as anything refers to that buffer; what was read of it before may be out of date.
        Raises BlockingIOError while it is being written; OSError; ValueError if it is empty, or one too many.
        """
        about = os.fstat(fd)
        file, size = (about.st_dev, about.st_ino), about.st_size
        try:
            with self.turnstile.lock:
                if len(self.live) >= limits.SHM_MAPPINGS:
                    raise ValueError(f"this process has {len(self.live)} mappings already")
                self.claims.take(maker, file[1])
                try:
                    mapping = self._again(file, size, private) or self._new(fd, size, file, private)
                    mapping.claim = maker
                    root: Any = (_Byte * size).from_address(mapping.address)
                    root.token = token = _TOKEN.replace()
                    mapping.token = weakref.ref(token, lambda _: self.turnstile.ended(mapping))
                    self.live.add(mapping)
                except BaseException:
                    self.claims.give_up(maker, file[1])
                    raise
        finally:
            self.turnstile.settle()
        return root

    def _again(self, file: tuple[int, int], size: int, private: bool) -> Mapping | None:
        mapping = self.idle.pop((file, private), None)
        if mapping is None:
            return None
        self.kept -= mapping.size
        if mapping.size < size or (private and not self._restored(mapping)):
            self._unmap(mapping)
            return None
        return mapping

    def _restored(self, mapping: Mapping) -> bool:
        """Show the file again where somebody has written."""
        first, count = mapping.address // PAGE, mapping.size // PAGE
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
                entries = os.pread(pagemap.fileno(), count * ENTRY, first * ENTRY)
        except OSError:
            return False
        if len(entries) < count * ENTRY:
            return False
        if not entries[ENTRY - 1 :: ENTRY].translate(None, PRISTINE):
            return True
        return not self.libc.madvise(mapping.address, mapping.size, mmap.MADV_DONTNEED)

    def _new(self, fd: int, size: int, file: tuple[int, int], private: bool) -> Mapping:
        size = -(-size // PAGE) * PAGE
        protection = mmap.PROT_READ | mmap.PROT_WRITE if private else mmap.PROT_READ
        kind = mmap.MAP_PRIVATE | NORESERVE if private else mmap.MAP_SHARED
        address = self.libc.mmap(0, size, protection, kind, fd, 0)
        if address == ctypes.c_size_t(-1).value:
            raise self.libc.error()
        return Mapping(address, size, file, private)

    def _unmap(self, mapping: Mapping) -> None:
        self.libc.munmap(mapping.address, mapping.size)

    def _end(self, mapping: Mapping) -> None:
        """Nobody refers to it any more."""
        if sys.is_finalizing():
            return
        self.live.discard(mapping)
        if mapping.claim:
            self.claims.give_up(mapping.claim, mapping.file[1])
            mapping.claim = ""
        key = (mapping.file, mapping.private)
        if not self.keepers or mapping.size > limits.SEGMENTS_KEPT or key in self.idle:
            self._unmap(mapping)
            return
        mapping.since = time.monotonic()
        self.idle[key] = mapping
        self.kept += mapping.size
        while self.kept > 4 * limits.SEGMENTS_KEPT:  # of several makers
            self._let_go(next(iter(self.idle)))

    def _let_go(self, key: tuple[tuple[int, int], bool]) -> None:
        mapping = self.idle.pop(key)
        self.kept -= mapping.size
        self._unmap(mapping)

    # --- what is kept --------------------------------------------------------------------------------

    def join(self, wake: Callable[[], None]) -> None:
        """Somebody will call `sweep` every second or so while anything is mapped, once ``wake()`` was called, until it
        calls `leave` with the same."""
        with self.turnstile.lock:
            self.keepers.append(wake)

    def leave(self, wake: Callable[[], None]) -> None:
        with self.turnstile.lock:
            self.keepers.remove(wake)
            others = self.keepers[:]
        for other in others:
            other()
        if not others:
            self.sweep(float("inf"))

    def sweep(self, now: float) -> None:
        """Let go of what has been idle for long."""
        self.turnstile.settle()
        with self.turnstile.lock:
            for key, mapping in list(self.idle.items()):
                if now - mapping.since >= limits.REGION_IDLE:
                    self._let_go(key)

    # --- forks ---------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        self.turnstile.lock.acquire()
        self.claims.forked()

    def after_fork(self) -> None:
        self.turnstile.lock.release()
        self.turnstile.settle()

    def in_child(self) -> None:
        """What the parent maps is mapped here too, and claimed while one of both lives: the locks are those of open
        descriptions, of which the child never closes its descriptors."""
        self.turnstile.renew()
        self.claims = Claims()
        for mapping in self.live:
            mapping.claim = ""


mappings: Final = Mappings()
os.register_at_fork(before=mappings.before_fork, after_in_parent=mappings.after_fork, after_in_child=mappings.in_child)
