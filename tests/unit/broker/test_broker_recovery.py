"""A broker that has taken another's place: what workers hold counts for those who claim it, and for nobody else."""

from __future__ import annotations

import pytest
from broker_world import SLOW, World

from zdist.limits import COPIES_KEPT, RECOVERY, SOUGHT
from zdist.protocol.actors import ACTOR
from zdist.protocol.messages import (
    ANY,
    ANY_SPEC,
    SPEC,
    Adopt,
    Cancelled,
    Claim,
    Done,
    Drop,
    Finished,
    Held,
    Hold,
    Options,
    Rejected,
    Release,
    Returned,
    Run,
    Unowned,
    Want,
)
from zdist_broker.state import ASSIGNED, MEMORY, READY, RELEASED


@pytest.fixture
def w() -> World:
    """Two workers and two clients, who knew an earlier broker."""
    w = World(workers=2, clients=2)
    assert w.broker.succeeds(w.now) == RECOVERY
    return w


def held(w: World, worker: str, key: str, attempt: int = 7) -> None:
    w.send(worker, Held(((key, attempt, 5, "int"),)))


def claim(w: World, *rows: tuple[str, int], client: str = "c-0") -> None:
    w.send(client, Claim(rows))


def tick(w: World, seconds: float) -> None:
    w.now += seconds
    w.broker.tick(w.now)
    w.turn()


def running(w: World) -> list[str]:
    w.turn()
    return sorted(key for session in ("w-0", "w-1") for key in w.runs(session))


def test_the_time_for_workers_to_come_back_runs_from_the_first_who_was_here_before() -> None:
    w = World()
    assert w.broker.succeeds(5.0) == RECOVERY
    assert w.broker.succeeds(5.5) == RECOVERY - 0.5
    assert w.broker.succeeds(99.0) == 0.0


def test_a_result_that_is_claimed_is_not_computed_again(w: World) -> None:
    held(w, "w-0", "a")
    held(w, "w-1", "a")
    claim(w, ("a", 7))
    w.submit("a")
    assert running(w) == []
    ((key, attempt, nbytes, value, holders, kind),) = w.rows("c-0", Finished)
    assert (key, attempt, nbytes, value, kind) == ("a", 7, 5, None, "int") and set(holders) == {"w-0", "w-1"}
    w.submit("b", deps=("a",))
    assert running(w) == ["b"]


def test_another_attempt_is_dropped_and_the_task_runs(w: World) -> None:
    held(w, "w-0", "a", 6)
    held(w, "w-1", "b", 7)
    claim(w, ("a", 7))
    w.submit("a", "b")  # b is not claimed: what is held may be of another task of that name
    assert running(w) == ["a", "b"]
    assert w.rows("w-0", Drop) == ["a"] and w.rows("w-1", Drop) == ["b"]
    assert w.rows("c-0", Finished) == []


def test_a_claim_is_good_for_the_next_submission_only(w: World) -> None:
    held(w, "w-0", "b")
    claim(w, ("b", 7))
    w.submit("a")
    w.submit("b")
    assert running(w) == ["a", "b"]


def test_what_nobody_claims_is_dropped_in_time(w: World) -> None:
    held(w, "w-0", "a")
    assert w.broker.deadline() == COPIES_KEPT
    tick(w, COPIES_KEPT - 0.1)
    assert w.rows("w-0", Drop) == []
    tick(w, 0.1)
    assert w.rows("w-0", Drop) == ["a"]
    held(w, "w-1", "b")
    assert w.rows("w-1", Drop) == ["b"] and w.broker.deadline() is None


def test_a_worker_that_dies_takes_its_copies_with_it(w: World) -> None:
    held(w, "w-0", "a")
    w.die("w-0")
    claim(w, ("a", 7))
    w.submit("a")
    assert running(w) == ["a"]


def test_what_others_were_made_of_is_not_started_until_it_is_needed(w: World) -> None:
    held(w, "w-0", "b")
    claim(w, ("a", SPEC), ("b", 7))
    gen = w.submit("a")
    claim(w, ("b", 7))
    w.submit("b", deps=("a",))
    assert running(w) == [] and [row[0] for row in w.rows("c-0", Finished)] == ["b"]
    w.send("c-0", Release((("a", gen),)))
    assert running(w) == [] and w.task("a").state == RELEASED
    w.die("w-0")  # and with it b
    assert running(w) == ["a"]


