"""A session as the broker's endpoint sees it: its connections, and how far it is behind with what it was sent. PURE.

Normally a packet goes out when it is made. After a new hello, or when the socket took no more, what the peer has not
confirmed goes out again from its beginning, in portions: the next one when the last is confirmed. So a peer that does
not read costs the broker one portion at a time, however often it says hello.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from zdist.core.session import Session, weight_of
from zdist.limits import SENT_AGAIN
from zdist.protocol.messages import Hello, Packet

__all__ = ["Peer", "node_of"]


class Peer:
    """One session: its numbers, and the connections that it uses now."""

    __slots__ = (
        "begun", "behind", "bulk", "control", "crowded", "greeted", "heard", "host", "info", "mute", "node", "pinged",
        "repeats", "role", "session", "spoke", "swept", "until",
    )  # fmt: skip

    def __init__(self, session: Session, role: str, node: str, host: str, info: dict[str, Any]) -> None:
        self.session = session
        self.role = role
        self.node = node  # a worker's node, whose heartbeat keeps it alive
        self.host = host
        self.info = info  # what its machine adds to each welcome
        self.control: bytes | None = None
        self.bulk: bytes | None = None
        self.heard = 0.0
        self.pinged = False  # it is answered with the next sweep
        self.greeted = 0.0  # when its last hello was taken
        self.mute = False  # its socket took no more: nothing goes out until it speaks
        self.spoke = 0.0  # when that last happened
        self.swept = 0  # last packet that was sent before the last sweep
        self.crowded = False  # much of what it was sent is not confirmed
        self.behind = 0  # number of the next packet to send (again); 0: all have been sent
        self.until = 0  # last packet of the portion that is on its way
        self.begun = 0  # first packet of the last repetition
        self.repeats = 0  # repetitions that began there

    def knows(self, hello: Hello, epoch: int) -> bool:
        """Whether the peer has heard of this life of its session: else what it counts is from another."""
        return hello.epoch == epoch and hello.info.get("life") == self.info["life"]

    @property
    def first(self) -> int:
        """Number of the first packet that it has not confirmed; one more than the last if it has confirmed all."""
        return self.session.sent - len(self.session.unacked) + 1

    def stall(self) -> None:
        """The socket did not take a packet."""
        self.mute = True
        self.behind = self.first

    def repeat(self) -> list[Packet]:
        """What is not confirmed, from its beginning: the first portion."""
        first = self.first
        self.repeats = self.repeats + 1 if first == self.begun and self.session.unacked else 0
        self.begun = self.behind = first
        self.mute = False
        return self.portion()

    def portion(self) -> list[Packet]:
        """The next packets of a repetition, as many as may be on their way at once."""
        session = self.session
        first = self.first
        packets = []
        size = 0
        for packet in islice(session.unacked, max(self.behind - first, 0), None):
            packets.append(packet._replace(ack=session.received))
            size += weight_of(packet, set())
            if size >= SENT_AGAIN:
                break
        self.until = max(self.behind, first) + len(packets) - 1
        self.behind = self.until + 1 if self.until < session.sent else 0
        return packets


def node_of(hello: Hello) -> str:
    """The node that a worker names; nobody else lives by another's heartbeat."""
    node = hello.info.get("node")
    return node if hello.role == "worker" and isinstance(node, str) and node.startswith("n-") else ""
