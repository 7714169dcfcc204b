"""What the C library does with the memory that large frames are received into."""

from __future__ import annotations

import threading
from typing import Any, Final

from zdist.limits import HEAPS_KEPT, KIB, MIB

__all__ = ["Heaps", "heaps"]

RECURRING: Final = 32 * MIB - 64 * KIB  # the largest block that the GNU library learns from
HEAP: Final = 64 * MIB  # what a thread's memory consists of, there
HEAPS: Final = 64  # in which a frame is held


class Heaps:
    """Lets freed memory be used again instead of going back to the kernel: what large frames are received into would be
    fresh each time, and filling that page by page takes longer than the copy.

    Two things are known of the GNU library; where they are not so, nothing is gained or lost. It takes it from each
    large block that is freed that blocks up to its size come and go, so it is shown one that is never touched. And it
    gives back a heap when all of it is free: so one frame in each is held for a moment.
    """

    def __init__(self) -> None:
        self.due = float("inf")  # when `sweep` is next needed
        self.held: dict[int, Any] = {}  # by heap
        self.users = 0
        self.ctypes: Any = None
        self.lock = threading.Lock()

    def note(self, frame: Any, now: float) -> None:
        """A large frame has come."""
        with self.lock:
            if self.ctypes is None:
                import ctypes  # takes milliseconds, which only large values need

                bytes(RECURRING)  # calloc, which does not touch it
                self.ctypes = ctypes
            buffer = frame.buffer
            if buffer.readonly:  # of a binding that shows no address
                return
            heap = self.ctypes.addressof(self.ctypes.c_char.from_buffer(buffer)) // HEAP
            if heap not in self.held and len(self.held) < HEAPS:
                self.held[heap] = frame
                self.due = min(self.due, now + HEAPS_KEPT)

    def sweep(self, now: float) -> None:
        """At ``due``: let go, so that no more is kept than was in use at once a moment ago."""
        if now >= self.due:
            with self.lock:
                held, self.held, self.due = self.held, {}, float("inf")
            held.clear()

    def join(self) -> None:
        """Somebody will call `sweep` in time, until it calls `leave`."""
        with self.lock:
            self.users += 1

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
        if not self.users:
            self.sweep(self.due)


heaps: Final = Heaps()  # of this process
