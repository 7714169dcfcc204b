"""Memory for large values: in huge pages where the kernel has them, and used again when nobody refers to it any more.

Filling fresh memory page by page costs several times what the copy itself does; on virtual machines whose free memory
goes back to the host it costs a hundred times that.
"""

from __future__ import annotations

import mmap
import sys
import threading
from typing import Final

from zdist.limits import REGION_IDLE, REGIONS_KEPT

__all__ = ["HUGE", "Regions", "regions"]

HUGE: Final = 2 << 20  # bytes of a huge page


class _Region:
    """One mapping; ``users`` tells how many buffers still refer to it."""

    __slots__ = ("idle", "map", "size", "start")

    def __init__(self, size: int) -> None:
        import ctypes  # takes milliseconds, which only large values need

        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a forked child has a copy of its own
        self.map = mmap.mmap(-1, size + HUGE, flags=private)
        anchor = ctypes.c_char.from_buffer(self.map)
        self.start = -ctypes.addressof(anchor) % HUGE
        del anchor
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.map.madvise(mmap.MADV_HUGEPAGE)
        self.size = size
        self.idle = 0.0  # when it was first seen to be free

    def free(self) -> bool:
        """Whether no buffer refers to it: the mapping is known to this object and to the call only."""
        return sys.getrefcount(self.map) <= 2

    def view(self, nbytes: int) -> memoryview:
        return memoryview(self.map)[self.start : self.start + nbytes]


class Regions:
    """Buffers of huge pages; up to ``keep`` bytes of them, each of at most half as many, are used again, and let go
    when they are idle for long."""

    def __init__(self, keep: int = REGIONS_KEPT) -> None:
        self.keep = keep
        self.known: list[_Region] = []
        self.kept = 0
        self.due = float("inf")  # when `sweep` is next needed
        self.lock = threading.Lock()

    def take(self, nbytes: int) -> memoryview | bytearray:
        """A writable buffer of at least one huge page whose content is undefined. Raises OSError or MemoryError."""
        size = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with self.lock:
            best = None
            for region in self.known:
                fits = size <= region.size <= size + size // 4 and (best is None or region.size < best.size)
                if fits and region.free():
                    best = region
                    if region.size == size:
                        break
            if best is None:
                best = _Region(size)
                if size <= self.keep // 2:
                    self._keep(best)
            best.idle = 0.0
            return best.view(nbytes)

    def _keep(self, region: _Region) -> None:
        for known in self.known[:]:
            if self.kept + region.size <= self.keep:
                break
            if known.free():  # of another size than what is wanted now
                self._drop(known)
        if self.kept + region.size <= self.keep:
            self.known.append(region)
            self.kept += region.size
            self.due = min(self.due, 0.0)

    def _drop(self, region: _Region) -> None:
        self.known.remove(region)
        self.kept -= region.size

    def sweep(self, now: float) -> None:
        """Let go of what has been free for ``REGION_IDLE`` seconds; to be called at ``due``, or more often."""
        if now < self.due:
            return
        with self.lock:
            for region in self.known[:]:
                if not region.free():
                    region.idle = 0.0
                elif not region.idle:
                    region.idle = now
                elif now - region.idle >= REGION_IDLE:
                    self._drop(region)
            self.due = now + REGION_IDLE / 2 if self.known else float("inf")


regions: Final = Regions()  # of this process
