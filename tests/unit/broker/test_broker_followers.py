"""Short tasks of a chain go to the worker of the task before them, ahead of its result."""

from __future__ import annotations

import pytest
from broker_world import FN, SLOW, World

from zdist import limits
from zdist.protocol.messages import Abort, Cancel, Done, Drop, Erred, Locate, Options, Returned, TakeBack


def chain(w: World, length: int, fn: bytes = FN, options: tuple[object, ...] = ()) -> list[str]:
    keys = [f"k{n}" for n in range(length)]
    for n, key in enumerate(keys):
        w.submit(key, deps=(keys[n - 1],) if n else (), fn=fn, options=options)
    return keys


def test_a_chain_goes_to_its_worker_as_a_whole() -> None:
    w = World(workers=2)
    w.learn()
    keys = chain(w, 5)
    session = w.where("k0")
    rows = w.runs(session)
    assert list(rows) == keys
    assert [row[5] for row in rows.values()] == [(), *(((key, 0, (), None),) for key in keys[:-1])]
    worker = w.broker.tables.workers[session]
    assert worker.count == 1 and len(worker.assigned) == 5  # what waits takes nothing of its capacity
    w.send(session, Done(tuple((key, w.task(key).attempt, 10, 5, b"v", "int") for key in keys[:3])))
    assert w.states() == {"k0": "memory", "k1": "memory", "k2": "memory", "k3": "assigned", "k4": "assigned"}
    assert not w.got(session, Locate)  # it knows what it has made itself
    w.finish("k3", "k4")
    assert worker.count == 0 and not worker.assigned


def test_what_is_submitted_later_follows_as_well() -> None:
    w = World(workers=2)
    w.learn()
    w.submit("a")
    session = w.where("a")
    w.submit("b", deps=("a",))
    assert w.where("b") == session
    w.submit("c", deps=("b",))
    assert w.where("c") == session
    assert list(w.runs(session)) == ["a", "b", "c"]


def test_a_reduction_follows_where_all_of_its_inputs_are_made() -> None:
    w = World(workers=2)
    w.learn()
    w.submit("a", "b")
    assert w.where("a") != w.where("b")
    w.submit("ab", deps=("a", "b"))
    assert not w.where("ab")
    w = World(workers=1, threads=2)
    w.learn()
    w.submit("a", "b", "c")
    w.submit("abc", deps=("a", "b", "c"))
    w.finish("c")
    assert w.where("abc") == "w-0"
    assert [dep[0] for dep in w.runs("w-0")["abc"][5]] == ["a", "b", "c"]


def test_a_large_reduction_waits_lest_each_input_looks_at_all() -> None:
    w = World(workers=1)
    w.learn()
    for count, follows in ((limits.FOLLOWED, True), (limits.FOLLOWED + 1, False)):
        keys = [f"{count}-{n}" for n in range(count)]
        w.submit(*keys)
        w.submit(f"all-{count}", deps=tuple(keys))
        assert (w.where(f"all-{count}") == "w-0") == follows


@pytest.mark.parametrize("why", ["unknown", "long", "many", "resources", "tags", "paused"])
def test_others_wait_until_their_inputs_are_there(why: str) -> None:
    w = World(workers=0)
    w.worker("w-0", resources={"gpu": 2.0})
    w.worker("w-1")
    if why != "unknown":
        w.learn(micros=limits.FOLLOW_MICROS * 2 if why == "long" else 10)
    w.submit("a", options=tuple(Options(workers=("w-0",), allow_other=True)) if why == "resources" else ())
    session = w.where("a")
    options = Options(resources=(("gpu", 1.0),)) if why == "resources" else Options(tags=("t",))
    if why == "paused":
        w.broker.tables.workers[session].paused = True
    w.submit("b", deps=("a",), options=tuple(options) if why in ("resources", "tags") else ())
    if why == "many":
        w.submit("c", deps=("a",))
    assert w.where("b") == ""


