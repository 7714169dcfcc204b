"""Submission, wants, completion, failure, cancellation: what clients and workers are told."""

from __future__ import annotations

from typing import Any

import pytest
from broker_world import FN, SLOW, World

from zdist.errors import ProtocolError
from zdist.limits import BROKER_CACHE, INLINE_RESULT
from zdist.protocol.messages import (
    Abort,
    Cancel,
    Cancelled,
    Define,
    Done,
    Drop,
    Erred,
    Failed,
    Finished,
    Lost,
    Members,
    Options,
    Rejected,
    Release,
    Retry,
    Run,
    Submit,
    Want,
    WhichFunction,
    function_digest,
)


def test_a_task_runs_and_its_value_travels_with_the_completion() -> None:
    w = World(workers=1)
    gen = w.submit("x")
    messages = w.all("w-0")
    assert [type(m) for m in messages] == [Define, Run]
    ((key, attempt, _, deliver, args, deps),) = messages[1].rows
    assert (key, deliver, args, deps) == ("x", True, b"args", ())
    assert attempt == (1 << 40) + 1
    w.send("w-0", Done((("x", attempt, 10, 5, b"value", "int"),)))
    assert w.all("c-0") == [Finished((("x", attempt, 5, b"value", (), "int"),))]
    w.release("x", gen)
    assert w.all("w-0") == [Drop(("x",))]
    assert not w.broker.tables.tasks


def test_define_goes_to_a_worker_once_and_again_when_it_asks() -> None:
    w = World(workers=1)
    w.submit("x")
    assert len(w.got("w-0", Define)) == 1
    w.finish("x")
    w.submit("y")
    assert not w.got("w-0", Define)
    w.send("w-0", WhichFunction(FN))
    assert w.got("w-0", Define) == [Define(FN, "fast", b"pickled fast")]
    w.send("w-0", WhichFunction(b"unknown"))  # its tasks are gone
    assert not w.got("w-0", Define)


def test_many_rows_travel_in_one_message() -> None:
    w = World(workers=1, threads=10)
    w.submit(*(f"k{n}" for n in range(10)))
    (run,) = w.got("w-0", Run)
    assert len(run.rows) == 10
    w.done("w-0", *(f"k{n}" for n in range(10)))
    (finished,) = w.got("c-0", Finished)
    assert [row[0] for row in finished.rows] == [f"k{n}" for n in range(10)]


def test_a_large_result_is_told_with_its_holder_after_the_holder_is_introduced() -> None:
    w = World(workers=1)
    w.submit("x", "y")
    w.finish("x", value=None, nbytes=10**6)
    members, finished = w.all("c-0")
    assert members == Members((("w-0", "tcp://w-0", "W-0", "h", "n-0"),))
    assert finished.rows[0][:1] + finished.rows[0][2:] == ("x", 10**6, None, ("w-0",), "int")
    w.finish("y", value=None)
    assert [type(m) for m in w.all("c-0")] == [Finished]


def test_equal_work_is_joined_and_told_at_once_when_finished() -> None:
    w = World(clients=2)
    w.submit("x")
    w.submit("x", client="c-1")
    session = w.finish("x")
    assert set(w.runs(session)) == {"x"}
    assert len(w.rows("c-0", Finished)) == len(w.rows("c-1", Finished)) == 1
    w.client("c-2")
    w.submit("x", client="c-2", named=True, args=b"spelled differently")
    assert w.rows("c-2", Finished)[0][3] == b"value"
    assert not w.runs(session)


@pytest.mark.parametrize("changed", [{"fn": SLOW}, {"args": b"others"}, {"deps": ("d",)}])
def test_a_key_in_use_for_other_work_is_rejected_for_that_client_alone(changed: dict[str, object]) -> None:
    w = World(clients=2)
    w.submit("d", client="c-1")
    w.submit("x")
    w.submit("x", client="c-1", **changed)  # type: ignore[arg-type]
    ((key, reason),) = w.rows("c-1", Rejected)
    assert key == "x" and "in use for another call, of fast" in reason
    w.finish("d", "x")
    assert w.rows("c-0", Finished)
    assert [row[0] for row in w.rows("c-1", Finished)] == ["d"]


