"""Random orders about workers, none with a time limit, while nodes drain and workers die: each comes to its end, and
what a worker has is lost only where nobody could have had it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from broker_world import World

from zdist.protocol.messages import (
    Adjusted,
    Answer,
    Ask,
    Cancelled,
    Dismiss,
    Fence,
    Held,
    Hold,
    Leaving,
    Place,
    Replicate,
    WorkerDied,
)

STEP = 0.025  # seconds
PATIENCE = 30.0  # seconds in which all orders are answered
DRAINED = 20.0  # seconds after which a node ends who has not been dismissed


class Nodes:
    """Nodes that start and end workers as they are told, and workers that take copies, all with delays."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.w = World(workers=0)
        self.w.leave("n-0")
        self.keeps: dict[str, int] = {}
        self.alive: dict[str, str] = {}  # nodes of the workers
        self.going: dict[str, None] = {}  # of these, who was dismissed or drained
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self.started = self.asked = self.scattered = 0
        self.open: dict[int, str] = {}
        self.lossy = False
        for number in range(self.random.choice((1, 1, 2))):
            node = f"n-{number}"
            self.keeps[node] = self.random.choice((1, 2, 2, 3))
            self.w.join(node, "node", workers=self.keeps[node])
            for _ in range(self.keeps[node]):
                self.start(node)

    def after(self, most: float, what: Callable[[], None]) -> None:
        self.started += 1
        self.later.append((self.w.now + self.random.uniform(0.0, most), self.started, what))

    def start(self, node: str) -> None:
        self.started += 1
        self.alive[f"w-{self.started}"] = node
        self.w.worker(f"w-{self.started}", node=node)

    def end(self, session: str, ordered: bool = True) -> None:
        node = self.alive.pop(session, None)
        if node is not None:
            self.w.send(node, WorkerDied(session, -15, "", (), ordered))
            self.after(0.5, lambda: self.refill(node))

    def refill(self, node: str) -> None:
        if sum(of == node and session not in self.going for session, of in self.alive.items()) < self.keeps[node]:
            self.start(node)

    def staying(self) -> list[str]:
        known = self.w.broker.tables.workers
        return [session for session in self.alive if session in known and not known[session].leaving]

    # --- what happens -------------------------------------------------------------------------------------

    def put(self) -> None:
        if there := self.staying():
            self.scattered += 1
            self.w.send("c-0", Hold(self.scattered, ((f"d{self.scattered}", 0, 5, "bytes"),)))
            self.w.send("c-0", Place((f"d{self.scattered}",), (self.random.choice(there).upper(),), 1))

    def order(self, what: str) -> None:
        if self.alive:
            some = self.random.sample(list(self.alive), self.random.randint(1, len(self.alive)))
            names = tuple(session.upper() for session in some if session in self.w.broker.tables.workers)
            self.asked += 1
            self.open[self.asked] = what
            self.w.send("c-0", Ask(self.asked, what, (names, None) if what == "restart_workers" else names))

    def drain(self) -> None:
        node = self.random.choice(list(self.keeps))
        mine = [session for session, of in self.alive.items() if of == node and session not in self.going]
        if not mine:
            return
        some = mine if self.random.random() < 0.5 else [self.random.choice(mine)]
        self.keeps[node] = max(0, self.keeps[node] - len(some))
        self.lossy |= not set(self.staying()) - set(some)
        self.w.send(node, Leaving(tuple(some), True, "drained", self.keeps[node]))
        for session in some:
            self.going[session] = None
            self.later.append((self.w.now + DRAINED, self.started, lambda session=session: self.end(session)))  # type: ignore[misc]

    def kill(self) -> None:
        if self.alive:
            self.lossy = True
            self.end(self.random.choice(list(self.alive)), False)

    # --- time ---------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        end = self.w.now + seconds
        while self.w.now < end:
            self.w.now += STEP
            self.w.broker.tick(self.w.now)
            self.w.turn()
            due = [row for row in self.later if row[0] <= self.w.now]
            self.later = [row for row in self.later if row[0] > self.w.now]
            for _, _, what in due:
                what()
            self.w.turn()
            for session in list(self.w.inbox):
                for message in self.w.inbox.pop(session):
                    self.take(session, message)
            self.w.broker.check()

    def take(self, session: str, message: object) -> None:
        match message:
            case Replicate(rows=rows):
                held = Held(tuple((row[0], row[1], row[2], "bytes") for row in rows))
                self.after(0.3, lambda: self.w.send(session, held) if session in self.alive else None)
            case Fence() if session in self.alive:
                self.w.send(session, message)
            case Dismiss(workers=(worker,), retire=retire):
                if self.alive.get(worker) == session and (worker not in self.going or not retire):
                    if retire:
                        self.keeps[session] = max(0, self.keeps[session] - 1)
                        self.w.send(session, Adjusted(0, self.keeps[session]))
                    self.going[worker] = None
                    self.after(0.3, lambda: self.end(worker))
            case Answer(req=req):
                self.open.pop(req, None)
            case Cancelled(rows=rows):
                assert self.lossy, rows


@pytest.mark.parametrize("faults", [(), ("drain",), ("drain", "kill")], ids="+".join)
@pytest.mark.parametrize("seed", range(20))
def test_all_orders_come_to_their_end_and_nothing_is_lost(seed: int, faults: tuple[str, ...]) -> None:
    nodes = Nodes(seed)
    for _ in range(nodes.random.randint(1, 4)):
        nodes.put()
    nodes.run(0.2)
    for _ in range(nodes.random.randint(2, 6)):
        what = nodes.random.choice(("restart_workers", "restart_workers", "restart_workers", "retire", "put", *faults))
        if what in ("restart_workers", "retire"):
            nodes.order(what)
        else:
            getattr(nodes, what)()
        nodes.run(nodes.random.choice((0.0, STEP, 0.1, 0.3, 1.0)))
    nodes.run(PATIENCE)
    assert not nodes.open and nodes.w.broker.departures.look_at is None
