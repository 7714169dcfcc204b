"""Tasks that wait because no worker may take them: whoever waits for them is told. PURE.

Workers come and go, and at the start of a cluster clients are early; so a placement class has to be without a worker
for a while before anything is said of it, and what is said is brought up to date at growing intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zdist.core.naming import resource_text
from zdist.limits import MAX_REASON, NOTICE, NOTICE_MAX, POOLS_KEPT
from zdist.protocol.messages import Starved
from zdist_broker.placement import Placement
from zdist_broker.pool import Pool
from zdist_broker.state import READY, Client, Tables

__all__ = ["Notices"]


class _Lack:
    """A placement class without a worker."""

    __slots__ = ("due", "pause", "told")

    def __init__(self, now: float) -> None:
        self.pause = NOTICE
        self.due = now + NOTICE
        self.told: dict[Client, int] = {}  # how many tasks of theirs wait


class Notices:
    """Watches the classes that placement could do nothing for."""

    def __init__(self, tables: Tables, placement: Placement, log: Callable[..., None], address: str) -> None:
        self.tables = tables
        self.placement = placement
        self.log = log
        self.address = address
        self.lacks: dict[Pool, _Lack] = {}

    def turn(self, now: float) -> None:
        """After the scheduling of a turn."""
        starving = self.placement.starving
        if not starving and not self.lacks:
            return
        changed: dict[Client, None] = {}
        for pool in starving:
            if pool not in self.lacks and len(self.lacks) < POOLS_KEPT:  # of so many, the others will be told later
                self.lacks[pool] = _Lack(now)
        starving.clear()
        for pool, lack in list(self.lacks.items()):
            if pool.members or not pool.live:
                del self.lacks[pool]
                changed.update(dict.fromkeys(lack.told))
            elif now >= lack.due:
                lack.pause = min(2 * lack.pause, NOTICE_MAX)
                lack.due = now + lack.pause
                before = lack.told
                lack.told = _waiting(pool)
                if not before:
                    self.log("warning", "no-worker", tasks=pool.live, reason=self._why(pool))
                changed.update(dict.fromkeys((*before, *lack.told)))
        for client in changed:
            lacking = [(pool, lack.told[client]) for pool, lack in self.lacks.items() if client in lack.told]
            if not client.gone:
                self.tables.tell(client, Starved(tuple([(tasks, self._why(pool)) for pool, tasks in lacking])))

    def deadline(self) -> float | None:
        """When `turn` is next needed."""
        return min((lack.due for lack in self.lacks.values()), default=None)

    def _why(self, pool: Pool) -> str:
        there = sorted(worker.name for worker in self.tables.workers.values() if worker.subscribed)
        if not there:
            return f"there are no workers; start some: zdist worker {self.address}"
        workers, other, resources, tags = pool.place
        asked: list[str] = []
        if workers and not other:
            asked.append(f"a name or address out of workers={list(workers)}")
        if tags:
            asked.append(f"the tags {', '.join(tags)}")
        if resources:
            asked.append("the resources " + ", ".join(resource_text(*each) for each in resources))
        names = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
        return f"no worker has {' and '.join(asked)}; there are {names}"[:MAX_REASON]


def _waiting(pool: Pool) -> dict[Client, int]:
    """How many of the class's tasks each client waits for."""
    counts: dict[Client, int] = {}
    entries: list[Any] = [*pool.tail, *(entry[1] for entry in pool.heap)]
    for task in dict.fromkeys(entries):  # one that waited for its input again is queued twice
        if task.state == READY:
            for client in task.who:
                counts[client] = counts.get(client, 0) + 1
    return counts
