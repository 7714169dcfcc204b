"""The broker's session layer: connections come and go, sessions stay until their lease is over. PURE.

A routing id belongs to one connection; the session id in the packet is the address. A packet from a connection that
has not said hello is answered with "hello?" and otherwise ignored.
"""

from __future__ import annotations

import hmac
from typing import Any

from zdist import limits
from zdist.core.machine import Log, Machine, Route, aligned, require
from zdist.core.session import Session, base_of, batches, parcels
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
from zdist_broker.complaints import Complaints
from zdist_broker.machine import BrokerMachine
from zdist_broker.parse import fit_data, fit_get
from zdist_broker.peer import Peer, node_of
from zdist_broker.relay import Relay

__all__ = ["BrokerEndpoint", "Peer"]

ROLES = {"c": "client", "w": "worker", "n": "node"}
REFUSALS = 16  # answers to a connection whose hellos are not accepted
STRANGERS = 4096  # connections remembered that were asked for a hello, or are not listened to; the oldest make room


def remember(table: dict[bytes, Any], hop: bytes, value: Any) -> None:
    """Note something of a connection, in a table whose oldest entries make room."""
    if hop not in table and len(table) >= STRANGERS:
        del table[next(iter(table))]
    table[hop] = value


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
        self.lives = 0  # sessions that have begun
        relay.alive = self.peers.__contains__
        relay.commands = machine.commands
        self.control: dict[bytes, Peer] = {}
        self.bulk: dict[bytes, Peer] = {}
        self.due: dict[str, Peer] = {}  # peers that wait for an acknowledgement
        self.lagging: dict[str, Peer] = {}  # peers with many packets that nobody has weighed
        self.complaints = Complaints(machine.commands)
        self.asked: dict[bytes, float] = {}  # connections that were asked for a hello, and when
        self.shunned: dict[bytes, None] = {}  # connections full of what their peers did not take
        self.next_sweep = 0.0
        self.turned = 0.0  # the last turn
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
            if now >= self.asked.get(route.hop, 0.0) and route.hop not in self.shunned:
                remember(self.asked, route.hop, now + limits.HELLO_PAUSE)
                self._ask_hello(route)
        else:
            self._accept(peer, packet, now)

    def admits(self, route: Route, frames: int, nbytes: int) -> bool:
        """Whether so large a packet may come from this connection: not before its hello."""
        known = self.bulk if route.channel == "bulk" else self.control
        return route.hop in known or (frames == 1 and nbytes <= limits.STRANGER_HEADER)

    def _accept(self, peer: Peer, packet: Packet, now: float) -> None:
        peer.heard = now
        session = peer.session
        fresh = session.accept(packet, now)
        if peer.behind:
            self._go_on(peer, now)
            if session.id not in self.peers:
                return
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
                peer.pinged = True
                self.machine.heard(session.id, now)
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
        peer = self.control.get(route.hop) if route.channel == "control" else None
        if peer is not None:
            self._defect(peer, "a packet for it", error, now)
        else:
            self.commands.append(Log("error", "relay.unsent", {"error": str(error)}))

    def _hello(self, route: Route, session: str, hello: Hello, now: float) -> None:
        if route.hop in self.shunned:
            return  # it finds the silence and dials anew
        if not hmac.compare_digest(hello.token.encode(), self.token.encode()):
            found = "the cluster token is wrong" if hello.token else "the cluster token is missing"
            # who was there before the token was will look for it now, and that is no complaint
            self._refuse(route, session, "token", f"{found} (see --token-file)", "warning" if hello.token else "info")
            return
        if ROLES.get(session[:1]) != hello.role:
            self._refuse(route, session, "name", f"session {session!r} cannot be a {hello.role}")
            return
        peer = self.peers.get(session)
        other = self.control.get(route.hop)
        if other is not None and other is not peer:
            text = f"this connection speaks for session {other.session.id}; a session needs a connection of its own"
            self._refuse(route, session, "name", text)
            return
        packets: list[Packet] = []
        if peer is not None:
            peer.heard = now
            peer.session.acknowledge(hello.received)
            if now < peer.greeted + limits.HELLO_PAUSE or not self._may_repeat(peer, now):
                return  # a peer that is not welcomed says hello again
            packets = peer.repeat()
            self.machine.heard(session, now)
        else:
            if len(self.peers) >= limits.MAX_SESSIONS:
                self._refuse(route, session, "full", f"this broker has {len(self.peers)} sessions and takes no more")
                return
            joined = self.machine.joined(session, hello.role, hello.info, now)
            if isinstance(joined, Refused):
                self._refuse(route, session, joined.code, joined.text)
                return
            host = str(hello.info.get("host") or "")
            self.lives += 1
            joined["life"] = self.lives  # a peer may be welcomed to it more than once
            numbered = Session(session, base_of(self.epoch, self.lives))
            peer = self.peers[session] = Peer(numbered, hello.role, node_of(hello), host, joined)
        if peer.control is not None and peer.control != route.hop:
            self.control.pop(peer.control, None)
        peer.control = route.hop
        peer.heard = peer.greeted = now
        self.control[route.hop] = peer
        info = self.info | peer.info
        if hello.epoch not in (0, self.epoch):  # this broker has taken another's place
            info["recover"] = self.machine.succeeds(now)
        self._loose(peer, Welcome(self.epoch, peer.session.received, not peer.knows(hello, self.epoch), info))
        self.loose += [(route, packet) for packet in packets]

    def _may_repeat(self, peer: Peer, now: float) -> bool:
        """Whether what the peer has not confirmed is to be sent again; not if that was done too often in vain."""
        if peer.repeats < limits.VAIN_REPEATS or peer.first != peer.begun:
            return True
        self._give_up(peer, f"it has confirmed nothing of what was sent again {peer.repeats} times", now)
        return False

    def _go_on(self, peer: Peer, now: float) -> None:
        """A peer that is behind has spoken: what comes next, or everything if its socket had taken no more."""
        packets: list[Packet] = []
        if not peer.mute:
            packets = peer.portion() if peer.first > peer.until else []
        elif now >= peer.spoke + limits.HELLO_PAUSE and self._may_repeat(peer, now):
            peer.spoke = now
            packets = peer.repeat()
        route = Route("control", peer.control or b"")
        self.loose += [(route, packet) for packet in packets]

    def _bulk(self, route: Route, packet: Packet, now: float) -> None:
        first = packet.messages[0] if packet.messages else None
        if type(first) is BulkHello:
            peer = self.peers.get(packet.session)
            good = hmac.compare_digest(first.token.encode(), self.token.encode())
            if not good or self.bulk.get(route.hop, peer) is not peer:
                reason = "another session's connection" if good else "a wrong cluster token"
                self.garbled(route, ProtocolError(f"BulkHello of {packet.session!r} with {reason}"), now)
            elif peer is not None:
                if peer.bulk is not None and peer.bulk != route.hop:
                    self.bulk.pop(peer.bulk, None)
                    self.relay.detached(packet.session, now)
                peer.bulk = route.hop
                self.bulk[route.hop] = peer
                self.relay.joined(packet.session, now, peer.host)
            return
        peer = self.bulk.get(route.hop)
        if peer is None or peer.session.id != packet.session:
            if now >= self.asked.get(route.hop, 0.0):
                remember(self.asked, route.hop, now + limits.HELLO_PAUSE)
                self.loose.append((route, Packet(packet.session, 0, 0, (HelloPlease(),))))
            return
        if len(packet.messages) > limits.BULK_MESSAGES:
            self.garbled(route, ProtocolError(f"{len(packet.messages)} messages in one packet"), now)
            return
        for message in packet.messages:
            if isinstance(message, Get):
                fit = fit_get(message)
            else:
                fit = isinstance(message, Taken) or (isinstance(message, Data) and fit_data(message))
            if fit:
                self.relay.handle(packet.session, message, now)
            else:
                self.garbled(route, ProtocolError(f"a {type(message).__name__} that is not for the relay"), now)

    def garbled(self, route: Route, error: ProtocolError, now: float) -> None:
        """Count what was no message; tell a peer of another version so; log once per connection."""
        known = self.control.get(route.hop) or self.bulk.get(route.hop)
        text = str(error)[: limits.MAX_REASON]
        fields = {"session": known.session.id if known else "", "channel": route.channel, "error": text}
        count = self.complaints.add("warning", "peer.garbage", route.hop, fields)
        if count == 1 and type(error) is VersionMismatch:
            self._refuse(route, "", "version", text)

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
                peer.stall()

    def _part(self, peer: Peer, reason: str, now: float) -> None:
        session = peer.session.id
        del self.peers[session]
        self.due.pop(session, None)
        self.lagging.pop(session, None)
        if peer.control is not None and peer.session.weigh() > limits.CROWDED_BYTES:
            remember(self.shunned, peer.control, None)  # its queue stays with the connection, for as long as that lives
        if peer.control is not None and self.control.get(peer.control) is peer:
            del self.control[peer.control]
        if peer.bulk is not None and self.bulk.get(peer.bulk) is peer:
            del self.bulk[peer.bulk]
        self.machine.left(session, reason, now)
        self.relay.gone(session, now)

    def farewell(self, reason: str) -> None:
        """This broker stops; another may come. For good order only: who does not hear it finds out by silence."""
        for peer in self.peers.values():
            self._loose(peer, Bye(reason))

    def expel(self, session: str, reason: str, now: float) -> None:
        """The machine has given this session up (a dead worker); its connection must say hello anew."""
        peer = self.peers.get(session)
        if peer is not None:
            self._part(peer, reason, now)

    def _give_up(self, peer: Peer, reason: str, now: float) -> None:
        """A session that does not take what it is sent would fill the broker. It may say hello and begin anew."""
        session = peer.session
        fields = {"session": session.id, "reason": reason, "packets": len(session.unacked), "bytes": session.weigh()}
        self.commands.append(Log("warning", f"{peer.role}.given_up", fields))
        self._part(peer, reason, now)

    def _weigh(self, peer: Peer, now: float) -> int:
        """Look at what is kept for a peer: bytes. Too much ends its session; a client with much gets no more values."""
        weight, packets = peer.session.weigh(), len(peer.session.unacked)
        if (weight > limits.KEPT_BYTES and packets > 1) or packets > limits.KEPT_PACKETS:
            self._give_up(peer, f"it does not read: {weight} bytes in {packets} packets were kept for it", now)
            return 0
        if peer.crowded != (weight > limits.CROWDED_BYTES):
            peer.crowded = not peer.crowded
            self.machine.crowd(peer.session.id, peer.crowded)
        return weight

    def _sweep(self, now: float) -> None:
        """Answer pings; give up who was silent for longer than its lease, a worker only while its node is not here."""
        self.complaints.sweep()
        total = most = 0
        heaviest: Peer | None = None
        for peer in list(self.peers.values()):
            late = peer.first <= peer.swept  # else it confirms as it should, and what is kept for it is little
            if peer.pinged:
                self._loose(peer, Pong())
            peer.swept, peer.pinged = peer.session.sent, False
            if peer.crowded or late:
                weight = self._weigh(peer, now)
                total += weight
                if weight > most:
                    most, heaviest = weight, peer
        if heaviest is not None and total > limits.KEPT_BYTES_TOTAL:
            self._give_up(heaviest, f"{total} bytes were kept for all sessions, most of them for this one", now)
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

    def _refuse(self, route: Route, session: str, code: str, text: str, level: str = "warning") -> None:
        fields = {"session": session, "code": code, "reason": text}
        if self.complaints.add(level, "peer.refused", route.hop, fields) <= REFUSALS:
            self.loose.append((route, Packet(session, 0, 0, (Refused(code, text),))))

    def _ask_hello(self, route: Route) -> None:
        self.loose.append((route, Packet("", 0, 0, (HelloPlease(),))))

    def turn(self, now: float) -> None:
        """End of a turn: timers, then scheduling, once for all that came in."""
        if now - self.turned > 2 * limits.HEARTBEAT:  # stopped or busy for so long: what was said meanwhile is unread
            for peer in self.peers.values():
                peer.heard = min(now, peer.heard + now - self.turned)
        self.turned = now
        for peer in list(self.lagging.values()):
            self._weigh(peer, now)
        self.lagging.clear()
        if now >= self.next_sweep:
            self.next_sweep = aligned(now, limits.HEARTBEAT)
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
                        if peer.control is not None and not peer.behind:
                            packets.append((Route("control", peer.control), packet))
                    if len(peer.session.unacked) - len(peer.session.weights) > limits.WEIGH_EVERY:
                        self.lagging[session] = peer
        if self.relay.out:
            for session, messages in self.relay.take().items():
                peer = peers.get(session)
                if peer is not None and peer.bulk is not None:
                    route = Route("bulk", peer.bulk)
                    packets += [(route, Packet(session, 0, 0, parcel)) for parcel in parcels(messages)]
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
        when = self.next_sweep if not self.lagging else 0.0
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
