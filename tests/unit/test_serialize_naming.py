"""Names by content: equal things have one name in every process, different things different ones."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import os
import pathlib
import re
import subprocess
import sys
import threading
import types
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist import serialize
from zdist.errors import SerializationError

ROOT = Path(__file__).parents[2]
FN = bytes(32)


def token(*args: Any, **kwargs: Any) -> str:
    return serialize.token(FN, args, kwargs)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Promise:
    def __init__(self, key: str) -> None:
        self.key = key
        self.lock = threading.Lock()


class SpecialPromise(Promise):
    pass


serialize.register_reference(Promise, lambda promise: promise.key)

NamedPair = collections.namedtuple("NamedPair", "left right")

# Each line's things have different names, also from those of every other line.
DIFFERENT = [
    [0, 1, -1, 0.0, -0.0, 1.0, True, False, None, "", "0", b"", b"0", 1j, complex(0.0, -0.0), 10**5000, 10**5000 + 1],
    [..., NotImplemented, "None", "True", (), [], {}, set(), frozenset(), bytearray(), bytearray(b"0")],
    [(0,), [0], {0}, frozenset({0}), {0: 0}, ((0,),), [[0]], (0, 0), [0, 0], [None], ["0"]],
    [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}, [("a", 1), ("b", 2)]],
    [list(range(100)), tuple(range(100)), [*range(99), 99.0], [*range(99), True], ["a"] * 50, ["a"] * 51],
    ["x" * 65, b"x" * 65, bytearray(b"x" * 65), "x" * 66],
    [Point(1, 2), Point(2, 1), Point(1, [2]), Slotted(1, 2), Slotted(2, 1), NamedPair(1, 2), (1, 2)],
    [Colour.RED, Colour.BLUE, Colour, Point, int, len, np.sin, np],
    [datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), datetime.timedelta(1), decimal.Decimal("1.0")],
    [decimal.Decimal("1.00"), fractions.Fraction(1, 2), uuid.UUID(int=1), pathlib.PurePosixPath("/a"), range(3)],
    [re.compile("a"), re.compile("a", re.I), slice(1, 2), collections.OrderedDict(a=1), collections.deque([1])],
    [collections.defaultdict(int, a=1), collections.defaultdict(list, a=1), types.MappingProxyType({"z": 1})],
    [np.zeros(3), np.zeros(3, "f4"), np.zeros(4), np.zeros((3, 1)), np.ones(3)],
    [np.float64(0), np.float32(0), np.int8(0)],
    [np.array([1, "a"], object), np.array(["a", 1], object)],
    [np.zeros(2, "i4,f8"), np.zeros(2, "i4,f4"), np.dtype("f8")],
    [np.zeros((2, 3)), np.asfortranarray(np.zeros((2, 3))), np.zeros(0), np.zeros((0, 3)), np.array("2020", "M8[D]")],
    [Promise("a"), Promise("b"), [Promise("a")], {"a": Promise("b")}, SpecialPromise("sub")],
    [functools.partial(len, "a"), functools.partial(len, "b"), "a".upper, "b".upper],
    [lambda x: x, lambda x: x + 1, lambda y: y + 1, lambda x: [x, 1], lambda x: (x, 1)],
    [memoryview(b"ab"), memoryview(b"abcd").cast("H"), iter([1, 2]), iter([1, 3])],
]  # fmt: skip


def test_different_things_have_different_names() -> None:
    things = [thing for line in DIFFERENT for thing in line]
    names: dict[str, Any] = {}
    for thing in things:
        name = token(thing)
        assert len(name) == 32 and int(name, 16) >= 0
        assert name not in names, f"{thing!r} and {names[name]!r} have one name"
        names[name] = thing
    for thing in things:
        assert names[token(thing)] is thing or thing != thing


def test_places_and_names_count() -> None:
    calls = [token(), token(1), token(1, 2), token(2, 1), token((1, 2)), token(a=1), token(b=1), token({"a": 1})]
    calls += [token(1, a=2), token(a=1, b=2), token(b=2, a=1), token(Promise("a")), token("a"), token(("a",))]
    calls += [token(a=Promise("k")), token(a=("k",)), token([Promise("a")]), token(["a"]), token([("a",)])]
    assert len(set(calls)) == len(calls)
    assert serialize.token(b"\1" * 32, (1,), {}) != token(1)
    assert serialize.token(b"\1" * 32, ([1],), {}) != token([1])


def test_identity_does_not_count() -> None:
    text = "ab" * 40
    other = "".join(["ab"] * 40)
    assert text is not other
    assert token([text, text]) == token([text, other])
    shared = [1, Point(1)]
    assert token([shared, shared]) == token([[1, Point(1)], [1, Point(1)]])
    assert token(Point([text], [text])) == token(Point([text], [other]))
    assert token({"k": shared}, shared) == token({"k": [1, Point(1)]}, [1, Point(1)])


def test_cycles_have_names() -> None:
    def ring(value: int) -> list[Any]:
        one: list[Any] = [value]
        one.append([one])
        return one

    assert token(ring(1)) == token(ring(1)) != token(ring(2))
    point = Point(1)
    point.y = point
    again = Point(1)
    again.y = again
    assert token(point) == token(again)


def test_a_lattice_of_shared_parts_is_walked_once() -> None:
    parts: Any = [1]
    for _ in range(200):
        parts = [parts, parts]
    assert token(parts) == token(parts)


def test_arrays_by_content_not_by_memory() -> None:
    base = np.arange(24).reshape(4, 6)
    assert token(base[::2]) == token(base[::2].copy())
    assert token(base.T) == token(base.T.copy(order="F"))
    frozen = base.copy()
    frozen.flags.writeable = False
    assert token(frozen) == token(base)


def test_what_has_no_content_is_an_error() -> None:
    with pytest.raises(
        SerializationError, match=r"object of type _thread.lock cannot be pickled, so it has no content"
    ):
        token([threading.Lock()])
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="arguments of type tuple cannot be pickled"):
        token(deep)
    while deep:  # taken apart by hand: some Python versions cannot free it
        deep = deep[0]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
nested = st.recursive(
    scalars | st.frozensets(scalars, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=12)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.builds(Point, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(nested)
def test_a_copy_that_travelled_has_the_same_name(value: Any) -> None:
    assert token(value) == token(serialize.loads(serialize.dumps(value)))
    assert token(1, k=value) == token(1, k=serialize.loads(serialize.dumps(value)))


@settings(max_examples=150, deadline=None)
@given(nested, nested)
def test_equal_names_mean_equal_values(one: Any, other: Any) -> None:
    if token(one) == token(other):
        assert shown(one) == shown(other) or one == other


def shown(value: Any) -> str:
    """Like repr, but sets have no order in it: two that hold a NaN are never equal otherwise."""
    if isinstance(value, frozenset):
        return f"frozenset{sorted(map(shown, value))}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{list(map(shown, value))}"
    if isinstance(value, dict):
        return f"dict{sorted((key, shown(part)) for key, part in value.items())}"
    return f"Point({shown(value.x)}, {shown(value.y)})" if isinstance(value, Point) else repr(value)


SCRIPT = """
import abc, collections, dataclasses, enum, functools, pathlib, sys
import numpy as np
from zdist import serialize

