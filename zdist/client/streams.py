"""Gathering an iterator: it becomes one of values, in order, which are fetched a window ahead."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, NamedTuple

from zdist.client.containers import Skeleton, flatten
from zdist.client.delivery import Broken, Delivery, is_here
from zdist.client.future import Future
from zdist.client.gathering import put_together
from zdist.client.waiting import as_completed
from zdist.core.entry import FINISHED, Entry
from zdist.errors import ClusterClosed
from zdist.limits import GATHER_BYTES, GATHER_WINDOW

__all__ = ["Ahead", "gather_async_iterator", "gather_iterator"]

PULL: Final = 0.02  # seconds for which a slow source is asked for more while there is something to hand out


BARE: Final[Skeleton] = ("flat", list, None)  # of a list with one future


class Item(NamedTuple):
    """What the source gave, taken apart; or why that could not be."""

    skeleton: Skeleton
    futures: list[Future]
    error: Exception | None = None


class Ahead:
    """Items taken from a source and not handed out, in order, with their values under way.

    The window starts at one item and doubles, so that the first value does not wait for a thousand slow items; it
    holds at most ``limits.GATHER_WINDOW`` items, and fewer if those handed out so far were so large that all of it
    would be more than ``limits.GATHER_BYTES``.
    """

    def __init__(self, client: Any, errors: str, direct: bool | None) -> None:
        self._client = client
        self._errors = errors
        self._delivery = Delivery(client, direct)
        client._ledger.fetcher.report.begin(alone=False)
        self._items: deque[Item] = deque()
        self._uses: dict[Entry, int] = {}  # in how many items of the window
        self._width = 1
        self._count = self._bytes = 0  # handed out
        self._busy = False

    def __len__(self) -> int:
        return len(self._items)

    def room(self) -> int:
        """How many items the window still takes; 0 until half of it has been handed out, so that batches are large."""
        width = self._width
        if self._bytes:
            width = max(1, min(width, GATHER_BYTES * self._count // self._bytes))
        return 0 if len(self._items) > width // 2 else width - len(self._items)

    def add(self, source: Iterable[Any]) -> None:
        """Have the values of these items brought, all in one batch."""
        fresh: list[Entry] = []
        uses = self._uses
        for item in source:
            if type(item) is Future and item.client is self._client:  # nearly all
                entry = item._entry
                uses[entry] = uses.get(entry, 0) + 1  # before the item counts, should Ctrl-C strike here
                if uses[entry] == 1 and not is_here(entry):
                    fresh.append(entry)
                self._items.append(Item(BARE, [item]))
                continue
            try:
                # in a list, so that a bare future that is skipped can be told from one whose value is None
                found, skeleton = flatten([item])
                found = self._client._joined(found)
            except Exception as exc:  # shown in its turn
                self._items.append(Item((), [], exc))
                continue
            for future in found:
                entry = future._entry
                uses[entry] = uses.get(entry, 0) + 1
                if uses[entry] == 1:
                    fresh.append(entry)
            self._items.append(Item(skeleton, found))
        self._width = min(2 * self._width, GATHER_WINDOW)
        if fresh:
            with contextlib.suppress(ClusterClosed):  # waiting for the values will say so
                self._delivery.begin(fresh)

    async def next(self, deadline: float | None) -> list[Any]:
        """The next item with its values, as a list of one; of none if it is skipped.

        Raises what gather raises. After a TimeoutError the item is still the next.
        """
        if self._busy:
            raise RuntimeError("another thread or task waits for the next value of this iterator already")
        self._busy = True
        try:
            skeleton, futures, error = self._items[0]
            if error is not None:
                self._items.popleft()
                raise error
            entries = [future._entry for future in futures]
            if skeleton is BARE and self._uses[entries[0]] == 1 and is_here(entries[0]):
                value = self._delivery.load(entries[0])
                if type(value) is not Broken:
                    self._handed_out(entries)
                    return [value]
            values, failed = await self._delivery.bring(entries, self._errors == "raise", deadline)
            for entry, value in values.items():
                if self._uses[entry] > 1:  # another item of the window gets the same object
                    self._delivery.values[entry] = value
            self._handed_out(entries)
            result: list[Any] = put_together(futures, skeleton, values, failed, self._errors)
            return result
        finally:
            self._busy = False

    def _handed_out(self, entries: list[Entry]) -> None:
        self._items.popleft()
        self._count += 1
        for entry in entries:
            outcome = entry.outcome
            if entry.status == FINISHED and outcome is not None:
                self._bytes += outcome[2]
            self._uses[entry] -= 1
            if not self._uses[entry]:
                del self._uses[entry]
                self._delivery.forget(entry)

    def drop(self) -> None:
        """The next item will never be had."""
        self._handed_out([future._entry for future in self._items[0].futures])

    def close(self) -> None:
        """Let go of everything."""
        self._delivery.close()
        self._items.clear()
        self._uses.clear()

    def abandon(self) -> None:
        """The same from a finalizer, which may run in the middle of anything: the driver's next turn does it."""
        self._client._ledger.collections.abandoned.extend(self._delivery.open)


