"""Clients have workers replaced: what these hold goes on to others, and no order waits for ever."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from broker_world import World, elapse, is_dismissed, scattered

from zdist.protocol.messages import (
    Adjusted,
    Answer,
    Ask,
    Cancelled,
    Dismiss,
    Erred,
    Held,
    Hold,
    Leaving,
    Options,
    Place,
    Replicate,
    Run,
    Subscribe,
    WorkerDied,
)
from zdist_broker.state import Trouble


def ordered(session: str) -> WorkerDied:
    return WorkerDied(session, -15, "", (), True)


def put(w: World, session: str, key: str, gen: int) -> None:
    """Data of which this worker has the only copy."""
    w.send("c-0", Hold(gen, ((key, 0, 5, "bytes"),)))
    w.send("c-0", Place((key,), (session.upper(),), 1))
    assert w.rows(session, Replicate)
    w.send(session, Held(((key, 0, 5, "bytes"),)))


def restart(*names: str, req: int = 5, seconds: float | None = None) -> Ask:
    return Ask(req, "restart_workers", (names, seconds))


def went(w: World, node: str = "n-0") -> list[tuple[str, ...]]:
    """Whom this node was told to end."""
    return [message.workers for message in w.got(node, Dismiss)]


def test_two_are_restarted_one_after_the_other() -> None:
    """One has data, and the other's replacement is about to come."""
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("c-0", restart("W-1"))
    elapse(w, 0.1)
    assert is_dismissed(w, "w-1")
    w.send("n-0", ordered("w-1"))
    w.send("c-0", restart("W-0", req=6))
    elapse(w, 0.5)
    assert not is_dismissed(w)


def test_when_all_are_restarted_by_one_order_the_last_goes_when_others_have_come() -> None:
    """Else nobody would have the data."""
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("c-0", restart("W-0", "W-1", seconds=30.0))
    elapse(w, 0.5)
    assert is_dismissed(w, "w-1") and not is_dismissed(w)
    w.send("n-0", ordered("w-1"))
    elapse(w, 0.5)
    assert not is_dismissed(w)
    w.worker("w-2")
    elapse(w, 0.1)
    assert w.rows("w-2", Replicate) and not is_dismissed(w)
    w.send("w-2", Held((("data", 0, 5, "bytes"),)))
    elapse(w, 0.1)
    assert is_dismissed(w)
    w.send("n-0", ordered("w-0"))
    w.worker("w-3")
    elapse(w, 0.1)
    (answer,) = w.got("c-0", Answer)
    assert answer.ok and not w.rows("c-0", Cancelled)


def test_when_all_are_restarted_once_more_the_replacement_that_has_come_goes_last() -> None:
    """It is the only one that stays (seed 3811588)."""
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("c-0", restart("W-0", "W-1", seconds=30.0))
    elapse(w, 0.1)
    w.send("n-0", ordered("w-1"))
    w.worker("w-2")
    elapse(w, 0.1)
    w.send("w-2", Held((("data", 0, 5, "bytes"),)))
    w.send("c-0", restart("W-0", "W-2", req=6, seconds=30.0))
    elapse(w, 0.1)
    assert not is_dismissed(w, "w-2")
    w.send("n-0", ordered("w-0"))
    w.worker("w-3")
    elapse(w, 0.1)
    assert w.rows("w-3", Replicate)


@pytest.mark.parametrize("end", ["late", "gone", "died"])
def test_a_restart_of_all_that_is_over_leaves_the_last_where_it_is(end: str) -> None:
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("c-0", restart("W-0", "W-1", seconds=3.0))
    elapse(w, 0.5)
    w.send("n-0", ordered("w-1"))
    if end == "gone":
        w.leave("c-0")
    elif end == "died":
        w.send("n-0", WorkerDied("w-0", -9, "", (), False))
    elapse(w, 5.0)
    assert w.broker.departures.look_at is None
    w.worker("w-2")
    elapse(w, 1.0)
    assert not is_dismissed(w)


