"""What goes to disk and when tasks wait; and the files themselves."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist import limits
from zdist.core.memory import Memory, Spill
from zdist.core.store import Pieces, Store
from zdist.transport.spill import SpillDirectory, memory_in_use, sweep_spilled

MIB = limits.MIB
LIMIT = 100 * MIB


class OnDisk(Pieces):
    spilled = True  # type: ignore[misc]


class Bench:
    """A store whose bytes are what is used; orders are answered when a test says so."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.store = Store(lambda *_: None, "token", lambda *_: None)
        self.orders: list[Spill] = []
        self.changes: list[bool] = []
        self.memory = Memory(limit, self.store, self.order, lambda: self.changes.append(self.memory.full))
        self.memory.usage = self.used
        self.other = 0
        self.now = 0.0

    def order(self, command: Spill) -> None:
        self.orders.append(command)

    def used(self) -> int:
        entries = self.store.entries.values()
        return self.other + sum(e.nbytes for e in entries if e.has_value or not (e.blob and e.blob.spilled))

    def put(self, key: str, mib: float) -> None:
        self.store.put_value(key, 1, object(), int(mib * MIB), "thing")

    def answer(self, ok: bool = True) -> None:
        orders, self.orders = self.orders, []
        for key, attempt in orders:
            entry = self.store.get(key)
            blob = OnDisk([bytes(entry.nbytes)]) if ok and entry is not None else None
            self.memory.spilled(key, attempt, blob, self.now)
        self.store.check()


def test_nothing_happens_below_the_first_mark_or_without_a_limit() -> None:
    for limit, mib in ((LIMIT, 50), (0, 500)):
        bench = Bench(limit)
        bench.put("a", mib)
        bench.memory.look(0.0)
        assert bench.orders == [] and not bench.memory.closed and bench.memory.deadline() is None


def test_what_was_not_used_for_longest_goes_first_and_no_more_than_is_needed() -> None:
    bench = Bench()
    for number in range(7):
        bench.put(str(number), 10)
    bench.put("small", 0.01)
    first = bench.store.get("0")
    assert first is not None
    bench.store.touch(first)
    bench.memory.look(0.0)
    assert [order.key for order in bench.orders] == ["1", "2"]
    assert bench.memory.wait and not bench.memory.full
    bench.memory.look(1.0)
    assert len(bench.orders) == 2  # they are on their way
    bench.answer()
    assert not bench.memory.closed
    assert bench.used() <= limits.SPILL_MARK * LIMIT


def test_room_is_kept_for_another_result_like_the_largest() -> None:
    bench = Bench()
    bench.put("a", 50)
    bench.memory.grown(50 * MIB, 0.0)
    assert [order.key for order in bench.orders] == ["a"] and bench.memory.wait
    bench.answer()
    assert not bench.memory.wait
    for _ in range(300):
        bench.memory.look(0.0)  # none so large has come for a while
    bench.put("b", 50)
    bench.memory.look(0.0)
    assert bench.orders == []


def test_no_task_starts_above_the_second_mark_and_the_broker_hears_of_it() -> None:
    bench = Bench()
    bench.other = 90 * MIB
    bench.memory.look(1.0)
    assert bench.memory.full and bench.changes == [True]
    assert bench.memory.deadline() == 1.0 + limits.MEASURE
    bench.memory.look(2.0)
    assert bench.changes == [True]
    bench.other = 0
    bench.memory.look(3.0)
    assert bench.changes == [True, False] and bench.memory.deadline() is None


def test_what_cannot_be_written_is_not_tried_again() -> None:
    bench = Bench()
    bench.put("a", 70)
    bench.memory.look(0.0)
    bench.answer(ok=False)
    assert bench.orders == [] and not bench.memory.wait
    bench.store.put_value("a", 2, object(), 70 * MIB, "thing")
    bench.memory.look(0.0)
    assert bench.orders == [Spill("a", 2)]


def test_a_value_that_was_read_again_is_let_go_of_without_writing() -> None:
    bench = Bench()
    bench.put("a", 70)
    bench.memory.look(0.0)
    bench.answer()
    bench.store.set_value("a", 1, object())
    bench.memory.look(1.0)
    entry = bench.store.get("a")
    assert bench.orders == [] and entry is not None and not entry.has_value


