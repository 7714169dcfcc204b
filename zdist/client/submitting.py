"""submit and map: functions and arguments become rows of the ledger."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

from zdist import limits, serialize
from zdist.client.actor import maker_of
from zdist.client.base import Base
from zdist.client.future import Future, future_of, origins, pickling_for
from zdist.client.waiting import seconds
from zdist.core.entry import CANCELLED, Entry, Row, Work
from zdist.core.store import Blob
from zdist.errors import SerializationError
from zdist.protocol.messages import Buffer, Options, Payload

if TYPE_CHECKING:
    from zdist.client.executor import ZdistExecutor

__all__ = ["Held", "Submitting", "options_of", "payload_of"]


class Held:
    """The large arguments of one call: each object is frozen once and becomes a key that this client holds."""

    __slots__ = ("client", "content", "entries", "known")

    entries: list[Entry] | None  # with a reference each, until the rows that need them pin them
    known: dict[int, list[Any]]  # identity: object, key, times seen

    def __init__(self, client: Submitting, content: bool) -> None:
        self.client = client
        self.content = content  # name them by content, so that an explicit key given twice has equal rows
        self.entries = None  # most calls have none

    def find(self, obj: Any) -> str:
        """The key for an object; what serialize asks for while it pickles arguments."""
        if self.entries is None:
            self.entries = []
            self.known = {}
        known = self.known.get(id(obj))
        if known is not None:
            known[2] += 1
            return str(known[1])
        entry = self.freeze(obj)
        self.entries.append(entry)
        self.known[id(obj)] = [obj, entry.key, 1]
        return entry.key

    def freeze(self, obj: Any) -> Entry:
        """Make an object, as it is now, a key that this client holds: the entry, with a reference to it."""
        client = self.client
        blob = serialize.dumps(obj, what="argument", share=True)
        kind = serialize.type_name(obj)
        if self.content:
            from blake3 import blake3

            digest = blake3(max_threads=blake3.AUTO)
            for piece in blob.pieces:
                digest.update(piece)
            key = f"data-{digest.hexdigest(length=16)}"
        else:
            key = f"data-{client._nonce}{next(client._counter)}"
        with client._lock:
            held = client._ledger.store.get(key)
        kept = keep(client, key, blob) if held is None else held.blob
        with client._lock:
            return client._ledger.hold([(key, kept, kind)], finished=True)[0]

    def forget_single(self) -> None:
        """Between two chunks of one call: objects seen once are probably not coming again; let go of them."""
        assert self.entries is not None
        self.known = {name: known for name, known in self.known.items() if known[2] > 1}
        kept = {known[1] for known in self.known.values()}
        self.client._dropped.extend([entry for entry in self.entries if entry.key not in kept])
        self.entries = [entry for entry in self.entries if entry.key in kept]

    def release(self) -> None:
        """The rows are in the ledger and pin what they need."""
        if self.entries is not None:
            self.client._dropped.extend(self.entries)
            self.entries = None


def keep(client: Base, key: str, blob: serialize.Blob, attempt: int = 0) -> Blob:
    """A value's bytes as they are now, for as long as the cluster wants them: in shared memory if there is room."""
    segment = client._memory.write(key, attempt, blob) if client._memory is not None else None
    return segment or blob.snapshot()


