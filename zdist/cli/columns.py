"""Tables for people, as plain text: nothing is cut, and the last column may be as long as it likes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["columns"]


def columns(rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines in which the rows' fields stand below each other."""
    texts = [[str(field) for field in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in texts]
