"""Workers that leave in good order, tasks that run out of time, and cancelling by force."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.limits import LEASE_NODE, LEAVE_PAUSE
from zdist.protocol.messages import (
    Abort,
    Answer,
    Ask,
    Cancel,
    Dismiss,
    Failed,
    Held,
    Hold,
    Interrupt,
    Killed,
    Leaving,
    Options,
    Overdue,
    Place,
    Replicate,
    Returned,
    Stop,
    Subscribe,
    TakeBack,
    TimeLimit,
    WorkerDied,
)

TIMED = tuple(Options(timeout=2.0))


def later(w: World, seconds: float = 2 * LEAVE_PAUSE) -> None:
    w.now += seconds
    w.broker.tick(w.now)
    w.turn()


def leave(w: World, *sessions: str, stay: bool = True, keeps: int = 0) -> None:
    w.send("n-0", Leaving(sessions, stay, "fewer are wanted", keeps))
    later(w, 0)


def dismissed(w: World) -> list[Dismiss]:
    return w.got("n-0", Dismiss)


# --- leaving -----------------------------------------------------------------------------------------


def test_an_idle_worker_is_dismissed_at_once_and_gets_nothing_more() -> None:
    w = World(workers=2)
    leave(w, "w-0")
    assert dismissed(w) == [Dismiss(("w-0",), False)]
    w.submit("a", "b")
    assert {w.where("a"), w.where("b")} == {"w-1", ""}
    assert w.broker.deadline() is not None  # looked at until it is gone
    w.die("w-0", ordered=True)
    later(w)
    assert w.broker.departures.leaves == {} and w.broker.departures.look_at is None


def test_what_only_a_leaving_worker_holds_is_copied_first() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.finish("a", value=None)
    other = "w-1" if first == "w-0" else "w-0"
    w.turn()
    leave(w, first)
    assert dismissed(w) == []
    (row,) = w.rows(other, Replicate)
    assert row[0] == "a" and row[3] == (first,)
    later(w)
    assert w.rows(other, Replicate) == [] and dismissed(w) == []
    w.send(other, Held((("a", row[1], 5, "int"),)))
    later(w)
    assert dismissed(w) == [Dismiss((first,), False)]
    w.die(first, ordered=True)
    assert w.states() == {"a": "memory"} and [h.session for h in w.task("a").holders] == [other]


def test_small_results_that_the_broker_has_are_copied_too_as_it_may_be_killed() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.finish("a", value=b"small")
    leave(w, first)
    assert dismissed(w) == [] and len(w.rows("w-1" if first == "w-0" else "w-0", Replicate)) == 1


def test_queued_tasks_are_taken_back_and_running_ones_awaited() -> None:
    w = World(workers=1)
    w.submit("a")
    assert w.where("a") == "w-0"
    leave(w, "w-0")
    assert [row[0] for row in w.rows("w-0", TakeBack)] == ["a"]
    w.send("w-0", Returned(()))  # it runs
    later(w)
    assert dismissed(w) == []
    w.done("w-0", "a")
    later(w)
    assert len(dismissed(w)) == 1


def test_where_nobody_is_awaited_running_tasks_go_on_elsewhere_without_a_death() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.where("a")
    leave(w, first, stay=False)
    assert len(dismissed(w)) == 1
    w.die(first, "a", ordered=True)
    assert w.where("a") not in ("", first) and w.task("a").trouble is None


def test_data_of_the_last_worker_is_lost_only_where_no_replacement_is_to_come() -> None:
    for stay in (True, False):
        w = World(workers=1)
        w.submit("a")
        w.finish("a", value=None)
        leave(w, "w-0", stay=stay)
        assert len(dismissed(w)) == stay
        w.worker("w-1")
        later(w)
        assert len(w.rows("w-1", Replicate)) == 1  # if there is still time


def test_a_worker_that_has_not_come_yet_is_dismissed_when_it_has() -> None:
    w = World(workers=1)
    leave(w, "w-7", "w-8")
    assert dismissed(w) == []
    w.worker("w-7")
    later(w)
    assert dismissed(w) == [Dismiss(("w-7",), False)]
    w.send("n-0", WorkerDied("w-8", 0, "", (), True))
    assert w.broker.departures.absent == {}
    leave(w, "w-9")
    w.leave("n-0")
    assert w.broker.departures.absent == {}


def test_a_node_speaks_for_its_own_workers_only() -> None:
    w = World(workers=1)
    w.join("n-1", "node")
    w.send("n-1", Leaving(("w-0",), True, "not its own", 0))
    assert not w.broker.tables.workers["w-0"].leaving


def test_data_for_named_workers_that_all_leave_goes_to_others() -> None:
    w = World(workers=2)
    w.send("c-0", Hold(1, (("a", 0, 1000, "array"),)))
    w.send("c-0", Place(("a",), ("W-0",), 2))
    (row,) = w.rows("w-0", Replicate)
    w.send("w-0", Held((("a", row[1], 1000, "array"),)))
    leave(w, "w-0")
    assert len(w.rows("w-1", Replicate)) == 1


def test_data_on_its_way_to_named_workers_goes_to_others_when_all_of_those_leave() -> None:
    w = World(workers=3)
    w.submit("a")
    first = w.finish("a", value=None)
    second, third = (session for session in ("w-0", "w-1", "w-2") if session != first)
    w.send("c-0", Place(("a",), (second.upper(),), 1))
    assert len(w.rows(second, Replicate)) == 1
    leave(w, first, second)
    assert dismissed(w) == [Dismiss((second,), False)]
    w.die(second, ordered=True)
    assert len(w.rows(third, Replicate)) == 1


def test_only_so_many_copies_are_begun_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.leaving.LEAVE_COPIES", 3)
    w = World(workers=1)
    keys = [f"k{n}" for n in range(5)]
    w.submit(*keys)
    w.finish(*keys, value=None)
    w.worker("w-1")
    leave(w, "w-0")
    assert [row[0] for row in w.rows("w-1", Replicate)] == keys[:3]
    later(w)
    assert [row[0] for row in w.rows("w-1", Replicate)] == keys[3:]


def test_leaving_workers_are_looked_at_with_pauses() -> None:
    w = World(workers=1)
    leave(w, "w-0")
    assert len(dismissed(w)) == 1
    later(w, LEAVE_PAUSE / 2)
    assert dismissed(w) == []
    later(w, LEAVE_PAUSE / 2)
    assert len(dismissed(w)) == 1  # the node may be another by now


def test_a_worker_that_is_paused_gives_back_what_it_has_not_started() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.where("a")
    w.send(first, Subscribe(1, (), {}, True))
    assert [row[0] for row in w.rows(first, TakeBack)] == ["a"]
    w.send(first, Returned((("a", w.task("a").attempt),)))
    assert w.where("a") not in ("", first)
    w.send(first, Subscribe(1, (), {}, False))
    w.submit("b")
    assert w.where("b") == first


# --- retire ---------------------------------------------------------------------------------------------


def test_retire_answers_with_the_names_when_they_are_gone() -> None:
    w = World(workers=3)
    w.send("c-0", Ask(5, "retire", ("W-0", "tcp://w-2")))
    later(w, 0)
    assert sorted(d.workers for d in dismissed(w)) == [("w-0",), ("w-2",)]
    assert w.got("c-0", Answer) == []
    w.die("w-0", ordered=True)
    w.die("w-2", ordered=True)
    assert w.got("c-0", Answer) == [Answer(5, True, {"tcp://w-0": "W-0", "tcp://w-2": "W-2"})]


def test_retire_refuses_what_would_lose_data() -> None:
    w = World(workers=1)
    w.submit("a")
    w.finish("a", value=None)
    w.send("c-0", Ask(5, "retire", ("W-0",)))
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and "no worker would be left, and 1 results" in answer.value
    w.send("c-0", Ask(6, "retire", ("nobody",)))
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and "no worker 'nobody'" in answer.value
    w.send("c-0", Ask(7, "retire", ()))
    assert w.got("c-0", Answer) == [Answer(7, True, {})]


def test_ordered_restarts_are_answered_when_the_next_workers_are_there() -> None:
    w = World(workers=2)
    w.send("c-0", Ask(5, "restart_workers", (("W-0",), None)))
    later(w, 0)
    assert dismissed(w) == [Dismiss(("w-0",), False)]
    w.die("w-0", ordered=True)
    later(w, 1e9)
    assert w.got("c-0", Answer) == []
    w.worker("w-2")
    assert w.got("c-0", Answer) == [Answer(5, True, 2)]


def test_a_worker_is_retired_by_its_node_also_if_that_is_slower_to_come() -> None:
    w = World(workers=1)
    w.worker("w-1", node="n-1")
    w.send("c-0", Ask(5, "retire", ("W-1",)))
    later(w)
    assert w.got("w-1", Stop) == [] and w.got("c-0", Answer) == []  # by itself it would be replaced
    w.join("n-1", "node", workers=1)
    later(w)
    assert w.got("n-1", Dismiss) == [Dismiss(("w-1",), True)]
    w.die("w-1", ordered=True)
    assert w.got("c-0", Answer) == [Answer(5, True, {"tcp://w-1": "W-1"})]


def test_a_node_that_does_not_come_is_not_waited_for_for_ever() -> None:
    w = World(workers=1)
    w.worker("w-1", node="n-1")
    w.send("c-0", Ask(5, "retire", ("W-1",)))
    later(w, LEASE_NODE - 0.1)
    assert w.got("w-1", Stop) == []
    later(w, 0.1)
    assert len(w.got("w-1", Stop)) == 1


def test_ordered_restarts_are_given_up_in_time() -> None:
    w = World(workers=2)
    w.send("c-0", Ask(5, "restart_workers", (("W-0",), 3.0)))
    w.die("w-0", ordered=True)
    assert w.broker.deadline() == 0.0
    later(w, 2.9)
    assert w.got("c-0", Answer) == [] and w.broker.deadline() == 3.0
    later(w, 0.1)
    assert w.got("c-0", Answer) == [Answer(5, False, "restart: 1 of 2 workers were back in time")]


def test_a_worker_without_a_node_is_told_to_stop() -> None:
    w = World(workers=2)
    w.worker("w-9", node="")
    w.send("c-0", Ask(5, "retire", ("W-9",)))
    later(w, 0)
    assert len(w.got("w-9", Stop)) == 1


# --- time limits -----------------------------------------------------------------------------------------


def test_the_limit_of_an_attempt_goes_before_its_run() -> None:
    w = World(workers=1)
    w.submit("a", options=TIMED)
    w.submit("b")
    w.turn()
    kinds = [type(m).__name__ for m in w.inbox["w-0"] if type(m).__name__ in ("TimeLimit", "Run")]
    assert kinds[:2] == ["TimeLimit", "Run"]
    assert w.rows("w-0", TimeLimit) == [("a", w.task("a").attempt, 2.0)]


def test_an_overdue_task_fails_and_its_dependents_with_it() -> None:
    w = World(workers=1)
    w.submit("a", options=TIMED)
    w.submit("b", deps=("a",))
    w.turn()
    w.send("n-0", Overdue("w-0", (("a", w.task("a").attempt),)))
    rows = w.rows("c-0", Killed)
    assert {row[0] for row in rows} == {"a", "b"} and all(row[2] for row in rows)
    assert "timeout of 2 s" in rows[0][1] and "W-0" in rows[0][1]
    assert w.states() == {"a": "failed", "b": "failed"}


def test_retries_apply_to_overdue_tasks_and_not_on_the_same_worker() -> None:
    w = World(workers=1)
    w.submit("a", options=tuple(Options(retries=1, timeout=2.0)))
    w.turn()
    w.send("n-0", Overdue("w-0", (("a", w.task("a").attempt),)))
    w.turn()
    assert w.states() == {"a": "ready"}
    w.worker("w-1")
    assert w.where("a") == "w-1"
    w.send("n-0", Overdue("w-1", (("a", w.task("a").attempt),)))
    assert len(w.rows("c-0", Killed)) == 1


def test_overdue_news_of_other_attempts_and_other_nodes_change_nothing() -> None:
    w = World(workers=1)
    w.join("n-1", "node")
    w.submit("a", options=TIMED)
    w.turn()
    attempt = w.task("a").attempt
    w.send("n-1", Overdue("w-0", (("a", attempt),)))
    assert not w.broker.tables.workers["w-0"].leaving
    w.send("n-0", Overdue("w-0", (("a", attempt - 1),)))
    w.send("n-0", Overdue("w-7", (("a", attempt),)))
    assert w.states() == {"a": "assigned"} and not w.rows("c-0", Killed) and not w.rows("c-0", Failed)


@pytest.mark.parametrize("limit", [-1.0, float("inf"), "2"])
def test_limits_that_are_none_are_refused(limit: object) -> None:

    w = World(workers=1)
    w.submit("a", options=(0, 0, (), False, (), (), False, limit))
    ((key, reason),) = w.cancelled("c-0")
    assert key == "a" and "timeout" in reason


# --- cancelling by force -----------------------------------------------------------------------------------


def test_cancel_by_force_interrupts_what_may_run() -> None:
    w = World(workers=1)
    w.submit("a")
    w.submit("b")
    w.turn()
    attempt = w.task("a").attempt
    w.send("c-0", Cancel(("a", "b"), True, "enough"))
    assert [row[0] for row in w.rows("w-0", Abort)] == ["a"]
    assert w.got("n-0", Interrupt) == [Interrupt("w-0", (("a", attempt),))]


def test_cancel_without_force_lets_it_run_out() -> None:
    w = World(workers=1)
    w.submit("a")
    w.turn()
    w.send("c-0", Cancel(("a",), False, "enough"))
    assert [row[0] for row in w.rows("w-0", Abort)] == ["a"]
    assert w.got("n-0", Interrupt) == []
