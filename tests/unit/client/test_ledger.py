"""The ledger alone: windows, generations, fences, replay, large values; every message by hand."""

from __future__ import annotations

from typing import Any

import pytest

from zdist import limits
from zdist.core.entry import CANCELLED, ERROR, FINISHED, GIVEN_UP, PENDING, UNHELD, Entry, Work
from zdist.core.ledger import UNKNOWN, Ledger, Over
from zdist.core.machine import BULK, CONTROL
from zdist.core.replay import ASK_AGAIN
from zdist.core.store import Pieces
from zdist.errors import KeyConflict, ProtocolError
from zdist.protocol import messages as m

PURE = Work(b"f" * 32, "f", b"code", (), True)
NAMED_BY_HAND = Work(b"f" * 32, "f", b"code", (), False)
MEMBERS = m.Members((("w-1", "tcp://one", "one", "host", "n-1"), ("w-2", "tcp://two", "two", "host", "n-1")))


def connected(**info: Any) -> Ledger:
    ledger = Ledger("c-1", "token", {"name": "me"})
    ledger.welcomed(m.Welcome(1, 0, True, {"cluster": "x", **info}), 0.0)
    ledger.handle(CONTROL, MEMBERS, 0.0)
    return ledger


def turn(ledger: Ledger, now: float = 0.0) -> list[Any]:
    ledger.turn(now)
    ledger.check()
    return ledger.take().pop(CONTROL, [])


def kinds(messages: list[Any]) -> list[str]:
    return [type(message).__name__ for message in messages]


def answered(ledger: Ledger, now: float = 0.0) -> list[Any]:
    """What follows once the broker has said that it has taken in all that was sent."""
    (req,) = ledger.leaving
    ledger.handle(CONTROL, m.Answer(req, True, None), now)
    return turn(ledger, now)


def finish(ledger: Ledger, key: str, value: bytes | None = b"v", holders: tuple[str, ...] = ("w-1",)) -> None:
    ledger.handle(CONTROL, m.Finished(((key, 1, 100, value, holders, "int"),)), 0.0)


def deny(ledger: Ledger, now: float, *rows: tuple[str, str]) -> None:
    """The broker ends what the ledger wants now of these keys."""
    gens = {key: entry.gen for key, entry in ledger.entries.items()}
    ledger.handle(CONTROL, m.Cancelled(tuple((key, reason, gens.get(key, 0)) for key, reason in rows)), now)


def test_nothing_is_sent_before_the_welcome_and_everything_after() -> None:
    ledger = Ledger("c-1", "token", {"name": "me"})
    ledger.submit(PURE, [("a", b"", ()), ("b", b"", ("a",))])
    assert turn(ledger) == [] and ledger.deadline() is None
    ledger.welcomed(m.Welcome(1, 0, True, {}), 0.0)
    define, submit = turn(ledger)
    assert define == m.Define(PURE.fn, "f", b"code")
    assert [row[0] for row in submit.rows] == ["a", "b"]


def test_tasks_without_a_worker_are_told_of_once_and_until_they_have_one() -> None:
    ledger = connected()
    ledger.handle(CONTROL, m.Starved(((2, "no worker has the tags gpu"),)), 0.0)
    ledger.handle(CONTROL, m.Starved(((3, "no worker has the tags gpu"),)), 0.0)
    assert ledger.starved == ((3, "no worker has the tags gpu"),)
    (told,) = ledger.commands
    assert (told.level, told.event) == ("warning", "tasks.waiting")
    assert told.fields == {"tasks": 2, "reason": "no worker has the tags gpu"}
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    assert ledger.starved == ()


def test_the_window_holds_back_and_opens_again() -> None:
    ledger = connected(window_tasks=2)
    ledger.submit(PURE, [(str(i), b"", ()) for i in range(5)])
    assert [len(x.rows) for x in turn(ledger) if isinstance(x, m.Submit)] == [2]
    assert ledger.deadline() is None
    finish(ledger, "0")
    assert ledger.deadline() == 0.0
    assert [x.rows[0][0] for x in turn(ledger)] == ["2"]


