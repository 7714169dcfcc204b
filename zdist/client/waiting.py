"""Waiting for futures: ``wait`` and ``as_completed``. Semantics: dask.distributed 2021.10."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, Final, NamedTuple

from zdist.client.arrivals import Arrivals
from zdist.client.containers import futures_in
from zdist.client.future import Future, raisable
from zdist.errors import CancelledError
from zdist.limits import RESULTS_AHEAD

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "DoneAndNotDoneFutures",
    "as_completed",
    "seconds",
    "wait",
]

ALL_COMPLETED: Final = "ALL_COMPLETED"
FIRST_COMPLETED: Final = "FIRST_COMPLETED"

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class DoneAndNotDoneFutures(NamedTuple):
    """What ``wait`` returns, as in dask.distributed: failed and cancelled futures are done."""

    done: set[Future]
    not_done: set[Future]


def seconds(span: float | str | timedelta | None) -> float | None:
    """A ``timeout`` in seconds, from a number, a timedelta, or a text such as "500ms", "10s", "2 min"; None for none.

    Raises:
        ValueError: it is none of these.
    """
    if span is None or isinstance(span, int | float):
        return span
    if isinstance(span, timedelta):
        return span.total_seconds()
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]*)\s*", span) if isinstance(span, str) else None
    if match is None or match[2] not in _UNITS:
        raise ValueError(
            f"timeout={span!r:.80} is no time span; give seconds or a text such as '500ms', '1.5s', '2 min' (units: "
            "us, ms, s, m or min, h, d)"
        )
    return float(match[1]) * _UNITS[match[2]]


def _deadline(timeout: float | str | timedelta | None) -> float | None:
    span = seconds(timeout)
    return None if span is None else time.monotonic() + span


def wait(fs: Any, timeout: float | str | timedelta | None = None, return_when: str = ALL_COMPLETED) -> Any:
    """Wait until all futures are done, or the first of them. As in dask.distributed 2021.10.

    Parameters:
        fs: a future, or a container of futures and of dask collections that were persisted.
        timeout: seconds (or a text such as "10s") after which to give up.
        return_when: "ALL_COMPLETED" or "FIRST_COMPLETED".

    Returns:
        DoneAndNotDoneFutures, named sets ``done`` and ``not_done``; failed futures count as done. If the futures belong
        to an asynchronous client, an awaitable of that.

    Raises:
        TimeoutError: not done in time; the futures are left alone.
        CancelledError: one of those that are done was cancelled.
        NotImplementedError: another ``return_when``.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise NotImplementedError(
            f"return_when={return_when!r} is not supported, only {ALL_COMPLETED!r} and {FIRST_COMPLETED!r}"
        )
    futures = futures_in(fs)
    deadline = _deadline(timeout)
    if futures and futures[0].client.asynchronous:
        return _wait_async(futures, deadline, return_when)
    if return_when == ALL_COMPLETED:
        _block_for_all(futures, deadline)
    else:
        arrivals, until = _watched(futures, return_when)
        try:
            arrivals.wait(until, deadline)
        finally:
            arrivals.unwatch(futures)
    return _verdict(futures, return_when)


def _block_for_all(futures: list[Future], deadline: float | None) -> None:
    """Look at each future once, in turn: nothing has to be told for each of a million that finish."""
    at = 0
    while at < len(futures):
        client = futures[at].client

        def until(client: Any = client) -> bool:
            nonlocal at
            while at < len(futures) and futures[at].client is client:
                if not futures[at].done():
                    return False
                at += 1
            return True

        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not until() and not client.block(until, left):
            return


def _watched(futures: list[Future], return_when: str) -> tuple[Arrivals, Callable[[], bool]]:
    """Arrivals of these, to be unwatched, and whether enough of them are there."""
    arrivals = Arrivals()
    pending = [future for future in futures if not future.done()]
    first = return_when == FIRST_COMPLETED
    if not first or len(pending) == len(futures):
        arrivals.watch(pending)
    return arrivals, lambda: not arrivals.pending or (first and bool(arrivals.ready))


