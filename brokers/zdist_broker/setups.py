"""Calls that every worker answers before it takes work: plugins and files, also for workers that come later. PURE.

They lie in cells, in parts, so nodes keep copies of them. A worker gets one after the other, as later ones may need
what earlier ones brought; one that it has already it knows.
"""

from __future__ import annotations

from zdist.core.machine import require
from zdist.limits import OWN_FRAME
from zdist.protocol.messages import Buffer, Call, Called, Subscribe
from zdist_broker.data import Data
from zdist_broker.queries import Queries
from zdist_broker.shared import Shared
from zdist_broker.state import Tables, Worker

__all__ = ["Setups"]

WHOLE = -1  # the item that says how many parts there are


class Setup:
    """How far a worker is: what is still to be called, the call that it has not answered, its offer for the end."""

    __slots__ = ("called", "offer", "payloads", "req")

    def __init__(self, payloads: list[bytes], offer: Subscribe | None) -> None:
        self.payloads = payloads
        self.called: list[bytes] = []
        self.offer = offer
        self.req = 0


class Setups:
    """Which workers are being set up, and with what."""

    def __init__(self, tables: Tables, shared: Shared, queries: Queries, data: Data) -> None:
        self.tables = tables
        self.store = shared.store
        shared.taken_over = self.again
        self.queries = queries
        self.data = data
        self.open: dict[Worker, Setup] = {}

    def payloads(self) -> list[bytes]:
        """All that is to be called, in the order in which it was registered."""
        found = []
        for (kind, _), items in self.store.cells.items():
            if kind == "plugin" and WHOLE in items:
                count = int(items[WHOLE])
                if all(number in items for number in range(count)):
                    found.append(b"".join(items[number] for number in range(count)))
        return found

    def subscribe(self, worker: Worker, message: Subscribe, now: float) -> None:
        """A worker offers itself: at its first time it is set up before it is given work."""
        setup = self.open.get(worker)
        if setup is not None and setup.offer is not None:
            setup.offer = message
        elif worker.subscribed or not self._begin(worker, message):
            self.data.subscribe(worker, message, now)

    def again(self) -> None:
        """What an earlier broker had has come: workers that came before it may be new. They work meanwhile."""
        for worker in self.tables.workers.values():
            if worker.subscribed and worker not in self.open:
                self._begin(worker, None)

    def _begin(self, worker: Worker, offer: Subscribe | None) -> bool:
        payloads = self.payloads()
        if not payloads:
            return False
        self.open[worker] = setup = Setup(payloads, offer)
        self._next(worker, setup)
        return True

    def _next(self, worker: Worker, setup: Setup) -> None:
        payload = setup.payloads.pop(0)
        setup.called.append(payload)
        self.queries.req += 1
        setup.req = self.queries.req
        self.tables.tell(worker, Call(setup.req, None, payload if len(payload) < OWN_FRAME else Buffer(payload)))

    def called(self, worker: Worker, message: Called, now: float) -> None:
        """An answer; what failed there the worker has logged."""
        setup = self.open.get(worker)
        if setup is None or message.req != setup.req:
            self.queries.called(worker, message, now)
            return
        if not setup.payloads and setup.offer is not None:  # what was registered since had only those who work do it
            setup.payloads = [payload for payload in self.payloads() if payload not in setup.called]
        if setup.payloads:
            self._next(worker, setup)
        else:
            del self.open[worker]
            if setup.offer is not None:
                self.data.subscribe(worker, setup.offer, now)

    def gone(self, worker: Worker) -> None:
        """It will not answer."""
        self.open.pop(worker, None)

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        for worker, setup in self.open.items():
            require(not worker.gone and setup.req > 0, f"setups: {worker} is not being set up")
            require(setup.offer is None or not worker.subscribed, f"setups: {worker} works already")