class Submitting(Base):
    """The part of the client that hands out work."""

    _last_work: tuple[Any, tuple[Any, ...], bool, Work] | None = None

    def submit(
        self,
        func: Callable[..., Any],
        *args: Any,
        key: str | None = None,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        fifo_timeout: Any = None,
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool | None = None,
        tags: Any = None,
        timeout: float | str | None = None,
        **kwargs: Any,
    ) -> Future:
        """Run ``func(*args, **kwargs)`` on a worker. As in dask.distributed 2021.10.

        If ``func`` is a coroutine function, the coroutine runs to its end on an event loop of its own, on the task's
        thread; from its first wait for a future of the cluster on it is outside of the worker's thread pool.

        Parameters:
            args, kwargs: may hold futures, anywhere inside; the function gets their values.
            key: name of the result; by default made from the function's name.
            workers: address or name, or several, that may run it; with ``allow_other_workers`` a preference.
            resources: amounts that the worker must have free, as ``{"GPU": 1}``.
            retries: how many times it is tried again after it has raised.
            actor: ``func`` is a class, of which an object is made that lives on at the worker; the result is an
                `Actor`, a handle on it. Such calls are never ``pure``. ``actors`` is the same.
            priority: larger goes first; default 0.
            pure: True (default) names the result by function and arguments, so that the same call, by whichever client,
                is computed once. False gives each call a name of its own.
            tags: tags that the worker must have. ``fifo_timeout`` is not used.
            timeout: seconds that each start may run; then TaskTimeout, and its worker's process is replaced.

        Raises:
            TypeError: ``func`` is no function, or with ``actor`` no class; an option is of the wrong type.
            SerializationError: the function or an argument cannot be pickled; the text names it.
            KeyConflict: ``key`` is alive for another function or other arguments.
            ValueError: an option cannot be, or an argument holds a future of another cluster.
        """
        if not callable(func):
            raise TypeError(f"submit takes a function first, got {type(func).__name__}")
        if actor or actors:
            func, pure = maker_of(func), False
        options = options_of(workers, resources, retries, priority, allow_other_workers, tags, timeout, actor or actors)
        return self._submit_call(func, args, kwargs, key, pure is None or pure, options)

    def _submit_call(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: str | None,
        pure: bool,
        options: tuple[Any, ...],
    ) -> Future:
        """`submit`, for callers whose keyword arguments may have any name; ``options`` as `options_of` makes them."""
        self._usable()
        blob = serialize.dumps_function(func)
        work = self._work(blob, options, key is None)
        own = False
        if key is None:
            if pure:
                key = f"{blob.name}-{_token(blob.code_digest(func), blob.name, args, kwargs)}"
                known = self._known(key)
                if known is not None:
                    return known
            else:
                key = self._own_key(blob)
                own = True
        else:
            _check_key(key)
        return self._submit(work, key, own, args, kwargs, Held(self, not work.named))

    def _own_key(self, blob: serialize.FunctionBlob) -> str:
        return f"{blob.name}-{self._nonce}{next(self._counter)}"

    def _submit(
        self, work: Work, key: str, own: bool, args: tuple[Any, ...], kwargs: dict[str, Any], held: Held
    ) -> Future:
        """Hand out one task, whose large arguments become keys of ``held``. ``own``: the key is made for it alone."""
        driver = self._usable()
        try:
            with pickling_for(self):
                payload, deps = serialize.dumps_args(args, kwargs, held.find, what=f"arguments of {work.name}")
                kept = self._foreign() if origins.foreign is not None else None
            with self._lock:
                entry = self._ledger.submit(work, ((key, payload_of(payload), deps),), own=own)[0]
            del kept  # pinned
        finally:
            if held.entries is not None:
                held.release()
        driver.wake()
        return future_of(entry, self)  # type: ignore[arg-type]

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        key: str | list[str] | None = None,
        workers: Any = None,
        retries: int | None = None,
        resources: Mapping[str, float] | None = None,
        priority: int = 0,
        allow_other_workers: bool = False,
        fifo_timeout: Any = None,
        actor: bool = False,
        actors: bool = False,
        pure: bool | None = None,
        batch_size: int | None = None,
        tags: Any = None,
        timeout: float | str | None = None,
        **kwargs: Any,
    ) -> list[Future]:
        """Run ``func`` on the items of one or several iterables, as the builtin ``map`` does: to the shortest.

        Tasks are handed to the cluster while the iterables are still being read. As in dask.distributed 2021.10, and
        iterators are welcome. Returns a list of futures, one for each task.

        Parameters:
            iterables: as many as the function takes arguments from them.
            key: a prefix for the names of the results, or a list with the name of each.
            batch_size: how many tasks are handed over at a time; default: batches that grow from one.
            kwargs: further arguments, the same for all tasks; an object among them is sent once.
            workers, resources, retries, priority, allow_other_workers, actor, pure, timeout and others: see `submit`.

        Raises TypeError for what is no function or no iterable, ValueError for a list of names that is too short or too
        long, and what `submit` raises; the tasks of earlier batches go on.
        """
        if not callable(func):
            raise TypeError(f"map takes a function first, got {type(func).__name__}")
        if not iterables:
            raise TypeError("map needs an iterable after the function")
        for given in iterables:
            if not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
                raise TypeError(f"map takes iterables after the function, got {type(given).__name__}: {given!r:.80}")
        self._usable()
        if actor or actors:
            func, pure = maker_of(func), False
        blob = serialize.dumps_function(func)
        options = options_of(workers, resources, retries, priority, allow_other_workers, tags, timeout, actor or actors)
        keys: Iterator[str] | None = None
        if isinstance(key, list | tuple):
            sizes = {len(it) for it in iterables if isinstance(it, Sized)}
            if sizes and min(sizes) != len(key):
                raise ValueError(f"map got {len(key)} keys for {min(sizes)} calls")
            for name in key:
                _check_key(name)
            keys = iter(key)
        work = self._work(blob, options, keys is None)
        prefix = blob.name if key is None or keys is not None else key
        code = blob.code_digest(func) if keys is None and (pure is None or pure) else b""
        namer = self._namer(code, prefix, keys, kwargs, blob.name)
        futures = self._map(work, zip(*iterables, strict=False), kwargs, namer, batch_size)
        if keys is not None and next(keys, None) is not None:
            raise ValueError(f"map got {len(key or ())} keys for {len(futures)} calls")
        return futures

    def _namer(
        self, code: bytes, prefix: Any, keys: Iterator[str] | None, kwargs: dict[str, Any], function: str
    ) -> Callable[[tuple[Any, ...]], str]:
        if keys is not None:
            given = keys

            def by_list(args: tuple[Any, ...]) -> str:
                try:
                    return next(given)
                except StopIteration:
                    raise ValueError("map got fewer keys than its iterables have items") from None

            return by_list
        _check_key(prefix)
        if code:  # pure: named by what they compute
            return lambda args: f"{prefix}-{_token(code, function, args, kwargs)}"
        count, start = self._counter, f"{prefix}-{self._nonce}"
        return lambda args: f"{start}{next(count)}"

    def _map(
        self,
        work: Work,
        calls: Iterator[tuple[Any, ...]],
        kwargs: dict[str, Any],
        name: Callable[[tuple[Any, ...]], str],
        batch_size: int | None,
    ) -> list[Future]:
        futures: list[Future] = []
        held = Held(self, not work.named)
        dumps_args, find, what = serialize.dumps_args, held.find, f"arguments of {work.name}"
        size = batch_size or 64
        driver = self._usable()
        try:
            while True:
                chunk = list(itertools.islice(calls, size))
                if not chunk:
                    break
                rows: list[Row] = []
                with pickling_for(self):
                    for args in chunk:
                        key = name(args)
                        payload, deps = dumps_args(args, kwargs, find, what=what)
                        rows.append((key, payload if len(payload) < limits.OWN_FRAME else Buffer(payload), deps))
                    kept = self._foreign() if origins.foreign is not None else None
                with self._lock:
                    entries = self._ledger.submit(work, rows)
                del kept
                futures += [future_of(entry, self) for entry in entries]  # type: ignore[arg-type]
                driver.wake()
                if held.entries:
                    held.forget_single()
                if batch_size is None:
                    size = min(2 * size, limits.PACKET_RECORDS)
        finally:
            held.release()
        return futures

    def get_executor(self, **options: Any) -> ZdistExecutor:
        """A ``concurrent.futures.Executor`` on this client's cluster. As in dask.distributed 2021.10.

        Parameters: those of `ZdistExecutor` but the client: ``max_workers``, ``initializer``, ``workers``, ``retries``
        and others. The client stays open when the executor is shut down.
        """
        from zdist.client.executor import ZdistExecutor

        return ZdistExecutor(self, **options)

    # --- parts of a submission -----------------------------------------------------------------------

    def _work(self, blob: serialize.FunctionBlob, options: tuple[Any, ...], named: bool) -> Work:
        """What rows of this function share; the same object as last time if possible, so that rows merge."""
        last = self._last_work
        if last is not None and last[0] is blob and last[1] == options and last[2] is named:
            return last[3]
        work = Work(blob.digest, blob.name, payload_of(blob.data), options, named)
        self._last_work = (blob, options, named, work)
        return work

    def _known(self, key: str) -> Future | None:
        """A further future of a key that was named by content and is alive here."""
        if key not in self._ledger.entries:
            return None
        with self._lock:
            entry = self._ledger.entries.get(key)
            if entry is None or entry.work is None or not entry.work.named or entry.status == CANCELLED:
                return None
            self._ledger.join(entry)
        return future_of(entry, self)  # type: ignore[arg-type]

    def _foreign(self) -> list[Future]:
        """Futures of other clients among the arguments join this client; keep the list until the row pins them."""
        foreign, origins.foreign = origins.foreign or [], None
        return self._joined(foreign)


