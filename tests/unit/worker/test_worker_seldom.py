"""What a worker seldom meets: full caches, requests that wait, memory that is measured; each machine by itself."""

from __future__ import annotations

from typing import Any

import pytest
from test_worker_machine import OTHER, define, machine, run, said, start
from test_worker_memory import LIMIT, MIB, Bench

from zdist import limits
from zdist.core.links import Host
from zdist.core.machine import CONTROL, Route
from zdist.core.reports import DoneRow, Reports
from zdist.core.slot import HEADER, RECORD, read
from zdist.core.store import BUSY_AFTER
from zdist.protocol import messages as m


def test_functions_that_are_all_in_use_stay_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FUNCTION_CACHE", 1)
    worker = machine()
    for n in range(3):
        fn = bytes([n]) * 32
        run(worker, f"k{n}", fn=fn)
        define(worker, fn)
    assert [start(worker).key for _ in range(3)] == ["k0", "k1", "k2"]


def test_a_worker_looks_after_requests_that_wait_for_its_values() -> None:
    worker = machine()
    worker.store.put_value("k", 1, object(), 100, "object")
    assert worker.deadline() is None
    worker.handle(Route("data", b"hop"), m.Get(1, "secret", worker.session, OTHER, (("k", 0, 0),)), 5.0)
    assert worker.deadline() == 5.0 + BUSY_AFTER


@pytest.mark.parametrize("limit", [0, 100 * limits.MIB])
def test_a_worker_with_a_limit_measures_its_memory_now_and_then_and_after_large_results(limit: int) -> None:
    worker = machine(memory_limit=limit)
    looked: list[float] = []
    worker.memory.usage = lambda: looked.append(0.0) or 0  # type: ignore[func-returns-value]
    define(worker)
    counts = []
    for now in (0.0, 1.0, 1.0):
        said(worker, now)
        counts.append(len(looked))
    for nbytes in (100, limits.LARGE_RESULT):
        run(worker, f"k{nbytes}")
        worker.finished(start(worker, 1.0), 5, object(), "object", (None, None, "", nbytes, True), 1.0)
        counts.append(len(looked))
    assert counts == ([1, 2, 2, 2, 3] if limit else [0, 0, 0, 0, 0])


@pytest.mark.parametrize("shared, host", [(0, None), (1000, Host("0f", 1000))])
def test_a_worker_without_shared_memory_asks_nobody_for_it(shared: int, host: Host | None) -> None:
    worker = machine(host="0f", shared=shared)
    assert worker.fetcher.links.host == host and (worker.store.share is not None) == bool(shared)


def test_there_is_room_for_a_second_copy_of_a_result_unless_it_is_large_and_memory_is_short() -> None:
    bench = Bench()
    most = int(limits.SPILL_MARK * LIMIT)
    bench.other = most
    assert not bench.memory.crowded(limits.LARGE_RESULT - 1) and bench.memory.crowded(limits.LARGE_RESULT)
    bench.other = most - 10 * MIB
    assert not bench.memory.crowded(10 * MIB) and bench.memory.crowded(10 * MIB + 1)
    bench.memory.usage = None  # it cannot be told
    assert not bench.memory.crowded(LIMIT)


def row(key: str) -> DoneRow:
    return key, 1, 5, 5, b"bytes", "str"


def test_what_the_broker_need_not_hear_of_does_not_put_off_the_rest() -> None:
    reports = Reports()
    for key in ("a", "b"):
        reports.settle(row(key), 0.0)
    reports.drop("a")
    reports.drop("unknown")
    assert reports.due == limits.LANE_NOTES
    sent: list[Any] = []
    reports.flush(lambda _, message: sent.append(message), limits.LANE_NOTES)
    assert sent == [m.Done((row("b"),))]
    reports.settle(row("c"), 1.0)
    reports.drop("c")
    assert reports.due == float("inf")


def test_what_stands_behind_the_first_record_that_was_never_used_is_not_read() -> None:
    """The file is sparse, and far longer than what is used of it."""
    used = HEADER.pack(7, 0.0, 1, 1).ljust(24, b"\0") + b"k"
    file = used.ljust(RECORD, b"\0") + bytes(RECORD) + used.ljust(RECORD, b"\0")
    assert [running.key for running in read(lambda length, offset: file[offset : offset + length])] == ["k"]


def test_a_copy_that_is_to_be_dropped_is_not_announced() -> None:
    worker = machine()
    for key in ("a", "b"):
        worker.inputs.held.append((key, 1, 5, "int"))
    worker.handle(CONTROL, m.Drop(("b", "c")), 0.0)
    assert [row[0] for row in worker.inputs.held] == ["a"]
