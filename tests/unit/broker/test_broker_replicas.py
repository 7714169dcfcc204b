"""Copies that clients order: so many of each key, or evenly spread; and what those who look are told."""

from __future__ import annotations

from typing import Any

import pytest
from broker_world import SLOW, World

from zdist.limits import COPIES_KEPT, COPY_PAUSE, COUNTED_TASKS, PLACE_FAN_OUT
from zdist.protocol.messages import (
    Answer,
    Ask,
    Call,
    Cancelled,
    Claim,
    Drop,
    Finished,
    Held,
    Hold,
    Missing,
    NoCopy,
    Place,
    Release,
    Replicate,
    Subscribe,
    Want,
)
from zdist_broker.state import MEMORY


def order(w: World, what: str, *args: Any, client: str = "c-0") -> None:
    w.gen += 1
    w.send(client, Ask(w.gen, what, args))
    later(w)


def later(w: World) -> None:
    w.now += COPY_PAUSE
    w.broker.tick(w.now)
    w.turn()


def answer(w: World, client: str = "c-0") -> Any:
    """The answer, if it has come."""
    later(w)
    answers = w.got(client, Answer)
    return (answers[0].value if answers[0].ok else ("error", answers[0].value)) if answers else None


def copies(w: World, session: str) -> list[str]:
    """The keys that a worker is told to fetch."""
    return [row[0] for row in w.rows(session, Replicate)]


def hold(w: World, session: str, *keys: str) -> None:
    w.send(session, Held(tuple((key, w.task(key).attempt, w.task(key).nbytes, "int") for key in keys)))


def on(w: World, key: str) -> set[str]:
    return {holder.session for holder in w.task(key).holders}


def result(w: World, key: str, nbytes: int = 5) -> str:
    w.submit(key)
    return w.finish(key, nbytes=nbytes)


def test_as_many_copies_as_are_asked_for() -> None:
    w = World(workers=3)
    (first,) = {result(w, "a")}
    order(w, "replicate", ("a",), 2, None)
    (second,) = [s for s in ("w-0", "w-1", "w-2") if copies(w, s)]
    assert answer(w) is None and second != first
    hold(w, second, "a")
    assert answer(w) == {"failed": {}, "keys": 0, "bytes": 0}
    assert on(w, "a") == {first, second} and not w.broker.tables.placing
    order(w, "replicate", ("a",), 1, None)
    assert answer(w)["failed"] == {} and len(on(w, "a")) == 1
    assert [s for s in (first, second) if w.rows(s, Drop) == ["a"]] == list({first, second} - on(w, "a"))


def test_a_copy_of_an_earlier_attempt_is_dropped_and_the_order_given_again() -> None:
    """It was reported before the order came; the Drop for it takes the order with it at the worker."""
    w = World(workers=2)
    first = result(w, "a")
    (second,) = {"w-0", "w-1"} - {first}
    order(w, "replicate", ("a",), 2, None)
    assert copies(w, second) == ["a"]
    w.send(second, Held((("a", w.task("a").attempt - 1, 5, "int"),)))
    w.turn()
    said = [type(message) for message in w.all(second) if isinstance(message, Drop | Replicate)]
    assert said == [Drop, Replicate]
    hold(w, second, "a")
    assert answer(w) == {"failed": {}, "keys": 0, "bytes": 0}


def test_a_worker_that_cannot_have_the_copy_is_told_to_give_the_order_up() -> None:
    w = World(workers=2)
    first = result(w, "a")
    (second,) = {"w-0", "w-1"} - {first}
    order(w, "replicate", ("a",), 2, None)
    w.all(second)
    w.send(second, Missing((("a", (first,)),)))
    w.turn()
    assert w.all(second) == [Drop(("a",))]


def test_orders_are_not_looked_at_all_the_time() -> None:
    w = World(workers=2)
    (first,) = {result(w, "a")}
    order(w, "replicate", ("a",), 2, None)
    (second,) = {"w-0", "w-1"} - {first}
    hold(w, second, "a")
    w.broker.tick(w.now)  # something else was due
    assert w.got("c-0", Answer) == []
    assert w.broker.deadline() == w.now + COPY_PAUSE
    assert answer(w)["failed"] == {}


def test_a_key_that_its_client_may_be_about_to_claim_is_waited_for() -> None:
    w = World(workers=1)
    w.broker.succeeds(w.now)
    order(w, "replicate", ("a", "b"), 1, None)
    assert answer(w) is None
    w.send("w-0", Held((("a", 7, 5, "int"),)))
    w.send("c-0", Claim((("a", 7),)))
    w.submit("a")
    assert answer(w) is None  # b may come yet
    w.now += COPIES_KEPT
    assert answer(w)["failed"].keys() == {"b"}


