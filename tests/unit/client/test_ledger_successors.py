"""What clients make of a broker that has taken another's place: what had been finished stays, what failed ended."""

from __future__ import annotations

import pytest
from ledger_rig import OTHER, PLAIN, PURE, Rig, hold, scatter, submit, want

from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING, UNKNOWN, Entry
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL
from zdist.protocol import messages as m

# --- what others were made of ----------------------------------------------------------------------------


def made_of_something_gone() -> tuple[Rig, Ledger, Entry]:
    """One key was made of another whose future is gone."""
    rig = Rig(clients=2)
    ledger = rig.ledgers["c-0"]
    part = submit(ledger, PURE, "c-0-a")
    made = submit(ledger, PURE, "c-0-b", "c-0-a")
    ledger.dropped.append(part)
    rig.settle()
    assert made.status == FINISHED
    return rig, ledger, made


def test_a_call_that_is_made_again_while_the_broker_is_asked_what_it_has_taken_in_is_computed() -> None:
    rig, ledger, made = made_of_something_gone()
    rig.succeed()
    rig.now += 1.5
    rig.up()
    assert ledger.leaving  # the broker has the part as what another is made of, which need not be started
    again = submit(ledger, PURE, "c-0-a")
    rig.wait(60.0)
    assert again.status == made.status == FINISHED


def test_a_future_that_comes_back_while_something_is_said_again_is_computed() -> None:
    rig, ledger, made = made_of_something_gone()
    want(ledger, "nobody-has-it-yet")
    submit(ledger, PURE, "c-0-d", "nobody-has-it-yet", "c-0-a")
    rig.settle()
    rig.succeed()
    rig.wait(3.0)
    assert made.status == FINISHED and ledger.parting  # it is not let go of yet
    again = want(ledger, "c-0-a")
    rig.wait(120.0, 0.5)
    assert again.status == FINISHED


# --- what is finished --------------------------------------------------------------------------------------


def test_a_value_that_is_here_stays_though_the_data_that_it_was_made_of_is_lost() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    data = scatter(ledger, "data-x")
    rig.settle()
    assert data.status == FINISHED and data.outcome[4] == ("w-0",)
    rig.values["b"] = b"42"
    made = submit(ledger, PLAIN, "b", "data-x")
    rig.settle()
    assert made.value_here()
    rig.kill("w-0")
    assert data.status == CANCELLED and made.status == FINISHED
    rig.succeed()
    rig.wait(5.0)
    assert made.status == FINISHED


def test_a_result_that_workers_have_stays_though_the_data_that_it_was_made_of_is_lost() -> None:
    rig = Rig(workers=3)
    ledger = rig.ledgers["c-0"]
    data = scatter(ledger, "data-x")
    rig.settle()
    made = submit(ledger, PURE, "b", "data-x")
    rig.settle()
    ledger.ask("replicate", (("b",), 3, None))
    rig.settle()
    rig.kill("w-0")
    assert data.status == CANCELLED and made.status == FINISHED
    rig.succeed()
    rig.wait(5.0)
    assert made.status == FINISHED


def test_a_value_that_is_here_stays_though_what_it_was_made_of_failed_later() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    rig.values["b"] = b"42"
    part = submit(ledger, PLAIN, "a")
    made = submit(ledger, PLAIN, "b", "a")
    rig.settle()
    assert part.status == FINISHED and made.value_here()
    rig.failing["a"] = "the file is gone"
    rig.kill(part.outcome[4][0])  # the part is computed again
    assert part.status == ERROR and made.status == FINISHED
    rig.succeed()
    rig.wait(5.0)
    assert made.status == FINISHED


def test_a_value_that_is_here_stays_though_what_it_was_made_of_was_cancelled() -> None:
    rig = Rig(clients=2)
    ledger, other = rig.ledgers.values()
    rig.values["b"] = b"42"
    part = submit(ledger, PURE, "a")
    made = submit(ledger, PURE, "b", "a")
    rig.settle()
    want(other, "a")
    rig.settle()
    ledger.cancel([part], False)
    rig.settle()
    assert part.status == CANCELLED and made.status == FINISHED
    rig.succeed()
    rig.wait(5.0)
    assert made.status == FINISHED


def test_a_value_that_is_here_stays_though_a_newcomer_uses_its_key_for_another_call_at_the_successor() -> None:
    rig = Rig(workers=1)
    ledger = rig.ledgers["c-0"]
    rig.values["k"] = b"42"
    entry = submit(ledger, PLAIN, "k")
    rig.settle()
    assert entry.value_here()
    rig.succeed()
    submit(rig.newcomer("c-9"), OTHER, "k")  # it waits for no worker, so it comes first
    rig.settle()
    rig.wait(5.0)
    assert entry.status == FINISHED


def test_a_result_that_cannot_be_made_again_stays_with_workers_until_what_is_made_of_it_is_finished() -> None:
    """Its key was chosen by hand, and its future is gone as is that of the data that it was made of."""
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    data = scatter(ledger, "data-x")
    rig.settle()
    rig.slow.add("end")
    part = submit(ledger, PLAIN, "p", "data-x")
    end = submit(ledger, PLAIN, "end", "p")
    rig.settle()
    assert part.status == FINISHED and end.status == PENDING
    ledger.dropped.extend([data, part])
    rig.settle()
    rig.slow.clear()
    rig.succeed()
    rig.wait(60.0)
    assert end.status == FINISHED


