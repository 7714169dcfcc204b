"""A task that was refused is submitted once more, for hours maybe: nothing else of its client waits for that."""

from __future__ import annotations

from typing import Any

import pytest
from ledger_rig import OTHER, PLAIN, PURE, Rig, hold, scatter, submit, want

from zdist.core.entry import CANCELLED, FINISHED, PENDING, Entry
from zdist.core.ledger import Ledger
from zdist.protocol import messages as m


def refused_once(rig: Rig, ledger: Ledger, maker: Ledger) -> list[Entry]:
    """A task that was refused, as its input was submitted only later, and runs for long."""
    theirs = want(ledger, "c-0-x")
    rig.slow.add("c-1-y")
    made = submit(ledger, PLAIN, "c-1-y", "c-0-x")
    rig.wait(0.5)
    submit(maker, PURE, "c-0-x")
    rig.wait(5.0)
    assert "c-1-y" in rig.running and made.status == PENDING
    return [theirs, made]


def crash(rig: Rig) -> None:
    """The broker's successor is told what runs."""
    running = dict(rig.running)
    rig.running.clear()
    rig.succeed()
    for key, (session, attempt) in running.items():
        rig.broker.handle(session, m.Unowned(((key, attempt),)), rig.now)


def crash_without(rig: Rig, session: str) -> None:
    """The same, and this client comes 4 s late."""
    ledger = rig.ledgers.pop(session)
    crash(rig)
    rig.wait(4.0)
    rig.ledgers[session] = ledger
    rig.come(session)


def lose(rig: Rig, *keys: str) -> None:
    """Who held these is gone with the broker."""
    for store in rig.stores.values():
        for key in keys:
            store.pop(key, None)


def stored(rig: Rig, prefix: str) -> list[str]:
    return [key for store in rig.stores.values() for key in store if key.startswith(prefix)]


@pytest.mark.parametrize("copies", ["lost with the broker", "lost later"])
def test_what_runs_at_a_second_successor_is_not_started_again(copies: str) -> None:
    """It had been finished under the first broker, of which nothing is said any more."""
    rig = Rig(clients=2, workers=3)
    maker, ledger = rig.ledgers.values()
    made = submit(ledger, PLAIN, "c-1-e")
    rig.settle()
    (home,) = [session for session, store in rig.stores.items() if "c-1-e" in store]
    kept = refused_once(rig, ledger, maker)
    lose(rig, "c-0-x", *(["c-1-e"] if copies == "lost with the broker" else []))
    rig.slow.update({"c-1-e", "c-1-y"})
    rig.running.clear()
    crash_without(rig, "c-0")
    rig.wait(60.0)
    if copies == "lost later":
        assert made.status == FINISHED
        rig.kill(home)
        rig.running = {key: row for key, row in rig.running.items() if row[0] != home}
        rig.settle()
    assert made.status == PENDING and "c-1-e" in rig.running and kept
    crash(rig)
    rig.wait(20.0)
    assert "c-1-e" not in rig.running


def test_what_cannot_be_had_is_cancelled_though_another_input_runs_for_long() -> None:
    rig = Rig(clients=3, workers=1)
    maker, ledger, third = rig.ledgers.values()
    rig.slow.add("c-0-x")
    submit(maker, PLAIN, "c-0-x")
    submit(third, PLAIN, "c-2-z")
    rig.settle()
    theirs = [want(ledger, "c-0-x"), want(ledger, "c-2-z")]
    rig.settle()
    made = submit(ledger, PLAIN, "c-1-y", "c-0-x", "c-2-z")
    rig.settle()
    del rig.ledgers["c-2"]
    rig.stores["w-0"].clear()
    crash(rig)
    rig.wait(60.0)
    assert [entry.status for entry in (*theirs, made)] == [PENDING, CANCELLED, CANCELLED]