def test_one_task_goes_however_large_it_is() -> None:
    ledger = connected(window_bytes=10)
    ledger.submit(PURE, [("big", b"x" * 1000, ()), ("next", b"", ())])
    assert [len(x.rows) for x in turn(ledger) if isinstance(x, m.Submit)] == [1]


def test_a_turn_sends_a_bounded_number_of_records() -> None:
    ledger = connected()
    ledger.submit(PURE, [(str(i), b"", ()) for i in range(limits.PACKET_RECORDS + 1)])
    assert len(turn(ledger)[-1].rows) == limits.PACKET_RECORDS
    assert ledger.deadline() == 0.0
    assert len(turn(ledger)[-1].rows) == 1


def test_what_was_never_sent_is_released_in_silence() -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    ledger.dropped.append(entry)
    assert turn(ledger) == [] and not ledger.entries


def test_a_million_futures_are_let_go_of_in_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACKET_RECORDS", 10)
    ledger = connected()
    entries = ledger.submit(PURE, [(str(i), b"", ()) for i in range(25)])
    for _ in range(3):
        turn(ledger)
    ledger.dropped.extend(entries)
    rows = []
    while not rows or ledger.deadline() == 0.0:
        (message,) = turn(ledger)
        assert type(message) is m.Release and len(message.rows) <= 10
        rows += message.rows
    assert [key for key, _ in rows] == [str(i) for i in range(25)]
    assert turn(ledger) == [] and ledger.deadline() is None


def test_many_wait_for_a_broker_that_is_behind_and_few_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACKET_RECORDS", 10)
    ledger = connected()
    dropped = ledger.submit(PURE, [(f"a{i}", b"", ()) for i in range(25)])
    while ledger.queue:
        turn(ledger)
    ledger.dropped.extend(dropped)
    assert len(turn(ledger)) == 1
    ledger.ahead = True
    ledger.submit(PURE, [(f"b{i}", b"", ()) for i in range(12)])
    assert turn(ledger) == [] and ledger.deadline() is None
    ledger.ahead = False
    assert ledger.deadline() == 0.0
    assert kinds(turn(ledger)) == ["Release", "Submit"]
    ledger.ahead = True
    assert kinds(turn(ledger)) == ["Submit"]  # as few as a packet takes


def test_a_key_may_stand_for_something_else_once_its_last_future_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACKET_RECORDS", 10)
    ledger = connected()
    entries = ledger.submit(NAMED_BY_HAND, [(str(i), b"", ()) for i in range(25)])
    ledger.dropped.extend(entries)
    ledger.submit(NAMED_BY_HAND, [("24", b"other", ())])
    assert list(ledger.entries) == ["24"]


def test_a_release_names_its_generation() -> None:
    ledger = connected()
    (entry,) = ledger.submit(PURE, [("a", b"", ())])
    old = turn(ledger)[-1].gen
    ledger.dropped.append(entry)
    assert turn(ledger) == [m.Release((("a", old),))]
    ledger.submit(PURE, [("a", b"", ())])
    assert turn(ledger)[-1].gen > old


def test_a_parent_is_released_only_after_its_children_were_submitted() -> None:
    ledger = connected(window_tasks=1)
    (parent,) = ledger.submit(PURE, [("p", b"", ())])
    turn(ledger)
    ledger.submit(PURE, [("c", b"", ("p",))])
    ledger.dropped.append(parent)
    assert turn(ledger) == []
    finish(ledger, "p")
    assert kinds(turn(ledger)) == ["Submit", "Release"]
    assert parent.status == PENDING and "p" in ledger.entries


def test_a_key_of_ones_own_is_not_reused_while_news_of_its_past_may_come() -> None:
    ledger = connected()
    (entry,) = ledger.submit(NAMED_BY_HAND, [("k", b"1", ())])
    turn(ledger)
    ledger.dropped.append(entry)
    release, fence = turn(ledger)
    assert release.rows[0][0] == "k" and fence.what == "fence"
    (again,) = ledger.submit(NAMED_BY_HAND, [("k", b"2", ())])
    assert turn(ledger) == []
    finish(ledger, "k", b"of the past")
    assert again.status == PENDING
    ledger.handle(CONTROL, m.Answer(fence.req, True, None), 0.0)
    assert [x.rows[0][1] for x in turn(ledger)] == [b"2"]


