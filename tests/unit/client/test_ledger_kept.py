"""Bytes that the broker counts on and values that are here: what others cancel, learn or lose takes none of them."""

from __future__ import annotations

import pytest
from ledger_rig import PLAIN, PURE, Rig, hold, scatter, submit, want

from zdist.core.entry import ERROR, FINISHED


def test_the_argument_of_what_another_client_wants_stays_though_its_specs_were_told_to_and_fro() -> None:
    rig = Rig(clients=2)
    ledger, other = rig.ledgers.values()
    data = hold(ledger, "x")
    made = submit(ledger, PLAIN, "c-0-b", "x")
    rig.settle()
    ledger.dropped.append(data)
    rig.settle()
    theirs = want(other, "c-0-b")
    rig.settle()
    ledger.dropped.append(made)
    rig.settle()
    assert theirs.work is not None and not ledger.entries
    again = want(ledger, "c-0-b")
    rig.settle()
    other.dropped.append(theirs)
    rig.settle()
    assert again.work is not None and "x" in ledger.entries  # the specs have come back
    third = want(other, "c-0-b")
    rig.settle()
    ledger.dropped.append(again)
    rig.settle()
    assert rig.holders("x") == ["c-0"] and ledger.store.get("x") is not None
    rig.kill(third.outcome[4][0])  # it is computed again from these bytes
    assert third.status == FINISHED


def test_data_that_its_client_cancels_stays_for_another_that_wants_it() -> None:
    rig = Rig(clients=2, workers=1)
    ledger, other = rig.ledgers.values()
    data = hold(ledger, "x")
    rig.settle()
    theirs = want(other, "x")
    rig.settle()
    ledger.cancel([data], False)
    rig.settle()
    assert theirs.outcome[4] == ("c-0",) and ledger.store.get("x") is not None


def test_a_value_that_is_here_stays_when_it_is_computed_again_and_fails() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    rig.values["a"] = b"42"
    entry = submit(ledger, PLAIN, "a")
    rig.settle()
    assert entry.value_here()
    rig.evict("a")
    rig.failing["a"] = "boom"
    rig.kill(rig.holders("a")[0])
    assert entry.value_here()


def test_a_value_that_is_here_stays_when_it_cannot_be_computed_again() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    data = scatter(ledger, "data-x")
    rig.settle()
    rig.values["b"] = b"42"
    made = submit(ledger, PLAIN, "b", "data-x")
    ledger.dropped.append(data)
    rig.settle()
    assert made.value_here()
    rig.evict("b")
    rig.kill(rig.holders("b")[0])
    assert made.value_here()


@pytest.mark.parametrize("key", ["p", "c-0-p"])
@pytest.mark.parametrize("succeeded", [False, True])
def test_more_is_made_of_a_value_that_only_its_client_has_any_more(key: str, succeeded: bool) -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    data = scatter(ledger, "data-x")
    rig.settle()
    rig.values[key] = b"42"
    part = submit(ledger, PLAIN, key, "data-x")
    rig.settle()
    ledger.dropped.append(data)
    rig.settle()
    if succeeded:
        rig.succeed()
        rig.wait(20.0)
    rig.evict(key)
    rig.kill(rig.holders(key)[0])
    assert part.value_here() and not part.gen  # the broker knows nothing of it
    made = submit(ledger, PLAIN, "q", key)
    rig.wait(60.0)
    assert made.status == FINISHED


def test_what_another_client_made_stays_when_one_learns_that_it_was_made_of_what_failed_here() -> None:
    rig = Rig(clients=2)
    ledger, other = rig.ledgers.values()
    rig.failing["p"] = "boom"
    mine = submit(ledger, PURE, "p")
    rig.settle()
    assert mine.status == ERROR
    rig.succeed()
    rig.wait(15.0)
    rig.failing.clear()
    part = submit(other, PURE, "p")
    made = submit(other, PURE, "q", "p")
    rig.settle()
    got = want(ledger, "q")
    rig.settle()
    assert made.status == got.status == FINISHED
    other.dropped.extend([part, made])
    rig.settle()
    assert got.status == FINISHED
