"""What clients do while answers to what they did before are on their way: keys of others, retry, cancel, forget."""

from __future__ import annotations

import pytest
from ledger_rig import OTHER, PLAIN, PURE, Rig, scatter, submit, want

from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING
from zdist.protocol import messages as m


def test_what_is_made_of_a_rejected_key_is_not_computed_with_another_clients_call() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    submit(one, OTHER, "k")
    rig.settle()
    k = submit(two, PLAIN, "k")  # another call: will be rejected
    d = submit(two, PURE, "d", "k")  # sent before that is known
    rig.settle()
    assert k.status == ERROR and k.outcome[0] == "rejected"
    assert d.status == ERROR


def test_retry_of_a_rejected_future_whose_key_is_used_again_does_not_hang() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    submit(one, OTHER, "k")
    rig.settle()
    k = submit(two, PLAIN, "k")
    rig.settle()
    assert k.status == ERROR
    want(two, "k")
    two.retry([k])
    rig.wait(5.0)
    assert k.status != PENDING


def test_cancel_of_a_stale_future_does_not_hang_a_newer_one() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    first = submit(one, OTHER, "k")
    rig.settle()
    stale = submit(two, PLAIN, "k")
    rig.settle()
    assert stale.status == ERROR
    one.dropped.append(first)
    rig.settle()
    rig.slow.add("k")
    newer = submit(two, PLAIN, "k")
    rig.settle()
    two.cancel([stale], False)
    rig.wait(5.0)
    assert newer.status == PENDING and newer.gen
    assert "k" in rig.broker.tables.tasks
    rig.finish("k")
    rig.settle()
    assert newer.status == FINISHED


def test_a_rejection_that_crosses_the_resubmission_of_forget_leaves_nothing_behind() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    rig.slow.add("k")
    first = submit(one, OTHER, "k")
    rig.settle()
    k = submit(two, PLAIN, "k")
    rig.up()
    rig.serve()  # Rejected is on its way
    one.dropped.append(first)
    two.forget([k])
    two.dropped.append(k)
    rig.up()  # Release of one, then the second Submit of two
    rig.slow.discard("k")
    rig.settle()
    rig.wait(5.0)
    assert not rig.broker.tables.clients["c-1"].wants and not rig.broker.tables.tasks


def test_forget_of_a_task_whose_parent_was_cancelled_leaves_nothing_behind() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    other = submit(two, PURE, "p")  # so the parent and what depends on it stay, as others want it
    rig.slow.update(("p", "d"))
    rig.settle()
    p = submit(one, PURE, "p")
    d = submit(one, PLAIN, "d", "p")
    rig.settle()
    one.cancel([p], False)
    rig.settle()
    assert d.status == PENDING and d.gen
    one.forget([d])
    rig.settle()
    rig.finish("p")
    rig.settle()
    if "d" in rig.running:
        rig.finish("d")
    rig.settle()
    for ledger, entry in ((one, p), (one, d), (two, other)):
        ledger.dropped.append(entry)
    rig.settle()
    rig.wait(5.0)
    assert not rig.broker.tables.clients["c-0"].wants and not rig.broker.tables.tasks


def test_other_data_under_a_name_whose_bytes_are_still_here() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    first = scatter(ledger, "x", b"first")
    rig.up()
    ledger.dropped.append(first)
    rig.up()  # released; Drop has not come yet
    scatter(ledger, "x", b"other")
    assert b"".join(bytes(p) for p in ledger.store.get("x").blob.pieces) == b"other"


def test_bytes_of_released_data_that_is_asked_for_again_are_dropped() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    first = scatter(one, "x")
    other = scatter(two, "x")
    rig.up()
    rig.serve()  # placed: Finished and Drop are on their way to both
    one.dropped.append(first)
    rig.up()
    again = want(one, "x")
    rig.down()
    rig.settle()
    one.dropped.append(again)
    two.dropped.append(other)
    rig.settle()
    rig.wait(5.0)
    assert not rig.broker.tables.tasks
    assert not one.store.entries


