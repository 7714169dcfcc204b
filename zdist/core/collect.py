"""What callers of the client wait for: signals, and the collection of values that a gather makes. PURE."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zdist.core.entry import FINISHED, PENDING, Entry
from zdist.core.fetch import Fetcher
from zdist.core.links import SHM
from zdist.core.store import Store
from zdist.protocol.messages import Key

__all__ = ["Collection", "Collections", "Signal"]

HERE: Final = "this process holds it"
NEAR: Final = "the worker of this task holds it"


class Signal:
    """Ready when as many things have happened as it was made for; then ``notify``, if set, is called once."""

    __slots__ = ("left", "notify")

    def __init__(self, left: int = 1) -> None:
        self.left = left
        self.notify: Callable[[], None] | None = None

    def ready(self) -> bool:
        return self.left <= 0

    def resolved(self, entry: Any, /) -> None:
        """One more has happened."""
        self.left -= 1
        if self.notify is not None and self.ready():
            self.notify()


class Collection(Signal):
    """The entries of one gather: those that are not finished are awaited, large values are fetched as they finish.

    Ready whenever the caller has something to look at: values in ``arrived`` to take, an entry that failed (of a
    stream: or has its value), or the end.
    """

    __slots__ = (
        "arrived", "begin", "broken", "came", "direct", "enough", "failed", "fetching", "nbytes", "rows", "seen",
        "ticket", "warnings",
    )  # fmt: skip

    def __init__(self, ticket: int, direct: bool | None, begin: Callable[[Collection, Entry], None]) -> None:
        super().__init__(0)
        self.ticket = ticket
        self.direct = direct
        self.begin = begin
        self.fetching: dict[Key, Entry] = {}
        self.rows: list[tuple[Key, int, int, tuple[str, ...]]] = []  # to be handed to the fetcher together
        self.arrived: list[tuple[Entry, Any]] = []  # pieces, or what `Collections.nearby` gave
        self.broken: dict[Key, tuple[str, str]] = {}  # key: code, text; bytes that cannot be had
        self.enough = 1  # so many values are worth a look while others are on their way
        self.nbytes = 0  # of all that has arrived
        self.failed = 0  # entries that ended without a value
        self.came = 0  # values that came along, where the caller waits for one at a time
        self.seen = 0  # of all these, how many the caller has looked at
        self.warnings: list[tuple[str, str]] = []  # worker and reason: went by relay although direct=True

    def ready(self) -> bool:
        if self.left <= 0 or self.failed + self.came > self.seen:
            return True
        return bool(self.arrived) and (len(self.arrived) >= self.enough or not self.fetching)

    def resolved(self, entry: Entry, /) -> None:
        """An awaited entry is settled: nothing more to do if its value came along, else fetch it."""
        self.left -= 1
        if entry.status != FINISHED or entry.outcome[3] is None or self.enough == 1:
            self.begin(self, entry)
        if self.notify is not None and self.ready():
            self.notify()

    def progress(self) -> None:
        """Something came in or was given up."""
        if self.notify is not None and self.ready():
            self.notify()


class Collections:
    """The collections under way and the fetcher that they share."""

    def __init__(self, fetcher: Fetcher, store: Store, missing: Callable[[Entry, tuple[str, ...]], None]) -> None:
        self.fetcher = fetcher
        self.store = store
        self.missing = missing
        self.tickets = 0
        self.open: dict[int, Collection] = {}
        self.waiting: dict[int, Collection] = {}  # those with rows that the fetcher has not got yet
        self.abandoned: deque[Collection] = deque()  # by callers that are gone; may be appended to from anywhere
        self.nearby: Callable[[Key, int], Any] | None = None  # what the worker that we run in holds: key, attempt

    def add(self, entries: list[Entry], direct: bool | None, now: float) -> Collection:
        """Start collecting; `close` it in any case."""
        self.tickets += 1
        collection = self.open[self.tickets] = Collection(self.tickets, direct, self._begin)
        held, fetching, rows, usual = self.store.entries, collection.fetching, collection.rows, 0
        for entry in entries:
            if entry.status == FINISHED:
                key, attempt, nbytes, value, holders, _ = entry.outcome
                if value is not None:
                    continue
                if key not in held and self.nearby is None:  # as in `_begin`, for the usual case
                    fetching[key] = entry
                    rows.append((key, attempt, nbytes, holders))
                    usual += 1
                    continue
            self._begin(collection, entry)
        collection.left += usual
        if rows:
            self.waiting[collection.ticket] = collection
        if self.waiting:
            self.flush(now)
        return collection

    def _begin(self, collection: Collection, entry: Entry) -> None:
        status = entry.status
        if status == PENDING:
            collection.left += 1
            if entry.waiters is None:
                entry.waiters = [collection]
            else:
                entry.waiters.append(collection)
        elif status == FINISHED:
            key, attempt, nbytes, value, holders, _ = entry.outcome
            if value is None:
                held = self.store.get(key)
                if self.nearby is not None and (near := self.nearby(key, attempt)) is not None:
                    collection.arrived.append((entry, near))
                    self.fetcher.report.add("local", "", 1, near.nbytes, 0.0, NEAR)
                elif held is not None and held.blob is not None:
                    collection.arrived.append((entry, held.blob.pieces))
                    self.fetcher.report.add("local", "", 1, held.blob.nbytes, 0.0, HERE)
                else:
                    collection.left += 1
                    collection.fetching[key] = entry
                    collection.rows.append((key, attempt, nbytes, holders))
                    self.waiting[collection.ticket] = collection
            elif collection.enough == 1:
                collection.came += 1
        else:
            collection.failed += 1

    def flush(self, now: float) -> None:
        """Hand what is to be fetched to the fetcher, all rows of a collection together."""
        waiting, self.waiting = self.waiting, {}
        for ticket, collection in waiting.items():
            rows, collection.rows = collection.rows, []
            if ticket in self.open and rows:
                self.fetcher.fetch(ticket, rows, direct=collection.direct, now=now)
        self.drain()

    def drain(self) -> None:
        """Take over what the fetcher has brought in or given up."""
        fetcher = self.fetcher
        if fetcher.warnings:
            for number, worker, reason in fetcher.warnings:
                if number in self.open:
                    self.open[number].warnings.append((worker, reason))
            fetcher.warnings.clear()
        if fetcher.arrived:
            arrived, fetcher.arrived[:] = list(fetcher.arrived), []
            ready: dict[Collection, None] = {}
            for tickets, key, _, data, nbytes, path in arrived:
                pieces = data.pieces if path == SHM else data
                if len(tickets) > 1:  # each makes a value of its own of these bytes, and values may be written to
                    pieces = [memoryview(piece).toreadonly() for piece in pieces]
                for ticket in tickets:
                    collection = self.open.get(ticket)
                    entry = None if collection is None else collection.fetching.pop(key, None)
                    if collection is not None and entry is not None:
                        collection.left -= 1
                        collection.nbytes += nbytes
                        collection.arrived.append((entry, pieces))
                        ready[collection] = None
            for collection in ready:
                collection.progress()
        if fetcher.failed:
            failed, fetcher.failed[:] = list(fetcher.failed), []
            for tickets, key, code, text, holders in failed:
                for ticket in tickets:
                    collection = self.open.get(ticket)
                    if collection is not None:
                        self._failed(collection, key, code, text, holders)

    def _failed(self, collection: Collection, key: Key, code: str, text: str, holders: tuple[str, ...]) -> None:
        entry = collection.fetching.pop(key, None)
        if entry is None:
            return
        collection.left -= 1
        if code == "missing":
            if entry.status == FINISHED and set(entry.outcome[4]) <= set(holders):
                self.missing(entry, holders)
            self._begin(collection, entry)
        elif code == "unreachable":
            if entry.status == FINISHED:
                self.missing(entry, holders)
            self._begin(collection, entry)
        else:
            collection.broken[key] = (code, text)
            collection.failed += 1
        collection.progress()

    def unsettled(self, entry: Entry, now: float) -> None:
        """The entry is no longer finished: whoever fetches it waits for it (or meets its end) like everybody else."""
        key = entry.key
        if not self.fetcher.wants(key) and not self.waiting:
            return
        for collection in self.open.values():
            if collection.fetching.get(key) is entry:
                del collection.fetching[key]
                collection.rows = [row for row in collection.rows if row[0] != key]
                self.fetcher.drop(collection.ticket, (key,), now)
                collection.left -= 1
                self._begin(collection, entry)
                collection.progress()

    def close(self, collection: Collection, entries: list[Entry], now: float) -> None:
        """The caller has what it wanted, or wants it no more: nothing is left behind."""
        if self.open.pop(collection.ticket, None) is None:
            return
        if collection.fetching:
            self.fetcher.abandon(collection.ticket, now)
            collection.fetching.clear()
        if collection.left > 0:
            for entry in entries:
                if entry.waiters is not None and collection in entry.waiters:
                    entry.waiters.remove(collection)
        collection.notify = None

    def close_abandoned(self, now: float) -> None:
        """Close what callers have left behind."""
        while self.abandoned:
            self.close(self.abandoned.popleft(), [], now)
