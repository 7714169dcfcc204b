"""Calls that every worker answers before it takes work, and what clients register them with."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.limits import OWN_FRAME
from zdist.protocol.messages import Answer, Ask, Buffer, Call, Called, Subscribe
from zdist_broker.queries import plain


def register(w: World, name: str, *parts: bytes, whole: bool = True) -> None:
    rows: list[tuple[str, tuple[object, ...]]] = [("part", (number, part)) for number, part in enumerate(parts)]
    for verb, args in rows + [("whole", (len(parts),))] * whole:
        w.gen += 1
        w.send("c-0", Ask(w.gen, "shared", ((), "plugin", name, verb, args, None)))


def called(w: World, session: str) -> list[bytes]:
    """Payloads of the calls that a worker has got since, each of which it answers at once."""
    found = []
    while calls := w.got(session, Call):
        for call in calls:
            found.append(plain(call.payload))
            w.send(session, Called(call.req, True, b"done"))
    return found


def test_a_worker_is_given_work_after_it_has_answered_all_calls_in_their_order() -> None:
    w = World(workers=0)
    register(w, "first", b"one, ", b"two")
    register(w, "second", b"three")
    w.worker("w-0")
    w.submit("a")
    for payload in (b"one, two", b"three"):
        assert w.where("a") == ""
        (call,) = w.got("w-0", Call)
        assert call.payload == payload
        w.send("w-0", Called(call.req, True, b"done"))
    assert w.where("a") == "w-0"


def test_a_worker_is_given_work_after_it_has_answered_the_only_call() -> None:
    w = World(workers=0)
    register(w, "it", b"payload")
    w.worker("w-0")
    w.submit("a")
    assert w.where("a") == ""
    assert called(w, "w-0") == [b"payload"]
    assert w.where("a") == "w-0"


def test_a_worker_offers_what_it_offered_last() -> None:
    w = World(workers=0)
    register(w, "it", b"one")
    register(w, "other", b"two")
    w.worker("w-0", threads=1)
    w.send("w-0", Subscribe(3, (), {}, False))
    assert not w.broker.tables.workers["w-0"].subscribed
    assert called(w, "w-0") == [b"one", b"two"]
    assert w.broker.tables.workers["w-0"].threads == 3
    w.send("w-0", Subscribe(2, (), {}, False))
    assert called(w, "w-0") == []  # it has had them all
    assert w.broker.tables.workers["w-0"].threads == 2


@pytest.mark.parametrize("size", [OWN_FRAME - 1, OWN_FRAME])
def test_a_large_payload_has_a_frame_of_its_own(size: int) -> None:
    w = World(workers=0)
    register(w, "it", bytes(size))
    register(w, "other", b"other")
    w.worker("w-0")
    (call,) = w.got("w-0", Call)
    assert isinstance(call.payload, Buffer) == (size >= OWN_FRAME)
    assert plain(call.payload) == bytes(size)


def test_what_has_not_all_come_yet_is_not_called() -> None:
    w = World(workers=0)
    register(w, "it", b"one, ", b"two")
    register(w, "other", b"three")
    for number, part in ((0, b"new "), (-1, b"2")):  # part 0 takes the earlier ones away
        w.broker.shared.change("plugin", "torn", number, part)
    register(w, "begun", b"one", whole=False)
    w.worker("w-0")
    assert called(w, "w-0") == [b"one, two", b"three"]


def test_workers_that_were_here_before_their_brokers_state_came_are_set_up_while_they_work() -> None:
    w = World(workers=2)
    w.worker("w-2")
    w.join("w-3", "worker", node="n-0", address="tcp://w-3")  # has not offered itself
    w.broker.shared.change("plugin", "it", 0, b"payload")
    w.broker.shared.change("plugin", "it", -1, b"1")
    w.broker.shared.taken_over()
    w.broker.shared.taken_over()
    w.submit("a")
    assert w.where("a")
    assert [called(w, session) for session in ("w-0", "w-1", "w-2", "w-3")] == [[b"payload"]] * 3 + [[]]


@pytest.mark.parametrize("slow", [True, False])
def test_what_is_registered_while_a_worker_is_being_set_up_is_called_there_as_well(slow: bool) -> None:
    w = World(workers=0)
    register(w, "first", b"one")
    w.worker("w-0")
    if slow:
        (call,) = w.got("w-0", Call)
    else:
        assert called(w, "w-0") == [b"one"]
    register(w, "second", b"two")
    w.send("c-0", Call(99, None, b"two"))  # which is for those that are there
    if slow:
        w.send("w-0", Called(call.req, True, b"done"))
    assert called(w, "w-0") == [b"two"]
    w.submit("a")
    assert w.where("a") == "w-0"
    assert 99 in [answer.req for answer in w.got("c-0", Answer)]
