"""A node's copy of the state that clients share, for a broker that takes another's place. PURE.

The copy is opaque: cells by kind, name and item, in the order in which they were set. What comes in parts counts when
the last part is there, so a copy is always one that some version of the state was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zdist.limits import MESSAGE_ROWS, MIRROR_BYTES, SHARED_CELL
from zdist.protocol.messages import Mirror, Mirrored

__all__ = ["Cells", "Copy", "Row", "apply", "messages", "weigh", "whole"]

Cells = dict[tuple[str, str], dict[Any, Any]]
Row = tuple[str, str, Any, Any]


def apply(cells: Cells, row: Row) -> None:
    """Set a cell, or take it away."""
    kind, name, item, value = row
    items = cells.setdefault((kind, name), {})
    if value is None:
        items.pop(item, None)
    else:
        items[item] = value
    if not items:
        del cells[kind, name]


def weigh(value: Any) -> int:
    """Bytes that a cell's value takes, roughly."""
    if isinstance(value, bytes | str):
        return len(value)
    return sum(map(weigh, value)) if isinstance(value, tuple) else 8


def _parts(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows in runs that a message may have; one, empty, if there are none."""
    run: list[Row] = []
    room = MIRROR_BYTES
    for row in rows:
        size = SHARED_CELL + weigh(row)
        if run and (size > room or len(run) >= MESSAGE_ROWS):
            yield run
            run, room = [], MIRROR_BYTES
        run.append(row)
        room -= size
    yield run


class Copy:
    """What a node keeps: ``version`` 0 is no copy."""

    def __init__(self) -> None:
        self.epoch = 0
        self.version = 0
        self.cells: Cells = {}
        self._coming: list[Row] = []
        self._anew = False

    def take(self, message: Mirror) -> Mirrored | None:
        """Rows from the broker; what to confirm."""
        if message.first:
            self._coming, self._anew = [], True
        self._coming += message.rows
        if not message.last:
            return None
        if self._anew:
            self.cells = {}
        for row in self._coming:
            apply(self.cells, row)
        self._coming, self._anew = [], False
        self.epoch, self.version = message.epoch, message.version
        return Mirrored(message.version)

    def offer(self) -> list[Mirror]:
        """The whole copy, for a broker that may have none."""
        self._coming, self._anew = [], False
        return whole(self.epoch, self.version, self.cells) if self.version else []


def whole(epoch: int, version: int, cells: Cells) -> list[Mirror]:
    """All cells as messages."""
    rows = [(kind, name, item, value) for (kind, name), items in cells.items() for item, value in items.items()]
    return messages(epoch, version, rows, first=True)


def messages(epoch: int, version: int, rows: list[Row], *, first: bool) -> list[Mirror]:
    """Rows as messages, the last of which completes them."""
    runs = list(_parts(rows))
    return [
        Mirror(epoch, version, first and number == 0, number == len(runs) - 1, tuple(run))
        for number, run in enumerate(runs)
    ]
