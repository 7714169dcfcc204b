"""A key that is let go of and used again: news of what it stood for before, which is still on its way, ends nothing."""

from __future__ import annotations

import pytest
from ledger_rig import OTHER, PLAIN, PURE, Rig, scatter, submit, want

from zdist.core.entry import CANCELLED, FINISHED, PENDING
from zdist.core.store import Pieces
from zdist.protocol import messages as m
from zdist.protocol.fields import content_attempt


def test_the_end_of_a_computation_made_anew_is_not_taken_for_that_of_another_call() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    entry = submit(ledger, PLAIN, "k")
    rig.settle()
    rig.slow.add("k")
    rig.kill(entry.outcome[4][0])
    assert entry.status == PENDING
    rig.values["k"] = b"of the first call"
    rig.finish("k")
    assert rig.to_clients
    ledger.dropped.append(entry)
    rig.up()
    again = submit(ledger, OTHER, "k")
    rig.values["k"] = b"of the second call"
    rig.up()
    rig.down()
    rig.settle()
    assert again.status == FINISHED and again.outcome[3] == b"of the second call"


def test_news_of_copies_is_not_taken_for_the_end_of_another_call() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    entry = submit(ledger, PLAIN, "k")
    rig.settle()
    ledger.ask("replicate", (("k",), 2, None))
    rig.up()
    rig.serve()
    assert any(type(message) is m.Finished for _, message in rig.to_clients)
    ledger.dropped.append(entry)
    rig.up()
    again = submit(ledger, OTHER, "k")
    rig.slow.add("k")
    rig.up()
    rig.down()
    rig.settle()
    assert again.status == PENDING


@pytest.mark.parametrize("data", [b"data", b"else", b"other data"])
def test_news_of_data_placed_before_does_not_take_the_bytes_of_what_is_scattered_again(data: bytes) -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    first = scatter(ledger, "x")
    rig.up()
    rig.serve()
    assert [type(message) for _, message in rig.to_clients][-2:] == [m.Finished, m.Drop]
    ledger.dropped.append(first)
    rig.up()
    again = scatter(ledger, "x", data)
    rig.up()
    rig.down()
    assert again.status == PENDING and ledger.store.get("x") is not None
    rig.wait(5.0)
    assert again.status == FINISHED and again.gen
    assert rig.broker.tables.tasks["x"].nbytes == again.outcome[2] == len(data)
    assert rig.stores["w-0"]["x"] == again.outcome[1] == content_attempt(repr(data))
    assert rig.holders("x") == ["w-0"] and "x" in rig.stores["w-0"]


def test_data_that_is_held_now_outlives_the_answer_that_nobody_has_it() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    (asked,) = ledger.want(["x"])
    rig.up()
    rig.serve()
    assert any(type(message) is m.Cancelled for _, message in rig.to_clients)
    (held,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True)
    rig.up()
    rig.down()
    made = submit(ledger, PLAIN, "made", "x")
    rig.settle()
    assert asked is held and {held.status, made.status} == {FINISHED}


@pytest.mark.parametrize("kept", [False, True])
def test_that_nobody_had_it_when_it_was_asked_for_says_nothing_of_its_submission(kept: bool) -> None:
    """Else the task stayed with the broker for ever (seed 2608804)."""
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    asked = want(ledger, "k")
    rig.up()
    rig.serve()
    assert any(type(message) is m.Cancelled for _, message in rig.to_clients)
    entry = submit(ledger, PURE, "k")
    assert asked is entry
    rig.up()
    rig.down()
    assert entry.status == PENDING and entry.gen
    if kept:
        rig.settle()
        assert entry.status == FINISHED and rig.broker.tables.tasks["k"].attempt == rig.broker.tables.attempt
    ledger.dropped.extend((asked, entry))
    rig.settle()
    assert not rig.broker.tables.tasks and not rig.broker.tables.clients["c-0"].wants


def test_a_task_that_was_to_run_on_without_futures_can_be_cancelled_at_once() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    rig.slow.add("k")
    entry = submit(ledger, PLAIN, "k")
    rig.settle()
    ledger.forget([entry])
    ledger.cancel([entry], force=False)
    rig.settle()
    assert entry.status == CANCELLED and not rig.broker.tables.tasks
