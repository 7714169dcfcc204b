"""What the broker's tables keep at hand, and what they tell peers of each other."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.limits import INLINE_RESULT
from zdist.protocol.messages import Answer, Ask, Finished, Held, Hold, Members, Subscribe, Want
from zdist_broker.state import Function


def test_durations_fall_faster_than_they_rise() -> None:
    fn = Function(b"digest", "name", b"")
    fn.learn(800)
    fn.learn(1600)
    assert fn.micros == 900
    fn.learn(100)
    assert fn.micros == 700


def test_what_a_worker_said_of_itself_is_told() -> None:
    w = World(workers=0)
    w.join("w-0", "worker", node="n-0", address="tcp://w-0", pid=77, memory_limit=5000)
    w.send("w-0", Subscribe(1, (), {}, False))
    w.send("c-0", Ask(1, "workers", None))
    (answer,) = w.got("c-0", Answer)
    (row,) = answer.value["workers"].values()
    assert (row["pid"], row["memory_limit"]) == (77, 5000)


# --- what peers are told ------------------------------------------------------------------------------


def test_a_session_that_begins_anew_hears_nothing_that_was_meant_for_the_one_before() -> None:
    w = World(workers=1)
    w.submit("a")
    w.where("a")
    w.done("w-0", "a")
    w.client("c-0")
    assert w.got("c-0", Finished) == []


def test_clients_are_named_where_no_worker_has_it() -> None:
    w = World(workers=2, clients=3)
    for client in ("c-0", "c-1"):
        w.send(client, Hold(1, (("data", 0, 5, "int"),)))
    w.send("c-2", Want(1, ("data",)))
    assert [row[4] for row in w.rows("c-2", Finished)] == [("c-0", "c-1")]


def test_who_holds_something_is_told_once_and_before_it_is_named() -> None:
    w = World(workers=2, clients=2)
    for key in "ab":
        w.submit(key)
        first = w.finish(key, value=None)
        (second,) = {"w-0", "w-1"} - {first}
        w.send(second, Held(((key, w.task(key).attempt, 5, "int"),)))
        w.send("c-1", Want(1, (key,)))
        w.turn()
    said = [message for message in w.all("c-1") if isinstance(message, Members | Finished)]
    assert [type(message) for message in said] == [Members, Finished, Finished]
    assert sorted(row[0] for row in said[0].rows) == ["w-0", "w-1"]
    assert [set(message.rows[0][4]) for message in said[1:]] == [{"w-0", "w-1"}] * 2


# --- values kept at hand ------------------------------------------------------------------------------


@pytest.fixture
def ten(monkeypatch: pytest.MonkeyPatch) -> World:
    """The values of ten tasks are at hand; there is room for no more."""
    monkeypatch.setattr("zdist_broker.state.BROKER_CACHE", 10 * INLINE_RESULT)
    w = World(workers=2, threads=100)
    complete(w, *(f"k{n}" for n in range(10)))
    return w


def complete(w: World, *keys: str) -> None:
    w.submit(*keys)
    w.finish(*keys, value=bytes(INLINE_RESULT), nbytes=INLINE_RESULT)


def at_hand(w: World) -> list[str]:
    assert w.broker.tables.cached <= 10 * INLINE_RESULT
    return [key for key, task in w.broker.tables.tasks.items() if task.value is not None]


def test_all_are_kept_while_there_is_room(ten: World) -> None:
    assert len(at_hand(ten)) == 10


def test_an_eighth_of_the_room_is_made_when_there_is_none(ten: World) -> None:
    complete(ten, "more")
    assert at_hand(ten) == [*(f"k{n}" for n in range(2, 10)), "more"]


def test_a_value_that_is_nowhere_else_is_not_given_up_for_another(ten: World) -> None:
    for session in ("w-0", "w-1"):
        ten.die(session)
    ten.worker("w-2")
    complete(ten, "more")
    assert at_hand(ten) == [f"k{n}" for n in range(10)] and ten.states()["more"] == "memory"
