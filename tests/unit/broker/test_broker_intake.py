"""Functions and tasks as clients bring them: what is taken, what is kept, and what is passed by."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.limits import MAX_KEY
from zdist.protocol.messages import (
    SPEC,
    Cancel,
    Cancelled,
    Claim,
    Define,
    Held,
    Options,
    Rejected,
    Release,
    Submit,
    WhichFunction,
    function_digest,
)


def define(w: World, *blobs: bytes, client: str = "c-0") -> list[bytes]:
    digests = [function_digest(blob) for blob in blobs]
    for digest, blob in zip(digests, blobs, strict=True):
        w.send(client, Define(digest, "f", blob))
    return digests


# --- functions ------------------------------------------------------------------------------------------


def test_functions_without_tasks_are_kept_until_they_are_too_many_and_then_half_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zdist_broker.functions.FUNCTION_CACHE_BYTES", 100_000)
    w = World()
    digests = define(w, *[bytes([n]) * 10_000 for n in range(9)])
    assert all(digest in w.broker.tables.functions for digest in digests)
    digests += define(w, bytes([9]) * 10_000)
    assert list(w.broker.tables.functions) == digests[-5:]


def test_a_function_that_is_defined_once_more_takes_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.functions.CLIENT_FUNCTION_BYTES", 7_000)
    w = World()
    first, second = b"1" * 3000, b"2" * 3000
    for digest in define(w, first, second, first):
        w.submit(digest.hex(), fn=digest)
    assert not w.got("c-0", WhichFunction) and not w.rows("c-0", Rejected)


def test_who_defines_a_function_with_other_bytes_has_not_defined_it() -> None:
    w = World(clients=2)
    (digest,) = define(w, b"code")
    w.send("c-1", Define(digest, "f", b"other code"))
    w.leave("c-0")
    w.send("c-1", Submit(digest, False, 1, (), (("x", b"", ()),)))
    ((key, reason),) = w.rows("c-1", Rejected)
    assert key == "x" and "not those that its digest names" in reason


# --- cancelled ------------------------------------------------------------------------------------------


def test_a_cancel_passes_each_task_once() -> None:
    """However many ways lead to it: here about 2**40."""
    w = World(workers=0)
    w.submit("a0", "b0")
    for n in range(1, 40):
        w.submit(f"a{n}", f"b{n}", deps=(f"a{n - 1}", f"b{n - 1}"))
    w.send("c-0", Cancel(("a0",), False, ""))
    assert len(w.rows("c-0", Cancelled)) == 79 and list(w.states()) == ["b0"]


# --- submitted again, after an earlier broker -------------------------------------------------------------


@pytest.fixture
def again() -> World:
    """A broker that has taken another's place, and a worker that holds something which nobody has claimed yet."""
    w = World(workers=1, clients=2)
    w.broker.succeeds(w.now)
    w.send("w-0", Held((("unclaimed", 7, 5, "int"), ("a", 7, 5, "int"))))
    return w


@pytest.mark.parametrize("key", ["", "k" * (MAX_KEY + 1)])
def test_a_text_that_is_no_key_is_rejected_and_the_others_are_taken(again: World, key: str) -> None:
    again.submit(key, "b")
    assert [row[0] for row in again.rows("c-0", Rejected)] == [key[:MAX_KEY]]
    assert list(again.broker.tables.tasks) == ["b"]


@pytest.mark.parametrize("forget", [False, True])
def test_an_input_is_computed_for_nobody_only_if_it_is_to_be_done_in_any_case(again: World, forget: bool) -> None:
    again.send("c-0", Claim((("a", 7),)))
    again.submit("a", deps=("input",))
    gen = again.submit("input", client="c-1", options=tuple(Options()._replace(forget=forget)))
    again.send("c-1", Release((("input", gen),)))
    again.turn()
    assert list(again.runs("w-0")) == (["input"] if forget else [])


def test_a_result_that_nobody_holds_is_computed_though_another_client_only_knows_how_it_was_made(again: World) -> None:
    again.send("c-0", Claim((("b", SPEC),)))
    again.submit("b")
    assert not again.runs("w-0")
    again.send("c-1", Claim((("b", 5),)))
    again.submit("b", client="c-1")
    assert list(again.runs("w-0")) == ["b"]
