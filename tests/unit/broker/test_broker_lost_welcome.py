"""A session that was given up comes back, and the welcome that tells it to begin anew is lost on its way."""

from __future__ import annotations

import pytest

from zdist.core.endpoint import PeerEndpoint
from zdist.core.machine import Route
from zdist.core.worker import WorkerMachine
from zdist.protocol.messages import Packet, Welcome
from zdist_broker.endpoint import BrokerEndpoint
from zdist_broker.machine import BrokerMachine
from zdist_broker.relay import Relay

WORKER = "w-1"


class Line:
    """A worker and a broker, and the connection between them."""

    def __init__(self) -> None:
        relay = Relay()
        self.machine = BrokerMachine(epoch=1, cluster="c", relay=relay)
        self.broker = BrokerEndpoint(self.machine, relay, epoch=1, token="t", cluster="c", bulk="tcp://bulk")
        self.worker = PeerEndpoint(WorkerMachine(WORKER, "t", name="one", node="n-1"), WORKER, "t")
        self.worker.machine.address = "tcp://one"  # type: ignore[attr-defined]
        self.now = 1.0
        self.hop = 0
        self.welcomes = 0

    def send(self, packets: list[tuple[Route, Packet]], *, lose_welcome: bool = False) -> None:
        for route, packet in packets:
            if route.channel == "control":
                self.broker.receive(Route("control", b"%d" % self.hop), packet, self.now)
        self.broker.turn(self.now)
        for route, packet in self.broker.flush(self.now):
            if route.channel == "control" and route.hop == b"%d" % self.hop:
                welcome = bool(packet.messages) and isinstance(packet.messages[0], Welcome)
                self.welcomes += welcome
                if not (welcome and lose_welcome):
                    self.worker.receive(Route("control"), packet, self.now)

    def pass_time(self, seconds: float, *, lose_welcome: bool = False) -> None:
        end = self.now + seconds
        while self.now < end:
            self.worker.turn(self.now)
            self.send(self.worker.flush(self.now), lose_welcome=lose_welcome)
            self.now += 0.05


@pytest.mark.parametrize("unsaid", [True, False])
def test_it_is_told_again(unsaid: bool) -> None:
    line = Line()
    line.pass_time(1.0)
    assert line.machine.tables.workers[WORKER].subscribed
    line.broker.expel(WORKER, "silent", line.now)
    line.hop += 1  # its connection was renewed
    if unsaid:
        line.worker.machine.log("info", "unsaid")
        line.worker.machine.called(1, True, b"")  # type: ignore[attr-defined]
    before = line.welcomes
    while line.welcomes == before:
        line.pass_time(0.05, lose_welcome=True)
    line.hop += 1
    line.pass_time(8.0)
    assert line.machine.tables.workers[WORKER].subscribed
    line.broker.check()
