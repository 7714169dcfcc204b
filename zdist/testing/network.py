"""A simulated network: connections that deliver in order, late, and may break and lose any suffix of what was sent.

Time is virtual and every choice comes from one seeded generator, so that a seed replays a run exactly. There is no
order between connections. A broken connection is dialled again under a new routing id, as ZeroMQ does.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from zdist.core.endpoint import Dial, Endpoint, Redial
from zdist.core.machine import Log, Route
from zdist.errors import InvariantError
from zdist.protocol.codec import decode, encode
from zdist.protocol.messages import Packet

__all__ = ["Link", "Network", "Process"]


class Network:
    """Virtual time, the connections and the generator that decides everything."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.delay = 0.0005  # mean of one way, seconds
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.hops = 0
        self.links: list[Link] = []
        self.checks = 0.25  # share of the turns with work after which a machine's invariants are checked
        self.apart: set[str] = set()
        self.delivered = 0
        self.lost = 0

    def cut(self, one: Process, other: Process) -> bool:
        """Is there a partition between these two?"""
        return bool(self.apart) and ((one.name in self.apart) != (other.name in self.apart))

    def partition(self, names: set[str]) -> None:
        """From now on nothing passes between these processes and all others."""
        self.heal()
        self.apart = names
        for link in self.links:
            link.blocked = self.cut(link.dialler, link.listener)

    def heal(self) -> None:
        """The partition is over."""
        self.apart = set()
        for link in list(self.links):
            link.heal()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Do something later; what falls on the same moment happens in the order of the calls."""
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, call))

    def step(self) -> bool:
        """The next event; False if there is none."""
        if not self.events:
            return False
        when, _, call = heapq.heappop(self.events)
        self.now = max(self.now, when)
        call()
        return True

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Let time pass until ``until()`` or for ``limit`` virtual seconds; what ``until()`` says."""
        end = self.now + limit
        while not until():
            if not self.events or self.events[0][0] > end:
                self.now = end
                return until()
            self.step()
        return True


class Link:
    """One connection of a dialling process's channel to a listening process's channel."""

    def __init__(self, network: Network, dialler: Process, channel: str, listener: Process, target: str) -> None:
        network.hops += 1
        self.network = network
        self.dialler = dialler
        self.channel = channel
        self.listener = listener
        self.target = target
        self.hop = f"hop-{network.hops}".encode()
        self.open = True
        self.blocked = False  # partitioned: nothing arrives, nothing is lost yet
        self.queues: tuple[deque[list[bytes]], deque[list[bytes]]] = (deque(), deque())  # to listener, to dialler
        self.until = [network.now, network.now]  # when the last packet of each direction arrives
        listener.inbound[(target, self.hop)] = self
        dialler.outbound[channel] = self
        network.links.append(self)

    def send(self, direction: int, packet: Packet) -> None:
        """Accept a packet: it arrives later, unless the connection breaks before."""
        network = self.network
        self.queues[direction].append([bytes(frame) for frame in encode(packet)])
        self.until[direction] = max(
            self.until[direction], network.now + network.random.expovariate(1.0) * network.delay
        )
        network.after(self.until[direction] - network.now, lambda: self._arrive(direction))

    def _arrive(self, direction: int) -> None:
        queue = self.queues[direction]
        if not self.open or self.blocked or not queue:
            return
        packet = decode(queue.popleft())
        self.network.delivered += 1
        if direction == 0:
            self.listener.deliver(Route(self.target, self.hop), packet)
        else:
            self.dialler.deliver(Route(self.channel), packet)

    def heal(self) -> None:
        """The partition is over: what waited arrives now."""
        if self.blocked and self.open:
            self.blocked = False
            for direction in (0, 1):
                for _ in range(len(self.queues[direction])):
                    self._arrive(direction)

    def close(self) -> None:
        """Break: of what was sent and has not arrived, everything after some point is lost."""
        if not self.open:
            return
        for direction in (0, 1):
            queue = self.queues[direction]
            kept = 0 if self.blocked else self.network.random.randint(0, len(queue))
            self.network.lost += len(queue) - kept
            while len(queue) > kept:
                queue.pop()
            while queue:
                self._arrive(direction)
        self.open = False
        self.listener.inbound.pop((self.target, self.hop), None)
        if self.dialler.outbound.get(self.channel) is self:
            del self.dialler.outbound[self.channel]
        self.network.links.remove(self)


