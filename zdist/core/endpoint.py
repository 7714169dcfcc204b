"""A machine and its session layer: what a driver or the simulator moves packets in and out of. PURE.

`PeerEndpoint` serves a client, worker or node: it says hello until it is welcomed, pings, and sends again what got
lost. The broker's counterpart for many sessions is `BrokerEndpoint` in ``zdist_broker.endpoint``.
"""

from __future__ import annotations

from typing import Any, Protocol

from zdist import limits
from zdist.core.machine import BULK, CONTROL, Log, Route
from zdist.core.session import Session, batches
from zdist.errors import ProtocolError, VersionMismatch
from zdist.protocol.messages import (
    BulkHello,
    Bye,
    Hello,
    HelloPlease,
    Message,
    Packet,
    Ping,
    Refused,
    Welcome,
)

__all__ = ["Dial", "Endpoint", "PeerEndpoint", "PeerMachine", "Redial"]


class Dial:
    """Command: connect the channel to this address."""

    __slots__ = ("address", "channel")

    def __init__(self, channel: str, address: str) -> None:
        self.channel = channel
        self.address = address


class Redial:
    """Command: close the channel's socket and open it again; what was queued in it is gone."""

    __slots__ = ("channel",)

    def __init__(self, channel: str) -> None:
        self.channel = channel


class PeerMachine(Protocol):
    """What an endpoint needs of a client, worker or node machine."""

    role: str
    out: dict[Route, list[Message]]
    commands: list[Any]

    def take(self) -> dict[Route, list[Message]]: ...
    def handle(self, route: Route, message: Message, now: float) -> None: ...
    def hello_info(self) -> dict[str, Any]: ...
    def welcomed(self, welcome: Welcome, now: float) -> None: ...
    def refused(self, code: str, text: str, now: float) -> None: ...
    def turn(self, now: float) -> None: ...
    def tick(self, now: float) -> None: ...
    def deadline(self) -> float | None: ...


class Endpoint(Protocol):
    """What a driver needs of either kind of endpoint."""

    @property
    def commands(self) -> list[Any]: ...
    def receive(self, route: Route, packet: Packet, now: float) -> None: ...
    def garbled(self, route: Route, error: ProtocolError, now: float) -> None: ...
    def undelivered(self, route: Route, now: float) -> None: ...
    def undeliverable(self, route: Route, error: ProtocolError, now: float) -> None: ...
    def turn(self, now: float) -> None: ...
    def flush(self, now: float) -> list[tuple[Route, Packet]]: ...
    def deadline(self) -> float: ...