def test_whichever_attempt_finished_a_key_that_is_unique_counts(w: World) -> None:
    """The broker died before the client heard of it."""
    held(w, "w-0", "a", 6)
    held(w, "w-1", "a", 7)
    held(w, "w-1", "b", 5)
    claim(w, ("a", ANY), ("b", ANY_SPEC), ("c", ANY), ("d", ANY_SPEC))
    w.submit("a", "b", "c", "d")
    assert running(w) == ["c"]
    assert [(row[0], row[1]) for row in w.rows("c-0", Finished)] == [("a", 7), ("b", 5)]
    assert w.rows("w-0", Drop) == ["a"]


def unowned(w: World, worker: str, *rows: tuple[str, int]) -> None:
    w.send(worker, Unowned(rows))


def test_what_runs_since_before_is_adopted(w: World) -> None:
    unowned(w, "w-0", ("a", 6), ("b", 6), ("c", 6))
    claim(w, ("a", ANY), ("b", 5))
    w.submit("a", "b", "c")  # c is not claimed, and of b another attempt
    assert running(w) == ["b"] and w.task("c").state == READY  # there is no thread for it
    assert w.rows("w-0", Adopt) == [("a", 6)] and w.task("a").state == ASSIGNED
    w.submit("d", deps=("a",), options=tuple(Options()._replace(priority=9)))
    w.send("w-0", Done((("a", 6, 9, 5, None, "int"),)))
    assert ("a", 6) in [(row[0], row[1]) for row in w.rows("c-0", Finished)]
    assert "d" in running(w)


def test_what_is_adopted_may_wait_for_inputs_that_it_has_had(w: World) -> None:
    unowned(w, "w-0", ("a", 6))
    claim(w, ("input", ANY), ("a", ANY))
    w.submit("input")
    claim(w, ("a", ANY))
    w.submit("a", deps=("input",))
    assert running(w) == ["input"] and w.rows("w-0", Adopt) == [("a", 6)]
    assert w.task("a").state == ASSIGNED and w.task("a").waiting == 1
    w.send("w-0", Done((("a", 6, 9, 5, None, "int"),)))
    assert [row[0] for row in w.rows("c-0", Finished)] == ["a"]
    assert w.task("input").state == ASSIGNED  # its client wants it still


def test_it_may_have_ended_before_the_worker_heard_of_it(w: World) -> None:
    unowned(w, "w-0", ("a", 6), ("b", 6))
    claim(w, ("a", ANY), ("b", ANY))
    w.submit("a", "b")
    assert running(w) == []
    held(w, "w-0", "a", 6)
    assert [row[0] for row in w.rows("c-0", Finished)] == ["a"]
    w.send("w-0", Returned((("b", 6),)))
    assert running(w) == ["b"]


def test_what_ended_before_anybody_asked_is_not_adopted(w: World) -> None:
    unowned(w, "w-0", ("a", 6))
    held(w, "w-0", "a", 6)
    claim(w, ("a", ANY))
    w.submit("a")
    assert running(w) == [] and w.rows("w-0", Adopt) == []
    assert [row[0] for row in w.rows("c-0", Finished)] == ["a"]


def test_a_worker_that_dies_ends_what_it_ran_for_an_earlier_broker(w: World) -> None:
    unowned(w, "w-0", ("a", 6), ("b", 6))
    claim(w, ("a", ANY))
    w.submit("a")
    w.die("w-0")
    claim(w, ("b", ANY))
    w.submit("b")
    assert running(w) == ["a"] and w.task("b").state == READY  # one is left, which has one thread


def test_nobody_adopts_what_is_known_or_comes_too_late_or_has_no_name(w: World) -> None:
    w.submit("a")
    w.turn()
    unowned(w, "w-1", ("a", 6), ("", 1), ("b", -1), ("k" * 100_000, 1))
    assert w.broker.recovery.runs == {}
    unowned(w, "w-1", ("c", 6))
    tick(w, COPIES_KEPT)
    assert w.broker.recovery.runs == {} and w.broker.deadline() is None
    unowned(w, "w-1", ("c", 6))
    assert w.broker.recovery.runs == {}


