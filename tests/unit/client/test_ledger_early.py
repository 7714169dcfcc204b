"""Keys that the broker does not know yet, as another client is only just submitting them, and what is made of them."""

from __future__ import annotations

from test_ledger import PURE, answered, connected, deny, finish, kinds, succeeded, turn

from zdist import limits
from zdist.core.entry import CANCELLED, FINISHED, PENDING, UNHELD, UNKNOWN, Work
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL
from zdist.core.replay import ASK_AGAIN
from zdist.core.store import Pieces
from zdist.protocol import messages as m

WORK = Work(b"f" * 32, "f", b"code", (), False)


def recovered(now: float) -> Ledger:
    """A client that has made b of a, which is another client's, and c of b, and has come to the broker's successor."""
    ledger = connected()
    ledger.want(["a"])
    ledger.submit(WORK, [("b", b"", ("a",)), ("c", b"", ("b",))])
    turn(ledger)
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 1.5}), now - 1.5)
    assert kinds(turn(ledger, now)) == ["Want", "Define", "Claim", "Submit"]
    return ledger


def unknown(ledger: Ledger, now: float) -> None:
    """The broker has not heard of a yet."""
    reasons = {"a": UNKNOWN, "b": f"depends on a{UNHELD}", "c": f"depends on b{UNHELD}"}
    deny(ledger, now, *reasons.items())
    ledger.check()


def test_what_was_made_of_a_key_that_its_client_is_only_just_submitting_is_submitted_again() -> None:
    ledger = recovered(10.0)
    entries = [ledger.entries[key] for key in "abc"]
    unknown(ledger, 10.0)
    assert {entry.status for entry in entries} == {PENDING} and ledger.flying == 0
    assert ledger.deadline() == 10.0 + ASK_AGAIN
    ledger.tick(10.0 + ASK_AGAIN)
    want, claim, submit = turn(ledger, 10.0 + ASK_AGAIN)
    assert claim.rows == (("b", m.TOLD), ("c", m.TOLD))
    assert want.keys == ("a",) and [row[0] for row in submit.rows] == ["b", "c"]
    finish(ledger, "a", b"1")
    finish(ledger, "b", b"2")
    finish(ledger, "c", b"3")
    assert not ledger.again and {entry.status for entry in entries} == {FINISHED}
    ledger.check()


def test_it_is_cancelled_when_nobody_brings_that_key() -> None:
    now = 10.0
    ledger = recovered(now)
    entries = [ledger.entries[key] for key in "abc"]
    while ledger.entries and now < 60.0:
        unknown(ledger, now)
        now = ledger.deadline() or now
        ledger.tick(now)
        turn(ledger, now)
    assert {entry.status for entry in entries} == {CANCELLED} and not ledger.again
    assert limits.SOUGHT < now - 8.5 < 2 * limits.COPIES_KEPT
    assert [entry.outcome for entry in entries] == [UNKNOWN, f"depends on a{UNHELD}", f"depends on b{UNHELD}"]


def test_it_is_submitted_again_for_as_long_as_the_broker_seeks_that_key() -> None:
    ledger = connected()
    (other,) = ledger.want(["a"])
    made = ledger.submit(WORK, [("b", b"", ("a",)), ("c", b"", ("b",))])
    turn(ledger)
    lacks = (("b", f"depends on a{UNHELD}"), ("c", f"depends on b{UNHELD}"))
    now = 0.0
    for _ in range(3 + limits.LOST_RETRIES):
        deny(ledger, now, *lacks)
        now = ledger.again_at
        ledger.tick(now)
        assert [row[0] for x in turn(ledger, now) if type(x) is m.Submit for row in x.rows] == ["b", "c"]
    deny(ledger, now, ("a", "it was not found"), *lacks)
    assert {entry.status for entry in (other, *made)} == {CANCELLED}


def test_it_is_submitted_again_every_few_seconds_at_least() -> None:
    """However often the broker has refused it: what it lacks may come, or be known not to (seed 1415852)."""
    ledger = connected()
    ledger.want(["a"])
    ledger.submit(WORK, [("b", b"", ("a",))])
    turn(ledger)
    now = 0.0
    for _ in range(30):
        deny(ledger, now, ("b", f"depends on a{UNHELD}"))
        then = now
        now = ledger.deadline() or now
        assert then < now <= then + 5.0
        ledger.tick(now)
        assert "Submit" in kinds(turn(ledger, now))


def dependent() -> Ledger:
    """A task is made of data that workers hold and whose future is gone, and of a key that the broker may not know."""
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    ledger.want(["a"])
    turn(ledger)
    finish(ledger, "x", None)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    ledger.submit(WORK, [("b", b"", ("x", "a"))])
    ledger.dropped.append(data)
    assert kinds(turn(ledger)) == ["Define", "Submit", "Ask"]
    return ledger


