"""What the C library does with the memory that large frames are received into."""

from __future__ import annotations

import threading
from typing import Any, Final

from zdist.limits import HEAPS_KEPT, MIB

__all__ = ["Heaps", "heaps"]

RECURRING: Final = 32 * MIB  # bytes of the largest blocks that the GNU library may keep
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # what its mallopt calls that, and how much of it
HEAP: Final = 64 * MIB  # what a thread's memory consists of, there
HEAPS: Final = 64  # in which a frame is held


class Heaps:
    """Lets freed memory be used again instead of going back to the kernel: what large frames are received into would be
    fresh each time, and filling that page by page takes longer than the copy.

    Two things are known of the GNU library; where they are not so, nothing is gained or lost. It asks the kernel for
    each block that is larger than any that was freed before, and gives it back: so it is told to keep them, as it would
    after a while. And it gives back a heap when all of it is free: so one frame in each is held for a moment.
    """

    def __init__(self) -> None:
        self.due = float("inf")  # when `sweep` is next needed
        self.held: dict[int, tuple[float, Any]] = {}  # by heap: when a frame last came there, and that frame
        self.users = 0
        self.ctypes: Any = None
        self.lock = threading.Lock()

    def note(self, frame: Any, now: float) -> None:
        """A large frame has come."""
        with self.lock:
            if self.ctypes is None:
                import ctypes  # takes milliseconds, which only large values need

                self.ctypes = ctypes
                mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
                if mallopt is not None:
                    mallopt(MMAP_THRESHOLD, RECURRING)
                    mallopt(TRIM_THRESHOLD, 2 * RECURRING)
            buffer = frame.buffer
            if buffer.readonly:  # of a binding that shows no address
                return
            heap = self.ctypes.addressof(self.ctypes.c_char.from_buffer(buffer)) // HEAP
            if heap in self.held or len(self.held) < HEAPS:
                self.held[heap] = (now, frame)
                self.due = min(self.due, now + HEAPS_KEPT)

    def sweep(self, now: float) -> None:
        """At ``due``: let go of the heaps where nothing came of late, so that no more is kept than was in use then."""
        if now >= self.due:
            with self.lock:
                held = self.held
                self.held = {heap: row for heap, row in held.items() if row[0] + HEAPS_KEPT > now}
                self.due = min((row[0] for row in self.held.values()), default=float("inf")) + HEAPS_KEPT
            held.clear()

    def join(self) -> None:
        """Somebody will call `sweep` in time, until it calls `leave`."""
        with self.lock:
            self.users += 1

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
        if not self.users:
            self.sweep(float("inf"))


heaps: Final = Heaps()  # of this process