def test_conflicts_leave_no_trace() -> None:
    ledger = connected()
    ledger.submit(NAMED_BY_HAND, [("k", b"1", ())])
    with pytest.raises(KeyConflict):
        ledger.submit(NAMED_BY_HAND, [("other", b"", ()), ("k", b"2", ())])
    turn(ledger)
    assert list(ledger.entries) == ["k"]


def test_cancel_takes_children_that_were_not_sent_with_it() -> None:
    ledger = connected(window_tasks=1)
    (parent,) = ledger.submit(PURE, [("p", b"", ())])
    turn(ledger)
    (child,) = ledger.submit(PURE, [("c", b"", ("p",))])
    ledger.cancel([parent], False)
    turn(ledger)
    assert child.status == CANCELLED and "depends on p: cancelled by client me" in child.outcome
    assert turn(ledger) == []


def test_an_unknown_key_is_asked_for_again_a_few_times() -> None:
    ledger = connected()
    (entry,) = ledger.want(["k"])
    now = 0.0
    for i in range(limits.LOST_RETRIES):
        assert kinds(turn(ledger)) == ["Want"]
        deny(ledger, now, ("k", UNKNOWN))
        deadline = ledger.deadline()
        assert deadline == pytest.approx(now + ASK_AGAIN * 2**i)
        now = deadline
        ledger.tick(now)
    assert kinds(turn(ledger)) == ["Want"]
    deny(ledger, now, ("k", UNKNOWN))
    assert entry.status == CANCELLED and entry.outcome == UNKNOWN
    assert ledger.deadline() is None


def test_a_dropped_function_is_defined_again() -> None:
    ledger = connected()
    ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    ledger.handle(CONTROL, m.WhichFunction(PURE.fn), 0.0)
    assert turn(ledger) == [m.Define(PURE.fn, "f", b"code")]


def test_a_new_broker_is_told_of_what_somebody_holds_or_needs_and_no_more() -> None:
    ledger = connected()
    (done,) = ledger.submit(PURE, [("done", b"", ())])
    (bad,) = ledger.submit(PURE, [("bad", b"", ())])
    (parent,) = ledger.submit(PURE, [("parent", b"", ())])
    (child,) = ledger.submit(PURE, [("child", b"", ("parent",))])
    (large,) = ledger.submit(PURE, [("large", b"", ())])
    ledger.want(["imported"])
    ledger.hold([("data", Pieces([b"x"]), "bytes")], finished=True)
    reply = ledger.ask("workers", None)
    turn(ledger)
    finish(ledger, "done")
    finish(ledger, "large", None)
    ledger.handle(CONTROL, m.Failed((("bad", b"", "bad", "text"),)), 0.0)
    ledger.dropped.append(parent)
    turn(ledger)
    assert (done.status, large.status, bad.status) == (FINISHED, FINISHED, ERROR)

    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    told = turn(ledger)
    rows = [row[0] for message in told if isinstance(message, m.Submit) for row in message.rows]
    assert rows == ["parent", "child", "large", "done"]  # what is finished here is told last
    assert [x.keys for x in told if isinstance(x, m.Want)] == [("imported",)]
    assert [x.rows[0][0] for x in told if isinstance(x, m.Hold)] == ["data"]
    assert [x.what for x in told if isinstance(x, m.Ask)] == ["workers"]
    assert [x.rows[0][0] for x in told if isinstance(x, m.Release)] == ["parent"]
    assert large.status == PENDING and done.status == FINISHED and not reply.done

    assert child.status == PENDING


# --- large values ------------------------------------------------------------------------------------------


def asked(ledger: Ledger) -> list[tuple[str, str]]:
    """Holder and key of all Gets on their way, by whichever path."""
    ledger.turn(0.0)
    return [
        (message.holder, row[0])
        for messages in ledger.take().values()
        for message in messages
        if isinstance(message, m.Get)
        for row in message.rows
    ]


def collected(ledger: Ledger, entries: list[Entry]) -> Any:
    return ledger.collect(entries, False, 0.0)


