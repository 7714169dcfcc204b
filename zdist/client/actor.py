"""Actors: handles on objects that live on a worker, and the futures of their methods' results.

Semantics: dask.distributed 2021.10, but for what is said at `Actor`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from zdist import context, limits, serialize
from zdist.client.base import Base, Wait, failure_of
from zdist.client.future import Future, raisable, reference_of
from zdist.client.waiting import seconds
from zdist.core.actors import Maker
from zdist.core.calls import Call
from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING, Entry
from zdist.errors import ActorLost
from zdist.protocol.actors import CALL, GET, GONE, RAISED, RETURNED, Seed
from zdist.protocol.messages import Buffer

__all__ = ["Acting", "Actor", "ActorFuture", "maker_of"]

_NOT_YET: Final[Any] = object()


class ActorFuture:
    """What a method of an actor will return. Made by calling one. As in dask.distributed 2021.10."""

    __slots__ = ("__weakref__", "_call", "_client", "_value")

    def __init__(self, client: Acting, call: Call) -> None:
        self._client = client
        self._call = call
        self._value = _NOT_YET

    def done(self) -> bool:
        """Whether the method has returned or raised, or its actor is lost."""
        return self._call.status == FINISHED

    def result(self, timeout: float | str | None = None) -> Any:
        """Wait for what the method returns.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: it has not returned in time; the call goes on.
            ActorLost: the actor is gone, and nobody knows how far the call came.
            SerializationError, or whatever the method raised, with its traceback (see `Future.result`).

        An awaitable of all that on an asynchronous client.
        """
        return self._client._sync(self._client._called(self, seconds(timeout)))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._client._later(self._client._called(self, None)).__await__()

    def __repr__(self) -> str:
        call = self._call
        return f"<ActorFuture: {'done' if self.done() else 'pending'}, {call.name} of {call.target.key}>"


class Actor:
    """A handle on an object that lives on a worker: what ``client.submit(Class, ..., actor=True).result()`` gives.

    Calling a method returns an `ActorFuture` at once; calls of one client are begun in the order in which they were
    made, and each is done once. Any other attribute is fetched: its value, or on an asynchronous client an awaitable of
    it. Names that begin with an underscore are not asked for unless they are methods.

    A handle can be pickled: passed to tasks and to actors, returned, held by many clients and workers; each of them
    calls in its own name. The object lives until no future or handle is left. It is never copied, moved or computed
    again: if its worker dies, or is ended, everything of it raises ActorLost.

    As in dask.distributed 2021.10, except that each actor has a thread of its own, ``async`` methods run on that as
    well, attributes cannot be set from outside, and futures among a method's arguments arrive as futures.
    """

    __slots__ = ("__weakref__", "_client", "_future", "_seed")

    _seed: Seed
    _client: Acting
    _future: Future

    def __init__(self, seed: Seed, client: Acting) -> None:
        put = functools.partial(object.__setattr__, self)
        put("_seed", seed)
        put("_client", client)
        put("_future", Future(seed.key, client))  # type: ignore[arg-type]
        client._hold_on(self._future._entry)

    @property
    def key(self) -> str:
        """Key of the future that the actor came from."""
        return self._seed.key

    def __getattr__(self, name: str) -> Any:
        seed = self._seed
        if name in seed.methods:
            return functools.partial(self._client._invoke, self, CALL, name)
        if name.startswith("_"):
            raise AttributeError(f"actor {seed.name} has no method {name!r}, and no such attribute is asked for")
        got = self._client._invoke(self, GET, name)
        return got if self._client.asynchronous else got.result()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"attributes of an actor cannot be set from outside: give {self._seed.name} a method")

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._seed.methods})

    def __repr__(self) -> str:
        return f"<Actor: {self._seed.name}, key={self._seed.key}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._seed, self._client.cluster_id)


def _rebuild(seed: Seed, cluster: str) -> Actor:
    client = serialize.owner() or context.find_client()
    if client is None:
        raise ValueError(f"actor {seed.key!r} arrived in a process without a client: make one with zdist.Client(...)")
    if client.cluster_id != cluster:
        raise ValueError(
            f"actor {seed.key!r} belongs to cluster {cluster}, this process's client to cluster {client.cluster_id} at "
            f"{client.address}"
        )
    return Actor(seed, client)


serialize.register_reference(Actor, lambda actor: reference_of(actor._future))


class Acting(Base):
    """The part of the client that calls actors."""

    def handle(self, seed: Seed) -> Actor:
        """A handle on the actor that a seed stands for."""
        return Actor(seed, self)

    def _hold_on(self, entry: Entry) -> None:
        """On a worker: wait until the broker knows that this client holds the key.

        The worker's word that the task is done, for which it had the handle, goes by another connection and might be
        there first; and an actor that nobody holds is gone.
        """
        if self._worker is not None and entry.status == PENDING:
            self._usable().drive(lambda: entry.status != PENDING)

    def _invoke(self, actor: Actor, what: str, name: str, /, *args: Any, **kwargs: Any) -> ActorFuture:
        """Send a call. Raises ActorLost, SerializationError, ValueError."""
        driver = self._usable()
        entry = actor._future._entry
        if entry.status in (ERROR, CANCELLED):
            raise self._lost(actor._seed.key, entry.status, entry.outcome)
        payload = serialize.dumps((args, kwargs), what=f"arguments of {name}").tobytes() if what == CALL else b""
        if len(payload) > limits.CALL_BYTES:
            raise ValueError(
                f"the arguments of {name} have {len(payload)} bytes pickled, {limits.CALL_BYTES} are possible; scatter "
                "what is large and pass the future"
            )
        keeps = (actor, args, kwargs)
        data = payload if len(payload) < limits.OWN_FRAME else Buffer(payload)
        with self._lock:
            call = self._ledger.calls.make(actor._seed, what, name, data, keeps)
        driver.wake()
        return ActorFuture(self, call)

    async def _called(self, future: ActorFuture, timeout: float | None) -> Any:
        call = future._call
        with self._lock:
            signal = self._await_entries([call])  # type: ignore[list-item]  # it is waited for like an entry
        try:
            if not await Wait(signal, None if timeout is None else time.monotonic() + timeout):
                late = f"{call.name} of actor {call.target.key} has not returned within {timeout:g} s"
                raise TimeoutError(late + self.hindrance())
        finally:
            self._unwait(signal, [call])  # type: ignore[list-item]
        if call.code != RETURNED:
            raise self._failure(call)  # a name for it here would be a cycle, and keep the actor until it is collected
        if future._value is _NOT_YET:
            what = f"what {call.name} of actor {call.target.key} returned"
            future._value = serialize.loads(_data(call.value), what=what, owner=self)
        return future._value

    def _failure(self, call: Call) -> BaseException:
        if call.code == RAISED:
            what = f"{call.name} of actor {call.target.key}"
            return raisable(serialize.loads_error(_data(call.value), f"{what} failed", owner=self), what)
        return self._lost(call.target.key, call.code, call.value)

    def _lost(self, key: str, status: str, outcome: Any) -> BaseException:
        """Why an actor cannot be called, from the outcome of its key, or the text of who does not know it."""
        if self._ledger.over is not None:
            return self._unusable()
        if status == GONE:
            return ActorLost(f"actor {key} is gone: {outcome}")
        if status == CANCELLED:
            return ActorLost(f"actor {key} is gone: {outcome or 'it was released'}")
        return failure_of(key, status, outcome)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Buffer) else value


def maker_of(cls: Callable[..., Any]) -> Maker:
    """What is submitted to have an actor of this class. Raises TypeError for what is none."""
    if not isinstance(cls, type):
        raise TypeError(f"actor=True takes a class, got {type(cls).__name__} {cls!r:.80}")
    return Maker(cls, cls.__name__)
