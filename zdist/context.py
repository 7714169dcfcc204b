"""Who is running here: the current task and its worker, the default client, and the client factory for tasks.

The lowest layer beside errors and limits, so that ``client`` and ``worker`` can meet here without importing each other:
a worker's entry point puts a function that makes clients into ``client_factory``, tasks find their client through it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Protocol

__all__ = [
    "TaskContext",
    "as_current",
    "away",
    "client_factory",
    "client_of",
    "close_client_of",
    "current",
    "default_client",
    "drop_default",
    "find_client",
    "leave",
    "push_default",
    "wanted_here",
]


class TaskContext(Protocol):
    """What a worker tells about a task while it runs on one of its threads."""

    key: str
    worker: Any  # address, name, broker_address, token
    seceded: bool

    def secede(self) -> None:
        """Leave the worker's thread pool; no effect when out already. Raises SecededLimit."""

    def rejoin(self) -> None:
        """Wait for a free thread of the pool and take it; no effect when in it."""

    def output(self, stream: str, text: str) -> None:
        """Show text at the clients that want the task's key. Streams: "out", "err", "warn"."""


#: The task that the running thread (or coroutine) executes; set by the worker around each task.
current: ContextVar[TaskContext | None] = ContextVar("zdist_task", default=None)

#: Makes the client that tasks of a worker use; set by the worker's entry point.
client_factory: Callable[[Any], Any] | None = None

_chosen: ContextVar[Any] = ContextVar("zdist_client", default=None)
_defaults: list[weakref.ref[Any]] = []  # clients made with set_as_default, newest last
_clients: dict[int, tuple[Any, Any]] = {}  # id of a worker -> (the worker, its client)
_lock = threading.Lock()
_making = threading.Lock()  # making a client takes a while and must not hold up the defaults


class away:
    """Context manager around a blocking wait: the current task leaves its worker's thread pool and comes back after.

    So tasks that wait for other tasks never hold the threads that those need. Outside a task, or in one that has
    seceded already, it does nothing.
    """

    __slots__ = ("_task",)

    def __enter__(self) -> None:
        task = current.get()
        if task is not None and task.seceded:
            task = None
        if task is not None:
            task.secede()
        self._task = task

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._task is not None:
            self._task.rejoin()


def leave() -> None:
    """The current task, if it is a coroutine's, is about to wait on its event loop: it leaves the thread pool for good.

    To come back it would have to wait for a place, and hold up whatever else runs on that loop. Raises SecededLimit.
    """
    task = current.get()
    if task is not None and not task.seceded:
        task.secede()


class as_current:
    """Context manager: within the block, in this thread or coroutine, ``client`` is the default client."""

    __slots__ = ("_client", "_token")

    def __init__(self, client: Any) -> None:
        self._client = client

    def __enter__(self) -> Any:
        self._token: Token[Any] = _chosen.set(self._client)
        return self._client

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        _chosen.reset(self._token)


def push_default(client: Any) -> None:
    """Make a client the default one of this process."""
    with _lock:
        _defaults.append(weakref.ref(client))


def drop_default(client: Any) -> None:
    """Take a client (and those that are gone) out of the defaults; the one made before it counts again."""
    with _lock:
        _defaults[:] = [ref for ref in _defaults if ref() is not None and ref() is not client]


def _default() -> Any | None:
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    with _lock:
        for ref in reversed(_defaults):
            client = ref()
            if client is not None:
                return client
    return None


def default_client() -> Any:
    """The client in force: that of ``as_current``, else the newest open one made with ``set_as_default=True``.

    As in dask.distributed 2021.10.

    Raises:
        ValueError: there is none.
    """
    client = _default()
    if client is None:
        raise ValueError("there is no default client in this process: make one with zdist.Client(...) first")
    return client


def find_client() -> Any | None:
    """The client that belongs to the code that runs: in a task its worker's, else the default one, else None."""
    task = current.get()
    if task is not None and client_factory is not None:
        return client_of(task.worker)
    return _default()


def client_of(worker: Any) -> Any:
    """The one client that all tasks of a worker share, made at its first use.

    Raises:
        RuntimeError: the worker's process was started without a client factory.
    """
    known = _clients.get(id(worker))
    if known is not None:
        return known[1]
    with ExitStack() as back, _making:  # back into the pool only when the others, which may fill it, can have it too
        known = _clients.get(id(worker))
        if known is None:
            if client_factory is None:
                raise RuntimeError(f"worker {worker.name} offers its tasks no client (it was started without one)")
            back.enter_context(away())
            known = _clients[id(worker)] = (worker, client_factory(worker))
    return known[1]


def wanted_here(worker: Any, key: str) -> bool:
    """Does a task of this worker hold a future for the key?"""
    known = _clients.get(id(worker))
    return known is not None and known[1].holds(key)


def close_client_of(worker: Any) -> None:
    """Close the client that a worker's tasks have used, if any; for a worker that ends."""
    with _making:
        known = _clients.pop(id(worker), None)
    if known is not None:
        known[1].close()
