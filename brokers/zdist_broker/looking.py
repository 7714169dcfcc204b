"""Questions of those who look: how much there is of what, what is running, versions, and the broker's log. PURE.

`status` costs time in proportion to the number of workers, whatever the number of tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from zdist.core.naming import group_of
from zdist.limits import ASK_ENTRIES, CALL_BYTES, COUNTED_TASKS, KEYS_SHOWN, LOG_LINES, MAX_KEY
from zdist.protocol.messages import payload_size
from zdist_broker import parse
from zdist_broker.intake import UNKNOWN
from zdist_broker.placement import Placement
from zdist_broker.queries import Queries, Request, nothing, plain
from zdist_broker.state import ASSIGNED, FORGOTTEN, MEMORY, SECEDED, STATES, Client, Tables, Task, Worker

__all__ = ["Looks"]


PACKAGES: Final = 64  # named in one question for versions


class Looks:
    """Handlers for such questions.

    The driver fills ``records`` (level and line of log records, oldest first), and sets ``began`` and ``versions``
    (of the packages that are named, as installed where the broker runs).
    """

    def __init__(self, tables: Tables, placement: Placement, queries: Queries) -> None:
        self.tables = tables
        self.placement = placement
        self.queries = queries
        self.began = 0.0
        self.records: deque[tuple[str, str]] = deque(maxlen=LOG_LINES)
        self.versions: Callable[[tuple[str, ...]], dict[str, Any]] = lambda packages: {}
        queries.asks |= {
            "status": (nothing, self._status),
            "worker": (lambda args: parse.text("worker", args), self._worker),
            "nbytes": (_nbytes_args, self._nbytes),
            "running": (lambda args: None if args is None else parse.keys("keys", args), self._running),
            "spec": (lambda args: parse.text("key", args, MAX_KEY), self._spec),
            "logs": (lambda args: None if args is None else parse.whole("n", args, 0, LOG_LINES), self._logs),
            "versions": (_packages, self._versions),
        }

    def _status(self, client: Client, req: int, args: Any, now: float) -> dict[str, Any]:
        tables, relay = self.tables, self.queries.relay
        workers = self.queries.chosen(None)
        return {
            "now": now,
            "id": self.queries.session,
            "address": self.queries.address,
            "uptime": now - self.began,
            "clients": len(tables.clients),
            "nodes": len(tables.nodes),
            "tasks": self._by_state(),
            "completed": tables.tally.completed,
            "failed": tables.tally.failed,
            "failures": list(tables.tally.failures),
            "relayed": relay.carried if relay is not None else 0,
            "workers": [self._row(worker, now) for worker in workers],
        }

    def _row(self, worker: Worker, now: float) -> dict[str, Any]:
        node = self.tables.nodes.get(worker.node)
        return {
            "address": worker.address,
            "session": worker.session,
            "name": worker.name,
            "host": worker.host,
            "pid": worker.pid,
            "node": node.name if node is not None else "",
            "status": worker.status,
            "nthreads": worker.threads,
            "memory_limit": worker.memory_limit,
            "processing": len(worker.assigned),
            "held": len(worker.held),
            "completed": worker.completed,
            "last_seen": now - max(worker.seen, node.seen if node is not None else 0.0),
        }

    def _worker(self, client: Client, req: int, args: Any, now: float) -> dict[str, Any]:
        """The first of what a worker has been given and holds: keys with what is known of them."""
        (worker,) = self.queries.chosen((args,))[:1]
        return {
            **self._row(worker, now),
            "tags": list(worker.tags),
            "resources": dict(worker.resources),
            "assigned": [
                (t.key, "waiting" if t.waiting else "seceded" if t.flags & SECEDED else "started or queued")
                for t in islice(worker.assigned.values(), KEYS_SHOWN)
            ],
            "keys": [(t.key, t.nbytes, t.type) for t in islice(worker.held.values(), KEYS_SHOWN)],
        }

    def _by_state(self) -> dict[str, int]:
        """Tasks and data by state; of very many only what is counted anyway."""
        tasks = self.tables.tasks
        if len(tasks) > COUNTED_TASKS:
            return {
                "total": len(tasks),
                "ready": sum(pool.live for pool in self.placement.pools.values()),
                "assigned": sum(len(worker.assigned) for worker in self.tables.workers.values()),
            }
        counts = dict.fromkeys(STATES[:FORGOTTEN], 0)
        for task in tasks.values():
            counts[STATES[task.state]] += 1
        return {"total": len(tasks), **counts}

    def _nbytes(self, client: Client, req: int, args: Any, now: float) -> dict[str, int]:
        keys, summary = args
        tasks = self.tables.tasks
        chosen = tasks.values() if keys is None else [tasks[key] for key in keys if key in tasks]
        found: dict[str, int] = {}
        for task in chosen:
            if task.state == MEMORY:
                name = group_of(task.key) if summary else task.key
                found[name] = found.get(name, 0) + task.nbytes
        if len(found) > ASK_ENTRIES:
            raise Request(f"the answer would have more than {ASK_ENTRIES} entries; ask for fewer keys")
        return found

    def _running(self, client: Client, req: int, args: Any, now: float) -> dict[str, list[str]]:
        """By worker's address: what it was given of these keys, and of what they wait for."""
        if args is None:
            return {w.address: [] for w in self.queries.chosen(None) if w.assigned}  # an empty list: all of it
        tasks = self.tables.tasks
        stack = [tasks[key] for key in args if key in tasks]
        seen: dict[Task, None] = dict.fromkeys(stack)
        found: dict[str, list[str]] = {}
        while stack:
            task = stack.pop()
            if task.worker is not None:
                found.setdefault(task.worker.address, []).append(task.key)
            if task.state <= ASSIGNED:
                new = [dep for dep in task.deps if dep.state <= ASSIGNED and dep not in seen]
                seen.update(dict.fromkeys(new))
                stack += new
            if len(seen) > ASK_ENTRIES:
                raise Request(f"these keys wait for more than {ASK_ENTRIES} others; ask for fewer")
        return found

    def _spec(self, client: Client, req: int, args: Any, now: float) -> tuple[Any, ...] | None:
        """How a task is made: digest, name and bytes of its function, arguments, dependencies; None of data."""
        task = self.tables.tasks.get(args)
        if task is None:
            raise Request(f"{args}: {UNKNOWN}")
        if task.fn is None:
            return None
        if task.fn.nbytes + payload_size(task.args) > CALL_BYTES:
            raise Request(f"function and arguments of {args} have more than {CALL_BYTES} bytes")
        fn, deps = task.fn, tuple(dep.key for dep in task.deps)
        return fn.digest, fn.name, plain(fn.blob), plain(task.args), deps

    def _logs(self, client: Client, req: int, args: Any, now: float) -> list[tuple[str, str]]:
        records = list(self.records)
        return records if args is None else records[max(0, len(records) - args) :]

    def _versions(self, client: Client, req: int, args: Any, now: float) -> dict[str, Any]:
        return self.versions(args)


def _packages(args: Any) -> tuple[str, ...]:
    names = parse.names("packages", args)
    if len(names) > PACKAGES:
        raise ValueError(f"packages: {len(names)} names, at most {PACKAGES}, as each is looked up on the disk")
    return names


def _nbytes_args(args: Any) -> tuple[Any, bool]:
    if not isinstance(args, tuple | list) or len(args) != 2 or type(args[1]) is not bool:
        raise ValueError(f"{parse.shown(args)} is not a list of keys (or None) and whether they are summed up")
    return None if args[0] is None else parse.keys("keys", args[0]), args[1]
