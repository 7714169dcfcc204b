"""Actors at their worker: which calls of a caller have come, in what order they begin, and what came of them. PURE.

An actor lives as long as its seed in the worker's store, and has no other record here. A call may come twice, by
another way, or before the one that was made first. So each caller has a *stream*, in which a call begins once, when all
before it have begun. Replies are kept until the caller says that it has them, since a peer path may lose them.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Any, NamedTuple

from zdist import context, limits
from zdist.core.machine import CONTROL, Route
from zdist.protocol.actors import GONE, POLL, RAISED, RETURNED, UNSEEN, WORKING, ActorCall, ActorReply, Seed
from zdist.protocol.messages import Key, Payload, Session, payload_size

if TYPE_CHECKING:
    from zdist.core.worker import WorkerMachine

__all__ = ["Life", "Maker", "Perform", "call_actor", "performed"]


class Maker:
    """What a client submits to create an actor: the task makes the object, and its result is the seed."""

    __slots__ = ("__name__", "cls")

    def __init__(self, cls: Any, name: str) -> None:
        self.cls = cls
        self.__name__ = name

    def __reduce__(self) -> tuple[Any, ...]:
        return Maker, (self.cls, self.__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        task = context.current.get()
        assert task is not None, "an actor is created by a task"
        return task.worker.plant(self.cls(*args, **kwargs), task, self.__name__)


class Stream:
    """The calls of one caller to one actor."""

    __slots__ = ("held", "last", "replies", "route")

    def __init__(self) -> None:
        self.route = CONTROL  # on which the caller was last heard
        self.last = 0  # number of the last call that has begun
        self.held: dict[int, tuple[int, str, str, Payload]] = {}  # by the number that has to begin before
        self.replies: dict[int, tuple[ActorReply, Any]] = {}  # and the objects that have to stay alive with them


class Life:
    """An actor's calls; ``body`` is its object and thread, the driver's business."""

    __slots__ = ("__weakref__", "body", "streams")

    def __init__(self, body: Any) -> None:
        self.body = body
        self.streams: dict[Session, Stream] = {}


class Perform(NamedTuple):
    """Command: do a call after those that were ordered before; answered by `performed`. It does not keep the actor."""

    body: Any
    stream: Stream
    caller: Session
    number: int
    what: str
    name: str
    args: Payload


def call_actor(machine: WorkerMachine, route: Route, message: ActorCall, now: float) -> None:
    """Take in calls."""
    token, _worker, caller, key, attempt, settled, rows = message
    if route.channel == "data" and not compare_digest(token.encode(), machine.token.encode()):
        machine.store.refuse(route)
        return
    entry = machine.store.get(key)
    seed = entry.value if entry is not None and entry.attempt == attempt else None
    life = seed.life if type(seed) is Seed else None
    if life is None:
        for row in rows:
            text = f"actor {key} does not live on worker {machine.name} (any more)"
            machine.send(route, ActorReply(caller, row[0], GONE, text.encode()))
        return
    stream = life.streams.get(caller)
    if stream is None:
        stream = life.streams[caller] = Stream()
    stream.route = route
    for number in [number for number in stream.replies if number <= settled]:
        del stream.replies[number]
    for number, after, what, name, args in rows:
        if number in stream.replies:
            machine.send(route, stream.replies[number][0])
        elif what == POLL:
            known = number <= stream.last or any(held[0] == number for held in stream.held.values())
            machine.send(route, ActorReply(caller, number, WORKING if known else UNSEEN, b""))
        elif number > stream.last and len(stream.held) < limits.ACTOR_WINDOW:
            stream.held[after] = (number, what, name, args)
    _begin(machine, life, caller, stream)


def _begin(machine: WorkerMachine, life: Life, caller: Session, stream: Stream) -> None:
    """Begin what waits for nothing, in order."""
    while stream.held:
        after = stream.last if stream.last in stream.held else min(stream.held)
        if after > stream.last:
            return
        number, what, name, args = stream.held.pop(after)
        if number > stream.last:
            stream.last = number
            machine.commands.append(Perform(life.body, stream, caller, number, what, name, args))


def performed(
    machine: WorkerMachine, call: Perform, ok: bool, value: Payload, refs: tuple[Key, ...], kept: Any
) -> None:
    """Answer to Perform: the pickled value, or exception, and the keys of what is in it. ``kept`` stays alive until the
    caller holds these itself."""
    reply = ActorReply(call.caller, call.number, RETURNED if ok else RAISED, value, refs)
    call.stream.replies[call.number] = (reply, kept)
    machine.send(call.stream.route, reply)


def too_large(value: Payload) -> str:
    """Why a reply cannot be sent; empty if it can."""
    size = payload_size(value)
    return "" if size <= limits.CALL_BYTES else f"it has {size} bytes pickled, {limits.CALL_BYTES} are possible"
