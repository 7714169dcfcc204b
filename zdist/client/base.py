"""What the parts of the client share: its state, waiting in a thread or on an event loop, and telling waiters.

Methods that wait are coroutines that yield `Wait` steps. A synchronous call runs the coroutine by hand and drives the
sockets itself at each step; an asynchronous one awaits an asyncio future that the driver's turn completes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from zdist import context, serialize
from zdist.client.containers import flatten
from zdist.client.future import Future, Lent
from zdist.core.collect import Signal
from zdist.core.entry import CANCELLED, PENDING, Entry, Reply
from zdist.core.ledger import Ledger
from zdist.errors import ActorLost, CancelledError, ClusterClosed, KeyConflict, KilledWorker, TaskTimeout, ZdistError
from zdist.protocol.actors import Seed
from zdist.transport.driver import Driver
from zdist.transport.shm import SharedMemory

__all__ = ["Base", "Wait", "failure_of", "open_clients"]

T = TypeVar("T")
open_clients: weakref.WeakSet[Any] = weakref.WeakSet()


class Wait(NamedTuple):
    """A step of a waiting coroutine: until the signal is ready, or this monotonic deadline."""

    signal: Signal
    deadline: float | None = None

    def __await__(self) -> Generator[Wait, bool, bool]:
        return (yield self)


def failure_of(key: str, status: str, outcome: Any) -> BaseException:
    """The exception that an entry without a value stands for, from what was read of it under the lock."""
    if status == CANCELLED:
        why = outcome if type(outcome) is str and outcome else "its future was released"
        return CancelledError(f"{key}: {why}")
    kind, payload, origin, text = outcome
    if kind == "actor":
        return ActorLost(text)
    if kind == "killed":
        return KilledWorker(text)
    if kind == "timeout":
        return TaskTimeout(text)
    if kind == "rejected":
        return KeyConflict(f"{key}: {text}")
    error = serialize.loads_error(payload, text)
    if origin != key:
        error.add_note(f"zdist: {key} failed because {origin}, on which it depends, did")
    return error


class Base:
    """A client's state; see `zdist.client.client.Client`."""

    asynchronous: bool
    address: str
    name: str
    loop: asyncio.AbstractEventLoop | None
    _memory: SharedMemory | None = None  # for large arguments and scattered data, and a look into that of workers
    status: str
    direct: bool | None

    def _set_up(self, ledger: Ledger, nonce: str) -> None:
        self._ledger = ledger
        self._driver: Driver | None = None
        self._lock: threading.RLock | threading._RLock = threading.RLock()
        self._dropped: deque[Entry] = ledger.dropped
        self._nonce = nonce
        self._counter = itertools.count()
        self._pid = os.getpid()
        self._pumps: weakref.WeakSet[Any] = weakref.WeakSet()  # threads and tasks that gather queues
        self._heard: list[int] = []
        self._subscriptions: dict[str, Any] = {}
        self._awake: dict[asyncio.AbstractEventLoop, list[asyncio.Future[bool]]] = {}
        self._worker: Any = None  # whose tasks use this client
        self._chores: queue.SimpleQueue[Callable[[], object] | None] | None = None

    def inhabit(self, worker: Any) -> None:
        """Serve the tasks of this worker: they get what it holds as the object that it is."""
        self._worker = worker
        self._ledger.collections.nearby = worker.held

    @property
    def cluster_id(self) -> str:
        """Names the cluster that this client is connected to."""
        return self._ledger.cluster

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a Client cannot be pickled: a task that needs one calls get_client() for its own, and what has one as an "
            "attribute must leave it out"
        )

    # --- being usable ------------------------------------------------------------------------------

    def _usable(self) -> Driver:
        """The driver, or an error that says why there is none."""
        driver = self._driver
        if driver is None or self._ledger.over is not None:
            raise self._unusable()
        return driver

    def _unusable(self) -> Exception:
        if self.status == "forked":
            return ClusterClosed(
                f"client {self.name} was made before this process was forked and its sockets belong to process "
                f"{self._pid}; make a new Client here"
            )
        if self._ledger.over is not None:
            return ClusterClosed(f"client {self.name} of {self.address}: {self._ledger.over[1]}")
        if self.status == "new":
            return RuntimeError("the asynchronous client was not started: `await client` first, or use `async with`")
        return ClusterClosed(f"client {self.name} of {self.address} is {self.status}")

    def hindrance(self) -> str:
        """What is known to keep results from coming, as the end of an error's text; "" if nothing is."""
        reasons = [] if self._driver is None or not self._driver.away else [self._driver.away]
        for tasks, why in self._ledger.starved:
            reasons.append(f"1 task waits: {why}" if tasks == 1 else f"{tasks} tasks wait: {why}")
        return "".join(f"; {reason}" for reason in reasons)

    # --- waiting -----------------------------------------------------------------------------------

    def block(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """Drive the sockets in this thread until ``until()`` is true or ``timeout`` seconds are over; returns which.

        In a task, its thread is lent to the worker meanwhile. Raises RuntimeError on the thread of a running event
        loop if this client belongs to it, ClusterClosed when the client is closed.
        """
        if until():
            return True
        driver = self._usable()
        self._refuse_to_block()
        with context.away():
            try:
                return driver.drive(until, timeout)
            except ClusterClosed:
                if until():  # closing has settled what was waited for
                    return True
                raise

    def _refuse_to_block(self) -> None:
        """A blocking call on the thread of an event loop that an asynchronous client, this or another, runs on.

        Nothing on that loop goes on meanwhile, so waiting for what depends on it would never end. A synchronous client
        on a loop without one (a notebook's, for instance) may block.
        """
        loop = asyncio._get_running_loop()
        if loop is None:
            return
        for client in list(open_clients):
            if client.asynchronous and client.loop is loop:
                raise RuntimeError(
                    f"this call would block the event loop that the asynchronous client {client.name} runs on: use "
                    "asynchronous=True and await it, or call it in a thread (asyncio.to_thread)"
                )

    def _sync(self, work: Coroutine[Wait, bool, T], asynchronous: bool | None = None) -> T | Awaitable[T]:
        """Run a waiting coroutine here, or hand out an awaitable of it."""
        if self.asynchronous if asynchronous is None else asynchronous:
            return self._later(work)
        if asyncio._get_running_loop() is not None:
            try:
                self._refuse_to_block()
            except RuntimeError:
                work.close()
                raise
        return self._now(work)

    def _now(self, work: Coroutine[Wait, bool, T]) -> T:
        try:
            step = work.send(None)  # type: ignore[arg-type]
            while True:
                deadline = step.deadline
                ready = self.block(
                    step.signal.ready, None if deadline is None else max(0.0, deadline - time.monotonic())
                )
                step = work.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            work.close()

    async def _later(self, work: Coroutine[Wait, bool, T]) -> T:
        try:
            step = work.send(None)  # type: ignore[arg-type]
            while True:
                step = work.send(await self._ready(step))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            work.close()

    async def _ready(self, step: Wait) -> bool:
        signal = step.signal
        loop = asyncio.get_running_loop()
        if not signal.ready():
            context.leave()
        while True:
            done: asyncio.Future[bool] = loop.create_future()
            with self._lock:
                if signal.ready():
                    return True
                self._usable().wake()
                signal.notify = partial(self._awaken, loop, done)
            left = None if step.deadline is None else step.deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            try:
                async with asyncio.timeout(left):  # until Python 3.12 wait_for loses cancellations
                    await done
            except TimeoutError:
                return signal.ready()
            finally:
                signal.notify = None

    def _awaken(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[bool]) -> None:
        """Complete an asyncio future from the driver's turn; one call into the loop for all of a turn."""
        waiting = self._awake.get(loop)
        if waiting is not None:
            waiting.append(done)
            return
        self._awake[loop] = [done]
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
            loop.call_soon_threadsafe(self._deliver, loop)
            return
        del self._awake[loop]

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            waiting = self._awake.pop(loop, [])
        for done in waiting:
            if not done.done():
                done.set_result(True)

    def _unwait(self, signal: Signal, entries: Iterable[Entry]) -> None:
        """The caller has given up: leave no trace of it."""
        if signal.left > 0:
            with self._lock:
                for entry in entries:
                    if entry.waiters is not None and signal in entry.waiters:
                        entry.waiters.remove(signal)

    def _await_entries(self, entries: Iterable[Entry]) -> Signal:
        """A signal that is ready when all of these are settled. Call with the lock held."""
        signal = Signal(0)
        for entry in entries:
            if entry.status == PENDING:
                signal.left += 1
                if entry.waiters is None:
                    entry.waiters = [signal]
                else:
                    entry.waiters.append(signal)
        return signal

    async def _done(self, futures: Iterable[Future]) -> None:
        """Wait until all of these are done, whichever way; the caller keeps them."""
        entries = list(dict.fromkeys(future._entry for future in futures))
        with self._lock:
            signal = self._await_entries(entries)
        try:
            await Wait(signal)
        finally:
            self._unwait(signal, entries)

    def _ask(self, what: str, args: Any = None, timeout: float | None = None, asynchronous: bool | None = None) -> Any:
        """Put a question to the broker and wait for the answer."""
        return self._sync(self._asking(what, args, timeout), asynchronous)

    async def _asking(self, what: str, args: Any, timeout: float | None) -> Any:
        self._usable()
        with self._lock:
            reply = self._ledger.ask(what, args)
        return await self._answer(reply, timeout, what)

    async def _answer(self, reply: Reply, timeout: float | None, what: str) -> Any:
        """Wait for the broker's answer. Raises TimeoutError, or ZdistError with the broker's text."""
        with self._lock:
            signal = Signal(0 if reply.done else 1)
            reply.waiters = [signal]
        deadline = None if timeout is None else time.monotonic() + timeout
        if not await Wait(signal, deadline):
            with self._lock:
                for req in [req for req, known in self._ledger.replies.items() if known is reply]:
                    del self._ledger.replies[req]
            raise TimeoutError(
                f"{what}: no answer from the broker at {self.address} within {timeout:g} s{self.hindrance()}"
            )
        if not reply.ok:
            raise self._unusable() if self._ledger.over is not None else ZdistError(f"{what}: {reply.value}")
        return reply.value

    # --- telling -----------------------------------------------------------------------------------

    def watch(self, futures: Iterable[Future], notify: Callable[[Future], object]) -> None:
        """Call ``notify(future)`` exactly once for each when it is done, at once if it is.

        It may be called in the thread that drives, with the lock held: it must not block. Raises ClusterClosed in a
        forked child for one that is not done: nobody would tell.
        """
        done = []
        with self._lock:
            for future in futures:
                entry = future._entry
                if entry.status != PENDING:
                    done.append(future)
                elif self.status == "forked":
                    raise self._unusable()
                elif entry.waiters is None:
                    entry.waiters = [_Watch(future, notify)]
                else:
                    entry.waiters.append(_Watch(future, notify))
        for future in done:
            notify(future)

    def unwatch(self, futures: Iterable[Future], notify: Callable[[Future], object]) -> None:
        """Undo `watch` for those of these that are not done."""
        with self._lock:
            for future in futures:
                entry = future._entry
                if entry.waiters is not None:
                    entry.waiters = [
                        waiter for waiter in entry.waiters if type(waiter) is not _Watch or waiter.notify != notify
                    ]

    def _add_callback(self, future: Future, fn: Callable[[Future], object]) -> None:
        self.watch([future], lambda settled: self._chore(lambda: fn(settled)))

    def _chore(self, chore: Callable[[], object]) -> None:
        """Run something that may block: on the loop of an asynchronous client while there is one, else on a thread."""
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(chore)
                return
            except RuntimeError:  # closed: the client has outlived it
                pass
        with self._lock:
            if self._chores is None:
                self._chores = queue.SimpleQueue()
                thread = threading.Thread(
                    target=_do_chores, args=(self._chores,), name=f"zdist-{self.name}-callbacks", daemon=True
                )
                thread.start()
        self._chores.put(chore)

    def handle(self, seed: Seed) -> Any:
        """A handle on the actor that a seed stands for."""
        raise NotImplementedError

    def holds(self, key: str) -> bool:
        """Does anybody here want this key?"""
        return key in self._ledger.entries

    def forget(self, futures: Iterable[Future]) -> None:
        """Let these tasks run to their end whoever holds their futures; see ``fire_and_forget``."""
        driver = self._usable()
        with self._lock:
            self._ledger.forget([future._entry for future in futures])
        driver.wake()

    # --- futures of this client ----------------------------------------------------------------------

    def _adopt(self, key: str) -> Entry:
        """Join a key that the cluster knows."""
        driver = self._usable()
        with self._lock:
            entry = self._ledger.want((key,))[0]
        driver.wake()
        return entry

    def _own(self, futures: Any) -> list[Future]:
        """The futures in a container, those of other clients of the same cluster joined by this one.

        Raises ValueError for a future of another cluster.
        """
        return self._joined(flatten(futures)[0])

    def _joined(self, futures: list[Future]) -> list[Future]:
        """The same for a list of futures; all are looked at before the first is joined."""
        others = [future for future in futures if future.client is not self]
        if not others:
            return futures
        for future in others:
            other = future.client
            if other.cluster_id != self.cluster_id:
                raise ValueError(
                    f"future {future.key} belongs to cluster {other.cluster_id} at {other.address}, this client to "
                    f"cluster {self.cluster_id} at {self.address}; gather it with the client that made it"
                )
        return [future if future.client is self else self._join(future) for future in futures]

    def _join(self, future: Future) -> Future:
        known = future.key in self._ledger.entries
        joined = Future(future.key, self)  # type: ignore[arg-type]
        if future._held and not known:
            lent = Lent(future)
            with self._lock:
                if joined._entry.status == PENDING:
                    joined._entry.waiters = [*(joined._entry.waiters or ()), lent]
        return joined


class _Watch:
    """Waiter: tell somebody about a future."""

    __slots__ = ("future", "notify")

    def __init__(self, future: Future, notify: Callable[[Future], object]) -> None:
        self.future = future
        self.notify = notify

    def resolved(self, entry: Entry, /) -> None:
        self.notify(self.future)


def _do_chores(chores: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    while True:
        chore = chores.get()
        if chore is None:
            return
        try:
            chore()
        except BaseException:  # also SystemExit: others wait for this thread
            import logging

            logging.getLogger("zdist.client").exception("a done callback failed")
        del chore  # it may hold a future, and the next may be long in coming