def test_orders_of_copies_for_several_workers_add_up() -> None:
    w = World(workers=4)
    w.gen += 1
    w.send("c-0", Hold(w.gen, (("a", 0, 5, "int"),)))
    for names in (("W-0",), ("W-2",)):
        w.send("c-0", Place(("a",), names, 0))
    assert [s for s in ("w-0", "w-1", "w-2", "w-3") if copies(w, s)] == ["w-0", "w-2"]
    w.send("c-0", Place(("a",), (), 0))
    for session in ("w-0", "w-2"):
        hold(w, session, "a")
    assert copies(w, "w-1") == copies(w, "w-3") == ["a"]


def test_a_holder_is_asked_for_a_few_copies_at_a_time_whatever_happens_meanwhile() -> None:
    w = World(workers=5)
    w.gen += 1
    w.send("c-0", Hold(w.gen, (("a", 0, 5, "int"),)))
    w.send("c-0", Place(("a",), (), 0))
    w.send("w-4", Subscribe(2, (), {}, False))
    assert len([s for s in w.broker.tables.workers if copies(w, s)]) == PLACE_FAN_OUT


def test_an_argument_stays_with_its_client_however_it_is_copied() -> None:
    """It may be needed once more when all workers that have a copy are gone."""
    w = World(workers=2)
    w.gen += 1
    w.send("c-0", Hold(w.gen, (("a", 0, 5, "int"),)))
    order(w, "replicate", ("a",), 2, None)
    for session in ("w-0", "w-1"):
        assert copies(w, session) == ["a"]
        hold(w, session, "a")
    assert answer(w)["failed"] == {} and on(w, "a") == {"c-0", "w-0", "w-1"}
    assert not w.rows("c-0", Drop)
    w.send("c-0", Place(("a",), (), 0))  # what its client scatters it gives away
    assert on(w, "a") == {"w-0", "w-1"} and w.rows("c-0", Drop) == ["a"]


def test_a_value_that_only_the_broker_has_and_cannot_make_again_stays() -> None:
    w = World(workers=2)
    w.send("c-0", Claim((), (("a", 7, 5, b"value", "int"),)))
    w.send("c-0", Want(1, ("a",)))
    order(w, "replicate", ("a",), 1, None)
    assert "what it was made of is gone" in answer(w)["failed"]["a"]
    assert w.task("a").value == b"value" and not w.rows("c-0", Cancelled)


def test_on_all_of_some_workers() -> None:
    w = World(workers=3)
    result(w, "a")
    order(w, "replicate", ("a",), None, ("W-1", "tcp://w-2"))
    for session in ("w-1", "w-2"):
        if copies(w, session):
            hold(w, session, "a")
    later(w)
    for session in ("w-1", "w-2"):
        if copies(w, session):
            hold(w, session, "a")
    assert answer(w)["failed"] == {} and on(w, "a") >= {"w-1", "w-2"}


def test_a_worker_that_dies_over_it_is_replaced_by_another() -> None:
    w = World(workers=3)
    first = result(w, "a")
    order(w, "replicate", ("a",), 2, None)
    (second,) = [s for s in ("w-0", "w-1", "w-2") if copies(w, s)]
    w.die(second)
    later(w)
    (third,) = {"w-0", "w-1", "w-2"} - {first, second}
    assert copies(w, third) == ["a"]
    hold(w, third, "a")
    assert answer(w)["failed"] == {} and on(w, "a") == {first, third}


def test_what_only_the_broker_has_is_computed_again() -> None:
    w = World(workers=2)
    first = result(w, "a")
    w.die(first)
    assert w.task("a").value is not None and not on(w, "a")
    order(w, "replicate", ("a",), 1, None)
    assert answer(w) is None
    second = w.finish("a")
    assert answer(w)["failed"] == {} and on(w, "a") == {second}


def test_what_cannot_be_copied_is_told() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.finish("a", value=None)
    result(w, "b")
    order(w, "replicate", ("a", "b", "unknown"), None, None)
    (second,) = {"w-0", "w-1"} - {first}
    assert "a" in copies(w, second)
    w.send(second, NoCopy((("a", "it is a lock"), ("b" * 5, "of nothing"))))
    for session in ("w-0", "w-1"):
        if "b" in copies(w, session) or session not in on(w, "b"):
            hold(w, session, "b")
    assert answer(w)["failed"] == {"a": "it is a lock", "unknown": "nobody in the cluster knows this key any more"}
    assert not w.broker.tables.placing
    order(w, "replicate", ("a",), 1, None)
    assert answer(w)["failed"] == {}  # it is there


