"""A blob that arrives in ranges is put together as they come, each large frame in memory of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from zdist.errors import SerializationError
from zdist.serialize.blob import Piece, opening, size
from zdist.serialize.regions import HUGE, regions

__all__ = ["Assembly", "BlobMemory"]


class Assembly:
    """``total`` bytes to come. Where each frame lies is told by the envelope, which the first range begins with; what
    comes before that, or belongs to something that is no blob, stays in the pieces that it came in."""

    __slots__ = ("frames", "parts", "starts", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.parts: dict[int, list[Piece]] = {}  # what has not found its place
        self.starts: list[int] = []  # of envelope and frames
        self.frames: list[memoryview] = []

    def write(self, offset: int, pieces: Iterable[Piece]) -> None:
        """Take in the bytes from ``offset`` on."""
        if self.frames:
            self._place(offset, pieces)
            return
        self.parts[offset] = list(pieces)
        if not offset and self._lay_out():
            parts, self.parts = self.parts, {}
            for start, some in parts.items():
                self._place(start, some)

    def _lay_out(self) -> bool:
        views = [memoryview(piece).cast("B") for piece in self.parts[0] if size(piece)]
        try:
            _, lengths, head = opening(views)
            if head + sum(lengths) != self.total:
                return False  # unpickling will say what is wrong with it
            frames = [memoryview(bytearray(head)), *map(_memory, lengths)]
        except (SerializationError, MemoryError, OSError, OverflowError):
            return False
        at = 0
        for frame in frames:
            if len(frame):
                self.starts.append(at)
                self.frames.append(frame)
                at += len(frame)
        return True

    def _place(self, offset: int, pieces: Iterable[Piece]) -> None:
        index = bisect_right(self.starts, offset) - 1
        at = offset - self.starts[index]
        for piece in pieces:
            view = memoryview(piece).cast("B") if size(piece) else memoryview(b"")
            while len(view):
                frame = self.frames[index]
                room = len(frame) - at
                some = view if len(view) <= room else view[:room]
                frame[at : at + len(some)] = some
                at += len(some)
                view = view[len(some) :]
                if at == len(frame):
                    index, at = index + 1, 0

    def pieces(self) -> list[Any]:
        """The whole blob as consecutive buffers, once all of it has been written."""
        return self.frames or [piece for start in sorted(self.parts) for piece in self.parts[start]]


class BlobMemory:
    """Assemblies for a fetcher, with large frames in this process's regions."""

    @property
    def due(self) -> float:
        """When `sweep` is next needed."""
        return regions.due

    def assembly(self, total: int) -> Assembly:
        """For a blob of ``total`` bytes."""
        return Assembly(total)

    def sweep(self, now: float) -> None:
        """Let go of regions that have been idle for a while."""
        regions.sweep(now)


def _memory(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes) if nbytes < HUGE else regions.take(nbytes))
