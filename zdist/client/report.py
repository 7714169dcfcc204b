"""What gather did: a list of batches that prints as a table."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from zdist.core.carried import Carried

__all__ = ["GatherReport"]

HEADS: Final = ("gather", "path", "worker", "keys", "bytes", "seconds", "MB/s", "why")
NUMBERS: Final = ("gather", "keys", "bytes", "seconds", "MB/s")  # set to the right
NOTHING: Final = "nothing was gathered yet"


class GatherReport(list[Carried]):
    """Batches, oldest first; each has ``path``, ``worker``, ``keys``, ``bytes``, ``seconds``, ``reason``, ``gather``.

    A batch is what one path brought from one worker for one reason within a gather; ``gather`` is that gather's number
    (of gathers at the same time, the one that began last), and those of one future in a row count as one. ``seconds``
    is the time in which something was under way there; it is 0 for what cost no way at all.
    """

    def __init__(self, batches: Iterable[Carried] = (), number: int = 0) -> None:
        super().__init__(batches)
        self.number = number  # of the last gather

    @property
    def last(self) -> GatherReport:
        """The batches of the last gather alone."""
        return GatherReport((batch for batch in self if batch.gather == self.number), self.number)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for path, worker, keys, nbytes, seconds, reason, gather in self:
            time = f"{seconds:.4f}" if seconds else ""
            rate = f"{nbytes / seconds / 1e6:,.0f}" if seconds else ""
            rows.append((str(gather), path, worker, f"{keys:,}", f"{nbytes:,}", time, rate, reason))
        return rows

    def __str__(self) -> str:
        if not self:
            return NOTHING
        rows = [HEADS, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if head in NUMBERS else cell.ljust(width)
                for head, cell, width in zip(HEADS, row, widths, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self:
            return f"<i>{NOTHING}</i>"
        head = "".join(f"<th>{escape(cell)}</th>" for cell in HEADS)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
