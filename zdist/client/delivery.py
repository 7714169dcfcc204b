"""What a gather, or a stream of them, has under way: it waits for results, and makes values of what comes in."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

from zdist import serialize
from zdist.client.base import Base, Wait, failure_of
from zdist.core.collect import Collection
from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING, Entry
from zdist.core.store import Entry as Held
from zdist.errors import PeerUnreachable, SerializationError
from zdist.protocol.actors import Seed

__all__ = ["INLINE", "TOGETHER", "Broken", "Delivery", "is_here", "uninterrupted"]

OVER: Final = (ERROR, CANCELLED)
AT_ONCE: Final = 256  # entries looked at under one lock
MANY: Final = 1024  # entries of one gather
CALM: Final = 1.0  # seconds
TOGETHER: Final = 32  # values of a gather that are unpickled together, while more are on their way
INLINE: Final = "came with the completion"


class Broken:
    """In place of a value that could not be unpickled."""

    __slots__ = ("error",)

    def __init__(self, error: SerializationError | PeerUnreachable) -> None:
        self.error = error


class Calm:
    """No garbage collection for a moment, if many records are made: all of them stay to the end, so looking through
    them is in vain. `end` it in any case, once `begin` may have been called."""

    over = 0.0  # when at the latest; 0: it is

    def begin(self, records: int) -> None:
        if records >= MANY and gc.isenabled():
            self.over = time.monotonic() + CALM  # first: Ctrl-C may strike between the two
            gc.disable()

    async def wait(self, signal: Collection, deadline: float | None) -> bool:
        """`Wait`, at whose end the moment may be over."""
        if self.over:
            if await Wait(signal, self.over if deadline is None else min(self.over, deadline)):
                return True
            self.end()
        return bool(await Wait(signal, deadline))

    def end(self) -> None:
        if self.over:
            self.over = 0.0
            gc.enable()


class Delivery:
    """The values of entries, on their way home; each is fetched once.

    For a gather all of them travel in one `Collection`; for a stream each batch that it takes ahead is one. Used by one
    thread or coroutine at a time; `close` it in any case. ``enough``: values worth a look while others are coming.
    """

    def __init__(self, client: Base, direct: bool | None, enough: int = 1) -> None:
        self.client = client
        self.enough = enough
        self.direct = client.direct if direct is None else direct
        self.under: dict[Entry, Collection] = {}  # which collection brings it
        self.open: dict[Collection, list[Entry]] = {}
        self.left: dict[Collection, int] = {}  # of its entries, those not forgotten
        self.values: dict[Entry, Any] = {}  # unpickled when they came in, or Broken
        self.warned: set[str] = set()  # workers that the user has been told of

    def begin(self, entries: Sequence[Entry]) -> Collection:
        """Have these (distinct) entries brought, in a collection of their own. Raises ClusterClosed."""
        client = self.client
        driver = client._usable()
        with uninterrupted(client):
            collection = client._ledger.collect(list(entries), self.direct, driver.now())
            collection.enough = self.enough
            self.open[collection] = list(entries)
            for entry in entries if self.under else ():
                self.forget(entry)
            self.under.update(dict.fromkeys(entries, collection))
            self.left[collection] = len(entries)
        driver.wake()
        return collection

    async def bring(
        self, entries: Sequence[Entry], eager: bool, deadline: float | None
    ) -> tuple[dict[Entry, Any], dict[Entry, BaseException]]:
        """Wait until all of these are settled and here: their values and failures.

        ``eager``: until the first failure in the order given. All before it are here then, so which one it is does not
        depend on who was faster. Raises TimeoutError after the monotonic ``deadline``.
        """
        values: dict[Entry, Any] = {}
        failed: dict[Entry, BaseException] = {}
        at, total, ready = 0, len(entries), True
        calm = Calm()
        try:
            calm.begin(total)
            while True:
                at = self._take(entries, at, values, failed, eager)
                if at == total or (eager and failed):
                    return values, failed
                if not ready:
                    late = f"{self._missing(entries[at:])} of {total} results were not here in the time given"
                    raise TimeoutError(late + self.client.hindrance())
                collection = self.under.get(entries[at])
                if collection is None or self._idle(collection):  # new, or somebody else has given it another start
                    collection = self.begin([entry for entry in entries[at:] if entry not in self.values])
                ready = await calm.wait(collection, deadline)
                self._receive(collection)
        finally:
            calm.end()

    def _take(
        self,
        entries: Sequence[Entry],
        at: int,
        values: dict[Entry, Any],
        failed: dict[Entry, BaseException],
        eager: bool,
    ) -> int:
        """Go through entries in order as far as they are settled and here; how far that is."""
        client = self.client
        inline = nbytes = 0
        total = len(entries)
        while at < total and (entries[at].status != PENDING or entries[at] in self.values):
            batch = entries[at : at + AT_ONCE]
            with client._lock:
                states = [(entry, entry.status, entry.outcome) for entry in batch]
            before = at
            for entry, status, outcome in states:
                if entry in self.values:
                    value = self.values[entry]
                elif status == FINISHED and outcome[3] is not None:
                    value = self._load(entry, outcome[3], outcome[1])
                    inline += 1
                    nbytes += outcome[2]
                elif status in OVER:
                    value = None
                    failed[entry] = failure_of(entry.key, status, outcome)
                elif (gone := self._broken(entry)) is not None:
                    value = Broken(gone)
                else:
                    break
                at += 1
                if type(value) is Broken:
                    failed[entry] = value.error
                elif entry not in failed:
                    values[entry] = value
                if eager and failed:
                    break
            if at < before + len(batch) or (eager and failed):
                break
        if inline:
            client._ledger.fetcher.report.add("inline", "", inline, nbytes, 0.0, INLINE)
        return at

    def _broken(self, entry: Entry) -> SerializationError | PeerUnreachable | None:
        collection = self.under.get(entry)
        if collection is None or entry.key not in collection.broken:
            return None
        code, text = collection.broken[entry.key]
        if code != "closed":
            return SerializationError(text)
        members = self.client._ledger.members
        outcome = entry.outcome
        holders = outcome[4] if entry.status == FINISHED and outcome is not None else ()
        names = ", ".join(members[holder][1] if holder in members else holder for holder in holders)
        fetcher = self.client._ledger.fetcher
        only = "direct=True and fallback='error'" if self.direct and not fetcher.fallback else ""
        only = only or f"gather_paths={list(fetcher.paths)}"
        return PeerUnreachable(
            f"{entry.key} lies on {names or 'no worker any more'}, and with {only} there is no way to it: {text}"
        )

    def _missing(self, entries: Sequence[Entry]) -> int:
        return sum(entry not in self.values and not is_here(entry) for entry in entries)

    def _idle(self, collection: Collection) -> bool:
        with self.client._lock:
            return collection.left <= 0 and not collection.arrived

    def _receive(self, collection: Collection) -> None:
        """Take what has come in; it is unpickled here, outside of the lock."""
        with self.client._lock:
            arrived, collection.arrived = collection.arrived, []
            collection.seen = collection.failed + collection.came
            warned, collection.warnings = collection.warnings, []
        for worker, reason in warned:
            if worker not in self.warned:
                self.warned.add(worker)
                warnings.warn(f"direct=True, but {worker} went by the relay: {reason}", stacklevel=outside())
        wanted = [(entry, data) for entry, data in arrived if self.under.get(entry) is collection]
        if self.client._worker is not None:
            for entry, data in wanted:
                self.values[entry] = self._load(entry, data)
            return
        try:
            values, errors = serialize.loads_each([(entry.key, data) for entry, data in wanted], owner=self.client)
        except BaseException:  # Ctrl-C: who goes on finds them where they were
            with self.client._lock:
                collection.arrived[:0] = arrived
            raise
        for place, error in errors.items():
            values[place] = Broken(error)
        if Seed in map(type, values):
            values = [self.client.handle(value) if type(value) is Seed else value for value in values]
        self.values.update(zip([entry for entry, _ in wanted], values, strict=True))

    def _load(self, entry: Entry, data: Any, attempt: int | None = None) -> Any:
        """A value from its bytes, or in a task the worker's own object; one that cannot be unpickled fails alone."""
        worker = self.client._worker
        try:
            if worker is not None:
                held = data if attempt is None else worker.held(entry.key, attempt)
                if type(held) is Held:
                    return self._handed(worker.value_of(held))
            return self._handed(serialize.loads(data, what=entry.key, owner=self.client))
        except SerializationError as exc:
            return Broken(exc)

    def _handed(self, value: Any) -> Any:
        return self.client.handle(value) if type(value) is Seed else value

    def load(self, entry: Entry) -> Any:
        """The value that has come along with the news that the task is finished, or Broken."""
        outcome = entry.outcome
        self.client._ledger.fetcher.report.add("inline", "", 1, outcome[2], 0.0, INLINE)
        return self._load(entry, outcome[3], outcome[1])

    # --- letting go --------------------------------------------------------------------------------

    def forget(self, entry: Entry) -> None:
        """This one has been handed out; a collection is closed with its last."""
        self.values.pop(entry, None)
        collection = self.under.pop(entry, None)
        if collection is not None:
            self.left[collection] -= 1
            if not self.left[collection]:
                self._close(collection)

    def close(self) -> None:
        """Want nothing any more: what is under way for nobody else ends, and frees its credits."""
        if self.open:
            with uninterrupted(self.client):
                for collection in list(self.open):
                    self._close(collection)
                self.under.clear()
        self.values.clear()

    def _close(self, collection: Collection) -> None:
        client = self.client
        with uninterrupted(client):
            entries = self.open.pop(collection, ())
            self.left.pop(collection, None)
            driver = client._driver
            unfinished = collection.left > 0
            client._ledger.collections.close(collection, list(entries), time.monotonic())
        if unfinished and driver is not None:
            driver.wake()


def is_here(entry: Entry) -> bool:
    """Has the value come along with the news that the task is finished?"""
    outcome = entry.outcome
    return entry.status == FINISHED and outcome is not None and outcome[3] is not None


def outside() -> int:
    """``stacklevel`` of the caller's warning that names the first line outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("zdist."):
        frame, level = frame.f_back, level + 1
    return level


class uninterrupted:
    """Context manager: the client's lock is held, and Ctrl-C strikes at the end of the block instead of within it.

    A ledger that is left in the middle of a change would never be right again.
    """

    __slots__ = ("handler", "lock", "noted")

    def __init__(self, client: Base) -> None:
        self.lock = client._lock
        self.handler: Any = None
        self.noted: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self.handler = handler
                signal.signal(signal.SIGINT, self._note)
        self.lock.acquire()

    def _note(self, number: int, frame: Any) -> None:
        self.noted = (number, frame)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.lock.release()
        if self.handler is not None:
            signal.signal(signal.SIGINT, self.handler)
            if self.noted is not None:
                self.handler(*self.noted)
