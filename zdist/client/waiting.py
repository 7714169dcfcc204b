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

_NONE: Final = object()
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class DoneAndNotDoneFutures(NamedTuple):
    """What ``wait`` returns, as in dask.distributed: failed and cancelled futures are done."""

    done: set[Future]
    not_done: set[Future]


def seconds(span: float | str | timedelta | None) -> float | None:
    """A time span in seconds, from a number, a timedelta, or a text such as "500ms", "10s", "2 min"; None for none.

    Raises:
        ValueError: the text is no time span.
    """
    if span is None or isinstance(span, int | float):
        return span
    if isinstance(span, timedelta):
        return span.total_seconds()
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", span)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{span!r} is no time span; give seconds or a text such as '500ms', '10s', '2 min'")
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
        arrivals, until = _first_of(futures)
        arrivals.wait(until, deadline)
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


def _first_of(futures: list[Future]) -> tuple[Arrivals, Callable[[], bool]]:
    arrivals = Arrivals()
    if futures and not any(future.done() for future in futures):
        arrivals.watch(futures)
    return arrivals, lambda: bool(arrivals.ready) or not arrivals.pending


async def _wait_async(futures: list[Future], deadline: float | None, return_when: str) -> DoneAndNotDoneFutures:
    if return_when == ALL_COMPLETED:
        arrivals = Arrivals()
        arrivals.watch(future for future in futures if not future.done())
        await arrivals.wait_async(lambda: not arrivals.pending, deadline)
    else:
        arrivals, until = _first_of(futures)
        await arrivals.wait_async(until, deadline)
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


class as_completed:
    """Iterate over futures in the order in which they finish; also with ``async for``. As in dask.distributed 2021.10.

    Failed and cancelled futures are among them. More can be added while iterating; the iteration ends when all that
    were added have been returned.

    Parameters:
        futures: futures to begin with.
        loop: accepted for the sake of programs written for dask.distributed; not used.
        with_results: return tuples (future, result) instead of futures. For a cancelled future the result is the
            CancelledError.
        raise_errors: with results, raise a failed future's exception in its turn; otherwise its result is the tuple
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
        self._fetched: deque[tuple[Future, Any]] = deque()
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

    def _pop(self) -> Any:
        """The next item, or _NONE if another thread was faster. Raises what the task raised."""
        source: deque[Any] = self._fetched if self.with_results else self._arrivals.ready
        try:
            item = source.popleft()
        except IndexError:
            return _NONE
        if not self.with_results:
            return item
        future, result = item
        if future.status == "error":
            if self.raise_errors:
                raise raisable(result, future.key)
            result = (type(result), result, result.__traceback__)
        return future, result

    def __iter__(self) -> as_completed:
        return self

    def __next__(self) -> Any:
        while True:
            if not self._arrivals.wait(self._settled, self._deadline):
                raise self._late()
            batch = self._upcoming()
            if batch:
                values = batch[0].client.gather(batch, errors="return", asynchronous=False)
                self._fetched.extend(zip(batch, values, strict=True))
            if not self.has_ready():
                raise StopIteration
            item = self._pop()
            if item is not _NONE:
                return item

    def next(self) -> Any:
        """The next item. Raises StopIteration when there is none, TimeoutError, and with results what a task raised."""
        return self.__next__()

    def __aiter__(self) -> as_completed:
        return self

    async def __anext__(self) -> Any:
        while True:
            if not await self._arrivals.wait_async(self._settled, self._deadline):
                raise self._late()
            batch = self._upcoming()
            if batch:
                values = await batch[0].client.gather(batch, errors="return", asynchronous=True)
                self._fetched.extend(zip(batch, values, strict=True))
            if not self.has_ready():
                raise StopAsyncIteration
            item = self._pop()
            if item is not _NONE:
                return item

    def next_batch(self, block: bool = True) -> list[Any]:
        """All that is ready.

        Parameters:
            block: wait until there is at least one; otherwise the list may be empty.

        Raises:
            StopIteration: with ``block``, when all have been returned.
        """
        batch = [next(self)] if block else []
        while self.has_ready():
            batch.append(next(self))
        return batch

    def batches(self) -> _Batches:
        """Iterate (also with ``async for``) over lists of all that is ready, each of at least one."""
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
            batch.append(await self._source.__anext__())
        return batch
