"""What a task can do on its worker: find its client, leave the thread pool, print at the client; and futures_of.

Semantics: dask.distributed 2021.10, ``print`` and ``warn`` as in its later releases.
"""

from __future__ import annotations

import builtins
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from zdist import context
from zdist.client.containers import futures_in
from zdist.client.future import Future
from zdist.errors import CancelledError

__all__ = [
    "client_for_worker",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_worker",
    "print",
    "rejoin",
    "secede",
    "show",
    "warn",
    "worker_client",
]


def get_worker() -> Any:
    """The worker that runs the current task, or function of `Client.run`. As in dask.distributed 2021.10.

    Raises:
        ValueError: this code does not run in one.
    """
    return _task("get_worker").worker


def _task(what: str) -> context.TaskContext:
    task = context.current.get()
    if task is None:
        raise ValueError(f"{what}() works only inside a task, on the thread that runs it; this is none")
    return task


def get_client(address: str | None = None, timeout: float | str | None = None, resolve_address: bool = True) -> Any:
    """A client for the code that runs.

    In a task: a client of the same cluster, one for all tasks of the worker process. A gather that has to wait takes
    its task out of the worker's thread pool meanwhile, so tasks that wait for tasks never deadlock. Elsewhere: the
    default client, or with ``address`` a new one.

    Parameters:
        address: the broker's address, if it must be that one.
        timeout: seconds to wait for the broker's answer, for a client that has to be made.
        resolve_address: accepted for the sake of programs written for dask.distributed; not used.

    Raises:
        ValueError: outside a task there is no default client and no address was given.
    """
    task = context.current.get()
    if task is not None and address in (None, task.worker.broker_address):
        return context.client_of(task.worker)
    client = None if task is not None else context.find_client()
    if client is not None and address in (None, client.address):
        return client
    if address is None:
        raise ValueError("there is no default client in this process and no address was given to get_client")
    from zdist.client.client import Client

    return Client(address) if timeout is None else Client(address, timeout=timeout)


def client_for_worker(worker: Any) -> Any:
    """Make the client that tasks of this worker use; what ``context.client_factory`` leads to."""
    from zdist.client.client import Client

    name = f"{worker.name}-tasks"
    shared = 0 if worker.memory is None else None
    client = Client(
        worker.broker_address, token=lambda: worker.token, name=name, set_as_default=False, shared_memory=shared
    )
    client.inhabit(worker)
    return client


@contextmanager
def worker_client(timeout: float | str | None = None, separate_thread: bool = True) -> Iterator[Any]:
    """Context manager in a task: its client, and until the end of the block a thread of its own outside the pool.

    As in dask.distributed 2021.10.

    Parameters:
        timeout: seconds to wait for the broker's answer when the client has to be made.
        separate_thread: False to keep the thread of the pool (gathers that have to wait leave it on their own).

    Raises:
        ValueError: not in a task.
        SecededLimit: ``limits.SECEDED_PER_WORKER`` tasks of this worker have left the pool already.
    """
    task = _task("worker_client")
    leaves = separate_thread and not task.seceded
    if leaves:
        task.secede()
    try:
        yield get_client(timeout=timeout)
    finally:
        if leaves:
            task.rejoin()


def secede() -> None:
    """Take the current task out of its worker's thread pool: it runs on, and its thread is replaced in the pool.

    As in dask.distributed 2021.10.

    Raises:
        ValueError: not in a task.
        SecededLimit: ``limits.SECEDED_PER_WORKER`` tasks of this worker have left the pool already.
    """
    _task("secede").secede()


def rejoin() -> None:
    """Put the current task, which has seceded, back into the pool; waits until a thread there is free.

    As in dask.distributed 2021.10.

    Raises:
        ValueError: not in a task.
    """
    _task("rejoin").rejoin()


def print(
    *args: Any, sep: str | None = " ", end: str | None = "\n", file: TextIO | None = None, flush: bool = False
) -> None:
    """Like the builtin ``print``, and in a task the text also appears at the client that wants its result.

    ``args``, ``sep``, ``end``, ``file``, ``flush``: as of the builtin. At the client ``sys.stderr`` is kept
    apart from everything else, which is shown on its standard output. Outside a task only the builtin is called.
    """
    task = context.current.get()
    if task is not None:
        text = io.StringIO()
        builtins.print(*args, sep=sep, end=end, file=text)
        task.output("err" if file is not None and file is sys.stderr else "out", text.getvalue())
    builtins.print(*args, sep=sep, end=end, file=file, flush=flush)


def warn(
    message: str | Warning, category: type[Warning] | None = UserWarning, stacklevel: int = 1, source: Any = None
) -> None:
    """Like ``warnings.warn``, and in a task the warning is also raised at the client that wants its result.

    Parameters ``message``, ``category``, ``stacklevel`` and ``source``: as of ``warnings.warn``. A category that is no
    builtin one arrives as UserWarning. As in later releases of dask.distributed.
    """
    kind = type(message) if isinstance(message, Warning) else category or UserWarning
    task = context.current.get()
    if task is not None:
        task.output("warn", f"{kind.__name__}: {message}")
    warnings.warn(message, kind, stacklevel=stacklevel + 1, source=source)


def show(stream: str, text: str, worker: str = "") -> None:
    """Show at the client what a task put out: "out" and "err" as they are, "warn" as a warning, "log" on stderr."""
    if stream == "warn":
        name, _, message = text.partition(": ")
        kind = getattr(builtins, name, None)
        warn_as = kind if isinstance(kind, type) and issubclass(kind, Warning) else UserWarning
        warnings.warn(message, warn_as, stacklevel=2)
        return
    target = sys.stdout if stream == "out" else sys.stderr
    if stream == "log":
        text = f"{worker}: {text}" if text.endswith("\n") else f"{worker}: {text}\n"
    target.write(text)
    target.flush()


def futures_of(o: Any, client: Any = None) -> list[Future]:
    """The futures in a container, each once. As in dask.distributed 2021.10.

    Parameters:
        o: a future, a dask collection that was persisted, or a container, of the kinds that ``Client.gather`` takes.
        client: accepted for the sake of programs written for dask.distributed; not used.

    Raises:
        CancelledError: one of them was cancelled.
    """
    futures = futures_in(o)
    cancelled = [future.key for future in futures if future.cancelled()]
    if cancelled:
        raise CancelledError(f"cancelled: {', '.join(cancelled[:5])}{' …' if len(cancelled) > 5 else ''}")
    return futures


def fire_and_forget(obj: Any) -> None:
    """Have these tasks run to their end even if nobody holds their futures any more. As in dask.distributed 2021.10.

    Parameters:
        obj: a future or a container of futures.
    """
    groups: dict[int, tuple[Any, list[Future]]] = {}
    for future in futures_of(obj):
        groups.setdefault(id(future.client), (future.client, []))[1].append(future)
    for client, futures in groups.values():
        client.forget(futures)