def test_large_values_are_fetched_as_they_finish() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ()), ("b", b"", ()), ("c", b"", ())])
    turn(ledger)
    collection = collected(ledger, entries)
    collection.enough = 32
    finish(ledger, "a", None)
    assert asked(ledger) == [("w-1", "a")]
    finish(ledger, "b", None, ("w-2",))
    finish(ledger, "c", b"small")
    assert asked(ledger) == [("w-2", "b")]
    assert collection.left == 2 and not collection.ready()
    ledger.collections.close(collection, entries, 0.0)
    assert not ledger.collections.open and not ledger.fetcher.wants("a")
    ledger.check()


def test_bytes_arrive() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    finish(ledger, "a", None)
    collection = collected(ledger, entries)
    ledger.turn(0.0)
    (get,) = [x for x in ledger.take()[BULK] if isinstance(x, m.Get)]
    ledger.handle(BULK, m.Data(get.req, "c-1", (("a", 1, 100, 0, (b"x" * 100,)),), ()), 0.0)
    ledger.turn(0.0)
    assert collection.ready() and collection.left == 0
    assert [(entry.key, b"".join(pieces)) for entry, pieces in collection.arrived] == [("a", b"x" * 100)]


def test_what_its_holder_has_not_is_waited_for_again() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    finish(ledger, "a", None)
    collection = collected(ledger, entries)
    ledger.turn(0.0)
    (get,) = [x for x in ledger.take()[BULK] if isinstance(x, m.Get)]
    ledger.handle(BULK, m.Data(get.req, "c-1", (), (("a", "unknown", ""),)), 0.0)
    assert turn(ledger) == [m.Missing((("a", ("w-1",)),))]
    assert entries[0].status == PENDING and not collection.ready()
    finish(ledger, "a", None, ("w-2",))
    assert asked(ledger) == [("w-2", "a")]


def test_a_result_lost_while_it_is_fetched_is_fetched_anew() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    finish(ledger, "a", None)
    collection = collected(ledger, entries)
    assert asked(ledger) == [("w-1", "a")]
    ledger.handle(CONTROL, m.Lost(("a",)), 0.0)
    assert entries[0].status == PENDING and collection.left == 1 and not ledger.fetcher.wants("a")
    finish(ledger, "a", b"came inline now")
    ledger.turn(0.0)
    assert collection.ready() and collection.left == 0


def test_cancelled_while_it_is_fetched() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    finish(ledger, "a", None)
    collection = collected(ledger, entries)
    ledger.cancel(entries, False)
    ledger.turn(0.0)
    assert collection.ready() and collection.failed == 1 and not ledger.fetcher.wants("a")


def test_data_of_this_client_is_here_already() -> None:
    ledger = connected()
    entries = ledger.hold([("d", Pieces([b"bytes"]), "bytes")], finished=True)
    collection = collected(ledger, entries)
    assert collection.ready() and [(e.key, pieces) for e, pieces in collection.arrived] == [("d", [b"bytes"])]


# --- the end ------------------------------------------------------------------------------------------------


def test_a_refusal_ends_everything_once() -> None:
    ledger = connected()
    kept, open_ = ledger.submit(PURE, [("kept", b"", ()), ("open", b"", ())])
    reply = ledger.ask("workers", None)
    turn(ledger)
    finish(ledger, "kept")
    ledger.refused("gone", "silent for too long", 0.0)
    ledger.refused("gone", "again", 0.0)
    assert (kept.status, open_.status) == (FINISHED, CANCELLED) and open_.outcome == "silent for too long"
    assert reply.done and not reply.ok
    assert [x for x in ledger.commands if isinstance(x, Over)] == [Over("gone", "silent for too long")]
    assert ledger.ask("workers", None).done


def test_messages_that_are_not_for_clients() -> None:
    with pytest.raises(ProtocolError, match="Run"):
        connected().handle(CONTROL, m.Run(b"f", ()), 0.0)


def test_a_broker_that_had_given_the_session_up_is_told_everything_again() -> None:
    ledger = connected()
    pending, done = ledger.submit(PURE, [("a", b"", ()), ("b", b"", ())])
    turn(ledger)
    finish(ledger, "b")
    ledger.welcomed(m.Welcome(1, 0, True, {}), 0.0)
    define, claim, submit = turn(ledger)
    assert isinstance(define, m.Define) and [row[0] for row in submit.rows] == ["a", "b"]
    assert claim.rows == (("a", m.ANY),) and pending.gen == submit.gen and done.status == FINISHED
    assert claim.values == (("b", 1, 100, b"v", "int"),)  # nobody need hold it, nor compute it again


