"""``concurrent.futures`` on a cluster: an Executor whose futures are the standard ones."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from zdist import context, serialize
from zdist.client.client import Client
from zdist.client.standard import LOG, ExecutorFuture, Results, seconds_left
from zdist.client.submitting import options_of
from zdist.client.wrappers import chunked, initialised
from zdist.errors import InitializerFailed

__all__ = ["ZdistExecutor"]

LOOK: Final = 0.25  # seconds between looks, while the interpreter ends, whether waiting is of any use;
PATIENCE: Final = 10.0  # after so many without a broker or workers it is not: those that died are replaced faster

_executors: weakref.WeakSet[ZdistExecutor] = weakref.WeakSet()
_exiting = False


class ZdistExecutor(concurrent.futures.Executor):
    """A ``concurrent.futures.Executor`` on a cluster: semantics of CPython 3.14's executors, by processes elsewhere.

    Parameters:
        client: a Client, which stays open; or an address or cluster, or None (in a task the client of its worker, else
            a `LocalCluster` of one-threaded workers), for a client that is closed at `shutdown`.
        max_workers: so many tasks of this executor are with the cluster at once, and the others wait here. They count
            as running from then on, so ``cancel`` is exact. None: all go to the cluster at once, which is several times
            as fast for short tasks, and are "pending" until they are done, as the cluster does not tell what runs:
            ``cancel`` gives up what has started, too, whose result is then thrown away. It is also the number of
            workers of a cluster of its own; default there: the number of cores.
        initializer, initargs: ``initializer(*initargs)`` runs once in each worker process before its first task of
            this executor, whenever that process comes; other executors may use the same process. If it raises, the
            executor is broken. Both are pickled now. Functions of ``__main__`` travel by value, each with globals of
            its own, so what it sets for others belongs into a module.
        pure: True names results by function and arguments, so that equal calls are computed once; see `Client.submit`.
        workers, allow_other_workers, resources, tags, retries, priority, timeout: of all tasks, see `Client.submit`.

    A task's exception is the one that it raised. One whose workers were killed too often gets `KilledWorker`, which is
    no BrokenExecutor, since the executor works on; one that was cancelled by somebody else gets a CancelledError that
    says why. Calls that cannot be pickled fail by their future. Arguments may hold zdist's futures (not standard ones).
    Callbacks run on the client's thread for them, one after the other (on the loop of an asynchronous client).

    When the interpreter ends it waits for what is unfinished, unless no broker or no worker was there for 10 s.

    Raises ValueError and TypeError for options that cannot be, SerializationError for an initializer that cannot be
    pickled, and what `Client` raises.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        pure: bool = False,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        tags: Any = None,
        retries: int | None = None,
        priority: int = 0,
        timeout: float | str | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._options = options_of(workers, resources, retries, priority, allow_other_workers, tags, timeout)
        self._pure = pure
        self._limit = max_workers
        self._ident = secrets.token_hex(8)
        self._initializer = b""
        if initializer is not None:
            self._initializer = serialize.dumps((initializer, tuple(initargs)), what="initializer").tobytes()
        self._wrapped: tuple[Any, Any] = (None, None)  # the last function, and what is sent for it
        self._lock = threading.Lock()
        self._open: dict[ExecutorFuture, None] = {}  # not done, in the order of submission
        self._waiting: deque[ExecutorFuture] = deque()  # not sent
        self._flying = 0  # sent and not done, where their number is limited
        self._shut = False
        self._unattended = False  # shut down, and nobody waits to close the client
        self._broken = ""  # why
        self._owns_client = False
        self.client: Client = self._connect(client)
        self._results = Results(self.client, self._over)
        _executors.add(self)

    def _connect(self, target: Any) -> Client:
        if isinstance(target, Client):
            return target
        task = context.current.get()
        if target is None and task is not None:
            return context.client_of(task.worker)  # type: ignore[no-any-return]
        if type(target) is int:
            raise TypeError(
                f"ZdistExecutor takes a client or an address first; for {target} tasks write max_workers={target}"
            )
        self._owns_client = True
        if target is None:
            return Client(n_workers=self._limit, threads_per_worker=1, set_as_default=False)
        return Client(target, set_as_default=False)

    # --- submitting ----------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ExecutorFuture:
        """Have ``fn(*args, **kwargs)`` run on a worker. As in concurrent.futures; thread-safe.

        Raises:
            RuntimeError: after `shutdown`, while the interpreter ends, or (ClusterClosed) without a usable client.
            InitializerFailed: the initializer has failed.
            TypeError: ``fn`` is no function.
        """
        if not callable(fn):
            raise TypeError(f"submit takes a function first, got {type(fn).__name__}")
        future = ExecutorFuture(self._results, (fn, args, kwargs))
        with self._lock:
            if self._broken:
                raise InitializerFailed(self._broken)
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _exiting:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            self.client._usable()
            self._open[future] = None
            starts = self._limit is None or self._flying < self._limit
            if not starts:
                self._waiting.append(future)
            elif self._limit is not None:
                self._flying += 1
        started = not starts
        try:
            started = started or self._start(future)
        finally:
            if not started and self._limit is not None:
                self._next()
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Like the builtin ``map``, on the cluster; results come in order. Semantics: CPython 3.14.

        Parameters:
            fn, iterables: the function, and as many iterables as it takes arguments; the shortest ends it.
            timeout: seconds from now after which a result that is not here is a TimeoutError.
            chunksize: so many calls are one task.
            buffersize: so many tasks are submitted ahead of the results that were taken, and the iterables are read no
                further; None: all at once.

        Raises ValueError and TypeError for numbers that cannot be. The iterator raises what a call raised; when it is
        closed or has raised, what is not done is cancelled.
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        end = None if timeout is None else time.monotonic() + timeout
        calls: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        function = fn
        if chunksize > 1:
            function = chunked(fn)
            calls = ((chunk,) for chunk in iter(partial(_take, calls, chunksize), []))
        ahead = deque(self.submit(function, *args) for args in itertools.islice(calls, buffersize))
        results = self._iterate(function, calls if buffersize is not None else iter(()), ahead, end)
        return results if chunksize == 1 else _unchunked(results)

    def _iterate(
        self,
        function: Callable[..., Any],
        calls: Iterator[tuple[Any, ...]],
        ahead: deque[ExecutorFuture],
        end: float | None,
    ) -> Generator[Any, None, None]:
        try:
            while ahead:
                for args in itertools.islice(calls, 1):
                    ahead.append(self.submit(function, *args))
                yield _result_or_cancel(ahead.popleft(), end)
        finally:
            for future in ahead:
                future.cancel()

    def _start(self, future: ExecutorFuture) -> bool:
        """Hand it to the cluster; False if it was cancelled before, or cannot be handed on."""
        call, future._call = future._call, None
        if call is None or (self._limit is not None and not future.begin()):
            return False
        fn, args, kwargs = call
        try:
            remote = self.client._submit_call(self._prepared(fn), args, kwargs, None, self._pure, self._options)
        except BaseException as exc:
            if future.claim():
                self._results.finish(future, (None, exc))
            if not isinstance(exc, Exception):
                raise
            return False
        future.sent(remote)
        return True

    def _prepared(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function that is sent. The same for the same one, so that it is pickled once."""
        if not self._initializer:
            return fn
        known, wrapped = self._wrapped
        if known is not fn:
            wrapped = initialised(fn, self._ident, self._initializer)
            self._wrapped = (fn, wrapped)
        return wrapped  # type: ignore[no-any-return]

    def _next(self) -> None:
        """One of a limited number has ended: another takes its place."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._flying -= 1
                    return
                future = self._waiting.popleft()
            if self._start(future):
                return

    def _over(self, future: ExecutorFuture, error: BaseException | None = None) -> None:
        """This future has its end: let go of what it stood for, and let the next begin."""
        sent = future._remote is not None
        future._call = future._remote = None
        self._forget(future)
        if isinstance(error, InitializerFailed) and error.executor == self._ident:
            self._break(error)
        if sent and self._limit is not None:
            self._next()

    def _forget(self, future: ExecutorFuture) -> None:
        with self._lock:
            self._open.pop(future, None)
            last = self._unattended and not self._open
        if last:
            self.client.close()

    def _break(self, error: InitializerFailed) -> None:
        """Nothing of this executor can run: say so once where the standard executors do, and to all that wait."""
        with self._lock:
            if self._broken:
                return
            self._broken = str(error)
            self._waiting.clear()
            left = list(self._open)
        LOG.critical("Exception in initializer:", exc_info=error)
        for future in left:
            if future.claim():
                broken = InitializerFailed(self._broken)
                broken.__cause__ = error.__cause__
                self._results.finish(future, (None, broken))

    # --- ending --------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks. As in concurrent.futures; idempotent.

        Parameters:
            wait: until all futures are done and their callbacks have run.
            cancel_futures: cancel those that do not run, as far as is known here.

        A client of its own is closed as soon as all futures are done. Raises RuntimeError instead of blocking the event
        loop that an asynchronous client runs on.
        """
        with self._lock:
            self._shut = True
            self._unattended = self._owns_client and not wait
            left = list(self._open)
        if cancel_futures:
            for future in reversed(left):  # none may start because another was cancelled
                future.cancel()
        if wait:
            if left:
                self.client._refuse_to_block()
            for future in left:
                future._help(None)
                concurrent.futures.wait((future,))
            self._results.await_callbacks()
        if self._owns_client and (wait or not self._open):
            self.client.close()

    def _wait_at_exit(self) -> None:
        client = self.client
        hindered = time.monotonic()
        while self._open and client._driver is not None:
            if client.loop is not None and not client.loop.is_running():  # nothing is delivered any more
                return
            if not client.hindrance():
                hindered = time.monotonic()
            elif time.monotonic() - hindered > PATIENCE:
                return
            concurrent.futures.wait(list(self._open), LOOK)

    def __repr__(self) -> str:
        state = "broken" if self._broken else "shut down" if self._shut else f"{len(self._open)} open"
        return f"<ZdistExecutor: {state}, {self.client!r}>"


def _take(calls: Iterator[tuple[Any, ...]], size: int) -> list[tuple[Any, ...]]:
    return list(itertools.islice(calls, size))


def _result_or_cancel(future: ExecutorFuture, end: float | None) -> Any:
    try:
        return future.take(seconds_left(end))
    finally:
        future.cancel()
        del future  # a traceback would keep it


def _unchunked(results: Generator[list[Any], None, None]) -> Generator[Any, None, None]:
    with contextlib.closing(results):
        for chunk in results:
            chunk.reverse()
            while chunk:
                yield chunk.pop()  # and keep no reference


def _at_exit() -> None:
    global _exiting
    _exiting = True
    for executor in list(_executors):
        executor._wait_at_exit()


# before the threads of the program are joined and atexit's functions close clients, as the standard executors do
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