def test_a_worker_with_a_result_that_cannot_be_copied_may_leave() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.finish("a", value=None)
    w.gen += 1
    w.send("c-0", Ask(w.gen, "retire", (first.upper(),)))
    (second,) = {"w-0", "w-1"} - {first}
    w.now += 1
    later(w)
    assert copies(w, second) == ["a"]
    w.send(second, NoCopy((("a", "it is a lock"),)))
    w.now += 1
    later(w)
    w.die(first, ordered=True)
    assert w.where("a") == second  # computed there
    assert answer(w) == {f"tcp://{first}": first.upper()}


@pytest.mark.parametrize("args", [("a", 1, None), (("a",), 0, None), (("a",), 1), (("a",), True, None), (("a",), 1, 5)])
def test_nonsense_is_refused(args: Any) -> None:
    w = World(workers=1)
    order(w, "replicate", *args)
    assert answer(w)[0] == "error"


def test_nobody_waits_for_orders_of_a_client_that_is_gone() -> None:
    w = World(workers=2, clients=2)
    result(w, "a")
    order(w, "replicate", ("a",), 2, None, client="c-1")
    w.leave("c-1")
    later(w)
    assert not w.broker.replicas.orders
    later(w)
    assert w.broker.replicas.look_at is None


def test_data_that_only_other_tasks_are_made_of_is_not_copied() -> None:
    """Its client keeps it for them; workers let their copies go."""
    w = World(workers=2)
    unwanted(w)
    order(w, "replicate", ("x",), 1, None)
    assert answer(w)["failed"].keys() == {"x"} and not w.broker.tables.placing
    w.broker.succeeds(w.now)
    order(w, "replicate", ("x",), 1, None)
    assert answer(w) is None  # it may be claimed yet
    w.now += COPIES_KEPT
    assert answer(w)["failed"].keys() == {"x"}


def unwanted(w: World, moving: bool = False) -> None:
    """Data x, of which the finished y is made, and whose future is gone."""
    w.gen += 1
    w.send("c-0", Hold(w.gen, (("x", 0, 400, "int"),)))
    gen = w.gen
    w.submit("y", deps=("x",), options=(0, 0, ("W-0",)))
    w.send("w-0", Held((("x", 0, 400, "int"),)))
    w.finish("y", nbytes=100)
    if moving:
        order(w, "rebalance", ("x",), None)
        assert copies(w, "w-1") == ["x"]
    w.send("c-0", Release((("x", gen),)))
    w.turn()
    assert w.task("x").state == MEMORY and on(w, "x") == {"c-0"}


# --- evenly spread --------------------------------------------------------------------------------------


def loaded(w: World, *sizes: int) -> list[str]:
    """Results of these sizes on w-0."""
    keys = [f"k{n}" for n in range(len(sizes))]
    for key, nbytes in zip(keys, sizes, strict=True):
        w.submit(key, options=(0, 0, ("W-0",)))
        assert w.finish(key, value=None, nbytes=nbytes) == "w-0"
    w.inbox.clear()
    return keys


def test_results_move_to_who_has_less_and_are_dropped_after_they_were_copied() -> None:
    w = World(workers=2)
    loaded(w, 40, 30, 20, 10)
    order(w, "rebalance", None, None)
    assert copies(w, "w-1") == ["k0", "k3"] and not w.rows("w-0", Drop)  # 50 bytes on each
    hold(w, "w-1", "k0", "k3")
    assert answer(w) == {"failed": {}, "keys": 2, "bytes": 50}
    assert on(w, "k0") == on(w, "k3") == {"w-1"} and w.rows("w-0", Drop) == ["k0", "k3"]
    assert [row[4] for row in w.rows("c-0", Finished)][-1] == ("w-1",)  # whoever wants it knows
    order(w, "rebalance", None, None)
    assert answer(w) == {"failed": {}, "keys": 0, "bytes": 0}


def test_only_the_keys_that_may_move() -> None:
    w = World(workers=2)
    loaded(w, 40, 30, 20, 10)
    order(w, "rebalance", ("k3",), None)
    assert copies(w, "w-1") == ["k3"]


@pytest.mark.parametrize("victim", ["w-0", "w-1"])
def test_a_death_while_results_move_loses_nothing(victim: str) -> None:
    w = World(workers=3)
    loaded(w, *[10] * 9)
    order(w, "rebalance", None, ("W-0", "W-1"))
    moving = copies(w, "w-1")
    assert len(moving) == 4
    hold(w, "w-1", moving[0])
    w.die(victim)
    assert answer(w)["failed"] == {} and not w.broker.tables.placing
    for n in range(9):
        assert w.task(f"k{n}").state <= MEMORY  # there, or computed again


def test_what_a_task_is_about_to_use_stays_as_well() -> None:
    w = World(workers=2)
    loaded(w, 40, 30, 20, 10)
    order(w, "rebalance", None, None)
    w.submit("user", deps=("k0",), options=(0, 0, ("W-0",)))
    assert w.where("user") == "w-0"
    hold(w, "w-1", "k0", "k3")
    assert answer(w)["keys"] == 2
    assert on(w, "k0") == {"w-0", "w-1"} and w.rows("w-0", Drop) == ["k3"]


