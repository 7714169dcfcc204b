"""What single conditions of a client's machine are for, where nothing else would show it."""

from __future__ import annotations

import gc

import pytest
from test_ledger import connected, deny, finish, kinds, succeeded, turn

from zdist.core.entry import CANCELLED, FINISHED, PENDING, UNHELD, UNKNOWN, Entry, Work
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL
from zdist.core.store import Pieces
from zdist.protocol import messages as m


def work() -> Work:
    return Work(b"g" * 32, "g", b"code", (), False)


def let_go(ledger: Ledger, entry: Entry) -> list[m.Message]:
    ledger.dropped.append(entry)
    return turn(ledger)


def test_a_function_that_the_broker_does_not_know_any_more_is_told_again_with_its_next_task() -> None:
    ledger = connected()
    (entry,) = ledger.submit(work(), [("a", b"", ())])
    assert kinds(turn(ledger)) == ["Define", "Submit"]
    ledger.handle(CONTROL, m.WhichFunction(b"g" * 32), 0.0)
    (define,) = turn(ledger)
    assert define.blob == b"code"
    finish(ledger, "a")
    let_go(ledger, entry)
    del entry
    gc.collect()
    ledger.handle(CONTROL, m.WhichFunction(b"g" * 32), 0.0)
    (define,) = turn(ledger)
    assert define.blob == b""
    ledger.submit(work(), [("b", b"", ())])
    assert kinds(turn(ledger)) == ["Define", "Submit"]


def test_one_that_is_told_of_a_function_is_not_told_again() -> None:
    ledger = connected()
    ledger.submit(work(), [("a", b"", ())])
    turn(ledger)
    ledger.handle(CONTROL, m.WhichFunction(b"g" * 32), 0.0)
    turn(ledger)
    ledger.submit(work(), [("b", b"", ())])
    assert kinds(turn(ledger)) == ["Submit"]


def test_what_ends_for_every_want_is_let_go_of_at_the_broker() -> None:
    ledger = connected()
    ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    turn(ledger)
    gen = ledger.entries["x"].gen
    ledger.handle(CONTROL, m.Cancelled((("x", "no worker may have it", 0),)), 0.0)
    (release, *_) = turn(ledger)
    assert release == m.Release((("x", gen),))
    ledger.hold([("y", Pieces([b"data"]), "bytes")], finished=False)
    turn(ledger)
    deny(ledger, 0.0, ("y", "no worker may have it"))  # of this want: the broker has ended it
    assert "Release" not in kinds(turn(ledger))


def test_a_failure_of_what_is_here_leaves_the_want_to_be_released() -> None:
    ledger = connected()
    (entry,) = ledger.submit(work(), [("a", b"", ())])
    turn(ledger)
    finish(ledger, "a")
    ledger.handle(CONTROL, m.Failed((("a", b"error", "a", "it was computed again, and failed"),)), 0.0)
    assert entry.status == FINISHED
    gen = entry.gen
    (release, *_) = let_go(ledger, entry)
    assert release == m.Release((("a", gen),))


def test_data_that_is_cancelled_is_not_kept() -> None:
    ledger = connected()
    (entry,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    ledger.place([entry], (), 1)
    turn(ledger)
    ledger.cancel([entry], force=True)
    assert entry.status == CANCELLED and not ledger.placing and ledger.store.get("x") is None


def test_who_waits_for_a_key_hears_when_this_client_itself_brings_it() -> None:
    ledger = connected()
    (entry,) = ledger.want(["x"])
    turn(ledger)
    told: list[Entry] = []

    class Waiter:
        def resolved(self, entry: Entry, /) -> None:
            told.append(entry)

    entry.waiters = [Waiter()]
    ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True)
    turn(ledger)
    assert told == [entry] and entry.status == FINISHED


# --- brokers that do not live for long -------------------------------------------------------------------------


def sought() -> tuple[Ledger, Entry]:
    """Data that was on a worker, which has not come to the broker's successor."""
    ledger = connected()
    (entry,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    turn(ledger)
    finish(ledger, "x", None)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    succeeded(ledger, 10.0, 2)
    return ledger, entry


def unheard(ledger: Ledger, gen: int, seconds: int = 1) -> list[str]:
    for _ in range(seconds):
        ledger.handle(CONTROL, m.Unheard((("x", gen), ("of-another", 1))), 0.0)
    return kinds(turn(ledger))


def test_data_is_given_up_that_brokers_in_a_row_have_sought_for_as_long_as_one_would() -> None:
    ledger, entry = sought()
    for n in range(1, 3):
        assert unheard(ledger, entry.gen, 3) == [] and entry.status == PENDING
        succeeded(ledger, 10.0 + 5 * n, 2 + n)
        assert unheard(ledger, entry.gen - 1, 9) == []  # it was said of an earlier want
    gen = entry.gen
    assert unheard(ledger, gen, 2) == []
    ledger.handle(CONTROL, m.Unheard((("x", gen),)), 0.0)
    assert entry.status == CANCELLED and entry.outcome == f"{UNKNOWN}: scattered data lost"
    (release, *_) = turn(ledger)
    assert release == m.Release((("x", gen),)) and not ledger.entries


@pytest.mark.parametrize("how", ["finished", "pending"])
def test_what_one_of_them_has_found_is_sought_anew(how: str) -> None:
    ledger, entry = sought()
    for n in range(1, 8):
        unheard(ledger, entry.gen, 4)
        if n % 2 and how == "finished":
            finish(ledger, "x", None)
            unheard(ledger, entry.gen)  # it was under way
        elif n % 2:
            ledger.handle(CONTROL, m.Lost(("x",)), 0.0)
        succeeded(ledger, 10.0 + 5 * n, 2 + n)
        assert entry.status == PENDING


def test_a_result_is_given_up_that_they_have_not_been_told_of_for_so_long() -> None:
    ledger = connected()
    ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    (entry,) = ledger.submit(work(), [("a", b"", ("x",))])
    turn(ledger)
    for key in ("x", "a"):
        finish(ledger, key, None)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    ledger.cancel([ledger.entries["x"]], force=False)
    turn(ledger)
    now, epoch = 10.0, 1
    while entry.status != CANCELLED and epoch < 9:
        epoch += 1
        succeeded(ledger, now, epoch)
        until, now = now + 6.0, now + 2.0
        while now < until and entry.status != CANCELLED:
            deny(ledger, now, ("a", f"depends on x{UNHELD}"))
            if entry.status != CANCELLED:
                now = ledger.deadline() or until
                ledger.tick(now)
                turn(ledger, now)
        now = until
    assert entry.status == CANCELLED and epoch == 4
