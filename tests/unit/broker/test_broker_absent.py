"""Workers that live, as their node says, and do not come back to a successor yet: claims wait for them."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.limits import RECOVERY
from zdist.protocol.messages import (
    ANY,
    Adopt,
    Alive,
    Answer,
    Ask,
    Cancelled,
    Claim,
    Finished,
    Held,
    Hold,
    Release,
    Unowned,
    Want,
    WorkerDied,
)
from zdist_broker.absent import MOST, TOLD
from zdist_broker.state import ASSIGNED, MEMORY


@pytest.fixture
def w() -> World:
    """w-0 is back, and w-1 is not."""
    w = World(workers=1, clients=2)
    w.broker.succeeds(w.now)
    w.send("n-0", Alive(("w-0", "w-1")))
    return w


def tick(w: World, seconds: float) -> None:
    w.now += seconds
    w.broker.tick(w.now)
    w.turn()
    w.broker.check()


def claimed(w: World, key: str, attempt: int) -> int:
    w.send("c-0", Claim(((key, attempt),)))
    return w.submit(key)


def test_what_it_runs_and_holds_counts_when_it_comes(w: World) -> None:
    claimed(w, "runs", ANY)
    claimed(w, "held", 7)
    tick(w, MOST - 1)
    assert not w.broker.tables.tasks
    w.worker("w-1")
    w.send("w-1", Unowned((("runs", 5),)))
    w.send("w-1", Held((("held", 7, 5, "int"),)))
    assert w.broker.deadline() == w.now + TOLD
    tick(w, TOLD)
    assert w.task("held").state == MEMORY and w.task("runs").state == ASSIGNED
    assert w.rows("w-1", Adopt) == [("runs", 5)] and not w.runs("w-0")


@pytest.mark.parametrize("end", ["dies", "node", "time"])
def test_nobody_waits_longer_than_it_lives(w: World, end: str) -> None:
    claimed(w, "a", ANY)
    if end == "dies":
        w.send("n-0", WorkerDied("w-1", -9, "killed", (), False))
        tick(w, 0.01)
    elif end == "node":
        w.leave("n-0")
        w.join("n-1", "node")
        w.worker("w-2", node="n-1")
        tick(w, 0.01)
    else:
        tick(w, MOST)
    assert list(w.runs("w-2" if end == "node" else "w-0")) == ["a"]
    assert not w.broker.absent.parked and not w.broker.recovery.absent


def test_what_was_said_is_taken_in_in_order_and_the_rest_does_not_wait(w: World) -> None:
    gen = claimed(w, "a", ANY)
    w.send("c-0", Release((("a", gen),)))
    w.send("c-0", Ask(1, "fence", None))
    w.send("c-0", Ask(2, "nthreads", None))
    assert [answer.req for answer in w.got("c-0", Answer)] == [2]
    w.gen += 1
    w.send("c-0", Hold(w.gen, (("x", 5, "int"),)))
    assert w.task("x").state == MEMORY
    w.submit("b", client="c-1")  # has nothing to claim
    assert list(w.runs("w-0")) == ["b"]
    w.worker("w-1")
    tick(w, TOLD)
    assert [answer.req for answer in w.got("c-0", Answer)] == [1]
    assert "a" not in w.broker.tables.tasks


def test_a_client_that_leaves_has_said_nothing(w: World) -> None:
    claimed(w, "a", ANY)
    w.leave("c-0")
    tick(w, MOST)
    assert not w.broker.tables.tasks


def test_keys_are_sought_for_as_long(w: World) -> None:
    w.send("c-1", Want(1, ("a",)))
    claimed(w, "a", 7)
    tick(w, MOST - 1)
    assert not w.rows("c-1", Cancelled)
    w.worker("w-1")
    w.send("w-1", Held((("a", 7, 5, "int"),)))
    tick(w, TOLD)
    tick(w, 0.1)
    assert [row[0] for row in w.rows("c-1", Finished)] == ["a"]


def test_a_worker_that_says_hello_again_is_waited_for_no_longer(w: World) -> None:
    w.worker("w-1")
    tick(w, TOLD)
    w.send("n-0", Alive(("w-0", "w-1")))
    assert not w.broker.recovery.absent


def test_a_first_broker_waits_for_nobody() -> None:
    w = World(workers=1)
    w.send("n-0", Alive(("w-1",)))
    assert not w.broker.recovery.absent
    w.broker.succeeds(w.now)
    w.now += MOST
    w.send("n-0", Alive(("w-1",)))
    assert not w.broker.recovery.absent


def test_a_crowd_of_strangers_is_not_remembered(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.absent.MAX_SESSIONS", 3)
    w.send("n-0", Alive(tuple(f"w-{n}" for n in range(9))))
    assert len(w.broker.recovery.absent) == 3
    assert w.broker.deadline() != RECOVERY