def succeeded(ledger: Ledger, now: float = 10.0, epoch: int = 2) -> list[Any]:
    """Another broker takes over and gives its workers 2 s; what is said to it after these."""
    ledger.welcomed(m.Welcome(epoch, 0, True, {"recover": 2.0}), now)
    ledger.turn(now)
    assert not [x for x in ledger.take().pop(CONTROL, []) if not isinstance(x, m.Hold)]
    assert ledger.deadline() == now + 2.0
    ledger.turn(now + 2.0)
    ledger.check()
    return ledger.take().pop(CONTROL, [])


def test_a_successor_is_told_what_had_been_finished_when_workers_have_had_time_to_come() -> None:
    ledger = connected()
    entries = ledger.submit(PURE, [("far", b"", ()), ("near", b"", ()), ("open", b"", ("far",))])
    turn(ledger)
    finish(ledger, "far", None)
    finish(ledger, "near")
    _, claim, submit = succeeded(ledger)
    assert claim.rows == (("far", 1), ("open", m.ANY))  # it may have been finished when the broker died
    assert claim.values == (("near", 1, 100, b"v", "int"),)
    assert [row[0] for row in submit.rows] == ["far", "open", "near"]
    assert [entry.status for entry in entries] == [PENDING, FINISHED, PENDING]
    assert turn(ledger, 100.0) == [] and not ledger.claims


def test_what_only_others_were_made_of_is_not_started_for_a_successor() -> None:
    ledger = connected()
    a, b = ledger.submit(PURE, [("a", b"", ()), ("b", b"", ("a",))])
    turn(ledger)
    finish(ledger, "b", None)
    ledger.dropped.append(a)
    turn(ledger)
    _, claim, submit, ask = succeeded(ledger)
    assert claim == m.Claim((("a", m.ANY_SPEC), ("b", 1))) and ask == m.Ask(ask.req, "fence", None)
    (release,) = answered(ledger, 12.0)
    assert release == m.Release((("a", submit.gen),)) and b.gen == submit.gen


def test_only_the_attempt_that_was_heard_of_counts_where_a_key_may_have_been_used_before() -> None:
    ledger = Ledger("c-0123456789", "token", {"name": "me"})
    ledger.welcomed(m.Welcome(1, 0, True, {}), 0.0)
    a, b, c = ledger.submit(NAMED_BY_HAND, [("a", b"", ()), ("b", b"", ("a",)), ("c", b"", ())])
    (own,) = ledger.submit(NAMED_BY_HAND, [(f"f-{ledger.session[2:]}7", b"", ())])
    turn(ledger)
    finish(ledger, "b", None)
    ledger.dropped.append(a)
    turn(ledger)
    messages = succeeded(ledger)
    claims = dict(row for message in messages if isinstance(message, m.Claim) for row in message.rows)
    assert claims == {"a": m.SPEC, "b": 1, "c": m.TOLD, own.key: m.ANY}
    assert b.gen and c.gen
    again = dict(row for message in succeeded(ledger) if isinstance(message, m.Claim) for row in message.rows)
    assert again == claims  # one more successor, which came before anything was answered


def test_specs_that_are_not_started_leave_the_window_open() -> None:
    ledger = connected(window_tasks=50)
    entries = ledger.submit(PURE, [(str(i), b"", (str(i - 1),) if i else ()) for i in range(10)])
    turn(ledger)
    ledger.dropped.extend(entries[:-1])
    turn(ledger)
    ledger.welcomed(m.Welcome(2, 0, True, {"window_tasks": 2}), 0.0)
    sent = 0
    while ledger.queue:
        sent += sum(len(x.rows) for x in turn(ledger) if isinstance(x, m.Submit))
    assert sent == 10 and ledger.flying == 1
    assert "Release" in kinds(turn(ledger)) or not ledger.spent


