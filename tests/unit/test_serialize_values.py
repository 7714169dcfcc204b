"""Values through blobs: round trips, where the bytes lie, and what an unusable payload says."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import subprocess
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from zdist import serialize
from zdist.errors import SerializationError
from zdist.limits import INLINE_RESULT, OWN_FRAME
from zdist.serialize import values
from zdist.serialize.blob import MAX_BUFFERS


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any


class Ticket:
    """Stands for a key, as a future does."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __reduce__(self) -> Any:
        return _ticket, (self.key,)


def _ticket(key: str) -> tuple[str, Any]:
    return key, serialize.owner()


serialize.register_reference(Ticket, lambda ticket: ticket.key)


def chunks(blob: serialize.Blob, *cuts: int) -> list[memoryview]:
    """The stream as it may arrive: writable pieces cut anywhere."""
    data = blob.tobytes()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [memoryview(bytearray(data[a:b])) for a, b in itertools.pairwise(edges)]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.builds(Point, inner, inner), max_leaves=5)
nested = st.recursive(
    scalars
    | st.frozensets(hashable, max_size=4)
    | st.sets(hashable, max_size=4)
    | st.binary(max_size=8).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.builds(Point, inner, inner)
        | st.lists(inner, max_size=3).map(collections.deque)
    ),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(nested, st.lists(st.integers(0, 1 << 20), max_size=3))
def test_nested_values_come_back(value: Any, cuts: list[int]) -> None:
    blob = serialize.dumps(value)
    assert blob.nbytes == len(blob.tobytes())
    for stream in (blob, blob.tobytes(), blob.pieces, chunks(blob, *cuts), memoryview(blob.tobytes())):
        back = serialize.loads(stream)
        assert back == value and type(back) is type(value)
    inline = serialize.dumps_inline(value, 1 << 20)
    assert inline is not None and serialize.loads(inline) == value


dtypes = npst.scalar_dtypes() | npst.array_dtypes(max_size=3) | npst.unicode_string_dtypes(max_len=4)


@settings(max_examples=150, deadline=None)
@given(
    npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)),
    st.sampled_from("CFT"),
    st.booleans(),
)
def test_arrays_come_back_writable(array: np.ndarray[Any, Any], order: str, frozen: bool) -> None:
    array = np.asfortranarray(array) if order == "F" else array.T if order == "T" else array
    array.flags.writeable = not frozen
    for back in (serialize.loads(serialize.dumps(array)), serialize.loads(serialize.dumps([array]))[0]):
        # numpy itself brings big-endian dates back in native order
        assert back.dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and back.shape == array.shape
        assert back.astype(array.dtype).tobytes() == array.tobytes()
        assert back.flags.writeable


@pytest.mark.parametrize("dtype", ["f8", "c16", "M8[ns]", "S8", "U2", "i4,f4", "?", ">i8"])
@pytest.mark.parametrize("kind", ["C", "F", "sliced", "frozen", "from bytes"])
def test_large_arrays_of_every_layout(dtype: str, kind: str) -> None:
    array = np.zeros((400, 300), dtype)
    array[3, 4] = np.ones((), dtype)
    if kind == "F":
        array = np.asfortranarray(array)
    elif kind == "sliced":
        array = array[::2, ::3]
    elif kind == "frozen":
        array.flags.writeable = False
    elif kind == "from bytes":
        array = np.frombuffer(array.tobytes(), dtype).reshape(array.shape)
    for share in (False, True):
        blob = serialize.dumps(array, share=share)
        for stream in (blob, blob.tobytes(), chunks(blob, 10, 5000, 70000)):
            back = serialize.loads(stream)
            assert back.dtype == array.dtype and back.flags.writeable and (back == array).all()
            back[0, 0] = np.ones((), dtype)
            assert not np.shares_memory(back, array)


def test_a_large_writable_piece_is_used_as_it_stands() -> None:
    array = np.arange(100_000)
    head, body = serialize.dumps(array).pieces
    frame = bytearray(body)
    back = serialize.loads([head, memoryview(frame)])
    assert (back == array).all()
    back[0] = 77
    assert frame[0] == 77


