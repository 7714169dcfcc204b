"""The same for workers, clients and nodes: what comes to their sockets from strangers, token holders and the relay."""

from __future__ import annotations

from random import Random
from typing import Any

import hostile
import pytest

from zdist.core.endpoint import PeerEndpoint
from zdist.core.ledger import Ledger
from zdist.core.machine import BULK, CONTROL, Log, Route
from zdist.core.node import NodeMachine
from zdist.core.worker import Freeze, WorkerMachine
from zdist.protocol.codec import decode, encode
from zdist.protocol.messages import TYPES, Data, Get, Members, Packet, Probe, ProbeReply, Taken, Welcome

TOKEN = "token"
WITH_TOKEN = (Get, Probe)
PEERS = ("tcp://w-1", "tcp://w-2")


class Target:
    """A peer's endpoint, welcomed by a broker, that knows two workers and holds a little."""

    def __init__(self, role: str) -> None:
        self.machine: Any
        if role == "worker":
            self.machine = WorkerMachine("w-0", TOKEN, name="W", node="n-0", threads=2)
            for key in "abc":
                self.machine.store.put_value(key, hostile.FIRST + 1, key, 100, "str")
            self.machine.store.put_blob("d", hostile.FIRST + 2, b"blob" * 1000, "bytes")
        elif role == "client":
            self.machine = Ledger("c-1", TOKEN, {"name": "c"})
        else:
            self.machine = NodeMachine("n-0", "node", 1)
            self.machine.start(0.0)
        self.endpoint = PeerEndpoint(self.machine, {"worker": "w-0", "client": "c-1", "node": "n-0"}[role], TOKEN)
        self.now = 1.0
        self.seq = 0
        self.logs: list[Log] = []
        self.put(CONTROL, Packet("w-0", 0, 0, (Welcome(1, 0, True, {"bulk": "tcp://bulk", "lease": 10.0}),)))
        if role != "node":
            rows = tuple((f"w-{n}", address, f"W{n}", "host", "n-1") for n, address in enumerate(PEERS, 1))
            self.say(Members(rows))

    def put(self, route: Route, packet: Packet) -> None:
        self.endpoint.receive(route, decode([bytes(frame) for frame in encode(packet)]), self.now)

    def say(self, *messages: Any) -> None:
        """The broker says something, numbered."""
        session = self.endpoint.session
        self.put(CONTROL, Packet(session.id, session.received + 1, session.sent, messages))

    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.endpoint.turn(self.now)
        for command in self.machine.commands[:]:
            if isinstance(command, Freeze):
                self.machine.frozen(command.key, command.attempt, b"frozen" * 100, self.now)
            elif isinstance(command, Log):
                self.logs.append(command)
        self.machine.commands.clear()
        for _, packet in self.endpoint.flush(self.now):
            encode(packet)
        deadline = self.endpoint.deadline()
        assert deadline == deadline
        self.machine.check()


def from_data_sockets(random: Random, target: Target) -> None:
    """Strangers and token holders on the worker's own socket; the relay; other workers' answers."""
    kind = random.choice((Get, Get, Probe, Data, ProbeReply, Taken, random.choice(TYPES)))
    made: Any = hostile.message(random, kind)
    if "token" in kind._fields and random.random() < 0.7:
        made = made._replace(token=TOKEN)
    hop = bytes([random.randrange(5)])
    route = random.choice((Route("data", hop), Route("data", hop), BULK, Route(random.choice(PEERS))))
    target.put(route, Packet(random.choice(hostile.TEXTS)[:64], random.choice(hostile.NUMBERS), 0, (made,)))


@pytest.mark.parametrize("role", ["worker", "client", "node"])
@pytest.mark.parametrize("seed", range(6))
def test_what_comes_to_data_sockets_ends_no_peer(role: str, seed: int) -> None:
    random = Random(seed)
    target = Target(role)
    for _ in range(600):
        from_data_sockets(random, target)
        if random.random() < 0.3:
            target.turn(random.choice((0.0, 0.05, 0.6)))
    for _ in range(30):
        target.turn(0.5)
    if role == "worker":
        assert not target.machine.store.waiting and not target.machine.tasks
    hops = [log for log in target.logs if log.event in ("peer.garbage", "data.refused")]
    assert len(hops) <= 2 * 5 + 3, "once for each connection"


def test_a_wrong_token_is_logged_once_for_each_connection() -> None:
    target = Target("worker")
    for n in range(100):
        for hop in (b"1", b"2"):
            target.put(Route("data", hop), Packet("c-9", 0, 0, (Probe(n, "wrong"),)))
            target.put(Route("data", hop), Packet("c-9", 0, 0, (Get(n, "wrong", "w-0", "c-9", (("d", 0, 0),)),)))
    target.turn(0.0)
    assert [log.event for log in target.logs].count("data.refused") == 2


def test_no_large_packets_come_to_a_worker_s_socket() -> None:
    target = Target("worker")
    assert target.endpoint.admits(Route("data", b"h"), 1, 1 << 20)
    assert not target.endpoint.admits(Route("data", b"h"), 2, 100)
    assert not target.endpoint.admits(Route("data", b"h"), 1, 1 << 30)