def test_a_release_counts_only_for_its_generation() -> None:
    w = World()
    first = w.submit("x")
    second = w.submit("x")
    w.release("x", first)
    assert w.states() == {"x": "assigned"} or w.states() == {"x": "ready"}
    w.release("x", second)
    assert w.states() == {}


def test_a_task_that_nobody_wants_any_more_is_aborted_with_what_only_it_needed() -> None:
    w = World(workers=1)
    a = w.submit("a")
    b = w.submit("b", deps=("a",))
    w.turn()
    w.release("a", a)
    assert w.states() == {"a": "assigned", "b": "waiting"}
    attempt = w.task("a").attempt
    w.release("b", b)
    assert w.rows("w-0", Abort) == [("a", attempt)]
    assert w.states() == {}
    assert w.rows("w-0", Drop) == ["a"]  # for a copy of an earlier attempt that may have come there
    w.send("w-0", Done((("a", attempt, 1, 1, b"late", "int"),)))
    assert w.rows("w-0", Drop) == ["a"]


def test_dependents_start_without_the_client() -> None:
    w = World(workers=1)
    w.submit("a")
    w.submit("b", deps=("a",))
    assert set(w.runs("w-0")) == {"a"}
    w.done("w-0", "a")
    row = w.runs("w-0")["b"]
    assert row[5] == (("a", 5, ("w-0",), None),)  # it holds the object itself


def test_a_dependency_on_another_worker_comes_with_its_value_if_small_else_its_holder() -> None:
    w = World(workers=1)
    w.submit("small", "large")
    w.finish("small")
    w.finish("large", value=None, nbytes=10**6)
    w.worker("w-1")
    w.submit("x", deps=("small", "large", "small"), options=tuple(Options(workers=("tcp://w-1",))))
    messages = w.all("w-1")
    assert [type(m) for m in messages] == [Members, Define, Run]
    assert messages[2].rows[0][5] == (("small", 5, (), b"value"), ("large", 10**6, ("w-0",), None))


def test_a_task_with_a_known_dependent_is_not_to_be_delivered() -> None:
    w = World(workers=1)
    w.submit("a")
    w.submit("b", deps=("a",))
    assert w.runs("w-0")["a"][3] == 0
    w.done("w-0", "a")
    assert w.runs("w-0")["b"][3] == 1


@pytest.mark.parametrize(
    ("clients", "deliver"),
    [
        ([{"shm": True}], 2),
        ([{"shm": False}], 1),
        ([{}], 1),
        ([{"shm": True, "host": "elsewhere"}], 1),
        ([{"shm": "yes"}], 1),
        ([{}, {"shm": True}], 2),
    ],
)
def test_shared_memory_is_for_clients_of_the_workers_host(clients: list[dict[str, Any]], deliver: int) -> None:
    w = World(workers=0, clients=0)
    for n, info in enumerate(clients):
        w.client(f"c-{n}", **info)
        w.submit("x", client=f"c-{n}", named=True)
    w.turn()
    w.worker("w-0")
    assert w.runs("w-0")["x"][3] == deliver


def test_the_spec_of_a_released_input_stays_and_its_data_goes() -> None:
    w = World(workers=1)
    a = w.submit("a")
    w.submit("b", deps=("a",))
    w.release("a", a)
    w.finish("a", "b")
    assert w.rows("w-0", Drop) == ["a"]
    assert w.states() == {"a": "released", "b": "memory"}
    w.submit("a")  # wanted again: computed again
    assert w.states()["a"] == "ready"


def test_an_unknown_dependency_cancels() -> None:
    w = World()
    w.submit("x", deps=("nowhere",))
    assert w.cancelled("c-0") == [("x", "depends on nowhere, which nobody holds")]
    w.submit("y", deps=("y",))
    assert w.cancelled("c-0") == [("y", "depends on y, which nobody holds")]
    assert w.states() == {}


def test_wanting_a_key() -> None:
    w = World(clients=2)
    w.submit("x")
    w.send("c-1", Want(1, ("x", "nowhere")))
    assert w.cancelled("c-1") == [("nowhere", "nobody in the cluster knows this key any more")]
    w.finish("x")
    assert w.rows("c-1", Finished)