@pytest.mark.parametrize("others", ["none", "draining", "retired"])
def test_the_only_worker_that_stays_is_not_restarted_with_data_that_nobody_else_has(others: str) -> None:
    """Seeds 4001884, 4009212."""
    w = World(workers=1)
    scattered(w, "w-0")
    chosen = ("W-0",)
    if others == "draining":
        w.join("n-1", "node", workers=1)
        w.worker("w-1", node="n-1")
        w.submit("a", options=tuple(Options(workers=("W-1",))))
        w.send("n-1", Leaving(("w-1",), True, "drained", 0))
    elif others == "retired":
        w.worker("w-1")
        w.submit("a", options=tuple(Options(workers=("W-1",))))
        w.send("c-0", Ask(4, "retire", ("W-1",)))
        w.send("n-0", Adjusted(0, 1))
        chosen = ("W-1", "W-0")
    w.send("c-0", Ask(5, "restart_workers", (chosen, 30.0)))
    elapse(w, 0.5)
    (answer,) = w.got("c-0", Answer)
    assert answer.req == 5 and not answer.ok and "data" in answer.value and not is_dismissed(w)
    w.submit("b")
    assert w.rows("w-0", Run)


@pytest.mark.parametrize("input", ["none", "kept", "released"])
def test_the_only_worker_is_restarted_with_what_can_be_computed_again(input: str) -> None:
    w = World(workers=1)
    if input != "none":
        scattered(w, "w-0")
    w.submit("a", deps=("data",) if input != "none" else ())
    w.finish("a")
    if input == "released":
        w.release("data", 1)
    w.send("c-0", restart("W-0", seconds=30.0))
    elapse(w, 0.5)
    assert is_dismissed(w) == (input == "none")


def test_one_that_is_restarted_stays_if_all_others_leave() -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("n-1", "node", workers=1)
    w.worker("w-1", node="n-1")
    w.send("c-0", restart("W-0", seconds=30.0))
    elapse(w, 0.1)
    assert w.rows("w-1", Replicate)
    w.send("n-1", Leaving(("w-1",), True, "drained", 0))
    elapse(w, 0.5)
    w.send("n-1", ordered("w-1"))
    elapse(w, 0.5)
    assert not is_dismissed(w)
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and "data" in answer.value
    w.submit("b")
    assert w.rows("w-0", Run)


@pytest.mark.parametrize("end", ["late", "gone"])
@pytest.mark.parametrize("first", [True, False])
def test_that_one_order_for_the_last_is_over_does_not_end_the_other(end: str, first: bool) -> None:
    w = World(workers=2, clients=2)
    scattered(w, "w-0")
    w.send("c-0", restart("W-0", "W-1", seconds=1.0 if first else None))
    elapse(w, 0.1)
    assert is_dismissed(w, "w-1")
    w.send("n-0", ordered("w-1"))
    elapse(w, 0.1)
    w.send("c-1", restart("W-0", req=6, seconds=None if first else 1.0))
    if end == "gone":
        w.leave("c-0" if first else "c-1")
    elapse(w, 2.0)
    w.worker("w-2")
    elapse(w, 0.2)
    assert w.rows("w-2", Replicate) or is_dismissed(w)  # without its client the data is gone


@pytest.mark.parametrize("how", ["node dies", "retired", "scaled down"])
@pytest.mark.parametrize("data", [False, True])
def test_the_last_does_not_wait_for_who_never_comes(how: str, data: bool) -> None:
    """The other was to be replaced, and is not."""
    w = World(workers=1 if how == "node dies" else 2)
    if how == "node dies":
        w.join("n-1", "node", workers=1)
        w.worker("w-1", node="n-1")
    if data:
        put(w, "w-0", "data", 1)
    w.send("c-0", restart("W-1", seconds=30.0))
    if how == "retired":
        w.send("c-0", Ask(7, "retire", ("W-1",)))
    elapse(w, 0.1)
    w.send("c-0", restart("W-0", req=6))
    elapse(w, 0.1)
    assert not is_dismissed(w)
    if how == "node dies":
        w.leave("n-1")
    else:
        w.send("n-0", Adjusted(0, 1))
        w.send("n-0", ordered("w-1"))
    if "w-1" in w.broker.tables.workers:
        w.leave("w-1")
    elapse(w, 0.5)
    refused = [answer.req for answer in w.got("c-0", Answer) if not answer.ok]
    assert (refused, is_dismissed(w)) == (([6], False) if data else ([], True))


