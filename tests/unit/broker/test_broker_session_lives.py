"""Lives of a session: what is said in one, or to one, is not taken for that of another when connections break."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from zdist.core.endpoint import PeerEndpoint
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL, Route
from zdist.core.node import NodeMachine
from zdist.core.worker import WorkerMachine
from zdist.limits import HEARTBEAT
from zdist.protocol.messages import Packet, Welcome
from zdist_broker.endpoint import BrokerEndpoint
from zdist_broker.machine import BrokerMachine
from zdist_broker.relay import Relay

CLIENT, NODE, WORKER = "c-1", "n-1", "w-1"
TOKEN = "t"
STEP = 0.05


class Line:
    """A broker and its peers; what they say takes no time, unless a test carries it."""

    def __init__(self, **machines: Any) -> None:
        self.now = 1.0
        self.peers = {session: PeerEndpoint(machine, session, TOKEN) for session, machine in machines.items()}
        self.cuts = dict.fromkeys(self.peers, 0)
        self.under_way: dict[bytes, list[Packet]] = {}
        self.welcomes: Counter[str] = Counter()
        self.lead(1)
        self.pass_time(1.0)

    def lead(self, epoch: int) -> None:
        """A broker begins; an earlier one, and all connections to it, are gone."""
        relay = Relay()
        self.machine = BrokerMachine(epoch=epoch, cluster="c", relay=relay)
        self.broker = BrokerEndpoint(self.machine, relay, epoch=epoch, token=TOKEN, cluster="c", bulk="tcp://bulk")
        for session in self.peers:
            self.cut(session)

    def cut(self, session: str) -> None:
        """Its connection breaks, with what is under way, and it finds out."""
        self.cuts[session] += 1
        self.peers[session].undelivered(CONTROL, self.now)

    def give_up(self, session: str) -> None:
        """Its lease is over, as its connection is."""
        self.broker.expel(session, "silent", self.now)
        self.cut(session)

    def hop(self, session: str) -> bytes:
        return f"{session} {self.cuts[session]}".encode()

    def up(self, session: str) -> None:
        """What the peer has to say comes to the broker."""
        peer = self.peers[session]
        peer.turn(self.now)
        peer.commands.clear()
        for route, packet in peer.flush(self.now):
            if route == CONTROL:
                self.broker.receive(Route("control", self.hop(session)), packet, self.now)

    def down(self, session: str) -> list[Packet]:
        """What the broker has to say to the peer, on its way."""
        self.broker.turn(self.now)
        self.machine.commands.clear()
        for route, packet in self.broker.flush(self.now):
            if route.channel == "control":
                self.under_way.setdefault(route.hop, []).append(packet)
        packets = self.under_way.pop(self.hop(session), [])
        self.welcomes[session] += sum(is_welcome(packet) for packet in packets)
        return packets

    def arrive(self, session: str, packets: list[Packet]) -> None:
        for packet in packets:
            self.peers[session].receive(CONTROL, packet, self.now)

    def pass_time(self, seconds: float, *only: str) -> None:
        """All peers, or only these, say and hear what there is."""
        end = self.now + seconds
        while self.now < end:
            for session in only or self.peers:
                self.up(session)
            for session in only or self.peers:
                self.arrive(session, self.down(session))
            self.now += STEP


def is_welcome(packet: Packet) -> bool:
    return bool(packet.messages) and isinstance(packet.messages[0], Welcome)


# --- the welcome is lost, with what came after it ---------------------------------------------------------


@pytest.fixture
def line() -> Line:
    """A node, and a client that tells it something."""
    node = NodeMachine(NODE, "one", 1)
    client = Ledger(CLIENT, TOKEN, {"name": "C", "host": "h", "pid": 1, "shm": False})
    return Line(**{NODE: node, CLIENT: client})


def ask(line: Line, what: str, args: Any) -> Any:
    return line.peers[CLIENT].machine.ask(what, args)  # type: ignore[attr-defined]


def lose_the_welcome(line: Line) -> None:
    line.up(NODE)
    line.up(CLIENT)
    lost = line.down(NODE)
    assert len(lost) > 1 and is_welcome(lost[0])
    line.cut(NODE)


@pytest.mark.parametrize("how", ["given up", "successor"])
def test_an_order_that_is_lost_with_the_welcome_before_it_comes_again(line: Line, how: str) -> None:
    node = line.peers[NODE].machine
    for n in range(20):  # so it has received more than it is going to be sent
        ask(line, "scale", n % 2)
        line.pass_time(0.1)
        assert node.wanted == n % 2  # type: ignore[attr-defined]
    if how == "given up":
        line.give_up(NODE)
    else:
        line.lead(2)
        line.pass_time(2.0, CLIENT)
    ask(line, "scale", 2)
    lose_the_welcome(line)
    before = line.welcomes[NODE]
    line.pass_time(30.0)
    assert node.wanted == 2  # type: ignore[attr-defined]
    assert line.welcomes[NODE] - before < 5


@pytest.mark.parametrize("verb", ["is_set", "set"])
def test_operations_do_not_wait_for_a_copy_that_was_lost_with_the_welcome_before_it(line: Line, verb: str) -> None:
    for n in range(10):
        done = ask(line, "shared", ((), "event", f"event {n}", "set", (), None))
        line.pass_time(0.3)
        assert done.done
    line.give_up(NODE)
    lose_the_welcome(line)  # and the whole copy
    line.pass_time(3.0)
    done = ask(line, "shared", ((), "event", "other", verb, (), None))
    before = line.welcomes[NODE]
    line.pass_time(60.0)
    assert done.done
    assert NODE in line.machine.tables.nodes and line.welcomes[NODE] - before < 5


# --- a welcome is late ----------------------------------------------------------------------------------


@pytest.mark.parametrize("unsaid", [False, True])
def test_a_worker_is_heard_that_was_welcomed_late_to_the_life_before(unsaid: bool) -> None:
    worker = WorkerMachine(WORKER, TOKEN, name="one", node=NODE)
    worker.address = "tcp://one"
    line = Line(**{WORKER: worker})
    for n in range(5):
        worker.called(n, True, b"")
        line.pass_time(0.3)
    assert line.machine.tables.workers[WORKER].subscribed
    line.cut(WORKER)
    if unsaid:
        worker.called(9, True, b"")
    line.up(WORKER)
    late = line.down(WORKER)
    line.broker.expel(WORKER, "its node is gone", line.now)
    line.now += 0.3
    line.up(WORKER)  # it greets again: the next life begins
    lost = line.down(WORKER)
    assert is_welcome(late[0]) and is_welcome(lost[0])
    line.arrive(WORKER, late)
    line.now += HEARTBEAT
    line.up(WORKER)  # what it says in the life before comes to the next one
    line.down(WORKER)
    line.cut(WORKER)
    before = line.welcomes[WORKER]
    line.pass_time(60.0)
    assert line.machine.tables.workers[WORKER].subscribed
    assert line.welcomes[WORKER] - before < 5
