"""Workers of an earlier broker that live and have not come back: whoever claims results waits for them. PURE.

A task may hold its process's interpreter for long, and so may a pause: its node says that the worker is there, which
itself says nothing yet. What it holds and runs would be computed again, or be lost, if claims were weighed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from zdist.core.machine import require
from zdist.limits import MAX_SESSIONS, MAX_WORKERS
from zdist.protocol.messages import (
    Alive,
    Ask,
    Cancel,
    Claim,
    Message,
    Missing,
    Place,
    Release,
    Retry,
    Submit,
    Want,
)
from zdist_broker.recovery import Recovery
from zdist_broker.state import Client, Node, Peer

__all__ = ["Absent"]

MOST: Final = 28.0  # seconds that are waited for them at most; copies are kept for longer
TOLD: Final = 0.25  # seconds from its hello in which a worker tells what it holds and runs
ORDERED: Final = (Claim, Submit, Want, Release, Cancel, Retry, Place, Missing)  # may speak of keys that are claimed


class Absent:
    """Who is waited for (``Recovery.absent``: until when), and what clients have said meanwhile."""

    def __init__(self, recovery: Recovery, peers: Mapping[str, Peer]) -> None:
        self.recovery = recovery
        self.peers = peers
        self.nodes: dict[str, Node] = {}  # of those that are waited for
        self.parked: dict[Client, list[Message]] = {}

    def alive(self, node: Node, message: Alive, now: float) -> None:
        """A node names its workers; those that are not here are waited for."""
        began = self.recovery.began
        if began is None or now >= began + MOST:
            return
        for session in message.workers[:MAX_WORKERS]:
            if session not in self.peers and len(self.nodes) < MAX_SESSIONS:
                self.recovery.absent[session] = began + MOST
                self.nodes[session] = node

    def came(self, session: str, now: float) -> None:
        """A worker has said hello."""
        until = self.recovery.absent.get(session)
        if until is not None:
            self.recovery.absent[session] = min(until, now + TOLD)

    def gone(self, session: str) -> None:
        """A worker has ended, or is not known to live any more because its node has."""
        for worker in [worker for worker, node in self.nodes.items() if session in (worker, node.session)]:
            del self.nodes[worker], self.recovery.absent[worker]

    def keeps(self, client: Client, message: Message) -> bool:
        """Whether a message has to wait, with all that may speak of the same keys after it."""
        kind = type(message)
        if client not in self.parked and kind is not Claim:
            return False
        if kind not in ORDERED and not (kind is Ask and message.what == "fence"):  # type: ignore[union-attr]
            return False
        self.parked.setdefault(client, []).append(message)
        return True

    def left(self, client: Client) -> None:
        """What it has said does not count any more."""
        self.parked.pop(client, None)

    def tick(self, handle: Callable[[str, Message, float], None], now: float) -> None:
        """Nobody is waited for any more: what clients have said is taken in."""
        for session, until in list(self.recovery.absent.items()):
            if now >= until:
                del self.recovery.absent[session], self.nodes[session]
        if not self.recovery.absent and self.parked:
            parked, self.parked = self.parked, {}
            for client, messages in parked.items():
                for message in messages:
                    handle(client.session, message, now)

    def deadline(self) -> float | None:
        """When `tick` is needed."""
        return min(self.recovery.absent.values(), default=0.0) if self.parked else None

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        require(self.nodes.keys() == self.recovery.absent.keys(), "absent: the books differ")
        require(all(self.parked.values()), "absent: an empty list was kept")
        require(not any(client.gone for client in self.parked), "absent: a client that is gone")