def test_data_stays_until_the_broker_has_taken_in_what_is_made_of_it() -> None:
    """It cannot be computed again, as the task was submitted once more and found it gone (seed 1410655)."""
    ledger = dependent()
    deny(ledger, 0.0, ("b", f"depends on a{UNHELD}"))
    assert kinds(answered(ledger)) == []
    ledger.tick(ASK_AGAIN)
    assert kinds(turn(ledger, ASK_AGAIN)) == ["Submit", "Ask"]
    assert ledger.entries["x"].gen and not ledger.entries["x"].refs
    assert kinds(answered(ledger, ASK_AGAIN)) == ["Release"]
    assert not ledger.entries["x"].gen and not ledger.leaving


def test_data_that_is_needed_again_meanwhile_stays() -> None:
    ledger = dependent()
    data = ledger.entries["x"]
    ledger.join(data)
    assert kinds(answered(ledger)) == [] and data.gen
    ledger.submit(WORK, [("c", b"", ("x", "a"))])
    ledger.dropped.append(data)
    assert kinds(turn(ledger)) == ["Submit", "Ask"]
    ledger.join(data)
    ledger.submit(WORK, [("d", b"", ("x", "a"))])
    ledger.dropped.append(data)
    assert kinds(turn(ledger)) == ["Submit"]
    assert kinds(answered(ledger)) == ["Ask"] and data.gen  # of d the broker was not asked yet
    assert kinds(answered(ledger)) == ["Release"]


def test_data_whose_last_dependent_goes_meanwhile_is_released_once() -> None:
    ledger = dependent()
    (asked,) = ledger.leaving
    ledger.dropped.append(ledger.entries["b"])
    (release, _) = turn(ledger)
    assert {key for key, _ in release.rows} == {"b", "x"} and "x" not in ledger.entries
    ledger.handle(CONTROL, m.Answer(asked, True, None), 0.0)
    assert turn(ledger) == [] and not ledger.leaving


def test_data_that_was_let_go_of_and_had_again_from_others_is_finished_as_it_is_still_here() -> None:
    """Nobody would tell its holder of it (seed 1414357)."""
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True)
    turn(ledger)
    ledger.dropped.append(data)
    assert kinds(turn(ledger)) == ["Release"] and "x" not in ledger.entries
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 1.5}), 0.0)  # others may want it
    assert kinds(turn(ledger)) == ["Held"]
    (entry,) = ledger.want(["x"])
    collection = ledger.collect([entry], None, 0.0)
    ledger.welcomed(m.Welcome(3, 0, True, {"recover": 1.5}), 0.0)
    assert kinds(turn(ledger)) == ["Hold"]
    assert entry.status == FINISHED and not collection.left
    assert kinds(turn(ledger, 1.5)) == []


def test_a_successor_is_not_waited_for_as_the_one_before_was() -> None:
    ledger = dependent()
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    assert not ledger.leaving and not ledger.parting
    assert "Release" not in kinds(turn(ledger))


def test_what_a_successor_may_find_finished_stays_there_too_until_what_is_made_of_it_is_taken_in() -> None:
    """Else it would be computed again when the task that needs it is submitted once more."""
    ledger = connected()
    ledger.want(["a"])
    (part,) = ledger.submit(PURE, [("p", b"", ())])
    ledger.submit(PURE, [("b", b"", ("p", "a"))])
    turn(ledger)
    ledger.dropped.append(part)
    assert kinds(turn(ledger)) == ["Release"]
    assert "Ask" in kinds(succeeded(ledger, 10.0)) and part.gen
    deny(ledger, 12.0, ("b", f"depends on a{UNHELD}"))
    assert answered(ledger, 12.0) == [] and part.gen
    now = 12.0 + ASK_AGAIN
    ledger.tick(now)
    *_, submit, ask = turn(ledger, now)
    assert [row[0] for row in submit.rows] == ["b"] and type(ask) is m.Ask
    assert kinds(answered(ledger, now)) == ["Release"] and not part.gen


def test_a_key_that_is_being_asked_for_is_submitted_when_it_is_known_how() -> None:
    """The broker may only be seeking it."""
    ledger = connected()
    (entry,) = ledger.want(["a"])
    turn(ledger)
    assert ledger.submit(PURE, [("a", b"", ())]) == [entry]
    (submit,) = [message for message in turn(ledger) if type(message) is m.Submit]
    assert [row[0] for row in submit.rows] == ["a"] and entry.gen == submit.gen
    ledger.check()


