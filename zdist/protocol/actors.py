"""Actors on the wire: calls of their methods, what comes of them, and the handle that stands for one. PURE.

A call is named by its caller's session and a number, which grows over all calls of that caller. Whichever way a call
goes, and however often it is sent, the actor's worker begins it once, and in the order in which it was made: ``after``
is the number of the caller's call to the same actor before it (0: all earlier ones are settled).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from zdist.protocol.fields import Attempt, Key, Payload, Session

__all__ = ["ACTOR", "ActorCall", "ActorGone", "ActorReply", "Seed"]

ACTOR: Final = "zdist.Actor"  # type name of an actor's result

# What a row of ActorCall is about
CALL: Final = "call"  # a method, with the pickled arguments
GET: Final = "get"  # an attribute
POLL: Final = "poll"  # how far is the call of this number?

# What an ActorReply says
RETURNED: Final = "returned"  # the pickled value
RAISED: Final = "raised"  # the pickled exception
WORKING: Final = "working"  # answer to a poll: it has come, and is not over
UNSEEN: Final = "unseen"  # answer to a poll: it has not come
GONE: Final = "gone"  # there is no such actor here (any more); the text says why


class ActorCall(NamedTuple):
    """Calls of one caller to one actor; client to worker, by its data socket or through the broker.

    ``settled``: the caller has the replies to all its calls to this actor up to that number. A row has the number,
    ``after``, what it is about, the name of the method or attribute, and the arguments.
    """

    token: str  # on a data socket
    worker: Session
    caller: Session  # through the broker: filled in there
    key: Key
    attempt: Attempt
    settled: int
    rows: tuple[tuple[int, int, str, str, Payload], ...]


class ActorReply(NamedTuple):
    """What has become of a call; goes back the way on which the caller was last heard.

    ``refs``: keys of futures and actors inside the value; the worker holds them until the caller does.
    """

    caller: Session
    number: int
    code: str
    value: Payload  # a pickled value or exception, or the UTF-8 text of the reason
    refs: tuple[Key, ...] = ()


class ActorGone(NamedTuple):
    """Broker to client: these actors are lost, or tasks need one that is: key, text."""

    rows: tuple[tuple[Key, str], ...]


class Seed:
    """An actor as its creation's result: all that a handle has to know. Pickled without its ``life``, which only the
    worker has on which the actor lives (`zdist.core.actors.Life`)."""

    __slots__ = ("attempt", "key", "life", "member", "methods", "name")

    def __init__(
        self, key: Key, attempt: Attempt, member: tuple[Session, str, str, str, Session], name: str,
        methods: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.key = key
        self.attempt = attempt
        self.member = member  # its worker, as a row of Members
        self.name = name  # of the class
        self.methods = methods
        self.life: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Seed, (self.key, self.attempt, self.member, self.name, self.methods)

    def __repr__(self) -> str:
        return f"<Seed of actor {self.name} {self.key}, attempt {self.attempt}>"