# --- what failed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("succeeded", [False, True])
def test_a_retry_computes_what_failed_before_also_at_a_successor(succeeded: bool) -> None:
    rig = Rig(workers=1)
    ledger = rig.ledgers["c-0"]
    rig.failing["a"] = "boom"
    part = submit(ledger, PLAIN, "a")
    made = submit(ledger, PLAIN, "b", "a")
    rig.settle()
    assert part.status == made.status == ERROR
    if succeeded:
        rig.succeed()
        rig.wait(15.0)
    rig.failing.clear()
    ledger.retry([made])
    rig.wait(5.0)
    assert made.status == FINISHED


def test_a_retry_that_was_lost_with_the_broker_is_made_at_its_successor() -> None:
    rig = Rig(workers=1)
    ledger = rig.ledgers["c-0"]
    rig.failing["a"] = "boom"
    submit(ledger, PLAIN, "a")
    made = submit(ledger, PLAIN, "b", "a")
    rig.settle()
    rig.failing.clear()
    ledger.retry([made])
    rig.up()
    rig.succeed()
    rig.wait(15.0)
    assert made.status == FINISHED


# --- bytes that are held here for others -------------------------------------------------------------------


def held_for_another() -> tuple[Rig, Ledger, Entry]:
    """A client has let go of its data, which another wants."""
    rig = Rig(clients=2, workers=1)
    ledger, other = rig.ledgers.values()
    data = hold(ledger, "x")
    rig.settle()
    theirs = want(other, "x")
    rig.settle()
    ledger.dropped.append(data)
    rig.settle()
    assert theirs.outcome[4] == ("c-0",) and ledger.store.get("x") is not None
    return rig, ledger, theirs


@pytest.mark.parametrize("late", [0.5, 2.0])
def test_what_only_another_client_wants_stays_however_late_its_holder_comes(late: float) -> None:
    rig, ledger, theirs = held_for_another()
    del rig.ledgers["c-0"]
    rig.succeed()
    rig.wait(late)
    rig.ledgers["c-0"] = ledger
    rig.come("c-0")
    rig.wait(60.0)
    assert theirs.status == FINISHED and ledger.store.get("x") is not None


def test_what_only_another_client_wants_stays_though_its_holder_has_it_again_while_workers_are_waited_for() -> None:
    rig, ledger, theirs = held_for_another()
    rig.succeed()
    mine = want(ledger, "x")
    rig.settle()
    ledger.dropped.append(mine)
    rig.wait(60.0)
    assert theirs.status == FINISHED and ledger.store.get("x") is not None


def test_bytes_that_come_to_hand_while_their_key_is_being_asked_for_are_told_of() -> None:
    rig = Rig(clients=2)
    ledger, other = rig.ledgers.values()
    data = hold(other, "data-x")
    made = submit(other, PURE, "b", "data-x")
    rig.settle()
    got = want(ledger, "b")
    rig.settle()
    other.dropped.extend([data, made])
    rig.settle()
    assert got.work is not None and "data-x" in ledger.entries  # it has been told how this is made
    del rig.ledgers["c-1"]
    rig.succeed()
    rig.wait(3.0)
    assert got.status == FINISHED
    mine = hold(ledger, "data-x")  # the same array is an argument
    task = submit(ledger, PLAIN, "t", "data-x")
    ledger.dropped.append(mine)
    rig.wait(60.0)
    assert task.status == FINISHED


def test_data_that_is_placed_while_a_successor_waits_for_workers_is_not_lost() -> None:
    """The successor has not heard of it yet; that it says so must not end what is claimed then."""
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    entry = scatter(ledger, "x")
    rig.settle()
    rig.succeed()
    ledger.place([entry], (), 2)
    rig.up()
    rig.serve()
    rig.now += 2.0
    rig.up()
    rig.wait(15.0)
    assert entry.status == FINISHED and len(rig.holders("x")) == 2


@pytest.mark.parametrize("away", [2.0, 9.0, 10.0, 11.0])
def test_a_result_whose_worker_comes_late_is_still_its_makers_though_another_client_has_it_first(away: float) -> None:
    """It lacks data that is away as well, and claims what had been finished for as long as it tries (seed 3508873)."""
    rig = Rig(clients=2, workers=1)
    ledger, other = rig.ledgers.values()
    data = scatter(ledger, "data-x")
    rig.settle()
    made = submit(ledger, PLAIN, "b", "data-x")
    rig.settle()
    his = want(other, "b")
    rig.settle()
    store = rig.stores.pop("w-0")
    rig.succeed()
    rig.wait(away)
    rig.stores["w-0"] = store
    rig.come_worker("w-0")
    rig.wait(30.0)
    assert [entry.status for entry in (data, made, his)] == [FINISHED] * 3


def test_that_a_copy_cannot_be_made_of_what_is_unknown_ends_no_want() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    entry = scatter(ledger, "x")
    rig.settle()
    entry.status, entry.outcome = PENDING, None
    ledger.handle(CONTROL, m.Cancelled((("x", UNKNOWN, 0),)), rig.now)
    rig.wait(15.0)
    assert entry.status == FINISHED and rig.holders("x")
