"""Questions and orders about the cluster as a whole, calls on workers, and output on its way to clients. PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from zdist.limits import (
    ANSWER_BYTES,
    ASK_ENTRIES,
    CALL_BYTES,
    MAX_KEY,
    MAX_NAME,
    MAX_NAMES,
    MAX_REASON,
    MAX_TEXT,
    MAX_WORKERS,
    RECOVERY,
    WAITING_ASKS,
)
from zdist.protocol.messages import (
    Adjust,
    Adjusted,
    Answer,
    Ask,
    Buffer,
    Call,
    Called,
    Output,
    Payload,
    Stop,
    payload_size,
)
from zdist_broker import parse
from zdist_broker.lifecycle import Lifecycle
from zdist_broker.recovery import Recovery
from zdist_broker.relay import Relay
from zdist_broker.state import PINNED, Client, Node, Peer, Tables, Worker

ALL_WORKERS = ("retire", "scale", "restart", "restart_workers")  # orders that are about who is there


class Shutdown(NamedTuple):
    """Command: send what is queued, then end the broker."""

    reason: str = ""


class Request(Exception):
    """An order that cannot be carried out; the text goes to the client."""


class Pending:
    """A call or an order that waits for answers, each from one session."""

    __slots__ = ("addresses", "client", "req", "results", "room")

    def __init__(self, client: Client, req: int) -> None:
        self.client = client
        self.req = req
        self.addresses: dict[str, str] = {}  # who has not answered, by session
        self.results: dict[str, Any] = {}
        self.room = ANSWER_BYTES  # what the answers that are still to come may add


class Restart(NamedTuple):
    """A restart that waits until workers are gone and there are as many as before."""

    client: Client
    req: int
    old: dict[str, None]  # sessions that are to be gone
    number: int  # of workers that are to be there
    deadline: float | None
    gently: bool = False  # nothing of what they hold may be lost


Handler = Callable[[Client, int, Any, float], Any]


def nothing(args: Any) -> None:
    """The arguments of a question that takes none. Raises ValueError."""
    if args is not None and args != ():
        raise ValueError(f"it takes no arguments, not {parse.shown(args)}")


def _optional(take: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda args: None if args is None else take(args)


def _single(take: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One argument, alone or as the only one of a list."""
    return lambda args: take(args[0] if isinstance(args, tuple | list) and len(args) == 1 else args)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{parse.shown(value)} is neither true nor false")
    return value


def plain(payload: Payload) -> bytes:
    """A payload as it may stand in an answer."""
    return bytes(payload.data) if isinstance(payload, Buffer) else payload


