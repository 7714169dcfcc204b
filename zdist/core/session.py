"""One side of a numbered conversation: what was sent and is not acknowledged is kept and sent again. PURE.

A connection delivers in order but may break and lose any suffix of what was sent, accepted or not. So every packet of
control messages carries a number and the number of the last one received; after a new hello both sides send again what
the other has not got, and drop what they have seen. What was said in an earlier life of the session, or to an earlier
broker, may still arrive: the numbers of a life are far from those of all others.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any, Final

from zdist import limits
from zdist.core.machine import require
from zdist.protocol.messages import (
    Answer,
    Buffer,
    Data,
    Define,
    Erred,
    Failed,
    Finished,
    Killed,
    Message,
    Packet,
    Run,
    payload_size,
)

__all__ = ["Session", "base_of", "batches", "parcels", "weight_of"]

PARCEL: Final = 16  # requests for data in one packet
MESSAGES: Final = 8  # in one packet: each is bounded by those who make it, and so is the packet
ALONE: Final = (Answer, Define, Erred, Failed, Killed)  # rare, and as large as users make them


def batches(messages: list[Message]) -> list[list[Message]]:
    """What goes into one packet each, in order; nearly always all of it."""
    if len(messages) <= MESSAGES and not any(isinstance(message, ALONE) for message in messages):
        return [messages]
    out: list[list[Message]] = [[]]
    for message in messages:
        alone = isinstance(message, ALONE)
        if out[-1] and (alone or len(out[-1]) == MESSAGES or isinstance(out[-1][-1], ALONE)):
            out.append([])
        out[-1].append(message)
    return out


def weight_of(packet: Packet, seen: set[int]) -> int:
    """Roughly how many bytes it takes to keep a packet, beyond what its sender's tables hold anyway.

    ``seen``: ids of errors that were counted before; one may stand in thousands of rows.
    """
    return sum([_weight(message, seen) for message in packet.messages])


def _weight(message: Message, seen: set[int]) -> int:
    if isinstance(message, Define):
        return 100
    if isinstance(message, Run):
        return sum([100 + sum([_bytes(dep[3]) for dep in row[5]]) for row in message.rows])
    if isinstance(message, Finished):
        return sum([200 + _bytes(row[3]) for row in message.rows])
    total = 0
    stack: list[Any] = list(message)
    while stack:
        value = stack.pop()
        if isinstance(value, tuple | list):
            total += 60
            stack += value
        elif isinstance(value, dict):
            stack += value
            stack += value.values()
        elif isinstance(value, str | bytes | Buffer) and id(value) not in seen:
            total += 50 + (payload_size(value) if not isinstance(value, str) else len(value))
            seen.add(id(value))
        else:
            total += 10
    return total


def _bytes(value: Any) -> int:
    return 0 if value is None else len(value) if type(value) is bytes else payload_size(value)


def parcels(messages: list[Message]) -> list[tuple[Message, ...]]:
    """Unnumbered messages for one destination, as packets: each Data is one, since the other side gets a packet only
    when all of it is there, and is to work on the first while the next is on its way; of others a few go together."""
    if len(messages) == 1:
        return [(messages[0],)]
    data: list[tuple[Message, ...]] = [(message,) for message in messages if type(message) is Data]
    rest = [message for message in messages if type(message) is not Data] if data else messages
    return [*(tuple(rest[i : i + PARCEL]) for i in range(0, len(rest), PARCEL)), *data]


def base_of(epoch: int, life: int) -> int:
    """The number before the first of a session's life at the broker of this epoch."""
    return ((epoch * 4096 + life) & 0x7FFFFFFF) << 32


class Session:
    """Numbers, acknowledgements and the packets kept for sending again."""

    __slots__ = ("base", "id", "pending_since", "received", "sent", "unacked", "unacknowledged", "weight", "weights")

    def __init__(self, session: str, base: int = 0) -> None:
        self.id = session
        self.reset(base)

    def reset(self, base: int = 0) -> None:
        """Start from nothing, as both sides do after a fresh welcome; ``base``: see `base_of`."""
        self.sent = self.received = self.base = base
        self.unacked: deque[Packet] = deque()
        self.weights: deque[int] = deque()  # bytes of the first of them, as far as `weigh` has counted
        self.weight = 0  # their sum
        self.unacknowledged = 0  # packets taken in since the last acknowledgement went out
        self.pending_since = 0.0  # when the first of them came

    def wrap(self, messages: list[Message]) -> Packet:
        """The next numbered packet; kept until it is acknowledged."""
        self.sent += 1
        packet = Packet(self.id, self.sent, self.received, tuple(messages))
        self.unacked.append(packet)
        self.unacknowledged = 0
        return packet

    def loose(self, *messages: Message) -> Packet:
        """An unnumbered packet: hellos, heartbeats and bare acknowledgements."""
        self.unacknowledged = 0
        return Packet(self.id, 0, self.received, messages)

    def acknowledge(self, ack: int) -> None:
        """The other side has everything up to ``ack``."""
        unacked = self.unacked
        if ack > self.sent:
            return  # of another life
        while unacked and unacked[0].seq <= ack:
            unacked.popleft()
            if self.weights:
                self.weight -= self.weights.popleft()

    def weigh(self) -> int:
        """Bytes that are kept for sending again, roughly; each packet is looked at once."""
        seen: set[int] = set()
        for packet in islice(self.unacked, len(self.weights), None):
            weight = weight_of(packet, seen)
            self.weights.append(weight)
            self.weight += weight
        return self.weight

    def accept(self, packet: Packet, now: float) -> bool | None:
        """Take a packet in: True for new, False for one seen before, None for a gap (something was lost before it)."""
        self.acknowledge(packet.ack)
        if packet.seq == 0:
            return True
        if packet.seq <= self.received:
            return False
        if packet.seq > self.received + 1:
            return None
        self.received = packet.seq
        if not self.unacknowledged:
            self.pending_since = now
        self.unacknowledged += 1
        return True

    def ack_due(self, now: float) -> bool:
        """Should an acknowledgement go out although there is nothing else to send?"""
        waiting = self.unacknowledged
        return waiting >= limits.ACK_EVERY or (waiting > 0 and now >= self.pending_since + limits.ACK_DELAY)

    def resend(self, received: int) -> list[Packet]:
        """What the other side, which has everything up to ``received``, has not got."""
        self.acknowledge(received)
        return [packet._replace(ack=self.received) for packet in self.unacked]

    def check(self) -> None:
        """Kept packets are consecutive and end at the last one sent."""
        numbers = [packet.seq for packet in self.unacked]
        require(numbers == list(range(self.sent - len(numbers) + 1, self.sent + 1)), f"session {self.id}: {numbers}")
