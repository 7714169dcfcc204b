"""Actors: each object lives on a thread of its own, which does its calls one after the other.

So methods need no locks, and wait neither for another actor nor for a thread of the pool; a call costs two hand-overs.
Coroutines run on that thread as well, on an event loop that is there from the first one on and turns while no call
waits: ``async`` methods of one actor take turns at their awaits, and no two threads are ever in one object.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any

from zdist import context, limits
from zdist.core.actors import Life, Perform, performed, too_large
from zdist.errors import SerializationError
from zdist.protocol.actors import CALL, Seed
from zdist.protocol.messages import Buffer, Key, Payload
from zdist.serialize import dumps, dumps_error, loads
from zdist.worker.results import raw

if TYPE_CHECKING:
    import asyncio

    from zdist.core.worker import WorkerMachine
    from zdist.worker.executor import Executor

__all__ = ["Body", "end_all", "plant", "run_coroutine"]


def plant(executor: Executor, instance: Any, key: str, attempt: int, name: str) -> Seed:
    """The seed of a new actor, which lives as long as the seed does."""
    machine = executor.machine
    kind = type(instance)
    methods = tuple([n for n in dir(kind) if not n.startswith("__") and _is_method(inspect.getattr_static(kind, n))])
    member = (machine.session, machine.address, machine.name, machine.host, machine.node)
    seed = Seed(key, attempt, member, name, methods)
    body = Body(executor, instance, key)
    seed.life = Life(body)
    weakref.finalize(seed.life, body.put, None).atexit = False
    return seed


def _is_method(found: Any) -> bool:
    """Whether what stands in a class is called; most of what makes methods there cannot be called itself."""
    return callable(found) or isinstance(found, classmethod | functools.partialmethod | functools.singledispatchmethod)


def end_all(machine: WorkerMachine) -> None:
    """The worker ends, and with it all actors; those in the middle of a call when that has returned."""
    for entry in list(machine.store.entries.values()):
        if type(entry.value) is Seed and entry.value.life is not None:
            entry.value.life.body.put(None)


class Body:
    """An actor's object and its thread. To its methods it is their task (`zdist.context.TaskContext`), one outside of
    the pool."""

    seceded = True

    def __init__(self, executor: Executor, instance: Any, key: str) -> None:
        self.executor = executor
        self.instance = instance
        self.key = key
        self.worker = executor.worker
        self.calls: queue.SimpleQueue[Perform | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # from the first coroutine on
        self.stirred: asyncio.Event | None = None  # a call has come, or a coroutine has ended
        self.running: set[asyncio.Task[None]] = set()

    def secede(self) -> None:
        """It holds no thread of the pool."""

    def rejoin(self) -> None:
        """It takes none."""

    def output(self, stream: str, text: str) -> None:
        """Show text at the clients that want the actor's key."""
        with self.executor.driver.lock:
            self.executor.machine.output(stream, text, self.key)
        self.executor.driver.wake()

    # --- from other threads ------------------------------------------------------------------------

    def put(self, call: Perform | None) -> None:
        """Do a call after those that were put before it; None ends the actor, coroutines that still wait are cancelled.

        One thread at a time; never blocks.
        """
        self.calls.put(call)
        if self.thread is None:  # also for the end alone: nothing of the object happens on any other thread
            name = f"zdist-{self.worker.name}-actor-{self.key}"
            self.thread = threading.Thread(target=self._main, name=name, daemon=True)
            self.thread.start()
        elif self.loop is not None and self.stirred is not None:
            with contextlib.suppress(RuntimeError):  # closed
                self.loop.call_soon_threadsafe(self.stirred.set)

    # --- the actor's own thread ----------------------------------------------------------------------

    def _main(self) -> None:
        context.current.set(self)
        while (call := self._next()) is not None:
            self._perform(call)
            del call  # and its arguments
        if self.loop is not None:
            for task in list(self.running):
                task.cancel()
                self.loop.run_until_complete(task)
            self.loop.close()
        self.instance = None

    def _next(self) -> Perform | None:
        while self.running:
            assert self.loop is not None and self.stirred is not None
            self.stirred.clear()
            try:
                return self.calls.get_nowait()
            except queue.Empty:
                self.loop.run_until_complete(self.stirred.wait())
        return self.calls.get()

    def _perform(self, call: Perform) -> None:
        try:
            value = getattr(self.instance, call.name)
            if call.what == CALL:
                args, kwargs = loads(raw(call.args), what=f"arguments of {call.name} of actor {self.key}")
                value = value(*args, **kwargs)
                if inspect.iscoroutine(value):
                    self._begin(call, value)
                    return
        except BaseException as exc:  # also SystemExit: it is the call that ends
            self._failed(call, exc)
        else:
            self._returned(call, value)

    def _begin(self, call: Perform, coroutine: Any) -> None:
        """Run a coroutine up to where it first waits, before the next call begins."""
        import asyncio  # a worker that runs no coroutines starts sooner without it

        if self.loop is None:
            self.stirred = asyncio.Event()
            self.loop = asyncio.new_event_loop()
        task = self.loop.create_task(self._finish(call, coroutine))
        self.running.add(task)
        task.add_done_callback(self._finished)
        self.loop.run_until_complete(asyncio.sleep(0))

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        assert self.stirred is not None
        self.stirred.set()

    async def _finish(self, call: Perform, coroutine: Any) -> None:
        try:
            value = await coroutine
        except BaseException as exc:
            self._failed(call, exc)
        else:
            self._returned(call, value)

    # --- answers -------------------------------------------------------------------------------------

    def _returned(self, call: Perform, value: Any) -> None:
        try:
            blob = dumps(value, what=f"what {call.name} of actor {self.key} returned")
            stream = blob.tobytes()
            if reason := too_large(stream):
                raise SerializationError(
                    f"what {call.name} of actor {self.key} returned is too large: {reason}; return a future of it"
                )
        except Exception as exc:
            self._failed(call, exc)
        else:
            payload = stream if len(stream) < limits.OWN_FRAME else Buffer(stream)
            self._answer(call, True, payload, blob.refs, value if blob.refs else None)

    def _failed(self, call: Perform, exc: BaseException) -> None:
        if exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
            exc.__traceback__ = exc.__traceback__.tb_next  # without our own frame
        self._answer(call, False, dumps_error(exc), (), None)

    def _answer(self, call: Perform, ok: bool, payload: Payload, refs: tuple[Key, ...], kept: Any) -> None:
        executor = self.executor
        with executor.driver.lock:
            performed(executor.machine, call, ok, payload, refs, kept)
        executor.driver.wake()


def run_coroutine(coroutine: Any) -> Any:
    """A task's coroutine, run to its end on an event loop of its own, on the task's thread."""
    import asyncio

    return asyncio.run(coroutine)
