"""What clients can do with the state that they share, verb by verb."""

from __future__ import annotations

import pytest
from test_broker_shared import Shared, item

from zdist.limits import MAX_NAMES
from zdist_broker.topics import Topics


def test_an_event_is_waited_for_until_it_is_set() -> None:
    w = Shared()
    waits = w.op("c-1", "event", "wait")
    assert w.answers("c-1") == {} and w.do("c-1", "event", "is_set") is False
    for _ in range(2):
        w.do("c-0", "event", "set")
    assert w.answers("c-1") == {waits: ("ok", True)} and w.do("c-1", "event", "is_set") is True
    assert w.do("c-1", "event", "wait") is True
    for _ in range(2):
        w.do("c-0", "event", "clear")
        assert w.do("c-1", "event", "is_set") is False
    assert w.do("c-1", "event", "wait", timeout=0.0) == ("timeout", None)


def test_an_event_that_is_as_it_should_be_changes_nothing() -> None:
    w = Shared()
    w.do("c-0", "event", "clear")
    w.do("c-0", "event", "set")
    version = w.broker.shared.store.version
    w.do("c-0", "event", "set")
    assert w.broker.shared.store.version == version


def test_a_dataset_is_published_under_a_name_that_is_free() -> None:
    w = Shared()
    assert w.do("c-1", "dataset", "get", name="a") == ()
    assert w.do("c-0", "dataset", "publish", *item("old"), False, name="a") is True
    assert w.do("c-0", "dataset", "publish", *item("new"), False, name="a") is False
    assert w.do("c-1", "dataset", "get", name="a") == (item("old"),)
    assert w.do("c-0", "dataset", "publish", *item("new"), True, name="a") is True
    assert w.do("c-1", "dataset", "get", name="a") == (item("new"),)


def test_datasets_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    w = Shared()
    w.do("c-0", "variable", "set", *item("x"), name="variable")
    for name in "ab":
        w.do("c-0", "dataset", "publish", *item("x"), False, name=name)
    assert w.do("c-1", "dataset", "list") == ("a", "b")
    monkeypatch.setattr("zdist_broker.verbs.ASK_ENTRIES", 1)
    assert w.do("c-1", "dataset", "list") == ("error", "there are more than 1")


def test_metadata_is_a_tree_of_paths() -> None:
    w = Shared()
    w.do("c-0", "metadata", "set", (("a/x", b"1"), ("a/y", b"2"), ("b", b"3")), ())
    assert w.do("c-1", "metadata", "get", "a/") == (("a/x", b"1"), ("a/y", b"2"))
    w.do("c-0", "metadata", "set", (("a/z", b"4"),), ("a/",))
    assert w.do("c-1", "metadata", "get", "") == (("b", b"3"), ("a/z", b"4"))


def test_metadata_has_its_bounds() -> None:
    w = Shared()
    rows = tuple((str(number), b"") for number in range(MAX_NAMES - 1))
    assert w.do("c-0", "metadata", "set", rows, ("x", "y"))[0] == "error"
    assert w.do("c-0", "metadata", "get", "") == ()
    assert w.do("c-0", "metadata", "set", rows, ("x",)) is None
    for args in ((None, ()), ((), None)):
        assert w.do("c-0", "metadata", "set", *args)[0] == "error"


def test_a_call_is_registered_anew_with_its_first_part() -> None:
    w = Shared()
    for parts in ((b"a", b"b", b"c"), (b"d", b"e")):
        for number, part in enumerate(parts):
            w.do("c-0", "plugin", "part", number, part)
        w.do("c-0", "plugin", "whole", len(parts))
    assert w.broker.setups.payloads() == [b"de"]
    assert w.broker.shared.store.items("plugin", "it") == {0: b"d", 1: b"e", -1: b"2"}


@pytest.mark.parametrize("rest", ["", "bc"])
def test_what_was_got_in_vain_is_the_first_again(rest: str) -> None:
    w = Shared()
    for text in "a" + rest:
        w.do("c-0", "queue", "put", *item(text), 0)
    got = w.op("c-1", "queue", "get", 1)
    w.op("c-1", "", "cancel", got)
    assert got not in w.answers("c-1")
    w.do("c-0", "queue", "put", *item("z"), 0)
    assert w.do("c-1", "queue", "get", -1) == tuple(map(item, ("a", *rest, "z")))


def test_the_topic_that_was_used_least_lately_loses_its_events_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.topics.TOPICS", 2)
    monkeypatch.setattr("zdist_broker.topics.TOPIC_EVENTS", 3)
    topics = Topics()
    for name in "aabbbba":
        topics.log(name, 1.0, b"event")
    assert {name: [event[0] for event in topics.after(name, 0)] for name in "ab"} == {"a": [1, 2, 7], "b": [4, 5, 6]}
    topics.log("c", 1.0, b"event")
    assert [name for name in "abc" if topics.after(name, 0)] == ["a", "c"]
    assert topics.size == 4 * len(b"event")
    monkeypatch.setattr("zdist_broker.topics.TOPIC_BYTES", 3 * len(b"event"))
    topics.log("c", 1.0, b"event")
    assert [event[0] for event in topics.after("a", 0)] == [7]
