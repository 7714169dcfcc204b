"""Whatever well-typed messages sessions send: nothing is raised, every invariant holds, and nothing is left of them."""

from __future__ import annotations

from random import Random

import hostile
import pytest
from broker_world import FN, SLOW
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zdist import limits
from zdist.core.machine import Log, Route
from zdist.errors import ProtocolError
from zdist.protocol.codec import decode, encode
from zdist.protocol.messages import (
    TYPES,
    Ask,
    BulkHello,
    Bye,
    Cancel,
    Data,
    Define,
    Done,
    Erred,
    Get,
    Held,
    Hello,
    Hold,
    Lane,
    Message,
    Missing,
    Packet,
    Ping,
    Place,
    Release,
    Returned,
    Seceded,
    Submit,
    SubmitEarly,
    Subscribe,
    Taken,
    Want,
)
from zdist_broker.endpoint import BrokerEndpoint
from zdist_broker.machine import BrokerMachine, Expel
from zdist_broker.relay import Relay

TOKEN = "token"
SESSIONS = ("c-1", "c-2", "w-1", "w-2", "n-1", "n-2")
ROLES = {"c": "client", "w": "worker", "n": "node"}
OFTEN = {  # what changes most when it is right
    "c": (Submit, Submit, Submit, Want, Release, Cancel, Hold, Place, Ask, Define, Lane, SubmitEarly),
    "w": (Done, Done, Done, Done, Erred, Erred, Returned, Held, Missing, Seceded, Subscribe),
}


