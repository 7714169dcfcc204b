"""A future: a name for a result, and this process's share in keeping that result alive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zdist import context, serialize
from zdist.core.entry import CANCELLED, FINISHED, PENDING, Entry
from zdist.errors import RemoteError

if TYPE_CHECKING:
    from zdist.client.client import Client

__all__ = ["Future", "Lent", "future_of", "pickling_for", "raisable", "reference_of"]


class Future:
    """A result that is being computed, is there, or cannot be had. Made by ``submit``, ``map`` and ``scatter``.

    Names and semantics as in dask.distributed 2021.10. Two futures may stand for one key; the result lives, on the
    workers and here, as long as any of them does. Pickled, a future becomes one of the receiving process's client.

    Parameters:
        key: of a result that the cluster knows.
        client: default: the current one.
        inform: accepted for the sake of programs written for dask.distributed; not used.

    Raises ValueError without a client.

    Attributes: ``key``; ``client``.
    """

    __slots__ = ("__weakref__", "_entry", "_held", "client", "key")

    def __init__(self, key: str, client: Client | None = None, inform: bool = True) -> None:
        if client is None:
            client = context.find_client()
            if client is None:
                raise ValueError(f"no client in this process for a future of {key!r}: make one with zdist.Client(...)")
        self._entry: Entry = client._adopt(key)
        self._held = True
        self.key = key
        self.client = client

    def __del__(self) -> None:
        try:
            if self._held:
                self.client._dropped.append(self._entry)
        except AttributeError:  # never got as far as having an entry
            pass

    # --- looking -----------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """ "pending", "finished", "error" or "cancelled"."""
        return self._entry.status

    @property
    def type(self) -> str | None:
        """Name of the result's type ("int", "numpy.ndarray"), None before it is finished.

        A name and not the class, which dask gives: the class may not be importable here.
        """
        entry = self._entry
        return str(entry.outcome[5]) if entry.status == FINISHED else None

    def done(self) -> bool:
        """Whether it is finished, failed or cancelled."""
        return self._entry.status != PENDING

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._entry.status == CANCELLED

    # --- waiting -----------------------------------------------------------------------------------

    def result(self, timeout: float | str | None = None) -> Any:
        """Wait for the result and bring it here.

        Parameters:
            timeout: seconds to wait for the computation; None for as long as it takes.

        Raises:
            TimeoutError: not done in time; the future is left alone.
            CancelledError: it was cancelled; the text says why.
            KilledWorker, SerializationError, or whatever the task raised, with its traceback; but StopIteration,
                SystemExit, KeyboardInterrupt and others that would steer this program, as the cause of a RemoteError.

        An awaitable of all that on an asynchronous client.
        """
        return self.client._result(self, timeout)

    def exception(self, timeout: float | str | None = None) -> Any:
        """Wait, and return the exception that the task raised (or the CancelledError), None if there is none.

        Raises TimeoutError after ``timeout`` seconds. An awaitable on an asynchronous client.
        """
        return self.client._exception(self, timeout)

    def traceback(self, timeout: float | str | None = None) -> TracebackType | Any | None:
        """Wait, and return the traceback of the task's exception, None if there is none.

        Raises TimeoutError after ``timeout`` seconds. An awaitable on an asynchronous client.
        """
        return self.client._traceback(self, timeout)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.client._result_async(self).__await__()  # type: ignore[no-any-return]

    def add_done_callback(self, fn: Callable[[Future], object]) -> None:
        """Call ``fn(future)`` once it is done, at once if it is.

        Callbacks run one after the other on a thread of the client, or on the loop of an asynchronous client.
        """
        self.client._add_callback(self, fn)

    # --- changing ----------------------------------------------------------------------------------

    def cancel(self, force: bool = False) -> Any:
        """Give the computation up; see ``Client.cancel``."""
        return self.client.cancel(self, force=force)

    def retry(self) -> Any:
        """Compute it again if it has failed; see ``Client.retry``."""
        return self.client.retry(self)

    def release(self) -> None:
        """Let go of the result now instead of when this object is deleted. Idempotent."""
        if self._held:
            self._held = False
            self.client._dropped.append(self._entry)

    # --- being an object ---------------------------------------------------------------------------

    def __repr__(self) -> str:
        kind = f" type: {self.type}," if self.type else ""
        return f"<Future: {self.status},{kind} key: {self.key}>"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<b>Future: {escape(self.key)}</b> status: {self.status}, type: {escape(self.type or '')}"

    def __dask_tokenize__(self) -> tuple[str, ...]:
        """What names it in the names that dask makes of content."""
        return "zdist.Future", self.key, self.client.cluster_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.key, self.client.cluster_id)


def future_of(entry: Entry, client: Client) -> Future:
    """A future for an entry on which the ledger has counted a reference already."""
    future = _new(Future)
    future._entry = entry
    future._held = True
    future.key = entry.key
    future.client = client
    return future


_new: Callable[[type[Future]], Future] = object.__new__


def _rebuild(key: str, cluster: str) -> Future:
    client = serialize.owner() or context.find_client()
    if client is None:
        raise ValueError(f"a future of {key!r} arrived in a process without a client: make one with zdist.Client(...)")
    if client.cluster_id != cluster:
        raise ValueError(
            f"a future of {key!r} belongs to cluster {cluster}, this process's client to cluster {client.cluster_id} "
            f"at {client.address}"
        )
    return Future(key, client)


def raisable(error: BaseException, key: str) -> BaseException:
    """What `result` and `gather` raise for a task's exception: itself, unless it would steer the program that asks.

    StopIteration would end a loop without a word, SystemExit the program, asyncio.CancelledError the caller's own task.
    Such a one becomes the cause of a RemoteError, as concurrent.futures and asyncio have it for StopIteration.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    wrapped = RemoteError(
        f"{key} raised {type(error).__name__}: {error} (raised here as RemoteError, because a {type(error).__name__} "
        "would steer this program; the future's exception() is the original)"
    )
    wrapped.__cause__ = error
    return wrapped


class Lent:
    """Waiter for a key that another client joins: this one's want of it goes on until the other has heard of its end.

    Only then is it certain that the broker knows of the other's want, too.
    """

    __slots__ = ("_dropped", "_entry")

    def __init__(self, future: Future) -> None:
        client = future.client
        with client._lock:
            client._ledger.join(future._entry)
        self._dropped = client._dropped
        self._entry = future._entry

    def __del__(self) -> None:
        self._dropped.append(self._entry)

    def resolved(self, entry: Entry, /) -> None:
        """Whoever told it drops it."""


class Origins(threading.local):
    """Per thread: futures of other clients met while arguments are pickled for ``client``."""

    client: Any = None
    foreign: list[Future] | None = None


origins = Origins()


class pickling_for:
    """Context manager: within the block ``origins.foreign`` notes futures of other clients than this one.

    Blocks nest: to pickle an argument may run code of the program, which submits with another client.
    """

    __slots__ = ("_before", "_client")

    def __init__(self, client: Any) -> None:
        self._client = client

    def __enter__(self) -> None:
        self._before = origins.client, origins.foreign
        origins.client, origins.foreign = self._client, None

    def __exit__(self, *exc: object) -> None:
        origins.client, origins.foreign = self._before


def reference_of(future: Future) -> str:
    """The key that stands for a future among arguments; that it is another client's is noted."""
    if origins.client is not None and future.client is not origins.client:
        if origins.foreign is None:
            origins.foreign = []
        origins.foreign.append(future)
    return future.key


serialize.register_reference(Future, reference_of)