def test_scattered_data_is_asked_for_as_long_as_somebody_may_bring_it_back() -> None:
    ledger = connected()
    ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    turn(ledger)
    finish(ledger, "x", None)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    succeeded(ledger, 10.0)
    now, asked = 12.0, 0
    while "x" in ledger.entries:
        deny(ledger, now, ("x", UNKNOWN))
        if "x" in ledger.entries:
            now = max(now, ledger.deadline() or 0.0)
            ledger.tick(now)
            ledger.turn(now)
            claim, want = ledger.take()[CONTROL]
            assert claim == m.Claim((("x", 0),)) and want.keys == ("x",)
            asked += 1
    assert asked >= 5 and now >= 10.0 + limits.SOUGHT - limits.RECOVERY


def test_a_value_that_was_had_from_others_goes_along_with_what_is_made_of_it() -> None:
    """Its maker may not have come back yet; it is no less finished if the broker does not take it."""
    ledger = connected()
    (x,) = ledger.want(["x"])
    turn(ledger)
    finish(ledger, "x")
    claim, want = succeeded(ledger, 10.0)
    assert claim == m.Claim((), (("x", 1, 100, b"v", "int"),)) and want.keys == ("x",)
    ledger.submit(PURE, [("c", b"", ("x",))])
    *_, submit = turn(ledger)
    assert [row[0] for row in submit.rows] == ["c"]
    deny(ledger, 12.5, ("x", UNKNOWN))
    assert x.value_here() and not x.gen and ledger.entries["x"] is x
    deny(ledger, 12.5, ("x", "cancelled by client other"))
    assert x.value_here()  # said of a want that is over


def test_what_was_had_from_others_is_claimed_at_the_next_broker() -> None:
    """Its maker may want it no more, and submit it no more."""
    ledger = connected()
    ledger.want(["x"])
    turn(ledger)
    finish(ledger, "x", None)
    claim, want = succeeded(ledger, 10.0)
    assert claim == m.Claim((("x", 1),)) and want.keys == ("x",)
    finish(ledger, "x", None)
    assert not ledger.imports


def test_data_that_went_because_the_client_had_been_given_up_says_so() -> None:
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    turn(ledger)
    finish(ledger, "x", None)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    (made,) = ledger.submit(PURE, [("b", b"", ("x",))])
    call = ledger.call(None, b"")
    turn(ledger)
    ledger.given_up = True
    ledger.welcomed(m.Welcome(1, 0, True, {}), 0.0)
    assert turn(ledger)
    now = 0.0
    while data.status == PENDING or made.status == PENDING:  # it is asked for a few times
        lacks = (("x", UNKNOWN), ("b", "depends on x, which nobody holds"))
        deny(ledger, now, *lacks)
        now += 2 * ASK_AGAIN * 2**limits.LOST_RETRIES
        ledger.tick(now)
        ledger.turn(now)
    assert data.status == made.status == CANCELLED
    assert data.outcome == f"{UNKNOWN}: scattered data lost: {GIVEN_UP}"
    assert made.outcome == f"depends on x, which nobody holds: scattered data lost: {GIVEN_UP}"
    assert GIVEN_UP in call.value


def test_of_what_nobody_has_the_client_says_whether_it_had_scattered_it() -> None:
    ledger = connected()
    ledger.hold([("x", Pieces([b"data"]), "bytes"), ("y", Pieces([b"data"]), "bytes")], finished=False)
    ledger.want(["z"])
    made = ledger.submit(PURE, [("a", b"", ("x", "z")), ("b", b"", ("x", "z")), ("c", b"", ("y",))])
    for entry in ledger.entries.values():
        ledger.again[entry.key] = (0.0, limits.LOST_RETRIES)
    turn(ledger)
    deny(ledger, 0.0, ("x", UNKNOWN), ("z", UNKNOWN))
    lacks = (("a", f"depends on x{UNHELD}"), ("b", f"depends on z{UNHELD}"), ("c", "cancelled by client other"))
    deny(ledger, 0.0, *lacks)
    assert [entry.outcome for entry in made] == [
        f"depends on x{UNHELD}: scattered data lost", f"depends on z{UNHELD}", "cancelled by client other",
    ]  # fmt: skip


