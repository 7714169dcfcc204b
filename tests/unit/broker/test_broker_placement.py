"""Which task goes to which worker, and when."""

from __future__ import annotations

import pytest
from broker_world import FN, SLOW, World

from zdist.limits import (
    AHEAD_MICROS,
    AHEAD_TASKS,
    MIN_MICROS,
    NOTICE,
    POOLS_KEPT,
    RUN_MICROS,
    RUN_ROWS,
    RUNS_FROM,
    STEAL_PAUSE,
)
from zdist.protocol.messages import Options, Release, Returned, Run, Seceded, Subscribe, TakeBack
from zdist_broker.pool import Pool


def spread(w: World) -> list[int]:
    w.turn()
    return [len(worker.assigned) for worker in w.broker.tables.workers.values()]


def test_a_small_burst_spreads_over_the_workers() -> None:
    w = World(workers=2)
    w.learn()
    w.submit("a", "b")
    assert spread(w) == [1, 1]
    w = World(workers=2, threads=4)
    w.submit("a", "b", "c")
    assert sorted(spread(w)) == [1, 2]


def test_many_workers_get_short_tasks_several_in_a_row_and_longer_ones_singly() -> None:
    w = World(workers=RUNS_FROM)
    w.learn(micros=RUN_MICROS // 4)
    w.submit(*(f"k{n}" for n in range(10)))
    assert sorted(spread(w), reverse=True)[:3] == [5, 5, 0]
    w = World(workers=RUNS_FROM)
    w.learn(micros=RUN_MICROS + 1)
    w.submit(*(f"k{n}" for n in range(RUNS_FROM)))
    assert spread(w) == [1] * RUNS_FROM
    w.submit("other", fn=SLOW)  # of unknown duration
    assert max(spread(w)) == 1
    w = World(workers=RUNS_FROM)
    w.learn(micros=10)
    w.learn(micros=RUN_MICROS + 1, fn=SLOW)
    w.submit("short")
    w.submit(*(f"k{n}" for n in range(RUNS_FROM - 1)), fn=SLOW)
    assert spread(w) == [1] * RUNS_FROM


def test_an_unknown_function_is_never_queued_ahead() -> None:
    w = World(workers=2, threads=2)
    w.submit(*(f"k{n}" for n in range(10)))
    assert spread(w) == [2, 2]


def test_depth_ahead_follows_the_measured_duration() -> None:
    w = World(workers=1)
    w.learn(micros=5000)
    w.submit(*(f"k{n}" for n in range(100)))
    assert spread(w) == [AHEAD_MICROS // 5000]
    w = World(workers=1)
    w.learn(micros=0)
    w.submit(*(f"k{n}" for n in range(10_000)))
    assert spread(w) == [min(AHEAD_MICROS // MIN_MICROS, AHEAD_TASKS)]
    w = World(workers=2)
    w.learn(micros=10**7)
    w.submit(*(f"k{n}" for n in range(10)))
    assert spread(w) == [1, 1]


def test_a_completion_makes_room_for_the_next() -> None:
    w = World(workers=1)
    w.submit("a", "b", fn=SLOW)
    assert set(w.runs("w-0")) == {"a"}
    w.done("w-0", "a", micros=10**6)
    assert set(w.runs("w-0")) == {"b"}


def test_higher_priority_first_then_tasks_with_inputs_then_order_of_arrival() -> None:
    w = World(workers=1)
    w.submit("dep")
    w.finish("dep")
    w.runs("w-0")
    w.submit("busy", fn=SLOW)
    w.turn()
    w.submit("late", options=tuple(Options(priority=-1)), fn=SLOW)
    w.submit("root", fn=SLOW)
    w.submit("next", fn=SLOW)
    w.submit("inner", deps=("dep",), fn=SLOW)
    w.submit("urgent", options=tuple(Options(priority=3)), fn=SLOW)
    order, priorities = [], []
    for _ in range(6):
        for key, row in w.runs("w-0").items():
            order.append(key)
            priorities.append(row[2])
            w.done("w-0", key, micros=10**6)
    assert order == ["busy", "urgent", "inner", "root", "next", "late"]
    assert priorities[1:] == sorted(priorities[1:])


def test_priority_holds_across_classes_of_placement() -> None:
    w = World(workers=1)
    w.submit("busy", fn=SLOW)
    w.turn()
    w.submit("low", fn=SLOW)
    w.submit("here", fn=SLOW, options=tuple(Options(workers=("W-0",))))
    w.submit("high", fn=SLOW, options=tuple(Options(priority=1, tags=())))
    order = []
    for _ in range(5):
        for key in w.runs("w-0"):
            order.append(key)
            w.done("w-0", key, micros=10**6)
    assert order == ["busy", "high", "low", "here"]


def test_the_most_urgent_task_of_all_classes_gets_the_thread() -> None:
    w = World(workers=1)
    w.submit("low")
    w.submit("urgent", options=tuple(Options(workers=("W-0",), priority=1)))
    assert (w.where("urgent"), w.where("low")) == ("w-0", "")


def test_classes_take_turns_as_their_tasks_came() -> None:
    w = World(workers=1, threads=2)
    w.submit("first")
    w.submit("second", options=tuple(Options(workers=("W-0",))))
    w.submit("third")
    assert [w.where(key) for key in ("first", "second", "third")] == ["w-0", "w-0", ""]


def test_a_class_is_gone_through_once_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World(workers=1)
    drained: list[Pool] = []
    drain = w.broker.placement._drain

    def counted(pool: Pool, limit: int) -> int | None:
        drained.append(pool)
        return drain(pool, limit)

    monkeypatch.setattr(w.broker.placement, "_drain", counted)
    w.submit("a", "b")
    w.turn()
    assert drained == [w.broker.placement.default]


def test_tasks_go_where_most_of_their_input_lies() -> None:
    w = World(workers=2)
    w.submit("a", "b")
    where = {}
    for key, nbytes in (("a", 10**6), ("b", 10**7)):
        where[key] = w.finish(key, value=None, nbytes=nbytes)
    assert where["a"] != where["b"]
    for n in range(4):
        w.submit(f"x{n}", deps=("a", "b"), fn=SLOW)
        assert w.where(f"x{n}") == where["b"]
        w.done(where["b"], f"x{n}")


def holders(w: World, key: str, nbytes: int) -> tuple[str, str]:
    """One worker has the key, the other is the next in turn."""
    w.submit(key)
    holder = w.finish(key, value=None, nbytes=nbytes)
    w.send(holder, Subscribe(1, (), {}, True))
    w.submit("other")
    other = w.finish("other")
    w.send(holder, Subscribe(1, (), {}, False))
    w.turn()
    w.send(other, Subscribe(1, (), {}, False))
    return holder, other


def test_an_idle_worker_that_has_the_input_goes_before_the_next_in_turn() -> None:
    w = World(workers=2)
    holder, other = holders(w, "a", 10**6)
    w.submit("x")
    assert w.finish("x") == other
    w.submit("y", deps=("a",), fn=SLOW)
    assert w.where("y") == holder


def test_a_busy_worker_that_has_a_large_input_is_waited_for_while_another_is_idle() -> None:
    w = World(workers=2)
    holder, _ = holders(w, "a", 10**8)
    w.submit("x", "y", deps=("a",))
    assert {w.where("x"), w.where("y")} == {holder}


def test_a_task_of_unknown_duration_does_not_wait_where_its_input_lies() -> None:
    w = World(workers=1)
    w.submit("a")
    w.finish("a", value=None, nbytes=10**6)
    w.submit("x", "y", deps=("a",), fn=SLOW)
    assert spread(w) == [1]


def test_a_worker_that_was_filled_by_its_inputs_still_takes_work_in_advance() -> None:
    w = World(workers=1)
    w.learn()
    w.submit("a")
    w.finish("a", value=None, nbytes=10**6)
    w.submit("x", "y", deps=("a",))
    w.submit("z")
    assert spread(w) == [3]


def test_a_chain_stays_where_it_began() -> None:
    w = World(workers=3)
    w.submit("k0")
    first = w.finish("k0")
    for n in range(1, 6):
        w.submit(f"k{n}", deps=(f"k{n - 1}",))
        assert w.finish(f"k{n}") == first


def test_small_inputs_do_not_keep_a_fan_out_on_one_worker() -> None:
    w = World(workers=2)
    w.learn()
    w.submit("a")
    w.finish("a")
    w.submit("x", "y", deps=("a",))
    assert spread(w) == [1, 1]


def test_restriction_to_workers_by_name_or_address() -> None:
    w = World(workers=3)
    w.submit("a", options=tuple(Options(workers=("W-2",))))
    w.submit("b", options=tuple(Options(workers=("tcp://w-1",))))
    assert (w.where("a"), w.where("b")) == ("w-2", "w-1")


def test_a_restriction_that_nobody_meets_waits_and_is_reported_once() -> None:
    w = World(workers=1)
    w.broker.commands.clear()
    w.submit("a", options=tuple(Options(workers=("elsewhere",))))
    w.turn()
    w.submit("b", options=tuple(Options(workers=("elsewhere",))))
    w.turn()
    w.now = NOTICE
    w.turn()
    assert [c.event for c in w.broker.commands] == ["no-worker"]
    assert w.states() == {"a": "ready", "b": "ready"}
    w.submit("c", options=tuple(Options(workers=("elsewhere",), allow_other=True)))
    assert w.where("c") == "w-0"
    w.worker("elsewhere")
    w.turn()
    assert w.where("a") == ""  # its name is ELSEWHERE
    w.join("w-9", "worker", node="n-0", address="elsewhere")
    w.send("w-9", Subscribe(2, (), {}, False))
    assert (w.where("a"), w.where("b")) == ("w-9", "w-9")


def test_tags() -> None:
    w = World(workers=1)
    w.worker("w-gpu", tags=("gpu", "big"))
    w.submit("a", options=tuple(Options(tags=("gpu",))))
    w.submit("b", options=tuple(Options(tags=("gpu", "small"))))
    assert (w.where("a"), w.where("b")) == ("w-gpu", "")


def test_resources_bound_what_runs_at_once() -> None:
    w = World(workers=0)
    w.worker("w-0", threads=8, resources={"gpu": 1.0})
    options = tuple(Options(resources=(("gpu", 0.4),)))
    w.submit(*(f"k{n}" for n in range(5)), options=options)
    assert spread(w) == [2]
    w.submit("free")
    assert spread(w) == [3]
    w.finish("k0")
    assert spread(w) == [3]
    w.submit("huge", options=tuple(Options(resources=(("gpu", 2.0),))))
    w.finish("k1", "k2", "k3", "k4", "free")
    assert w.where("huge") == ""
    w.send("w-0", Subscribe(8, (), {"gpu": 2.0}, False))
    assert w.where("huge") == "w-0"


def test_a_seceded_task_makes_room_and_takes_it_again() -> None:
    w = World(workers=1)
    w.submit("outer", "inner", "third", fn=SLOW)
    attempt = w.task("outer").attempt if w.where("outer") else 0
    assert spread(w) == [1]
    w.send("w-0", Seceded("outer", attempt, False))
    w.send("w-0", Seceded("outer", attempt, False))  # twice is once
    assert spread(w) == [2]
    w.send("w-0", Seceded("outer", attempt, True))
    w.done("w-0", "inner", micros=10**6)
    assert w.where("third") == ""
    w.done("w-0", "outer", micros=10**6)
    assert w.where("third") == "w-0"


def test_a_paused_worker_gets_nothing() -> None:
    w = World(workers=1)
    w.send("w-0", Subscribe(1, (), {}, True))
    w.submit("a")
    assert w.where("a") == ""
    w.send("w-0", Subscribe(1, (), {}, False))
    assert w.where("a") == "w-0"


def pile_up(w: World, micros: int, tasks: int) -> None:
    """Queue work at w-0 alone."""
    w.learn(micros=micros)
    w.submit(*(f"k{n}" for n in range(tasks)))
    w.turn()


def test_queued_tasks_are_taken_back_when_another_worker_is_idle() -> None:
    w = World(workers=1)
    pile_up(w, 1000, 11)
    assert not w.got("w-0", TakeBack)
    w.worker("w-1")
    rows = w.rows("w-0", TakeBack)
    assert [row[0] for row in rows] == [f"k{n}" for n in range(10, 5, -1)]  # the last ones, half of those queued
    assert not w.got("w-0", TakeBack)  # one at a time
    w.send("w-0", Returned(tuple(rows[:3])))
    w.turn()
    w0, w1 = w.broker.tables.workers.values()
    assert set(w1.assigned) == {"k8", "k9", "k10"} and len(w0.assigned) == 8


def test_a_worker_that_gives_nothing_back_is_left_alone_for_a_while() -> None:
    w = World(workers=1)
    pile_up(w, 1000, 10)
    w.worker("w-1")
    assert w.got("w-0", TakeBack)
    w.send("w-0", Returned(()))
    assert not w.got("w-0", TakeBack)
    w.now += 1.5
    w.broker.tick(w.now)
    assert w.got("w-0", TakeBack)


def test_little_work_is_taken_back_only_after_a_pause() -> None:
    w = World(workers=1)
    pile_up(w, 10, 10)
    w.worker("w-1")
    assert not w.got("w-0", TakeBack)
    assert w.broker.deadline() == w.now + STEAL_PAUSE
    w.now += STEAL_PAUSE
    w.broker.tick(w.now)
    assert w.rows("w-0", TakeBack)


def test_what_the_idle_worker_may_not_run_is_not_taken_back() -> None:
    w = World(workers=1)
    w.learn(micros=1000)
    w.submit(*(f"k{n}" for n in range(10)), options=tuple(Options(workers=("W-0",))))
    w.turn()
    w.worker("w-1")
    assert not w.got("w-0", TakeBack)


def test_a_returned_row_that_is_none_changes_nothing() -> None:
    w = World(workers=1)
    w.submit("a")
    w.turn()
    w.send("w-0", Returned((("a", 5), ("b", 6))))
    assert w.states() == {"a": "assigned"}


def test_an_input_lost_under_a_waiting_task_is_computed_by_the_same_worker() -> None:
    """The only worker's only thread waits for the input: that must not keep it from being computed."""
    w = World(workers=2)
    w.submit("a", options=tuple(Options(workers=("W-1",), allow_other=True)))
    w.turn()
    w.done("w-1", "a", value=None, nbytes=10)
    w.submit("b", deps=("a",), options=tuple(Options(workers=("W-0",))))
    assert w.where("b") == "w-0"
    w.die("w-1")
    assert w.where("a") == "w-0"
    assert w.states() == {"a": "assigned", "b": "assigned"}


def test_the_queue_does_not_keep_what_was_cancelled() -> None:
    w = World(workers=0)
    gens = {}
    for n in range(500):
        gens[f"k{n}"] = w.submit(f"k{n}")
    for key, gen in gens.items():
        if key != "k499":
            w.release(key, gen)
    pool = w.broker.placement.default
    assert pool.live == 1 and len(pool.tail) < 100
    w.worker("w-0")
    assert w.where("k499") == "w-0"


def test_the_queue_is_not_swept_for_each_task_that_is_cancelled() -> None:
    w = World(workers=0)
    gen = w.submit(*(f"k{n}" for n in range(500)))
    pool = w.broker.placement.default
    sweeps, tail = 0, pool.tail
    for n in range(500):
        w.broker.handle("c-0", Release(((f"k{n}", gen),)), 0.0)
        sweeps, tail = sweeps + (pool.tail is not tail), pool.tail
    assert 0 < sweeps < 10


def test_what_is_urgent_stays_in_the_queue_when_that_is_swept() -> None:
    w = World(workers=0)
    gen = w.submit(*(f"k{n}" for n in range(200)))
    w.submit("urgent", options=tuple(Options(priority=1)))
    pool = w.broker.placement.default
    assert (len(pool.tail), len(pool.heap)) == (200, 1)  # what comes in order costs the same however much waits
    for n in range(199):
        w.release(f"k{n}", gen)
    w.worker("w-0", threads=2)
    assert (w.where("urgent"), w.where("k199")) == ("w-0", "w-0")


def test_tasks_of_equal_options_share_what_is_kept_of_them_and_few_are_kept() -> None:
    w = World(workers=0)
    for n in range(2 * POOLS_KEPT):
        w.submit(f"k{n}", options=tuple(Options(retries=n)))
        assert 0 < len(w.broker.placement.terms) <= POOLS_KEPT
    w.submit("a", options=tuple(Options(retries=1)))
    w.submit("b", options=tuple(Options(retries=2)))
    w.submit("c", options=tuple(Options(retries=1)))
    assert w.task("c").terms is w.task("a").terms is not w.task("b").terms


def test_tasks_with_inputs_travel_in_smaller_messages_than_those_without() -> None:
    w = World(workers=1, threads=3 * RUN_ROWS)
    roots = [f"r{n}" for n in range(RUN_ROWS + 1)]
    w.submit(*roots)
    assert [len(run.rows) for run in w.got("w-0", Run)] == [len(roots)]
    w.finish("r0")
    w.submit(*(f"k{n}" for n in range(RUN_ROWS + 1)), deps=("r0",))
    assert [len(run.rows) for run in w.got("w-0", Run)] == [RUN_ROWS, 1]


def test_many_classes_do_not_pile_up() -> None:
    w = World(workers=1)
    for n in range(200):
        gen = w.submit("x", options=tuple(Options(tags=(f"t{n}",))))
        w.release("x", gen)
    assert len(w.broker.placement.pools) <= 64
    assert FN in w.broker.tables.functions
