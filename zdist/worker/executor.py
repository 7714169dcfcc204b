"""The thread pool: threads that take tasks from the machine, run them and report.

A thread without work drives the sockets itself, so a lone small task is received, run and answered by one thread. In
between short tasks it turns the loop about every millisecond; before a task that is long, or of unknown length, it
hands the sockets over to the driver's background thread.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import CoroutineType
from typing import Any, Final, Protocol

from zdist import context, limits
from zdist.core.memory import Spill
from zdist.core.store import Entry
from zdist.core.task import Function, Input, Task
from zdist.core.worker import Freeze, RunCall, Share, WorkerMachine
from zdist.errors import ClusterClosed, SecededLimit, SerializationError
from zdist.protocol.actors import Seed
from zdist.serialize import dumps, dumps_error, loads, loads_args, loads_function
from zdist.transport.shm import SharedMemory
from zdist.transport.spill import SpillDirectory
from zdist.worker.actors import run_coroutine
from zdist.worker.calls import run_call
from zdist.worker.plugins import Plugins
from zdist.worker.results import freeze, freeze_kept, raw, type_name
from zdist.worker.slots import Slots

__all__ = ["Executor", "Running"]

TURN: Final = 0.001  # seconds between two turns of the loop while there is work
LONG: Final = 1000.0  # microseconds from which a task counts as long
NUDGE: Final = 0.05  # seconds after which a task that wants back into the pool looks again for a free thread

set_current: Final[Callable[[Any], object]] = context.current.set


class DriverLike(Protocol):
    """What the executor needs of `zdist.transport.driver.Driver`."""

    @property
    def lock(self) -> AbstractContextManager[Any]: ...
    @property
    def now(self) -> Callable[[], float]: ...
    def wake(self) -> None: ...
    def hand_over(self) -> None: ...
    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool: ...


class Running:
    """The task that a thread runs, as code inside it sees it (`zdist.context.TaskContext`)."""

    __slots__ = ("executor", "task")

    def __init__(self, executor: Executor, task: Task) -> None:
        self.executor = executor
        self.task = task

    @property
    def key(self) -> str:
        """Key of the task."""
        return self.task.key

    @property
    def attempt(self) -> int:
        """This start of it."""
        return self.task.attempt

    @property
    def worker(self) -> Any:
        """The worker that runs it."""
        return self.executor.worker

    @property
    def seceded(self) -> bool:
        """Has it left the thread pool?"""
        return self.task.seceded

    def secede(self) -> None:
        """Leave the thread pool, which gets another thread. Raises SecededLimit."""
        if not self.task.seceded:
            self.executor.secede(self.task)

    def rejoin(self) -> None:
        """Wait for a thread of the pool to become free and take its place."""
        if self.task.seceded:
            self.executor.rejoin(self.task)

    def output(self, stream: str, text: str) -> None:
        """Show text at the clients that want the key; ``stream`` is "out", "err", "warn" or "log"."""
        executor = self.executor
        with executor.driver.lock:
            executor.machine.output(stream, text, self.task.key)
        executor.driver.wake()


class Executor:
    """``threads`` threads for the tasks of a machine; ``worker`` is what tasks see as their worker."""

    def __init__(self, machine: WorkerMachine, driver: DriverLike, worker: Any, threads: int, slots: Slots) -> None:
        self.machine = machine
        self.driver = driver
        self.worker = worker
        self.threads = threads
        self.slots = slots
        self.plugins = Plugins(worker)
        self.closing = False
        self.returning: deque[threading.Event] = deque()  # tasks that want back into the pool
        self.loading = threading.RLock()  # functions are loaded one at a time, each once
        self.alive: dict[threading.Thread, Runner] = {}
        self.memory: SharedMemory | None = getattr(worker, "memory", None)
        self.spill = SpillDirectory(getattr(worker, "session", "w"))
        self.jobs: queue.SimpleQueue[Freeze | Share | Spill | None] = queue.SimpleQueue()
        self.freezer: threading.Thread | None = None

    def start(self) -> None:
        """Start the pool."""
        for _ in range(self.threads):
            self.spawn()

    def spawn(self) -> None:
        """One more thread."""
        runner = Runner(self)
        thread = threading.Thread(target=runner.main, name=f"zdist-{self.worker.name}-task", daemon=True)
        self.alive[thread] = runner
        thread.start()

    def stop(self, timeout: float) -> None:
        """End the threads that run no task within ``timeout`` seconds; those that do are left to themselves."""
        self.closing = True
        self.jobs.put(None)
        until = self.driver.now() + timeout
        for thread in list(self.alive):
            while thread.is_alive() and thread is not threading.current_thread() and self.driver.now() < until:
                self.driver.wake()
                thread.join(min(0.01, timeout))

    # --- leaving the pool and coming back -----------------------------------------------------------------

    def secede(self, task: Task) -> None:
        """A running task leaves the pool; a new thread takes its place."""
        with self.driver.lock:
            if not self.machine.seceded(task, back=False):
                raise SecededLimit(
                    f"task {task.key} cannot leave the thread pool of worker {self.worker.name}: "
                    f"{self.machine.memory.away} tasks have left it already and wait; nest fewer tasks within tasks"
                )
        if not self.closing:
            self.spawn()
        self.driver.hand_over()

    def rejoin(self, task: Task) -> None:
        """Wait until a thread of the pool gives up its place."""
        place = threading.Event()
        self.returning.append(place)
        self.driver.wake()
        while not place.wait(NUDGE) and not self.closing:
            self.driver.wake()  # a thread may have looked just before and now waits for the sockets
        with self.driver.lock:
            self.machine.seceded(task, back=True)
        self.driver.hand_over()

    def give_place(self) -> bool:
        """Called by a thread between tasks: is it to end, because of the executor or in favour of a task?"""
        if self.closing:
            return True
        try:
            place = self.returning.popleft()
        except IndexError:
            return False
        place.set()
        return True

    # --- functions -------------------------------------------------------------------------------------

    def load(self, function: Function) -> Any:
        """Unpickle a function, once. Raises SerializationError."""
        with self.loading:
            call = function.loaded
            if call is None:
                blob = function.blob
                assert blob is not None, "a task was started before its function came"
                try:
                    call = loads_function(raw(blob), function.digest)
                except BaseException as exc:
                    worker = self.worker
                    raise SerializationError(
                        f"function {function.name} could not be loaded on worker {worker.name} ({worker.address}): "
                        f"{type(exc).__name__}: {exc}"
                    ) from exc
                with self.driver.lock:
                    self.machine.loaded(function, call)
        return call

    def value_of(self, held: Entry, what: str) -> Any:
        """The object that the worker holds, one for all its tasks. Raises SerializationError."""
        value = held.value
        if held.has_value:  # in this order: an object that is put away loses the mark first
            return value
        value = loads(held.blob.pieces, what=what)
        with self.driver.lock:
            if held.has_value:  # another thread was faster
                return held.value
            held.value, held.has_value = value, True
        return value

    def handle(self, seed: Seed) -> Any:
        """A handle on an actor, of the client of the tasks here."""
        return context.client_of(self.worker).handle(seed)

    # --- the machine's commands --------------------------------------------------------------------------

    def freeze(self, command: Freeze | Share | Spill) -> None:
        """Queue a value to be turned into bytes, put into shared memory or on disk; never blocks."""
        if self.freezer is None:
            self.freezer = threading.Thread(target=self._freeze, name=f"zdist-{self.worker.name}-freeze", daemon=True)
            self.freezer.start()
        self.jobs.put(command)

    def _freeze(self) -> None:
        machine, driver = self.machine, self.driver
        while (command := self.jobs.get()) is not None:
            key, attempt = command
            with driver.lock:
                entry = machine.store.get(key)
                value = None if entry is None else entry.value
                blob = None if entry is None else entry.blob
                live = entry is not None and entry.has_value
                if entry is None or entry.attempt != attempt:
                    if type(command) is Spill:
                        machine.memory.gone(key, driver.now())
                    continue
            if type(command) is Spill:
                self._spill(command, value if live else blob, live)
                del entry, value, blob
                continue
            memory, keep, error = self.memory if type(command) is Share else None, True, ""
            if blob is None:
                blob, error, keep = freeze_kept(value, key, memory, attempt)
            elif memory is not None:
                blob = memory.write(key, attempt, blob) or blob
            with driver.lock:
                if blob is not None:
                    machine.frozen(key, attempt, blob, driver.now(), keep)
                else:
                    machine.unfreezable(key, attempt, error, driver.now())
            driver.wake()
            del entry, value, blob  # nothing stays alive while the next one is waited for

    def _spill(self, command: Spill, value: Any, live: bool) -> None:
        """Write a blob, or a ``live`` object."""
        key, attempt = command
        spilled = None
        with contextlib.suppress(Exception):  # what cannot be pickled has to stay
            blob = dumps(value, what=f"result {key}", share=True) if live else value  # there is no room for a copy
            if not (live and blob.refs):  # futures inside it live as long as the object does
                spilled = self.spill.write(blob.pieces)
        with self.driver.lock:
            self.machine.memory.spilled(key, attempt, spilled, self.driver.now())
        self.driver.wake()

    def call(self, command: RunCall) -> None:
        """Run a call in a thread of its own, as it may take long; never blocks."""

        def run() -> None:
            ok, payload = run_call(raw(command.payload), self.worker)
            with self.driver.lock:
                self.machine.called(command.req, ok, payload)
            self.driver.wake()

        threading.Thread(target=run, name=f"zdist-{self.worker.name}-call", daemon=True).start()


class Runner:
    """One thread of the pool."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.machine = executor.machine
        self.driver = executor.driver
        self.lock = executor.driver.lock
        self.now = executor.driver.now
        self.slot = executor.slots.take()
        self.task: Task | None = None  # that runs
        self.turned = 0.0  # when it last turned the loop
        self.out = False  # its task seceded and did not come back

    def main(self) -> None:
        """Take tasks until the executor stops, or another thread has this one's place."""
        try:
            self._loop()
        except ClusterClosed:
            pass  # the driver was closed first
        except (
            BaseException
        ) as exc:  # a defect of ours, as what tasks raise ends there: better no worker than half a one
            self.executor.worker.end(f"a thread of the pool failed: {type(exc).__name__}: {exc}", 1)
            raise
        finally:
            self.executor.slots.give(self.slot)
            self.executor.alive.pop(threading.current_thread(), None)
            if not self.executor.closing:
                self.driver.hand_over()

    def _loop(self) -> None:
        executor, machine, driver, lock, now = self.executor, self.machine, self.driver, self.lock, self.now

        def ready() -> bool:
            return machine.ready(now()) or executor.closing or bool(executor.returning)

        while not executor.give_place():
            if ready():
                driver.drive(ready, 0)
            else:
                driver.drive(ready)
            with lock:
                self.turned = now()
                task = machine.next_task(self.turned)
            while task is not None:
                task = self._run(task)
            driver.wake()  # another thread may drive, and sleep: it does not know what was done here
            if self.out:
                return

    def _run(self, task: Task) -> Task | None:
        """Run a task and report; the next one, or None when it is time for a turn of the loop."""
        function = task.function
        executor = self.executor
        machine = self.machine
        now = self.now
        if not 0.0 <= function.micros < LONG:
            self.driver.hand_over()
        self.task = task
        if executor.plugins.watching:
            executor.plugins.transition(task.key, "ready", "executing")
        started = now()
        self.slot.begin(task.key, task.attempt, started + task.limit if task.limit else 0.0)
        set_current(Running(executor, task))
        frozen = None
        crowded = machine.memory.crowded if machine.memory.limit else None
        try:
            call = function.loaded
            if call is None:
                call = executor.load(function)
                started = now()
            args, kwargs = loads_args(raw(task.args), self._resolve)
            value = call(*args, **kwargs)
            if type(value) is CoroutineType:
                value = run_coroutine(value)
            del args, kwargs
            # what a task here waits for stays an object, which it gets as it is
            deliver = 0 if context.wanted_here(executor.worker, task.key) else task.deliver
            frozen = freeze(value, deliver, task.key, machine.inline_result, executor.memory, task.attempt, crowded)
        except BaseException as exc:  # also SystemExit: it is the task that ends, never the worker
            error, text = _described(exc)
        ended = now()
        self.slot.end()
        set_current(None)
        self.task = None
        micros = int((ended - started) * 1e6)
        if executor.plugins.watching:
            executor.plugins.transition(task.key, "executing", "error" if frozen is None else "memory")
        with self.lock:
            self.out = task.seceded
            if frozen is not None:
                machine.finished(task, micros, value, type_name(value), frozen, ended)
            else:
                machine.failed(task, micros, error, text, ended)
            if ended - self.turned < TURN and not (self.out or executor.returning or executor.closing):
                return machine.next_task(ended)
        return None

    def _resolve(self, key: str) -> Any:
        """The value of a dependency of the task that runs; for an actor a handle."""
        value = self._find(key)
        return self.executor.handle(value) if type(value) is Seed else value

    def _find(self, key: str) -> Any:
        task = self.task
        assert task is not None
        source: Entry | Input | None = task.inputs.get(key)
        if source is None:
            raise SerializationError(f"the arguments of task {task.key} name {key}, which is not a dependency of it")
        if type(source) is Input:
            if source.payload is None:
                raise SerializationError(f"task {task.key} cannot have its argument {key}: {source.error}")
            if not source.value_known:
                source.value = loads(raw(source.payload), what=f"dependency {key} of task {task.key}")
                source.value_known = True
            return source.value
        assert type(source) is Entry
        return self.executor.value_of(source, f"dependency {key} of task {task.key}")


def _described(exc: BaseException) -> tuple[bytes, str]:
    """An exception's bytes, and what a person reads where these cannot be unpickled; without our own frame."""
    if exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
        exc.__traceback__ = exc.__traceback__.tb_next
    try:
        lines = traceback.format_exception(exc)
    except Exception:  # from the exception's own __str__ or __cause__
        lines = [f"{type(exc).__name__}, which cannot be shown"]
    return dumps_error(exc), "".join(lines)[-limits.MAX_TEXT :]
