"""What came home, by which way and why: the rows behind ``Client.gather_report``. PURE."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

__all__ = ["Carried", "Report"]

ROWS: Final = 1000  # kept


class Carried(NamedTuple):
    """What one path brought from one worker for one reason; ``seconds`` while something was under way there."""

    path: str  # "inline", "local", "shm", "peer" or "relay"
    worker: str  # "" for what came from nobody else
    keys: int
    bytes: int
    seconds: float
    reason: str
    gather: int = 0  # how many gathers had begun when the first of it was home


class Report:
    """The last rows, oldest first. What belongs to one gather and differs in numbers only is one row.

    Gathers of one future that follow each other count as one gather, so a loop of them leaves one row for each way.
    """

    __slots__ = ("_alone", "_rows", "_same", "gather", "totals")

    def __init__(self) -> None:
        self.gather = 0
        self._alone = False
        self._rows: deque[list[Any]] = deque(maxlen=ROWS)
        self._same: dict[tuple[str, str, str], list[Any]] = {}  # rows of this gather by path, worker and reason
        self.totals: dict[str, int] = {}  # bytes by path, since the beginning

    def begin(self, alone: bool) -> None:
        """A gather begins; ``alone``: of one future."""
        if not (alone and self._alone):
            self._alone = alone
            self.gather += 1
            self._same = {}

    def add(self, path: str, worker: str, keys: int, nbytes: int, seconds: float, reason: str) -> None:
        """Something is home. Any thread may call it: in a race a row may be counted short, no more."""
        name = (path, worker, reason)
        row = self._same.get(name)
        if row is None:
            if len(self._same) >= ROWS:
                self._same = {}
            row = self._same[name] = [path, worker, 0, 0, 0.0, reason, self.gather]
            self._rows.append(row)
        self.totals[path] = self.totals.get(path, 0) + nbytes
        row[2] += keys
        row[3] += nbytes
        row[4] += seconds

    def __iter__(self) -> Iterator[Carried]:
        return map(Carried._make, list(self._rows))  # copied in one step: others may be adding
