"""Lanes at the broker: whatever overtakes what, nothing is lost, left behind or started twice."""

from __future__ import annotations

from typing import Any

import pytest
from broker_world import FN, SLOW, World

from zdist import limits
from zdist.errors import ProtocolError
from zdist.protocol.messages import (
    Abort,
    Define,
    Done,
    Drop,
    Erred,
    Failed,
    Finished,
    Lane,
    Members,
    Output,
    Release,
    Returned,
    Run,
    Seceded,
    SubmitEarly,
    Subscribe,
    TakeBack,
    WhichFunction,
    WorkerDied,
)


def lane(world: World, client: str = "c-0") -> Lane:
    """Ask for a lane, over which the function has gone before, and get it."""
    world.turn()
    for session in world.broker.tables.workers:
        world.broker.tables.functions[FN].workers.add(session)  # as if it had run there
    world.send(client, Lane("", 0, 0))
    granted = world.got(client, Lane)
    assert len(granted) == 1
    world.inbox.clear()
    return granted[0]


def early(world: World, attempt: int, key: str = "k", client: str = "c-0", fn: bytes = FN) -> None:
    world.gen += 1
    world.send(client, SubmitEarly(fn, ((world.gen, attempt, key, b"args"),)))


def done(world: World, worker: str, attempt: int, key: str = "k", value: bytes | None = b"v") -> None:
    world.send(worker, Done(((key, attempt, 10, 1, value, "int"),)))


def later(world: World, times: int = 2) -> None:
    """As many sweeps as it takes until nothing is expected by a lane any more."""
    for _ in range(times):
        world.turn()
        due = world.broker.deadline()
        if due is None:
            return
        world.now = due
        world.broker.tick(world.now)
    world.turn()


def test_a_lane_is_told_to_its_worker_and_with_the_workers_address_to_its_client() -> None:
    world = World()
    world.turn()
    world.send("c-0", Lane("", 0, 0))
    members, granted = world.all("c-0")
    assert isinstance(members, Members) and isinstance(granted, Lane)
    assert members.rows[0][0] == granted.session
    assert granted.until - granted.first == limits.LANE_CREDIT and granted.first % (1 << limits.LANE_BITS) == 0
    assert world.got(granted.session, Lane) == [Lane("c-0", granted.first, granted.until)]
    world.submit("t")
    world.turn()
    assert world.task("t").attempt >= granted.first + (1 << limits.LANE_BITS)


def test_a_lone_task_costs_the_broker_no_message_until_it_is_swept() -> None:
    world = World()
    one = lane(world)
    for n in range(3):
        early(world, one.first + n, f"k{n}")
        assert world.task(f"k{n}").worker.session == one.session
        done(world, one.session, one.first + n, f"k{n}")
        world.send("c-0", Release(((f"k{n}", world.gen),)))
        world.turn()
    assert not any(world.inbox.values()) and not world.broker.tables.tasks
    later(world)
    assert world.rows(one.session, Drop) == ["k0", "k1", "k2"] and not world.got("c-0", Finished)


def test_reports_of_tasks_that_the_broker_was_spared_are_answered_and_leave_nothing() -> None:
    world = World()
    one = lane(world)
    done(world, one.session, one.first, "spared")
    world.send(one.session, Erred((("odd", one.first + 1, 5, b"error", "it failed"),)))
    early(world, one.first + 5, "k")
    done(world, one.session, one.first + 5)
    world.send("c-0", Release((("k", world.gen),)))
    later(world)
    assert not world.broker.lanes.lanes[one.first >> limits.LANE_BITS].ahead
    assert sorted(world.rows(one.session, Drop)) == ["k", "spared"] and not world.broker.tables.tasks


def test_a_client_that_keeps_its_future_is_told_by_the_sweep() -> None:
    world = World()
    one = lane(world)
    early(world, one.first)
    done(world, one.session, one.first)
    later(world)
    assert world.rows("c-0", Finished) == [("k", one.first, 1, b"v", (), "int")]
    assert not world.got(one.session, Run)


