"""Actors at the broker: calls are handed on, and an actor is never computed again, copied or moved."""

from __future__ import annotations

from typing import Any

import pytest
from broker_world import FN, World

from zdist import limits
from zdist.protocol.actors import CALL, GONE, RETURNED
from zdist.protocol.messages import (
    ANY,
    SPEC,
    ActorCall,
    ActorGone,
    ActorReply,
    Answer,
    Ask,
    Buffer,
    Claim,
    Dismiss,
    Done,
    Drop,
    Finished,
    Held,
    Killed,
    Leaving,
    Options,
    Replicate,
    Retry,
    Submit,
    Want,
)

ACTOR = tuple(Options(actor=True))


def world(**options: Any) -> tuple[World, str]:
    """A world with an actor under the key "a", and where it lives."""
    w = World(**options)
    w.submit("a", options=ACTOR)
    home = w.where("a")
    born(w, home)
    return w, home


def born(w: World, home: str) -> None:
    attempt = w.task("a").attempt
    w.send(home, Done((("a", attempt, 10, 50, None, "zdist.Actor"),)))
    assert w.states()["a"] == "memory" and w.rows("c-0", Finished)[-1][4] == (home,)


def call(worker: str, size: int = 3) -> ActorCall:
    payload = b"x" * size if size < limits.OWN_FRAME else Buffer(bytes(size))
    return ActorCall("", worker, "c-somebody", "a", 1, 0, ((7, 0, CALL, "add", payload),))


def test_calls_go_to_the_worker_in_the_name_of_who_sent_them_and_replies_back() -> None:
    w, home = world()
    w.send("c-0", call(home))
    assert w.got(home, ActorCall) == [call(home)._replace(caller="c-0")]
    w.send(home, ActorReply("c-0", 7, RETURNED, b"v"))
    assert w.got("c-0", ActorReply) == [ActorReply("c-0", 7, RETURNED, b"v")]
    w.send(home, ActorReply("c-gone", 7, RETURNED, b"v"))
    w.send("c-0", call("w-nobody"))
    w.send("c-0", call(home, limits.CALL_BYTES + 1))
    said = w.got("c-0", ActorReply)
    assert [(reply.number, reply.code) for reply in said[-2:]] == [(7, GONE), (7, GONE)]
    assert b"worker is gone" in said[-2].value and b"at most" in said[-1].value
    w.send(home, ActorReply("c-0", 7, RETURNED, Buffer(bytes(limits.CALL_BYTES + 1))))
    assert w.got("c-0", ActorReply)[-1].code == GONE


def test_an_actor_is_lost_with_its_worker_and_not_made_again() -> None:
    w, home = world()
    w.submit("b", deps=("a",))
    w.die(home)
    gone = w.rows("c-0", ActorGone)
    assert [key for key, _ in gone] == ["a", "b"] and not w.rows("c-0", Killed)
    assert all("its state with it: worker" in text for _, text in gone)
    assert w.states() == {"a": "failed", "b": "failed"}
    w.send("c-0", Retry(("a",)))
    assert w.states()["a"] == "failed"


def test_one_that_nobody_held_is_not_made_again_for_what_depends_on_it() -> None:
    w, home = world()
    gen = w.gen
    w.submit("b", deps=("a",))
    w.finish("b")
    w.release("a", gen)
    assert w.states()["a"] == "released" and w.rows(home, Drop) == ["a"]
    w.send("c-0", Want(9, ("a",)))
    assert "nobody held it" in w.rows("c-0", ActorGone)[-1][1]


def test_what_was_never_made_is_tried_again() -> None:
    w = World()
    w.submit("a", options=tuple(Options(actor=True, retries=1)))
    first = w.where("a")
    w.die(first, "a")
    second = w.where("a")
    assert second != first
    born(w, second)


def test_who_has_fetched_the_seed_does_not_hold_the_actor() -> None:
    w, home = world()
    other = next(session for session in ("w-0", "w-1") if session != home)
    w.send(other, Held((("a", w.task("a").attempt, 50, ""),)))
    assert [h.session for h in w.task("a").holders] == [home] and w.rows(other, Drop) == ["a"]


def test_a_worker_with_actors_leaves_without_copies_if_its_node_says_so_and_not_for_a_client() -> None:
    w, home = world()
    w.send("c-0", Ask(5, "retire", (w.broker.tables.workers[home].name,)))
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and "1 actors live there and cannot be moved (a)" in answer.value
    w.send("n-0", Leaving((home,), True, "the node ends", 0))
    w.broker.tick(w.now)
    assert w.got("n-0", Dismiss)
    assert not any(w.got(session, Replicate) for session in ("w-0", "w-1"))


@pytest.mark.parametrize("options", [ACTOR[:-1], ()])
def test_only_what_was_submitted_as_one_is_one(options: tuple[Any, ...]) -> None:
    w = World()
    w.send("c-0", Submit(FN, False, 1, options, (("a", b"", ()),)))
    assert not w.task("a").lives


# --- after another broker ----------------------------------------------------------------------------------


def successor() -> World:
    w = World()
    w.broker.succeeds(w.now)
    return w


def again(w: World, *claims: tuple[str, int]) -> None:
    w.send("c-0", Claim(claims))
    w.submit("a", options=ACTOR)


def test_an_actor_that_is_there_is_kept_and_one_that_is_not_is_lost() -> None:
    w = successor()
    w.send("w-1", Held((("a", 7, 50, "zdist.Actor"),)))
    again(w, ("a", 7))
    assert w.rows("c-0", Finished)[0][4] == ("w-1",) and w.task("a").lives
    w.now += limits.COPIES_KEPT
    w.broker.tick(w.now)
    assert w.states() == {"a": "memory"} and not w.rows("w-1", Drop)
    w.die("w-1")
    assert [row[0] for row in w.rows("c-0", ActorGone)] == ["a"]
    w = successor()
    again(w, ("a", 7))
    assert [row[0] for row in w.rows("c-0", ActorGone)] == ["a"] and w.states() == {"a": "failed"}


def test_one_that_was_not_finished_is_made() -> None:
    w = successor()
    again(w, ("a", ANY))
    assert w.where("a")


def test_lineage_does_not_lead_to_another_actor() -> None:
    w = successor()
    w.send("w-0", Held((("b", 8, 5, "int"),)))
    again(w, ("a", SPEC))
    w.send("c-0", Claim((("b", 8),)))
    w.submit("b", deps=("a",))
    assert w.states() == {"a": "released", "b": "memory"}
    w.die("w-0")
    assert [row[0] for row in w.rows("c-0", ActorGone)] == ["a", "b"] and not w.where("b")


def test_calls_wait_for_workers_that_may_be_about_to_come_back() -> None:
    w = successor()
    w.send("c-0", call("w-late"))
    assert not w.got("c-0", ActorReply)
    w.now += limits.COPIES_KEPT
    w.send("c-0", call("w-late"))
    assert w.got("c-0", ActorReply)[0].code == GONE