def test_what_runs_of_a_spec_goes_with_its_worker(w: World) -> None:
    unowned(w, "w-0", ("a", 5))
    unowned(w, "w-1", ("b", 6))
    claim(w, ("a", ANY_SPEC), ("b", ANY_SPEC))
    w.submit("a", "b")
    assert len(w.broker.recovery.going) == 2
    w.die("w-1")
    assert [task.key for task in w.broker.recovery.going] == ["a"]


def test_a_spec_that_somebody_wants_after_all_is_computed(w: World) -> None:
    claim(w, ("a", SPEC))
    w.submit("a")
    assert running(w) == []
    w.send("c-1", Want(1, ("a",)))
    assert running(w) == ["a"]


def test_scattered_data_is_still_there(w: World) -> None:
    held(w, "w-0", "x", 0)
    claim(w, ("x", 0), ("y", 0))
    w.send("c-0", Want(1, ("x", "y")))
    assert [row[0] for row in w.rows("c-0", Finished)] == ["x"]
    tick(w, SOUGHT)  # until then a worker may bring it
    assert [row[0] for row in w.rows("c-0", Cancelled)] == ["y"]
    w.submit("a", deps=("x",))
    assert running(w) == ["a"]


def test_data_that_a_client_held_for_others_is_still_there(w: World) -> None:
    w.send("c-0", Held((("x", 0, 5, "bytes"), ("y", 0, 5, "bytes"))))
    claim(w, ("x", 0), client="c-1")
    w.send("c-1", Want(1, ("x",)))
    assert [row[0] for row in w.rows("c-1", Finished)] == ["x"]
    tick(w, COPIES_KEPT)
    assert w.rows("c-0", Drop) == ["y"]
    w.send("c-0", Held((("z", 0, 5, "bytes"),)))
    assert w.rows("c-0", Drop) == ["z"]
    w.leave("c-0")
    assert [row[0] for row in w.rows("c-1", Cancelled)] == ["x"]


def test_a_client_that_leaves_takes_along_what_it_held_for_others(w: World) -> None:
    w.send("c-0", Held((("x", 0, 5, "bytes"),)))
    w.leave("c-0")
    claim(w, ("x", 0), client="c-1")
    w.send("c-1", Want(1, ("x",)))
    tick(w, SOUGHT)
    assert [row[0] for row in w.rows("c-1", Cancelled)] == ["x"]


def test_a_result_outlives_the_data_that_it_was_made_of(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7))
    gen = w.submit("a", deps=("gone",))
    assert [row[0] for row in w.rows("c-0", Finished)] == ["a"]
    w.send("c-0", Release((("a", gen),)))
    assert not w.broker.tables.tasks
    assert w.rows("w-0", Drop) == ["a"]


def test_what_it_was_made_of_may_be_submitted_later_and_by_another_client(w: World) -> None:
    held(w, "w-0", "a")
    held(w, "w-1", "input", 6)
    claim(w, ("a", 7))
    w.submit("a", deps=("input",))
    claim(w, ("input", 6), client="c-1")
    w.submit("input", client="c-1")
    assert w.task("input").state == MEMORY and w.task("a").deps == (w.task("input"),)
    assert running(w) == []
    w.die("w-0")
    assert running(w) == ["a"]


def test_an_input_that_nobody_holds_is_computed_when_it_is_submitted_later(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7))
    w.submit("a", deps=("input",))
    w.submit("input", client="c-1")
    assert running(w) == ["input"]


def test_an_input_that_is_submitted_later_has_a_place_of_its_own(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7))
    w.submit("a", deps=("input",))
    w.submit("before", "input", "behind", client="c-1")
    places = [w.task(key).priority for key in ("before", "input", "behind")]
    assert places == sorted(set(places))


def test_both_clients_of_a_result_may_claim_it(w: World) -> None:
    held(w, "w-0", "a")
    for client in ("c-0", "c-1"):
        claim(w, ("a", 7), client=client)
        w.submit("a", client=client, named=True)
        assert [row[0] for row in w.rows(client, Finished)] == ["a"]
    claim(w, ("b", SPEC))
    w.submit("b")
    held(w, "w-1", "b")
    assert w.rows("w-1", Drop) == ["b"]  # too late: it is known by now
    claim(w, ("b", SPEC), client="c-1")
    w.submit("b", client="c-1", named=True)
    assert running(w) == []