class Siege:
    """A broker's endpoint, driven as its loop does, with every packet through the codec."""

    def __init__(self, random: Random) -> None:
        self.random = random
        relay = Relay()
        self.machine = BrokerMachine(epoch=1, cluster="c", relay=relay)
        self.endpoint = BrokerEndpoint(self.machine, relay, epoch=1, token=TOKEN, cluster="c", bulk="tcp://b")
        self.now = 1.0
        self.seq: dict[str, int] = {}
        self.acks: dict[str, int] = {}
        self.logs: list[Log] = []
        for session in SESSIONS:
            self.greet(session)
        for session in ("c-1", "c-2"):
            self.send(session, Define(FN, "fast", b"pickled fast"), Define(SLOW, "slow", b"pickled slow"))
        for session in ("w-1", "w-2"):
            self.send(session, Subscribe(2, ("a",), {"mem": 2.0}, False))

    # --- the wire ---------------------------------------------------------------------------------------

    def put(self, route: Route, packet: Packet) -> None:
        arrived = decode([bytes(frame) for frame in encode(packet)])
        self.endpoint.receive(route, arrived, self.now)
        self.endpoint.check()

    def greet(self, session: str, hop: str = "") -> None:
        """Hellos on both sockets, over the session's own connections or another's."""
        hop = hop or session
        if session not in self.endpoint.peers:
            self.seq[session] = self.acks[session] = 0
        info = {"name": session.upper(), "host": "h"}
        if session[0] == "w":
            info |= {"node": f"n-{session[-1]}", "address": f"tcp://{session}"}
        hello = Hello(ROLES[session[0]], TOKEN, 1, self.acks[session], info)
        self.put(Route("control", hop.encode()), Packet(session, 0, self.acks[session], (hello,)))
        if session not in self.endpoint.peers or self.endpoint.peers[session].session.received < self.seq[session]:
            self.seq[session] = 0
        self.put(Route("bulk", hop.encode()), Packet(session, 0, 0, (BulkHello(TOKEN),)))

    def send(self, session: str, *messages: Message) -> None:
        if session not in self.endpoint.peers:
            self.greet(session)
        peer = self.endpoint.peers.get(session)
        if peer is not None and peer.control is not None:  # else another session speaks over its connection
            self.seq[session] = peer.session.received + 1
            self.put(Route("control", peer.control), Packet(session, self.seq[session], self.acks[session], messages))

    def turn(self) -> None:
        """Timers, commands, and everything that is sent can be encoded."""
        self.endpoint.turn(self.now)
        while self.machine.commands:
            commands = self.machine.commands[:]
            self.machine.commands.clear()
            for command in commands:
                if isinstance(command, Expel):
                    self.endpoint.expel(command.session, command.reason, self.now)
                elif isinstance(command, Log):
                    self.logs.append(command)
        for route, packet in self.endpoint.flush(self.now):
            encode(packet)
            session = route.hop.decode()
            if route.channel == "control" and self.random.random() < 0.9 and session in self.acks:
                self.acks[session] = max(packet.seq, self.acks[session])
        deadline = self.endpoint.deadline()
        assert deadline == deadline and deadline <= self.now + limits.HEARTBEAT  # a number, and not for ever
        self.endpoint.check()

    # --- steps --------------------------------------------------------------------------------------------

    def likely(self, session: str) -> Message:
        """A message that changes something: absurd in parts, about things that are there."""
        random = self.random
        made = hostile.message(random, random.choice(OFTEN[session[0]]))
        if isinstance(made, Submit):
            options = random.choice(
                ((), (), (), (1,), (0, 5), (0, 0, ("W-1",), True), (0, 0, (), False, (("mem", 1.0),)))
            )
            return made._replace(fn=random.choice((FN, FN, SLOW)), options=options)
        if isinstance(made, Define):
            return Define(*random.choice(((FN, "fast", b"pickled fast"), (SLOW, "slow", b"pickled slow"))))
        lane = self.machine.tables.clients[session].lane if session[0] == "c" else None
        if isinstance(made, Lane):
            return Lane("", lane.first if lane is not None and random.random() < 0.2 else 0, 0)
        if isinstance(made, SubmitEarly) and lane is not None:
            attempt = lane.last + random.choice((1, 1, 1, 2, 0, 500))
            rows = [
                (gen, attempt + n, f"lone-{random.randrange(20)}", args)
                for n, (gen, _, _, args) in enumerate(made.rows)
            ]
            return SubmitEarly(random.choice((FN, FN, SLOW, b"")), tuple(rows))
        if isinstance(made, Release):
            wants = self.machine.tables.clients[session].wants
            return Release(tuple((key, gen) for key, gen in wants.items() if random.random() < 0.5))
        worker = self.machine.tables.workers.get(session)  # none between its death and the end of the turn
        assigned = [(key, task.attempt) for key, task in worker.assigned.items()] if worker is not None else []
        if isinstance(made, Done | Erred | Returned | Held | Seceded) and assigned:
            key, attempt = random.choice(assigned)
            if isinstance(made, Seceded):
                return Seceded(key, attempt, made.back)
            return made._replace(rows=tuple((key, attempt, *row[2:]) for row in made.rows))  # type: ignore[arg-type]
        return made

    def step(self) -> None:
        random = self.random
        session = random.choice(SESSIONS)
        route = Route(random.choice(("control", "control", "control", "bulk")), random.choice(SESSIONS).encode())
        action = random.randrange(20)
        if action < 11:
            if action < 8 and session[0] != "n":
                if session not in self.endpoint.peers:
                    self.greet(session)
                if session in self.endpoint.peers:
                    self.send(session, self.likely(session))
                self.turn() if random.random() < 0.5 else None
            else:
                kinds = [random.choice(TYPES) for _ in range(random.choice((1, 1, 2)))]
                self.send(session, *[hostile.message(random, kind) for kind in kinds])
        elif action < 13:
            kind = random.choice((Get, Data, Taken, Ping))
            self.put(Route("bulk", session.encode()), Packet(session, 0, 0, (hostile.message(random, kind),)))
        elif action == 13:  # any numbers, any name, over any connection
            seq, ack = random.choice(hostile.NUMBERS), random.choice(hostile.NUMBERS)
            made = hostile.message(random, random.choice(TYPES))
            self.put(route, Packet(random.choice(hostile.TEXTS)[: limits.MAX_SESSION], seq, ack, (made,)))
        elif action == 14:
            self.greet(session, random.choice((session, *SESSIONS)))
        elif action == 15:
            self.endpoint.undelivered(route, self.now)
        elif action == 16:
            self.endpoint.garbled(route, ProtocolError("garbage"), self.now)
        elif action == 17 and random.random() < 0.3:
            self.put(Route("control", session.encode()), Packet(session, 0, 0, (Bye("x" * 5000),)))
        else:
            self.now += random.choice((0.0, 0.01, 0.2, 1.1))
            self.turn()

    def end(self) -> None:
        """Everybody leaves, some by saying so."""
        for session in SESSIONS[::2]:
            self.put(Route("control", session.encode()), Packet(session, 0, 0, (Bye("done"),)))
        self.turn()
        for _ in range(80):
            self.now += 0.5
            self.turn()
        tables, queries, endpoint = self.machine.tables, self.machine.queries, self.endpoint
        relay, placement = endpoint.relay, self.machine.placement
        for table in (
            tables.tasks, tables.functions, tables.clients, tables.workers, tables.nodes, tables.placing, tables.cache,
            tables.posted, self.machine.peers, self.machine.lanes.lanes, queries.pending, queries.waiting,
            queries.restarts, endpoint.peers, endpoint.control, endpoint.bulk, endpoint.due, endpoint.lagging,
            relay.grants, relay.queues, relay.early.gets, relay.debts, relay.early.counts, relay.refusals.keys,
            placement.loaded, placement.touched,
        ):  # fmt: skip
            assert not table
        assert tables.cached == 0 and not self.machine.busy() and not self.machine.out
        unforeseen = [log.fields for log in self.logs if log.event == "peer.unforeseen"]
        assert not unforeseen


def siege(random: Random, steps: int) -> None:
    life = Siege(random)
    for _ in range(steps):
        life.step()
    life.end()


@given(st.randoms(use_true_random=False), st.integers(1, 60))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_hostile_sessions_leave_nothing_behind(random: Random, steps: int) -> None:
    siege(random, steps)


@pytest.mark.parametrize("seed", range(12))
def test_long_sieges(seed: int) -> None:
    siege(Random(seed), 400)
