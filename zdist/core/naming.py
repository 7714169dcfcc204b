"""What a key tells of its task, and how people write amounts of resources. PURE."""

from __future__ import annotations

__all__ = ["group_of", "resource_text"]


def group_of(key: str) -> str:
    """The function's part of a key such as "name-<hash>"; the key itself if it has no such part."""
    head, dash, tail = key.rpartition("-")
    return head if dash and len(tail) >= 8 else key


def resource_text(name: str, amount: float) -> str:
    """NAME=AMOUNT, exactly, and whole numbers without a point."""
    return f"{name}={float(amount)!r}".removesuffix(".0")