def test_errors_fail_a_task_and_its_dependents_after_the_retries() -> None:
    w = World(workers=1)
    w.submit("a", options=tuple(Options(retries=1)))
    w.submit("b", deps=("a",))
    w.submit("c", deps=("b",))
    for attempt in (1, 2):
        row = w.runs("w-0")["a"]
        assert row[1] == (1 << 40) + attempt
        w.send("w-0", Erred((("a", row[1], 10, b"pickled", "ValueError: no"),)))
    rows = w.rows("c-0", Failed)
    assert rows == [(key, b"pickled", "a", "ValueError: no") for key in ("a", "b", "c")]
    w.submit("d", deps=("c",))  # too late: it has failed before it began
    assert w.rows("c-0", Failed) == [("d", b"pickled", "a", "ValueError: no")]
    w.submit("a")  # joined
    assert w.rows("c-0", Failed) == [("a", b"pickled", "a", "ValueError: no")]


def test_retry_begins_again_with_what_had_failed_before_it() -> None:
    w = World(workers=1)
    w.submit("a")
    w.submit("b", deps=("a",))
    w.turn()
    w.send("w-0", Erred((("a", w.task("a").attempt, 10, b"e", "no"),)))
    w.all("c-0")
    w.send("c-0", Retry(("b", "nowhere")))
    assert sorted(w.rows("c-0", Lost)) == ["a", "b"]
    w.finish("a", "b")
    assert [row[0] for row in w.rows("c-0", Finished)] == ["a", "b"]


def test_cancel_drops_the_clients_want_and_its_dependents() -> None:
    w = World(clients=2, workers=1)
    w.submit("a", "shared")
    w.submit("b", deps=("a",))
    w.submit("shared", client="c-1")
    w.turn()
    attempt = w.task("a").attempt
    w.send("c-0", Cancel(("a", "shared", "nowhere"), False, ""))
    cancelled = dict(w.cancelled("c-0"))
    by = "cancelled by client C-0"
    assert cancelled == {"a": by, "shared": by, "b": f"depends on a: {by}"}
    assert w.rows("w-0", Abort) == [("a", attempt)]
    assert not w.rows("c-1", Cancelled)
    assert set(w.states()) == {"shared"}
    w.send("c-0", Cancel(("shared",), True, "because"))
    assert w.cancelled("c-1") == [("shared", "because")]
    assert w.states() == {}


def test_a_cancelled_key_may_be_used_anew() -> None:
    w = World(workers=1)
    w.submit("x")
    w.turn()
    w.send("c-0", Cancel(("x",), False, ""))
    w.submit("x", fn=SLOW)
    kinds = [type(m) for m in w.all("w-0")]
    assert kinds.index(Abort) < len(kinds) - 1 - kinds[::-1].index(Run)
    w.finish("x")
    assert w.rows("c-0", Finished)


def test_fire_and_forget_outlives_its_client_and_is_forgotten_when_done() -> None:
    w = World(workers=1)
    w.submit("x", options=tuple(Options(forget=True)))
    w.leave("c-0")
    assert w.states() == {"x": "ready"}
    w.finish("x")
    assert w.states() == {} and not w.broker.tables.functions
    assert w.rows("w-0", Drop) == ["x"]


def test_fire_and_forget_may_be_asked_for_later() -> None:
    w = World(workers=1)
    w.submit("x")
    gen = w.submit("x", options=tuple(Options(forget=True)))
    w.release("x", gen)
    assert set(w.states()) == {"x"}


def test_a_client_that_leaves_releases_what_it_wanted() -> None:
    w = World(clients=2, workers=1)
    w.submit("x", "y")
    w.submit("y", client="c-1")
    w.leave("c-0")
    assert set(w.states()) == {"y"}
    w.leave("c-1")
    assert w.states() == {} and not w.broker.tables.functions


def test_a_submission_of_a_dropped_function_waits_for_its_definition() -> None:
    w = World(workers=1)
    other = function_digest(b"bytes")
    w.gen = 10
    w.send("c-0", Submit(other, False, 11, (), (("x", b"", ()),)))
    w.send("c-0", Submit(FN, False, 12, (), (("y", b"", ("x",)),)))  # keeps its place behind the first
    assert w.got("c-0", WhichFunction) == [WhichFunction(other)]
    assert w.states() == {}
    w.send("c-0", Define(other, "other", b"bytes"))
    assert w.states() == {"x": "ready", "y": "waiting"}


