"""The broker as a state machine: sessions, roles, the order of a turn. PURE.

``handle`` takes a message apart and changes the tables; what peers are to be told is posted row by row. ``turn``
assigns tasks and hands everything over. Per peer the order is: what was posted while messages were handled (so that a
Drop does not overtake a new Run of its key, nor the other way round), then Define and Run, then TakeBack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zdist.core.machine import Machine
from zdist.errors import InvariantError, ProtocolError
from zdist.limits import (
    ALLOWED_DEATHS,
    DEAD_KEPT,
    INLINE_RESULT,
    MAX_NAME,
    MAX_REASON,
    PARKED_MESSAGES,
    WINDOW_BYTES,
    WINDOW_TASKS,
)
from zdist.protocol.messages import (
    ActorCall,
    ActorReply,
    Adjusted,
    Alive,
    Ask,
    Call,
    Called,
    Cancel,
    Claim,
    Define,
    Done,
    Erred,
    Fence,
    Held,
    Hold,
    Lane,
    Leaving,
    Message,
    Mirror,
    Mirrored,
    Missing,
    NoCopy,
    NodeEnded,
    Output,
    Overdue,
    Place,
    Refused,
    Release,
    Retry,
    Returned,
    Seceded,
    Submit,
    SubmitEarly,
    Subscribe,
    Unowned,
    Want,
    WhichFunction,
    WorkerDied,
)
from zdist_broker.absent import Absent
from zdist_broker.actors import Actors
from zdist_broker.checks import check
from zdist_broker.data import Data
from zdist_broker.intake import Intake
from zdist_broker.lanes import Lanes
from zdist_broker.leaving import Departures
from zdist_broker.lifecycle import Lifecycle
from zdist_broker.looking import Looks
from zdist_broker.notices import Notices
from zdist_broker.parse import hello_info
from zdist_broker.placement import Placement
from zdist_broker.queries import Queries, Shutdown
from zdist_broker.recovery import Recovery
from zdist_broker.relay import Relay
from zdist_broker.replicas import Replicas
from zdist_broker.setups import Setups
from zdist_broker.shared import Shared
from zdist_broker.state import Client, Node, Tables, Worker
from zdist_broker.taking_back import TakingBack
from zdist_broker.withdrawing import fenced

__all__ = ["BrokerMachine", "Expel", "Shutdown"]

Handlers = Mapping[type, Callable[..., None]]


class Expel(NamedTuple):
    """Command: a worker or node was given up with its process; end its session. It has left already."""

    session: str
    reason: str


class BrokerMachine(Machine[str]):
    """The broker without sockets; destinations are session ids.

    Args:
        epoch: number of this broker's life, higher than that of any before it at the same address.
        cluster: name of the cluster, told to every peer.
        address: what clients connect to, for ``scheduler_info``.
        relay: the bulk side, for its figures in "counts".
        inline_result: bytes up to which results travel with their completion; 0: none do.
        allowed_deaths: workers that may die under a task before it fails with KilledWorker.
        born: when it began, if another may have been at its address before; None: it is the first.
    """

    def __init__(
        self,
        *,
        epoch: int,
        cluster: str,
        address: str = "",
        relay: Relay | None = None,
        inline_result: int = INLINE_RESULT,
        allowed_deaths: int = ALLOWED_DEATHS,
        born: float | None = None,
    ) -> None:
        super().__init__()
        self.cluster = cluster
        self.tables = tables = Tables(epoch, inline_result, allowed_deaths)
        self.placement = placement = Placement(tables)
        self.taking_back = TakingBack(placement)
        self.lifecycle = lifecycle = Lifecycle(tables, placement)
        self.recovery = recovery = Recovery(tables)
        self.intake = intake = Intake(tables, placement, lifecycle, recovery)
        self.data = data = Data(tables, placement, lifecycle, recovery)
        self.queries = queries = Queries(
            tables, lifecycle, recovery, self.commands, address=address, session=f"b-{epoch:x}", relay=relay
        )
        self.notices = Notices(tables, placement, self.log, address)
        self.departures = Departures(tables, data, lifecycle, queries)
        self.replicas = Replicas(tables, data, lifecycle, queries)
        self.looks = Looks(tables, placement, queries)
        self.lanes = Lanes(tables, placement, intake)
        self.actors = Actors(tables, recovery)
        self.peers: dict[str, Client | Worker | Node] = {}
        self.dead: dict[str, str] = {}  # workers whose end was reported, and by whom: a hello may arrive after that
        self.shared = Shared(tables, intake, recovery, self.peers, queries, self.log, born)
        self.setups = Setups(tables, self.shared, queries, data)
        self.absent = Absent(recovery, tables.workers, self.setups)
        self._share_out()

    def _share_out(self) -> None:
        """Who takes which message of whom."""
        intake, data, queries, lanes, actors = self.intake, self.data, self.queries, self.lanes, self.actors
        self.client_handlers: Handlers = {
            Submit: intake.submit,
            Claim: intake.claim,
            Release: intake.release,
            Define: intake.functions.define,
            Want: intake.want,
            Cancel: intake.cancel,
            Retry: intake.retry,
            Hold: data.hold,
            Held: data.held,
            Place: data.place,
            Missing: data.missing,
            Ask: queries.ask,
            Call: queries.call,
            SubmitEarly: lanes.submit,
            Lane: lanes.lane,
            ActorCall: actors.call,
        }
        self.worker_handlers: Handlers = {
            Done: self.lifecycle.done,
            Erred: self.lifecycle.erred,
            Held: data.held,
            Unowned: self.recovery.runs_on,
            Missing: data.missing,
            NoCopy: data.no_copy,
            Returned: data.returned,
            Fence: fenced,
            Seceded: data.seceded,
            Subscribe: self.absent.subscribe,
            WhichFunction: self._which_function,
            Called: self.setups.called,
            Output: queries.output,
            NodeEnded: self._node_ended,
            ActorReply: actors.reply,
        }
        lanes.plain = self.worker_handlers
        self.node_handlers: Handlers = {
            WorkerDied: self._worker_died,
            Adjusted: self.departures.adjusted,
            Alive: self.absent.alive,
            Leaving: self.departures.announced,
            Overdue: self.departures.overdue,
            Mirror: self.shared.mirror,
            Mirrored: self.shared.mirrored,
        }

    # --- sessions -------------------------------------------------------------------------------------

    def joined(self, session: str, role: str, info: dict[str, Any], now: float) -> dict[str, Any] | Refused:
        """A session begins. Returns what to add to Welcome's info, or why it may not."""
        if session in self.peers:  # it has lost its state and begins anew
            self.left(session, "it has begun a new life", now)
        welcome: dict[str, Any] = {"cluster": self.cluster}
        peer: Client | Worker | Node
        try:
            info = hello_info(role, info)
        except ValueError as error:
            return Refused("info", f"the hello of {role} {session} is malformed: {error}")
        if role in ("worker", "node"):
            info["name"] = welcome["name"] = self._own_name(session, role, info)
        if role == "client":
            peer = self.tables.clients[session] = Client(session, info, now)
            peer.handlers = self.client_handlers
            welcome |= {"window_tasks": WINDOW_TASKS, "window_bytes": WINDOW_BYTES}
        elif role == "worker":
            if self.dead.get(session) == info["node"]:
                return Refused("dead", f"the node of worker {session} has reported its end")
            peer = self.tables.workers[session] = Worker(session, info, now)
            peer.handlers = self.worker_handlers
            welcome["inline_result"] = self.tables.inline_result
            self.departures.joined(peer, now)
        elif role == "node":
            peer = self.tables.nodes[session] = Node(session, info, now)
            peer.handlers = self.node_handlers
            self.queries.node_joined(peer)
        else:
            return Refused("role", f"{role!r} is no role; there are client, worker and node")
        self.peers[session] = peer
        self.log("info", f"{role}.joined", session=session, name=peer.name, host=peer.host)
        return welcome

    def _own_name(self, session: str, role: str, info: dict[str, Any]) -> str:
        """The name asked for, or with a number where another node or its worker has it: names tell workers apart.

        A worker that takes the name of one of its own node replaces that one, whose end is about to be reported.
        """
        if role == "node":
            taken = {node.name for node in self.tables.nodes.values()}
        else:
            taken = {worker.name for worker in self.tables.workers.values() if worker.node != info["node"]}
        name = wanted = str(info["name"] or session)
        number = 1
        while name in taken:
            number += 1
            name = f"{wanted}~{number}"
        return name

    def succeeds(self, now: float) -> float:
        """Somebody has come who knew an earlier broker: this one has taken its place. Seconds that workers still have
        to come back before clients claim what they hold."""
        return self.recovery.begin(now)

    def heard(self, session: str, now: float) -> None:
        """The session lives: it has renewed its connection, or has nothing to say."""
        peer = self.peers.get(session)
        if peer is not None:
            peer.seen = now

    def crowd(self, session: str, crowded: bool) -> None:
        """Whether a client has so much unread that completions shall tell it where values are, not the values."""
        client = self.tables.clients.get(session)
        if client is not None:
            client.crowded = crowded

    def left(self, session: str, reason: str, now: float) -> None:
        """A session is over: its lease ran out, or it said Bye."""
        client = self.tables.clients.get(session)
        if client in self.absent.parked:
            self.absent.hear(client, self._late, now)
        peer = self.peers.pop(session, None)
        if peer is None:
            return
        peer.gone = True
        self.shared.left(peer)
        if isinstance(peer, Client):
            del self.tables.clients[session]
            self.queries.gone([peer], reason)
            self.replicas.gone(peer)
            self.intake.leave(peer)
            self.data.leave(peer)
            self.lanes.left(peer)
            self.log("info", "client.left", session=session, name=peer.name, reason=reason)
        elif isinstance(peer, Worker):
            self._remove([peer], reason)
        else:
            del self.tables.nodes[session]
            self.departures.forget(peer)
            self.absent.gone(peer)
            self.queries.gone([peer], reason)
            self.log("info", "node.left", session=session, name=peer.name, reason=reason)
            workers = [w for w in self.tables.workers.values() if w.node == session]
            for worker in workers:
                del self.peers[worker.session]
                self.commands.append(Expel(worker.session, f"its node {peer.name} is gone: {reason}"))
            self._remove(workers, f"its node {peer.name} is gone: {reason}")

    def _remove(self, workers: list[Worker], reason: str) -> None:
        if workers:
            names = ", ".join(w.name for w in workers)
            self.data.remove(workers, f"worker{'s' if len(workers) > 1 else ''} {names} died: {reason}")
            for worker in workers:
                self.departures.gone(worker)
                self.setups.gone(worker)
            self.queries.gone(workers, reason)
            for worker in workers:
                self.lanes.lost(worker)
                self.log("info", "worker.left", session=worker.session, name=worker.name, reason=reason)

    def _worker_died(self, node: Node, message: WorkerDied, now: float) -> None:
        self.departures.forget(node, message.worker)
        self.absent.gone(node, message.worker)
        self.dead[message.worker[:MAX_NAME]] = node.session
        while len(self.dead) > DEAD_KEPT:
            del self.dead[next(iter(self.dead))]
        worker = self.data.worker_died(node, message, now)
        if worker is not None:
            if not message.ordered:
                self.lanes.died(worker, message.running)
            del self.peers[worker.session]
            how = f"exit code {message.code}" if message.code >= 0 else f"signal {-message.code}"
            reason = message.text[:MAX_REASON] or how
            self.commands.append(Expel(worker.session, reason))
            self._remove([worker], reason)

    def _node_ended(self, worker: Worker, message: NodeEnded, now: float) -> None:
        """A worker knows it before the lease is over: its lifeline has closed."""
        if worker.node in self.tables.nodes:
            reason = "its workers say that it has ended"
            self.commands.append(Expel(worker.node, reason))
            self.left(worker.node, reason, now)

    # --- messages -------------------------------------------------------------------------------------

    def handle(self, session: str, message: Message, now: float) -> None:
        """Take in a message.

        Raises:
            ProtocolError: the session is unknown or its role may not send this; nothing has changed.
        """
        peer = self.peers.get(session)
        if peer is None:
            raise ProtocolError(f"{type(message).__name__} from {session}, which has not joined")
        handler = peer.handlers.get(type(message))
        if handler is None:
            role = type(peer).__name__.lower()
            raise ProtocolError(f"{type(message).__name__} from {session}: a {role} does not send this to a broker")
        peer.seen = now
        waits = self.recovery.absent or self.absent.parked
        if waits and isinstance(peer, Client) and self.absent.keeps(peer, message):
            return
        if peer.parked is not None:
            self._unpark(peer, message, now)
        else:
            handler(peer, message, now)

    def _late(self, session: str, message: Message, now: float) -> None:
        """What has waited for workers: its sender cannot be told any more that something is wrong with it."""
        try:
            self.handle(session, message, now)
        except InvariantError:
            raise
        except Exception as exc:
            kind, error = type(message).__name__, f"{type(exc).__name__}: {exc}"[:MAX_REASON]
            self.log("error", "peer.unforeseen", session=session, message=kind, error=error)

    def _unpark(self, peer: Client | Worker | Node, message: Message, now: float) -> None:
        """A client's messages wait, in order, while it is asked for a function that a submission of it needs."""
        assert peer.parked is not None
        digest, parked = peer.parked
        if isinstance(message, Define) and message.fn == digest:
            peer.parked = None
            for earlier in (message, *parked):
                self.handle(peer.session, earlier, now)
        elif len(parked) < PARKED_MESSAGES:
            parked.append(message)
        else:
            raise ProtocolError(f"{peer.session} does not define function {digest.hex()} and sends on")

    def _which_function(self, worker: Worker, message: WhichFunction, now: float) -> None:
        fn = self.tables.functions.get(message.fn)
        if fn is None:  # its tasks are gone, and the worker will hear so
            self.tables.ignored += 1
        else:
            fn.workers.add(worker.session)
            self.tables.tell(worker, Define(fn.digest, fn.name, fn.blob))

    def shut_down(self, reason: str) -> None:
        """The cluster ends with the next turn."""
        self.queries.stopping = reason

    # --- turns and time ---------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Assign tasks and hand over what is to be sent; once, after the messages that were there."""
        placement, tables = self.placement, self.tables
        placement.turn()
        placement.flush()
        if placement.loaded or self.taking_back.due_at is not None:
            self.taking_back.balance(now)
        self.notices.turn(now)
        self.queries.turn(now)
        self.lanes.turn(now)
        self.shared.turn(now)
        if self.intake.heirs.due:
            self.intake.heirs.turn()
        tables.flush(self.send)

    def tick(self, now: float) -> None:
        """Do what is due by ``deadline``; ``turn`` follows."""
        taking_back = self.taking_back
        if taking_back.due_at is not None and now >= taking_back.due_at:
            taking_back.balance(now, due=True)
        if self.lanes.sweep_at is not None and now >= self.lanes.sweep_at:
            self.lanes.sweep(now)
        self.absent.tick(self._late, now)
        self.intake.sought.tick(self.intake, now)
        self.recovery.tick(now)
        self.data.tick(now)
        self.departures.tick(now)
        self.shared.tick(now)
        self.replicas.tick(now)

    def deadline(self) -> float | None:
        """When ``tick`` is next needed."""
        due = self.taking_back.due_at
        for when in (
            self.queries.deadline(), self.lanes.sweep_at, self.notices.deadline(), self.recovery.deadline(),
            self.departures.look_at, self.replicas.look_at, self.shared.deadline(), self.intake.sought.look_at,
            self.absent.deadline(), self.data.deadline(),
        ):  # fmt: skip
            if when is not None and (due is None or when < due):
                due = when
        return due

    def busy(self) -> bool:
        """Whether a task is unfinished."""
        placement = self.placement
        return any(w.assigned for w in self.tables.workers.values()) or any(p.live for p in placement.pools.values())

    def check(self) -> None:
        """Raise InvariantError if the tables contradict each other. Between turns."""
        check(self)
