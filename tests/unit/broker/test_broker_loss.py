"""Deaths of workers, nodes and clients; lost results, held and scattered data."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.limits import ALLOWED_DEATHS, MAX_RECOMPUTES
from zdist.protocol.messages import (
    Cancelled,
    Done,
    Drop,
    Erred,
    Finished,
    Held,
    Hold,
    Killed,
    Locate,
    Lost,
    Message,
    Missing,
    Options,
    Place,
    Refused,
    Rejected,
    Replicate,
    Returned,
    Run,
    Want,
    WorkerDied,
)
from zdist_broker.machine import Expel


def hold(w: World, *keys: str, client: str = "c-0", nbytes: int = 1000) -> int:
    w.gen += 1
    w.send(client, Hold(w.gen, tuple((key, 0, nbytes, "array") for key in keys)))
    return w.gen


# --- workers ------------------------------------------------------------------------------------------


def test_tasks_of_a_dead_worker_run_elsewhere_with_a_new_attempt() -> None:
    w = World(workers=1)
    w.submit("a")
    w.turn()
    first = w.task("a").attempt
    w.worker("w-1")
    w.die("w-0", "a")
    assert w.runs("w-1")["a"][1] > first
    assert "w-0" not in w.broker.tables.workers
    assert Expel("w-0", "it broke") in w.broker.commands
    w.broker.left("w-0", "again", w.now)  # the session layer says so too
    w.done("w-1", "a")
    assert w.rows("c-0", Finished)


@pytest.mark.parametrize("known", [True, False])
def test_a_hello_that_arrives_after_the_report_of_its_workers_death_is_refused(known: bool) -> None:
    w = World(workers=1)
    session = "w-0" if known else "w-9"
    node = next(iter(w.broker.tables.nodes))
    w.send(node, WorkerDied(session, -9, "it broke", (), False))
    info = {"name": "W", "host": "h", "pid": 1, "node": node, "address": "tcp://127.0.0.1:1", "memory_limit": 0}
    refused = w.broker.joined(session, "worker", info, w.now)
    assert isinstance(refused, Refused) and "reported its end" in refused.text
    assert session not in w.broker.tables.workers
    assert not isinstance(w.broker.joined("w-10", "worker", info, w.now), Refused)


def test_too_many_deaths_kill_a_task_and_what_depends_on_it() -> None:
    w = World(workers=0)
    w.submit("a", options=tuple(Options(retries=5)))
    w.submit("b", deps=("a",))
    for n in range(ALLOWED_DEATHS + 1):
        assert not w.rows("c-0", Killed)
        w.worker(f"w-{n}")
        w.turn()
        w.die(f"w-{n}", "a", text="last words")
    rows = {key: text for key, text, _overdue in w.rows("c-0", Killed)}
    assert set(rows) == {"a", "b"}
    assert f"{ALLOWED_DEATHS + 1} workers died" in rows["a"]
    assert "worker W-3 on h (signal 9): last words" in rows["a"]


def test_deaths_that_were_ordered_or_met_a_queued_task_do_not_count() -> None:
    w = World(workers=0)
    w.submit("a")
    for n in range(3 * ALLOWED_DEATHS):
        w.worker(f"w-{n}")
        w.turn()
        if n % 3 == 0:
            w.die(f"w-{n}", "a", ordered=True)
        elif n % 3 == 1:
            w.die(f"w-{n}")
        else:
            w.leave(f"w-{n}")
    assert w.states() == {"a": "ready"} and w.task("a").trouble is None


def test_retries_and_deaths_are_counted_apart() -> None:
    w = World(workers=0)
    w.submit("a", options=tuple(Options(retries=1)))
    for n in range(ALLOWED_DEATHS):
        w.worker(f"w-{n}")
        w.turn()
        w.die(f"w-{n}", "a")
    w.worker("w-9")
    w.turn()
    w.send("w-9", Erred((("a", w.task("a").attempt, 1, b"e", "no"),)))
    assert w.states() == {"a": "ready"}


def test_a_death_reported_by_another_node_or_twice_is_ignored() -> None:
    w = World(workers=1)
    w.join("n-1", "node")
    w.submit("a")
    w.turn()
    w.send("n-1", WorkerDied("w-0", 1, "", (), False))
    assert "w-0" in w.broker.tables.workers
    w.die("w-0")
    w.send("n-0", WorkerDied("w-0", 1, "", (("a", 1),), False))
    assert w.states() == {"a": "ready"}


def test_a_lost_node_takes_its_workers_along() -> None:
    w = World(workers=1)
    w.join("n-1", "node")
    for n in (1, 2):
        w.worker(f"w-{n}", node="n-1")
    w.submit("a", "b", "c")
    w.turn()
    w.leave("n-1", "silent")
    assert list(w.broker.tables.workers) == ["w-0"]
    assert [c.session for c in w.broker.commands if isinstance(c, Expel)] == ["w-1", "w-2"]
    assert sorted(w.states().values()) == ["assigned", "ready", "ready"]


def test_a_lost_result_is_computed_again_with_the_inputs_that_are_gone() -> None:
    w = World(workers=1)
    a = w.submit("a")
    w.submit("b", deps=("a",))
    w.release("a", a)
    w.finish("a", "b", value=None)
    assert w.states() == {"a": "released", "b": "memory"}
    w.all("c-0")
    w.worker("w-1")
    w.die("w-0")
    assert w.rows("c-0", Lost) == ["b"]
    assert w.states() == {"a": "ready", "b": "waiting"} or w.states()["a"] == "assigned"
    w.finish("a", "b", value=None)
    assert w.rows("c-0", Finished)[0][4] == ("w-1",)
    assert w.states() == {"a": "released", "b": "memory"}


def test_a_result_whose_value_is_at_hand_is_not_computed_again() -> None:
    w = World(workers=1)
    w.submit("a")
    w.finish("a")
    w.die("w-0")
    assert not w.rows("c-0", Lost) and w.states() == {"a": "memory"}
    w.worker("w-1")
    w.submit("b", deps=("a",))
    assert w.runs("w-1")["b"][5] == (("a", 5, (), b"value"),)


def test_a_result_with_another_copy_is_not_lost() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.finish("a", value=None)
    other = "w-1" if first == "w-0" else "w-0"
    w.send(other, Held((("a", w.task("a").attempt, 5, "int"),)))
    w.die(first)
    assert w.states() == {"a": "memory"}
    w.client("c-1")
    w.send("c-1", Want(1, ("a",)))
    assert w.rows("c-1", Finished)[0][4] == (other,)


def test_a_result_lost_too_often_is_given_up() -> None:
    w = World(workers=0)
    w.submit("a")
    for n in range(MAX_RECOMPUTES + 1):
        w.worker(f"w-{n}")
        w.finish("a", value=None)
        w.die(f"w-{n}")
    ((key, text, overdue),) = w.rows("c-0", Killed)
    assert not overdue
    assert key == "a" and f"lost {MAX_RECOMPUTES + 1} times" in text


def test_a_copy_of_another_attempt_is_not_taken_for_the_result() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.finish("a", value=None)
    other = "w-1" if first == "w-0" else "w-0"
    w.send(other, Held((("a", 1, 5, "int"), ("unknown", 1, 5, "int"))))
    assert w.rows(other, Drop) == ["a", "unknown"]


# --- missing ------------------------------------------------------------------------------------------


def waiting_for_input(w: World) -> None:
    """b runs on w-1 and needs a, which w-0 holds."""
    w.submit("a", options=tuple(Options(workers=("W-0",), allow_other=True)))
    w.turn()
    w.done("w-0", "a", value=None, nbytes=10)
    w.submit("b", deps=("a",), options=tuple(Options(workers=("W-1",))))
    assert w.where("b") == "w-1"
    w.inbox.clear()


@pytest.mark.parametrize("end", ["returned", "failed"])
def test_a_copy_of_another_attempt_goes_when_its_worker_does_not_make_the_result(end: str) -> None:
    w = World(workers=1)
    w.submit("a")
    w.turn()
    attempt = w.task("a").attempt
    w.send("w-0", Held((("a", attempt - 1, 5, "int"),)))  # fetched before it was given the task itself
    assert w.rows("w-0", Drop) == []  # its result would take the place
    over = Returned((("a", attempt),)) if end == "returned" else Erred((("a", attempt, 5, b"error", "it failed"),))
    w.send("w-0", over)
    assert w.rows("w-0", Drop) == ["a"]


def test_a_missing_input_is_computed_again_and_its_user_told_where() -> None:
    w = World(workers=2)
    waiting_for_input(w)
    w.send("w-1", Missing((("a", ("w-0",)),)))
    assert w.rows("w-1", Locate)[0] == ("a", 10, (), None)
    assert w.rows("w-0", Drop) == ["a"]
    assert w.rows("c-0", Lost) == ["a"]
    session = w.where("a")
    w.done(session, "a", value=None, nbytes=11)
    assert w.rows("w-1", Locate) == [("a", 11, (session,), None)]


def test_a_missing_input_with_another_copy_is_located_there() -> None:
    w = World(workers=3)
    waiting_for_input(w)
    w.send("w-2", Held((("a", w.task("a").attempt, 10, "int"),)))
    w.send("w-1", Missing((("a", ("w-0",)),)))
    assert w.rows("w-1", Locate) == [("a", 10, ("w-2",), None)]
    assert not w.rows("c-0", Lost)


def test_a_client_that_misses_a_result_is_told_anew() -> None:
    w = World(workers=2)
    w.submit("a")
    first = w.finish("a", value=None)
    other = "w-1" if first == "w-0" else "w-0"
    w.send(other, Held((("a", w.task("a").attempt, 5, "int"),)))
    w.all("c-0")
    w.send("c-0", Missing((("a", (first,)), ("unknown", (first,)))))
    assert w.rows("c-0", Finished)[0][4] == (other,)
    assert w.cancelled("c-0") == [("unknown", "nobody in the cluster knows this key any more")]
    w.send("c-0", Missing((("a", (other,)),)))
    assert w.rows("c-0", Lost) == ["a"]
    w.send("c-0", Missing((("a", (other,)),)))
    assert w.rows("c-0", Lost) == ["a"]


def test_who_has_nothing_to_do_with_a_key_cannot_have_it_lost() -> None:
    w = World(workers=2, clients=2)
    w.submit("a")
    first = w.finish("a", value=None)
    w.send("c-1", Missing((("a", (first,)),)))
    w.send("w-1", Missing((("a", (first,)),)))
    assert w.states() == {"a": "memory"}


# --- held by clients ----------------------------------------------------------------------------------


def test_tasks_fetch_what_a_client_holds_from_that_client() -> None:
    w = World(workers=2)
    gen = hold(w, "big")
    w.submit("x", deps=("big",))
    session = w.where("x")
    messages = w.all(session)
    assert [type(m).__name__ for m in messages] == ["Define", "Run"]  # a client is no member
    assert messages[1].rows[0][5] == (("big", 1000, ("c-0",), None),)
    w.release("big", gen)
    w.send(session, Held((("big", 0, 1000, "array"),)))
    w.done(session, "x")
    assert w.rows(session, Drop) == ["big"]
    assert not w.rows("c-0", Drop)  # it is part of what x was made from
    w.release("x", gen + 1)
    assert w.rows("c-0", Drop) == ["big"]
    assert w.states() == {}


def test_a_copy_on_a_worker_serves_the_next_and_outlives_the_client() -> None:
    w = World(workers=2, clients=2)
    hold(w, "big")
    w.submit("x", deps=("big",), client="c-1")
    session = w.where("x")
    w.send(session, Held((("big", 0, 1000, "array"),)))
    w.leave("c-0")
    assert w.states() == {"big": "memory", "x": "assigned"}
    other = "w-1" if session == "w-0" else "w-0"
    w.send("c-1", Want(7, ("big",)))
    w.submit("y", deps=("big",), client="c-1", options=tuple(Options(workers=(other.upper(),))))
    assert w.runs(other)["y"][5] == (("big", 1000, (session,), None),)


def test_dependents_of_data_that_left_with_its_client_are_cancelled() -> None:
    w = World(workers=1, clients=2)
    hold(w, "big")
    w.submit("x", deps=("big",), client="c-1")
    w.submit("y", deps=("x",), client="c-1")
    w.leave("c-0")
    rows = dict(w.cancelled("c-1"))
    assert set(rows) == {"x", "y"}
    assert rows["x"] == "scattered data lost: client C-0 held it and is gone"
    assert w.states() == {}


def test_a_result_made_from_data_that_is_gone_is_cancelled_when_lost() -> None:
    w = World(workers=1, clients=2)
    hold(w, "big")
    w.submit("x", deps=("big",), client="c-1")
    w.finish("x", value=None)
    w.leave("c-0")
    assert w.states() == {"big": "released", "x": "memory"}
    w.die("w-0")
    ((key, reason),) = w.cancelled("c-1")
    assert key == "x" and "an input of x is gone for good" in reason and "W-0" in reason
    assert w.states() == {}


def test_a_result_made_from_held_data_is_computed_again_when_lost() -> None:
    w = World(workers=1)
    gen = hold(w, "big")
    w.submit("x", deps=("big",))
    w.release("big", gen)
    w.finish("x", value=None)
    w.worker("w-1")
    w.die("w-0")
    assert w.rows("c-0", Lost) == ["x"]
    assert w.runs("w-1")["x"][5] == (("big", 1000, ("c-0",), None),)


def test_holding_a_key_in_use_is_rejected() -> None:
    w = World(clients=2)
    w.submit("x")
    hold(w, "x", "d")
    assert w.rows("c-0", Rejected) == [("x", "the key is in use for a task")]
    hold(w, "d", client="c-1", nbytes=7)
    assert w.rows("c-1", Rejected) == [("d", "the key is in use for other data")]
    w.submit("d", client="c-1")
    assert "data that is held already" in w.rows("c-1", Rejected)[0][1]
    w.submit("after", deps=("d",))  # nothing else is disturbed
    assert w.where("after")


# --- scatter ------------------------------------------------------------------------------------------


def replicated(w: World, *sessions: str) -> dict[str, tuple[str, ...]]:
    """Who was asked to copy, and from whom; each then has the copy."""
    asked = {session: w.rows(session, Replicate) for session in sessions}
    for session, rows in asked.items():
        if rows:
            w.send(session, Held(tuple((key, attempt, nbytes, "array") for key, attempt, nbytes, _ in rows)))
    return {session: rows[0][3] for session, rows in asked.items() if rows}


def test_scatter_moves_data_to_one_worker_each_in_turn() -> None:
    w = World(workers=2)
    hold(w, "a", "b")
    w.send("c-0", Place(("a", "b"), (), 1))
    asked = replicated(w, "w-0", "w-1")
    assert asked == {"w-0": ("c-0",), "w-1": ("c-0",)}
    messages = w.all("c-0")
    assert [type(m).__name__ for m in messages].count("Finished") >= 1
    finished = [row for m in messages if isinstance(m, Finished) for row in m.rows]
    assert {row[0]: row[4] for row in finished} == {"a": ("w-0",), "b": ("w-1",)}
    told: list[Message] = [m for m in messages if isinstance(m, Finished | Drop)]
    for key in ("a", "b"):  # it learns where the data is before it lets go of it
        first = next(n for n, m in enumerate(told) if isinstance(m, Finished) and key in [r[0] for r in m.rows])
        assert first < next(n for n, m in enumerate(told) if isinstance(m, Drop) and key in m.keys)
    assert not w.broker.tables.clients["c-0"].held


def test_broadcast_spreads_from_worker_to_worker() -> None:
    w = World(workers=9)
    sessions = [f"w-{n}" for n in range(9)]
    hold(w, "a")
    w.send("c-0", Place(("a",), (), 0))
    rounds = []
    while not w.inbox.get("c-0"):
        rounds.append(replicated(w, *sessions))
        w.turn()
    assert [len(r) for r in rounds] == [2, 4, 3]
    assert set(rounds[0].values()) == {("c-0",)}
    assert all("c-0" not in holders for holders in rounds[1].values())
    assert len(w.task("a").holders) == 9


def test_scatter_to_named_workers_only() -> None:
    w = World(workers=3)
    hold(w, "a")
    w.send("c-0", Place(("a",), ("W-2", "tcp://w-1"), 0))
    assert set(replicated(w, "w-0", "w-1", "w-2")) == {"w-1", "w-2"}
    assert w.rows("c-0", Finished)


def test_scatter_waits_for_a_first_worker() -> None:
    w = World(workers=0)
    hold(w, "a")
    w.send("c-0", Place(("a", "unknown"), (), 1))
    assert w.cancelled("c-0") == [("unknown", "nobody in the cluster knows this key any more")]
    w.worker("w-0")
    assert set(replicated(w, "w-0")) == {"w-0"}
    assert w.rows("c-0", Finished)


def test_scatter_goes_on_when_a_target_dies_or_fails() -> None:
    w = World(workers=3)
    hold(w, "a")
    w.send("c-0", Place(("a",), (), 1))
    assert w.rows("w-0", Replicate)
    w.die("w-0")
    assert w.rows("w-2", Replicate)
    w.send("w-2", Missing((("a", ()),)))
    again = {s for s in ("w-1", "w-2") if w.rows(s, Replicate)}
    assert len(again) == 1


def test_data_that_its_client_does_not_have_is_lost() -> None:
    w = World(workers=1, clients=2)
    hold(w, "a")
    w.send("c-1", Want(1, ("a",)))
    assert w.rows("c-1", Finished)[0][4] == ("c-0",)
    w.send("c-0", Place(("a",), (), 1))
    w.turn()
    w.send("w-0", Missing((("a", ("c-0",)),)))
    assert "could not be had from C-0" in w.rows("c-1", Cancelled)[0][1]
    assert w.states() == {}


def test_a_client_that_lost_its_own_copy_is_told_where_others_are() -> None:
    w = World(workers=2)
    hold(w, "a")
    w.submit("x", "y", deps=("a",))
    w.turn()
    w.send("w-0", Held((("a", 0, 1000, "array"),)))
    w.send("w-1", Missing((("a", ("c-0",)),)))
    assert w.rows("w-1", Locate) == [("a", 1000, ("w-0",), None)]
    messages = [m for m in w.all("c-0") if isinstance(m, Finished | Drop)]
    assert [type(m) for m in messages] == [Finished, Drop]
    assert messages[0].rows[0][4] == ("w-0",)  # type: ignore[union-attr]


def test_scattered_data_lost_with_its_worker_cancels_with_the_reason() -> None:
    w = World(workers=2)
    hold(w, "a")
    w.send("c-0", Place(("a",), ("W-0",), 1))
    replicated(w, "w-0")
    w.submit("x", deps=("a",), options=tuple(Options(workers=("W-1",))))
    w.turn()
    w.die("w-0", text="out of memory")
    rows = dict(w.cancelled("c-0"))
    assert rows["a"] == "scattered data lost: worker W-0 died: out of memory"
    assert rows["x"] == rows["a"]


def test_replicas_survive_a_death() -> None:
    w = World(workers=3)
    hold(w, "a")
    w.send("c-0", Place(("a",), (), 2))
    assert len(replicated(w, "w-0", "w-1", "w-2")) == 2
    w.die("w-0")
    assert not w.rows("c-0", Cancelled) and w.states() == {"a": "memory"}


def test_two_clients_scatter_the_same_content() -> None:
    w = World(workers=2, clients=2)
    gens = {}
    for client in ("c-0", "c-1"):
        gens[client] = hold(w, "a", client=client)
        w.send(client, Place(("a",), (), 1))
    replicated(w, "w-0", "w-1")
    for client in ("c-0", "c-1"):
        assert w.rows(client, Finished) and w.rows(client, Drop) == ["a"]
    w.release("a", gens["c-0"])
    assert w.states() == {"a": "memory"}
    w.release("a", gens["c-1"], client="c-1")
    assert w.states() == {}


def test_released_data_may_be_held_again() -> None:
    w = World(workers=1)
    gen = hold(w, "a")
    w.send("c-0", Place(("a",), (), 1))
    replicated(w, "w-0")
    w.submit("x", deps=("a",))
    w.finish("x")
    w.release("a", gen)
    assert w.rows("w-0", Drop) == ["a"] and w.states()["a"] == "released"
    w.submit("y", deps=("a",))
    assert "which nobody holds" in w.rows("c-0", Cancelled)[0][1]
    hold(w, "a")
    w.submit("y", deps=("a",))
    assert "y" in w.runs("w-0")


def test_a_worker_with_many_holders_to_choose_from_is_told_a_few() -> None:
    w = World(workers=40)
    hold(w, "a")
    w.send("c-0", Place(("a",), tuple(f"W-{n}" for n in range(39)), 0))
    while not w.inbox.get("c-0"):
        replicated(w, *(f"w-{n}" for n in range(39)))
        w.turn()
    w.submit("x", deps=("a",), options=tuple(Options(workers=("W-39",))))
    holders = w.runs("w-39")["x"][5][0][2]
    assert len(holders) == 8


@pytest.mark.parametrize("known", [True, False])
def test_late_completions_of_an_earlier_life_are_not_heard(known: bool) -> None:
    w = World(workers=2)
    w.submit("a")
    session = w.where("a")
    attempt = w.task("a").attempt
    w.leave(session)
    w.worker(session)  # the same id again, a new life
    if known:
        w.turn()
    w.send(session, Done((("a", attempt, 1, 1, b"late", "int"),)))
    assert not w.rows("c-0", Finished)
    w.finish("a")
    assert len(w.rows("c-0", Finished)) == 1
    assert w.got(session, Run) is not None
