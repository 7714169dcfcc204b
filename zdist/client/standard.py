"""Standard futures whose results come from a cluster, and how these come to them.

There is no thread for it: results are made on the client's thread for callbacks, or in the thread that waits for them.
What takes several steps there (a large value that has to be fetched) leaves it between them.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from zdist.client.base import Wait
from zdist.client.client import Client
from zdist.client.delivery import Broken, Delivery, is_here
from zdist.client.future import Future
from zdist.core.collect import Signal
from zdist.core.entry import PENDING, Entry
from zdist.errors import ClusterClosed

__all__ = ["LOG", "ExecutorFuture", "Results", "seconds_left"]

LOG: Final = logging.getLogger("concurrent.futures")  # where the standard executors tell of the same
LOOK: Final = 0.25  # seconds between looks whether the client is still there

Outcome = tuple[Any, BaseException | None]  # value, or why there is none


class ExecutorFuture(concurrent.futures.Future[Any]):
    """A standard future whose result comes from a cluster. Who waits for it drives the client's sockets meanwhile."""

    def __init__(self, results: Results, call: tuple[Any, ...]) -> None:
        super().__init__()
        self._results = results
        self._call: tuple[Any, ...] | None = call  # function, args, kwargs: until the cluster has it
        self._remote: Future | None = None  # from then on until it is done
        self._claimed = False  # somebody gives it its end

    def cancel(self) -> bool:
        """Give it up unless it runs or is done, as far as is known here; see `ZdistExecutor`."""
        with self._condition:
            if self._claimed or self.running():
                return self.cancelled()
            self._claimed = True
        super().cancel()
        self.set_running_or_notify_cancel()
        self._results.over(self)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """As in concurrent.futures. In a task, its thread is lent to the worker meanwhile."""
        return super().result(self._help(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in concurrent.futures. In a task, its thread is lent to the worker meanwhile."""
        return super().exception(self._help(timeout))

    def take(self, timeout: float | None) -> Any:
        """Its result, for its only reader: it lives no longer for those who still have this future in hand."""
        value = self.result(timeout)
        self._result = None
        return value

    def claim(self) -> bool:
        """Is it for the caller to give this future its end?"""
        with self._condition:
            if self._claimed:
                return False
            self._claimed = True
            return True

    def begin(self) -> bool:
        """It goes to the cluster as one of a limited number, so it counts as running; False if it was cancelled."""
        with self._condition:
            return not self._claimed and self.set_running_or_notify_cancel()

    def sent(self, remote: Future) -> None:
        """The cluster has it, unless it was cancelled meanwhile."""
        with self._condition:
            if self._claimed:
                return
            self._remote = remote
        entry = remote._entry
        with self._results.client._lock:
            if entry.status != PENDING:
                self.resolved(entry)
            elif entry.waiters is None:
                entry.waiters = [self]
            else:
                entry.waiters.append(self)

    def resolved(self, entry: Entry, /) -> None:
        """From the driver, with the client's lock held: the task has ended."""
        if not self._claimed:
            self._results.arrived(self, entry)

    def end(self, outcome: Outcome) -> None:
        """Give it its result or exception. The caller has claimed it."""
        value, error = outcome
        if error is None:
            self.set_result(value)
        else:
            self.set_exception(error)

    def end_quietly(self, outcome: Outcome) -> bool:
        """The same, if no callbacks would be called: who waits, in this thread, may hold locks that those want."""
        with self._condition:
            if self._done_callbacks:  # type: ignore[attr-defined]
                return False
            self.end(outcome)
            return True

    def _help(self, timeout: float | None) -> float | None:
        """Bring the result here in this thread, which saves two hand-overs; what is left of the timeout."""
        remote = self._remote
        if remote is None:
            return timeout
        end = None if timeout is None else time.monotonic() + timeout
        self._results.bring(self, remote._entry, end)
        return seconds_left(end)


class Results:
    """Brings what tasks of one executor end with to their futures; calls ``over(future, error)`` when each has it."""

    def __init__(self, client: Client, over: Callable[..., None]) -> None:
        self.client = client
        self.over = over
        self._delivery = Delivery(client, None)
        self._arrivals: list[tuple[ExecutorFuture, Entry]] = []  # their tasks have ended
        self._deliverer = 0  # the thread for callbacks, once it has worked for us

    def arrived(self, future: ExecutorFuture, entry: Entry) -> None:
        """With the client's lock held. What comes in one turn of the driver is delivered together."""
        self._arrivals.append((future, entry))
        if len(self._arrivals) == 1:
            self.client._chore(self._deliver)

    def _deliver(self) -> None:
        """On the thread for callbacks."""
        self._deliverer = threading.get_ident()
        with self.client._lock:
            arrivals, self._arrivals = self._arrivals, []
        for future, entry in arrivals:
            if not future.claim():
                continue
            if self.client._worker is None and is_here(entry):
                self.end(future, self._loaded(entry))
            else:
                self._advance(future, self._outcome(entry))

    def _loaded(self, entry: Entry) -> Outcome:
        """Of one whose value is here."""
        value = self._delivery.load(entry)
        return (None, value.error) if type(value) is Broken else (value, None)

    async def _outcome(self, entry: Entry, end: float | None = None) -> Outcome:
        """Raises TimeoutError after the monotonic ``end``."""
        delivery = Delivery(self.client, None)
        try:
            values, failed = await delivery.bring((entry,), True, end)
        finally:
            delivery.close()
        return values.get(entry), failed.get(entry)

    def _advance(self, future: ExecutorFuture, work: Coroutine[Wait, bool, Outcome], ready: bool | None = None) -> None:
        """Go on with this until it has to wait, and then let others have the thread."""
        try:
            while True:
                signal = work.send(ready).signal  # type: ignore[arg-type]
                with self.client._lock:
                    if not signal.ready():
                        self.client._usable().wake()
                        signal.notify = partial(self._resume, future, work, signal)
                        return
                ready = True
        except StopIteration as end:
            outcome = end.value
        except BaseException as exc:  # whatever happens, the future ends and the thread goes on
            work.close()
            outcome = None, exc
        self.end(future, outcome)

    def _resume(self, future: ExecutorFuture, work: Coroutine[Wait, bool, Outcome], signal: Signal) -> None:
        """From the driver, with the client's lock held: what was waited for is there."""
        signal.notify = None
        self.client._chore(partial(self._advance, future, work, True))

    def bring(self, future: ExecutorFuture, entry: Entry, end: float | None) -> None:
        """In a thread that waits for this future: drive until it is done, or until the monotonic ``end``."""
        client = self.client
        try:
            client.block(lambda: entry.status != PENDING or future.done(), seconds_left(end))
        except ClusterClosed:
            if client.status == "forked":
                raise  # else the end of the client is the end of its entries
        if entry.status == PENDING or future.done():
            return
        mine = False
        try:
            mine = future.claim()
            if mine:
                self.finish(future, client._now(self._outcome(entry, end)))
            elif client._driver is not None:
                client._driver.hand_over()  # whoever has claimed it may need the sockets
        except BaseException as exc:
            if mine and not future.done():
                client._chore(partial(self._advance, future, self._outcome(entry)))
            if not isinstance(exc, TimeoutError):
                raise

    def finish(self, future: ExecutorFuture, outcome: Outcome) -> None:
        """In any thread, for who has claimed it: give it its end, but call no callbacks here."""
        if future.end_quietly(outcome):
            error = outcome[1]
            del outcome  # what its reader drops must go at once
            self.over(future, error)
        else:
            self.client._chore(partial(self.end, future, outcome))

    def end(self, future: ExecutorFuture, outcome: Outcome) -> None:
        """On the thread for callbacks."""
        try:
            future.end(outcome)
        except BaseException:  # from a callback; of an Exception the standard future has told itself
            LOG.exception("exception calling callback for %r", future)
        error = outcome[1]
        del outcome  # what its reader drops must go at once
        self.over(future, error)

    def await_callbacks(self) -> None:
        """Wait until the thread for callbacks has done what is queued there."""
        client = self.client
        if client._chores is None or self._deliverer in (0, threading.get_ident()):
            return
        done = threading.Event()
        client._chore(done.set)
        while not done.wait(LOOK) and client._driver is not None:
            pass


def seconds_left(end: float | None) -> float | None:
    """Seconds until a monotonic time."""
    return None if end is None else max(0.0, end - time.monotonic())