class PeerEndpoint:
    """Session layer of a client, worker or node."""

    def __init__(self, machine: PeerMachine, session: str, token: str) -> None:
        self.machine = machine
        self.session = Session(session)
        self.token = token
        self.epoch = 0
        self.up = False  # welcomed, and not silent since
        self.over = False  # refused, or left
        self.bulk = ""
        self.heard = 0.0
        self.next_hello = 0.0
        self.pause = limits.HELLO_RETRY
        self.next_ping = 0.0
        self.garbage: dict[Route, int] = {}
        self.loose: list[tuple[Route, Packet]] = []  # unnumbered packets of this turn, ahead of the others

    @property
    def commands(self) -> list[Any]:
        return self.machine.commands

    # --- incoming ----------------------------------------------------------------------------------

    def receive(self, route: Route, packet: Packet, now: float) -> None:
        """Take in a packet from a channel."""
        if route.channel == "control":
            self._control(packet, now)
            return
        for message in packet.messages:
            if type(message) is HelloPlease:
                if route.channel == "bulk":
                    self.loose.append((BULK, self.session.loose(BulkHello(self.token))))
            else:
                self._handle(route, message, now)

    def _control(self, packet: Packet, now: float) -> None:
        self.heard = now
        first = packet.messages[0] if packet.messages else None
        kind = type(first)
        if kind is Welcome:
            assert isinstance(first, Welcome)
            self._welcome(first, now)
        elif kind is HelloPlease:
            self._hello(now)
        elif kind is Refused:
            assert isinstance(first, Refused)
            self._refused(first.code, first.text, now)
        elif self.up and packet.session == self.session.id:
            fresh = self.session.accept(packet, now)
            if fresh is None:
                self._hello(now)  # something before it was lost: greet anew, so that both send again
            elif fresh:
                for message in packet.messages:
                    self._handle(CONTROL, message, now)

    def _handle(self, route: Route, message: Message, now: float) -> None:
        try:
            self.machine.handle(route, message, now)
        except ProtocolError as exc:
            self.garbled(route, exc, now)

    def _welcome(self, welcome: Welcome, now: float) -> None:
        if self.over or (self.up and welcome.epoch == self.epoch and not welcome.fresh and not self.session.unacked):
            return  # answer to a hello that was sent twice
        if welcome.fresh and self.up and welcome.epoch == self.epoch and self.session.received == 0:
            return  # likewise, before anything was said
        if welcome.epoch != self.epoch:  # also when an earlier, fresh welcome of this broker was lost on its way
            welcome = welcome._replace(fresh=True)
        self.up = True
        self.epoch = welcome.epoch
        self.pause = limits.HELLO_RETRY
        self.next_ping = now + limits.HEARTBEAT
        if welcome.fresh:
            self.session.reset()
            self.machine.out.pop(CONTROL, None)  # the machine announces everything again
        else:
            self.loose += [(CONTROL, packet) for packet in self.session.resend(welcome.received)]
        bulk = str(welcome.info.get("bulk", ""))
        if bulk != self.bulk:
            self.bulk = bulk
            self.commands.append(Dial("bulk", bulk))
        self.loose.append((BULK, self.session.loose(BulkHello(self.token))))
        self.machine.welcomed(welcome, now)

    def _hello(self, now: float) -> None:
        """Greet (again); until the welcome nothing numbered goes out."""
        if self.over:
            return
        self.up = False
        hello = Hello(self.machine.role, self.token, self.epoch, self.session.received, self.machine.hello_info())
        self.loose.append((CONTROL, self.session.loose(hello)))
        self.next_hello = now + self.pause
        self.pause = min(self.pause * 2, limits.HELLO_RETRY_MAX)

    def _refused(self, code: str, text: str, now: float) -> None:
        if not self.over:
            self.up = False
            self.over = True
            self.machine.refused(code, text, now)

    def garbled(self, route: Route, error: ProtocolError, now: float) -> None:
        """Bytes that were no packet, or a message that its sender had no business sending: counted, told once."""
        if type(error) is VersionMismatch and route.channel == "control":
            self._refused("version", str(error), now)
            return
        count = self.garbage[route] = self.garbage.get(route, 0) + 1
        if count == 1:
            self.commands.append(Log("warning", "peer.garbage", {"channel": route.channel, "error": str(error)}))
        if len(self.garbage) > limits.PEER_SOCKETS:
            del self.garbage[next(iter(self.garbage))]

    def undelivered(self, route: Route, now: float) -> None:
        """The socket did not take a packet. Numbered ones go again after the next hello, data is asked for again."""
        if route.channel == "control" and self.up:
            self._hello(now)

    def undeliverable(self, route: Route, error: ProtocolError, now: float) -> None:
        """A packet that cannot be encoded. Without it the session cannot go on; a data request fails by its timeout."""
        if route.channel == "control":
            self._refused("defect", f"a message could not be encoded: {error}", now)
        else:
            self.commands.append(Log("error", "peer.unsent", {"channel": route.channel, "error": str(error)}))

    # --- outgoing ----------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """End of a turn: timers, then what the machine saved up."""
        if not self.over:
            if not self.up:
                if now >= self.next_hello:
                    self._hello(now)
            elif now >= self.next_ping:
                self._ping(now)
        deadline = self.machine.deadline()
        if deadline is not None and now >= deadline:
            self.machine.tick(now)
        self.machine.turn(now)

    def _ping(self, now: float) -> None:
        self.next_ping = now + limits.HEARTBEAT
        if now - self.heard > 3 * limits.HEARTBEAT:
            self.commands.append(Redial("control"))
            self.commands.append(Redial("bulk"))
            self._hello(now)
        else:
            self.loose.append((CONTROL, self.session.loose(Ping())))
            # a session that only holds data has nothing to say on a bulk connection that broke unnoticed
            self.loose.append((BULK, self.session.loose(BulkHello(self.token))))

    def flush(self, now: float) -> list[tuple[Route, Packet]]:
        """Everything that is ready to go, one packet per destination."""
        packets, self.loose = self.loose, []
        session = self.session
        machine = self.machine
        if machine.out:
            held = None if self.up else machine.out.pop(CONTROL, None)
            for route, messages in machine.take().items():
                if route.channel == "control":
                    packets += [(route, session.wrap(batch)) for batch in batches(messages)]
                else:
                    packets.append((route, Packet(session.id, 0, 0, tuple(messages))))
            if held:
                machine.out[CONTROL] = held
        if self.up and session.unacknowledged and session.ack_due(now):
            packets.append((CONTROL, session.loose()))
        return packets

    def leave(self, reason: str) -> None:
        """Say goodbye with the next flush; nothing is kept up after it."""
        if self.up:
            self.machine.out.setdefault(CONTROL, []).append(Bye(reason))

    def deadline(self) -> float:
        """When `turn` is next needed without a message, monotonic seconds."""
        when = self.next_ping if self.up else self.next_hello
        if self.over:
            when = float("inf")
        if self.up and self.session.unacknowledged:
            when = min(when, self.session.pending_since + limits.ACK_DELAY)
        machine = self.machine.deadline()
        return when if machine is None else min(when, machine)

    def check(self) -> None:
        """The session's numbers fit, and the machine's invariants hold."""
        self.session.check()
        check = getattr(self.machine, "check", None)
        if check is not None:
            check()
