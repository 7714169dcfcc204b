"""More of the ledger alone: what is easily overlooked, one case each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from test_ledger import PURE, answered, asked, collected, connected, deny, finish, kinds, turn

from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING
from zdist.core.ledger import UNKNOWN, Ledger
from zdist.core.machine import CONTROL
from zdist.core.store import Pieces
from zdist.errors import InvariantError
from zdist.protocol import messages as m

# --- news --------------------------------------------------------------------------------------------------


def test_a_holder_that_stays_silent_is_asked_again() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    finish(ledger, "a", None)
    collected(ledger, entries)
    assert asked(ledger) == [("w-1", "a")]
    again = []
    for _ in range(4):
        now = ledger.deadline()
        assert now is not None
        ledger.tick(now)
        again += asked(ledger)
    assert ("w-1", "a") in again


def test_a_result_that_was_computed_anew_while_it_is_fetched_is_fetched_from_where_it_is_now() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    finish(ledger, "a", None)
    collection = collected(ledger, entries)
    assert asked(ledger) == [("w-1", "a")]
    ledger.handle(CONTROL, m.Finished((("a", 2, 100, None, ("w-2",), "int"),)), 0.0)
    assert asked(ledger) == [("w-2", "a")] and not collection.ready()
    finish(ledger, "a", b"came inline now")
    assert collection.ready() and collection.left == 0 and not ledger.fetcher.wants("a")


def test_who_waits_for_what_is_found_to_be_orphaned_when_it_is_submitted_is_told_at_once() -> None:
    ledger = connected()
    told: list[Any] = []
    (parent,) = ledger.submit(PURE, [("p", b"", ())])
    (child,) = ledger.submit(PURE, [("a", b"", ("p",))])
    child.waiters = [SimpleNamespace(resolved=told.append)]
    ledger.cancel([parent], False)
    turn(ledger)
    assert child.status == CANCELLED and (told or ledger.deadline() == 0.0)
    turn(ledger)
    assert told == [child] and ledger.deadline() is None


@pytest.mark.parametrize("overdue, kind", [(True, "timeout"), (False, "killed")])
def test_what_was_killed_for_taking_too_long_says_so(overdue: bool, kind: str) -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    ledger.handle(CONTROL, m.Killed((("a", "text", overdue),)), 0.0)
    assert entry.status == ERROR and entry.outcome == (kind, None, "a", "text")


def test_news_of_keys_that_nobody_wants_change_nothing() -> None:
    ledger = connected()
    for message in (
        m.Lost(("a",)),
        m.Cancelled((("a", "gone", 1),)),
        m.Killed((("a", "text", False),)),
        m.Drop(("a",)),
    ):
        ledger.handle(CONTROL, message, 0.0)
    assert turn(ledger) == [] and not ledger.entries


# --- data that this client holds ---------------------------------------------------------------------------


def test_data_that_was_copied_to_workers_once_is_not_copied_again_for_another_broker() -> None:
    ledger = connected()
    entries = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True)
    ledger.place(entries, (), 1)
    assert kinds(turn(ledger)) == ["Hold", "Place"]
    finish(ledger, "x", None)
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    assert kinds(turn(ledger)) == ["Hold"]


def test_data_that_is_not_copied_to_workers_yet_stays_whatever_is_said_of_an_earlier_hold() -> None:
    ledger = connected()
    ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    turn(ledger)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    assert ledger.store.get("x") is not None


def test_data_that_only_others_are_made_of_is_released_when_workers_hold_it() -> None:
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    ledger.submit(PURE, [("c", b"", ("x",))])
    turn(ledger)
    ledger.dropped.append(data)
    assert turn(ledger) == []
    finish(ledger, "x", None)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    assert kinds(turn(ledger)) == ["Ask"]
    assert kinds(answered(ledger)) == ["Release"] and ledger.store.get("x") is None


def test_data_that_the_broker_never_heard_of_leaves_nothing() -> None:
    ledger = Ledger("c-1", "token", {"name": "me"})
    ledger.dropped.extend(ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True))
    assert turn(ledger) == [] and not ledger.store.entries


def test_an_unknown_key_that_was_let_go_of_is_not_asked_for_again() -> None:
    ledger = connected()
    entries = ledger.want(["k"])
    turn(ledger)
    deny(ledger, 0.0, ("k", UNKNOWN))
    assert ledger.deadline() is not None
    ledger.dropped.extend(entries)
    turn(ledger)
    assert ledger.deadline() is None


# --- lineage -----------------------------------------------------------------------------------------------


def test_a_task_that_is_made_of_a_cancelled_one_says_why_that_was() -> None:
    ledger = connected()
    ledger.cancel(ledger.submit(PURE, [("a", b"", ())]), False, "enough of it")
    (child,) = ledger.submit(PURE, [("b", b"", ("a",))])
    (other,) = ledger.submit(PURE, [("c", b"", ("unheard of",))])
    assert (child.status, child.outcome) == (CANCELLED, "depends on a: enough of it")
    assert (other.status, other.outcome) == (CANCELLED, "depends on unheard of, which nobody holds")


def test_a_rejected_key_was_not_cancelled() -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    ledger.handle(CONTROL, m.Rejected((("a", "is something else"),)), 0.0)
    (child,) = ledger.submit(PURE, [("b", b"", ("a",))])
    assert entry.status == ERROR and child.outcome == "depends on a, which nobody holds"


def test_lineage_that_nobody_needs_any_more_goes_to_the_last_link() -> None:
    ledger = connected()
    a, b, c = ledger.submit(PURE, [("a", b"", ()), ("b", b"", ("a",)), ("c", b"", ("b",))])
    turn(ledger)
    ledger.dropped.extend([a, b])
    turn(ledger)
    assert list(ledger.entries) == ["a", "b", "c"]
    ledger.dropped.append(c)
    turn(ledger)
    assert not ledger.entries


def test_lineage_that_is_wanted_again_is_submitted_again() -> None:
    ledger = connected()
    parent, _ = ledger.submit(PURE, [("p", b"", ()), ("c", b"", ("p",))])
    turn(ledger)
    ledger.dropped.append(parent)
    assert kinds(turn(ledger)) == ["Release"]
    ledger.submit(PURE, [("p", b"", ())])
    (submit,) = turn(ledger)
    assert [row[0] for row in submit.rows] == ["p"]


def test_what_only_a_cancelled_task_was_to_be_made_of_is_released_with_it() -> None:
    ledger = connected(window_tasks=1)
    (parent,) = ledger.submit(PURE, [("p", b"", ())])
    turn(ledger)
    gen = parent.gen
    (child,) = ledger.submit(PURE, [("c", b"", ("p",))])
    ledger.dropped.append(parent)
    assert turn(ledger) == []
    ledger.cancel([child], False)
    assert turn(ledger) == [m.Release((("p", gen),))] and not ledger.entries


def test_a_failure_is_not_kept_for_what_has_failed_with_it() -> None:
    ledger = connected()
    (first,) = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    ledger.handle(CONTROL, m.Failed((("a", b"pickle", "a", "text"),)), 0.0)
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    ledger.submit(PURE, [("b", b"", ("a",))])
    ledger.dropped.append(first)
    turn(ledger)
    assert list(ledger.entries) == ["b"]


# --- questions ---------------------------------------------------------------------------------------------


def test_before_the_welcome_a_question_waits_and_a_call_fails() -> None:
    """Nobody would know how far a call came that was said to two brokers."""
    ledger = Ledger("c-1", "token", {"name": "me"})
    reply, call = ledger.ask("workers", None), ledger.call(None, b"")
    assert not reply.done and call.done and not call.ok
    ledger.welcomed(m.Welcome(1, 0, True, {}), 0.0)
    assert [message.what for message in turn(ledger)] == ["workers"]


# --- invariants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, change",
    [
        ("negative count", {"refs": -1}),
        ("needed by nobody", {"refs": 0}),
        ("cancelled and still joinable", {"status": CANCELLED}),
        ("has the outcome", {"status": FINISHED}),
        ("counts in the window although nothing is submitted", {"gen": 0}),
        ("generation from the future", {"gen": 7}),
        ("somebody waits for it in vain", {"status": ERROR, "outcome": (), "load": 0, "waiters": [None]}),
        ("wanted, and neither submitted nor queued", {"gen": 0, "load": 0}),
    ],
)
def test_entries_that_contradict_themselves_are_found(wrong: str, change: dict[str, Any]) -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    assert entry.status == PENDING
    for name, value in change.items():
        setattr(entry, name, value)
    with pytest.raises(InvariantError, match=wrong):
        ledger.check()
