"""Other data of a name that was used before: of equal size and type, so only its content tells it apart."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.limits import RECOVERY
from zdist.protocol.fields import content_attempt
from zdist.protocol.messages import ANY, Cancelled, Claim, Drop, Finished, Held, Hold, Place, Rejected, Want
from zdist_broker.recovery import LATE

OLD, NEW = content_attempt("old"), content_attempt("new")
RESULT = 1 << 41


@pytest.fixture
def w() -> World:
    """Two workers and two clients."""
    return World(workers=2, clients=2)


@pytest.fixture
def successor() -> World:
    """A broker in the place of another, and a worker that comes back to it with the old data."""
    w = World(workers=2, clients=2)
    w.broker.succeeds(w.now)
    held(w, "w-0", OLD)
    return w


def hold(w: World, client: str, attempt: int, nbytes: int = 5) -> int:
    w.gen += 1
    w.send(client, Hold(w.gen, (("x", attempt, nbytes, "bytes"),)))
    return w.gen


def held(w: World, worker: str, attempt: int, nbytes: int = 5) -> None:
    w.send(worker, Held((("x", attempt, nbytes, "bytes"),)))


def want(w: World, client: str, attempt: int | None) -> None:
    if attempt is not None:
        w.send(client, Claim((("x", attempt),)))
    w.gen += 1
    w.send(client, Want(w.gen, ("x",)))
    w.turn()


def tick(w: World, seconds: float) -> None:
    w.now += seconds
    w.broker.tick(w.now)
    w.turn()
    w.broker.check()


def holders(w: World) -> list[str]:
    return [holder.session for holder in w.task("x").holders]


def test_who_scatters_other_data_under_a_name_in_use_is_told_so(w: World) -> None:
    hold(w, "c-0", OLD)
    hold(w, "c-1", NEW)
    assert [key for key, _ in w.rows("c-1", Rejected)] == ["x"]
    hold(w, "c-1", OLD)
    assert not w.rows("c-1", Rejected)
    assert holders(w) == ["c-0", "c-1"]


def test_what_others_were_made_of_is_not_replaced_by_other_data(w: World) -> None:
    """It would be computed again from that, if it were lost."""
    hold(w, "c-1", OLD)
    w.submit("k", deps=("x",))
    w.finish("k")
    w.leave("c-1")
    assert w.states() == {"x": "released", "k": "memory"}
    hold(w, "c-0", NEW)
    assert [key for key, _ in w.rows("c-0", Rejected)] == ["x"]
    hold(w, "c-0", OLD, nbytes=6)  # the same, pickled anew
    assert not w.rows("c-0", Rejected)
    assert holders(w) == ["c-0"]


def test_a_number_that_stands_for_a_start_is_not_taken_for_content(w: World) -> None:
    hold(w, "c-0", 5)
    assert w.task("x").attempt == 0


@pytest.mark.parametrize("ordered", [False, True])
def test_a_worker_that_was_away_comes_back_with_the_old_data_in_vain(w: World, ordered: bool) -> None:
    gen = hold(w, "c-0", OLD)
    held(w, "w-0", OLD)
    w.leave("w-0", "silent")
    w.release("x", gen)
    w.turn()
    hold(w, "c-0", NEW)
    if ordered:
        w.send("c-0", Place(("x",), (), 0))
        held(w, "w-1", NEW)
    w.worker("w-0")
    held(w, "w-0", OLD)
    assert w.rows("w-0", Drop) == ["x"]
    assert holders(w) == ["w-1" if ordered else "c-0"]
    w.broker.check()


@pytest.mark.parametrize("also", [False, True])
def test_a_successor_gives_nobody_the_old_data_for_the_new(successor: World, also: bool) -> None:
    if also:
        held(successor, "w-1", NEW)
    tick(successor, RECOVERY)
    want(successor, "c-0", NEW)
    tick(successor, LATE)
    tick(successor, 30.0)
    if also:
        assert [row[1] for row in successor.rows("c-0", Finished)] == [NEW]
        assert holders(successor) == ["w-1"]
    else:
        assert not successor.rows("c-0", Finished)
        assert [row[0] for row in successor.rows("c-0", Cancelled)] == ["x"]


def test_of_two_contents_nobody_gets_either_who_does_not_know_which_is_meant(successor: World) -> None:
    held(successor, "w-1", NEW)
    tick(successor, LATE)
    want(successor, "c-0", None)
    tick(successor, 30.0)
    assert not successor.rows("c-0", Finished)
    assert [row[0] for row in successor.rows("c-0", Cancelled)] == ["x"]


def test_who_does_not_know_which_is_meant_gets_what_all_have(successor: World) -> None:
    held(successor, "w-1", OLD)
    tick(successor, LATE)
    want(successor, "c-0", None)
    tick(successor, 0.1)
    assert [row[1] for row in successor.rows("c-0", Finished)] == [OLD]
    assert holders(successor) == ["w-0", "w-1"]


# --- a name that was a task's as well ---------------------------------------------------------------------


@pytest.mark.parametrize("made", [False, True])
def test_a_task_of_which_any_result_counts_is_not_finished_with_data_of_its_name(successor: World, made: bool) -> None:
    if made:
        held(successor, "w-1", RESULT, 7)
    tick(successor, RECOVERY)
    successor.send("c-0", Claim((("x", ANY),)))
    successor.submit("x")
    successor.turn()
    assert holders(successor) == ["w-1"] * made
    assert successor.states() == {"x": "memory" if made else "assigned"}
    successor.broker.check()


def test_nobody_gets_data_or_a_result_of_a_name_who_does_not_know_which_is_meant(successor: World) -> None:
    held(successor, "w-1", RESULT, 7)
    tick(successor, LATE)
    want(successor, "c-0", None)
    tick(successor, 30.0)
    assert not successor.rows("c-0", Finished)
    assert [row[0] for row in successor.rows("c-0", Cancelled)] == ["x"]
