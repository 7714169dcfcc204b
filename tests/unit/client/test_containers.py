from __future__ import annotations

import time
from collections import Counter, OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
from fake_client import FakeClient, FakeFuture, use_fakes
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist.client import containers
from zdist.client.containers import flatten, rebuild

Point = namedtuple("Point", "x y")


class Tagged(list):
    tag = ""


class Pair(tuple):
    """Wants its members one by one, and has an attribute."""

    def __new__(cls, first: Any, second: Any) -> Pair:
        return super().__new__(cls, (first, second))


class Named(Point):
    """A namedtuple with an attribute."""


class Tokens(frozenset):
    __slots__ = ("origin",)


class Sorted(dict):
    """Cannot be made of its members alone."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order


class Picky(list):
    def __copy__(self) -> Picky:
        raise RuntimeError("not to be copied")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    return use_fakes(monkeypatch)


def there_and_back(obj: Any, skip: tuple[str, ...] = ()) -> Any:
    futures, skeleton = flatten(obj)
    skipped = [place for place, future in enumerate(futures) if future.key in skip]
    return rebuild(skeleton, [future.key.upper() for future in futures], skipped)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: a,
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: {a, b},
        lambda a, b: frozenset([a, b]),
        lambda a, b: {"x": a, "y": b},
        lambda a, b: Point(a, b),
        lambda a, b: [1, (a, {"k": [b, {a}]}), "a", None, 2.5],
        lambda a, b: {"x": Point([a], {"z": b}), 3: frozenset([(a, 1)])},
        lambda a, b: Pair(a, 7),
        lambda a, b: OrderedDict(y=a, x=[b]),
        lambda a, b: [],
        lambda a, b: {},
        lambda a, b: [[], (), {}, "a"],
    ],
)
def test_the_same_kind_comes_back_with_values_for_futures(client: FakeClient, make: Any) -> None:
    given_, expected = make(client.future("a"), client.future("b")), make("A", "B")
    result = there_and_back(given_)
    assert result == expected
    assert type(result) is type(expected)


def test_a_string_equal_to_a_key_is_not_mistaken(client: FakeClient) -> None:
    assert there_and_back(["a", client.future("a"), ("a",)]) == ["a", "A", ("a",)]
    assert there_and_back("a") == "a"


def test_dict_keys_stay_what_they_are(client: FakeClient) -> None:
    future = client.future("a")
    assert there_and_back({future: future}) == {future: "A"}


def test_futures_are_listed_once_in_the_order_first_seen(client: FakeClient) -> None:
    a, b, c = (client.future(key) for key in "abc")
    assert flatten([b, a, b, client.future("a"), c])[0] == [b, a, c]
    assert flatten([b, [a, 1], b, (c, a)])[0] == [b, a, c]


def test_duplicates_stand_for_one_object(client: FakeClient) -> None:
    a = client.future("a")
    futures, skeleton = flatten([a, [a], client.future("a")])
    value = object()
    result = rebuild(skeleton, [value])
    assert futures == [a]
    assert result[0] is value and result[1][0] is value and result[2] is value


def test_futures_of_two_clients_under_one_key_are_both_listed(client: FakeClient) -> None:
    mine, foreign = client.future("a"), FakeClient().future("a")
    assert flatten([mine, foreign])[0] == [mine, foreign]
    assert flatten([mine, [foreign]])[0] == [mine, foreign]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda a, b: a, None),
        (lambda a, b: b, "B"),
        (lambda a, b: [a, b, a], ["B"]),
        (lambda a, b: (a, b), ("B",)),
        (lambda a, b: {a, b}, {"B"}),
        (lambda a, b: {"x": a, "y": b}, {"y": "B"}),
        (lambda a, b: Point(a, b), Point(None, "B")),
        (lambda a, b: [[a], {"k": a}, (b, [a, 5])], [[], {}, ("B", [5])]),
        (lambda a, b: OrderedDict(x=a, y=b), OrderedDict(y="B")),
        (lambda a, b: Tagged([a, b]), Tagged(["B"])),
    ],
)
def test_skipped_ones_leave_the_collection_they_stand_in(client: FakeClient, make: Any, expected: Any) -> None:
    assert there_and_back(make(client.future("a"), client.future("b")), ("a",)) == expected


def test_subclasses_keep_their_attributes(client: FakeClient) -> None:
    tagged = Tagged([client.future("a")])
    tagged.tag = "mine"
    result = there_and_back([tagged])[0]
    assert type(result) is Tagged and result == ["A"] and result.tag == "mine"
    table = defaultdict(list, x=client.future("a"))
    result = there_and_back(table)
    assert result == {"x": "A"} and result["new"] == []
    counter = Counter({"x": client.future("n")})
    assert type(there_and_back(counter)) is Counter


def test_subclasses_are_rebuilt_whatever_their_constructors_want(client: FakeClient) -> None:
    pair, named, ordered = Pair(client.future("a"), 2), Named(1, client.future("b")), Sorted("up")
    tokens = Tokens([client.future("a"), "x"])
    pair.tag, named.tag, tokens.origin = "p", "n", "here"
    ordered["k"] = client.future("b")
    got = there_and_back([pair, named, tokens, ordered])
    assert [type(one) for one in got] == [Pair, Named, Tokens, Sorted]
    assert got == [("A", 2), (1, "B"), {"A", "x"}, {"k": "B"}]
    assert (got[0].tag, got[1].tag, got[2].origin, got[3].order) == ("p", "n", "here", "up")


def test_a_struct_sequence_comes_back(client: FakeClient) -> None:
    moment = time.struct_time((2024, 1, 2, 3, 4, 5, 6, client.future("a"), 0))
    got = there_and_back([moment])[0]
    assert type(got) is time.struct_time and got.tm_yday == "A" and got.tm_year == 2024


def test_two_results_under_one_key_are_two(client: FakeClient) -> None:
    """A key that was cancelled and given again."""
    old = client.future("a")
    client.entries.clear()
    new = client.future("a")
    futures, skeleton = flatten([old, new, [old], new])
    assert futures == [old, new] and rebuild(skeleton, [1, 2]) == [1, 2, [1], 2]
    assert rebuild(skeleton, [1, 2], [0]) == [2, [], 2]
    futures, skeleton = flatten([old, new, old])
    assert futures == [old, new] and rebuild(skeleton, [1, 2]) == [1, 2, 1] and rebuild(skeleton, [1, 2], [0]) == [2]


def test_what_holds_no_futures_is_untouched(client: FakeClient) -> None:
    @dataclass
    class Box:
        future: Any

    inner, picky, box = [1, 2], Picky([3]), Box(client.future("x"))
    result = there_and_back([inner, picky, box, client.future("a"), range(3)])
    assert result[0] is inner and result[1] is picky and result[2] is box and result[3:] == ["A", range(3)]


def test_the_outermost_collection_is_never_the_one_given(client: FakeClient) -> None:
    for given_ in ([], {}, set(), [1], {"x": 1}):
        result = there_and_back(given_)
        assert result == given_ and result is not given_


def test_a_subclass_that_cannot_be_rebuilt_is_named(client: FakeClient) -> None:
    with pytest.raises(
        TypeError, match=r"cannot make a .*Picky of its members again \(not to be copied\); gather a list"
    ):
        there_and_back([Picky([client.future("a")])])


def test_unhashable_values_for_a_set_are_explained(client: FakeClient) -> None:
    _, skeleton = flatten({client.future("a")})
    with pytest.raises(TypeError, match=r"do not fit into a set \(.*unhashable.*\); gather a list instead"):
        rebuild(skeleton, [[]])


def test_a_container_in_itself_is_refused(client: FakeClient) -> None:
    loop: list[Any] = [client.future("a")]
    loop.append({"loop": [loop]})
    with pytest.raises(ValueError, match="the list to gather contains itself"):
        flatten(loop)


def test_one_container_at_two_places_is_fine(client: FakeClient) -> None:
    shared = [client.future("a")]
    assert there_and_back([shared, shared]) == [["A"], ["A"]]


def test_depth_is_no_limit(client: FakeClient) -> None:
    deep: Any = client.future("a")
    for i in range(5_000):
        deep = [deep] if i % 2 else {"k": (i, deep)}
    result = there_and_back(deep)
    for i in reversed(range(5_000)):
        result = result[0] if i % 2 else result["k"][1]
    assert result == "A"


def test_a_flat_list_is_quick(client: FakeClient) -> None:
    futures = [client.future(f"k{i}") for i in range(10_000)]
    values = list(range(10_000))
    best = min(_seconds_for(futures, values) for _ in range(10))
    assert best < 10_000 * 2e-6  # ten times what it takes on a quiet machine


def _seconds_for(futures: list[FakeFuture], values: list[int]) -> float:
    start = time.thread_time()
    found, skeleton = flatten(futures)
    result = rebuild(skeleton, values)
    took = time.thread_time() - start
    assert len(found) == len(result) == 10_000
    return took


LEAVES = st.one_of(st.integers(), st.text(max_size=3), st.none())
KEYS = st.sampled_from("abcdef")
MARKED = st.builds(lambda key: ("future", key), KEYS)
NESTED = st.recursive(
    st.one_of(LEAVES, MARKED),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(lambda xs: ("tuple", *xs)),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.tuples(inner, inner).map(lambda xs: Point(*xs)),
    ),
    max_leaves=20,
)


def substitute(obj: Any, replace: Any) -> Any:
    """The plain recursive meaning of it: the model that flatten and rebuild are held against."""
    if isinstance(obj, tuple) and not isinstance(obj, Point) and len(obj) == 2 and obj[0] == "future":
        return replace(obj[1])
    if isinstance(obj, Point):
        return Point(*(substitute(member, replace) for member in obj))
    if isinstance(obj, list | tuple):
        return type(obj)(substitute(member, replace) for member in obj)
    if isinstance(obj, dict):
        return {name: substitute(member, replace) for name, member in obj.items()}
    return obj


@given(NESTED)
@settings(max_examples=150, deadline=None)
def test_flatten_and_rebuild_agree_with_recursion(tree: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        client = use_fakes(patch)
        assert there_and_back(substitute(tree, client.future)) == substitute(tree, str.upper)


def test_the_skeleton_of_a_future_free_object_is_that_object(client: FakeClient) -> None:
    whole = object()
    futures, skeleton = containers.flatten(whole)
    assert futures == [] and rebuild(skeleton, []) is whole
