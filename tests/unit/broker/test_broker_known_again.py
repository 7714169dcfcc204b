"""Specs that another broker has been told of again: what becomes of them when their results are lost after all."""

from __future__ import annotations

import pytest
from broker_world import SLOW, World

from zdist.limits import MAX_KEY, RECOVERY
from zdist.protocol.messages import SPEC, Claim, Drop, Erred, Failed, Held, Want


@pytest.fixture
def w() -> World:
    """A worker and a client, who knew an earlier broker."""
    w = World(workers=1)
    assert w.broker.succeeds(w.now) == RECOVERY
    return w


def test_what_is_computed_again_is_as_urgent_as_what_is_new(w: World) -> None:
    """Tasks with inputs come before those without."""
    w.submit("input")
    w.finish("input")
    w.send("c-0", Claim((("root", SPEC),)))
    w.submit("root", fn=SLOW)
    w.send("c-0", Claim((("inner", SPEC),)))
    w.submit("inner", deps=("input",), fn=SLOW)
    w.send("c-0", Want(9, ("root", "inner")))
    assert w.where("inner") == "w-0" and w.where("root") == ""


def test_a_task_that_depends_on_a_failed_one_in_two_ways_fails_once(w: World) -> None:
    """It may be older than the other of its inputs, which was submitted after its result had been claimed."""
    w.worker("w-1")
    w.send("w-1", Held((("end", 7, 5, "int"),)))
    w.send("c-0", Claim((("end", 7),)))
    w.submit("end", deps=("root", "middle"))
    w.submit("root")
    w.submit("middle", deps=("root",))
    w.die("w-1")
    w.turn()
    assert w.states() == {"root": "assigned", "middle": "waiting", "end": "waiting"}
    w.send("w-0", Erred((("root", w.task("root").attempt, 1, b"error", "it failed"),)))
    assert sorted(row[0] for row in w.rows("c-0", Failed)) == ["end", "middle", "root"]


@pytest.mark.parametrize(
    "row",
    [
        ("", 7, 5, "int"), ("k" * (MAX_KEY + 1), 7, 5, "int"), ("a", -1, 5, "int"), ("a", 7, -5, "int"),
        ("a", 7, 5, "t" * (MAX_KEY + 1)),
    ],
)  # fmt: skip
def test_copies_that_cannot_be_are_not_kept(w: World, row: tuple[str, int, int, str]) -> None:
    w.send("w-0", Held((row,)))
    assert w.broker.recovery.copies == {}
    assert w.rows("w-0", Drop) == ([row[0]] if len(row[0]) <= MAX_KEY else [])
