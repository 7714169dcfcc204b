"""Blobs that arrive in ranges: put together in memory of their own, which is used again when nobody refers to it."""

from __future__ import annotations

import gc
import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from zdist import serialize
from zdist.errors import SerializationError
from zdist.limits import REGION_IDLE
from zdist.serialize import regions as memory
from zdist.serialize.assembly import Assembly, BlobMemory
from zdist.serialize.regions import HUGE, Regions


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Regions:
    """A pool for the test alone."""
    pool = Regions(keep=16 * HUGE)
    monkeypatch.setattr("zdist.serialize.assembly.regions", pool)
    return pool


def cut(data: bytes, at: list[int]) -> list[tuple[int, bytes]]:
    """The ranges between these places."""
    ends = sorted({0, len(data), *[place % (len(data) + 1) for place in at]})
    return [(start, data[start:end]) for start, end in itertools.pairwise(ends)]


def assemble(ranges: list[tuple[int, bytes]], total: int) -> Assembly:
    out = Assembly(total)
    for offset, data in ranges:
        half = len(data) // 2
        out.write(offset, [data[:half], data[half:]])
    return out


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 5000, 70_000, 100_001]), min_size=1, max_size=4),
    at=st.lists(st.integers(0, 1 << 40), max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_any_ranges_in_any_order_make_the_value(sizes: list[int], at: list[int], order: object) -> None:
    value = [np.arange(size, dtype="u1") for size in sizes]
    data = serialize.dumps(value).tobytes()
    ranges = cut(data, at)
    order.shuffle(ranges)  # type: ignore[attr-defined]
    pieces = assemble(ranges, len(data)).pieces()
    assert b"".join(pieces) == data
    back = serialize.loads(pieces)
    assert all(np.array_equal(a, b) for a, b in zip(value, back, strict=True))


def test_arrays_are_aligned_writable_and_do_not_keep_each_other(kept: Regions) -> None:
    value = [np.full(3 * HUGE // 8, n, "f8") for n in range(2)]
    data = serialize.dumps(value).tobytes()
    back = serialize.loads(assemble(cut(data, [HUGE, 3 * HUGE + 1]), len(data)).pieces())
    assert [array.ctypes.data % HUGE for array in back] == [0, 0]
    assert all(array.flags.writeable and array.flags.aligned for array in back)
    assert sum(region.free() for region in kept.known) == 0
    first, second = back
    back.clear()
    del first
    gc.collect()
    assert [region.free() for region in kept.known] == [True, False]
    assert second[0] == second[-1] == 1


def test_memory_that_nobody_refers_to_is_used_again(kept: Regions) -> None:
    first = np.frombuffer(kept.take(2 * HUGE), "u1")
    place, derived = first.ctypes.data, first[5:10]
    other = kept.take(2 * HUGE)
    assert np.frombuffer(other, "u1").ctypes.data != place
    del first
    third = kept.take(2 * HUGE)
    assert np.frombuffer(third, "u1").ctypes.data != place  # a slice of it is still there
    del derived
    fourth = kept.take(2 * HUGE - 5)
    assert np.frombuffer(fourth, "u1").ctypes.data == place
    assert len(fourth) == 2 * HUGE - 5
    assert len(kept.known) == 3


def test_no_more_is_kept_than_was_said(kept: Regions) -> None:
    held = [kept.take(4 * HUGE) for _ in range(6)]
    assert kept.kept == 16 * HUGE
    assert len({id(view.obj) for view in held if isinstance(view, memoryview)}) == 6
    held.clear()
    big = kept.take(9 * HUGE)  # over half of the limit: not worth keeping
    assert len(big) == 9 * HUGE and kept.kept == 16 * HUGE
    assert len(kept.take(2 * HUGE)) == 2 * HUGE  # something of another size makes room
    assert kept.kept == 14 * HUGE
    last = np.frombuffer(kept.take(8 * HUGE), "u1")
    place = last.ctypes.data
    del last
    assert np.frombuffer(kept.take(8 * HUGE), "u1").ctypes.data == place  # half of the limit is


def test_idle_memory_is_given_back(kept: Regions) -> None:
    assert kept.due == float("inf")
    view = kept.take(2 * HUGE)
    kept.sweep(100.0)
    kept.sweep(kept.due)
    assert kept.kept == 2 * HUGE and kept.due < float("inf")
    del view
    start = kept.due
    kept.sweep(start)
    kept.sweep(start + REGION_IDLE / 2)
    assert kept.kept == 2 * HUGE
    kept.sweep(start + REGION_IDLE)
    assert kept.kept == 0 and kept.due == float("inf")


def test_what_is_no_blob_stays_as_it_came() -> None:
    for data in (b"\xff" * 100, bytes(100), serialize.dumps(b"x" * 70_000).tobytes() + b"more"):
        assembly = assemble(cut(data, [7, 50]), len(data))
        assert b"".join(assembly.pieces()) == data
        with pytest.raises(SerializationError):
            serialize.loads(assembly.pieces())


def test_a_size_that_cannot_be_had_is_not_reserved(kept: Regions) -> None:
    huge = 1 << 62
    head = serialize.blob.envelope(0, [10, huge])
    assembly = Assembly(len(head) + 10 + huge)
    assembly.write(0, [head + bytes(10)])
    assert assembly.pieces() == [head + bytes(10)]
    assert kept.kept == 0


def test_blob_memory_is_swept_with_the_regions_of_the_process() -> None:
    blobs = BlobMemory()
    assert blobs.due == memory.regions.due
    blobs.assembly(10).write(0, [bytes(10)])
    blobs.sweep(0.0)
    assert blobs.due == memory.regions.due
