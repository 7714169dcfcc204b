"""The shape of every state machine: messages in, messages and commands out. PURE.

A machine never does I/O. ``handle`` and the methods for local events change state and append to ``out`` (messages by
destination, in order) and ``commands`` (what its driver must do). ``check`` asserts the invariants; tests and the
simulator call it after every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from zdist.errors import InvariantError
from zdist.protocol.messages import Message

__all__ = ["BULK", "CONTROL", "Log", "Machine", "Route", "aligned", "require"]

Dest = TypeVar("Dest")


class Route(NamedTuple):
    """Where a packet goes from a client, worker or node: a channel and, on a ROUTER, the hop's routing id.

    Channels: "control" and "bulk" (to the broker), "data" (own ROUTER, answers), and any other name is the address of a
    worker's data socket, dialled at the first use.
    """

    channel: str
    hop: bytes = b""


CONTROL = Route("control")
BULK = Route("bulk")


class Log(NamedTuple):
    """Command: write a structured log record."""

    level: str  # "debug" | "info" | "warning" | "error"
    event: str
    fields: dict[str, Any]


class Machine(Generic[Dest]):
    """Outbox and dispatch shared by the machines; ``Dest`` is Route, or for the broker a session id."""

    given_up = False  # the broker that has welcomed it last had known its session, and ended it
    ahead = False  # the other side has yet to confirm many packets: what is not urgent may wait until it has

    def __init__(self) -> None:
        self.out: dict[Dest, list[Message]] = {}
        self.commands: list[Any] = []
        self.handlers: dict[type, Callable[..., None]] = {}

    def send(self, dest: Dest, message: Message) -> None:
        """Queue a message; all for one destination leave together at the end of the turn."""
        queue = self.out.get(dest)
        if queue is None:
            self.out[dest] = [message]
        else:
            queue.append(message)

    def take(self) -> dict[Dest, list[Message]]:
        """Hand over the outbox and start a new one."""
        out, self.out = self.out, {}
        return out

    def log(self, level: str, event: str, **fields: Any) -> None:
        """Ask the driver for a log record."""
        self.commands.append(Log(level, event, fields))

    def check(self) -> None:
        """Raise InvariantError if the state contradicts itself."""


def require(condition: bool, text: str) -> None:
    """Assert an invariant, also under ``python -O``."""
    if not condition:
        raise InvariantError(text)


def aligned(now: float, interval: float) -> float:
    """The next multiple of an interval: what the processes of a host do now and then they do together, and who hears
    of it wakes up once for all of them."""
    return (now // interval + 1) * interval