def test_a_value_that_is_gone_or_newer_when_it_was_written_is_left_alone() -> None:
    bench = Bench()
    bench.put("a", 70)
    bench.memory.look(0.0)
    bench.store.put_value("a", 2, "newer", 70 * MIB, "thing")
    bench.memory.spilled("a", 1, OnDisk([b"x"]), 0.0)
    entry = bench.store.get("a")
    assert entry is not None and entry.value == "newer"
    bench.store.drop("a", 0.0)
    bench.memory.spilled("a", 2, OnDisk([b"x"]), 0.0)
    assert bench.store.get("a") is None


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 60), max_size=30), other=st.integers(0, 100))
def test_it_always_comes_to_rest(sizes: list[int], other: int) -> None:
    bench = Bench()
    bench.other = other * MIB
    for number, size in enumerate(sizes):
        bench.put(str(number), size)
        bench.memory.grown(size * MIB, 0.0)
        bench.answer()
        assert not bench.orders and not bench.memory.wait
    bench.memory.look(0.0)
    bench.answer()
    assert bench.memory.full == (bench.used() > limits.PAUSE_MARK * LIMIT)
    values = sum(e.nbytes for e in bench.store.entries.values() if e.has_value)
    assert values == 0 or bench.used() <= limits.SPILL_MARK * LIMIT


def test_a_value_that_was_dropped_before_it_was_written_holds_nothing_up() -> None:
    bench = Bench()
    bench.put("a", 70)
    bench.memory.look(0.0)
    bench.store.drop("a", 0.0)
    bench.other = 61 * MIB
    bench.memory.gone("a", 0.0)
    assert not bench.memory.wait and bench.memory.spilling == {}


def test_what_could_not_be_written_is_tried_again_after_a_while() -> None:
    bench = Bench()
    bench.put("a", 70)
    bench.memory.look(1.0)
    bench.answer(ok=False)
    bench.memory.look(limits.STUCK)
    assert bench.orders == []
    bench.memory.look(1.0 + limits.STUCK)
    assert bench.orders == [Spill("a", 1)]


def test_while_running_tasks_wait_for_others_memory_stops_nobody() -> None:
    bench = Bench()
    bench.other = 90 * MIB
    bench.memory.look(0.0)
    assert bench.memory.closed and bench.memory.paused
    bench.memory.seceded(1)
    assert not bench.memory.closed and not bench.memory.paused and bench.changes == [True, True]
    bench.memory.seceded(-1)
    assert bench.memory.closed and len(bench.changes) == 3


# --- files --------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ZDIST_SPILL_DIR", str(tmp_path))
    directory = SpillDirectory("w-1")
    yield directory
    directory.close()
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None)
@given(data=st.data())
def test_any_range_of_what_was_written_comes_back(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["ZDIST_SPILL_DIR"] = str(tmp_path_factory.mktemp("spill"))
    try:
        pieces = data.draw(st.lists(st.binary(max_size=300), max_size=5))
        pieces.append(b"end")
        directory = SpillDirectory("w-1")
        blob = directory.write(pieces)
        assert blob is not None and blob.nbytes == len(b"".join(pieces))
        offset = data.draw(st.integers(0, blob.nbytes))
        length = data.draw(st.integers(0, blob.nbytes))
        assert b"".join(blob.slice(offset, length)) == b"".join(pieces)[offset : offset + length]
        assert b"".join(blob.pieces) == b"".join(pieces)
        directory.close()
    finally:
        del os.environ["ZDIST_SPILL_DIR"]


def test_a_taker_may_write_to_what_it_got(directory: SpillDirectory) -> None:
    blob = directory.write([b"head", bytes(5000)])
    assert blob is not None
    taken = blob.pieces[1]
    taken[0] = 7
    assert blob.pieces[1][0] == 0 and taken[0] == 7


def test_the_file_goes_with_the_value(directory: SpillDirectory) -> None:
    blob = directory.write([b"x" * 100])
    assert blob is not None and os.path.exists(blob.path)
    view, path = blob.pieces[0], blob.path
    del blob
    assert not os.path.exists(path) and bytes(view) == b"x" * 100


def test_a_disk_that_takes_nothing_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZDIST_SPILL_DIR", str(tmp_path / "file"))
    directory = SpillDirectory("w-1")
    assert directory.write([b"x"]) is None and directory.write([b"x"]) is None
    assert directory.failed
    directory.close()


def test_what_a_killed_worker_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_SPILL_DIR", str(tmp_path))
    directory = SpillDirectory("w-9")
    blob = directory.write([b"x"])
    sweep_spilled("w-9")
    assert blob is not None and os.path.exists(blob.path)  # its owner lives
    assert directory.scratch is not None
    directory.scratch.release()
    sweep_spilled("w-9")
    assert list(tmp_path.iterdir()) == []


def test_memory_in_use_counts_what_is_a_process_s_own() -> None:
    before = memory_in_use()
    with mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE) as kept:
        kept.write(b"x" * len(kept))
        assert memory_in_use() - before > 16 * MIB
    assert memory_in_use("nobody") == 0
