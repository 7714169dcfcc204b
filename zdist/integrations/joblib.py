"""The joblib backend "zdist": ``Parallel`` calls, and with them scikit-learn's ``n_jobs``, run on a cluster.

Importing this module registers it. That happens by itself when a client is made while joblib is already imported.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    register_parallel_backend,
)

from zdist import context
from zdist.client.future import Future
from zdist.client.shared_arrays import ReadOnly, Sharing, check_options, is_array
from zdist.errors import ClusterClosed

__all__ = ["ZdistBackend"]

LEVELS: Final = 3  # of Parallel calls within each other that use the cluster; those further down run where they are
WORKERS_TIMEOUT: Final = 10.0  # seconds to wait for the first worker
INHERITED: Final = ("workers", "allow_other_workers", "tags", "retries", "priority")  # by calls inside tasks
OPTIONS: Final = (*INHERITED, "resources", "timeout")


class ZdistBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """What ``joblib.parallel_config("zdist", ...)`` makes. Parameters are those of joblib's dask backend.

    ``n_jobs`` is the number of batches that are out at the same time; -1, the default, is all threads of the cluster,
    without a limit on what waits at the workers. As ever with joblib, ``n_jobs=1`` runs in the calling thread, and so
    does -1 on a cluster of one thread.

    Arrays of ``max_nbytes`` (joblib's parameter, 1 MB) or more are sent once for each ``Parallel`` call and are
    read-only in the tasks, as with joblib's memory mapping; ``mmap_mode=`` other than "r" gives each batch a copy.

    In a task, ``Parallel(n_jobs=...)`` uses the same cluster, with precedence over what its caller still has to start;
    without ``n_jobs`` it runs in its task.

    Parameters:
        client: a synchronous client; default: the current one when a call begins.
        scatter: a list of objects that are given as arguments (as they are, not inside others), sent to all workers
            once for as long as the backend is configured. Arrays among them are read-only in the tasks.
        wait_for_workers_timeout: seconds that a call with ``n_jobs=-1`` waits for the workers of a local cluster, or
            for a first one elsewhere.
        submit_options: ``workers``, ``allow_other_workers``, ``resources``, ``retries``, ``priority``, ``tags`` and
            ``timeout`` of ``Client.submit``, for each batch. Calls inside tasks have all of them but ``resources`` and
            ``timeout``.

    Raises:
        ValueError: there is no client, or an option cannot be.
        TypeError: an unknown option, or an asynchronous client.
        TimeoutError: no worker has come in time.
    """

    supports_retrieve_callback = True
    supports_sharedmem = False
    uses_threads = False
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        *,
        client: Any = None,
        scatter: list[Any] | tuple[Any, ...] | None = None,
        wait_for_workers_timeout: float = WORKERS_TIMEOUT,
        **submit_options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level)
        if unknown := [name for name in submit_options if name not in OPTIONS]:
            known = ", ".join(("client", "scatter", "wait_for_workers_timeout", *OPTIONS))
            raise TypeError(f"the joblib backend 'zdist' has no option {', '.join(unknown)}; it takes {known}")
        check_options(**submit_options)
        self.parallel: Any = None
        self._client = client
        self._options = submit_options
        self._workers_timeout = wait_for_workers_timeout
        self._threads = 0  # of the cluster; in a task, as its caller found them
        self._busy = False  # serves self.parallel
        self._call: _Call | None = None
        self._limit: int | None = None
        self._nbytes: int | None = None
        self._scattered = self._scatter(scatter)

    def _scatter(self, objects: Any) -> dict[int, tuple[Any, Future]]:
        """The futures of scattered objects by identity; the objects beside them, so that these stay theirs."""
        if objects is None:
            return {}
        if not isinstance(objects, list | tuple):
            raise TypeError(f"scatter= takes a list or tuple of objects, got {type(objects).__name__}")
        frozen = [ReadOnly(obj) if is_array(obj) else obj for obj in objects]
        futures = self._current().scatter(frozen, broadcast=True, hash=False)
        return {id(obj): (obj, future) for obj, future in zip(objects, futures, strict=True)}

    def _current(self) -> Any:
        client = self._client or context.find_client()
        if client is None:
            raise ValueError("the joblib backend 'zdist' has no client: make one with zdist.Client(...) first")
        if getattr(client, "asynchronous", None) is None:
            raise TypeError(f"client= takes a zdist.Client, got {type(client).__name__}: {client!r:.80}")
        if client.asynchronous:
            raise TypeError("the joblib backend 'zdist' needs a synchronous client: give it one by client=")
        return client

    # --- what joblib asks for ------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many batches can run at the same time."""
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs > 0:
            return n_jobs
        if not self._threads or not self.nesting_level:
            self._threads = self._count()
        return max(self._threads + 1 + n_jobs, 1)

    def _count(self) -> int:
        client, chosen = self._current(), self._options.get("workers")
        if self._options.get("allow_other_workers"):
            chosen = None
        expected = max(1, getattr(client.cluster, "n_workers", 1))  # a cluster that has just begun is to be there
        client.wait_for_workers(expected, timeout=self._workers_timeout)
        threads: int = sum(client.nthreads(chosen).values())
        if not threads:
            raise ValueError(f"workers={chosen!r}: there is no such worker")
        return threads

    def configure(self, n_jobs: int = 1, parallel: Any = None, **settings: Any) -> int:
        """Serve a ``Parallel`` object; if another one is being served, a copy does it."""
        if self._busy and self.parallel is not parallel:
            raise FallbackToBackend(self._copy())
        self.parallel = parallel
        effective = self.effective_n_jobs(n_jobs)
        if n_jobs == -1:  # all of the cluster, be it a single thread: for 1 joblib would do it all in this process
            effective = max(effective, 2)
        self._busy = effective > 1  # else joblib runs it all and does not come back
        self._limit = None if n_jobs == -1 else effective
        self._nbytes = settings.get("max_nbytes") if settings.get("mmap_mode") == "r" else None
        return effective

    def _copy(self) -> ZdistBackend:
        copy = type(self)(self.nesting_level, client=self._client, **self._options)
        copy.default_n_jobs = self.default_n_jobs
        copy._workers_timeout = self._workers_timeout
        copy._threads = self._threads
        copy._scattered = self._scattered
        return copy

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """The backend of calls inside tasks; it is pickled with each batch."""
        level = (self.nesting_level or 0) + 1
        if level >= LEVELS:
            return SequentialBackend(nesting_level=level), None
        return _nested(
            level, self._threads, {name: self._options[name] for name in self._options if name in INHERITED}
        ), None

    def __reduce__(self) -> tuple[Any, ...]:
        return _nested, (self.nesting_level, self._threads, self._options)

    def start_call(self) -> None:
        level = self.nesting_level or 0  # what others wait for goes first
        options = {**self._options, "priority": self._options.get("priority", 0) + level}
        self._call = _Call(self._current(), self._nbytes, options, self._limit)

    def stop_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.close()

    def terminate(self) -> None:
        self._busy = False
        self.reset_batch_stats()

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> None:
        """Hand out a batch; ``callback`` gets its outcome, also when it cannot be handed out."""
        call = self._call
        assert call is not None and callback is not None
        if self._scattered:
            func.items = [
                (f, tuple(map(self._swap, args)), {name: self._swap(arg) for name, arg in kwargs.items()})
                for f, args, kwargs in func.items
            ]
        call.submit(func, callback)

    apply_async = submit  # its name before joblib 1.5

    def _swap(self, arg: Any) -> Any:
        known = self._scattered.get(id(arg))
        return arg if known is None else known[1]

    def retrieve_result_callback(self, out: tuple[BaseException | None, Any]) -> Any:
        error, results = out
        if error is not None:
            raise error
        return results

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what is out; what runs already runs to its end unseen."""
        if self._call is not None:
            self._call.abort()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """In a task, its thread is the worker's while joblib waits here."""
        task = context.current.get()
        if task is None or task.seceded:
            yield
            return
        task.secede()
        try:
            yield
        finally:
            if context.current.get() is task:  # else a generator outlives its task
                task.rejoin()


def _nested(level: int, threads: int, options: dict[str, Any]) -> ZdistBackend:
    """A backend of calls inside tasks; the client is found when a call begins."""
    backend = ZdistBackend(level, **options)
    backend.default_n_jobs = 1
    backend._threads = threads
    return backend


def _run(batch: Callable[[], list[Any]]) -> list[Any]:
    return batch()


class _Call:
    """A call of a ``Parallel`` object: its batches, and the thread that brings their outcomes to joblib.

    A thread for each call, because joblib takes the next tasks from the caller's iterator there, which may be slow or
    wait for another call.
    """

    def __init__(self, client: Any, nbytes: int | None, options: dict[str, Any], limit: int | None) -> None:
        self.client = client
        self.limit = limit
        self.sharing = Sharing(client, nbytes, options)
        self.lock = threading.Lock()
        self.out: dict[Future, Callable[[Any], object]] = {}
        self.waiting: deque[tuple[Any, Callable[[Any], object]]] = deque()  # beyond the limit
        self.done: queue.SimpleQueue[Any] = queue.SimpleQueue()  # futures; failed submissions; None at the end
        self.closed = False
        threading.Thread(target=self._collect, name=f"zdist-{client.name}-joblib", daemon=True).start()

    def submit(self, batch: Any, callback: Callable[[Any], object]) -> None:
        with self.lock:
            if self.limit is not None and len(self.out) >= self.limit:
                self.waiting.append((batch, callback))
                return
            self._submit(batch, callback)

    def _submit(self, batch: Any, callback: Callable[[Any], object]) -> None:
        try:
            future = self.sharing.submit(_run, batch)
        except Exception as error:  # joblib may be in the collecting thread here, and would wait for ever
            self.done.put((callback, error))
            return
        self.out[future] = callback
        self.client.watch([future], self.done.put)

    def _collect(self) -> None:
        while (done := self.done.get()) is not None and not self.closed:
            if isinstance(done, tuple):
                callback, error = done
                results = None
            else:
                error, results = _outcome(done)
                with self.lock:
                    callback = self.out.pop(done, None)
                    if callback is None:  # aborted meanwhile
                        return
                    while self.waiting and len(self.out) < (self.limit or 0):
                        self._submit(*self.waiting.popleft())
            callback((error, results))
            del done, callback, error, results  # the next may be long in coming

    def abort(self) -> None:
        self.close()
        with self.lock:
            self.waiting.clear()
            futures = list(self.out)
            self.out.clear()
        with contextlib.suppress(ClusterClosed):
            self.client.cancel(futures)

    def close(self) -> None:
        self.closed = True
        self.done.put(None)
        self.sharing.close()


def _outcome(future: Future) -> tuple[BaseException | None, Any]:
    """The exception as the task raised it, or the results."""
    try:
        error = future.exception()
        if error is None:
            return None, future.result()
    except BaseException as failure:
        return failure, None
    # joblib drops the traceback of what it raises
    if error.__traceback__ is not None:
        lines = traceback.format_tb(error.__traceback__)
        error.add_note("zdist: raised in a task\nTraceback (most recent call last):\n" + "".join(lines).rstrip())
    return error, None


register_parallel_backend("zdist", ZdistBackend)
