"""Who has finished: what ``as_completed``, ``wait`` and ``progress`` wait with."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from zdist import context
from zdist.client.future import Future

__all__ = ["Arrivals"]


class Arrivals:
    """The futures that have finished, in the order they did, of those that are watched.

    Their clients' drivers tell it from whichever thread drives; any thread or event loop waits for the next. A watched
    future is kept alive until it has arrived.
    """

    def __init__(self) -> None:
        self.ready: deque[Future] = deque()
        self.pending = 0
        self._clients: list[Any] = []
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], object]] = []

    def watch(self, futures: Iterable[Future]) -> None:
        """Expect these futures; one that is given twice arrives twice."""
        for client, group in _by_client(futures):
            with self._lock:
                self.pending += len(group)
                if not any(known is client for known in self._clients):
                    self._clients.append(client)
            client.watch(group, self._arrived)

    def unwatch(self, futures: Iterable[Future]) -> None:
        """Nobody waits for these any more: they need not be kept alive, nor arrive."""
        if not self.pending:
            return
        for client, group in _by_client(futures):
            client.unwatch(group, self._arrived)

    def _arrived(self, future: Future) -> None:
        with self._lock:
            self.ready.append(future)
            self.pending -= 1
            if not self._wakers:
                return
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            with contextlib.suppress(RuntimeError):  # an event loop that was closed meanwhile
                wake()

    def poke(self) -> None:
        """Let all that wait look again."""
        with self._lock:
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def wait(self, until: Callable[[], bool], deadline: float | None, drive: bool = True) -> bool:
        """Block until ``until()``, or until the monotonic ``deadline``; returns whether it came true.

        With ``drive`` this thread may drive the client's sockets itself, which saves a hand-over between threads.
        """
        while not until():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if drive and len(self._clients) == 1:
                self._clients[0].block(until, left)
                continue
            event = threading.Event()
            with self._woken_by(event.set):
                if not until():
                    event.wait(left)
        return True

    async def wait_async(self, until: Callable[[], bool], deadline: float | None) -> bool:
        """The same on an event loop."""
        loop = asyncio.get_running_loop()
        if not until():
            context.leave()
        while not until():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            event = asyncio.Event()
            with self._woken_by(partial(loop.call_soon_threadsafe, event.set)), contextlib.suppress(TimeoutError):
                if not until():
                    async with asyncio.timeout(left):
                        await event.wait()
        return True

    @contextlib.contextmanager
    def _woken_by(self, wake: Callable[[], object]) -> Iterator[None]:
        with self._lock:
            self._wakers.append(wake)
        try:
            yield
        finally:
            with self._lock, contextlib.suppress(ValueError):  # it was called
                self._wakers.remove(wake)


def _by_client(futures: Iterable[Future]) -> Iterable[tuple[Any, list[Future]]]:
    groups: dict[int, tuple[Any, list[Future]]] = {}
    for future in futures:
        groups.setdefault(id(future.client), (future.client, []))[1].append(future)
    return groups.values()