def test_what_only_a_finished_task_was_made_of_is_not_asked_for_and_computed_again() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    w = want(one, "a")  # before its maker submits it
    rig.up()
    rig.serve()
    rig.down()
    rig.up()
    assert "a" in one.again
    made = submit(two, PURE, "a")
    rig.settle()
    d = submit(one, PLAIN, "d", "a")
    one.dropped.append(w)
    rig.settle()
    assert d.status == FINISHED
    two.dropped.append(made)
    rig.settle()
    attempt = rig.broker.tables.attempt
    rig.wait(5.0)
    assert rig.broker.tables.attempt == attempt and "a" not in rig.broker.tables.clients["c-0"].wants


def test_a_late_copy_of_data_is_not_taken_for_one_of_what_is_scattered_again() -> None:
    rig = Rig(workers=1)
    ledger = rig.ledgers["c-0"]
    acts: list[m.Message] = []

    def act(worker: str, message: m.Message) -> bool:
        acts.append(message)
        return False

    rig._act = act  # type: ignore[method-assign]
    first = scatter(ledger, "x", b"data")
    rig.up()
    rig.serve()
    assert type(acts.pop()) is m.Replicate
    late = m.Held((("x", 0, 4, "bytes"),))  # w-0 has fetched it: on its way
    ledger.dropped.append(first)
    rig.up()
    rig.serve()
    assert any(type(message) is m.Drop for message in acts)  # and this goes the other way
    rig.down()
    again = scatter(ledger, "x", b"atad")
    rig.up()
    rig.serve()
    rig.broker.handle("w-0", late, rig.now)
    rig.serve()
    rig.down()
    rig.up()
    assert not (again.status == FINISHED and ledger.store.get("x") is None), "its only copy is about to be dropped"


def test_a_want_that_a_submission_is_to_replace_ends_with_its_futures() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    rig.slow.add("a")
    made = submit(one, PURE, "a")
    rig.settle()
    w = want(two, "a")
    rig.settle()
    again = submit(two, PURE, "a")  # now it is known how it is computed; and both futures go in the same turn
    two.dropped.extend((w, again))
    rig.settle()
    rig.finish("a")
    rig.settle()
    one.dropped.append(made)
    rig.settle()
    rig.wait(5.0)
    assert not two.entries
    assert not rig.broker.tables.clients["c-1"].wants and not rig.broker.tables.tasks


def test_retry_of_a_rejected_future_is_not_computed_from_another_call_under_its_inputs_key() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    first = submit(one, OTHER, "k")
    p = submit(two, PLAIN, "p")
    k = submit(two, PLAIN, "k", "p")
    rig.settle()
    assert k.status == ERROR and k.outcome[0] == "rejected"
    two.dropped.append(p)
    one.dropped.append(first)
    rig.settle()
    submit(two, OTHER, "p")  # the name is used again
    two.retry([k])
    rig.settle()
    assert k.status != FINISHED


def test_tasks_that_are_to_run_on_stay_within_the_window() -> None:
    rig = Rig()
    ledger = rig.ledgers["c-0"]
    ledger.window = (10, 1 << 30)
    for number in range(40):
        key = f"k{number}"
        rig.slow.add(key)
        entry = submit(ledger, PURE, key)
        rig.settle()
        ledger.forget([entry])
        ledger.dropped.append(entry)
        rig.settle()
    assert len(rig.broker.tables.tasks) <= 11


def test_a_result_that_is_held_outlives_an_input_that_is_not_taken_any_more() -> None:
    rig = Rig(workers=3)
    ledger = rig.ledgers["c-0"]
    data = scatter(ledger, "d")
    rig.settle()
    made = submit(ledger, PURE, "k", "d")
    last = submit(ledger, PURE, "c", "k")
    rig.settle()
    ledger.dropped.append(data)
    rig.settle()
    for store in rig.stores.values():
        store.pop("k", None)
        store.pop("d", None)
    rig.succeed()
    rig.wait(20.0)
    assert made.status == CANCELLED and last.status == FINISHED


