"""gather: bring the values of futures home. The parts of the client that wait for and unpickle results."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from zdist import serialize
from zdist.client.base import Base, Wait, failure_of
from zdist.client.containers import Skeleton, flatten, rebuild
from zdist.client.delivery import INLINE, TOGETHER, Delivery
from zdist.client.future import Future, raisable
from zdist.client.report import GatherReport
from zdist.client.waiting import seconds
from zdist.core.entry import FINISHED, PENDING, Entry
from zdist.errors import SerializationError

__all__ = ["Gathering", "put_together"]

ERRORS: Final = ("raise", "skip", "return")
_STREAMS: Final = (Iterator, AsyncIterator, queue.Queue, queue.SimpleQueue, asyncio.Queue)


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
                lazy iterator (``close`` frees what is under way; so does a ``with`` block), a queue.Queue, or on an
                asynchronous client an asyncio.Queue, as a bounded queue of the same kind that fills in order.
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
            TypeError: a subclass that cannot be made anew of its members, or a queue that cannot be bounded.
            RuntimeError: it would block the event loop that an asynchronous client runs on.
            KilledWorker, SerializationError, or what a task raised (see `Future.result`).
        """
        if errors not in ERRORS:
            raise ValueError(f"errors={errors!r}: gather knows 'raise', 'skip' and 'return'")
        if progress:
            return self._gather_shown(futures, errors, direct, asynchronous, seconds(timeout), progress)
        if type(futures) is Future and futures.client is self:
            return self._sync(self._one(futures, seconds(timeout), errors, direct), asynchronous)
        later = self.asynchronous if asynchronous is None else asynchronous
        if isinstance(futures, _STREAMS):
            return self._stream(futures, errors, direct, later, seconds(timeout))
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

    def _stream(self, items: Any, errors: str, direct: bool | None, later: bool, timeout: float | None) -> Any:
        from zdist.client import pumps, streams

        if isinstance(items, asyncio.Queue | queue.Queue):
            if timeout is not None:
                raise ValueError("a queue is gathered for as long as the client is open: give timeout= to its get()")
            if isinstance(items, queue.Queue):
                return pumps.gather_queue(self, items, errors, direct)
            if not later:
                raise TypeError("an asyncio.Queue can be gathered by an asynchronous client only; use queue.Queue")
            return pumps.gather_async_queue(self, items, errors, direct)
        if isinstance(items, queue.SimpleQueue):
            raise TypeError("a queue.SimpleQueue cannot be bounded, so it cannot be gathered; use queue.Queue")
        if later:
            return streams.gather_async_iterator(self, items, errors, direct, timeout)
        if not isinstance(items, Iterator):
            raise TypeError("an asynchronous iterator can be gathered with asynchronous=True only")
        return streams.gather_iterator(self, items, errors, direct, timeout)

    async def _gather(self, futures: Any, errors: str, direct: bool | None, timeout: float | None) -> Any:
        found, skeleton = flatten(futures)
        if not found:
            return rebuild(skeleton, ())
        self._ledger.fetcher.report.begin(len(found) == 1)
        found = self._joined(found)
        values, failed = await self._bring(found, errors == "raise", direct, timeout)
        return put_together(found, skeleton, values, failed, errors)

    async def _bring(
        self, futures: Sequence[Future], eager: bool, direct: bool | None, timeout: float | None
    ) -> tuple[dict[Entry, Any], dict[Entry, BaseException]]:
        """The values and failures of these futures, as of `Delivery.bring`."""
        entries = list(dict.fromkeys([future._entry for future in futures]))
        delivery = Delivery(self, direct, TOGETHER)
        try:
            return await delivery.bring(entries, eager, _deadline(timeout))
        finally:
            delivery.close()

    def outcomes(self, futures: Sequence[Future], asynchronous: bool) -> Any:
        """Two lists, of the values (None for a failure) and of the failures (None for a value) of futures of this
        client. Unlike ``gather(errors="return")`` it tells a failure from a value that is an exception."""
        return self._sync(self._outcomes(futures), asynchronous)

    async def _outcomes(self, futures: Sequence[Future]) -> tuple[list[Any], list[BaseException | None]]:
        self._ledger.fetcher.report.begin(len(futures) == 1)
        values, failed = await self._bring(futures, False, None, None)
        entries = [future._entry for future in futures]
        return list(map(values.get, entries)), list(map(failed.get, entries))

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
        if entry.status == FINISHED and outcome is not None and outcome[3] is not None and self._worker is None:
            self._ledger.fetcher.report.add("inline", "", 1, outcome[2], 0.0, INLINE)
            try:
                return serialize.loads(outcome[3], what=entry.key, owner=self)
            except SerializationError as exc:
                error: BaseException = exc
        else:
            delivery = Delivery(self, direct)
            try:
                values, failed = await delivery.bring((entry,), True, deadline)
            finally:
                delivery.close()
            if not failed:
                return values[entry]
            error = failed[entry]
        if errors == "raise":
            raise raisable(error, entry.key)
        return error if errors == "return" else None

    def _exception(self, future: Future, timeout: float | str | None = None) -> Any:
        return self._sync(self._error(future, seconds(timeout)))

    def _traceback(self, future: Future, timeout: float | str | None = None) -> Any:
        return self._sync(self._trace(future, seconds(timeout)))

    async def _error(self, future: Future, timeout: float | None) -> BaseException | None:
        entry = future._entry
        while True:
            await self._settled((entry,), _deadline(timeout))
            with self._lock:
                key, status, outcome = entry.key, entry.status, entry.outcome
            if status != PENDING:
                return None if status == FINISHED else failure_of(key, status, outcome)

    async def _trace(self, future: Future, timeout: float | None) -> TracebackType | None:
        error = await self._error(future, timeout)
        return None if error is None else error.__traceback__

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
                    late = f"{signal.left} of {len(entries)} futures are not done in the time given"
                    raise TimeoutError(late + self.hindrance())
            finally:
                self._unwait(signal, entries)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def put_together(
    found: Sequence[Future],
    skeleton: Skeleton,
    values: Mapping[Entry, Any],
    failed: Mapping[Entry, BaseException],
    errors: str,
) -> Any:
    """What gather returns. Raises the first failure in the order given if ``errors`` says so."""
    if not failed:
        return rebuild(skeleton, [values[future._entry] for future in found])
    if errors == "raise":
        entry = next(future._entry for future in found if future._entry in failed)
        raise raisable(failed[entry], entry.key)
    if errors == "return":
        values = {**values, **failed}
        return rebuild(skeleton, [values[future._entry] for future in found])
    skipped = {place for place, future in enumerate(found) if future._entry in failed}
    return rebuild(skeleton, [values.get(future._entry) for future in found], skipped)