def test_what_it_was_made_of_goes_along_though_its_future_is_gone() -> None:
    ledger = connected()
    ledger.want(["a"])
    middle, end = ledger.submit(PURE, [("b", b"", ("a",)), ("c", b"", ("b",))])
    ledger.dropped.append(middle)
    turn(ledger)
    unknown(ledger, 0.0)
    ledger.tick(ASK_AGAIN)
    want, submit = [message for message in turn(ledger, ASK_AGAIN) if type(message) in (m.Want, m.Submit)]
    assert want.keys == ("a",) and [row[0] for row in submit.rows] == ["b", "c"]
    assert end.status == PENDING


def test_what_it_was_made_of_goes_along_also_when_nothing_else_is_lacking() -> None:
    ledger = connected()
    ledger.want(["a"])
    middle, end = ledger.submit(PURE, [("b", b"", ("a",)), ("c", b"", ("b",))])
    ledger.dropped.append(middle)
    turn(ledger)
    deny(ledger, 0.0, ("c", f"depends on b{UNHELD}"))
    ledger.tick(ASK_AGAIN)
    (submit,) = [message for message in turn(ledger, ASK_AGAIN) if type(message) is m.Submit]
    assert [row[0] for row in submit.rows] == ["b", "c"] and end.status == PENDING


def test_what_was_made_of_something_finished_is_submitted_again_as_well() -> None:
    """The broker may be told of that only behind it."""
    ledger = connected()
    ledger.want(["a"])
    (made,) = ledger.submit(PURE, [("b", b"", ("a",))])
    turn(ledger)
    finish(ledger, "a")
    deny(ledger, 0.0, ("b", f"depends on a{UNHELD}"))
    assert made.status == PENDING
    ledger.tick(ASK_AGAIN)
    assert "Submit" in kinds(turn(ledger, ASK_AGAIN))


def test_a_key_of_others_that_becomes_known_while_workers_are_waited_for_is_submitted() -> None:
    """Asked for it would be unknown, as would be that its value is here (seed 1525234)."""
    ledger = connected()
    (entry,) = ledger.want(["a"])
    (made,) = ledger.submit(PURE, [("b", b"", ("a",))])
    turn(ledger)
    finish(ledger, "a")
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 1.5}), 10.0)
    ledger.dropped.append(entry)
    assert turn(ledger, 10.0) == []
    assert ledger.submit(PURE, [("a", b"", ())]) == [entry]
    messages = turn(ledger, 11.5)
    assert not [message for message in messages if type(message) is m.Want]
    assert {row[0] for x in messages if type(x) is m.Submit for row in x.rows} == {"a", "b"}
    assert [row[:2] for x in messages if type(x) is m.Claim for row in x.values] == [("a", 1)]
    assert entry.gen and made.gen


def test_a_key_that_is_let_go_of_while_it_waits_is_not_asked_for() -> None:
    ledger = connected()
    (entry,) = ledger.want(["a"])
    turn(ledger)
    deny(ledger, 0.0, ("a", UNKNOWN))
    assert ledger.submit(PURE, [("a", b"", ())]) == [entry]  # now it is known how it is computed
    ledger.dropped.extend([entry, entry])
    turn(ledger)
    assert not ledger.entries and not ledger.again
    ledger.tick(ASK_AGAIN)
    assert turn(ledger, ASK_AGAIN) == [] and ledger.deadline() is None


def test_a_task_that_failed_leaves_no_note_that_it_was_once_unknown() -> None:
    ledger = recovered(10.0)
    entry = ledger.entries["b"]
    unknown(ledger, 10.0)
    ledger.tick(10.0 + ASK_AGAIN)
    turn(ledger, 10.0 + ASK_AGAIN)
    ledger.handle(CONTROL, m.Failed((("b", b"", "b", "boom"), ("c", b"", "b", "boom"))), 11.0)
    ledger.dropped.extend([entry, ledger.entries["c"], ledger.entries["a"]])
    turn(ledger, 11.0)
    assert not ledger.entries and not ledger.again


def test_a_key_that_was_asked_for_before_it_was_known_how_it_is_computed_is_submitted() -> None:
    ledger = connected()
    (entry,) = ledger.want(["a"])
    turn(ledger)
    ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    deny(ledger, 0.0, ("a", UNKNOWN))
    ledger.tick(ASK_AGAIN)
    assert kinds(turn(ledger, ASK_AGAIN)) == ["Submit"] and entry.status == PENDING


def test_data_that_is_held_here_and_was_unknown_is_asked_for_again() -> None:
    ledger = connected()
    (entry,) = ledger.hold([("data", Pieces([b"data"]), "bytes")], finished=False)
    turn(ledger)
    deny(ledger, 0.0, ("data", UNKNOWN))
    ledger.tick(ASK_AGAIN)
    assert [message.keys for message in turn(ledger, ASK_AGAIN) if type(message) is m.Want] == [("data",)]
    assert entry.status == PENDING and entry.gen
