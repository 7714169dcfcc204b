"""A client and a broker that has taken another's place: what a task is made of is submitted by another client, late."""

from __future__ import annotations

from typing import Any

import pytest
from broker_world import FN, World

from zdist.core.entry import FINISHED, Entry, Work
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL
from zdist.protocol import messages as m

WORK = Work(FN, "fast", b"pickled fast", (), False)
RECOVERED = 11.5


class Pair:
    """The ledger of c-0, which has made b-0 of a, and c-0 of b-0, and the broker; a is another client's."""

    def __init__(self, *, middle: bool = True) -> None:
        self.world = World(workers=1, clients=1)
        self.world.client("c-1")
        self.world.broker.succeeds(self.world.now)
        self.ledger = ledger = Ledger("c-0", "token", {"name": "me"})
        ledger.welcomed(m.Welcome(1, 0, True, {}), 0.0)
        ledger.want(["a"])
        made = ledger.submit(WORK, [("b-0", b"", ("a",)), ("c-0", b"", ("b-0",))])
        self.end: Entry = made[1]
        ledger.turn(0.0)
        if not middle:
            ledger.dropped.append(made[0])
            ledger.turn(0.0)
        ledger.take()
        ledger.welcomed(m.Welcome(2, 0, True, {"recover": 1.5}), 10.0)

    def exchange(self, now: float) -> None:
        """Until neither has anything to say."""
        world, ledger = self.world, self.ledger
        world.now = now
        while True:
            due = ledger.deadline()
            if due is not None and due <= now:
                ledger.tick(now)
            ledger.turn(now)
            ledger.check()
            said: list[Any] = ledger.take().get(CONTROL, [])
            for message in said:
                world.send("c-0", message)
            world.turn()
            heard = world.inbox.pop("c-0", [])
            for message in heard:
                ledger.handle(CONTROL, message, now)
            if not said and not heard:
                return

    def submit_late(self) -> None:
        self.world.submit("a", client="c-1")
        self.world.finish("a")


@pytest.mark.parametrize("middle", [True, False])
def test_it_is_computed_when_that_has_come(middle: bool) -> None:
    pair = Pair(middle=middle)
    pair.exchange(RECOVERED)
    pair.submit_late()
    now = RECOVERED
    for key in ("b-0", "c-0"):
        while not (key in pair.world.broker.tables.tasks and pair.world.where(key)):
            now += 0.1
            assert now < RECOVERED + 5.0
            pair.exchange(now)
        pair.world.finish(key)
        pair.exchange(now)
    assert pair.end.status == FINISHED


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_a_worker_that_runs_it_goes_on(late: bool, middle: bool) -> None:
    pair = Pair(middle=middle)
    pair.world.send("w-0", m.Unowned((("b-0", 5),)))  # since the earlier broker
    if not late:
        pair.submit_late()
    pair.exchange(RECOVERED)
    if late:
        pair.submit_late()
        pair.exchange(RECOVERED + 0.2)
    assert pair.world.rows("w-0", m.Adopt) == [("b-0", 5)]
    assert "b-0" not in pair.world.runs("w-0")
