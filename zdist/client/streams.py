"""Gathering what has no end: an iterator or a queue of futures becomes one of values, in order, a window ahead."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, ClassVar

from zdist.client.containers import flatten
from zdist.client.future import Future
from zdist.limits import GATHER_WINDOW

__all__ = ["gather_async_iterator", "gather_async_queue", "gather_iterator", "gather_queue"]


class GatherIterator(Iterator[Any]):
    """Values of an iterator's futures, in its order; see ``gather_iterator``."""

    def __init__(self, client: Any, items: Iterable[Any], errors: str, direct: bool | None) -> None:
        self._client = client
        self._items = iter(items)
        self._errors = errors
        self._direct = direct
        self._ahead: deque[Any] = deque()
        self._width = 1
        self._failure: BaseException | None = None

    def _advance(self) -> None:
        """Take items from the source until the window is full, and have their values fetched meanwhile.

        The window starts at one and doubles, so that the first value does not wait for a thousand slow items.
        """
        if self._failure is not None or len(self._ahead) > self._width // 2:
            return
        fresh: list[Any] = []
        try:
            while len(self._ahead) + len(fresh) < self._width:
                fresh.append(next(self._items))
        except BaseException as exc:  # shown when the items before it have had their turn
            self._failure = exc
        self._client.prefetch(flatten(fresh)[0], direct=self._direct)
        self._ahead.extend(fresh)
        self._width = min(2 * self._width, GATHER_WINDOW)

    def _ended(self) -> bool:
        """Whether the items are used up; raises what the source raised."""
        if self._ahead:
            return False
        if self._failure is not None and not isinstance(self._failure, StopIteration):
            failure, self._failure = self._failure, StopIteration()
            raise failure
        return True

    def _dropped(self, item: Any) -> bool:
        return self._errors == "skip" and isinstance(item, Future) and item.status != "finished"

    def __next__(self) -> Any:
        while True:
            self._advance()
            if self._ended():
                raise StopIteration
            item = self._ahead.popleft()
            value = self._client.gather(item, errors=self._errors, direct=self._direct, asynchronous=False)
            if not self._dropped(item):
                return value

    async def values(self) -> AsyncIterator[Any]:
        """The same for an asynchronous client."""
        while True:
            self._advance()
            if self._ended():
                return
            item = self._ahead.popleft()
            value = await self._client.gather(item, errors=self._errors, direct=self._direct, asynchronous=True)
            if not self._dropped(item):
                yield value


def gather_iterator(
    client: Any, items: Iterable[Any], errors: str = "raise", direct: bool | None = None
) -> Iterator[Any]:
    """A lazy iterator over the values of an iterator's futures (or containers of futures), in its order.

    At most ``limits.GATHER_WINDOW`` items are taken ahead of the one that is handed out. With ``errors="raise"`` a
    failed future's error is raised in its turn; the iterator can be used further after that.
    """
    return GatherIterator(client, items, errors, direct)


def gather_async_iterator(
    client: Any, items: Iterable[Any], errors: str = "raise", direct: bool | None = None
) -> AsyncIterator[Any]:
    """``gather_iterator`` for ``async for`` on an asynchronous client."""
    return GatherIterator(client, items, errors, direct).values()


class _Pump:
    """Moves futures from one queue to another as values, on a thread of its own until ``stop``."""

    def __init__(self, client: Any, source: queue.Queue[Any], errors: str, direct: bool | None) -> None:
        self.source = source
        # A queue without a bound would hold all results in this process at once.
        self.sink: queue.Queue[Any] = type(source)(source.maxsize or GATHER_WINDOW)
        self._client = client
        self._errors = errors
        self._direct = direct
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="zdist-gather-queue", daemon=True)

    def start(self) -> None:
        self._client._pumps.add(self)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; items that it has not taken stay in the source. Called when the client closes."""
        self._stopped = True
        for end in (self.source, self.sink):
            with end.mutex:
                end.not_empty.notify_all()
                end.not_full.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    def _run(self) -> None:
        try:
            while not self._stopped:
                items = self._take()
                self._client.prefetch(flatten(items)[0], direct=self._direct)
                for item in items:
                    self._move(item)
        finally:
            self._client._pumps.discard(self)

    def _take(self) -> list[Any]:
        with self.source.mutex:
            while not self.source._qsize() and not self._stopped:
                self.source.not_empty.wait()
        items: list[Any] = []
        while len(items) < GATHER_WINDOW:
            try:
                items.append(self.source.get_nowait())
            except queue.Empty:  # also when another consumer was faster
                break
        return items

    def _move(self, item: Any) -> None:
        if self._stopped:
            return
        try:
            value = self._client.gather(item, errors=self._errors, direct=self._direct, asynchronous=False)
        except BaseException as exc:  # nobody waits here for it to be raised
            value = exc
        self.source.task_done()
        if self._errors == "skip" and isinstance(item, Future) and item.status != "finished":
            return
        while not self._stopped:
            with self.sink.mutex:
                while 0 < self.sink.maxsize <= self.sink._qsize() and not self._stopped:
                    self.sink.not_full.wait()
            try:
                return self.sink.put_nowait(value)
            except queue.Full:  # another producer was faster
                continue


def gather_queue(
    client: Any, source: queue.Queue[Any], errors: str = "raise", direct: bool | None = None
) -> queue.Queue[Any]:
    """A queue of the same kind as ``source`` that fills with the values of its futures, in order, as they arrive.

    It is bounded by the source's ``maxsize``, or else ``limits.GATHER_WINDOW``. With ``errors="raise"`` the exception
    itself stands in the place of a failed future. A thread does this until the client closes.
    """
    pump = _Pump(client, source, errors, direct)
    pump.start()
    return pump.sink


class _AsyncPump:
    """The same between two asyncio queues, as a task of the client's loop."""

    running: ClassVar[set[_AsyncPump]] = set()  # a loop alone does not keep its tasks alive

    def __init__(self, client: Any, source: asyncio.Queue[Any], errors: str, direct: bool | None) -> None:
        self.source = source
        self.sink: asyncio.Queue[Any] = type(source)(source.maxsize or GATHER_WINDOW)
        self._client = client
        self._errors = errors
        self._direct = direct

    def start(self) -> None:
        self._client._pumps.add(self)
        self.running.add(self)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="zdist-gather-queue")

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        try:
            while True:
                items = [await self.source.get()]
                while len(items) < GATHER_WINDOW and not self.source.empty():
                    items.append(self.source.get_nowait())
                self._client.prefetch(flatten(items)[0], direct=self._direct)
                for item in items:
                    await self._move(item)
        finally:
            self.running.discard(self)
            self._client._pumps.discard(self)

    async def _move(self, item: Any) -> None:
        try:
            value = await self._client.gather(item, errors=self._errors, direct=self._direct, asynchronous=True)
        except Exception as exc:
            value = exc
        self.source.task_done()
        if not (self._errors == "skip" and isinstance(item, Future) and item.status != "finished"):
            await self.sink.put(value)


def gather_async_queue(
    client: Any, source: asyncio.Queue[Any], errors: str = "raise", direct: bool | None = None
) -> asyncio.Queue[Any]:
    """``gather_queue`` for an asyncio.Queue; to be called on the asynchronous client's loop."""
    pump = _AsyncPump(client, source, errors, direct)
    pump.start()
    return pump.sink
