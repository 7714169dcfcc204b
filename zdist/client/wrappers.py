"""What an executor wraps around its tasks; this module is what their workers load of the client.

A function made here is pickled by value, with what it refers to; only what it calls by name is imported there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from zdist import context, serialize
from zdist.errors import InitializerFailed

__all__ = ["chunked", "initialised", "prepare"]


def chunked(fn: Callable[..., Any]) -> Callable[[Iterable[tuple[Any, ...]]], list[Any]]:
    """A function of a chunk of argument tuples that calls ``fn`` with each."""

    def call(chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
        return [fn(*args) for args in chunk]

    call.__name__ = serialize.function_name(fn)
    return call


def initialised(fn: Callable[..., Any], ident: str, payload: bytes) -> Callable[..., Any]:
    """``fn``, before whose first call in a process the initializer in ``payload`` runs; see `prepare`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        prepare(ident, payload)
        return fn(*args, **kwargs)

    call.__name__ = serialize.function_name(fn)
    return call


class _Once:
    """What this process knows of one executor's initializer."""

    __slots__ = ("done", "error", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.done = False
        self.error: BaseException | None = None


_known: dict[str, _Once] = {}


def prepare(ident: str, payload: bytes) -> None:
    """Run an executor's initializer in this process, unless that has been done; other tasks of it wait meanwhile.

    Parameters: the executor's id; ``(initializer, initargs)`` as `serialize.dumps` makes it.

    Raises InitializerFailed if it raises anything, now or when it was run.
    """
    once = _known.get(ident) or _known.setdefault(ident, _Once())
    if once.done:
        return
    with once.lock:
        if once.done:
            return
        if once.error is None:
            try:
                initializer, initargs = serialize.loads(payload, what="initializer")
                initializer(*initargs)
            except BaseException as exc:  # also SystemExit, as in concurrent.futures
                once.error = exc
            else:
                once.done = True
                return
        task = context.current.get()
        where = "" if task is None else f" on worker {task.worker.name} ({task.worker.address})"
        error = InitializerFailed(f"the executor's initializer raised {type(once.error).__name__}: {once.error}{where}")
        error.executor = ident
        raise error from once.error