def test_who_is_restarted_stays_if_the_one_that_is_to_have_its_data_is_retired() -> None:
    w = World(workers=2)
    put(w, "w-1", "data", 1)
    w.send("c-0", restart("W-1"))
    elapse(w, 0.05)
    assert w.rows("w-0", Replicate) and not is_dismissed(w, "w-1")
    w.send("c-0", Ask(6, "retire", ("W-0",)))
    elapse(w, 0.5)
    assert dict.fromkeys(went(w)) == {("w-0",): None}
    w.send("n-0", Adjusted(0, 1))
    elapse(w, 0.1)
    assert [answer.req for answer in w.got("c-0", Answer) if not answer.ok] == [5]


def test_who_is_restarted_stays_if_the_last_is_retired() -> None:
    w = World(workers=2)
    for gen, (session, key) in enumerate((("w-0", "d0"), ("w-0", "d00"), ("w-1", "d1")), 1):
        put(w, session, key, gen)
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.05)
    assert w.rows("w-0", Replicate) and not is_dismissed(w, "w-1")
    w.send("c-0", Ask(6, "retire", ("W-0",)))
    elapse(w, 0.5)
    assert not went(w) and len(w.rows("w-1", Replicate)) == 2


def test_the_last_stays_if_the_replacement_that_has_come_is_retired() -> None:
    w = World(workers=2)
    put(w, "w-0", "d0", 1)
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.1)
    w.send("n-0", ordered("w-1"))
    w.worker("w-2")
    elapse(w, 0.05)
    assert w.rows("w-2", Replicate)
    went(w)
    w.send("c-0", Ask(6, "retire", ("W-2",)))
    elapse(w, 0.5)
    assert ("w-0",) not in went(w)


def test_who_is_restarted_stays_if_its_node_keeps_fewer_than_the_last() -> None:
    w = World(workers=2)
    for gen, (session, key) in enumerate((("w-1", "d1"), ("w-1", "d11"), ("w-0", "d0")), 1):
        put(w, session, key, gen)
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.05)
    assert w.rows("w-1", Replicate)
    w.send("n-0", Leaving(("w-1",), True, "the node keeps fewer workers", 1))
    elapse(w, 0.5)
    assert not went(w) and len(w.rows("w-0", Replicate)) == 2


def test_who_is_restarted_stays_if_the_node_of_the_last_drains() -> None:
    w = World(workers=1)
    w.join("n-1", "node", workers=1)
    w.worker("w-1", node="n-1")
    put(w, "w-0", "d0", 1)
    put(w, "w-1", "d1", 3)
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.05)
    w.send("n-0", Leaving(("w-0",), True, "drained", 0))
    elapse(w, 0.5)
    assert not went(w, "n-1") and w.rows("w-1", Replicate)


def test_who_stays_after_all_takes_what_others_were_to_take() -> None:
    """Two are restarted while a third stays, whose node is lost (seed 4114749)."""
    w = World(workers=2)
    w.join("n-1", "node", workers=1)
    w.worker("w-2", node="n-1")
    put(w, "w-0", "d0", 1)
    put(w, "w-1", "d1", 2)
    w.send("c-0", Hold(3, (("d2", 0, 5, "bytes"),)))
    w.send("c-0", restart("W-0", "W-1", seconds=20.0))
    elapse(w, 0.1)
    w.send("c-0", Place(("d2",), (), 0))
    assert len(w.rows("w-2", Replicate)) == 3
    w.leave("w-2")
    w.leave("n-1")
    elapse(w, 0.2)
    (stays,) = [worker for worker in w.broker.tables.workers.values() if not worker.leaving]
    assert {row[0] for row in w.rows(stays.session, Replicate)} == {"d0", "d1", "d2"} - set(stays.held)