def test_a_submission_of_an_imported_key_that_is_refused_leaves_no_want_behind() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    entries = [(one, submit(one, PLAIN, "k")), (one, submit(one, PURE, "d", "k"))]
    rig.slow.add("d")
    rig.settle()
    entries.append((two, want(two, "d")))
    rig.settle()
    entries += [(two, submit(two, OTHER, "k")), (two, submit(two, PURE, "d", "k"))]
    rig.settle()
    rig.finish("d")
    rig.settle()
    for ledger, entry in entries:
        ledger.dropped.append(entry)
    rig.wait(3.0)
    assert not rig.broker.tables.tasks and not rig.broker.tables.clients["c-1"].wants


def test_a_key_that_was_not_taken_may_be_taken_later_and_so_may_what_is_made_of_it() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    first = submit(one, OTHER, "k")
    rig.settle()
    refused = [submit(two, PLAIN, "k"), submit(two, PURE, "d", "k"), submit(two, PURE, "e", "d")]
    rig.settle()
    assert [entry.status for entry in refused] == [ERROR] * 3
    assert list(rig.broker.tables.tasks) == ["k"] and not rig.broker.tables.clients["c-1"].wants
    one.dropped.append(first)
    two.dropped.extend(refused)
    rig.settle()
    made = submit(two, PLAIN, "k"), submit(two, PURE, "d", "k"), submit(two, PURE, "e", "d")
    rig.settle()
    assert [entry.status for entry in made] == [FINISHED] * 3


def test_what_is_made_of_a_rejected_key_does_not_join_the_same_of_another() -> None:
    rig = Rig(clients=2)
    one, two = rig.ledgers.values()
    submit(one, OTHER, "k")
    submit(one, PURE, "d", "k")
    rig.settle()
    submit(two, PLAIN, "k")
    joined = submit(two, PURE, "d", "k")
    rig.settle()
    assert joined.status == ERROR and not rig.broker.tables.clients["c-1"].wants


@pytest.mark.parametrize("late", [0.3, 1.0, 3.0])
def test_what_a_refused_task_is_made_of_is_not_submitted_anew_with_each_try(late: float) -> None:
    """Nobody holds its future, and it is not to start as often as the other is tried."""
    rig = Rig(clients=2)
    maker, ledger = rig.ledgers.values()
    submitted: list[str] = []
    handle = rig.broker.handle

    def note(session: str, message: m.Message, now: float) -> None:
        if isinstance(message, m.Submit):
            submitted.extend(row[0] for row in message.rows)
        handle(session, message, now)

    rig.broker.handle = note  # type: ignore[method-assign]
    theirs = want(ledger, "c-0-x")
    part = submit(ledger, OTHER, "c-1-p")
    made = submit(ledger, PLAIN, "c-1-y", "c-1-p", "c-0-x")
    ledger.dropped.append(part)
    rig.wait(late)
    submit(maker, PURE, "c-0-x")
    rig.wait(10.0)
    assert made.status == FINISHED and submitted.count("c-1-y") > submitted.count("c-1-p") <= 2
    ledger.dropped.extend([made, theirs])
    rig.wait(1.0)
    assert not ledger.entries and list(rig.broker.tables.tasks) == ["c-0-x"]


def test_data_that_is_refused_when_its_future_is_gone_is_not_kept() -> None:
    """Another client has other data of that name (seed 4115886)."""
    rig = Rig(clients=2)
    theirs, ledger = rig.ledgers.values()
    kept = scatter(theirs, "x")
    rig.settle()
    refused = scatter(ledger, "x", b"other")
    rig.up()
    ledger.dropped.append(refused)
    rig.settle()
    assert not ledger.entries and not ledger.store.entries and kept.status == FINISHED
