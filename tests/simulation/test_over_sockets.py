"""Schedules of the simulator again, with every packet carried by real sockets: nothing may be any different."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import zdist.testing.network
from zdist.core.machine import Route
from zdist.protocol.codec import decode
from zdist.protocol.messages import Packet
from zdist.testing.network import Link, Network, Process
from zdist.testing.schedule import Schedule
from zdist.transport import sockets
from zdist.transport.channels import Channels

SEEDS = range(6)
ARRIVES = 10_000  # milliseconds


class Collector:
    """An endpoint that takes what its channels receive; anything else that happens to them is an error."""

    def __init__(self) -> None:
        self.came: list[tuple[Route, Packet]] = []

    def receive(self, route: Route, packet: Packet, now: float) -> None:
        self.came.append((route, packet))

    def admits(self, route: Route, frames: int, nbytes: int) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the sockets called {name}")


class Side:
    """One side of connections: the driver's channels around one socket."""

    def __init__(self, context: sockets.Context, channel: str, sock: zmq.Socket[bytes], *, router: bool) -> None:
        self.collector = Collector()
        self.channels = Channels(self.collector, context, "wire")
        self.channels.attach(channel, sock, router=router)
        self.sock = sock

    def take(self, now: float) -> tuple[Route, Packet]:
        """The one packet that is under way to this side."""
        while not self.collector.came:
            assert self.sock.poll(ARRIVES), "a packet did not arrive"
            self.channels._drain(self.sock, now)
        (packet,) = self.collector.came
        self.collector.came.clear()
        return packet

    def close(self) -> None:
        self.channels._listeners.shut()
        self.sock.close(0)


class Wires:
    """The sockets of all processes of a schedule."""

    def __init__(self, folder: Path, protocol: str) -> None:
        self.context = sockets.context(io_threads=1)
        self.folder, self.protocol = folder, protocol
        self.listeners: dict[tuple[Process, str], tuple[Side, str]] = {}
        self.sides: list[Side] = []
        self.carried = 0

    def listener(self, process: Process, target: str) -> tuple[Side, str]:
        """The side that listens there, and its address."""
        if (process, target) not in self.listeners:
            sock = sockets.router(self.context)
            free = f"ipc://{self.folder}/{len(self.listeners)}" if self.protocol == "ipc" else "tcp://127.0.0.1:0"
            address = sockets.bind(sock, free, insecure=False)
            self.sides.append(Side(self.context, target, sock, router=True))
            self.listeners[process, target] = self.sides[-1], address
        return self.listeners[process, target]

    def dialler(self, channel: str, address: str) -> Side:
        side = Side(self.context, channel, sockets.dealer(self.context, address), router=False)
        self.sides.append(side)
        return side

    def close(self) -> None:
        for side in self.sides:
            side.close()
        self.context.term()


@pytest.fixture(params=["ipc", "tcp"])
def wires(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Wires]:
    made = Wires(tmp_path, request.param)
    yield made
    made.close()


def wired(wires: Wires) -> type[Link]:
    """Connections whose packets go through these sockets at the moment at which they arrive."""

    class WiredLink(Link):
        def __init__(self, network: Network, dialler: Process, channel: str, listener: Process, target: str) -> None:
            super().__init__(network, dialler, channel, listener, target)
            self.far, address = wires.listener(listener, target)
            self.near = wires.dialler(channel, address)
            self.real_hop = b""  # known with the first packet

        def _carry(self, direction: int, packet: Packet) -> Packet:
            wires.carried += 1
            now = self.network.now
            if direction == 0:
                self.near.channels._send(Route(self.channel), packet, now)
                route, packet = self.far.take(now)
                assert route.channel == self.target and self.real_hop in (b"", route.hop)
                self.real_hop = route.hop
            else:
                self.far.channels._send(Route(self.target, self.real_hop), packet, now)
                route, packet = self.near.take(now)
                assert route == Route(self.channel)
            return packet

        def _arrive(self, direction: int) -> None:
            queue = self.queues[direction]
            if not self.open or self.blocked or not queue:
                return
            packet = self._carry(direction, decode(queue.popleft()))
            self.network.delivered += 1
            if direction == 0:
                self.listener.deliver(Route(self.target, self.hop), packet)
            else:
                self.dialler.deliver(Route(self.channel), packet)

        def close(self) -> None:
            if self.open:
                super().close()
                self.near.close()
                wires.sides.remove(self.near)

    return WiredLink


def told(schedule: Schedule) -> tuple[Any, ...]:
    report, network = schedule.run(), schedule.network
    return report.tasks, report.faults, report.outcomes, network.delivered, network.lost, network.now


@pytest.mark.timeout(300)
def test_schedules_are_the_same_over_sockets(wires: Wires, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [told(Schedule(seed)) for seed in SEEDS]
    monkeypatch.setattr(zdist.testing.network, "Link", wired(wires))
    assert [told(Schedule(seed)) for seed in SEEDS] == expected
    assert wires.carried > 5_000