def test_a_finished_task_that_is_wanted_again_before_its_broker_knows_it_stays_finished() -> None:
    """It is but part of what was made of it while the successor waits for workers (seed 824229)."""
    ledger = connected()
    made, user = ledger.submit(PURE, [("a", b"", ()), ("b", b"", ("a",))])
    turn(ledger)
    finish(ledger, "a")
    turn(ledger)
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 1.5}), 10.0)
    ledger.dropped.append(made)
    turn(ledger, 10.0)
    assert ledger.submit(PURE, [("a", b"", ())]) == [made]
    assert made.value_here()
    messages = turn(ledger, 12.0)
    (claim,) = [message for message in messages if isinstance(message, m.Claim)]
    assert claim.values == (("a", 1, 100, b"v", "int"),)
    assert [row[0] for x in messages if isinstance(x, m.Submit) for row in x.rows] == ["a", "b"]
    assert made.gen and user.status == PENDING
    ledger.check()


@pytest.mark.parametrize("recover", [None, 0.0, 2.0])
def test_data_that_is_kept_for_others_is_kept_for_the_next_broker(recover: float | None) -> None:
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True)
    turn(ledger)
    ledger.dropped.append(data)
    assert kinds(turn(ledger)) == ["Release"] and ledger.store.get("x")
    ledger.welcomed(m.Welcome(2, 0, True, {} if recover is None else {"recover": recover}), 10.0)
    told = [message for message in turn(ledger) if isinstance(message, m.Held)]
    if recover is None:  # the same broker, which had given this client up: nobody can want it any more
        assert told == [] and not ledger.store.get("x")
        return
    assert told == [m.Held((("x", 0, 4, "bytes"),))]
    ledger.handle(CONTROL, m.Drop(("x",)), 20.0)
    assert not ledger.store.get("x")


def test_what_is_held_for_the_cluster_is_told_in_parts() -> None:
    ledger = connected()
    count = 2 * limits.PACKET_RECORDS + 1
    kept = ledger.hold([(f"x{i}", Pieces([b"data"]), "bytes") for i in range(count)], finished=True)
    holds = [message for message in turn(ledger) if isinstance(message, m.Hold)]
    assert [len(hold.rows) for hold in holds] == [limits.PACKET_RECORDS] * 2 + [1]
    assert len({hold.gen for hold in holds}) == 3 and kept[-1].gen == holds[-1].gen
    ledger.dropped.extend(kept)
    while turn(ledger):
        pass
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 2.0}), 10.0)
    told = [message for message in turn(ledger) if isinstance(message, m.Held)]
    assert [len(held.rows) for held in told] == [limits.PACKET_RECORDS] * 2 + [1]


def test_a_result_is_claimed_though_what_it_was_made_of_is_gone() -> None:
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=True)
    (entry,) = ledger.submit(PURE, [("b", b"", ("x",))])
    turn(ledger)
    finish(ledger, "b", None)
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 2.0}), 10.0)
    data.status, data.outcome = CANCELLED, UNKNOWN
    ledger.turn(12.0)
    claims = [x for x in ledger.take()[CONTROL] if isinstance(x, m.Claim)]
    assert claims == [m.Claim((("b", 1),))] and entry.status == PENDING


@pytest.mark.parametrize("again", [False, True])
def test_what_it_was_made_of_is_named_otherwise_once_its_key_stands_for_other_data(again: bool) -> None:
    ledger = connected()
    (old,) = ledger.hold([("x", Pieces([b"old"]), "bytes")], finished=True)
    ledger.submit(PURE, [("b", b"", ("x",))])
    turn(ledger)
    finish(ledger, "b", None)
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 2.0}), 10.0)
    if again:
        ledger.cancel([old], force=False)
        ledger.hold([("x", Pieces([b"new"]), "bytes")], finished=True)
    ledger.turn(12.0)
    (submit,) = [x for x in ledger.take()[CONTROL] if isinstance(x, m.Submit)]
    assert [row[2] for row in submit.rows] == [(f"x-before-{ledger.session}" if again else "x",)]


def test_what_had_finished_is_remembered_over_a_second_crash() -> None:
    ledger = connected()
    ledger.submit(NAMED_BY_HAND, [("a", b"", ())])
    turn(ledger)
    finish(ledger, "a", None)
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 2.0}), 5.0)
    ledger.take()
    ledger.welcomed(m.Welcome(3, 0, True, {"recover": 2.0}), 6.0)
    ledger.turn(8.0)
    assert m.Claim((("a", 1),)) in ledger.take()[CONTROL]


