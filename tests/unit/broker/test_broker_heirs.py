"""Clients that have keys from others are told how they are computed, when nobody else who knows wants them any more."""

from __future__ import annotations

from broker_world import FN, World
from test_broker_shared import Shared, item

from zdist.protocol.messages import Cancel, Hold, Options, Release, Specs, Want

OPTIONS = tuple(Options(retries=2, priority=-3, workers=("w",), allow_other=True, timeout=5.0))


def want(w: World, key: str, client: str = "c-1", gen: int = 100) -> None:
    w.send(client, Want(gen, (key,)))


def told(w: World, client: str = "c-1") -> list[tuple[str, bytes]]:
    """Keys and functions of which the client has been told."""
    w.turn()
    return [(row[0], row[1]) for message in w.got(client, Specs) for row in message.rows]


def test_when_the_submitter_lets_go_another_is_told_with_all_that_it_is_made_of() -> None:
    w = World(clients=2)
    w.submit("a", options=OPTIONS)
    gen = w.submit("b", deps=("a",))
    want(w, "b")
    assert told(w) == []
    w.release("b", gen)
    w.turn()
    (specs,) = w.got("c-1", Specs)
    assert [(digest, blob) for digest, _, blob in specs.functions] == [(FN, w.broker.tables.functions[FN].blob)]
    assert [row[0] for row in specs.rows] == ["a", "b"]
    assert specs.rows[0][4] == OPTIONS and specs.rows[1][3] == ("a",)
    w.broker.check()


def test_who_takes_a_key_that_only_shared_state_refers_to_is_told_at_once() -> None:
    w = Shared()
    gen = w.submit("a")
    w.do("c-0", "queue", "put", *item("future", "a"), 0)
    w.release("a", gen)
    assert w.do("c-1", "queue", "get", 1)
    want(w, "a")
    assert told(w) == [("a", FN)]
    w.broker.check()


def test_one_heir_is_enough_and_the_next_is_told_when_that_lets_go() -> None:
    w = World(clients=3)
    w.submit("a")
    want(w, "a", "c-1")
    want(w, "a", "c-2")
    w.leave("c-0")
    assert told(w, "c-1") == [("a", FN)] and told(w, "c-2") == []
    w.send("c-1", Cancel(("a",), False, ""))
    assert told(w, "c-2") == [("a", FN)] and not w.broker.tables.blind
    w.broker.check()


def test_what_was_made_of_a_key_needs_it_though_its_future_is_gone() -> None:
    w = World(clients=2)
    w.submit("a")
    want(w, "a")
    w.submit("b", deps=("a",), client="c-1")
    w.send("c-1", Release((("a", 100),)))
    w.release("a", 1)
    assert told(w) == [("a", FN)]


def test_who_is_to_be_told_and_leaves_is_not() -> None:
    w = World(clients=3)
    w.submit("a")
    want(w, "a", "c-1")
    want(w, "a", "c-2")
    w.broker.intake.heirs.left(w.task("a"))
    assert not w.broker.intake.heirs.due  # somebody knows
    w.release("a", 1)
    w.leave("c-1")
    assert told(w, "c-2") == [("a", FN)]
    w.broker.check()


def test_nobody_is_told_of_what_nobody_needs_of_data_or_of_what_it_has_submitted() -> None:
    w = World(clients=2)
    gen = w.submit("a", "b")
    want(w, "a")
    w.submit("b", client="c-1")
    w.send("c-1", Release((("a", 100),)))
    w.release("a", gen)
    w.release("b", gen)
    assert told(w) == [] and not w.broker.tables.blind
    w.broker.check()


def test_who_submits_it_again_and_lets_go_again_leaves_it_to_the_next() -> None:
    w = World(clients=3)
    gen = w.submit("a")
    for client in ("c-1", "c-2"):
        want(w, "a", client)
        w.submit(f"of {client}", deps=("a",), client=client)
        w.send(client, Release((("a", 100),)))
    w.release("a", gen)
    assert told(w, "c-1") == [("a", FN)] and told(w, "c-2") == []
    gen = w.submit("a")
    w.release("a", gen)
    assert told(w, "c-2") == [("a", FN)]
    w.broker.check()


def test_data_that_it_is_made_of_is_named() -> None:
    w = World(clients=2)
    w.send("c-0", Hold(7, (("data", 0, 5, "int"),)))
    gen = w.submit("a", deps=("data",))
    want(w, "a")
    w.release("a", gen)
    assert told(w) == [("data", b""), ("a", FN)]
