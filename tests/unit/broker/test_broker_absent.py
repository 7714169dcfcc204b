"""Workers that live, as their node says, and do not come back to a successor yet: claims wait for them."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.core.machine import Log
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
    Options,
    Release,
    Subscribe,
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


def test_all_that_its_client_says_after_a_claim_waits_in_order_and_others_do_not(w: World) -> None:
    gen = claimed(w, "a", ANY)
    w.send("c-0", Release((("a", gen),)))
    w.send("c-0", Ask(1, "nthreads", None))
    hold(w, "x")
    w.submit("b", client="c-1")  # has nothing to claim
    assert list(w.runs("w-0")) == ["b"] and list(w.broker.tables.tasks) == ["b"] and not w.got("c-0", Answer)
    w.worker("w-1")
    tick(w, TOLD)
    assert [answer.req for answer in w.got("c-0", Answer)] == [1]
    assert "a" not in w.broker.tables.tasks and w.task("x").state == MEMORY


def hold(w: World, key: str) -> None:
    w.gen += 1
    w.send("c-0", Hold(w.gen, ((key, 0, 5, "int"),)))


def test_what_comes_in_the_turn_in_which_the_last_has_died_waits_as_well(w: World) -> None:
    """Until what was said before it is taken in."""
    gen = claimed(w, "a", ANY)
    w.send("n-0", WorkerDied("w-1", -9, "killed", (), False))
    w.send("c-0", Release((("a", gen),)))
    tick(w, 0.01)
    assert not w.broker.tables.tasks


def test_a_client_that_leaves_has_said_it_nevertheless(w: World) -> None:
    claimed(w, "a", ANY)
    w.send("c-0", Claim((("b", ANY),)))
    w.submit("b", options=tuple(Options()._replace(forget=True)))
    w.leave("c-0")
    assert list(w.broker.tables.tasks) == ["b"] and not w.broker.absent.parked
    assert list(w.runs("w-0")) == ["b"]


def test_what_cannot_be_handled_harms_nobody_else(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(w, "a", ANY)
    w.send("c-0", Claim((("b", ANY),)))
    w.submit("b", fn=b"u" * 32)  # it is asked for its function, and sends on
    monkeypatch.setattr("zdist_broker.machine.PARKED_MESSAGES", 1)
    hold(w, "x")
    hold(w, "y")
    w.send("c-1", Claim((("c", ANY),)))
    w.submit("c", client="c-1")
    tick(w, MOST)
    assert list(w.broker.tables.tasks) == ["a", "c"]
    assert any(type(command) is Log and command.event == "peer.unforeseen" for command in w.broker.commands)


def test_who_says_very_much_is_waited_with_no_longer(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.absent.PARKED", 3)
    claimed(w, "a", ANY)
    hold(w, "x")
    assert not w.broker.tables.tasks
    hold(w, "y")
    tick(w, 0.01)
    assert list(w.broker.tables.tasks) == ["a", "x", "y"]


def test_another_node_does_not_know_of_its_end(w: World) -> None:
    claimed(w, "a", ANY)
    w.join("n-1", "node")
    w.send("n-1", WorkerDied("w-1", -9, "killed", (), False))
    w.leave("n-1")
    tick(w, 0.01)
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


@pytest.mark.parametrize("first", ["hello", "node"])
def test_a_worker_that_has_only_said_hello_is_waited_for_until_it_speaks(first: str) -> None:
    """Its hello lay in its socket, and a task holds its interpreter since."""
    w = World(workers=1, clients=2)
    w.broker.succeeds(w.now)
    if first == "hello":
        w.join("w-1", "worker", node="n-0", address="tcp://w-1")
    w.send("n-0", Alive(("w-0", "w-1")))
    if first == "node":
        w.join("w-1", "worker", node="n-0", address="tcp://w-1")
    tick(w, RECOVERY)
    w.send("c-0", Claim((("data", 0),)))
    w.send("c-0", Want(1, ("data",)))
    tick(w, MOST / 2)
    w.send("w-1", Subscribe(1, (), {}, False))
    w.send("w-1", Held((("data", 0, 5, "int"),)))
    tick(w, TOLD)
    tick(w, 0.1)
    assert not w.rows("c-0", Cancelled)
    assert [row[0] for row in w.rows("c-0", Finished)] == ["data"]


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
