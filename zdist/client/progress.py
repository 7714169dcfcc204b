"""How far futures are, and how far a gather is: bars in a terminal, HTML in a notebook.

A screen is drawn at most ten times a second from counters that the futures' entries keep, so a look costs the same for
ten futures and for a million. Semantics of ``progress``: dask.distributed 2021.10.
"""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from zdist.client.base import Wait
from zdist.client.containers import flatten
from zdist.client.future import Future
from zdist.core.collect import Collection, Signal
from zdist.core.entry import FINISHED, PENDING, Entry

if TYPE_CHECKING:
    from zdist.client.base import Base

__all__ = ["progress", "shown"]

T = TypeVar("T")

REFRESH: Final = 0.1  # seconds between looks: no more often than the eye can follow
BARS: Final = 20  # functions that have a bar of their own
OTHERS: Final = "others"
PARTIAL: Final = 1000  # of no more keys than these is looked at how much of each is here
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


# --- screens ------------------------------------------------------------------------------------------


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

            self._handle = display(Picture(rows), display_id=True)
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


# --- progress of futures --------------------------------------------------------------------------------


class Count(Signal):
    """How many futures of a group are yet to be done; waits at their entries."""

    __slots__ = ("all", "client", "failed", "group")

    def __init__(self, group: str, client: Base) -> None:
        super().__init__(0)
        self.group = group
        self.client = client
        self.all = 0
        self.failed = 0

    def add(self, entry: Entry) -> None:
        """Count this one too; call with the client's lock held."""
        self.all += 1
        if entry.status != PENDING:
            self.failed += entry.status != FINISHED
            return
        self.left += 1
        if entry.waiters is None:
            entry.waiters = [self]
        else:
            entry.waiters.append(self)

    def resolved(self, entry: Entry, /) -> None:
        """One is done."""
        self.failed += entry.status != FINISHED
        super().resolved(entry)


class Tally:
    """How far each group of futures is; without ``multi`` all are one group. Keeps the futures alive."""

    def __init__(self, futures: list[Future], multi: bool) -> None:
        self.futures = futures
        self.counts: list[Count] = []
        groups: dict[str, None] = {}
        known: dict[tuple[str, int], Count] = {}
        clients = {id(future.client): future.client for future in futures}
        for client in clients.values():
            with client._lock:
                for future in futures:
                    if future.client is not client:
                        continue
                    group = group_of(future.key) if multi else "tasks"
                    if group not in groups:
                        group = group if len(groups) < BARS else OTHERS
                        groups[group] = None
                    count = known.get((group, id(client)))
                    if count is None:
                        count = known[group, id(client)] = Count(group, client)
                        self.counts.append(count)
                    count.add(future._entry)

    def pending(self) -> Count | None:
        """A group with futures that are not done; None if there is none."""
        return next((count for count in self.counts if count.left > 0), None)

    def rows(self) -> list[Row]:
        """One for each group, in the order of their first futures."""
        sums: dict[str, list[int]] = {}
        for count in self.counts:
            row = sums.setdefault(count.group, [0, 0, 0])
            row[0] += count.all - count.left
            row[1] += count.all
            row[2] += count.failed
        return [Row(group, *row) for group, row in sums.items()]

    def forget(self) -> None:
        """Nobody looks any more: leave no trace at futures that are not done."""
        if self.pending() is None:
            return
        mine = {id(count) for count in self.counts}
        for future in self.futures:
            entry = future._entry
            with future.client._lock:
                if entry.waiters is not None:
                    entry.waiters = [waiter for waiter in entry.waiters if id(waiter) not in mine]


def group_of(key: str) -> str:
    """The function's part of a key such as "name-<hash>"; the key itself if it has no such part."""
    head, dash, tail = key.rpartition("-")
    return head if dash and len(tail) >= 8 else key


