"""Gathering a queue: a thread, or a task of the event loop, fills another one with the values, in order."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import weakref
from typing import Any, ClassVar, Final

from zdist.client.streams import Ahead
from zdist.limits import GATHER_WINDOW

__all__ = ["gather_async_queue", "gather_queue"]

LOOK: Final = 1.0  # seconds after which a pump that waits looks whether anybody still has its sink


def _like(source: Any) -> Any:
    """An empty queue of the same kind; one without a bound would hold all results in this process at once."""
    kind = type(source)
    try:
        return kind(source.maxsize if source.maxsize > 0 else GATHER_WINDOW)
    except Exception as exc:
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(f"cannot make a {name} with {name}(maxsize) ({exc}); gather a queue.Queue instead") from exc


def _ahead(client: Any, source: Any, errors: str, direct: bool | None) -> Ahead:
    if errors == "raise" and isinstance(source, (queue.PriorityQueue, asyncio.PriorityQueue)):
        errors = "return"  # inside of its item: a bare exception has no place in the order
    return Ahead(client, errors, direct)


def _refused(value: Any) -> None:
    """A queue that orders its items cannot take this one: nobody waits here for that to be raised."""
    import logging

    name = f"{type(value).__module__}.{type(value).__qualname__}"
    logging.getLogger("zdist.client").exception("a gathered queue cannot take a value, a %s, which is left out", name)


class _Pump:
    """Moves futures from one queue to another as values, on a thread of its own, until ``stop``.

    It ends by itself when nobody has the sink any more.
    """

    def __init__(self, client: Any, source: queue.Queue[Any], sink: queue.Queue[Any], ahead: Ahead) -> None:
        self._client = client
        self._source = source
        self._sink = weakref.ref(sink)
        self._ahead = ahead
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="zdist-gather-queue", daemon=True)

    def start(self) -> None:
        self._client._pumps.add(self)
        self._thread.start()

    def stop(self) -> None:
        """Take no more; items that it has not taken stay in the source. Called when the client closes."""
        self._stopped = True
        sink = self._sink()
        for end in (self._source,) if sink is None else (self._source, sink):
            with end.mutex:
                end.not_empty.notify_all()
                end.not_full.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._ahead.add(self._take())
                if self._ahead:
                    self._put(self._value())
            while self._ahead:  # what was taken is not lost with the client: its futures are settled by now
                self._put(self._value())
        finally:
            self._ahead.close()
            self._client._pumps.discard(self)

    def _take(self) -> list[Any]:
        """What there is, up to the window; waits for something if nothing is ahead."""
        source = self._source
        if not self._ahead:
            with source.mutex:
                while not source._qsize() and not self._stopped:
                    source.not_empty.wait(LOOK)
                    self._stopped = self._stopped or self._sink() is None
        items: list[Any] = []
        with contextlib.suppress(queue.Empty):  # also when another consumer was faster
            while not self._stopped and len(items) < self._ahead.room():
                items.append(source.get_nowait())
        return items

    def _value(self) -> list[Any]:
        before = len(self._ahead)
        try:
            value: list[Any] = self._client._sync(self._ahead.next(None), False)
        except BaseException as exc:  # nobody waits here for it to be raised
            if len(self._ahead) == before:
                self._ahead.drop()
            return [exc]
        return value

    def _put(self, value: list[Any]) -> None:
        """Hand out; waits while the sink is full."""
        while value:
            sink = self._sink()
            if sink is None:
                self._stopped = True
                break
            with sink.mutex:
                if sink._qsize() >= sink.maxsize and not self._stopped:
                    sink.not_full.wait(LOOK)
            try:
                sink.put_nowait(value[0])
                break
            except queue.Full:
                if self._stopped:
                    break
            except Exception:
                _refused(value[0])
                break
            finally:
                del sink  # or it could not go
        self._source.task_done()


def gather_queue(
    client: Any, source: queue.Queue[Any], errors: str = "raise", direct: bool | None = None
) -> queue.Queue[Any]:
    """A queue of the same kind as ``source`` that fills with the values of its futures, in order, as they arrive.

    It is bounded by the source's ``maxsize``, or else ``limits.GATHER_WINDOW``. With ``errors="raise"`` the exception
    itself stands in the place of an item with a failed future; in a PriorityQueue in the future's place in its item. A
    value that the queue cannot compare with others is logged and left out. A thread does this until the client closes,
    or nobody has the new queue any more. Raises TypeError for a kind that cannot be made with its ``maxsize`` alone.
    """
    sink = _like(source)
    _Pump(client, source, sink, _ahead(client, source, errors, direct)).start()
    return sink  # type: ignore[no-any-return]


class _AsyncPump:
    """The same between two asyncio queues, as a task of the client's loop."""

    running: ClassVar[set[_AsyncPump]] = set()  # a loop alone does not keep its tasks alive

    def __init__(self, client: Any, source: asyncio.Queue[Any], sink: asyncio.Queue[Any], ahead: Ahead) -> None:
        self._client = client
        self._source = source
        self._sink = weakref.ref(sink)
        self._ahead = ahead
        self._stopped = False
        self._idle: asyncio.Task[Any] | None = None  # waits for an item of the source

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._client._pumps.add(self)
        self.running.add(self)
        self._task = loop.create_task(self._run(), name="zdist-gather-queue")

    def stop(self) -> None:
        """Take no more; what was taken is handed out as far as there is room. Called when the client closes."""
        self._stopped = True
        if self._idle is not None:
            self._idle.cancel()

    def join(self, timeout: float) -> None:
        """The loop ends it."""

    async def _run(self) -> None:
        try:
            while not self._stopped:
                self._ahead.add(await self._take())
                if self._ahead:
                    await self._put(await self._value())
            while self._ahead:  # what was taken is not lost with the client: its futures are settled by now
                await self._put(await self._value())
        finally:
            self._ahead.close()
            self.running.discard(self)
            self._client._pumps.discard(self)

    async def _take(self) -> list[Any]:
        source = self._source
        items = [] if self._ahead else await self._first()
        while not self._stopped and len(items) < self._ahead.room() and not source.empty():
            items.append(source.get_nowait())
        return items

    async def _first(self) -> list[Any]:
        """Wait for an item; none when the client closes, or nobody has the sink any more."""
        self._idle = asyncio.ensure_future(self._source.get())
        try:
            while not self._idle.done():
                await asyncio.wait((self._idle,), timeout=LOOK)
                if self._sink() is None:
                    self._stopped = True
                    self._idle.cancel()  # which takes nothing
            return [] if self._idle.cancelled() else [self._idle.result()]
        finally:
            self._idle.cancel()
            self._idle = None

    async def _value(self) -> list[Any]:
        before = len(self._ahead)
        try:
            value: list[Any] = await self._client._later(self._ahead.next(None))
        except Exception as exc:
            if len(self._ahead) == before:
                self._ahead.drop()
            return [exc]
        return value

    async def _put(self, value: list[Any]) -> None:
        while value:
            sink = self._sink()
            if sink is None:
                self._stopped = True
                break
            try:
                if self._stopped:
                    sink.put_nowait(value[0])
                else:
                    async with asyncio.timeout(LOOK):
                        await sink.put(value[0])
                break
            except asyncio.QueueFull:
                break
            except TimeoutError:  # full
                pass
            except Exception:
                _refused(value[0])
                break
            finally:
                del sink
        self._source.task_done()


def gather_async_queue(
    client: Any, source: asyncio.Queue[Any], errors: str = "raise", direct: bool | None = None
) -> asyncio.Queue[Any]:
    """``gather_queue`` for an asyncio.Queue; to be called on the asynchronous client's loop."""
    sink = _like(source)
    _AsyncPump(client, source, sink, _ahead(client, source, errors, direct)).start()
    return sink  # type: ignore[no-any-return]
