"""Looking at a cluster again and again: what `zdist top` shows."""

from __future__ import annotations

from typing import Any, Final

from zdist import serialize
from zdist.client.client import Client
from zdist.client.inspecting import looks_into
from zdist.core.entry import Reply
from zdist.errors import ZdistError
from zdist.protocol.messages import Buffer

__all__ = ["ASKED", "Watcher"]

ASKED: Final = 64  # workers that are asked for their figures with one look
PATIENCE: Final = 0.5  # seconds that their answers are waited for; one whose task holds the GIL answers later, or never
RECORDS: Final = 20  # of the broker's log
MEASURED: Final = ("memory", "stored", "spilled")


class Watcher:
    """Looks through a synchronous client. The broker answers from its counters; memory, processor time and bytes by
    path come from the workers themselves, and are None where one does not answer."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.before: dict[str, Any] | None = None  # the broker's last answer
        self.open: dict[str, Reply] = {}  # by worker's name: its figures have been asked for
        self.figures: dict[str, dict[str, Any]] = {}  # the last ones
        self.rates: dict[str, float] = {}  # seconds of processor time a second

    def look(self, timeout: float, first: list[str] | None = None, patience: float = PATIENCE) -> dict[str, Any]:
        """All of it, as numbers, texts, lists and dicts; rates are per second since the look before, else None.

        Parameters:
            timeout: seconds to wait for the broker.
            first: names of workers that are asked for their figures before others, of which there may be many.
            patience: seconds to wait for workers.

        Raises TimeoutError while the broker is away, ClusterClosed when the cluster has ended.
        """
        client = self.client
        status = client._ask("status", None, timeout=timeout)
        logs = client._ask("logs", RECORDS, timeout=timeout)
        names = [row["name"] for row in status["workers"]]
        there = set(names)
        self._measure(list(dict.fromkeys(name for name in (*(first or ()), *names) if name in there)), patience)
        before, self.before = self.before, status
        if before is not None and before["id"] != status["id"]:
            before = None
        completed = {} if before is None else {row["session"]: row["completed"] for row in before["workers"]}
        span = 0.0 if before is None else status["now"] - before["now"]
        workers = [self._worker(row, completed, span) for row in status["workers"]]
        fetched: dict[str, int] = {}
        for worker in workers:
            for path, nbytes in (worker["fetched"] or {}).items():
                fetched[path] = fetched.get(path, 0) + nbytes
        return {
            "broker": {name: status[name] for name in ("address", "id", "uptime")},
            "clients": status["clients"],
            "nodes": status["nodes"],
            "tasks": status["tasks"],
            "completed": status["completed"],
            "failed": status["failed"],
            "per_second": {
                name: _rate(status[of], None if before is None else before[of], span)
                for name, of in (("completed", "completed"), ("failed", "failed"), ("relay_bytes", "relayed"))
            },
            "bytes": {"relayed_by_broker": status["relayed"], "fetched_by_workers": fetched},
            "workers": workers,
            "failures": [{"number": number, "key": key, "text": text} for number, key, text in status["failures"]],
            "log": [{"level": level, "line": line} for level, line in logs],
        }

    def _worker(self, row: dict[str, Any], completed: dict[str, int], span: float) -> dict[str, Any]:
        figures = self.figures.get(row["name"], {})
        return {
            **row,
            "per_second": _rate(row["completed"], completed.get(row["session"]), span),
            **{name: figures.get(name) for name in MEASURED},
            "cpu": self.rates.get(row["name"]),
            "fetched": figures.get("fetched"),
        }

    def _measure(self, names: list[str], patience: float) -> None:
        """Ask workers for their figures; those that have not answered the last time are still being waited for."""
        known = set(names)
        self.open = {name: reply for name, reply in self.open.items() if name in known}
        self.figures = {name: figures for name, figures in self.figures.items() if name in known}
        for name in names[:ASKED]:
            if name not in self.open and len(self.open) < ASKED:
                self.open[name] = self.client._call(looks_into, ("measure",), {}, (name,))[0]
        self.client.block(lambda: all(reply.done for reply in self.open.values()), patience)
        for name, reply in list(self.open.items()):
            if reply.done:
                del self.open[name]
                found = self._value(reply)
                last = self.figures.get(name)
                if found is None:
                    continue
                if last is not None and found["time"] > last["time"]:
                    self.rates[name] = max(0.0, (found["cpu"] - last["cpu"]) / (found["time"] - last["time"]))
                self.figures[name] = found

    def _value(self, reply: Reply) -> Any:
        """What a worker has answered; None if it has died over it."""
        for ok, data, *_ in reply.value.values() if reply.ok else ():
            if ok:
                return serialize.loads(data.data if isinstance(data, Buffer) else data, what="figures of a worker")
        return None

    def inspect(self, name: str, timeout: float) -> dict[str, Any] | None:
        """One worker: what it was given and holds (the first of it), and the stacks of what it runs.

        The stacks are None if it does not answer. Returns None if there is no such worker (any more).
        """
        try:
            found: dict[str, Any] = self.client._ask("worker", name, timeout=timeout)
        except ZdistError:
            self.client._usable()
            return None
        reply = self.client._call(looks_into, ("call_stacks", None), {}, (name,))[0]
        self.client.block(lambda: reply.done, PATIENCE)
        found["stacks"] = self._value(reply) if reply.done else None
        return found


def _rate(now: float, before: float | None, span: float) -> float | None:
    return None if before is None or span <= 0 else round(max(0.0, (now - before) / span), 3)
