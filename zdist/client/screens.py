"""Where progress is drawn: bars in a terminal, HTML in a notebook, or nowhere."""

from __future__ import annotations

import html
import sys
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["Notebook", "Nowhere", "Row", "Screen", "Terminal", "amount", "in_notebook", "terminal"]

BAR_WIDTH: Final = 30
UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


class Row(NamedTuple):
    """One bar. ``size``: bytes in all, 0 where nobody knows; ``here``: how many of them have come."""

    what: str
    done: int
    all: int
    failed: int
    here: int = 0
    size: int = 0

    @property
    def fraction(self) -> float:
        if self.size:
            return min(1.0, self.here / self.size)
        return self.done / self.all if self.all else 1.0

    @property
    def numbers(self) -> str:
        return f"{self.done:,}/{self.all:,}"

    @property
    def volume(self) -> str:
        return f"{amount(self.here)} of {amount(self.size)}" if self.size else ""

    @property
    def trouble(self) -> str:
        return f"{self.failed:,} failed" if self.failed else ""


def amount(nbytes: int) -> str:
    """Bytes for people, in powers of 1000."""
    size = float(nbytes)
    for unit in UNITS:
        if size < 999.5 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


class Screen(Protocol):
    """Where rows are drawn; the same rows, in the same order, each time. A context manager that tidies up."""

    def __enter__(self) -> object: ...
    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: Any) -> None: ...
    def draw(self, rows: list[Row]) -> None: ...


class Nowhere:
    """Nobody is looking."""

    def __enter__(self) -> None: ...
    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: Any) -> None: ...
    def draw(self, rows: list[Row]) -> None: ...


class Terminal:
    """Bars on standard error, with rich, which is loaded at the first use. In a file only the last state is written."""

    def __init__(self, console: Any, keep: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_WIDTH),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[volume]}"),
            TextColumn("{task.fields[trouble]}", style="red"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=not keep,
            # what others print meanwhile goes above the bars; not if it would end up elsewhere than it was meant to
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._ids: list[Any] = []

    def __enter__(self) -> None:
        self._bars.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def draw(self, rows: list[Row]) -> None:
        """Set all bars and paint them."""
        for i, row in enumerate(rows):
            texts: dict[str, Any] = {"count": row.numbers, "volume": row.volume, "trouble": row.trouble}
            if i == len(self._ids):
                self._ids.append(self._bars.add_task(row.what, total=1.0, **texts))
            self._bars.update(self._ids[i], completed=row.fraction, **texts)
        self._bars.refresh()


class Notebook:
    """HTML in the output of a cell, replaced in place; as text where nobody can show HTML."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._rows: list[Row] = []

    def __enter__(self) -> None: ...
    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: Any) -> None: ...

    def draw(self, rows: list[Row]) -> None:
        """Show the rows for the first time, or put them in the place of the last ones."""
        if self._handle is None:
            from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

            self._handle = display(Picture(rows), display_id=True)  # type: ignore[no-untyped-call,unused-ignore]
        elif rows != self._rows and self._handle is not None:
            self._handle.update(Picture(rows))
        self._rows = rows


class Picture:
    """Rows as IPython displays them."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def _repr_html_(self) -> str:
        lines = []
        for row in self.rows:
            cells = [row.numbers, row.volume, f"<b>{row.trouble}</b>" if row.failed else ""]
            bar = f"<progress max='1' value='{row.fraction:.4f}'></progress>"
            lines.append(
                f"<tr><td style='text-align:left'>{html.escape(row.what)}</td><td>{bar}</td>"
                + "".join(f"<td>{cell}</td>" for cell in cells if cell)
                + "</tr>"
            )
        return f"<table>{''.join(lines)}</table>"

    def __repr__(self) -> str:
        return "\n".join(" ".join(filter(None, (r.what, r.numbers, r.volume, r.trouble))) for r in self.rows)


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def terminal(keep: bool, always: bool) -> Screen:
    """Standard error; nothing is drawn if that is no terminal, unless ``always``."""
    if sys.stderr is None or not (always or sys.stderr.isatty()):
        return Nowhere()
    from rich.console import Console

    return Terminal(Console(stderr=True, force_jupyter=False), keep)
