"""The outgoing half of the ledger: what is joined, said again, or not said at all."""

from __future__ import annotations

from typing import Any

from test_ledger import NAMED_BY_HAND, PURE, answered, connected, deny, finish, kinds, turn

from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING, UNKNOWN
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL
from zdist.core.store import Pieces
from zdist.protocol import messages as m
from zdist.protocol.fields import DATA


def rows(messages: list[Any]) -> list[str]:
    """The keys of all submissions."""
    return [row[0] for message in messages if isinstance(message, m.Submit) for row in message.rows]


def fail(ledger: Ledger, key: str) -> None:
    ledger.handle(CONTROL, m.Failed(((key, b"pickle", key, "text"),)), 0.0)


def spent_data() -> Ledger:
    """Data that workers hold, of which something is made, and that nobody else wants any more."""
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False, attempt=DATA)
    ledger.submit(PURE, [("c", b"", ("x",))])
    turn(ledger)
    finish(ledger, "x", None)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    ledger.dropped.append(data)
    assert kinds(turn(ledger)) == ["Ask"]
    assert kinds(answered(ledger)) == ["Release"]
    return ledger


def test_a_key_that_is_imported_twice_is_asked_for_once() -> None:
    ledger = connected()
    first, second = ledger.want(["k"]) + ledger.want(["k"])
    assert first is second and first.refs == 2
    assert kinds(turn(ledger)) == ["Want"]


def test_an_imported_key_that_nobody_knows_is_submitted_when_it_is_known_how_it_is_made() -> None:
    ledger = connected()
    ledger.want(["k"])
    turn(ledger)
    deny(ledger, 0.0, ("k", UNKNOWN))
    ledger.submit(PURE, [("k", b"", ())])
    assert rows(turn(ledger)) == ["k"]


def test_data_that_is_alive_is_joined_and_what_is_left_of_it_for_its_lineage_is_not() -> None:
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False, attempt=DATA)
    assert ledger.data("x", DATA) is data and data.refs == 2
    assert spent_data().data("x", DATA) is None


def test_data_of_which_only_its_lineage_was_left_is_held_again() -> None:
    ledger = spent_data()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True, attempt=DATA)
    assert data.status == FINISHED and ledger.store.get("x") is not None
    assert kinds(turn(ledger)) == ["Hold"]


# --- fire and forget ---------------------------------------------------------------------------------------


def test_a_task_that_is_to_run_to_its_end_is_said_again_and_kept_until_then() -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    ledger.forget([entry])
    ledger.dropped.append(entry)
    (submit,) = turn(ledger)
    assert rows([submit]) == ["a"] and m.Options(*submit.options).forget
    finish(ledger, "a")
    assert kinds(turn(ledger)) == ["Release"] and not ledger.entries


def test_one_that_was_not_said_yet_is_said_once() -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    ledger.forget([entry])
    assert list(ledger.queue) == [entry]


def test_those_who_wait_for_such_a_task_still_do() -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    collection = ledger.collect([entry], None, 0.0)
    ledger.forget([entry])
    turn(ledger)
    finish(ledger, "a")
    turn(ledger)
    assert collection.left == 0 and entry.refs == 1


def test_what_has_ended_or_is_no_task_is_not_forgotten() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ())]) + ledger.want(["k"])
    turn(ledger)
    finish(ledger, "a")
    ledger.forget(entries)
    assert [entry.refs for entry in entries] == [1, 1] and turn(ledger) == []


# --- submitting --------------------------------------------------------------------------------------------


def test_what_only_a_task_was_made_of_that_turns_out_to_be_cancelled_is_not_submitted() -> None:
    ledger = connected()
    parent, other, child = ledger.submit(PURE, [("p", b"", ()), ("q", b"", ()), ("c", b"", ("p", "q"))])
    ledger.dropped.append(parent)
    other.status, other.outcome = CANCELLED, "enough"
    ledger.turn(0.0)
    assert CONTROL not in ledger.take() and not ledger.flying
    assert child.status == CANCELLED and "p" not in ledger.entries


def test_of_several_reasons_why_a_task_cannot_run_the_first_counts() -> None:
    ledger = connected()
    bad, *others = ledger.submit(PURE, [("bad", b"", ()), ("q", b"", ()), ("r", b"", ())])
    turn(ledger)
    fail(ledger, "bad")
    first, second = ledger.submit(PURE, [("c", b"", ("bad", "q")), ("d", b"", ("q", "r"))])
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    ledger.cancel(others, False, "enough")
    turn(ledger)
    assert (first.status, first.outcome) == (ERROR, bad.outcome)
    assert (second.status, second.outcome) == (CANCELLED, "depends on q: enough")


def test_a_value_that_several_tasks_are_made_of_is_told_to_a_new_broker_once() -> None:
    ledger = connected()
    ledger.submit(NAMED_BY_HAND, [("done", b"", ())])
    turn(ledger)
    finish(ledger, "done")
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    ledger.submit(NAMED_BY_HAND, [("a", b"", ("done",)), ("b", b"", ("done",))])
    assert rows(turn(ledger)) == ["done", "a", "b"]


def test_a_failure_of_an_earlier_broker_is_computed_anew_on_request() -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    fail(ledger, "a")
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    turn(ledger)
    ledger.retry([entry])
    assert entry.status == PENDING and rows(turn(ledger)) == ["a"]