# --- iterators ---------------------------------------------------------------------------------------


class _Stream:
    """What both kinds of iterators are."""

    def __init__(self, client: Any, items: Any, errors: str, direct: bool | None, timeout: float | None) -> None:
        self._client = client
        self._items: Any = items  # None when it has ended
        self._ahead = Ahead(client, errors, direct)
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._failure: Exception | None = None  # of the source

    def _fill(self) -> None:
        """Take items from the source until the window is full, or it takes its time."""
        items, room = self._items, self._ahead.room()
        if items is None or not room:
            return
        fresh: list[Any] = []
        until = time.monotonic() + PULL
        try:
            while len(fresh) < room and (not fresh or time.monotonic() < until):
                if (fresh or self._ahead) and isinstance(items, as_completed) and not items.has_ready():
                    break  # it would wait for the next, and there is something to hand out
                fresh.append(next(items))
        except StopIteration:
            self._items = None
        except Exception as exc:  # shown when the items before it have had their turn
            self._items, self._failure = None, exc
        finally:
            self._ahead.add(fresh)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # half-made
            self._ahead.abandon()


class GatherIterator(_Stream, Iterator[Any]):
    """Values of an iterator's futures, in its order; see ``gather_iterator``."""

    def __next__(self) -> Any:
        while True:
            self._fill()
            if not self._ahead:
                self.close()
                failure, self._failure = self._failure, None
                raise failure or StopIteration
            got = self._client._sync(self._ahead.next(self._deadline), False)
            if got:
                return got[0]

    def close(self) -> None:
        """Give the rest up: what is under way ends, and the source is let go. Idempotent."""
        self._items = None
        self._ahead.close()

    def __enter__(self) -> GatherIterator:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class AsyncGatherIterator(_Stream, AsyncIterator[Any]):
    """The same for ``async for``; its source may be an asynchronous iterator as well."""

    _coming: asyncio.Future[Any] | None = None  # the next item of an asynchronous source

    async def _fill_later(self) -> None:
        """Take items from an asynchronous source: one at least if none is ahead, else what it has at once."""
        fresh: list[Any] = []
        room = self._ahead.room()
        until = time.monotonic() + PULL
        try:
            while self._items is not None and len(fresh) < room and (not fresh or time.monotonic() < until):
                if self._coming is None:
                    self._coming = asyncio.ensure_future(_next_of(self._items))
                await asyncio.wait((self._coming,), timeout=0 if fresh or self._ahead else self._left())
                if not self._coming.done():
                    break
                coming, self._coming = self._coming, None
                fresh.append(coming.result())
        except StopAsyncIteration:
            self._items = None
        except Exception as exc:  # shown when the items before it have had their turn
            self._items, self._failure = None, exc
        finally:
            self._ahead.add(fresh)

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    async def __anext__(self) -> Any:
        while True:
            if isinstance(self._items, AsyncIterator):
                await self._fill_later()
            else:
                self._fill()
            if not self._ahead:
                if self._items is not None:
                    raise TimeoutError("the iterator that is gathered gave nothing in the time given")
                await self.aclose()
                failure, self._failure = self._failure, None
                raise failure or StopAsyncIteration
            got = await self._client._later(self._ahead.next(self._deadline))
            if got:
                return got[0]

    async def aclose(self) -> None:
        """Give the rest up: what is under way ends, and the source is let go. Idempotent."""
        self._items = None
        self._ahead.close()
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.cancel()
            await asyncio.wait((coming,))


async def _next_of(items: AsyncIterator[Any]) -> Any:
    return await anext(items)


def gather_iterator(
    client: Any, items: Iterable[Any], errors: str = "raise", direct: bool | None = None, timeout: float | None = None
) -> GatherIterator:
    """A lazy iterator over the values of an iterator's futures (or containers of futures), in its order.

    Nothing is taken from the source before the first value is asked for; then it is asked ahead, so it must not wait
    for what is done with the values (``as_completed`` may be given: only what has finished is taken ahead). With
    ``errors="raise"`` a failed future's error is raised in its turn, with "skip" it is left out; the iterator can be
    used further after that. ``timeout``: seconds from now after which a value that is not here is a TimeoutError.
    ``close`` (or a ``with`` block, or letting go of it) ends what is under way.
    """
    return GatherIterator(client, iter(items), errors, direct, timeout)


def gather_async_iterator(
    client: Any,
    items: Iterator[Any] | AsyncIterator[Any],
    errors: str = "raise",
    direct: bool | None = None,
    timeout: float | None = None,
) -> AsyncGatherIterator:
    """``gather_iterator`` for ``async for`` on an asynchronous client; ``aclose`` ends it early."""
    return AsyncGatherIterator(client, items, errors, direct, timeout)