class Queries:
    """Handlers for Ask, Call and Output, and what comes back for them."""

    def __init__(
        self,
        tables: Tables,
        lifecycle: Lifecycle,
        recovery: Recovery,
        commands: list[Any],
        *,
        address: str,
        session: str,
        relay: Relay | None,
    ) -> None:
        self.tables = tables
        self.lifecycle = lifecycle
        self.recovery = recovery
        self.commands = commands
        self.address = address
        self.session = session
        self.relay = relay
        self.req = (tables.epoch & 0x3FFFFFFFFFF) << 20  # of what the broker itself asks of workers and nodes
        self.pending: dict[int, Pending] = {}
        self.waiting: list[tuple[Client, int, int]] = []  # wait_for_workers: client, req, n
        self.restarts: list[Restart] = []
        self.early: list[tuple[Client, Ask]] = []  # wait until those who were here before this broker have come back
        self.stopping = ""
        count = _single(lambda args: parse.whole("workers", args, 0, MAX_WORKERS * MAX_NAMES))
        seconds = _optional(_single(lambda args: None if args is None else parse.amount("seconds", args)))
        keys = _optional(lambda args: parse.keys("keys", args))
        names = _optional(lambda args: parse.names("workers", args))
        self.asks: dict[str, tuple[Callable[[Any], Any], Handler]] = {  # how arguments are taken apart, who answers
            "members": (nothing, self._members),
            "workers": (nothing, self._workers),
            "wait_for_workers": (count, self._wait_for_workers),
            "who_has": (keys, self._who_has),
            "has_what": (names, self._has_what),
            "nthreads": (nothing, lambda client, req, args, now: {w.address: w.threads for w in self._there()}),
            "processing": (nothing, self._processing),
            "counts": (nothing, self._counts),
            "restart": (seconds, self._restart),
            "shutdown": (nothing, self._shutdown),
            "scale": (count, self._scale),
            "log_subscribe": (_single(_flag), self._log_subscribe),
            "fence": (nothing, lambda client, req, args, now: True),  # what was sent before it has been taken in
        }

    # --- questions ------------------------------------------------------------------------------------

    def ask(self, client: Client, message: Ask, now: float) -> None:
        what = message.what[:80]
        known = self.asks.get(message.what)
        try:
            if known is None:
                raise Request(f"{what!r} is not a question that a broker answers")
            if client.asking >= WAITING_ASKS:
                raise Request(f"{client.asking} questions of this client wait for their answers already")
            take, answer = known
            if message.what in ALL_WORKERS and now < self._complete():
                client.asking += 1
                return self.early.append((client, message))
            value = answer(client, message.req, take(message.args), now)
        except (Request, ValueError) as error:
            self.tables.tell(client, Answer(message.req, False, f"{what}: {error}"[:MAX_KEY]))
        else:
            if value is not self:  # else the answer comes later
                self.tables.tell(client, Answer(message.req, True, value))

    def _complete(self) -> float:
        """When the workers and nodes of an earlier broker should be here."""
        return 0.0 if self.recovery.began is None else self.recovery.began + RECOVERY

    def _there(self) -> list[Worker]:
        return [w for w in self.tables.workers.values() if w.subscribed]

    def chosen(self, names: Any) -> list[Worker]:
        """Workers by address or name, all of them for None."""
        there = self._there()
        if names is None:
            return there
        by: dict[str, dict[Worker, None]] = {}
        for w in there:
            for name in (w.address, w.name):
                by.setdefault(name, {})[w] = None
        chosen: dict[Worker, None] = {}
        for name in names:
            if name not in by:
                some = ", ".join(w.name for w in there[:20]) or "none"
                raise Request(f"there is no worker {name[:80]!r}; there are {some}")
            chosen.update(by[name])
        return list(chosen)

    def _members(self, client: Client, req: int, args: Any, now: float) -> list[tuple[str, str, str, str, str]]:
        """Rows as in Members; unlike the answer to "workers" it has all of those that advertise one address."""
        return [(w.session, w.address, w.name, w.host, w.node) for w in self._there()]

    def _workers(self, client: Client, req: int, args: Any, now: float) -> dict[str, Any]:
        workers = {}
        for w in self._there():
            node = self.tables.nodes.get(w.node)
            workers[w.address] = {
                "session": w.session,
                "name": w.name,
                "host": w.host,
                "pid": w.pid,
                "nthreads": w.threads,
                "memory_limit": w.memory_limit,
                "tags": list(w.tags),
                "resources": dict(w.resources),
                "status": w.status,
                "processing": len(w.assigned),
                "held": len(w.held),
                "last_seen": now - max(w.seen, node.seen if node else 0.0),
                "node": node.name if node else "",
            }
        return {"type": "Broker", "id": self.session, "address": self.address, "workers": workers}

    def _wait_for_workers(self, client: Client, req: int, args: Any, now: float) -> Any:
        if len(self._there()) >= args:
            return len(self._there())
        client.asking += 1
        self.waiting.append((client, req, args))
        return self

    def _who_has(self, client: Client, req: int, args: Any, now: float) -> dict[str, list[str]]:
        tasks = self.tables.tasks
        keys = tasks if args is None else args
        where: dict[str, list[str]] = {}
        entries = 0
        for key in keys:
            task = tasks.get(key)
            entries += 1 + (len(task.holders) if task is not None else 0)
            if entries > ASK_ENTRIES:
                raise Request(f"the answer would have more than {ASK_ENTRIES} entries; ask for fewer keys")
            where[key] = [h.address for h in task.holders if isinstance(h, Worker)] if task is not None else []
        return where

    def _has_what(self, client: Client, req: int, args: Any, now: float) -> dict[str, list[str]]:
        return self._listed({w.address: w.held for w in self.chosen(args)})

    def _processing(self, client: Client, req: int, args: Any, now: float) -> dict[str, list[str]]:
        return self._listed({w.address: w.assigned for w in self._there()})

    def _listed(self, tables: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
        if sum(len(table) for table in tables.values()) > ASK_ENTRIES:
            raise Request(f"the answer would have more than {ASK_ENTRIES} entries; ask for fewer workers")
        return {address: list(table) for address, table in tables.items()}

    def _counts(self, client: Client, req: int, args: Any, now: float) -> dict[str, int]:
        t = self.tables
        return {
            "tasks": sum(task.fn is not None for task in t.tasks.values()),
            "data": sum(task.fn is None for task in t.tasks.values()),
            "held": sum(len(w.held) for w in t.workers.values()) + sum(len(c.held) for c in t.clients.values()),
            "wants": sum(len(c.wants) for c in t.clients.values()),
            "assigned": sum(len(w.assigned) for w in t.workers.values()),
            "functions": len(t.functions),
            "placing": len(t.placing),
            "cached": t.cached,
            "clients": len(t.clients),
            "workers": len(t.workers),
            "nodes": len(t.nodes),
            "relay": self.relay.granted if self.relay else 0,
            "ignored": t.ignored,
        }

    def _log_subscribe(self, client: Client, req: int, args: Any, now: float) -> bool:
        client.logs = args
        return client.logs

    # --- orders ---------------------------------------------------------------------------------------

    def _restart(self, client: Client, req: int, args: Any, now: float) -> Any:
        deadline = now + args if args else None
        tables = self.tables
        everything = list(tables.tasks.values())
        for task in everything:
            task.flags &= ~PINNED
        self.lifecycle.cancel(everything, "cluster restarted")
        client.asking += 1
        old = {w.session: None for w in self._there()}
        number = sum(not w.leaving for w in self._there())
        self.restarts.append(Restart(client, req, old, number, deadline))
        for node in tables.nodes.values():
            self._replace_all(node)
        return self

    def _replace_all(self, node: Node) -> None:
        self.req += 1
        self.tables.tell(node, Adjust(self.req, -1, True))

    def node_joined(self, node: Node) -> None:
        """A node has come, maybe later than its workers: those that are to be replaced are so now."""
        old = {session for restart in self.restarts if not restart.gently for session in restart.old}
        if any(worker.node == node.session for session, worker in self.tables.workers.items() if session in old):
            self._replace_all(node)

    def _scale(self, client: Client, req: int, args: Any, now: float) -> Any:
        nodes = list(self.tables.nodes.values())
        if not nodes or args > MAX_WORKERS * len(nodes):
            raise Request(f"cannot have {args} workers on {len(nodes)} nodes, {MAX_WORKERS} at most on each")
        pending = self.pend(client, req)
        for n, node in enumerate(nodes):
            pending.addresses[node.session] = node.name
            share = args // len(nodes) + (n < args % len(nodes))
            self.tables.tell(node, Adjust(self.req, share, False))
        return self

    def _shutdown(self, client: Client, req: int, args: Any, now: float) -> bool:
        self.stopping = f"the cluster was shut down by client {client.name}"
        return True

    # --- calls ----------------------------------------------------------------------------------------

    def call(self, client: Client, message: Call, now: float) -> None:
        size = payload_size(message.payload)
        try:
            if size > CALL_BYTES:
                raise Request(f"a call of {size} bytes, at most {CALL_BYTES} are possible; scatter large arguments")
            if client.asking >= WAITING_ASKS:
                raise Request(f"{client.asking} questions of this client wait for their answers already")
            names = message.workers
            workers = self.chosen(None if names is None else parse.names("workers", names))
        except (Request, ValueError) as error:
            return self.tables.tell(client, Answer(message.req, False, str(error)[:MAX_KEY]))
        pending = self.pend(client, message.req)
        for worker in workers:
            pending.addresses[worker.session] = worker.address
            self.tables.tell(worker, Call(self.req, None, message.payload))
        self._settle(self.req)

    def pend(self, client: Client, req: int) -> Pending:
        """Wait for answers to what is now asked under ``self.req``."""
        self.req += 1
        client.asking += 1
        pending = self.pending[self.req] = Pending(client, req)
        return pending

    def called(self, worker: Worker, message: Called, now: float) -> None:
        size = payload_size(message.payload)
        pending = self.pending.get(message.req)
        if pending is not None and size <= min(pending.room, CALL_BYTES):
            pending.room -= size
            self.answered(worker, message.req, [message.ok, plain(message.payload)])
        else:
            most = f"{CALL_BYTES} are possible from each worker, {ANSWER_BYTES} from all"
            self.answered(worker, message.req, [False, None, f"its answer has {size} bytes; at most {most}"])

    def adjusted(self, node: Node, message: Adjusted, now: float) -> None:
        self.answered(node, message.req, message.workers)

    def answered(self, peer: Peer, req: int, result: Any) -> None:
        """One of those that were asked has answered."""
        pending = self.pending.get(req)
        address = pending.addresses.pop(peer.session, None) if pending else None
        if pending is None or address is None:
            self.tables.ignored += 1
            return
        pending.results[address] = result
        self._settle(req)

    def failed(self, req: int, why: str) -> None:
        """It cannot be done, whatever others answer."""
        pending = self.pending.pop(req, None)
        if pending is not None:
            pending.client.asking -= 1
            self.tables.tell(pending.client, Answer(pending.req, False, why))

    def _settle(self, req: int) -> None:
        pending = self.pending[req]
        if not pending.addresses:
            del self.pending[req]
            pending.client.asking -= 1
            self.tables.tell(pending.client, Answer(pending.req, True, pending.results))

    # --- output ---------------------------------------------------------------------------------------

    def output(self, worker: Worker, message: Output, now: float) -> None:
        tables = self.tables
        if message.stream == "log":
            clients: Iterable[Client] = [c for c in tables.clients.values() if c.logs]
        else:
            task = tables.tasks.get(message.key)
            clients = task.who if task else ()
        if clients:
            stream, text, key, source = message
            cut = Output(stream[:MAX_NAME], text[:MAX_TEXT], key[:MAX_KEY], source[:MAX_NAME])
            for client in clients:
                tables.tell(client, cut)

    # --- comings, goings, time ------------------------------------------------------------------------

    def gone(self, peers: Iterable[Peer], reason: str) -> None:
        """Sessions are over: nobody waits for their answers, nobody answers them."""
        for peer in peers:
            if isinstance(peer, Client):
                self.waiting = [w for w in self.waiting if w[0] is not peer]
                self.restarts = [r for r in self.restarts if r.client is not peer]
                self.early = [early for early in self.early if early[0] is not peer]
                for req in [req for req, p in self.pending.items() if p.client is peer]:
                    del self.pending[req]
            else:
                for req, pending in list(self.pending.items()):
                    address = pending.addresses.pop(peer.session, None)
                    if address is not None:
                        pending.results[address] = [False, None, f"{address} is gone: {reason[:MAX_REASON]}"]
                        self._settle(req)

    def turn(self, now: float) -> None:
        """Answer what waited for workers; end the cluster if that was ordered."""
        tables = self.tables
        if self.early and now >= self._complete():
            early, self.early = self.early, []
            for client, message in early:
                client.asking -= 1
                self.ask(client, message, now)
        if self.waiting:
            there = len(self._there())
            for client, req, _ in [w for w in self.waiting if w[2] <= there]:
                client.asking -= 1
                tables.tell(client, Answer(req, True, there))
            self.waiting = [w for w in self.waiting if w[2] > there]
        if self.restarts:
            fresh = {w.session: None for w in self._there()}
            kept = sum(node.keeps for node in tables.nodes.values())  # no more than these come
            for restart in list(self.restarts):
                back = len(fresh) >= min(restart.number, kept) and not any(session in fresh for session in restart.old)
                if back or (restart.deadline is not None and now >= restart.deadline):
                    text = f"restart: {len(fresh)} of {restart.number} workers were back in time"
                    self.restarted(restart, back, len(fresh) if back else text)
        if self.stopping:
            for peer in (*tables.nodes.values(), *tables.clients.values()):
                tables.tell(peer, Stop(self.stopping))
            self.commands.append(Shutdown(self.stopping))
            self.stopping = ""

    def restarted(self, restart: Restart, ok: bool, value: Any) -> None:
        """A restart is over."""
        self.restarts.remove(restart)
        restart.client.asking -= 1
        self.tables.tell(restart.client, Answer(restart.req, ok, value))

    def deadline(self) -> float | None:
        times = [r.deadline for r in self.restarts if r.deadline is not None]
        return min([*times, self._complete()] if self.early else times, default=None)