def test_a_small_array_has_memory_of_its_own() -> None:
    value = [np.arange(10), np.zeros(OWN_FRAME, "u1"), np.zeros(OWN_FRAME // 2, "u1")]
    blob = serialize.dumps(value)
    assert [memoryview(piece).nbytes for piece in blob.pieces[1:]] == [OWN_FRAME]
    message = bytearray(blob.tobytes())
    small, large, _ = serialize.loads(memoryview(message))
    message[:] = bytes(len(message))
    assert small.tolist() == list(range(10)) and not large.any()
    message.extend(b"x")  # BufferError if an array still held the message


def test_a_blob_is_a_snapshot_unless_shared() -> None:
    array = np.zeros(100_000)
    kept, shared = serialize.dumps(array), serialize.dumps(array, share=True)
    array[5] = 3
    assert serialize.loads(kept)[5] == 0
    assert serialize.loads(shared)[5] == 3
    assert all(isinstance(piece, bytes) or piece.readonly for piece in shared.pieces)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_bytes_travel_outside_the_pickle_and_keep_their_type(kind: type) -> None:
    value = kind(b"ab" * OWN_FRAME)
    blob = serialize.dumps(value)
    assert len(blob.pieces) == 2
    if kind is bytes:
        assert blob.pieces[1].obj is value  # type: ignore[union-attr]
    back = serialize.loads(blob)
    assert back == value and type(back) is kind


def test_more_buffers_than_frames_are_packed() -> None:
    arrays = [np.full(OWN_FRAME, i % 250, "u1") for i in range(MAX_BUFFERS + 5)]
    blob = serialize.dumps(arrays, share=True)
    assert len(blob.pieces) == MAX_BUFFERS + 2  # envelope and pickle apart, as the pickle is large
    assert all((a == b).all() for a, b in zip(serialize.loads(blob), arrays, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_slices_cut_the_stream(data: st.DataObject) -> None:
    blob = serialize.dumps([np.arange(9000), np.arange(20_000), "tail"], share=True)
    whole = blob.tobytes()
    offset = data.draw(st.integers(0, blob.nbytes + 5))
    length = data.draw(st.integers(0, blob.nbytes + 5))
    assert b"".join(blob.slice(offset, length)) == whole[offset : offset + length]
    edge = len(blob.pieces[0])
    assert blob.slice(edge, 72_000)[0] is blob.pieces[1]  # not copied


def test_inline_only_below_the_limit() -> None:
    assert serialize.dumps_inline(b"x" * INLINE_RESULT, INLINE_RESULT) is None
    assert serialize.dumps_inline(np.zeros(INLINE_RESULT, "u1"), INLINE_RESULT) is None
    assert serialize.dumps_inline([np.zeros(8) for _ in range(3000)], INLINE_RESULT) is None
    assert serialize.dumps_inline([Point(1, i) for i in range(50_000)], INLINE_RESULT) is None
    assert serialize.dumps_inline(10**100_000, INLINE_RESULT) is None
    small = serialize.dumps_inline([np.zeros(8)] * 3, INLINE_RESULT)
    assert small is not None and len(serialize.loads(small)) == 3
    for n in (100, 120, 127, 128, 240, 255, 256, 5000, 65_535, 65_536, 70_000):
        data = serialize.dumps_inline(b"x" * n, 1 << 20)
        assert data is not None and serialize.loads(data) == b"x" * n


def test_values_with_futures_are_not_inlined_and_name_them() -> None:
    value = {"a": [Ticket("k1"), Ticket("k2"), Ticket("k1")]}
    assert serialize.dumps_inline(value, 1 << 20) is None
    blob = serialize.dumps(value)
    assert blob.refs == ("k1", "k2")
    assert serialize.loads(blob)["a"][1] == ("k2", None)


def test_the_owner_is_known_while_unpickling() -> None:
    blob = serialize.dumps([Ticket("k")])
    assert serialize.loads(blob, owner="mine") == [("k", "mine")]
    assert serialize.owner() is None
    seen = []
    thread = threading.Thread(target=lambda: seen.append(serialize.loads(blob)))
    thread.start()
    thread.join()
    assert seen == [[("k", None)]]


def test_local_classes_and_functions_in_values() -> None:
    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    back = serialize.loads(serialize.dumps([Local(4), lambda y: y + 1]))
    assert back[0].x == 4 and type(back[0]) is Local and back[1](2) == 3


def test_lru_cached_local_functions_travel() -> None:
    @functools.lru_cache(maxsize=7)
    def double(x: int) -> int:
        return 2 * x

    back = serialize.loads(serialize.dumps(double))
    assert back(4) == 8 and back.cache_info().maxsize == 7


def test_what_cannot_be_pickled_is_named() -> None:
    for dump in (serialize.dumps, lambda obj, what: serialize.dumps_inline(obj, 1000, what=what)):
        with pytest.raises(
            SerializationError, match=r"result of inc-1 of type _thread.lock cannot be pickled: TypeErr"
        ):
            dump(threading.Lock(), what="result of inc-1")


def test_a_missing_module_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone_module.py").write_text("class Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import gone_module  # type: ignore[import-not-found]

    data = serialize.dumps(gone_module.Thing()).tobytes()
    monkeypatch.undo()
    sys.modules.pop("gone_module")
    with pytest.raises(
        SerializationError, match=r"value of x could not be unpickled here: ModuleNotFoundError.*gone_m"
    ):
        serialize.loads(data, what="value of x")


def test_an_error_while_unpickling_is_told() -> None:
    class Angry:
        def __reduce__(self) -> Any:
            return int, ("five",)

    with pytest.raises(SerializationError, match=r"could not be unpickled here: ValueError: invalid literal") as caught:
        serialize.loads(serialize.dumps(Angry()))
    assert isinstance(caught.value.__cause__, ValueError)


def test_many_values_are_loaded_together_and_fail_alone() -> None:
    class Angry:
        def __reduce__(self) -> Any:
            return int, ("five",)

    array = np.arange(100_000)
    kinds = [1, array, [Ticket("k")], Angry(), SerializationError("a value like any other"), "last"]
    streams = [(f"value {n}", chunks(serialize.dumps(kind), 100, 70_000)) for n, kind in enumerate(kinds)]
    streams.insert(2, ("value x", [memoryview(b"garbage that is no envelope")]))
    values, errors = serialize.loads_each(streams, owner="mine")
    assert values[0] == 1 and (values[1] == array).all() and values[1].flags.writeable
    assert values[3] == [("k", "mine")]
    assert type(values[5]) is SerializationError and values[6] == "last"
    assert sorted(errors) == [2, 4]
    assert "scheme 1" in str(errors[2])
    assert "value 3 could not be unpickled here: ValueError" in str(errors[4])
    assert isinstance(errors[4].__cause__, ValueError)
    assert serialize.owner() is None


@pytest.mark.parametrize("aligned", [True, False])
def test_buffers_that_nobody_may_write_to_are_copied(aligned: bool) -> None:
    array = np.arange(100_000)
    pieces = [memoryview(piece).toreadonly() for piece in serialize.dumps(array).pieces]
    if not aligned:
        pieces = [piece[a:b] for piece in pieces for a, b in ((0, 50), (50, len(piece)))]
    back = serialize.loads(pieces)
    back[0] = 7
    assert back.flags.writeable and array[0] == 0 and (back[1:] == array[1:]).all()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "ends before its envelope"),
        (b"\x94\x01\x00", "ends before its envelope"),
        (b"garbage that is no envelope", "scheme 1"),
        (b"\x94\x02\x00\x91\x01\xc4\x00N", "scheme 1"),
        (b"\x94\x01\x07\x91\x01\xc4\x00N", "serializer unknown here: 7"),
        (b"\x94\x01\x00\x90\xc4\x00", "no valid frame lengths"),
        (b"\x94\x01\x00\x91\xff\xc4\x00N", "no valid frame lengths"),
        (b"\x94\x01\x00\x91\x05\xc4\x00N", r"has 8 bytes where its envelope says 12"),
        (b"\xc1" * 20, "does not begin with an envelope"),
        (b"\x94\x01\x00\x91\x04\xc4\x00NNNN", "could not be unpickled"),
        (b"\xdd\xff\xff\xff\xff" + b"\x00" * 100_000, "envelope"),
    ],
)
def test_damaged_payloads(data: bytes, text: str) -> None:
    for stream in (data, memoryview(data), [data[:2], data[2:]]):
        with pytest.raises(SerializationError, match=text):
            serialize.loads(stream)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(SerializationError):
        serialize.loads(b"\x94" + data)


SCRIPT = """
import enum, sys
from dataclasses import dataclass
from zdist import serialize

@dataclass
class Mine:
    x: int
    def twice(self):
        return 2 * self.x

class Colour(enum.Enum):
    RED = 1

sys.stdout.buffer.write(serialize.dumps([Mine(21), Colour.RED, Mine]).tobytes())
"""


def test_classes_of_main_travel_by_value() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    thing, colour, cls = serialize.loads(done.stdout)
    assert thing.twice() == 42 and colour.name == "RED" and type(thing) is cls
    again = serialize.loads(serialize.dumps(thing))  # back where it came from, in a process whose main is another
    assert again.twice() == 42


def test_loading_the_package_loads_neither_cloudpickle_nor_numpy() -> None:
    code = "import sys, zdist.serialize; print([m for m in ('cloudpickle', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_another_thread_may_be_importing_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is there before what it defines is."""
    monkeypatch.setattr(values, "_cloud", None)
    monkeypatch.setitem(sys.modules, "cloudpickle", types.ModuleType("cloudpickle"))
    assert list(values.by_value_modules()) == []
