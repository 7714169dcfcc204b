"""What a gather makes of what its fetcher brings in, gives up or warns of, and of results that change meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from test_ledger import PURE, asked, collected, connected, finish, turn

from zdist.core.entry import PENDING, Entry
from zdist.core.ledger import Ledger
from zdist.core.links import CLOSED
from zdist.core.machine import BULK, CONTROL
from zdist.protocol import messages as m


def gets(ledger: Ledger) -> list[m.Get]:
    """Requests through the broker that are on their way."""
    return [message for message in ledger.take().get(BULK, []) if isinstance(message, m.Get)]


def results(*keys: str) -> tuple[Ledger, list[Entry]]:
    """A client with large results of these keys, all at one worker."""
    ledger = connected()
    entries = ledger.submit(PURE, [(key, b"", ()) for key in keys])
    turn(ledger)
    for key in keys:
        finish(ledger, key, None)
    turn(ledger)
    return ledger, entries


def data(ledger: Ledger, get: m.Get, piece: Any = b"x" * 100) -> None:
    ledger.handle(BULK, m.Data(get.req, "c-1", (("a", 1, 100, 0, (piece,)),), ()), 0.0)


def absent(ledger: Ledger, get: m.Get, code: str = "unknown") -> None:
    ledger.handle(BULK, m.Data(get.req, "c-1", (), (("a", code, ""),)), 0.0)


def test_what_is_finished_is_asked_for_at_once() -> None:
    ledger, entries = results("a")
    collected(ledger, entries)
    assert [row[0] for get in gets(ledger) for row in get.rows] == ["a"]


def test_bytes_that_came_before_the_news_of_their_loss_count() -> None:
    ledger, entries = results("a")
    collection = collected(ledger, entries)
    (get,) = gets(ledger)
    data(ledger, get)
    ledger.handle(CONTROL, m.Lost(("a",)), 0.0)
    turn(ledger)
    assert collection.ready() and [entry.key for entry, _ in collection.arrived] == ["a"]


def test_what_one_could_not_have_before_the_news_of_its_loss_is_waited_for_once() -> None:
    ledger, entries = results("a")
    first = collected(ledger, entries)
    (get,) = gets(ledger)
    second = ledger.collect(entries, True, 0.0)  # by the peer path, and so by itself
    absent(ledger, get)
    ledger.handle(CONTROL, m.Lost(("a",)), 0.0)
    turn(ledger)
    assert (first.left, second.left) == (1, 1)
    finish(ledger, "a", b"came inline now")
    turn(ledger)
    assert first.ready() and second.ready()


def test_the_loss_of_one_result_does_not_take_others_from_who_waits_for_both() -> None:
    ledger, (a,) = results("a")
    (b,) = ledger.submit(PURE, [("b", b"", ())])
    turn(ledger)
    for entries in ([a], [a, b]):
        collected(ledger, entries)
    (get,) = gets(ledger)
    absent(ledger, get)
    finish(ledger, "b", None, ("w-2",))
    assert asked(ledger) == [("w-2", "b")]


def test_what_is_lost_before_it_was_asked_for_is_not_asked_for() -> None:
    ledger, entries = results("a", "b")
    collection = collected(ledger, [])
    for entry in entries:
        collection.begin(collection, entry)  # as they finish
    ledger.handle(CONTROL, m.Lost(("a",)), 0.0)
    assert asked(ledger) == [("w-1", "b")]


@pytest.mark.parametrize("lost", [False, True])
def test_a_holder_that_cannot_be_reached_does_not_have_it(lost: bool) -> None:
    ledger, entries = results("a")
    collection = collected(ledger, entries)
    ledger.fetcher.drop(collection.ticket, ("a",), 0.0)
    ledger.fetcher.failed.append(((collection.ticket,), "a", "unreachable", "no way", ("w-1",)))
    if lost:
        ledger.handle(CONTROL, m.Lost(("a",)), 0.0)
    assert turn(ledger) == ([] if lost else [m.Missing((("a", ("w-1",)),))])
    assert entries[0].status == PENDING and collection.left == 1 and not collection.broken


def test_what_cannot_be_pickled_is_broken() -> None:
    ledger, entries = results("a")
    collection = collected(ledger, entries)
    (get,) = gets(ledger)
    absent(ledger, get, "unpicklable")
    assert turn(ledger) == []
    assert collection.ready() and collection.broken.keys() == {"a"}


def test_who_wanted_the_peer_path_is_warned_that_it_is_closed() -> None:
    ledger, entries = results("a")
    ledger.fetcher.links.peers["w-1"].state = CLOSED
    ledger.fetcher.warnings.append((99, "one", "of a gather that is over"))
    collection = ledger.collect(entries, True, 0.0)
    assert [worker for worker, _ in collection.warnings] == ["one"]
    assert not ledger.fetcher.warnings


@pytest.mark.parametrize("callers", [1, 2])
def test_bytes_of_several_callers_are_nobodys_to_change(callers: int) -> None:
    ledger, entries = results("a")
    collections = [collected(ledger, entries) for _ in range(callers)]
    (get,) = gets(ledger)
    data(ledger, get, bytearray(100))
    turn(ledger)
    for collection in collections:
        ((_, (piece,)),) = collection.arrived
        assert memoryview(piece).readonly == (callers > 1)


@pytest.mark.parametrize("enough", [1, 32])
def test_a_stream_is_told_of_a_value_that_came_along_while_others_are_computed(enough: int) -> None:
    """Its consumer may only then do what the others wait for; a gather waits for all of them anyway."""
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ()), ("b", b"", ())])
    turn(ledger)
    collection = collected(ledger, entries)
    collection.enough = enough
    told: list[bool] = []
    collection.notify = lambda: told.append(True)
    finish(ledger, "a")
    turn(ledger)
    assert told == [True] * (enough == 1)
    collection.seen = collection.came
    assert not collection.ready()