def test_so_many_follow_at_once_and_the_next_when_the_last_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.placement.FOLLOWERS", 3)
    w = World(workers=1)
    w.learn()
    keys = chain(w, 10)
    assert list(w.runs("w-0")) == keys[:4]
    w.finish("k0", "k1")
    assert not w.runs("w-0")
    w.finish("k2")
    assert list(w.runs("w-0")) == keys[4:7]


def test_a_failure_takes_its_followers_along() -> None:
    w = World(workers=1)
    w.learn()
    chain(w, 3)
    w.turn()
    attempts = [(key, w.task(key).attempt) for key in ("k1", "k2")]
    w.send("w-0", Erred((("k0", w.task("k0").attempt, 5, b"error", "it failed"),)))
    assert set(w.states().values()) == {"failed"}
    assert sorted(w.rows("w-0", Abort)) == attempts
    assert sorted(w.rows("w-0", Drop)) == ["k0", "k1", "k2"]  # of copies of earlier attempts, if there are
    assert not w.broker.tables.workers["w-0"].assigned


def test_an_input_that_is_tried_again_elsewhere_is_located_for_its_follower() -> None:
    w = World(workers=2)
    w.learn()
    chain(w, 2)
    session = w.where("k0")
    other = "w-1" if session == "w-0" else "w-0"
    w.submit("busy", fn=SLOW, options=tuple(Options(workers=(other.upper(),))))
    w.turn()
    w.send(session, Returned((("k0", w.task("k0").attempt),)))
    w.broker.tables.workers[session].paused = True
    w.broker.placement.fit(w.broker.tables.workers[session])
    w.finish("busy")
    assert w.where("k0") == other and w.where("k1") == session
    w.done(other, "k0", value=None)
    assert w.rows(session, Locate) == [("k0", 5, (other,), None)]
    w.finish("k1")


def test_a_worker_that_dies_leaves_the_chain_to_another() -> None:
    w = World(workers=2)
    w.learn()
    keys = chain(w, 3)
    session = w.where("k0")
    w.finish("k0")
    w.die(session, "k1")
    assert {w.where(key) for key in keys[1:]} == {"w-1" if session == "w-0" else "w-0"}
    w.finish("k1", "k2")
    assert w.task("k2").attempt


def test_a_chain_that_was_cancelled_is_taken_from_its_worker() -> None:
    w = World(workers=1)
    w.learn()
    keys = chain(w, 3)
    w.turn()
    w.send("c-0", Cancel(("k0",), True, "no more"))
    assert sorted(key for key, _ in w.rows("w-0", Abort)) == keys
    assert not w.broker.tables.tasks


def test_cancelled_in_the_turn_in_which_it_came_nothing_is_ordered() -> None:
    w = World(workers=1)
    w.learn()
    w.submit("a")
    w.turn()
    w.submit("b", deps=("a",))
    w.send("c-0", Cancel(("a",), True, "no more"))
    assert list(w.runs("w-0")) == ["a"] and not w.broker.tables.tasks


def test_followers_are_not_in_the_way_of_taking_back() -> None:
    w = World(workers=1)
    w.learn(micros=1000)
    for n in range(4):
        w.submit(f"head{n}")
        w.submit(f"next{n}", deps=(f"head{n}",))
    w.turn()
    assert len(w.broker.tables.workers["w-0"].assigned) == 8
    w.worker("w-1")
    w.now += 2 * limits.STEAL_PAUSE
    w.turn()
    w.broker.tick(w.now)
    asked = [key for key, _ in w.rows("w-0", TakeBack)]
    assert asked and all(key.startswith("head") for key in asked)


def test_what_is_more_urgent_does_not_wait_for_a_chain() -> None:
    w = World(workers=1)
    w.learn()
    keys = chain(w, 3 * limits.FOLLOWERS)
    w.turn()
    w.submit("urgent", fn=SLOW, options=tuple(Options(priority=10)))
    for key in keys[: limits.FOLLOWERS + 1]:
        w.finish(key)
    assert w.where("urgent") == "w-0"
