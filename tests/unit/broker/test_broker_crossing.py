"""What workers said before they heard of an order: withdrawn copies, holders that have let go and hold again."""

from __future__ import annotations

import pytest
from broker_world import World, elapse
from test_broker_actors import world as actors

from zdist.protocol.messages import (
    Answer,
    Ask,
    Dismiss,
    Drop,
    Fence,
    Held,
    Hold,
    Leaving,
    Missing,
    Options,
    Place,
    Replicate,
    WorkerDied,
)


def put(w: World, *sessions: str, key: str = "data") -> None:
    """Scattered data that lies on these workers."""
    w.gen += 1
    w.send("c-0", Hold(w.gen, ((key, 0, 5, "bytes"),)))
    w.send("c-0", Place((key,), tuple(session.upper() for session in sessions), 0))
    for session in sessions:
        assert w.rows(session, Replicate)
        w.send(session, Held(((key, 0, 5, "bytes"),)))
    assert holders(w, key) == list(sessions)


def holders(w: World, key: str = "data") -> list[str]:
    return sorted(holder.session for holder in w.task(key).holders)


def test_a_copy_that_a_rebalance_has_given_up_is_not_counted() -> None:
    w = World(workers=3)
    put(w, "w-0", "w-1")
    put(w, "w-0", "w-1", key="more")
    w.send("c-0", Ask(5, "rebalance", (("data",), None)))
    elapse(w, 0.02)
    assert w.rows("w-2", Replicate)
    (source,) = [move.source.session for order in w.broker.replicas.orders for move in order.active]
    w.send("n-0", WorkerDied(source, -9, "killed", (), False))
    elapse(w, 0.1)
    assert w.rows("w-2", Drop) == ["data"]
    w.send("w-2", Held((("data", 0, 5, "bytes"),)))  # it had said so before that came
    assert holders(w) == [{"w-0": "w-1", "w-1": "w-0"}[source]]
    (fence,) = w.got("w-2", Fence)
    w.send("w-2", fence)
    w.send("w-2", Held((("data", 0, 5, "bytes"),)))
    assert "w-2" in holders(w) and not w.broker.tables.workers["w-2"].withdrawn


def test_a_second_report_of_a_copy_that_was_let_go_is_not_counted() -> None:
    w = World(workers=2)
    put(w, "w-0")
    w.submit("t", deps=("data",), options=tuple(Options(workers=("W-1",))))
    assert "t" in w.runs("w-1")
    w.send("c-0", Ask(5, "replicate", (("data",), 2, None)))
    elapse(w, 0.02)
    assert w.rows("w-1", Replicate)  # on its way; it has the data by now for its task
    w.send("w-1", Held((("data", 0, 5, "bytes"),)))
    w.done("w-1", "t")
    elapse(w, 0.02)
    w.send("c-0", Ask(6, "replicate", (("data",), 1, None)))
    elapse(w, 0.02)
    assert w.rows("w-1", Drop) == ["data"]
    w.send("w-1", Held((("data", 0, 5, "bytes"),)))  # the answer to Replicate
    assert holders(w) == ["w-0"]


def test_a_late_missing_does_not_strike_off_who_holds_it_now() -> None:
    w = World(workers=3)
    put(w, "w-1")
    put(w, "w-1", key="more")
    w.submit("t", deps=("data",), options=tuple(Options(workers=("W-2",))))
    assert w.runs("w-2")["t"][5][0][2] == ("w-1",)  # whom it will ask
    w.send("c-0", Ask(5, "rebalance", (("data",), ("W-0", "W-1"))))
    elapse(w, 0.02)
    assert w.rows("w-0", Replicate)
    w.send("w-0", Held((("data", 0, 5, "bytes"),)))
    elapse(w, 0.02)
    assert w.rows("w-1", Drop) == ["data"]
    for fence in w.got("w-1", Fence):
        w.send("w-1", fence)
    missing = Missing((("data", ("w-1",)),))  # on its way
    w.broker.data.next = list(w.broker.tables.workers).index("w-1") - 1  # whose turn it happens to be
    w.send("n-0", Leaving(("w-0",), True, "fewer", 2))
    elapse(w, 0.1)
    assert w.rows("w-1", Replicate)
    w.send("w-1", Held((("data", 0, 5, "bytes"), ("more", 0, 5, "bytes"))))
    elapse(w, 0.1)
    assert ("w-0",) in [message.workers for message in w.got("n-0", Dismiss)]
    w.send("n-0", WorkerDied("w-0", -15, "", (), True))
    w.send("w-2", missing)
    assert not w.cancelled("c-0")
    assert w.rows("w-1", Replicate)[-1][3] == ("w-1",)  # it is asked
    w.send("w-1", missing)
    assert w.cancelled("c-0")  # who says it of itself is believed


@pytest.mark.parametrize("order", ["replicate", "rebalance"])
def test_actors_stay_where_they_are(order: str) -> None:
    w, home = actors()
    other = "w-1" if home == "w-0" else "w-0"
    w.submit("b", options=tuple(Options(workers=(home.upper(),))))
    w.finish("b", nbytes=50)
    w.send("c-0", Ask(5, order, (("a",), 2, None) if order == "replicate" else (("a",), None)))
    elapse(w, 1.0)
    (answer,) = w.got("c-0", Answer)
    assert not w.rows(other, Replicate)
    assert answer.value["failed"] == (
        {"a": "it is an actor, which lives where it was made"} if order == "replicate" else {}
    )


def test_a_restart_does_not_wait_for_those_that_were_leaving() -> None:
    w = World(workers=2)
    w.send("n-0", Leaving(("w-1",), False, "a task there was given up", 2))
    w.worker("w-2")  # in its place
    w.send("c-0", Ask(5, "restart_workers", (("W-0",), None)))
    elapse(w, 0.2)
    for old in ("w-0", "w-1"):
        w.send("n-0", WorkerDied(old, -15, "", (), True))
    w.worker("w-3")
    elapse(w, 1.0)
    assert w.got("c-0", Answer)


def test_copies_that_go_together_have_one_fence() -> None:
    w = World(workers=2)
    keys = [f"d{number}" for number in range(5)]
    for key in keys:
        put(w, "w-0", "w-1", key=key)
    w.send("c-0", Ask(5, "replicate", (tuple(keys), 1, None)))
    elapse(w, 1.0)
    told = {session: (w.rows(session, Drop), w.got(session, Fence)) for session in ("w-0", "w-1")}
    assert sorted(key for drops, _ in told.values() for key in drops) == keys
    for session, (drops, fences) in told.items():
        assert sorted(w.broker.tables.workers[session].withdrawn) == sorted(drops) and len(fences) == bool(drops)
        for fence in fences:
            w.send(session, fence)
        assert not w.broker.tables.workers[session].withdrawn