@pytest.mark.parametrize("how", ["its node dies", "it dies and its node keeps none"])
def test_an_order_is_refused_if_who_was_to_take_the_data_is_lost(how: str) -> None:
    w = World(workers=1)
    put(w, "w-0", "d", 1)
    w.join("n-1", "node", workers=1)
    w.worker("w-1", node="n-1")
    w.send("c-0", restart("W-0"))
    elapse(w, 0.05)
    assert w.rows("w-1", Replicate)
    if how == "its node dies":
        w.leave("n-1")
    else:
        w.send("n-1", Adjusted(0, 0))
        w.die("w-1")
    elapse(w, 0.2)
    assert not is_dismissed(w) and [answer.ok for answer in w.got("c-0", Answer)] == [False]
    assert w.broker.departures.look_at is None


def test_an_order_is_done_though_fewer_workers_are_kept_by_then() -> None:
    w = World(workers=2)
    w.send("c-0", restart("W-0"))
    elapse(w, 0.1)
    w.send("n-0", Adjusted(0, 1))
    w.send("n-0", ordered("w-0"))
    elapse(w, 0.1)
    (answer,) = w.got("c-0", Answer)
    assert answer.ok


def test_an_order_is_done_though_the_last_is_retired_while_it_waits() -> None:
    w = World(workers=2)
    put(w, "w-0", "d", 1)
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.1)
    w.send("n-0", ordered("w-1"))
    elapse(w, 0.1)
    w.send("c-0", Ask(6, "retire", ("W-0",)))
    elapse(w, 0.1)
    w.worker("w-2")
    elapse(w, 0.1)
    w.send("w-2", Held((("d", 0, 5, "bytes"),)))
    elapse(w, 0.1)
    w.send("n-0", Adjusted(0, 1))
    w.send("n-0", ordered("w-0"))
    elapse(w, 0.1)
    assert {answer.req for answer in w.got("c-0", Answer) if answer.ok} == {5, 6}


def test_one_that_leaves_is_not_restarted_before_who_comes_has_its_data() -> None:
    w = World(workers=2)
    put(w, "w-0", "d", 1)
    w.send("n-0", Leaving(("w-0",), True, "the node keeps fewer workers", 1))
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.2)
    assert dict.fromkeys(went(w)) == {("w-1",): None}
    w.send("n-0", ordered("w-1"))
    w.worker("w-2")
    elapse(w, 0.2)
    assert w.rows("w-2", Replicate) and not is_dismissed(w)


def test_a_worker_without_memory_that_stays_after_all_gets_no_task() -> None:
    w = World(workers=1)
    put(w, "w-0", "d", 1)
    w.join("n-1", "node", workers=1)
    w.worker("w-1", node="n-1")
    w.send("w-0", Subscribe(1, (), {}, True))
    w.send("c-0", restart("W-0"))
    elapse(w, 0.05)
    w.send("n-1", Leaving(("w-1",), True, "drained", 0))
    elapse(w, 0.2)
    w.submit("b", options=tuple(Options(workers=("W-0",))))
    assert not w.broker.tables.workers["w-0"].leaving and not w.rows("w-0", Run)
    w.send("w-0", Subscribe(1, (), {}, False))
    assert w.rows("w-0", Run)


def failed_since(w: World) -> str:
    """A result whose input was lost since, and fails."""
    w.join("n-1", "node", workers=1)
    w.worker("w-1", node="n-1")
    w.submit("a")
    at = w.finish("a", value=None)
    holder, node = {"w-0": ("w-1", "n-0"), "w-1": ("w-0", "n-1")}[at]
    w.submit("b", deps=("a",), options=tuple(Options(workers=(holder.upper(),))))
    w.finish("b", value=None)
    w.leave(node)
    assert w.where("a") == holder
    w.send(holder, Erred((("a", w.task("a").attempt, 1, b"e", "boom"),)))
    return holder


def of_an_actor(w: World) -> str:
    """The result of a call of an actor that was let go of."""
    gen = w.submit("act", options=tuple(Options(actor=True)))
    w.finish("act", value=None)
    w.submit("b", deps=("act",))
    w.finish("b", value=None)
    w.release("act", gen)
    return "w-0"


