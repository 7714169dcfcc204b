"""Keys that the broker does not know yet, as another client is only just submitting them, and what is made of them."""

from __future__ import annotations

from test_ledger import connected, finish, kinds, turn

from zdist import limits
from zdist.core.entry import CANCELLED, FINISHED, PENDING, UNHELD, UNKNOWN, Work
from zdist.core.ledger import ASK_AGAIN, Ledger
from zdist.core.machine import CONTROL
from zdist.protocol import messages as m

WORK = Work(b"f" * 32, "f", b"code", (), False)


def recovered(now: float) -> Ledger:
    """A client that has made b of a, which is another client's, and c of b, and has come to the broker's successor."""
    ledger = connected()
    ledger.want(["a"])
    ledger.submit(WORK, [("b", b"", ("a",)), ("c", b"", ("b",))])
    turn(ledger)
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 1.5}), now - 1.5)
    assert kinds(turn(ledger, now)) == ["Want", "Define", "Submit"]
    return ledger


def unknown(ledger: Ledger, now: float) -> None:
    """The broker has not heard of a yet."""
    reasons = {"a": UNKNOWN, "b": f"depends on a{UNHELD}", "c": f"depends on b{UNHELD}"}
    ledger.handle(CONTROL, m.Cancelled(tuple(reasons.items())), now)
    ledger.check()


def test_what_was_made_of_a_key_that_its_client_is_only_just_submitting_is_submitted_again() -> None:
    ledger = recovered(10.0)
    entries = [ledger.entries[key] for key in "abc"]
    unknown(ledger, 10.0)
    assert {entry.status for entry in entries} == {PENDING} and ledger.flying == 0
    assert ledger.deadline() == 10.0 + ASK_AGAIN
    ledger.tick(10.0 + ASK_AGAIN)
    want, submit = turn(ledger, 10.0 + ASK_AGAIN)
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
    assert limits.COPIES_KEPT < now - 10.0 < 2 * limits.COPIES_KEPT + 1.0
    assert [entry.outcome for entry in entries] == [UNKNOWN, f"depends on a{UNHELD}", f"depends on b{UNHELD}"]
