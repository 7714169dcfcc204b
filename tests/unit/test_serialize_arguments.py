"""Arguments: futures become references wherever they stand, and what is big becomes a key of its own."""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist import serialize
from zdist.errors import SerializationError
from zdist.limits import INLINE_ARGS, OWN_FRAME


class Promise:
    """A future as the client has it: pickles as itself, but among arguments it stands for its key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __reduce__(self) -> Any:
        raise AssertionError("among arguments a future is a reference, not pickled")


serialize.register_reference(Promise, lambda promise: promise.key)


@dataclasses.dataclass
class Job:
    source: Any
    rest: Any = None


class Held:
    """The client's side of ``find``: freezes at once, one key for each object."""

    def __init__(self) -> None:
        self.blobs: dict[str, serialize.Blob] = {}
        self.seen: list[Any] = []

    def __call__(self, obj: Any) -> str:
        key = f"held-{len(self.blobs)}"
        self.blobs[key] = serialize.dumps(obj)
        self.seen.append(obj)
        return key

    def resolve(self, key: str) -> Any:
        return serialize.loads(self.blobs[key])


def value_of(key: str) -> str:
    return f"value of {key}"


def there_and_back(*args: Any, **kwargs: Any) -> tuple[Any, tuple[str, ...]]:
    payload, deps = serialize.dumps_args(args, kwargs)
    assert type(payload) is bytes
    return serialize.loads_args(payload, value_of), deps


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((5,), {}),
        ((1, 2.5, "text", b"bytes", None, True), {}),
        (([1, 2], {"a": (3, 4)}, {5, 6}), {"named": frozenset({7})}),
        ((10**5000,), {"x": "y" * 1000}),
        ((object, len, Job), {}),
    ],
)
def test_arguments_without_futures(args: Any, kwargs: Any) -> None:
    assert there_and_back(*args, **kwargs) == ((args, kwargs), ())


def test_futures_at_top_level() -> None:
    content, deps = there_and_back(Promise("b"), 1, Promise("a"), Promise("b"), k=Promise("c"), n=2)
    assert content == (("value of b", 1, "value of a", "value of b"), {"k": "value of c", "n": 2})
    assert deps == ("b", "a", "c")


def test_futures_anywhere_inside_in_order() -> None:
    Pair = collections.namedtuple("Pair", "left right")
    Pair.__qualname__ = "no such name"  # so that cloudpickle has to carry it
    args = (
        [Promise("1"), (Promise("2"), {"x": Promise("3")})],
        Promise("4"),
        Job(Promise("5"), Job([Promise("1")])),
        collections.deque([Promise("6")]),
        {Promise("7")},
        np.array([Promise("8"), None], dtype=object),
        Pair(Promise("9"), 0),
    )
    (back, kwargs), deps = there_and_back(*args, last=[Promise("10"), Promise("2")])
    assert deps == (*"123456789", "10")
    assert back[0] == ["value of 1", ("value of 2", {"x": "value of 3"})]
    assert back[1] == "value of 4"
    assert back[2] == Job("value of 5", Job(["value of 1"]))
    assert back[3:5] == (collections.deque(["value of 6"]), {"value of 7"})
    assert back[5].tolist() == ["value of 8", None]
    assert tuple(back[6]) == ("value of 9", 0)
    assert kwargs == {"last": ["value of 10", "value of 2"]}


leaves = st.integers() | st.text(max_size=5) | st.sampled_from("abc").map(Promise)
shapes = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3)
    | st.builds(Job, inner),
    max_leaves=10,
)  # fmt: skip


def flat(obj: Any) -> list[Any]:
    """Every leaf in order, a future as its value."""
    if isinstance(obj, Promise):
        return [value_of(obj.key)]
    if isinstance(obj, list | tuple):
        return [leaf for part in obj for leaf in flat(part)]
    if isinstance(obj, dict):
        return [leaf for part in obj.values() for leaf in flat(part)]
    if isinstance(obj, Job):
        return flat(obj.source)
    return [obj]


@settings(max_examples=150, deadline=None)
@given(st.lists(shapes, max_size=3), st.dictionaries(st.text("xyz", min_size=1), shapes, max_size=2), st.booleans())
def test_every_future_is_found(args: list[Any], kwargs: dict[str, Any], holding: bool) -> None:
    payload, deps = serialize.dumps_args(tuple(args), kwargs, Held() if holding else None)
    content = serialize.loads_args(payload, value_of)
    expected = flat(args) + flat(kwargs)
    assert flat(content) == expected
    named = [leaf[9:] for leaf in expected if isinstance(leaf, str) and leaf.startswith("value of ")]
    assert list(deps) == list(dict.fromkeys(named))


def test_a_list_of_futures() -> None:
    content, deps = there_and_back([Promise("b"), Promise("a"), Promise("b")], 1, k=[Promise("c")], e=[])
    assert content == ((["value of b", "value of a", "value of b"], 1), {"k": ["value of c"], "e": []})
    assert deps == ("b", "a", "c")
    held = Held()
    payload, deps = serialize.dumps_args(([Promise(f"{i:0200}") for i in range(500)],), {}, held)
    assert len(payload) < 100 and len(deps) == 501 and deps[0] == "held-0"
    (back,), _ = serialize.loads_args(payload, lambda key: held.resolve(key) if key in held.blobs else int(key))
    assert back == list(range(500))


def test_the_same_future_resolves_to_one_object() -> None:
    store = {"a": [1]}
    payload, _ = serialize.dumps_args(([Promise("a")], Promise("a")), {})
    (inner, outer), _ = serialize.loads_args(payload, store.__getitem__)
    assert inner[0] is outer is store["a"]


