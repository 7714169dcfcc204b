"""What a key tells of its task. PURE."""

from __future__ import annotations

__all__ = ["group_of"]


def group_of(key: str) -> str:
    """The function's part of a key such as "name-<hash>"; the key itself if it has no such part."""
    head, dash, tail = key.rpartition("-")
    return head if dash and len(tail) >= 8 else key
