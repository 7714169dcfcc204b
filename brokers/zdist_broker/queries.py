"""Questions and orders about the cluster as a whole, calls on workers, and output on its way to clients. PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from zdist.limits import MAX_KEY
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
)
from zdist_broker.lifecycle import Lifecycle
from zdist_broker.relay import Relay
from zdist_broker.state import PINNED, Client, Node, Peer, Tables, Worker


class Shutdown(NamedTuple):
    """Command: send what is queued, then end the broker."""

    reason: str = ""


class Request(Exception):
    """An order that cannot be carried out; the text goes to the client."""


class Pending:
    """A call or an order that waits for answers, each from one session."""

    __slots__ = ("addresses", "client", "req", "results")

    def __init__(self, client: Client, req: int) -> None:
        self.client = client
        self.req = req
        self.addresses: dict[str, str] = {}  # who has not answered, by session
        self.results: dict[str, Any] = {}


class Restart(NamedTuple):
    """A restart that waits for as many new workers as there were."""

    client: Client
    req: int
    old: dict[str, None]  # sessions
    deadline: float | None


def _bytes(payload: Payload) -> bytes:
    return bytes(payload.data) if isinstance(payload, Buffer) else payload


class Queries:
    """Handlers for Ask, Call and Output, and what comes back for them."""

    def __init__(
        self,
        tables: Tables,
        lifecycle: Lifecycle,
        commands: list[Any],
        *,
        address: str,
        session: str,
        relay: Relay | None,
    ) -> None:
        self.tables = tables
        self.lifecycle = lifecycle
        self.commands = commands
        self.address = address
        self.session = session
        self.relay = relay
        self.req = 0  # of what the broker itself asks of workers and nodes
        self.pending: dict[int, Pending] = {}
        self.waiting: list[tuple[Client, int, int]] = []  # wait_for_workers: client, req, n
        self.restarts: list[Restart] = []
        self.stopping = ""
        self.asks: dict[str, Callable[[Client, int, Any, float], Any]] = {
            "workers": self._workers,
            "wait_for_workers": self._wait_for_workers,
            "who_has": self._who_has,
            "has_what": self._has_what,
            "nthreads": lambda client, req, args, now: {w.address: w.threads for w in self._there()},
            "processing": lambda client, req, args, now: {w.address: list(w.assigned) for w in self._there()},
            "counts": self._counts,
            "restart": self._restart,
            "shutdown": self._shutdown,
            "scale": self._scale,
            "log_subscribe": self._log_subscribe,
            "fence": lambda client, req, args, now: True,  # what was sent before it has been taken in
        }

    # --- questions ------------------------------------------------------------------------------------

    def ask(self, client: Client, message: Ask, now: float) -> None:
        answer = self.asks.get(message.what)
        try:
            if answer is None:
                raise Request(f"{message.what!r} is not a question that a broker answers")
            value = answer(client, message.req, message.args, now)
        except (Request, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            self.tables.tell(client, Answer(message.req, False, f"{message.what:.80}: {error}"[:MAX_KEY]))
        else:
            if value is not self:  # else the answer comes later
                self.tables.tell(client, Answer(message.req, True, value))

    def _there(self) -> list[Worker]:
        return [w for w in self.tables.workers.values() if w.subscribed]

    def _chosen(self, names: Any) -> list[Worker]:
        """Workers by address or name, all of them for None."""
        there = self._there()
        if names is None:
            return there
        chosen: dict[Worker, None] = {}
        for name in names:
            found = [w for w in there if w.address == name or w.name == name]
            if not found:
                raise Request(f"there is no worker {name!r}; there are {', '.join(w.name for w in there) or 'none'}")
            chosen.update(dict.fromkeys(found))
        return list(chosen)

    def _workers(self, client: Client, req: int, args: Any, now: float) -> dict[str, Any]:
        workers = {}
        for w in self._there():
            node = self.tables.nodes.get(w.node)
            workers[w.address] = {
                "name": w.name,
                "host": w.host,
                "pid": w.pid,
                "nthreads": w.threads,
                "memory_limit": w.memory_limit,
                "tags": list(w.tags),
                "resources": dict(w.resources),
                "status": "paused" if w.paused else "running",
                "processing": len(w.assigned),
                "held": len(w.held),
                "last_seen": now - max(w.seen, node.seen if node else 0.0),
                "node": node.name if node else "",
            }
        return {"type": "Broker", "id": self.session, "address": self.address, "workers": workers}

    def _wait_for_workers(self, client: Client, req: int, args: Any, now: float) -> Any:
        count = int(args[0] if isinstance(args, tuple | list) else args)
        if len(self._there()) >= count:
            return len(self._there())
        self.waiting.append((client, req, count))
        return self

    def _who_has(self, client: Client, req: int, args: Any, now: float) -> dict[str, list[str]]:
        tasks = self.tables.tasks
        keys = tasks if args is None else args
        where: dict[str, list[str]] = {}
        for key in keys:
            task = tasks.get(key)
            where[key] = [h.address for h in task.holders if isinstance(h, Worker)] if task is not None else []
        return where

    def _has_what(self, client: Client, req: int, args: Any, now: float) -> dict[str, list[str]]:
        return {w.address: list(w.held) for w in self._chosen(args)}

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
        client.logs = bool(args[0] if isinstance(args, tuple | list) else args)
        return client.logs

    # --- orders ---------------------------------------------------------------------------------------

    def _restart(self, client: Client, req: int, args: Any, now: float) -> Any:
        timeout = args[0] if isinstance(args, tuple | list) and args else args
        deadline = now + float(timeout) if timeout else None
        tables = self.tables
        everything = list(tables.tasks.values())
        for task in everything:
            task.flags &= ~PINNED
        self.lifecycle.cancel(everything, "cluster restarted")
        self.restarts.append(Restart(client, req, {w.session: None for w in self._there()}, deadline))
        for node in tables.nodes.values():
            self.req += 1
            tables.tell(node, Adjust(self.req, -1, True))
        return self

    def _scale(self, client: Client, req: int, args: Any, now: float) -> Any:
        count = int(args[0] if isinstance(args, tuple | list) else args)
        nodes = list(self.tables.nodes.values())
        if count < 0 or not nodes:
            raise Request(f"cannot have {count} workers on {len(nodes)} nodes")
        self.req += 1
        pending = self.pending[self.req] = Pending(client, req)
        for n, node in enumerate(nodes):
            pending.addresses[node.session] = node.name
            share = count // len(nodes) + (n < count % len(nodes))
            self.tables.tell(node, Adjust(self.req, share, False))
        return self

    def _shutdown(self, client: Client, req: int, args: Any, now: float) -> bool:
        self.stopping = f"the cluster was shut down by client {client.name}"
        return True

    # --- calls ----------------------------------------------------------------------------------------

    def call(self, client: Client, message: Call, now: float) -> None:
        try:
            workers = self._chosen(message.workers)
        except Request as error:
            return self.tables.tell(client, Answer(message.req, False, str(error)))
        self.req += 1
        pending = self.pending[self.req] = Pending(client, message.req)
        for worker in workers:
            pending.addresses[worker.session] = worker.address
            self.tables.tell(worker, Call(self.req, None, message.payload))
        self._settle(self.req)

    def called(self, worker: Worker, message: Called, now: float) -> None:
        self._answered(worker, message.req, [message.ok, _bytes(message.payload)])

    def adjusted(self, node: Node, message: Adjusted, now: float) -> None:
        self._answered(node, message.req, message.workers)

    def _answered(self, peer: Peer, req: int, result: Any) -> None:
        pending = self.pending.get(req)
        address = pending.addresses.pop(peer.session, None) if pending else None
        if pending is None or address is None:
            self.tables.ignored += 1
            return
        pending.results[address] = result
        self._settle(req)

    def _settle(self, req: int) -> None:
        pending = self.pending[req]
        if not pending.addresses:
            del self.pending[req]
            self.tables.tell(pending.client, Answer(pending.req, True, pending.results))

    # --- output ---------------------------------------------------------------------------------------

    def output(self, worker: Worker, message: Output, now: float) -> None:
        tables = self.tables
        if message.stream == "log":
            clients: Iterable[Client] = [c for c in tables.clients.values() if c.logs]
        else:
            task = tables.tasks.get(message.key)
            clients = task.who if task else ()
        for client in clients:
            tables.tell(client, message)

    # --- comings, goings, time ------------------------------------------------------------------------

    def gone(self, peers: Iterable[Peer], reason: str) -> None:
        """Sessions are over: nobody waits for their answers, nobody answers them."""
        for peer in peers:
            if isinstance(peer, Client):
                self.waiting = [w for w in self.waiting if w[0] is not peer]
                self.restarts = [r for r in self.restarts if r.client is not peer]
                for req in [req for req, p in self.pending.items() if p.client is peer]:
                    del self.pending[req]
            else:
                for req, pending in list(self.pending.items()):
                    address = pending.addresses.pop(peer.session, None)
                    if address is not None:
                        pending.results[address] = [False, None, f"{address} is gone: {reason}"]
                        self._settle(req)

    def turn(self, now: float) -> None:
        """Answer what waited for workers; end the cluster if that was ordered."""
        tables = self.tables
        if self.waiting:
            there = len(self._there())
            for client, req, _ in [w for w in self.waiting if w[2] <= there]:
                tables.tell(client, Answer(req, True, there))
            self.waiting = [w for w in self.waiting if w[2] > there]
        if self.restarts:
            fresh = {w.session: None for w in self._there()}
            for restart in list(self.restarts):
                back = len(fresh) >= len(restart.old) and not any(session in fresh for session in restart.old)
                if back or (restart.deadline is not None and now >= restart.deadline):
                    self.restarts.remove(restart)
                    text = f"restart: {len(fresh)} of {len(restart.old)} workers were back in time"
                    tables.tell(restart.client, Answer(restart.req, back, len(fresh) if back else text))
        if self.stopping:
            for peer in (*tables.nodes.values(), *tables.clients.values()):
                tables.tell(peer, Stop(self.stopping))
            self.commands.append(Shutdown(self.stopping))
            self.stopping = ""

    def deadline(self) -> float | None:
        return min((r.deadline for r in self.restarts if r.deadline is not None), default=None)
