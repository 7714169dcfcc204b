"""Workers of an earlier broker that live and have not come back: whoever claims results waits for them. PURE.

A task may hold its process's interpreter for long, and so may a pause: its node says that the worker is there, which
itself says nothing yet. What it holds and runs would be computed again, or be lost, if claims were weighed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from zdist.core.machine import require
from zdist.limits import MAX_SESSIONS, MAX_WORKERS
from zdist.protocol.messages import Alive, Claim, Message, Subscribe
from zdist_broker.recovery import Recovery
from zdist_broker.setups import Setups
from zdist_broker.state import Client, Node, Worker

__all__ = ["Absent"]

MOST: Final = 28.0  # seconds that are waited for them at most; copies are kept for longer
TOLD: Final = 0.25  # seconds from its first word in which a worker tells what it holds and runs
PARKED: Final = 100_000  # messages of one client that wait at most


class Absent:
    """Who is waited for (``Recovery.absent``: until when), and what clients have said meanwhile."""

    def __init__(self, recovery: Recovery, workers: Mapping[str, Worker], setups: Setups) -> None:
        self.recovery = recovery
        self.workers = workers
        self.setups = setups
        self.nodes: dict[str, Node] = {}  # of those that are waited for
        self.parked: dict[Client, list[Message]] = {}
        self.heard: Client | None = None  # whose messages wait no longer

    def alive(self, node: Node, message: Alive, now: float) -> None:
        """A node names its workers; those that are not here are waited for."""
        began = self.recovery.began
        if began is None or now >= began + MOST:
            return
        for session in message.workers[:MAX_WORKERS]:
            worker = self.workers.get(session)
            here = worker is not None and (worker.subscribed or worker in self.setups.open)
            if not here and len(self.nodes) < MAX_SESSIONS:  # also if its hello is, which may have waited in a socket
                self.recovery.absent[session] = began + MOST
                self.nodes[session] = node

    def subscribe(self, worker: Worker, message: Subscribe, now: float) -> None:
        """A worker speaks: it has heard that this broker is another, and tells what it has."""
        until = self.recovery.absent.get(worker.session)
        if until is not None:
            self.recovery.absent[worker.session] = min(until, now + TOLD)
        self.setups.subscribe(worker, message, now)

    def gone(self, node: Node, session: str = "") -> None:
        """A worker of this node has ended, or all are not known to live any more."""
        for worker in [worker for worker, its in self.nodes.items() if its is node and session in ("", worker)]:
            del self.nodes[worker], self.recovery.absent[worker]

    def keeps(self, client: Client, message: Message) -> bool:
        """Whether a message has to wait, with all that its client says after it."""
        if client is self.heard or (client not in self.parked and type(message) is not Claim):
            return False
        messages = self.parked.setdefault(client, [])
        messages.append(message)
        if len(messages) > PARKED:
            self.recovery.absent.clear()  # at the worst something is computed again
            self.nodes.clear()
        return True

    def hear(self, client: Client, handle: Callable[[str, Message, float], None], now: float) -> None:
        """What a client has said is taken in."""
        messages = self.parked.pop(client, ())
        self.heard = client
        for message in messages:
            if not client.gone:
                handle(client.session, message, now)
        self.heard = None

    def tick(self, handle: Callable[[str, Message, float], None], now: float) -> None:
        """Those who have had their time are waited for no longer."""
        for session, until in list(self.recovery.absent.items()):
            if now >= until:
                del self.recovery.absent[session], self.nodes[session]
        while self.parked and not self.recovery.absent:
            self.hear(next(iter(self.parked)), handle, now)

    def deadline(self) -> float | None:
        """When `tick` is needed."""
        return min(self.recovery.absent.values(), default=0.0) if self.parked else None

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        require(self.nodes.keys() == self.recovery.absent.keys(), "absent: the books differ")
        require(all(self.parked.values()), "absent: an empty list was kept")
        require(not any(client.gone for client in self.parked), "absent: a client that is gone")
