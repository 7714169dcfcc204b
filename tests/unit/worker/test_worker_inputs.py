"""What a worker makes of news of its tasks' dependencies."""

from __future__ import annotations

import pytest
from test_worker_machine import OTHER, SMALL, control, define, fail, machine, run, said, start

from zdist import limits
from zdist.protocol import messages as m

THIRD = "w-00000000000000cc"


def test_another_task_may_know_better_where_a_dependency_is() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (OTHER,), None)])
    run(worker, "b", deps=[("dep", 6, (THIRD,), None)])
    assert worker.fetcher.tables[None]["dep"].holders == (THIRD,)
    run(worker, "c", deps=[("dep", 6, (), None)])
    assert worker.fetcher.tables[None]["dep"].holders == (THIRD,)


@pytest.mark.parametrize("copy", [False, True])
def test_who_ordered_a_copy_that_cannot_be_made_is_told_why(copy: bool) -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (OTHER,), None)])
    if copy:
        control(worker, m.Replicate((("dep", 1, 6, (OTHER,)),)))
    fail(worker, "dep", "unpicklable", "a lock")
    assert said(worker) == [m.NoCopy((("dep", "a lock"),))] * copy
    assert start(worker).inputs["dep"].error == "a lock"  # type: ignore[union-attr]


@pytest.mark.parametrize("came", ["data", "nothing"])
def test_what_came_before_a_key_was_dropped_is_not_taken_for_what_it_is_since(came: str) -> None:
    """All in one turn, as after a pause (seed 9043857)."""
    worker = machine()
    define(worker)
    for key in ("dep", "other"):
        control(worker, m.Replicate(((key, 1, 6, (OTHER,)),)))
        worker.fetcher.drop(0, (key,), 0.0)
        if came == "data":
            worker.fetcher.arrived.append(((0,), key, 1, [b"former"], 6, "peer"))
        else:
            worker.fetcher.failed.append(((0,), key, "missing", "gone", (OTHER,)))
    control(worker, m.Drop(("dep",)))
    run(worker, "a", deps=[("dep", 6, (THIRD,), None)])
    news = said(worker)
    assert worker.fetcher.wants("dep") and "dep" not in worker.store.entries
    assert news == [m.Held((("other", 1, 6, ""),)) if came == "data" else m.Missing((("other", (OTHER,)),))]


@pytest.mark.parametrize("came", ["data", "nothing"])
def test_what_came_of_a_key_that_was_computed_here_in_the_same_turn_is_not_told_of(came: str) -> None:
    worker = machine()
    define(worker)
    control(worker, m.Replicate((("dep", 1, 6, (OTHER,)),)))
    worker.fetcher.drop(0, ("dep",), 0.0)
    if came == "data":
        worker.fetcher.arrived.append(((0,), "dep", 1, [b"theirs"], 6, "peer"))
    else:
        worker.fetcher.failed.append(((0,), "dep", "missing", "gone", (OTHER,)))
    run(worker, "dep", attempt=2)
    worker.finished(start(worker), 7, "ours", "str", SMALL, 0.0)
    assert said(worker) == [m.Done((("dep", 2, 7, 5, b"bytes", "str"),))]
    assert worker.store.entries["dep"].attempt == 2


@pytest.mark.parametrize("nbytes", [limits.SPILL_MIN - 1, limits.SPILL_MIN])
def test_a_large_value_that_a_task_needs_goes_to_disk_after_others(nbytes: int) -> None:
    worker = machine()
    define(worker)
    for key in ("old", "new"):
        control(worker, m.Replicate(((key, 1, nbytes, (OTHER,)),)))
        worker.fetcher.drop(0, (key,), 0.0)
        worker.fetcher.arrived.append(((0,), key, 1, [bytes(nbytes)], nbytes, "peer"))
        said(worker)
    run(worker, "a", deps=[("old", nbytes, (OTHER,), None)])
    large = nbytes >= limits.SPILL_MIN
    assert list(worker.store.entries) == (["new", "old"] if large else ["old", "new"])