def test_a_future_of_it_that_is_made_meanwhile_is_asked_for() -> None:
    ledger = connected()
    a, _ = ledger.submit(PURE, [("a", b"", ()), ("b", b"", ("a",))])
    turn(ledger)
    ledger.dropped.append(a)
    turn(ledger)
    ledger.window = (1, 1)
    ledger.welcomed(m.Welcome(2, 0, True, {"window_tasks": 1}), 0.0)
    _, claim, submit = turn(ledger)
    assert claim == m.Claim((("a", m.ANY_SPEC),)) and [row[0] for row in submit.rows] == ["a"]
    a.refs += 1
    finish(ledger, "a", None)
    assert kinds(turn(ledger)) == ["Claim", "Submit", "Want"]


def test_scattered_and_imported_keys_are_asked_for_when_workers_have_had_time_to_come() -> None:
    ledger = connected()
    (data,) = ledger.hold([("x", Pieces([b"data"]), "bytes")], finished=False)
    turn(ledger)
    finish(ledger, "x", None)
    ledger.handle(CONTROL, m.Drop(("x",)), 0.0)
    ledger.want(["other"])
    turn(ledger)
    claim, want = succeeded(ledger)
    assert claim == m.Claim((("x", 0),)) and set(want.keys) == {"x", "other"}
    assert data.gen == want.gen


def test_keys_imported_while_a_successor_waits_for_workers_are_asked_for_with_the_others() -> None:
    ledger = connected()
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 2.0}), 10.0)
    ledger.want(["other"])
    ledger.turn(10.0)
    assert ledger.take() == {}
    ledger.turn(12.0)
    assert [x.keys for x in ledger.take()[CONTROL]] == [("other",)]


def test_what_depends_on_a_failure_of_an_earlier_broker_fails_with_it_to_the_last_link() -> None:
    ledger = connected()
    (first,) = ledger.submit(PURE, [("a", b"", ())])
    turn(ledger)
    ledger.handle(CONTROL, m.Failed((("a", b"pickle", "a", "text"),)), 0.0)
    ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    turn(ledger)
    (second,) = ledger.submit(PURE, [("b", b"", ("a",))])
    (third,) = ledger.submit(PURE, [("c", b"", ("b",))])
    turn(ledger)
    assert first.status == second.status == third.status == ERROR
    assert third.outcome == first.outcome
    ledger.dropped.extend((first, second, third))
    turn(ledger)
    assert not ledger.entries


def test_a_key_submitted_after_its_import_was_released_is_not_taken_for_unknown() -> None:
    ledger = connected()
    ledger.dropped.extend(ledger.want(["k"]))
    assert kinds(turn(ledger)) == ["Want", "Release", "Ask"]
    (entry,) = ledger.submit(PURE, [("k", b"", ())])
    turn(ledger)
    deny(ledger, 0.0, ("k", UNKNOWN))  # the answer to the import
    assert entry.status == PENDING
    ledger.handle(CONTROL, m.Answer(ledger.req, True, True), 0.0)
    assert "Submit" in kinds(turn(ledger))
    finish(ledger, "k")
    assert entry.status == FINISHED


def test_a_retry_looks_at_each_failed_parent_once_however_many_ways_lead_there() -> None:
    ledger = connected()
    layers = [("a0", "b0"), *((f"a{n}", f"b{n}") for n in range(1, 60))]
    rows = [(key, b"", layers[n - 1] if n else ()) for n, layer in enumerate(layers) for key in layer]
    entries = ledger.submit(PURE, rows)
    turn(ledger)
    ledger.handle(CONTROL, m.Failed(tuple((row[0], b"pickle", "a0", "text") for row in rows)), 0.0)
    ledger.retry([entries[-1]])
    (retry,) = turn(ledger)
    assert sorted(retry.keys) == sorted({row[0] for row in rows} - {"a59"})
    assert all(
        retry.keys.index(dep) < retry.keys.index(key) for key, _, deps in rows if key in retry.keys for dep in deps
    )
