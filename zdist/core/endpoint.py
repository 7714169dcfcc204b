"""A machine and its session layer: what a driver or the simulator moves packets in and out of. PURE.

`PeerEndpoint` serves a client, worker or node: it says hello until it is welcomed, pings, and sends again what got
lost. The broker's counterpart for many sessions is `BrokerEndpoint` in ``zdist_broker.endpoint``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from zdist import limits
from zdist.core.machine import BULK, CONTROL, Log, Route, aligned
from zdist.core.session import Session, base_of, batches, parcels
from zdist.errors import ProtocolError, VersionMismatch
from zdist.protocol.messages import (
    BulkHello,
    Bye,
    Hello,
    HelloPlease,
    Message,
    Packet,
    Ping,
    Pong,
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


BULK_PINGS: Final = 3  # heartbeats for one on the bulk socket
PONG_LATE: Final = 1.25  # heartbeats after a pong until it is asked for anew


class PeerMachine(Protocol):
    """What an endpoint needs of a client, worker or node machine."""

    role: str
    out: dict[Route, list[Message]]
    commands: list[Any]
    ahead: bool
    given_up: bool

    def take(self) -> dict[Route, list[Message]]: ...
    def handle(self, route: Route, message: Message, now: float) -> None: ...
    def hello_info(self) -> dict[str, Any]: ...
    def authorize(self, token: str) -> None: ...
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
    def admits(self, route: Route, frames: int, nbytes: int) -> bool: ...
    def garbled(self, route: Route, error: ProtocolError, now: float) -> None: ...
    def undelivered(self, route: Route, now: float) -> None: ...
    def undeliverable(self, route: Route, error: ProtocolError, now: float) -> None: ...
    def turn(self, now: float) -> None: ...
    def flush(self, now: float) -> list[tuple[Route, Packet]]: ...
    def deadline(self) -> float: ...


class PeerEndpoint:
    """Session layer of a client, worker or node.

    ``find_token`` is asked before each hello: a broker that was not there may have come, and with it another token.
    Where no broker has answered at ``address`` for ``patience`` seconds, or the broker says goodbye, that is logged
    once.
    """

    def __init__(
        self,
        machine: PeerMachine,
        session: str,
        token: str,
        *,
        find_token: Callable[[], str] | None = None,
        address: str = "",
        patience: float = limits.NOTICE,
    ) -> None:
        self.machine = machine
        self.session = Session(session)
        self.token = token
        self.find_token = find_token
        self.address = address
        self.patience = patience
        self.away = ""  # why there is no broker, once it has been told
        self.since = 0.0  # when the greeting that is going on began; 0: none has
        self.dialled = 0.0  # when the control channel last got a new socket
        self.refusal: Refused | None = None  # came in this turn
        self.epoch = 0
        self.life: Any = None  # of this session at that broker
        self.up = False  # welcomed, and not silent since
        self.over = False  # refused, or left
        self.bulk = ""
        self.heard = 0.0
        self.turned = 0.0  # the last turn
        self.next_hello = 0.0
        self.pause = limits.HELLO_RETRY
        self.next_ping = 0.0
        self.pings = 0
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

    def admits(self, route: Route, frames: int, nbytes: int) -> bool:
        """Whether a packet so large may come to the data socket: it takes requests, and no data."""
        return frames == 1 and nbytes <= limits.MAX_REQUEST

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
            self.refusal = first
        elif kind is Bye:
            assert isinstance(first, Bye)
            self._left(first.reason, now)
        elif self.up and packet.session == self.session.id:
            fresh = self.session.accept(packet, now)
            if fresh is None:
                self._hello(now)  # something before it was lost: greet anew, so that both send again
            elif fresh:
                if kind is Pong:  # which comes once a heartbeat: the next ping goes while this process is awake
                    self._ping(now, now + PONG_LATE * limits.HEARTBEAT)
                for message in packet.messages:
                    self._handle(CONTROL, message, now)

    def _handle(self, route: Route, message: Message, now: float) -> None:
        try:
            self.machine.handle(route, message, now)
        except ProtocolError as exc:
            self.garbled(route, exc, now)

    def _welcome(self, welcome: Welcome, now: float) -> None:
        life = welcome.info.get("life")
        if welcome.epoch == self.epoch and life is not None and self.life is not None:
            if life < self.life:
                return  # it was late: the session has begun anew since
            if life == self.life:
                welcome = welcome._replace(fresh=False)  # answer to a hello that was sent again: the session goes on
        self.life = life
        if self.over or (self.up and welcome.epoch == self.epoch and not welcome.fresh and not self.session.unacked):
            return  # answer to a hello that was sent twice
        given_up = welcome.fresh and welcome.epoch == self.epoch and self.session.received > self.session.base
        if given_up:
            note = "it heard nothing for longer than the lease, or nothing was read; everything is announced anew"
            self.commands.append(Log("warning", "session.given_up", {"address": self.address, "note": note}))
        self.machine.given_up = given_up
        if welcome.epoch != self.epoch:  # also when an earlier, fresh welcome of this broker was lost on its way
            welcome = welcome._replace(fresh=True)
        self.up = True
        self.since = 0.0
        if self.away:
            self.away = ""
            self.commands.append(Log("warning", "broker.back", {"address": self.address}))
        self.epoch = welcome.epoch
        self.pause = limits.HELLO_RETRY
        self.next_ping = now + limits.HEARTBEAT
        if welcome.fresh:
            self.session.reset(base_of(welcome.epoch, life or 0))
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
        self.since = self.since or now
        self._look_for_token(now)
        info = {**self.machine.hello_info(), "life": self.life}
        hello = Hello(self.machine.role, self.token, self.epoch, self.session.received, info)
        self.loose.append((CONTROL, self.session.loose(hello)))
        self.next_hello = now + self.pause
        self.pause = min(self.pause * 2, limits.HELLO_RETRY_MAX)

    def _look_for_token(self, now: float) -> bool:
        """All hellos of one connection carry the same token, so that a refusal is always of the present one."""
        token = self.token if self.find_token is None else self.find_token()
        if token == self.token:
            return False
        self.token = token
        self.machine.authorize(token)
        self._redial(now)
        return True

    def _weigh(self, refusal: Refused, now: float) -> None:
        """A token may have been replaced since it was sent; whatever else is refused is refused for good."""
        self.refusal = None
        if refusal.code == "token" and not self.over and self._look_for_token(now):
            self._hello(now)
        else:
            self._refused(refusal.code, refusal.text, now)

    def _redial(self, now: float) -> None:
        self.dialled = now
        self.commands.append(Redial("control"))

    def _left(self, reason: str, now: float) -> None:
        """The broker says goodbye: another may come at its address, and is greeted then."""
        if self.up and not self.over:
            self.up = False
            self.since = now
            self.next_hello = now + self.pause
            self._tell(reason)

    def _tell(self, reason: str) -> None:
        self.away = reason
        if self.patience != float("inf"):
            fields = {"address": self.address, "reason": reason, "note": "waiting for one to answer there"}
            self.commands.append(Log("warning", "broker.away", fields))

    def _greet(self, now: float) -> None:
        """No broker is there, or none has answered yet."""
        if now >= self.next_hello:
            if self.since and now - max(self.heard, self.dialled, self.since) >= limits.REDIAL:
                self._redial(now)  # else a broker that comes at last would meet the hellos of hours
            self._hello(now)
        if not self.away and now - self.since >= self.patience:
            self._tell(f"no broker has answered for {self.patience:g} s; check that `zdist broker` runs there")

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
        if now - self.turned > 2 * limits.HEARTBEAT:  # stopped or busy for so long: what was said meanwhile is unread
            self.heard = min(now, self.heard + now - self.turned)
        self.turned = now
        if self.refusal is not None:
            self._weigh(self.refusal, now)
        if not self.over:
            if not self.up:
                self._greet(now)
            elif now >= self.next_ping:
                self._ping(now, aligned(now, limits.HEARTBEAT))
        self.machine.ahead = len(self.session.unacked) > limits.PACKETS_AHEAD
        deadline = self.machine.deadline()
        if deadline is not None and now >= deadline:
            self.machine.tick(now)
        self.machine.turn(now)

    def _ping(self, now: float, again: float) -> None:
        self.next_ping = again
        if now - self.heard > 3 * limits.HEARTBEAT:
            self.commands.append(Redial("control"))
            self.commands.append(Redial("bulk"))
            self._hello(now)
        else:
            self.loose.append((CONTROL, self.session.loose(Ping())))
            self.pings += 1
            # a session that only holds data has nothing to say on a bulk connection that broke unnoticed
            if self.pings % BULK_PINGS == 0:
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
                    packets += [(route, Packet(session.id, 0, 0, parcel)) for parcel in parcels(messages)]
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
        if self.up:
            when = self.next_ping
        else:
            when = self.next_hello if self.away else min(self.next_hello, self.since + self.patience)
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