async def _wait_async(futures: list[Future], deadline: float | None, return_when: str) -> DoneAndNotDoneFutures:
    arrivals, until = _watched(futures, return_when)
    try:
        await arrivals.wait_async(until, deadline)
    finally:
        arrivals.unwatch(futures)
    return _verdict(futures, return_when)


def _verdict(futures: list[Future], return_when: str) -> DoneAndNotDoneFutures:
    done = {future for future in futures if future.done()}
    not_done = set(futures) - done
    if futures and (not done or (not_done and return_when == ALL_COMPLETED)):
        late = f"{len(not_done)} of {len(futures)} futures are not done in the time given"
        raise TimeoutError(late + futures[0].client.hindrance())
    cancelled = [future.key for future in futures if future.cancelled()]
    if cancelled:
        more = f" and {len(cancelled) - 5} more" if len(cancelled) > 5 else ""
        raise CancelledError(f"cancelled while waited for: {', '.join(cancelled[:5])}{more}")
    return DoneAndNotDoneFutures(done, not_done)


class _Item(NamedTuple):
    """A future that has arrived, and if results are wanted its value or failure."""

    future: Future
    value: Any = None
    error: BaseException | None = None


class as_completed:
    """Iterate over futures in the order in which they finish; also with ``async for``. As in dask.distributed 2021.10.

    Failed and cancelled futures are among them. More can be added while iterating; the iteration ends when all that
    were added have been returned.

    Parameters:
        futures: futures to begin with.
        loop: accepted for the sake of programs written for dask.distributed; not used.
        with_results: return tuples (future, result) instead of futures. For a cancelled future the result is the
            CancelledError.
        raise_errors: with results, raise in its turn what `Future.result` would; otherwise the result is the tuple
            (type, exception, traceback).
        timeout: seconds from now (or a text such as "10s") after which the next future, if none is ready, is a
            TimeoutError.

    Raises:
        TypeError: one of ``futures`` is none.
    """

    def __init__(
        self,
        futures: Iterable[Future] | None = None,
        loop: Any = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: float | str | timedelta | None = None,
    ) -> None:
        self.with_results = with_results
        self.raise_errors = raise_errors
        self._deadline = _deadline(timeout)
        self._arrivals = Arrivals()
        self._fetched: deque[_Item] = deque()
        if futures is not None:
            self.update(futures)

    # --- filling ------------------------------------------------------------------------------------

    def add(self, future: Future) -> None:
        """Add one future; it is returned once it is done. Given twice, it is returned twice."""
        self.update((future,))

    def update(self, futures: Iterable[Future]) -> None:
        """Add futures.

        Raises:
            TypeError: one of them is no future; none is added then.
        """
        fresh = list(futures)
        for future in fresh:
            if not isinstance(future, Future):
                raise TypeError(f"as_completed takes futures, got {type(future).__name__}: {future!r:.100}")
        self._arrivals.watch(fresh)

    def clear(self) -> None:
        """Forget all futures that have not been returned."""
        old, self._arrivals = self._arrivals, Arrivals()
        self._fetched.clear()
        old.poke()

    # --- looking ------------------------------------------------------------------------------------

    def count(self) -> int:
        """Number of futures that are yet to be returned, finished or not."""
        arrivals = self._arrivals
        return arrivals.pending + len(arrivals.ready) + len(self._fetched)

    def is_empty(self) -> bool:
        """Whether all futures have been returned."""
        return not self.count()

    def has_ready(self) -> bool:
        """Whether a future is done and not yet returned."""
        return bool(self._fetched or self._arrivals.ready)

    def __repr__(self) -> str:
        arrivals = self._arrivals
        done = len(arrivals.ready) + len(self._fetched)
        return f"<as_completed: waiting={arrivals.pending} done={done}>"

    # --- taking -------------------------------------------------------------------------------------

    def _settled(self) -> bool:
        return self.has_ready() or not self._arrivals.pending

    def _late(self) -> TimeoutError:
        late = f"{self.count()} futures are not done in the time given to as_completed"
        return TimeoutError(late + "".join(client.hindrance() for client in self._arrivals._clients))

    def _upcoming(self) -> list[Future]:
        """Those whose results are to be fetched now: what is ready, up to a bound."""
        if not self.with_results or self._fetched:
            return []
        ready = self._arrivals.ready
        batch: list[Future] = []
        with contextlib.suppress(IndexError):  # all taken
            while len(batch) < RESULTS_AHEAD and (not batch or ready[0].client is batch[0].client):
                batch.append(ready.popleft())
        return batch

    def _pop(self) -> _Item | None:
        """The next item, or None if another thread was faster."""
        with contextlib.suppress(IndexError):
            return self._fetched.popleft() if self.with_results else _Item(self._arrivals.ready.popleft())
        return None

    def _fails(self, item: _Item) -> bool:
        return item.error is not None and self.raise_errors and not item.future.cancelled()

    def _open(self, item: _Item) -> Any:
        """What is returned for it. Raises what the task raised."""
        future, value, error = item
        if not self.with_results:
            return future
        if error is None:
            return future, value
        if self._fails(item):
            raise raisable(error, future.key)
        return future, error if future.cancelled() else (type(error), error, error.__traceback__)

    def __iter__(self) -> as_completed:
        return self

    def __next__(self) -> Any:
        item = self._next()
        if item is None:
            raise StopIteration
        return self._open(item)

    def _next(self) -> _Item | None:
        while True:
            if not self._arrivals.wait(self._settled, self._deadline):
                raise self._late()
            batch = self._upcoming()
            if batch:
                outcomes = batch[0].client.outcomes(batch, asynchronous=False)
                self._fetched.extend(map(_Item, batch, *outcomes))
            if not self.has_ready():
                return None
            item = self._pop()
            if item is not None:
                return item

    def next(self) -> Any:
        """The next item. Raises StopIteration when there is none, TimeoutError, and with results what a task raised."""
        return self.__next__()

    def __aiter__(self) -> as_completed:
        return self

    async def __anext__(self) -> Any:
        item = await self._next_async()
        if item is None:
            raise StopAsyncIteration
        return self._open(item)

    async def _next_async(self) -> _Item | None:
        while True:
            if not await self._arrivals.wait_async(self._settled, self._deadline):
                raise self._late()
            batch = self._upcoming()
            if batch:
                outcomes = await batch[0].client.outcomes(batch, asynchronous=True)
                self._fetched.extend(map(_Item, batch, *outcomes))
            if not self.has_ready():
                return None
            item = self._pop()
            if item is not None:
                return item

    def next_batch(self, block: bool = True) -> list[Any]:
        """All that is ready; with results and ``raise_errors``, up to the first failure, which the next batch raises.

        Parameters:
            block: wait until there is at least one; otherwise the list may be empty.

        Raises:
            StopIteration: with ``block``, when all have been returned.
            TimeoutError, and with results what a task raised.
        """
        batch = [next(self)] if block else []
        while self.has_ready():
            if not self._joins(self._next(), batch):
                break
        return batch

    def _joins(self, item: _Item | None, batch: list[Any]) -> bool:
        """Whether it was put into the batch: a failure waits for one of its own."""
        if item is None:
            return False
        if batch and self._fails(item):
            self._fetched.appendleft(item)
            return False
        batch.append(self._open(item))
        return True

    def batches(self) -> _Batches:
        """Iterate (also with ``async for``) over lists as of `next_batch`, each of at least one."""
        return _Batches(self)


class _Batches(Iterator[list[Any]], AsyncIterator[list[Any]]):
    def __init__(self, source: as_completed) -> None:
        self._source = source

    def __next__(self) -> list[Any]:
        return self._source.next_batch()

    def __anext__(self) -> Awaitable[list[Any]]:
        return self._batch()

    async def _batch(self) -> list[Any]:
        batch = [await self._source.__anext__()]
        while self._source.has_ready():
            if not self._source._joins(await self._source._next_async(), batch):
                break
        return batch
