"""A broker's endpoint without sockets: a test says what comes from its connections, and sees what goes to them."""

from __future__ import annotations

from typing import Any

from zdist.core.machine import Log, Route
from zdist.protocol.messages import Ask, Define, Hello, Message, Packet, Subscribe, function_digest
from zdist_broker.endpoint import BrokerEndpoint
from zdist_broker.machine import BrokerMachine
from zdist_broker.relay import Relay

TOKEN = "secret"
FN = function_digest(b"code")


class Desk:
    """An endpoint and what it sends, by channel and connection."""

    def __init__(self) -> None:
        relay = Relay()
        self.machine = BrokerMachine(epoch=1, cluster="c", relay=relay)
        self.endpoint = BrokerEndpoint(self.machine, relay, epoch=1, token=TOKEN, cluster="c", bulk="tcp://bulk")
        self.now = 1.0
        self.seq: dict[str, int] = {}

    def hello(self, session: str, hop: bytes = b"", *, token: str = TOKEN, epoch: int = 0, **info: Any) -> None:
        role = {"c": "client", "w": "worker", "n": "node"}[session[0]]
        hello = Hello(role, token, epoch, 0, info)
        self.loose(session, hello, hop=hop)

    def loose(self, session: str, *messages: Message, hop: bytes = b"", ack: int = 0, channel: str = "control") -> None:
        route = Route(channel, hop or session.encode())
        self.endpoint.receive(route, Packet(session, 0, self.base(session) + ack, messages), self.now)

    def base(self, session: str) -> int:
        """The number before the first of its life."""
        peer = self.endpoint.peers.get(session)
        return peer.session.base if peer is not None else 0

    def say(self, session: str, *messages: Message, ack: int = 0) -> None:
        number = self.seq[session] = self.seq.get(session, 0) + 1
        base = self.base(session)
        packet = Packet(session, base + number, base + ack, messages)
        self.endpoint.receive(Route("control", session.encode()), packet, self.now)

    def turn(self, seconds: float = 0.0) -> list[tuple[Route, Packet]]:
        self.now += seconds
        self.endpoint.turn(self.now)
        packets = self.endpoint.flush(self.now)
        self.endpoint.check()
        return packets

    def to(self, hop: str, seconds: float = 0.0) -> list[Packet]:
        return [packet for route, packet in self.turn(seconds) if route.hop == hop.encode()]

    def logged(self) -> list[Log]:
        logs = [command for command in self.machine.commands if isinstance(command, Log)]
        self.machine.commands.clear()
        return [log for log in logs if log.level != "info"]

    def cluster(self) -> None:
        """A worker that takes work, and a client with a function."""
        self.hello("w-1", node="", address="tcp://w")
        self.say("w-1", Subscribe(1000, (), {}, False))
        self.hello("c-1")
        self.say("c-1", Define(FN, "f", b"code"))
        self.turn()

    def answers(self, session: str, count: int, size: int = 50) -> None:
        """Let the broker have so much to tell a client."""
        for n in range(count):
            self.say(session, Ask(n, "x" * size, None))
        self.turn()


def kinds(packets: list[Packet]) -> list[str]:
    return [type(m).__name__ for packet in packets for m in packet.messages]