def stuck(w: World) -> str:
    """A result that cannot be pickled, of data that is gone."""
    put(w, "w-0", "d", 1)
    w.submit("b", deps=("d",))
    w.finish("b", value=None)
    w.release("d", 1)
    w.turn()
    task = w.task("b")
    task.trouble = Trouble()
    task.trouble.stuck = (task.attempt, "cannot be pickled")
    return "w-0"


@pytest.mark.parametrize("made", [failed_since, of_an_actor, stuck])
def test_the_only_worker_is_not_restarted_with_what_could_not_be_computed_again(made: Callable[[World], str]) -> None:
    w = World(workers=1)
    holder = made(w)
    w.send("c-0", restart(holder.upper()))
    elapse(w, 0.2)
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and "b could not" in answer.value


def test_who_is_restarted_and_drained_is_not_kept() -> None:
    """Its node ends it anyway."""
    w = World(workers=1)
    w.join("n-1", "node", workers=1)
    w.worker("w-1", node="n-1")
    put(w, "w-0", "d0", 1)
    w.send("c-0", restart("W-0"))
    elapse(w, 0.05)
    w.send("n-0", Leaving(("w-0",), True, "drained", 0))
    w.send("n-1", Leaving(("w-1",), True, "drained", 0))
    elapse(w, 0.5)
    assert is_dismissed(w)


def test_the_last_that_was_given_up_and_comes_back_is_restarted() -> None:
    w = World(workers=1)
    w.join("n-1", "node", workers=1)
    w.worker("w-1", node="n-1")
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.1)
    w.send("n-1", ordered("w-1"))
    w.leave("w-0")
    w.leave("n-0")
    elapse(w, 1.0)
    w.join("n-0", "node", workers=1)
    w.worker("w-0")
    w.worker("w-2", node="n-1")
    elapse(w, 5.0)
    assert is_dismissed(w)


def test_two_orders_for_all_are_carried_out() -> None:
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.1)
    w.send("n-0", ordered("w-1"))
    w.worker("w-2")
    for gen in range(3):
        put(w, "w-2", f"x{gen}", 10 + gen)
    w.send("c-0", restart("W-0", "W-2", req=6))
    alive, answers = {"w-0": None, "w-2": None}, []
    for number in range(3, 63):
        elapse(w, 0.05)
        for session in alive:
            if session in w.broker.tables.workers and (rows := w.rows(session, Replicate)):
                w.send(session, Held(tuple((row[0], row[1], row[2], "bytes") for row in rows)))
        if gone := [session for (session,) in went(w) if session in alive]:
            del alive[gone[0]]
            w.send("n-0", ordered(gone[0]))
            w.worker(f"w-{number}")
            alive[f"w-{number}"] = None
        answers += w.got("c-0", Answer)
    assert {answer.req for answer in answers if answer.ok} == {5, 6} and not w.rows("c-0", Cancelled)
    assert not w.broker.departures.leaves and w.broker.departures.look_at is None


def test_an_order_with_an_unknown_name_begins_nothing() -> None:
    w = World(workers=2)
    w.send("c-0", restart("W-0", "W-1", "nobody"))
    elapse(w, 0.2)
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and not w.broker.departures.leaves and not went(w)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_last_waits_for_the_next_if_the_replacement_dies(when: str) -> None:
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("c-0", restart("W-0", "W-1"))
    elapse(w, 0.1)
    w.send("n-0", ordered("w-1"))
    w.worker("w-2")
    if when == "after":
        elapse(w, 0.1)
        assert w.rows("w-2", Replicate)
    went(w)
    w.send("n-0", WorkerDied("w-2", -9, "", (), False))
    elapse(w, 0.5)
    assert not is_dismissed(w)
    w.worker("w-3")
    elapse(w, 0.1)
    assert w.rows("w-3", Replicate)
    w.send("w-3", Held((("data", 0, 5, "bytes"),)))
    elapse(w, 0.1)
    assert is_dismissed(w)
