"""What the C library does with memory that is free."""

from __future__ import annotations

from typing import Final

from zdist.limits import KIB, MIB

__all__ = ["keep_freed_memory"]

RECURRING: Final = 32 * MIB - 64 * KIB  # the largest block that the GNU library learns from


def keep_freed_memory() -> None:
    """Let freed memory be used again instead of going back to the kernel: what data is received into would be fresh,
    and slow to fill, each time.

    The GNU library takes it from each large block that is freed that blocks up to its size come and go, and keeps up
    to twice as much; it is told so by one that is never touched. Any program that frees an array of 32 MiB does the
    same.
    """
    bytes(RECURRING)  # calloc, which does not touch it