@pytest.mark.parametrize("crashed", [False, True])
def test_what_others_were_made_of_is_released_while_one_is_tried_again(crashed: bool) -> None:
    rig = Rig(clients=2)
    maker, ledger = rig.ledgers.values()
    rig.slow.add("c-0-x")
    submit(maker, PLAIN, "c-0-x")
    rig.settle()
    theirs = [want(ledger, "c-0-x"), want(ledger, "c-9-z")]
    tried = submit(ledger, PLAIN, "c-1-y", "c-0-x", "c-9-z")
    of_it = submit(ledger, PLAIN, "c-1-w", "c-1-y")
    ledger.dropped.append(tried)
    if crashed:
        crash(rig)
    rig.wait(2.0 if crashed else 0.5)
    made = []
    for number in range(8):
        part = submit(ledger, OTHER, f"c-1-p{number}")
        data = hold(ledger, f"c-1-d{number}")
        made.append(submit(ledger, PLAIN, f"c-1-m{number}", f"c-1-p{number}", f"c-1-d{number}"))
        ledger.dropped.extend([part, data])
        rig.wait(0.75 if crashed else 0.25, 0.05)
        assert made[-1].status == FINISHED
    assert ledger.again and theirs and of_it.status == PENDING
    waiting = 8 if crashed else 3  # at a successor all that may be finished stays for its first 10 s
    assert len(stored(rig, "c-1-p")) <= waiting and len(stored(rig, "c-1-d")) <= waiting
    rig.wait(20.0)
    assert not stored(rig, "c-1-p") and not stored(rig, "c-1-d") and of_it.status == CANCELLED
    assert len(ledger.parting) < 5 and len(ledger.claims) < 5


def test_nothing_is_claimed_of_what_is_gone_or_done() -> None:
    rig = Rig(clients=2)
    maker, ledger = rig.ledgers.values()
    done = [submit(ledger, OTHER, f"c-1-d{number}") for number in range(30)]
    rig.settle()
    kept = refused_once(rig, ledger, maker)
    lose(rig, "c-0-x")
    rig.running.clear()
    crash_without(rig, "c-0")
    rig.wait(20.0)
    for number in range(20):
        theirs = want(ledger, f"c-0-{number}")
        part = submit(ledger, OTHER, f"c-1-p{number}", f"c-0-{number}")
        made = submit(ledger, PLAIN, f"c-1-m{number}", f"c-1-p{number}")
        ledger.dropped.append(part)
        rig.wait(0.5)
        mine = submit(maker, PURE, f"c-0-{number}")
        rig.wait(4.0)
        ledger.dropped.extend([made, theirs])
        maker.dropped.append(mine)
    ledger.dropped.extend(done)
    rig.wait(1.0)
    assert len(ledger.entries) == len(kept) and len(ledger.claims) <= 1


@pytest.mark.parametrize(("crashed", "late"), [(False, 2), (True, 2), (True, 9)])
@pytest.mark.parametrize("put", [hold, scatter])
def test_data_stays_until_what_is_made_of_what_is_made_of_it_is_taken_in(put: Any, crashed: bool, late: int) -> None:
    rig = Rig(clients=2, workers=1)
    maker, ledger = rig.ledgers.values()
    theirs = want(ledger, "c-0-x")
    data = put(ledger, "c-1-d")
    rig.settle()
    part = submit(ledger, PLAIN, "c-1-p", "c-1-d")
    made = submit(ledger, PLAIN, "c-1-y", "c-1-p", "c-0-x")
    ledger.dropped.extend([data, part])
    del data, part
    if crashed:
        rig.wait(0.3)
        lose(rig, "c-1-p")
        crash(rig)
    for _ in range(late):
        theirs = want(ledger, "c-0-x") if theirs.status == CANCELLED else theirs
        rig.wait(1.0)
    submit(maker, PURE, "c-0-x")
    rig.wait(20.0)
    assert made.status == FINISHED, made.outcome
    assert not stored(rig, "c-1-d") or (put is scatter and crashed)  # a successor keeps it as long as its result
