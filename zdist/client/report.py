"""What gather did: a list of batches that prints as a table."""

from __future__ import annotations

from html import escape

from zdist.core.requests import Carried

__all__ = ["GatherReport"]

HEADS = ("path", "worker", "keys", "bytes", "seconds", "MB/s", "why")


class GatherReport(list[Carried]):
    """Batches, oldest first; each has ``path``, ``worker``, ``keys``, ``bytes``, ``seconds`` and ``reason``."""

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                batch.path,
                batch.worker,
                f"{batch.keys:,}",
                f"{batch[3]:,}",
                f"{batch.seconds:.4f}" if batch.seconds else "",
                f"{batch[3] / batch.seconds / 1e6:,.0f}" if batch.seconds else "",
                batch.reason,
            )
            for batch in self
        ]

    def __str__(self) -> str:
        rows = [HEADS, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if 2 <= i <= 5 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in HEADS)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