def test_bad_options_cancel_the_submission_with_the_reason() -> None:
    w = World()
    for options, text in (
        ((-1,), "retries=-1"),
        ((0, 1 << 40), "priority"),
        ((0, 0, "name"), "'name' is not a list"),
        ((0, 0, (), False, ((5, 1),)), "resources"),
        ((0,) * 20, "20 options"),
    ):
        w.submit("x", options=options)
        ((key, reason),) = w.cancelled("c-0")
        assert key == "x" and text in reason
    assert w.states() == {}


def test_results_of_former_attempts_change_nothing() -> None:
    w = World(workers=2)
    w.submit("x", options=tuple(Options(workers=("W-0",))))
    w.turn()
    attempt = w.task("x").attempt
    w.send("w-0", Erred((("x", attempt - 1, 1, b"", "stale"),)))
    w.send("w-1", Done((("x", attempt, 1, 1, b"stolen", "int"),)))
    assert w.rows("w-1", Drop) == ["x"]
    w.send("w-0", Done((("x", attempt - 1, 1, 1, b"stale", "int"),)))
    assert not w.rows("w-0", Drop)  # it is at work on it
    assert not w.rows("c-0", Finished)
    w.done("w-0", "x")
    w.send("w-0", Done((("x", attempt, 1, 1, b"twice", "int"),)))
    assert [row[3] for row in w.rows("c-0", Finished)] == [b"value"]
    assert not w.rows("w-0", Drop)
    assert w.broker.tables.ignored == 4


def test_what_a_role_may_not_send_is_refused_before_anything_changes() -> None:
    w = World()
    for session, message in (
        ("w-0", Submit(FN, False, 1, (), (("x", b"", ()),))),
        ("c-0", Done(())),
        ("n-0", Release(())),
        ("c-9", Release(())),
    ):
        with pytest.raises(ProtocolError, match=session):
            w.broker.handle(session, message, 0.0)
    assert w.states() == {}


def test_values_kept_at_hand_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World(workers=1, threads=100)
    keys = [f"k{n}" for n in range(20)]
    w.submit(*keys)
    w.turn()
    monkeypatch.setattr("zdist_broker.state.BROKER_CACHE", 10 * INLINE_RESULT)
    assert BROKER_CACHE > 10 * INLINE_RESULT
    w.done("w-0", *keys, value=bytes(INLINE_RESULT), nbytes=INLINE_RESULT)
    assert 0 < w.broker.tables.cached <= 10 * INLINE_RESULT
    assert all(row[3] is not None for row in w.rows("c-0", Finished))
    w.client("c-1")
    w.send("c-1", Want(1, ("k0", "k19")))
    rows = {row[0]: row for row in w.rows("c-1", Finished)}
    assert rows["k0"][3:5] == (None, ("w-0",))  # the oldest went first
    assert rows["k19"][3] is not None


def test_a_long_chain_needs_no_recursion() -> None:
    w = World(workers=1)
    check, w.broker.check = w.broker.check, lambda: None  # type: ignore[method-assign]
    gens = {"k0": w.submit("k0")}
    for n in range(1, 5000):
        gens[f"k{n}"] = w.submit(f"k{n}", deps=(f"k{n - 1}",))
    for key, gen in gens.items():
        if key != "k4999":
            w.release(key, gen)
    w.turn()
    w.send("w-0", Erred((("k0", w.task("k0").attempt, 1, b"", "no"),)))
    assert len(w.rows("c-0", Failed)) == 1
    check()
    w.send("c-0", Retry(("k4999",)))
    check()
    w.release("k4999", gens["k4999"])
    assert w.states() == {}


def test_functions_without_tasks_are_bounded_and_those_in_use_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.functions.FUNCTION_CACHE_BYTES", 100_000)
    w = World(workers=1)
    w.submit("x")
    blobs = [bytes([n]) * 10_000 for n in range(1, 31)]
    digests = [function_digest(blob) for blob in blobs]
    for digest, blob in zip(digests, blobs, strict=True):
        w.send("c-0", Define(digest, "closure", blob))
    functions = w.broker.tables.functions
    assert FN in functions and digests[-1] in functions and digests[0] not in functions
    assert sum(len(fn.blob) for fn in functions.values()) <= 110_000  # type: ignore[arg-type]
    w.send("c-0", Submit(digests[0], False, 99, (), (("y", b"", ()),)))  # asked for again
    assert w.got("c-0", WhichFunction) == [WhichFunction(digests[0])]
