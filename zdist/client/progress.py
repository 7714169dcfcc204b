"""How far futures are, and how far a gather is: bars in a terminal, HTML in a notebook.

A screen is drawn at most ten times a second from counters that the futures' entries keep, so a look costs the same for
ten futures and for a million. Semantics of ``progress``: dask.distributed 2021.10.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from zdist.client.base import Base, Wait
from zdist.client.containers import futures_in
from zdist.client.future import Future
from zdist.client.screens import Notebook, Row, Screen, in_notebook, terminal
from zdist.core.collect import Collection, Signal
from zdist.core.entry import FINISHED, PENDING, Entry
from zdist.core.naming import group_of

__all__ = ["progress", "shown"]

T = TypeVar("T")

REFRESH: Final = 0.1  # seconds between looks: no more often than the eye can follow
BARS: Final = 20  # functions that have a bar of their own
OTHERS: Final = "others"
AT_ONCE: Final = 10_000  # futures looked at under one lock
PARTIAL: Final = 1000  # of no more keys than these is looked at how much of each is here


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
        self.left -= 1
        if entry.status != FINISHED:
            self.failed += 1
        if self.notify is not None and self.left <= 0:
            self.notify()


class Tally:
    """How far each group of futures is; without ``multi`` all are one group. Keeps the futures alive."""

    def __init__(self, futures: list[Future], multi: bool) -> None:
        self.futures = futures
        self.counts: list[Count] = []
        groups: dict[str, None] = {}
        clients = {id(future.client): future.client for future in futures}
        for client in clients.values():
            mine = futures if len(clients) == 1 else [future for future in futures if future.client is client]
            known: dict[str, Count] = {}
            for start in range(0, len(mine), AT_ONCE):
                with client._lock:
                    for future in mine[start : start + AT_ONCE]:
                        group = group_of(future.key) if multi else "tasks"
                        if group not in known:
                            group = self._enroll(group, client, groups, known)
                        known[group].add(future._entry)

    def _enroll(self, group: str, client: Base, groups: dict[str, None], known: dict[str, Count]) -> str:
        """Have a count for a group that this client's futures are met in for the first time; the group it is in."""
        if group not in groups:
            group = group if len(groups) < BARS else OTHERS
            groups[group] = None
        if group not in known:
            known[group] = Count(group, client)
            self.counts.append(known[group])
        return group

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
    wanted = futures_in(list(futures))
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
            while (pending := tally.pending()) is not None:
                screen.draw(tally.rows())
                await Wait(pending, time.monotonic() + REFRESH)
            screen.draw(tally.rows())
    finally:
        tally.forget()


def _draw_behind(tally: Tally) -> None:
    """In a notebook the cell is done at once; a thread keeps its output up to date."""
    screen = Notebook()
    over = tally.pending() is None  # asked before it is drawn, so that the end is
    screen.draw(tally.rows())
    if over:
        return

    def follow() -> None:
        over = False
        while not over:
            time.sleep(REFRESH)
            over = tally.pending() is None
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
        with self.client._lock:
            sizes = [future._entry.outcome[2] for future in self.futures if future.status == FINISHED]
        failed = max(self.failed, len(self.futures) - len(sizes))
        size = self.size or sum(sizes)  # it may have been over before the first look
        return Row("gather", self.keys, self.keys, failed, size, size)
