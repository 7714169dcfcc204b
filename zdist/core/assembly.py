"""Putting together the ranges of a blob that comes in several. PURE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeAlias

__all__ = ["Assembly", "Bytes", "Memory", "NoMemory", "Ranges"]

Bytes: TypeAlias = bytes | bytearray | memoryview


class Assembly(Protocol):
    """One blob on its way, whose ranges come in whatever order, each byte once."""

    def write(self, offset: int, pieces: Iterable[Bytes]) -> None:
        """Take in the bytes from ``offset`` on."""
        ...

    def pieces(self) -> list[Bytes]:
        """The whole blob as consecutive buffers, once it is there."""
        ...


class Ranges:
    """An assembly that leaves everything in the buffers that it came in."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: dict[int, list[Bytes]] = {}

    def write(self, offset: int, pieces: Iterable[Bytes]) -> None:
        self.parts[offset] = list(pieces)

    def pieces(self) -> list[Bytes]:
        return [piece for start in sorted(self.parts) for piece in self.parts[start]]


class Memory(Protocol):
    """Where a fetcher's assemblies come from (zdist.serialize.BlobMemory has this shape)."""

    @property
    def due(self) -> float:
        """When `sweep` is next needed."""
        ...

    def assembly(self, total: int) -> Assembly:
        """For a blob of ``total`` bytes."""
        ...

    def sweep(self, now: float) -> None:
        """Let go of memory that has not been needed for a while."""
        ...


class NoMemory:
    """Has none of its own."""

    due = float("inf")

    def assembly(self, total: int) -> Assembly:
        return Ranges()

    def sweep(self, now: float) -> None:
        pass
