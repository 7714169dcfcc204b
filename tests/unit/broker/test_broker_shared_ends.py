"""State that clients share: who gives up, leaves, comes late or never, and what that leaves to the others."""

from __future__ import annotations

import pytest
from test_broker_shared import Shared, item

from zdist.limits import COPIES_KEPT, LEASE_CLIENT, RECOVERY
from zdist.protocol.messages import Held, Hold, Place
from zdist_broker.recovery import LATE


def test_who_waits_behind_one_whose_time_runs_out_is_served() -> None:
    w = Shared()
    several, one = w.op("c-0", "queue", "get", 2, timeout=2.0), w.op("c-1", "queue", "get", 1)
    w.do("c-0", "queue", "put", *item("a"), 0)
    assert w.answers("c-1") == {}
    w.tick(2.0)
    assert w.answers("c-0") == {several: ("timeout", None)}
    assert w.answers("c-1") == {one: ("ok", (item("a"),))}


def test_what_is_given_up_counts_no_longer_as_asked() -> None:
    w = Shared()
    client = w.broker.tables.clients["c-0"]
    waits = w.op("c-0", "queue", "get", 1)
    assert client.asking == 1
    w.op("c-0", "", "cancel", waits)
    assert client.asking == 0
    done = w.op("c-0", "queue", "put", *item("a"), 0)
    w.op("c-0", "", "cancel", done)
    assert client.asking == 0


def test_answers_for_others_stay_when_a_client_leaves() -> None:
    w = Shared()
    w.deaf = {"n-0"}
    w.op("c-0", "queue", "put", *item("a"), 0)
    other = w.op("c-1", "queue", "put", *item("b"), 0)
    assert w.answers("c-1") == {}  # the copies do not have it yet
    w.leave("c-0")
    w.deaf = set()
    assert list(w.answers("c-1")) == [other]


# --- futures ------------------------------------------------------------------------------------------


def test_a_future_of_data_that_comes_back_keeps_it() -> None:
    w = Shared(workers=1)
    for message in (Hold(1, (("data", 0, 5, "int"),)), Place(("data",), (), 1)):
        w.send("c-0", message)
    w.send("w-0", Held((("data", 0, 5, "int"),)))
    w.submit("user", deps=("data",))
    w.finish("user")
    w.release("data", 1)
    assert w.states() == {"data": "released", "user": "memory"}
    w.do("c-0", "variable", "set", *item("future", "data"))
    w.turn()
    w.send("c-0", Hold(2, (("data", 0, 5, "int"),)))
    w.turn()
    w.release("data", 2)
    assert [client.session for client in w.task("data").who] == ["shared"]


# --- another broker -----------------------------------------------------------------------------------


def size(w: Shared, client: str = "c-1") -> object:
    return w.do(client, "queue", "size")


def test_copies_have_the_time_to_come_from_the_first_on() -> None:
    w = Shared()
    w.do("c-0", "queue", "put", *item("a"), 0)
    new = w.successor()
    assert new.broker.deadline() == RECOVERY
    new.tick(RECOVERY)
    assert size(new) == 1


def test_a_copy_that_comes_late_is_taken_over_at_once_if_there_is_nothing_yet() -> None:
    w = Shared()
    w.do("c-0", "queue", "put", *item("a"), 0)
    w.deaf = {"n-0", "n-1"}
    new = w.successor()
    early = new.op("c-1", "queue", "size")
    new.tick(RECOVERY)
    assert new.answers("c-1") == {early: ("ok", 0)}
    for part in w.copies["n-0"].offer():
        new.send("n-0", part)
    waits = new.op("c-1", "queue", "size")
    assert new.answers("c-1") == {} and new.broker.shared.deadline() == new.now
    new.tick(0.0)
    assert new.answers("c-1") == {waits: ("ok", 1)}


def test_a_new_client_does_not_get_the_lock_of_one_that_has_not_come_back_yet() -> None:
    w = Shared()
    w.do("c-0", "lock", "acquire", 1)
    new = Shared(workers=0, epoch=2)
    new.broker.shared.born = 0.0
    late = new.op("c-1", "lock", "acquire", 1, timeout=5.0)  # before anybody who knew the earlier broker
    assert new.broker.deadline() == RECOVERY
    new.tick(1.0)
    w.come_back(new)
    new.tick(RECOVERY - 1.0)
    assert new.answers("c-1") == {} and new.broker.deadline() == 1.0 + RECOVERY  # the other node may have a newer copy
    new.tick(1.0)
    assert new.answers("c-1") == {}
    new.do("c-0", "lock", "release", 1 << 10 | 1)
    assert new.answers("c-1")[late][0] == "ok"