LIMIT = 3
WORDS = {"alpha", "beta", "gamma", "delta"}

class Base(abc.ABC):
    __slots__ = ("kept",)
    @abc.abstractmethod
    def area(self): ...

@dataclasses.dataclass
class Square(Base):
    side: float
    tags: set = dataclasses.field(default_factory=set)
    @property
    def double(self): return 2 * self.side
    @classmethod
    def unit(cls): return cls(1)
    def area(self):
        return super().__class__ and self.side ** 2

class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"

def helper(x):
    return x in {"a", "b", "c"} or x in WORDS

@functools.lru_cache
def cached(x):
    return helper(x) + LIMIT

def outer(n):
    def inner(x, *, k=LIMIT):
        return inner(x - 1) if x in ("p", "q") else [cached(y) for y in {n, x}]
    return inner

def main(x):
    return Square(x).area(), Colour.RED, np.sin(x), outer(x)

VALUES = [
    ({"x", "y", "z", "w", 1, 2.5, None}, frozenset("abcdef")), {"b": 1, "a": {"q", "r"}}, "text" * 50, 3.5,
    Square(2, {"u", "v"}), Colour.BLUE, np.arange(10), np.array(["a", {"s", "t"}], dtype=object),
    pathlib.PurePath("/x"), collections.Counter("hello"), Square, main, outer(3), lambda s: s in {"k", "l", "m"},
    functools.partial(outer, {"a", "b"}),
]
for value in VALUES:
    print(serialize.token(bytes(32), (value,), {"again": [value]}))
partial = functools.partial(main, {"a", "b"})
for fn in (main, helper, cached, outer, outer(3), len, Square, Square.unit, partial, np.sin):
    print(serialize.dumps_function(fn).code_digest(fn).hex())
"""


def test_names_are_the_same_in_every_process(tmp_path: Path) -> None:
    names = []
    for seed, lines, folder in (("0", 0, "one"), ("1", 7, "two"), ("4242", 3, "three")):
        (tmp_path / folder).mkdir()
        script = tmp_path / folder / "script.py"
        script.write_text("\n" * lines + SCRIPT)
        done = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        names.append(done.stdout.splitlines())
    assert len(set(names[0])) == len(names[0]) == 25
    for i, (a, b, c) in enumerate(zip(*names, strict=True)):
        assert a == b == c, f"number {i} differs"


@pytest.mark.parametrize("dtype", ["f8", ">f8", "M8[s]", "c16", "?", "S3", "f2", [("a", "i4"), ("b", "f8")]])
def test_large_arrays_are_named_where_they_lie(dtype: Any) -> None:
    data = np.arange(40_000).astype("i8").view("u1")
    array = np.resize(data, np.dtype(dtype).itemsize * 40_000).view(dtype).reshape(200, 200)
    names = [
        serialize.token(b"x", (form,), {})
        for form in (array, array.copy(), np.repeat(array, 2, axis=0)[::2], array.copy(order="F"))
    ]
    assert names[0] == names[1] == names[2]
    other = array.copy()
    other.view("u1").reshape(-1)[-1] ^= 1
    assert serialize.token(b"x", (other,), {}) != names[0]


@pytest.mark.parametrize("size", [4 << 20, (4 << 20) + 1, (5 << 20) + 3])
def test_large_data_is_named_by_every_byte_of_it(size: int) -> None:
    data = np.random.default_rng(1).bytes(size)
    name = token(data)
    assert token(bytes(bytearray(data))) == name
    assert token(data[:-1]) != name and token(data + b"\0") != name
    places = (0, 1 << 20, size // 2, (4 << 20) - 1, size - 1)
    changed = set()
    for at in places:
        other = bytearray(data)
        other[at] ^= 1
        changed.add(token(bytes(other)))
    assert len(changed | {name}) == len(set(places)) + 1
    halves = data[1 << 20 : 2 << 20] + data[: 1 << 20] + data[2 << 20 :]
    assert token(halves) != name  # leaves count in their order
