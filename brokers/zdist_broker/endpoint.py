"""The broker's session layer: connections come and go, sessions stay until their lease is over. PURE.

A routing id belongs to one connection; the session id in the packet is the address. A packet from a connection that
has not said hello is answered with "hello?" and otherwise ignored.
"""

from __future__ import annotations

import hmac
from typing import Any

from zdist import limits
from zdist.core.machine import Log, Machine, Route, require
from zdist.core.session import Session, batches
from zdist.errors import InvariantError, ProtocolError, VersionMismatch
from zdist.protocol.messages import (
    BulkHello,
    Bye,
    Data,
    Get,
    Hello,
    HelloPlease,
    Message,
    Packet,
    Ping,
    Pong,
    Refused,
    Taken,
    Welcome,
)
from zdist_broker.machine import BrokerMachine
from zdist_broker.relay import Relay

__all__ = ["BrokerEndpoint", "Peer"]

ROLES = {"c": "client", "w": "worker", "n": "node"}


class Peer:
    """One session: its numbers, and the connections that it uses now."""

    __slots__ = ("bulk", "control", "heard", "node", "role", "session", "stalled")

    def __init__(self, session: str, role: str, node: str) -> None:
        self.session = Session(session)
        self.role = role
        self.node = node  # a worker's node, whose heartbeat keeps it alive
        self.control: bytes | None = None
        self.bulk: bytes | None = None
        self.heard = 0.0
        self.stalled = False  # its socket took no more: send again when it speaks


def _node_of(hello: Hello) -> str:
    """The node that a worker names; nobody else lives by another's heartbeat."""
    node = hello.info.get("node")
    return node if hello.role == "worker" and isinstance(node, str) and node.startswith("n-") else ""