def test_a_broker_that_may_be_the_first_answers_when_nobody_has_come() -> None:
    w = Shared()
    w.do("c-0", "queue", "put", *item("a"), 0)
    new = Shared(workers=0, epoch=2)
    new.broker.shared.born = 0.0
    early = new.op("c-1", "variable", "set", *item("b"))
    assert new.answers("c-1") == {}
    new.tick(RECOVERY)
    assert new.answers("c-1") == {early: ("ok", None)}
    w.come_back(new)  # after all: what is not there yet is taken over
    new.tick(RECOVERY)
    assert size(new) == 1 and new.do("c-1", "variable", "get") == (item("b"),)
    assert not new.broker.shared.store.items("answer", "c-0")  # it is here, and does not wait for that any more


def test_half_a_copy_is_not_taken_over_when_the_rest_of_it_comes() -> None:
    w = Shared()
    for name in ("one", "two"):
        w.do("c-0", "variable", "set", *item(name), name=name)
    (whole,) = w.copies["n-0"].offer()
    half = len(whole.rows) // 2
    new = Shared(workers=0, epoch=2)
    new.broker.succeeds(new.now)
    new.send("n-0", whole._replace(rows=whole.rows[:half], last=False))
    new.tick(RECOVERY)
    new.send("n-0", whole._replace(rows=whole.rows[half:], first=False))
    new.tick(RECOVERY)
    for name in ("one", "two"):
        assert new.do("c-1", "variable", "get", name=name) == (item(name),)
    other = Shared(workers=0, epoch=2)
    other.broker.succeeds(other.now)
    other.send("n-0", whole._replace(rows=whole.rows[half:], first=False))  # what came before it is lost
    assert not other.broker.shared.store.offers


def test_a_copy_that_comes_after_another_was_taken_over_brings_nothing_back() -> None:
    w = Shared()
    w.do("c-0", "queue", "put", *item("a"), 0)
    late = list(w.copies["n-0"].offer())
    new = w.successor()
    new.tick(RECOVERY)
    assert new.do("c-1", "queue", "get", 1) == (item("a"),)
    for part in late:
        new.send("n-0", part)
    new.tick(0.0)
    assert size(new) == 0


def test_what_a_client_asked_for_before_it_left_is_not_done_once_the_copies_are_here() -> None:
    w = Shared()
    w.do("c-0", "queue", "put", *item("a"), 0)
    new = w.successor()
    other = new.op("c-1", "queue", "size")
    new.op("c-0", "queue", "put", *item("b"), 0)
    new.leave("c-0")
    new.tick(RECOVERY)
    assert new.answers("c-1") == {other: ("ok", 1)}
    assert size(new) == 1


def test_only_those_who_have_not_come_back_in_time_lose_what_they_had() -> None:
    w = Shared(clients=3)
    w.do("c-0", "lock", "acquire", 1)
    w.op("c-0", "", "confirm", heard=(w.req,))  # so nothing of it is left but its lock,
    w.do("c-2", "queue", "put", *item("a"), 0)  # and of this one but an answer
    token = w.do("c-1", "lock", "acquire", 1, name="other")
    mine = w.req
    new = w.successor()
    new.broker.left("c-0", "never came", new.now)
    new.tick(RECOVERY)
    waits = new.op("c-1", "lock", "acquire", 1)
    new.tick(LEASE_CLIENT - 1)
    assert new.answers("c-1") == {}
    assert new.broker.shared.store.items("answer", "c-2")
    new.tick(1.0)
    assert waits in new.answers("c-1")
    assert not new.broker.shared.store.items("answer", "c-2")
    assert new.do("c-1", "lock", "acquire", 1, name="other", req=mine) == token  # it was answered before
    assert new.do("c-1", "lock", "held", name="other") == 1


def test_a_future_in_a_queue_claims_what_a_worker_holds_before_that_is_given_up() -> None:
    w = Shared(workers=1)
    w.submit("task")
    w.turn()
    w.do("c-0", "queue", "put", *item("future", "task"), 0)
    w.finish("task")
    new = w.successor()
    new.worker("w-0")
    new.send("w-0", Held((("task", 7, 5, "int"),)))
    new.tick(RECOVERY)
    assert new.states() == {}
    assert new.broker.shared.deadline() == LATE
    new.tick(LATE - RECOVERY)
    assert new.states() == {"task": "memory"}
    assert new.broker.shared.deadline() != new.now
    new.tick(COPIES_KEPT)
    assert new.states() == {"task": "memory"}


@pytest.mark.parametrize("seconds", [0.0, RECOVERY])
def test_a_copy_that_comes_late_outlives_a_broker_that_is_killed_while_it_waits_with_it(seconds: float) -> None:
    w = Shared(nodes=1)
    w.do("c-0", "event", "set", name="old")
    w.deaf = {"n-0"}
    second = w.successor()
    second.leave("n-0")  # it is not back yet
    second.op("c-1", "event", "set", name="new")
    second.tick(RECOVERY)
    assert second.answers("c-1")
    second.tick(1.0)
    second.join("n-0", "node")
    for part in w.copies["n-0"].offer():
        second.send("n-0", part)
    second.tick(0.1)
    second.tick(seconds)
    third = second.successor()
    third.tick(RECOVERY)
    assert third.do("c-0", "event", "is_set", name="old") is True
