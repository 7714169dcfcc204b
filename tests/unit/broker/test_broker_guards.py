"""What single conditions of the broker's machines are for, where nothing else would show it."""

from __future__ import annotations

import pytest
from broker_desk import Desk
from broker_world import SLOW, World, elapse, scattered
from test_broker_shared import Shared

from zdist.limits import FAILED_BYTES, HEARTBEAT, PLACE_SILENT
from zdist.protocol.fields import Buffer, content_attempt
from zdist.protocol.messages import (
    Answer,
    Ask,
    Cancelled,
    Drop,
    Hold,
    Options,
    Place,
    Rejected,
    Replicate,
    Specs,
    TakeBack,
    Want,
)
from zdist_broker.rows import failures

# --- copies --------------------------------------------------------------------------------------------------


def test_who_is_asked_for_a_copy_and_says_nothing_is_not_waited_for() -> None:
    w = World(workers=2)
    w.send("c-0", Hold(1, (("data", 0, 5, "bytes"),)))
    w.send("c-0", Place(("data",), (), 1))
    (silent,) = [session for session in ("w-0", "w-1") if w.rows(session, Replicate)]
    other = {"w-0": "w-1", "w-1": "w-0"}[silent]
    asked: list[str] = []
    while w.now < PLACE_SILENT + 2 * HEARTBEAT and not asked:
        w.broker.heard(other, w.now)
        deadline = w.broker.deadline()
        assert deadline is not None and deadline <= w.now + HEARTBEAT  # nothing else comes that would wake it
        elapse(w, HEARTBEAT)
        asked = w.rows(other, Replicate)
    assert [row[0] for row in asked] == ["data"] and w.now > PLACE_SILENT


def test_who_says_something_is_waited_for() -> None:
    w = World(workers=2)
    w.send("c-0", Hold(1, (("data", 0, 5, "bytes"),)))
    w.send("c-0", Place(("data",), (), 1))
    for _ in range(20):
        for worker in ("w-0", "w-1"):
            w.broker.heard(worker, w.now)
        elapse(w, HEARTBEAT)
    assert len(w.rows("w-0", Replicate) + w.rows("w-1", Replicate)) == 1


def test_what_cannot_move_is_not_counted_among_what_is_to_move() -> None:
    w = World(workers=2)
    for key, nbytes in (("actor", 40), ("result", 30)):
        w.submit(key, options=tuple(Options(workers=("W-0",), actor=key == "actor")))
        w.finish(key, value=None, nbytes=nbytes)
    w.inbox.clear()
    w.send("c-0", Ask(5, "rebalance", (None, None)))
    elapse(w, 0.1)
    assert [row[0] for row in w.rows("w-1", Replicate)] == ["result"]


def test_what_only_a_withdrawn_task_needed_is_dropped_though_others_were_made_of_that() -> None:
    w = World(workers=2)
    first = w.submit("a", options=tuple(Options(workers=("W-0",))))
    w.finish("a", value=None)
    second = w.submit("b", deps=("a",), options=tuple(Options(workers=("W-1", "W-2"))))
    w.finish("b", value=None)
    w.submit("c", deps=("b",), options=tuple(Options(workers=("W-0",))))
    w.finish("c")
    w.worker("w-2")
    w.release("a", first)
    w.turn()
    assert w.states()["a"] == "released"
    w.die("w-1")  # b is computed again, of a
    w.finish("a", value=None)
    assert w.where("b")
    w.inbox.clear()
    w.release("b", second)
    w.turn()
    assert w.rows("w-0", Drop) == ["a"] and w.states() == {"a": "released", "b": "released", "c": "memory"}


# --- what is not taken ---------------------------------------------------------------------------------------


def in_use() -> World:
    """c-1 has used a name of c-0 for another call, and has not heard yet that it may not."""
    w = World(workers=1, clients=2)
    w.submit("x")
    w.submit("of-x", deps=("x",))
    w.submit("x", client="c-1", fn=SLOW)
    assert [row[0] for row in w.rows("c-1", Rejected)] == ["x"]
    return w


@pytest.mark.parametrize("key", ["other", "of-x"])  # "of-x": c-0's is the same call, of what c-0 means by x
def test_nothing_is_made_of_what_was_not_taken(key: str) -> None:
    w = in_use()
    w.submit(key, deps=("x",), client="c-1")
    assert [row[0] for row in w.rows("c-1", Rejected)] == [key]
    assert key not in w.broker.peers["c-1"].wants and "other" not in w.broker.tables.tasks


def test_nothing_is_made_of_what_lacks_something() -> None:
    w = World(workers=1, clients=2)
    w.submit("x", deps=("nowhere",), client="c-1")
    w.submit("x")
    w.submit("y", deps=("x",), client="c-1")
    assert [row[0] for row in w.rows("c-1", Cancelled)] == ["x", "y"] and "y" not in w.broker.tables.tasks


# --- orders about workers ------------------------------------------------------------------------------------


def test_an_order_that_is_refused_takes_no_task_from_the_worker() -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.submit("a")
    assert w.where("a") == "w-0"
    w.inbox.clear()
    w.send("c-0", Ask(5, "restart_workers", (("W-0",), 30.0)))
    elapse(w, 0.5)
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and w.where("a") == "w-0" and not w.got("w-0", TakeBack)


def test_the_last_waits_for_one_that_has_come_and_whose_node_is_not_known() -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("w-9", "worker", node="n-9", address="tcp://w-9")  # it takes nothing yet
    w.send("c-0", Ask(5, "restart_workers", (("W-0",), 30.0)))
    elapse(w, 0.5)
    assert not w.got("c-0", Answer)


# --- what is told --------------------------------------------------------------------------------------------


def test_an_heir_hears_which_data_a_task_is_made_of() -> None:
    w = World(workers=1, clients=2)
    attempt = content_attempt("content")
    w.send("c-0", Hold(1, (("data", attempt, 5, "int"),)))
    gen = w.submit("a", deps=("data",))
    w.send("c-1", Want(1, ("a",)))
    w.release("a", gen)
    w.turn()
    (specs,) = w.got("c-1", Specs)
    assert specs.rows[0] == ("data", b"", b"", (), (attempt,))


def test_large_errors_are_told_apart_by_their_bytes() -> None:
    rows = [(f"k{n}", Buffer(bytes(FAILED_BYTES // 2)), "text", True) for n in range(4)]
    assert [len(run) for run in failures(rows)] == [1, 1, 1, 1]
    assert [len(run) for run in failures([row[:1] + row[2:] for row in rows])] == [4]


# --- time ----------------------------------------------------------------------------------------------------


def test_everyone_who_waits_for_shared_state_has_a_time_of_its_own() -> None:
    w = Shared()
    first = w.op("c-0", "queue", "get", 1, timeout=1.0)
    later = w.op("c-1", "queue", "get", 1, timeout=2.0)
    w.op("c-1", "queue", "get", 1)
    w.tick(1.0)
    assert w.answers("c-0") == {first: ("timeout", None)} and w.broker.deadline() == 2.0
    w.tick(1.0)
    assert w.answers("c-1") == {later: ("timeout", None)}


def test_the_machine_is_called_when_its_time_has_come_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    d = Desk()
    called: list[float] = []
    monkeypatch.setattr(d.machine, "deadline", lambda: 5.0)
    monkeypatch.setattr(d.machine, "tick", called.append)
    for now in (4.0, 5.0, 6.0):
        d.endpoint.turn(now)
    assert called == [5.0, 6.0]
    monkeypatch.setattr(d.machine, "deadline", lambda: None)
    d.endpoint.turn(7.0)
    assert called == [5.0, 6.0]