def progress(
    *futures: Any, notebook: bool | None = None, multi: bool = True, complete: bool = True, **kwargs: Any
) -> Any:
    """Show how far futures are.

    In a terminal it draws a bar for each function on standard error, and returns when all are done; failed ones count
    as done and are shown. Ctrl-C ends the bars, not the tasks. In a notebook it shows HTML that goes on updating by
    itself, and returns at once. Where standard error is no terminal it waits in silence.

    Parameters:
        futures: futures or containers of them.
        notebook: True for a notebook; False for a terminal, also if standard error is none (a file gets the last
            state); None to find out.
        multi: a bar for each function (of the first 20) instead of one for all.
        complete: keep the bars on the screen at the end.
        kwargs: accepted for the sake of programs written for dask.distributed; not used.

    Returns:
        None; for futures of an asynchronous client outside a notebook an awaitable of None.
    """
    wanted = flatten(list(futures))[0]
    tally = Tally(wanted, multi)
    if in_notebook() if notebook is None else notebook:
        _draw_behind(tally)
        return None
    if not wanted:
        return None
    screen = terminal(complete, always=notebook is False)
    pending = tally.pending()
    client = wanted[0].client if pending is None else pending.client
    return client._sync(_draw(tally, screen))


async def _draw(tally: Tally, screen: Screen) -> None:
    try:
        with screen:
            screen.draw(tally.rows())
            while (pending := tally.pending()) is not None:
                await Wait(pending, time.monotonic() + REFRESH)
                screen.draw(tally.rows())
    finally:
        tally.forget()


def _draw_behind(tally: Tally) -> None:
    """In a notebook the cell is done at once; a thread keeps its output up to date."""
    screen = Notebook()
    screen.draw(tally.rows())
    if tally.pending() is None:
        return

    def follow() -> None:
        while tally.pending() is not None:
            time.sleep(REFRESH)
            screen.draw(tally.rows())

    threading.Thread(target=follow, name="zdist-progress", daemon=True).start()


# --- progress of a gather -------------------------------------------------------------------------------


async def shown(client: Base, work: Coroutine[Wait, bool, T], futures: list[Future], always: bool) -> T:
    """Do the work of a gather, and show how far it is.

    Parameters:
        client: whose gather it is.
        work: the coroutine, not started yet.
        futures: whose values it brings, each once.
        always: draw also where standard error is no terminal.
    """
    screen = Notebook() if in_notebook() else terminal(keep=True, always=always)
    meter = Meter(client, futures)
    try:
        with screen:
            screen.draw([meter.row()])
            due = time.monotonic() + REFRESH
            try:
                signal, deadline = work.send(None)  # type: ignore[arg-type]
                while True:
                    ready = await Wait(signal, due if deadline is None or due < deadline else deadline)
                    now = time.monotonic()
                    if now >= due:
                        screen.draw([meter.row(signal)])
                        due = now + REFRESH
                    if ready or (deadline is not None and now >= deadline):
                        signal, deadline = work.send(ready)
            except StopIteration as end:
                screen.draw([meter.end()])
                return end.value  # type: ignore[no-any-return]
    finally:
        work.close()


class Meter:
    """How much of a gather is here: by bytes once all sizes are known, until then by keys."""

    def __init__(self, client: Base, futures: list[Future]) -> None:
        self.client = client
        self.futures = futures
        self.keys = len(futures)
        self.size = 0  # bytes in all, 0: not known
        self.failed = 0

    def row(self, signal: Signal | None = None) -> Row:
        """The state while the gather waits for ``signal``; None: before it began."""
        if signal is None:
            return Row("gather", 0, self.keys, 0)
        here = 0
        if isinstance(signal, Collection):
            with self.client._lock:
                here = self._bytes(signal)
                self.failed = signal.failed
        return Row("gather", self.keys - max(0, signal.left), self.keys, self.failed, here, self.size)

    def _bytes(self, collection: Collection) -> int:
        """Bytes that are here; finds out how many there are when the last of the keys has been computed."""
        if collection.left > len(collection.fetching):
            self.size = 0
        elif not self.size:
            self.size = collection.nbytes + sum(entry.outcome[2] for entry in collection.fetching.values())
        here = collection.nbytes
        ticket = self.client._ledger.fetcher.tickets.get(collection.ticket)
        if ticket is not None and len(ticket.keys) <= PARTIAL:
            here += sum(transfer.got for transfer in ticket.keys.values())
        return here

    def end(self) -> Row:
        """The state when all is here that can be had."""
        failed = max(self.failed, sum(future.status != FINISHED for future in self.futures))
        return Row("gather", self.keys, self.keys, failed, self.size, self.size)