class BrokerEndpoint:
    """Sessions of a broker, around its machine and its relay."""

    def __init__(
        self,
        machine: BrokerMachine,
        relay: Relay,
        *,
        epoch: int,
        token: str,
        cluster: str,
        bulk: str,
        lease_node: float = limits.LEASE_NODE,
        lease_client: float = limits.LEASE_CLIENT,
    ) -> None:
        self.machine = machine
        self.relay = relay
        self.epoch = epoch
        self.token = token
        self.leases = {"client": lease_client, "node": lease_node, "worker": lease_node}
        self.info: dict[str, Any] = {
            "cluster": cluster,
            "bulk": bulk,
            "lease": lease_node,
            "window_tasks": limits.WINDOW_TASKS,
            "window_bytes": limits.WINDOW_BYTES,
        }
        self.peers: dict[str, Peer] = {}
        relay.alive = self.peers.__contains__
        self.control: dict[bytes, Peer] = {}
        self.bulk: dict[bytes, Peer] = {}
        self.due: dict[str, Peer] = {}  # peers that wait for an acknowledgement
        self.garbage: dict[bytes, int] = {}
        self.refusals: dict[bytes, int] = {}
        self.garbage_total = 0
        self.next_sweep = 0.0
        self.loose: list[tuple[Route, Packet]] = []

    @property
    def commands(self) -> list[Any]:
        return self.machine.commands

    # --- incoming ----------------------------------------------------------------------------------

    def receive(self, route: Route, packet: Packet, now: float) -> None:
        """Take in a packet from a connection."""
        if route.channel == "bulk":
            self._bulk(route, packet, now)
            return
        peer = self.control.get(route.hop)
        if packet.messages and type(packet.messages[0]) is Hello:
            self._hello(route, packet.session, packet.messages[0], now)
        elif peer is None or peer.session.id != packet.session:
            self._ask_hello(route)
        else:
            self._accept(peer, packet, now)

    def _accept(self, peer: Peer, packet: Packet, now: float) -> None:
        peer.heard = now
        session = peer.session
        fresh = session.accept(packet, now)
        if peer.stalled:
            peer.stalled = False
            self._send_again(peer, packet.ack)
        if fresh is None:
            assert peer.control is not None
            self._ask_hello(Route("control", peer.control))
            return
        if session.unacknowledged >= limits.ACK_EVERY:
            self._loose(peer)
        elif session.unacknowledged:
            self.due.setdefault(session.id, peer)
        if not fresh:
            return
        for message in packet.messages:
            kind = type(message)
            if kind is Ping:
                self._loose(peer, Pong())
            elif kind is Bye:
                assert isinstance(message, Bye)
                self._part(peer, message.reason[: limits.MAX_KEY], now)
                return
            else:
                try:
                    self.machine.handle(session.id, message, now)
                except ProtocolError as exc:
                    self.garbled(Route("control", peer.control or b""), exc, now)
                except InvariantError:
                    raise
                except Exception as exc:  # input that no check foresaw ends its sender's session, not the broker
                    self._defect(peer, type(message).__name__, exc, now)
                    return

    def _defect(self, peer: Peer, kind: str, exc: Exception, now: float) -> None:
        session, error = peer.session.id, f"{type(exc).__name__}: {exc}"[: limits.MAX_KEY]
        self.commands.append(Log("error", "peer.unforeseen", {"session": session, "message": kind, "error": error}))
        if peer.control is not None:
            self._refuse(Route("control", peer.control), session, "defect", f"{kind} could not be handled: {error}")
        self._part(peer, "it sent what could not be handled", now)

    def undeliverable(self, route: Route, error: ProtocolError, now: float) -> None:
        """A packet that cannot be encoded: its session can never go on, all others do."""
        peer = (self.bulk if route.channel == "bulk" else self.control).get(route.hop)
        if peer is not None and route.channel == "control":
            self._defect(peer, "a packet for it", error, now)
        else:
            self.commands.append(Log("error", "relay.unsent", {"error": str(error)}))

    def _hello(self, route: Route, session: str, hello: Hello, now: float) -> None:
        if not hmac.compare_digest(hello.token.encode(), self.token.encode()):
            self._refuse(route, session, "token", "the cluster token is missing or wrong (see --token-file)")
            return
        if ROLES.get(session[:1]) != hello.role:
            self._refuse(route, session, "name", f"session {session!r} cannot be a {hello.role}")
            return
        peer = self.peers.get(session)
        fresh = peer is None
        if peer is None:
            try:
                joined = self.machine.joined(session, hello.role, hello.info, now)
            except (TypeError, ValueError, RecursionError) as exc:
                joined = Refused("info", f"the hello's info is malformed: {type(exc).__name__}")
            if isinstance(joined, Refused):
                self._refuse(route, session, joined.code, joined.text)
                return
            peer = self.peers[session] = Peer(session, hello.role, _node_of(hello))
            extra = joined
        else:
            extra = {}
            self.machine.resumed(session, now)
        if peer.control is not None and peer.control != route.hop:
            self.control.pop(peer.control, None)
        peer.control = route.hop
        peer.heard = now
        peer.stalled = False
        self.control[route.hop] = peer
        self._loose(peer, Welcome(self.epoch, peer.session.received, fresh, self.info | extra))
        if not fresh:
            self._send_again(peer, hello.received)

    def _send_again(self, peer: Peer, received: int) -> None:
        assert peer.control is not None
        route = Route("control", peer.control)
        self.loose += [(route, packet) for packet in peer.session.resend(received)]

    def _bulk(self, route: Route, packet: Packet, now: float) -> None:
        first = packet.messages[0] if packet.messages else None
        if type(first) is BulkHello:
            peer = self.peers.get(packet.session)
            if peer is not None and hmac.compare_digest(first.token.encode(), self.token.encode()):
                if peer.bulk is not None and peer.bulk != route.hop:
                    self.bulk.pop(peer.bulk, None)
                    self.relay.detached(packet.session, now)
                peer.bulk = route.hop
                self.bulk[route.hop] = peer
                self.relay.joined(packet.session, now)
            return
        peer = self.bulk.get(route.hop)
        if peer is None or peer.session.id != packet.session:
            self.loose.append((route, Packet(packet.session, 0, 0, (HelloPlease(),))))
            return
        for message in packet.messages:
            if isinstance(message, Get | Data | Taken):
                self.relay.handle(packet.session, message, now)
            else:
                self.garbled(route, ProtocolError(f"{type(message).__name__} on the bulk socket"), now)

    def garbled(self, route: Route, error: ProtocolError, now: float) -> None:
        """Count what was no message; tell a peer of another version so; log once per connection."""
        self.garbage_total += 1
        count = self.garbage[route.hop] = self.garbage.get(route.hop, 0) + 1
        if count == 1:
            known = self.control.get(route.hop) or self.bulk.get(route.hop)
            fields = {"session": known.session.id if known else "", "channel": route.channel, "error": str(error)}
            self.commands.append(Log("warning", "peer.garbage", fields))
            if type(error) is VersionMismatch:
                self._refuse(route, "", "version", str(error))
        if len(self.garbage) > limits.PEER_SOCKETS:
            del self.garbage[next(iter(self.garbage))]

    # --- leaving -----------------------------------------------------------------------------------

    def undelivered(self, route: Route, now: float) -> None:
        """The socket did not take a packet: the connection is gone, or its queue is full."""
        if route.channel == "bulk":
            peer = self.bulk.pop(route.hop, None)
            if peer is not None:
                peer.bulk = None
                self.relay.detached(peer.session.id, now)
        else:
            peer = self.control.get(route.hop)
            if peer is not None:
                peer.stalled = True

    def _part(self, peer: Peer, reason: str, now: float) -> None:
        session = peer.session.id
        if self.peers.pop(session, None) is None:
            return
        self.due.pop(session, None)
        if peer.control is not None and self.control.get(peer.control) is peer:
            del self.control[peer.control]
        if peer.bulk is not None and self.bulk.get(peer.bulk) is peer:
            del self.bulk[peer.bulk]
        self.machine.left(session, reason, now)
        self.relay.gone(session, now)

    def expel(self, session: str, reason: str, now: float) -> None:
        """The machine has given this session up (a dead worker); its connection must say hello anew."""
        peer = self.peers.get(session)
        if peer is not None:
            self._part(peer, reason, now)

    def _sweep(self, now: float) -> None:
        """Give up who has been silent for longer than its lease; a worker only while its node is not here to speak."""
        for peer in list(self.peers.values()):
            if peer.node and peer.node in self.peers:
                continue
            lease = self.leases[peer.role]
            if now - peer.heard > lease:
                self.commands.append(Log("warning", f"{peer.role}.lease_over", {"session": peer.session.id}))
                self._part(peer, f"silent for more than {lease:g} s", now)

    # --- outgoing ----------------------------------------------------------------------------------

    def _loose(self, peer: Peer, *messages: Message) -> None:
        """An unnumbered packet to a peer; without messages it is a bare acknowledgement."""
        if peer.control is not None:
            self.due.pop(peer.session.id, None)
            self.loose.append((Route("control", peer.control), peer.session.loose(*messages)))

    def _refuse(self, route: Route, session: str, code: str, text: str) -> None:
        self.loose.append((route, Packet(session, 0, 0, (Refused(code, text),))))
        count = self.refusals[route.hop] = self.refusals.get(route.hop, 0) + 1
        if count == 1:  # once per connection
            self.commands.append(Log("warning", "peer.refused", {"session": session, "code": code, "reason": text}))
        if len(self.refusals) > limits.PEER_SOCKETS:
            del self.refusals[next(iter(self.refusals))]

    def _ask_hello(self, route: Route) -> None:
        self.loose.append((route, Packet("", 0, 0, (HelloPlease(),))))

    def turn(self, now: float) -> None:
        """End of a turn: timers, then scheduling, once for all that came in."""
        if now >= self.next_sweep:
            self.next_sweep = now + limits.HEARTBEAT / 2
            self._sweep(now)
        for machine in (self.machine, self.relay):
            deadline = machine.deadline()
            if deadline is not None and now >= deadline:
                machine.tick(now)
        self.machine.turn(now)

    def flush(self, now: float) -> list[tuple[Route, Packet]]:
        """Everything that is ready to go: one packet per session and socket."""
        packets, self.loose = self.loose, []
        peers = self.peers
        if self.machine.out:
            for session, messages in self.machine.take().items():
                peer = peers.get(session)
                if peer is not None:
                    self.due.pop(session, None)  # numbered packets acknowledge, now or when they are sent again
                    for batch in batches(messages):
                        packet = peer.session.wrap(batch)
                        if peer.control is not None and not peer.stalled:
                            packets.append((Route("control", peer.control), packet))
        if self.relay.out:
            for session, messages in self.relay.take().items():
                peer = peers.get(session)
                if peer is not None and peer.bulk is not None:
                    packets.append((Route("bulk", peer.bulk), Packet(session, 0, 0, tuple(messages))))
        while self.due:  # oldest first, so a turn looks at no more peers than it has something for
            session, peer = next(iter(self.due.items()))
            if peer.session.unacknowledged and not peer.session.ack_due(now):
                break
            del self.due[session]
            if peer.control is not None:
                packets.append((Route("control", peer.control), peer.session.loose()))
        return packets

    def deadline(self) -> float:
        """When `turn` is next needed without a message, monotonic seconds."""
        when = self.next_sweep
        if self.due:
            when = min(when, next(iter(self.due.values())).session.pending_since + limits.ACK_DELAY)
        for machine in (self.machine, self.relay):
            deadline = machine.deadline()
            if deadline is not None:
                when = min(when, deadline)
        return when

    def check(self) -> None:
        """Connections and sessions point at each other; the machines' invariants hold."""
        for hop, peer in self.control.items():
            require(peer.control == hop, f"{peer.session.id}: control route")
        for hop, peer in self.bulk.items():
            require(peer.bulk == hop, f"{peer.session.id}: bulk route")
        for peer in self.peers.values():
            peer.session.check()
        machine: Machine[str]
        for machine in (self.machine, self.relay):
            machine.check()