def test_a_large_result_is_told_at_once_as_no_early_copy_has_it() -> None:
    world = World()
    one = lane(world)
    early(world, one.first)
    done(world, one.session, one.first, value=None)
    assert world.rows("c-0", Finished) == [("k", one.first, 1, None, (one.session,), "int")]


def test_an_early_run_that_was_lost_is_ordered_after_a_while_under_the_same_attempt() -> None:
    world = World()
    one = lane(world)
    early(world, one.first)
    later(world, 1)
    assert not world.got(one.session, Run)
    later(world, 1)
    assert world.runs(one.session)["k"][1] == one.first
    done(world, one.session, one.first)
    assert [row[0] for row in world.rows("c-0", Finished)] == ["k"]
    later(world)
    assert not world.got(one.session, Run) and not world.got("c-0", Finished)


def test_what_overtakes_the_submission_waits_for_it() -> None:
    world = World()
    one = lane(world)
    world.send(one.session, Seceded("k", one.first, False))
    world.send(one.session, Output("out", "hello", "k", one.session))
    done(world, one.session, one.first)
    world.turn()
    assert not any(world.inbox.values())
    early(world, one.first)
    assert [m.text for m in world.got("c-0", Output)] == ["hello"]
    assert world.states()["k"] == "memory"
    world.send(one.session, Erred((("f", one.first + 1, 5, b"error", "it failed"),)))
    early(world, one.first + 1, "f")
    assert world.rows("c-0", Failed) == [("f", b"error", "f", "it failed")]


def test_what_waits_for_a_submission_that_never_comes_is_dropped_with_its_client() -> None:
    world = World()
    one = lane(world)
    done(world, one.session, one.first)
    world.leave("c-0")
    assert world.rows(one.session, Drop) == ["k"]
    done(world, one.session, one.first + 1, "other")  # was still running
    assert world.rows(one.session, Drop) == ["other"]


def test_the_end_tells_the_worker_which_attempts_are_nobodys_after_ordering_the_others() -> None:
    world = World()
    one = lane(world)
    early(world, one.first)
    world.send("c-0", Lane("", one.first, one.first + 1))
    said = [m for m in world.all(one.session) if isinstance(m, Run | Lane)]
    assert isinstance(said[0], Run) and said[0].rows[0][1] == one.first
    assert said[1] == Lane("", one.first, one.first + 1)
    assert not world.broker.lanes.lanes


def test_what_overtook_its_submission_is_taken_once() -> None:
    world = World(workers=1)
    one = lane(world)
    world.send(one.session, Output("out", "hello", "k", one.session))
    early(world, one.first)
    world.send(one.session, Output("out", "again", "k", one.session))
    world.send("c-0", Lane("", one.first, one.first + 1))
    assert [m.text for m in world.got("c-0", Output)] == ["hello", "again"]


@pytest.mark.parametrize("overtakes", [False, True])
def test_a_task_that_came_by_a_lane_may_secede(overtakes: bool) -> None:
    world = World(workers=1)
    one = lane(world)
    for secedes in (overtakes, not overtakes):
        if secedes:
            world.send(one.session, Seceded("k", one.first, False))
        else:
            early(world, one.first)
    world.submit("next")
    assert world.where("next") == one.session


def test_a_release_that_overtakes_the_completion_leaves_nothing() -> None:
    world = World()
    one = lane(world)
    early(world, one.first)
    world.send("c-0", Release((("k", world.gen),)))
    assert world.rows(one.session, Abort) == [("k", one.first)]
    done(world, one.session, one.first)
    assert "k" in world.rows(one.session, Drop)
    assert not world.broker.tables.tasks and not world.broker.tables.workers[one.session].held


