"""What the C library does with the memory that large frames are received into."""

from __future__ import annotations

from typing import Any, Final

from zdist.limits import HEAPS_KEPT, KIB, MIB

__all__ = ["Heaps"]

RECURRING: Final = 32 * MIB - 64 * KIB  # the largest block that the GNU library learns from
HEAP: Final = 64 * MIB  # what a thread's memory consists of, there
HEAPS: Final = 64  # told apart


class Heaps:
    """Lets freed memory be used again instead of going back to the kernel: what large frames are received into would be
    fresh each time, and filling that page by page takes longer than the copy.

    Two things are known of the GNU library; where they are not so, nothing is gained or lost. It takes it from each
    large block that is freed that blocks up to its size come and go, so it is shown one that is never touched. And it
    gives back the newest of a thread's heaps when that is empty, then the next: so a frame in the newest is held for a
    moment, which keeps those below.
    """

    def __init__(self) -> None:
        self.due = float("inf")  # when `sweep` is next needed
        self.known: set[int] = set()
        self.held: Any = None
        self.ctypes: Any = None

    def note(self, frame: Any, now: float) -> None:
        """A large frame has come."""
        if self.ctypes is None:
            import ctypes  # takes milliseconds, which only large values need

            bytes(RECURRING)  # calloc, which does not touch it
            self.ctypes = ctypes
        heap = self.ctypes.addressof(self.ctypes.c_char.from_buffer(frame.buffer)) // HEAP
        if heap not in self.known and len(self.known) < HEAPS:
            self.known.add(heap)
            self.held = frame
            self.due = min(self.due, now + HEAPS_KEPT)

    def sweep(self, now: float) -> None:
        """At ``due``: let go, so that no more is kept than was in use at once a moment ago."""
        if now >= self.due:
            self.known.clear()
            self.held = None
            self.due = float("inf")
