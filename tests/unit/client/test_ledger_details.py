"""More of the ledger alone: what is easily overlooked, one case each."""

from __future__ import annotations

from test_ledger import PURE, asked, collected, connected, finish, kinds, turn

from zdist.core.store import Pieces
from zdist.protocol import messages as m


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


def test_data_that_was_copied_to_workers_once_is_not_copied_again_for_another_broker() -> None:
    ledger = connected()
    entries = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True)
    ledger.place(entries, (), 1)
    assert kinds(turn(ledger)) == ["Hold", "Place"]
    finish(ledger, "x", None)
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    assert kinds(turn(ledger)) == ["Hold"]