def test_who_has_a_result_from_others_may_claim_it_before_its_maker_comes(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7), client="c-1")
    w.send("c-1", Want(1, ("a",)))
    assert [row[0] for row in w.rows("c-1", Finished)] == ["a"]
    claim(w, ("a", 7))
    w.submit("a", deps=("input",))
    assert [row[0] for row in w.rows("c-0", Finished)] == ["a"] and not w.rows("c-0", Rejected)
    w.submit("input")
    assert running(w) == ["input"]
    w.finish("input")
    w.die("w-0")  # now it is known how it was made
    assert running(w) in (["a"], ["a", "input"], ["input"])
    assert not w.rows("c-1", Cancelled) and not w.rows("c-0", Cancelled)


def test_a_value_that_its_client_has_is_known_again(w: World) -> None:
    """The worker that had it is gone as well, and so is what it was made of."""
    w.send("c-0", Claim((), (("a", 7, 5, b"value", "int"),)))
    w.submit("a", deps=("gone",))
    assert w.rows("c-0", Finished) == [("a", 7, 5, b"value", (), "int")]
    w.submit("b", deps=("a",))
    w.turn()
    (run,) = [row for session in ("w-0", "w-1") for row in w.rows(session, Run)]
    assert run[0] == "b" and run[5] == (("a", 5, (), b"value"),)
    assert not w.rows("c-0", Cancelled)


def test_a_value_that_a_client_has_from_others_is_known_again(w: World) -> None:
    w.send("c-1", Claim((), (("a", 7, 5, b"value", "int"),)))
    w.send("c-1", Want(1, ("a",)))
    w.submit("b", deps=("a",), client="c-1")
    assert running(w) == ["b"]
    held(w, "w-0", "a")  # that copy comes late
    w.send("c-0", Claim((), (("a", 7, 5, b"value", "int"),)))
    w.submit("a", deps=("gone",))
    assert [row[0] for row in w.rows("c-0", Finished)] == ["a"]
    w.die("w-0")
    assert w.task("a").state == MEMORY and w.task("a").value == b"value"