class CheckedEndpoint(Endpoint, Protocol):
    """Both kinds of endpoint can check their invariants."""

    def check(self) -> None: ...


class Process:
    """A machine's endpoint on the network; subclasses do the machine's commands.

    ``listens`` are the channels that others may dial. ``endpoint`` is set by the subclass.
    """

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.alive = True
        self.paused = False
        self.inbound: dict[tuple[str, bytes], Link] = {}
        self.outbound: dict[str, Link] = {}
        self.targets: dict[str, tuple[Process, str]] = {}  # channel: where it dials to
        self.pending: dict[str, list[Packet]] = {}  # sent while the channel was not connected
        self.inbox: deque[tuple[Route, Packet]] = deque()
        self.turn_due = False
        self.timer = float("inf")

    endpoint: CheckedEndpoint

    def resolve(self, channel: str) -> tuple[Process, str] | None:
        """Who listens at this channel's address."""
        return self.targets.get(channel)

    def execute(self, command: object) -> None:
        """Do a machine's command."""
        raise InvariantError(f"{self.name} cannot do {command!r}")

    def logged(self, record: Log) -> None:
        """Hook: a log record was written."""

    def after_turn(self) -> None:
        """Hook: work that a turn has made possible (threads that start tasks)."""

    def deliver(self, route: Route, packet: Packet) -> None:
        """A packet has arrived; it is taken in with the next turn."""
        if self.alive:
            self.inbox.append((route, packet))
            self.soon()

    def soon(self) -> None:
        """Make a turn at the next moment; several arrivals may fall into one turn."""
        if not self.turn_due and self.alive:
            self.turn_due = True
            self.network.after(self.network.random.random() * 0.0001, self._turn)

    def _turn(self) -> None:
        self.turn_due = False
        if not self.alive or self.paused:
            return
        now = self.network.now
        endpoint = self.endpoint
        busy = any(packet.seq or packet.ack == 0 for _, packet in self.inbox)  # more than heartbeats
        while self.inbox:
            route, packet = self.inbox.popleft()
            endpoint.receive(route, packet, now)
        self.settle()
        self.after_turn()
        if busy and self.network.random.random() < self.network.checks:
            endpoint.check()

    def settle(self) -> None:
        """End of a turn: commands, then one packet per destination, then the next timer."""
        now = self.network.now
        endpoint = self.endpoint
        endpoint.turn(now)
        while endpoint.commands:
            commands = endpoint.commands[:]
            endpoint.commands.clear()
            for command in commands:
                self._command(command)
        for route, packet in endpoint.flush(now):
            self._send(route, packet)
        if self.alive:
            self._set_timer(endpoint.deadline())

    def _command(self, command: object) -> None:
        if isinstance(command, Redial):
            link = self.outbound.get(command.channel)
            if link is not None:
                link.close()
            self.pending.pop(command.channel, None)
        elif isinstance(command, Log):
            self.logged(command)
        elif not isinstance(command, Dial):
            self.execute(command)

    def _set_timer(self, deadline: float) -> None:
        if deadline < self.timer or self.timer <= self.network.now:
            self.timer = deadline
            if deadline != float("inf"):
                self.network.after(max(0.0, deadline - self.network.now), lambda: self._ring(deadline))

    def _ring(self, deadline: float) -> None:
        if self.timer == deadline:
            self.timer = float("inf")
            self.soon()

    def _send(self, route: Route, packet: Packet) -> None:
        if route.hop:
            link = self.inbound.get((route.channel, route.hop))
            if link is None:
                self.endpoint.undelivered(route, self.network.now)
            else:
                link.send(1, packet)
            return
        link = self.outbound.get(route.channel)
        if link is None:
            self.pending.setdefault(route.channel, []).append(packet)
            self.dial(route.channel)
        else:
            link.send(0, packet)

    def dial(self, channel: str) -> None:
        """Connect, now or as soon as somebody listens; what was queued meanwhile goes first."""
        target = self.resolve(channel)
        if not self.alive or channel in self.outbound or target is None:
            return
        listener, listening = target
        if not listener.alive or self.network.cut(self, listener):
            self.network.after(0.05, lambda: self.dial(channel))
            return
        link = Link(self.network, self, channel, listener, listening)
        for packet in self.pending.pop(channel, []):
            link.send(0, packet)

    def crash(self) -> None:
        """The process is gone, with its connections and everything in it."""
        self.alive = False
        for link in [*self.inbound.values(), *self.outbound.values()]:
            link.close()
        self.pending.clear()
        self.inbox.clear()
