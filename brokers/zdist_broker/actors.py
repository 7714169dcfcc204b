"""Actors: calls on their way where no peer path is open, and what may not happen to a result that is one. PURE.

The broker keeps nothing of a call. Its caller numbers it and asks what has become of it, so a broker may be replaced in
the middle; that an actor is lost the caller hears by the actor's key.
"""

from __future__ import annotations

from zdist.limits import CALL_BYTES
from zdist.protocol.actors import GONE, ActorCall, ActorReply
from zdist.protocol.messages import payload_size
from zdist_broker.recovery import Recovery
from zdist_broker.state import Client, Tables, Worker

__all__ = ["Actors"]


class Actors:
    """Hands calls and replies on."""

    def __init__(self, tables: Tables, recovery: Recovery) -> None:
        self.tables = tables
        self.recovery = recovery

    def call(self, client: Client, message: ActorCall, now: float) -> None:
        """To the actor's worker, in the name of the client that sent it."""
        worker = self.tables.workers.get(message.worker)
        size = sum([payload_size(row[4]) for row in message.rows])
        until = self.recovery.until
        if size > CALL_BYTES:
            self._refuse(client, message, f"a call of {size} bytes, at most {CALL_BYTES} are possible")
        elif worker is not None:
            self.tables.tell(worker, message._replace(token="", caller=client.session))
        elif until is None or now >= until:  # else it may be about to come back, and the client asks again
            self._refuse(client, message, "its worker is gone")

    def _refuse(self, client: Client, message: ActorCall, reason: str) -> None:
        for row in message.rows:
            self.tables.tell(client, ActorReply(client.session, row[0], GONE, reason.encode()))

    def reply(self, worker: Worker, message: ActorReply, now: float) -> None:
        """Back to the caller; one that has left is not waited for."""
        client = self.tables.clients.get(message.caller)
        if client is None:
            self.tables.ignored += 1
            return
        size = payload_size(message.value)
        if size > CALL_BYTES:
            text = f"the reply of worker {worker.name} has {size} bytes, at most {CALL_BYTES} are possible"
            message = message._replace(code=GONE, value=text.encode())
        self.tables.tell(client, message)
