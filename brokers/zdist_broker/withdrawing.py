"""Copies that workers are not to make, or keep, any more. PURE.

A worker may have told of one (Held) before it hears of that (Drop). What it says of the key until it answers the fence
behind the Drop is not true any more.
"""

from __future__ import annotations

from zdist.protocol.messages import Drop, Fence
from zdist_broker.state import Tables, Worker

__all__ = ["fenced", "unplace", "withdraw"]


def unplace(tables: Tables, key: str) -> None:
    """The data is not to be copied any more: workers that are still fetching it stop."""
    placing = tables.placing.pop(key, None)
    if placing is not None:
        for worker in placing.targets:
            withdraw(tables, worker, key)


def withdraw(tables: Tables, worker: Worker, key: str) -> None:
    """The worker drops its copy, or stops fetching one."""
    last = worker.pending[-2:]
    if len(last) == 2 and type(last[1][1]) is Fence and last[0][0] is Drop:
        last[0][1].append(key)  # one fence for all that go together
    else:
        tables.post(worker, Drop, key)
        worker.fence += 1
        tables.tell(worker, Fence(worker.fence))
    worker.withdrawn[key] = worker.fence


def fenced(worker: Worker, message: Fence, now: float) -> None:
    """The worker has heard of what was withdrawn until then."""
    worker.withdrawn = {key: number for key, number in worker.withdrawn.items() if number > message.number}