@pytest.mark.parametrize("big", [b"x" * INLINE_ARGS, bytearray(INLINE_ARGS), "x" * INLINE_ARGS, np.ones(INLINE_ARGS)])
def test_a_big_object_becomes_a_key(big: Any) -> None:
    held = Held()
    payload, deps = serialize.dumps_args((1, big, Promise("f"), big), {"k": big}, held)
    assert len(payload) < 500 and deps == ("held-0", "f")
    assert len(held.seen) == 1 and held.seen[0] is big
    resolve = {"held-0": held.resolve("held-0"), "f": 2}.__getitem__
    args, kwargs = serialize.loads_args(payload, resolve)
    assert args[0] == 1 and args[2] == 2 and args[1] is args[3] is kwargs["k"]
    assert type(args[1]) is type(big) and np.array_equal(args[1], big)


def test_a_big_array_inside_becomes_a_key_and_is_a_snapshot() -> None:
    held = Held()
    big = np.zeros(OWN_FRAME)
    payload, deps = serialize.dumps_args(([Promise("f"), big], Job({"b": big})), {}, held)
    big[0] = 9
    assert deps == ("f", "held-0") and len(payload) < 500
    values = {"held-0": held.resolve("held-0"), "f": 2}
    args, _ = serialize.loads_args(payload, values.__getitem__)
    assert args[0][0] == 2 and args[0][1] is args[1].source["b"] is values["held-0"]
    assert not args[0][1].any()


@pytest.mark.parametrize(
    "content",
    [
        list(range(100_000)),
        [Promise("f"), *range(100_000)],
        [np.full(INLINE_ARGS - 1, i, "u1") for i in range(20)],
        Job([Promise("f"), memoryview(b"x").tobytes() * OWN_FRAME]),
        np.array([Promise("f")] + [None] * INLINE_ARGS, dtype=object),
    ],
)
def test_arguments_that_are_big_together_become_one_key(content: Any) -> None:
    held = Held()
    payload, deps = serialize.dumps_args((content, 7), {"k": Promise("g")}, held)
    assert len(payload) < 100 and deps[-1] == "g"
    small = serialize.dumps_args((content, 7), {"k": Promise("g")})

    def resolve(key: str) -> Any:
        return held.resolve(key) if key.startswith("held") else value_of(key)

    expected = serialize.loads_args(small[0], value_of)
    back = serialize.loads_args(payload, resolve)
    assert set(deps) == {*small[1], *held.blobs}
    assert serialize.token(b"", *back) == serialize.token(b"", *expected)


class Frame:
    """Gives pickle a large buffer of its own, as table libraries do."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        import pickle

        return Frame, (pickle.PickleBuffer(self.data),)


def test_packed_arguments_serve_many_runs() -> None:
    held = Held()
    source = bytearray(2 * OWN_FRAME)
    payload, (key,) = serialize.dumps_args((Frame(source),), {}, held)
    source[0] = 1
    packed = held.resolve(key)
    assert packed.nbytes > len(source)
    first, second = (serialize.loads_args(payload, lambda _: packed)[0][0] for _ in range(2))
    first.data[5] = 9
    assert first.data[0] == second.data[0] == second.data[5] == 0
    third = serialize.loads_args(payload, lambda _: packed)[0][0]
    assert third.data[5] == 0


def test_without_find_all_travels_in_the_payload() -> None:
    content, deps = there_and_back(np.arange(50_000), [Promise("f"), np.arange(20_000)], b"x" * 100_000)
    args, _ = content
    assert deps == ("f",) and args[0][-1] == 49_999 and args[1][0] == "value of f" and args[1][1].flags.writeable
    assert args[2] == b"x" * 100_000


def test_everything_is_bytes_at_submit() -> None:
    numbers, array = [1, 2], np.zeros(4)
    payload, _ = serialize.dumps_args((numbers, [array]), {})
    numbers.append(3)
    array[0] = 1
    args, _ = serialize.loads_args(payload, value_of)
    assert args[0] == [1, 2] and not args[1][0].any() and args[1][0].flags.writeable


def test_an_unpicklable_argument_is_named() -> None:
    with pytest.raises(SerializationError) as caught:
        serialize.dumps_args(([1], [threading.Lock()]), {}, what="arguments of inc")
    assert str(caught.value) == (
        "arguments of inc: argument number 1 of type list cannot be pickled: "
        "TypeError: cannot pickle '_thread.lock' object; make or open such an object inside the task"
    )
    with pytest.raises(SerializationError, match=r"argument 'lock' of type _thread.lock cannot be pickled"):
        serialize.dumps_args((1,), {"lock": threading.Lock()})


def test_a_reference_outside_arguments_says_so() -> None:
    payload, _ = serialize.dumps_args(([Promise("abc"), 1],), {})
    with pytest.raises(SerializationError, match="reference to key 'abc' can only be loaded among a task's arguments"):
        serialize.loads(payload)


def test_a_payload_of_something_else_is_refused() -> None:
    with pytest.raises(SerializationError, match="arguments of inc: the payload is not a task's arguments"):
        serialize.loads_args(serialize.dumps([1, 2]).tobytes(), value_of, what="arguments of inc")


def test_an_error_of_resolve_is_told() -> None:
    for args in ((Promise("a"),), ([Promise("a")],), ([Promise("a"), 1],)):
        payload, _ = serialize.dumps_args(args, {})
        with pytest.raises((KeyError, SerializationError), match="'a'"):
            serialize.loads_args(payload, {}.__getitem__)