def test_data_of_which_only_the_spec_is_needed_any_more_is_not_moved() -> None:
    """Its copies would be refused, and ordered again without end (seed 816900)."""
    w = World(workers=2)
    unwanted(w, moving=True)
    assert answer(w) == {"failed": {}, "keys": 0, "bytes": 0}
    assert not w.broker.tables.placing


def test_a_holder_that_does_not_have_it_ends_the_move() -> None:
    w = World(workers=2)
    loaded(w, 40)
    order(w, "rebalance", None, None)
    assert copies(w, "w-1") == []  # it would only change places
    loaded_more = World(workers=2)
    loaded(loaded_more, 40, 30)
    order(loaded_more, "rebalance", None, None)
    (key,) = copies(loaded_more, "w-1")
    loaded_more.send("w-1", Missing(((key, ("w-0",)),)))
    assert answer(loaded_more)["keys"] == 0
    assert loaded_more.where(key) == "w-0"  # it is computed again


def test_a_worker_that_is_as_good_as_even_gives_nothing_more_away() -> None:
    w = World(workers=4)
    loaded(w, 60, 10, 10, 10)
    order(w, "rebalance", None, None)  # a quarter of it all would be 22.5
    moved = {s: copies(w, s) for s in ("w-1", "w-2", "w-3")}
    assert sorted(moved.values()) == [[], ["k0"], ["k1"]]


def test_nothing_moves_where_all_others_are_paused() -> None:
    w = World(workers=2)
    loaded(w, 40, 30, 20, 10)
    w.send("w-1", Subscribe(1, (), {}, True))
    order(w, "rebalance", None, None)
    assert answer(w) == {"failed": {}, "keys": 0, "bytes": 0}


def test_a_move_is_ordered_once() -> None:
    w = World(workers=2)
    loaded(w, 40, 30, 20, 10)
    order(w, "rebalance", None, None)
    assert copies(w, "w-1") == ["k0", "k3"]
    later(w)
    later(w)
    assert copies(w, "w-1") == []


def test_what_is_being_copied_for_another_reason_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.replicas.COPIES_AHEAD", 1)
    w = World(workers=2)
    loaded(w, 40, 30, 20, 10)
    order(w, "rebalance", None, None)
    assert copies(w, "w-1") == ["k0"]
    w.send("c-0", Place(("k3",), (), 0))  # before its turn has come
    hold(w, "w-1", "k0")
    assert answer(w) == {"failed": {}, "keys": 1, "bytes": 40}
    hold(w, "w-1", "k3")
    later(w)
    assert on(w, "k3") == {"w-0", "w-1"}


# --- looking --------------------------------------------------------------------------------------------


def test_status_and_one_worker() -> None:
    w = World(workers=1, threads=1)
    result(w, "a")
    w.submit("b", "c", fn=SLOW)
    w.submit("d", fn=SLOW, deps=("c",))
    w.turn()
    w.send("c-0", Ask(w.gen, "status", None))
    found = answer(w)
    assert found["tasks"] == {
        "total": 4, "waiting": 1, "ready": 1, "assigned": 1, "memory": 1, "failed": 0, "released": 0
    }  # fmt: skip
    (row,) = found["workers"]
    assert (row["name"], row["processing"], row["held"], row["completed"], row["status"]) == ("W-0", 1, 1, 1, "running")
    w.gen += 1
    w.send("c-0", Ask(w.gen, "worker", "W-0"))
    inside = answer(w)
    assert inside["keys"] == [("a", 5, "int")] and inside["assigned"] == [("b", "started or queued")]
    w.send("c-0", Ask(w.gen, "worker", "W-9"))
    assert answer(w) == ("error", "worker: there is no worker 'W-9'; there are W-0")


def test_very_many_tasks_are_not_counted_one_by_one() -> None:
    w = World(workers=0)
    w.broker.check = lambda: None  # type: ignore[method-assign]
    w.submit(*[f"k{n}" for n in range(COUNTED_TASKS + 1)])
    w.send("c-0", Ask(w.gen, "status", None))
    assert answer(w)["tasks"] == {"total": COUNTED_TASKS + 1, "ready": COUNTED_TASKS + 1, "assigned": 0}


def test_what_runs_for_a_key() -> None:
    w = World(workers=1)
    w.submit("a")
    w.submit("b", deps=("a",))
    w.turn()
    w.gen += 1
    w.send("c-0", Ask(w.gen, "running", ("b", "unknown")))
    assert answer(w) == {"tcp://w-0": ["a"]}
    assert not w.got("w-0", Call)
