"""gather: bring the values of futures home. The parts of the client that wait for and unpickle results."""

from __future__ import annotations

import asyncio
import queue
import time
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final

from zdist import serialize
from zdist.client.base import Base, Wait, failure_of
from zdist.client.containers import flatten, rebuild
from zdist.client.future import Future
from zdist.client.report import GatherReport
from zdist.client.waiting import seconds
from zdist.core.collect import Collection
from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING, Entry
from zdist.errors import PeerUnreachable, SerializationError

__all__ = ["Gathering"]

ERRORS: Final = ("raise", "skip", "return")
_INLINE: Final = "came with the completion"
_STREAMS: Final = (Iterator, AsyncIterator, queue.Queue, asyncio.Queue)


class Gathering(Base):
    """The part of the client that brings results home."""

    def gather(
        self,
        futures: Any,
        errors: str = "raise",
        direct: bool | None = None,
        asynchronous: bool | None = None,
        *,
        timeout: float | str | None = None,
        progress: bool | str = False,
    ) -> Any:
        """Bring values home, each batch of keys by the best way. As in dask.distributed 2021.10.

        Parameters:
            futures: a future; or list, tuple, set, frozenset, dict (its values), namedtuple and subclasses of these,
                nested to any depth: the same comes back with values in place of futures. An iterator comes back as a
                lazy iterator, a queue as a queue that fills.
            errors: "raise" raises the error of the first future, in the order given, that failed or was cancelled;
                "skip" leaves such futures out; "return" puts the exception in their place.
            direct: True to fetch from the workers' own sockets, False through the broker, None (or the client's
                ``direct_to_workers``) to choose for each batch.
            asynchronous: True for an awaitable, False to block, None as the client is.
            timeout: seconds until TimeoutError; the futures are left alone.
            progress: True to show how far it is, by bytes where sizes are known: on standard error if that is a
                terminal, or in a notebook; "always" also if it is neither. Not for iterators and queues.

        Raises:
            ValueError: another word for ``errors`` or ``progress``, or a future of another cluster.
            CancelledError: a future was cancelled; the text says why.
            PeerUnreachable: ``direct=True``, no path open, and the client was made with ``fallback="error"``.
            KilledWorker, SerializationError, or what a task raised.
        """
        if errors not in ERRORS:
            raise ValueError(f"errors={errors!r}: gather knows 'raise', 'skip' and 'return'")
        if progress:
            return self._gather_shown(futures, errors, direct, asynchronous, seconds(timeout), progress)
        if type(futures) is Future and futures.client is self:
            return self._sync(self._one(futures, seconds(timeout), errors, direct), asynchronous)
        later = self.asynchronous if asynchronous is None else asynchronous
        if isinstance(futures, _STREAMS):
            return self._stream(futures, errors, direct, later)
        return self._sync(self._gather(futures, errors, direct, seconds(timeout)), later)

    def _gather_shown(
        self,
        futures: Any,
        errors: str,
        direct: bool | None,
        asynchronous: bool | None,
        timeout: float | None,
        how: bool | str,
    ) -> Any:
        from zdist.client.progress import shown

        if how not in (True, "always"):
            raise ValueError(f"progress={how!r}: gather knows True, False and 'always'")
        if isinstance(futures, _STREAMS):
            raise ValueError(f"progress= is for a gather that waits; a {type(futures).__name__} comes back at once")
        work = self._gather(futures, errors, direct, timeout)
        return self._sync(shown(self, work, flatten(futures)[0], always=how == "always"), asynchronous)

    def _stream(self, items: Any, errors: str, direct: bool | None, later: bool) -> Any:
        from zdist.client import streams

        if isinstance(items, asyncio.Queue):
            if not later:
                raise TypeError("an asyncio.Queue can be gathered by an asynchronous client only; use queue.Queue")
            return streams.gather_async_queue(self, items, errors, direct)
        if isinstance(items, queue.Queue):
            return streams.gather_queue(self, items, errors, direct)
        if later:
            return streams.gather_async_iterator(self, items, errors, direct)
        return streams.gather_iterator(self, items, errors, direct)

    async def _gather(self, futures: Any, errors: str, direct: bool | None, timeout: float | None) -> Any:
        found, skeleton = flatten(futures)
        if not found:
            return rebuild(skeleton, {})
        self._ledger.fetcher.report.begin(len(found) == 1)
        found = [future if future.client is self else self._import(future) for future in found]
        entries = list(dict.fromkeys([future._entry for future in found]))
        values, failed = await self._collect(entries, errors == "raise", direct, timeout)
        if failed:
            if errors == "raise":
                for entry in entries:
                    if entry.key in failed:
                        raise failed[entry.key]
            if errors == "return":
                values |= failed
                failed = {}
        return rebuild(skeleton, values, failed)

    async def _collect(
        self, entries: list[Entry], eager: bool, direct: bool | None, timeout: float | None
    ) -> tuple[dict[str, Any], dict[str, BaseException]]:
        """Values and failures by key. ``eager``: end at the first failure once all entries before it are settled."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            fetched: dict[str, Any] = {}
            broken: dict[str, tuple[str, str]] = {}
            if not all(map(_is_here, entries)):
                broken = await self._bring(entries, fetched, eager, direct, deadline)
            values, failed = self._evaluate(entries, fetched, broken)
            if len(values) + len(failed) == len(entries) or (eager and failed):
                return values, failed
            # one was given a new start by another thread just now

    async def _bring(
        self,
        entries: list[Entry],
        fetched: dict[str, Any],
        eager: bool,
        direct: bool | None,
        deadline: float | None,
    ) -> dict[str, tuple[str, str]]:
        """Wait for these entries and fetch their large values; returns what could not be had: key, code and text."""
        ledger = self._ledger
        if all(entry.status in (ERROR, CANCELLED) for entry in entries):
            return {}
        driver = self._usable()
        wanted = entries
        with self._lock:
            if self._ahead:
                here = self._take_ahead(entries)
                wanted = [entry for entry in entries if entry.key not in here]
                for key, pieces in here.items():
                    fetched[key] = self._load(key, pieces)
            collection = ledger.collect(wanted, self.direct if direct is None else direct, driver.now())
        try:
            await self._fetch(collection, wanted, fetched, eager, deadline)
        finally:
            with self._lock:
                unfinished = collection.left > 0
                ledger.collections.close(collection, wanted, driver.now())
                if self._ahead:
                    for key in [entry.key for entry in entries if entry.key in self._ahead]:
                        self._forget_ahead(key)
            if unfinished:
                driver.wake()
        return collection.broken

    async def _fetch(
        self,
        collection: Collection,
        entries: list[Entry],
        values: dict[str, Any],
        eager: bool,
        deadline: float | None,
    ) -> None:
        """Wait until all is here; large values are unpickled as they come, outside of the lock."""
        while True:
            ready = await Wait(collection, deadline)
            with self._lock:
                arrived, collection.arrived = collection.arrived, []
                left, failed = collection.left, collection.failed
                collection.seen = failed
                warned, collection.warnings = collection.warnings, []
            for worker, reason in warned:
                warnings.warn(f"direct=True, but {worker} went by the relay: {reason}", stacklevel=2)
            for key, pieces in arrived:
                values[key] = self._load(key, pieces)
            del arrived
            if left <= 0 or (eager and failed and _first_has_failed(entries, collection)):
                return
            if not ready:
                raise TimeoutError(f"{left} of {len(entries)} results were not here in the time given to gather")

    def _evaluate(
        self, entries: list[Entry], fetched: dict[str, Any], broken: dict[str, tuple[str, str]]
    ) -> tuple[dict[str, Any], dict[str, BaseException]]:
        values: dict[str, Any] = {}
        failed: dict[str, BaseException] = {}
        loads = serialize.loads
        inline = nbytes = 0
        for entry in entries:
            key = entry.key
            outcome = entry.outcome
            if entry.status == FINISHED and outcome[3] is not None:
                inline += 1
                nbytes += outcome[2]
                try:
                    values[key] = loads(outcome[3], owner=self)
                except SerializationError as exc:
                    failed[key] = exc
            elif key in fetched:
                value = fetched[key]
                if type(value) is _Broken:
                    failed[key] = value.error
                else:
                    values[key] = value
            elif key in broken:
                code, text = broken[key]
                failed[key] = PeerUnreachable(text) if code == "closed" else SerializationError(text)
            elif entry.status in (PENDING, FINISHED):
                continue  # an earlier one has failed, and nobody waits for this one any more
            else:
                failed[key] = failure_of(entry)
        if inline:
            self._ledger.fetcher.report.add("inline", "", inline, nbytes, 0.0, _INLINE)
        return values, failed

    def _load(self, key: str, pieces: list[Any]) -> Any:
        """A value from its bytes; one that cannot be unpickled fails alone."""
        try:
            return serialize.loads(pieces, what=f"result of {key}", owner=self)
        except SerializationError as exc:
            return _Broken(exc)

    def prefetch(self, futures: Iterable[Future], direct: bool | None = None) -> None:
        """Begin to bring these values here, so that a later gather finds them; see ``gather`` of iterators."""
        driver = self._driver
        if driver is None:
            return  # closing; the gather that follows says so
        with self._lock:
            for key in [key for key, (entry, _) in self._ahead.items() if not entry.refs]:
                self._forget_ahead(key)
            entries = [f._entry for f in futures if f.client is self and f.key not in self._ahead]
            entries = [e for e in dict.fromkeys(entries) if e.status != FINISHED or e.outcome[3] is None]
            if not entries:
                return
            direct = self.direct if direct is None else direct
            for entry in entries:
                self._ahead[entry.key] = (entry, self._ledger.collect([entry], direct, driver.now()))
        driver.wake()

    def _take_ahead(self, entries: list[Entry]) -> dict[str, list[Any]]:
        """What prefetch has brought of these; what it is still bringing is shared with the gather that asks."""
        here: dict[str, list[Any]] = {}
        for entry in entries:
            if entry.key in self._ahead:
                collection = self._ahead[entry.key][1]
                for key, pieces in collection.arrived:
                    if entry.status == FINISHED:
                        here[key] = pieces
        return here

    def _forget_ahead(self, key: str) -> None:
        entry, collection = self._ahead.pop(key)
        assert self._driver is not None
        self._ledger.collections.close(collection, [entry], self._driver.now())

    def gather_report(self) -> GatherReport:
        """What the last gathers brought home: per batch the path, worker, keys, bytes, seconds, and why that path.

        Prints as a table. Batches of the path "inline" came with the completion of their tasks.
        """
        report = self._ledger.fetcher.report
        return GatherReport(report, report.gather)

    # --- one future ----------------------------------------------------------------------------------

    def _result(self, future: Future, timeout: float | str | None = None) -> Any:
        return self._sync(self._one(future, seconds(timeout)))

    def _result_async(self, future: Future) -> Any:
        return self._later(self._one(future, None))

    async def _one(
        self, future: Future, timeout: float | None, errors: str = "raise", direct: bool | None = None
    ) -> Any:
        """The value of one future: what gather does, without what only many need."""
        entry = future._entry  # the future itself is kept too: nobody else may hold it
        self._ledger.fetcher.report.begin(True)
        deadline = None if timeout is None else time.monotonic() + timeout
        if entry.status == PENDING:
            await self._settled((entry,), deadline)
        outcome = entry.outcome
        if entry.status == FINISHED and outcome is not None and outcome[3] is not None:
            self._ledger.fetcher.report.add("inline", "", 1, outcome[2], 0.0, _INLINE)
            try:
                return serialize.loads(outcome[3], owner=self)
            except SerializationError as exc:
                error: BaseException = exc
        else:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            values, failed = await self._collect([entry], True, direct, left)
            if not failed:
                return values[entry.key]
            error = failed[entry.key]
        if errors == "raise":
            raise error
        return error if errors == "return" else None

    def _exception(self, future: Future, timeout: float | str | None = None) -> Any:
        return self._sync(self._error(future, seconds(timeout)))

    def _traceback(self, future: Future, timeout: float | str | None = None) -> Any:
        return self._sync(self._trace(future, seconds(timeout)))

    async def _error(self, future: Future, timeout: float | None) -> BaseException | None:
        entry = future._entry
        await self._settled((entry,), None if timeout is None else time.monotonic() + timeout)
        return None if entry.status == FINISHED else failure_of(entry)

    async def _trace(self, future: Future, timeout: float | None) -> TracebackType | None:
        entry = future._entry
        await self._settled((entry,), None if timeout is None else time.monotonic() + timeout)
        return failure_of(entry).__traceback__ if entry.status == ERROR else None

    async def _settled(self, entries: Sequence[Entry], deadline: float | None) -> None:
        """Wait until all of these are done. Raises TimeoutError."""
        while True:
            with self._lock:
                signal = self._await_entries(entries)
            if not signal.left:
                return
            try:
                self._usable()
                if not await Wait(signal, deadline):
                    raise TimeoutError(f"{signal.left} of {len(entries)} futures are not done in the time given")
            finally:
                self._unwait(signal, entries)


def _is_here(entry: Entry) -> bool:
    return entry.status == FINISHED and entry.outcome[3] is not None


class _Broken:
    """In place of a value that could not be unpickled."""

    __slots__ = ("error",)

    def __init__(self, error: SerializationError) -> None:
        self.error = error


def _first_has_failed(entries: list[Entry], collection: Collection) -> bool:
    """Whether all entries before the first that failed are settled."""
    for entry in entries:
        if entry.status == PENDING:
            return False
        if entry.status != FINISHED or entry.key in collection.broken:
            return True
    return False
