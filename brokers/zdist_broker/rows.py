"""How rows that are to be told are divided into messages. PURE."""

from __future__ import annotations

from typing import Any

from zdist.limits import FAILED_BYTES, MESSAGE_ROWS
from zdist.protocol.messages import payload_size

__all__ = ["failures", "parts"]


def parts(rows: list[Any], most: int) -> list[list[Any]]:
    """Rows in runs that one message may have."""
    return [rows] if len(rows) <= most else [rows[i : i + most] for i in range(0, len(rows), most)]


def failures(rows: list[Any]) -> list[list[Any]]:
    """The same for rows of Failed and its like, whose errors are as large as users make them."""
    runs: list[list[Any]] = []
    room = 0
    for row in rows:
        size = sum(
            payload_size(field) if not isinstance(field, str) else len(field)
            for field in row[1:]
            if field is not True and field is not False
        )
        if size > room or len(runs[-1]) >= MESSAGE_ROWS:
            runs.append([])
            room = FAILED_BYTES
        runs[-1].append(row)
        room -= size
    return runs