def test_a_busy_worker_closes_the_lane_and_its_block_stays_good_until_that_is_acknowledged() -> None:
    world = World(workers=1)
    one = lane(world)
    world.submit("long")
    world.turn()
    world.inbox.clear()
    early(world, one.first)
    assert not world.got("c-0", Lane)  # it may well be over already, and the other have come after it
    later(world)
    assert world.got("c-0", Lane) == [Lane("", one.first, 0)]
    assert repr(world.broker.tables.clients["c-0"].lane) == f"<lane {one.first}: C-0 to W-0, closing>"
    assert world.task("k").worker.session == one.session
    early(world, one.first + 1, "under way")
    assert world.task("under way").attempt == one.first + 1
    world.send("c-0", Lane("", 0, 0))
    assert not world.got("c-0", Lane)
    world.send("c-0", Lane("", one.first, 0))
    with pytest.raises(ProtocolError):
        early(world, one.first + 2, "too late")
    assert "too late" in world.broker.tables.tasks
    world.finish("long")
    for key in ("k", "under way"):
        done(world, one.session, one.first + (key != "k"), key)
    world.finish("too late")
    assert set(world.states().values()) == {"memory"}


def test_a_lane_whose_own_tasks_wait_for_each_other_stays_open() -> None:
    world = World(workers=1)
    one = lane(world)
    for n in range(3):
        early(world, one.first + n, f"k{n}")
    later(world)
    assert list(world.runs(one.session)) == ["k0", "k1", "k2"] and not world.got("c-0", Lane)


def test_a_task_behind_another_is_taken_back_for_a_worker_that_is_idle() -> None:
    world = World()
    one = lane(world)
    other = "w-1" if one.session == "w-0" else "w-0"
    world.submit("long", fn=SLOW)
    world.turn()
    assert world.where("long") == one.session
    early(world, one.first)
    world.turn()
    assert world.got(one.session, TakeBack) == [TakeBack((("k", one.first),))]
    world.send(one.session, Returned((("k", one.first),)))
    assert world.where("k") == other
    assert world.task("k").attempt > one.first
    world.done(other, "k")
    assert [row[0] for row in world.rows("c-0", Finished)] == ["k"]


def test_a_function_that_the_worker_does_not_know_goes_with_an_order_at_once() -> None:
    world = World()
    one = lane(world)
    early(world, one.first, fn=SLOW)
    said = world.all(one.session)
    assert [type(m) for m in said] == [Define, Run]


def test_a_function_that_the_broker_lost_is_asked_for_first() -> None:
    world = World()
    one = lane(world)
    fn = world.broker.tables.functions.pop(FN)
    for client in world.broker.tables.clients.values():
        client.functions.pop(fn, None)
    world.broker.handle("c-0", SubmitEarly(FN, ((99, one.first, "k", b"args"),)), world.now)
    world.broker.turn(world.now)
    assert world.broker.take()["c-0"] == [WhichFunction(FN)]
    world.broker.handle("c-0", Define(FN, "fast", fn.blob), world.now)
    assert world.task("k").attempt == one.first


def test_a_death_counts_for_a_task_that_is_submitted_after_it() -> None:
    world = World()
    one = lane(world)
    world.send("n-0", WorkerDied(one.session, -9, "it broke", (("k", one.first), ("other", 3)), False))
    assert world.got("c-0", Lane) == [Lane("", one.first, 0)]
    early(world, one.first)
    assert world.task("k").trouble.deaths == 1
    assert world.where("k") not in ("", one.session)
    early(world, one.first + 1, "sound")
    assert world.task("sound").trouble is None
    world.finish("k", "sound")


def test_attempts_that_are_not_the_clients_are_refused_and_their_tasks_run_all_the_same() -> None:
    world = World(clients=2)
    one = lane(world)
    for attempt, client in ((one.first, "c-1"), (one.until, "c-0"), (7, "c-0"), (-1, "c-0")):
        key = f"{client}-{attempt}"
        with pytest.raises(ProtocolError, match="no such lane"):
            early(world, attempt, key, client)
        assert key in world.broker.tables.tasks
    early(world, one.first + 1)
    with pytest.raises(ProtocolError, match="no such lane"):
        early(world, one.first, "backwards")
    for _ in range(10):
        world.turn()
        for key, state in world.states().items():
            if state == "assigned" and key != "k":
                world.finish(key)
    assert {state for key, state in world.states().items() if key != "k"} == {"memory"}