def _token(code: bytes, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    try:
        return serialize.token(code, args, kwargs)
    except SerializationError:
        serialize.dumps_args(args, kwargs, None, what=f"arguments of {name}")  # knows which argument it is
        raise


def payload_of(data: bytes) -> Payload:
    """Bytes as they travel: a frame of their own if they are many."""
    return data if len(data) < limits.OWN_FRAME else Buffer(data)


def options_of(
    workers: Any,
    resources: Mapping[str, float] | None,
    retries: int | None,
    priority: int,
    other: bool,
    tags: Any,
    timeout: float | str | None = None,
    actor: bool = False,
) -> tuple[Any, ...]:
    """The ``Options`` of a task as a tuple, () if all are the defaults. Raises ValueError, TypeError."""
    limit = seconds(timeout) or 0.0
    if timeout is not None and limit <= 0:
        raise ValueError(f"timeout={timeout!r} must be more than 0 seconds")
    if not (workers or resources or retries or priority or other or tags or limit or actor):
        return ()
    if other and not workers:
        raise ValueError("allow_other_workers=True needs workers= to name the preferred ones")
    for name, number in (("retries", retries or 0), ("priority", priority)):
        if not isinstance(number, int | float):
            raise TypeError(f"{name}={number!r} must be a whole number")
    if retries is not None and retries < 0:
        raise ValueError(f"retries={retries} must not be negative")
    return tuple(
        Options(
            retries=int(retries or 0),
            priority=int(priority),
            workers=names(workers),
            allow_other=bool(other),
            resources=_resources(resources or {}),
            tags=names(tags),
            timeout=limit,
            actor=bool(actor),
        )
    )


def _resources(given: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    try:
        return tuple(sorted((str(name), float(amount)) for name, amount in given.items()))
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f"resources={given!r} must give a number for each name, as in {{'GPU': 1}}") from None


def names(given: Any) -> tuple[str, ...]:
    """Worker addresses or names, or tags, as a tuple: from None, one text, or several."""
    if not given:
        return ()
    if isinstance(given, int):
        raise TypeError(f"workers and tags are named by one text or several, got {given!r}")
    return (given,) if isinstance(given, str) else tuple(str(name) for name in given)


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not key or len(key) > limits.MAX_KEY - 64:
        raise ValueError(f"a key must be a text of 1 to {limits.MAX_KEY - 64} characters, got {key!r:.80}")