@pytest.mark.parametrize(
    "row",
    [
        ("", 7, 5, b"v", "int"), ("x" * 5000, 7, 5, b"v", "int"), ("a", -2, 5, b"v", "int"),
        ("a", 7, -5, b"v", "int"), ("a", 7, 5, b"v", "int" * 5000), ("a", 7, 5, b"v" * 20_000, "bytes"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_not_taken(w: World, row: tuple[str, int, int, bytes, str]) -> None:
    w.send("c-0", Claim((), (row,)))
    w.send("c-0", Want(1, (row[0],)))
    assert not w.broker.tables.tasks and not w.rows("c-0", Finished)


def test_a_handle_that_a_client_has_is_no_actor(w: World) -> None:
    w.send("c-0", Claim((), (("a", 7, 5, b"handle", ACTOR),)))
    w.send("c-0", Want(1, ("a",)))
    tick(w, SOUGHT)
    assert [row[0] for row in w.rows("c-0", Cancelled)] == ["a"]


def test_a_result_that_was_claimed_cannot_be_made_of_itself(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7), client="c-1")
    w.send("c-1", Want(1, ("a",)))
    claim(w, ("a", 7))
    w.submit("a", deps=("a",))
    assert [row[0] for row in w.rows("c-0", Rejected)] == ["a"]


def test_a_key_that_was_claimed_is_not_another_task(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7), client="c-1")
    w.send("c-1", Want(1, ("a",)))
    w.submit("a")  # by whom it was not said to be from before
    assert [row[0] for row in w.rows("c-0", Rejected)] == ["a"]


def lost(w: World) -> None:
    """Of a result that another client has claimed only the name is left, for what was made of it."""
    held(w, "w-0", "a")
    claim(w, ("a", 7), client="c-1")
    w.send("c-1", Want(1, ("a",)))
    w.send("w-1", Held((("b", 8, 5, "int"),)))
    claim(w, ("b", 8), client="c-1")
    w.submit("b", deps=("a",), client="c-1")
    w.die("w-0")
    assert w.states() == {"a": "released", "b": "memory"} and w.rows("c-1", Cancelled)


def test_a_lost_result_is_there_again_when_its_maker_brings_it(w: World) -> None:
    """It comes later than the workers that had it are given up (seed 1605913)."""
    lost(w)
    w.send("c-0", Claim((), (("a", 7, 5, b"value", "int"),)))
    w.submit("a")
    assert [row[0] for row in w.rows("c-0", Finished)] == ["a"] and not w.rows("c-0", Rejected)
    assert running(w) == []


def test_a_lost_result_is_computed_again_when_its_maker_comes(w: World) -> None:
    lost(w)
    claim(w, ("a", 7))
    w.submit("a")
    assert running(w) == ["a"] and not w.rows("c-0", Rejected)


def test_a_lost_result_that_says_what_it_is_is_computed_again_for_anybody(w: World) -> None:
    lost(w)
    w.submit("a")
    assert [row[0] for row in w.rows("c-0", Rejected)] == ["a"]  # it may be another
    w.submit("a", named=True)
    assert running(w) == ["a"] and not w.rows("c-0", Rejected)


def test_data_that_a_client_holds_now_takes_the_place_of_older_copies(w: World) -> None:
    held(w, "w-0", "x", 0)
    w.send("c-0", Hold(1, (("x", 0, 9, "bytes"),)))
    assert w.rows("w-0", Drop) == ["x"]
    assert w.task("x").nbytes == 9


def test_claims_count_also_from_those_who_come_late(w: World) -> None:
    w.send("c-1", Claim((), (("made", 7, 5, b"value", "int"),)))
    w.send("c-1", Want(1, ("made",)))
    tick(w, COPIES_KEPT)
    claim(w, ("made", ANY), ("spec", SPEC))
    w.submit("made", "spec")
    assert running(w) == [] and [row[:2] for row in w.rows("c-0", Finished)] == [("made", 7)]
    w.submit("b", deps=("spec",))
    assert running(w) == ["spec"]


def test_claims_do_not_count_if_there_was_no_earlier_broker() -> None:
    claim(first := World(), ("a", SPEC))
    first.submit("a")
    assert running(first) == ["a"]


def test_a_task_cannot_be_made_of_itself(w: World) -> None:
    claim(w, ("a", SPEC), ("b", SPEC), ("c", SPEC))
    w.submit("a", deps=("a",))
    claim(w, ("b", SPEC))
    gen = w.submit("b", deps=("c",))
    w.submit("c", deps=("b",), client="c-1")
    claim(w, ("c", SPEC))
    w.submit("c", deps=("b",))
    assert w.rows("c-0", Rejected) == [("a", "it depends on itself"), ("c", "it depends on itself")]
    assert w.rows("c-1", Rejected) == [("c", "it depends on itself")]
    w.send("c-0", Release((("b", gen),)))
    assert not w.broker.tables.tasks


def test_the_name_of_what_it_was_made_of_must_be_a_key(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7))
    w.submit("a", deps=("fit", "k" * 100_000))
    assert [row[0] for row in w.rows("c-0", Cancelled)] == ["a"] and not w.broker.tables.tasks


def test_a_submission_that_is_not_taken_takes_its_claims_with_it(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7))
    w.submit("a", options=("no", "options"))
    w.submit("a", fn=SLOW)
    assert running(w) == ["a"] and w.rows("c-0", Finished) == []


def test_what_is_to_be_done_in_any_case_is_done(w: World) -> None:
    held(w, "w-0", "a")
    claim(w, ("a", 7))
    w.submit("a", deps=("input",))
    gen = w.submit("input", client="c-1", options=tuple(Options()._replace(forget=True)))
    w.send("c-1", Release((("input", gen),)))
    assert running(w) == ["input"]


def test_data_of_which_two_are_found_is_neither(w: World) -> None:
    w.send("w-0", Held((("x", 0, 5, "str"),)))
    w.send("w-1", Held((("x", 0, 9, "str"),)))
    claim(w, ("x", 0))
    w.send("c-0", Want(1, ("x",)))
    tick(w, SOUGHT)
    assert [row[0] for row in w.rows("c-0", Cancelled)] == ["x"]


def test_copies_of_copies_do_not_tell_their_type(w: World) -> None:
    w.send("w-0", Held((("x", 0, 5, "str"), ("r", 7, 278, "str"))))
    w.send("w-1", Held((("x", 0, 5, ""), ("r", 7, 139, ""))))
    claim(w, ("x", 0), ("r", 7))
    w.send("c-0", Want(1, ("x", "r")))
    assert [row[0] for row in w.rows("c-0", Finished)] == ["x", "r"]
    assert w.task("x").type == w.task("r").type == "str"