def test_a_known_key_is_joined_and_the_early_result_is_dropped() -> None:
    world = World(clients=2)
    one = lane(world)
    world.submit("k", client="c-1", named=True, options=(0, 5))
    where = world.where("k")
    early(world, one.first)
    world.finish("k")
    assert [row[0] for row in world.rows("c-0", Finished)] == ["k"]
    world.all(one.session)
    done(world, one.session, one.first)
    assert world.rows(one.session, Drop) == ([] if where == one.session else ["k"])


def test_one_lane_for_a_client_and_one_client_for_a_worker() -> None:
    world = World(workers=1, clients=2)
    one = lane(world)
    world.send("c-0", Lane("", 0, 0))
    assert not world.got("c-0", Lane)
    world.send("c-1", Lane("", 0, 0))
    assert not world.got("c-1", Lane) and not world.got("c-0", Lane)
    world.now += 2 * limits.LANE_QUIET
    world.send("c-1", Lane("", 0, 0))
    assert world.got("c-0", Lane) == [Lane("", one.first, 0)]
    world.send("c-0", Lane("", one.first, one.first))
    world.send("c-1", Lane("", 0, 0))
    assert world.got("c-1", Lane)[0].first > one.first


def test_the_credit_grows_with_what_has_come() -> None:
    world = World()
    one = lane(world)
    until = one.until
    for n in range(1 << limits.LANE_BITS):
        key = f"k{n}"
        early(world, one.first + n, key)
        done(world, one.session, one.first + n, key)
        world.send("c-0", Release(((key, world.gen),)))
        for grown in world.got("c-0", Lane):
            assert grown.session == one.session and grown.first == one.first and grown.until > until
            until = grown.until
        assert one.first + n < until
        if n > 300:
            break
    assert until >= one.first + 384


def test_no_lane_where_no_result_is_small_enough_for_one() -> None:
    world = World(workers=1)
    world.broker.tables.inline_result = 0
    world.turn()
    world.send("c-0", Lane("", 0, 0))
    assert not world.got("c-0", Lane)


def test_no_lane_without_idle_workers() -> None:
    world = World(workers=1)
    world.submit("a")
    world.turn()
    world.send("c-0", Lane("", 0, 0))
    assert not world.got("c-0", Lane)
    world.finish("a")
    world.send("w-0", Subscribe(1, (), {}, True))
    world.turn()
    world.send("c-0", Lane("", 0, 0))
    assert not world.got("c-0", Lane)


def test_a_worker_that_leaves_takes_the_early_tasks_with_it() -> None:
    world = World()
    one = lane(world)
    early(world, one.first)
    world.leave(one.session)
    assert world.where("k") not in ("", one.session)
    assert world.got("c-0", Lane) == [Lane("", one.first, 0)]
    later(world)
    world.finish("k")
    assert [row[0] for row in world.rows("c-0", Finished)] == ["k"]
    world.send("c-0", Lane("", one.first, 0))
    assert not world.broker.lanes.lanes


def test_late_drops_never_come_behind_a_new_order_of_their_key() -> None:
    world = World(workers=1)
    one = lane(world)
    early(world, one.first)
    done(world, one.session, one.first)
    gen = world.gen
    world.turn()
    world.send("c-0", Release((("k", gen),)))
    world.submit("k")
    said: list[Any] = [m for m in world.all(one.session) if isinstance(m, Run | Drop)]
    assert [type(m) for m in said] == [Drop, Run]


def test_tasks_that_wait_for_workers_close_the_lane() -> None:
    world = World(workers=1)
    one = lane(world)
    for n in range(3):
        world.submit(f"t{n}", fn=SLOW)
    world.turn()
    early(world, one.first)
    assert world.got("c-0", Lane) == [Lane("", one.first, 0)]
