"""Workers leave with the only copy of data while others are about to come: these get it."""

from __future__ import annotations

import pytest
from broker_world import World, elapse, is_dismissed, scattered

from zdist import limits
from zdist.core.machine import CONTROL, Route
from zdist.core.node import NodeMachine, StartWorker
from zdist.protocol.messages import (
    Adjust,
    Adjusted,
    Answer,
    Ask,
    Cancelled,
    Dismiss,
    Held,
    Hold,
    Leaving,
    Options,
    Place,
    Replicate,
    Run,
    Subscribe,
    Welcome,
    WorkerDied,
)


def started(node: NodeMachine) -> str:
    """The session of the worker that the node has just started."""
    (start,) = [command for command in node.commands if isinstance(command, StartWorker)]
    node.commands.clear()
    return start.session


def test_a_worker_whose_memory_does_not_shrink_waits_for_its_replacement() -> None:
    """It is the only one, so there is nobody else to have its data."""
    w = World(workers=0)
    node = NodeMachine("n-0", "node", 1, memory_limit=1000)
    node.start(w.now)
    old = started(node)
    node.worker_started(old, 1, w.now)
    node.welcomed(Welcome(1, 0, True, {}), w.now)
    node.take()
    w.worker(old)
    scattered(w, old)
    while not node.out:
        w.now += limits.LOOK
        node.seen({old: []}, {old: 850}, w.now)
    new = started(node)
    (leaving,) = node.take()[CONTROL]
    w.send("n-0", leaving)
    elapse(w, 0.5)
    assert not w.got("n-0", Dismiss)
    w.worker(new)
    elapse(w, 0.1)
    assert w.rows(new, Replicate)


@pytest.mark.parametrize("other", ["being set up", "being replaced"])
def test_a_node_that_drains_waits_for_the_workers_of_another(other: str) -> None:
    """One node takes the place of another."""
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("n-1", "node", workers=1)
    if other == "being set up":
        w.join("w-1", "worker", node="n-1", address="tcp://w-1")
    else:
        w.worker("w-1", node="n-1")
        w.send("n-1", WorkerDied("w-1", -9, "killed", (), False))
    w.send("n-0", Leaving(("w-0",), True, "drained", 0))
    elapse(w, 0.5)
    assert not w.got("n-0", Dismiss)
    came = "w-1"
    if other == "being set up":
        w.send(came, Subscribe(1, (), {}, False))
    else:
        came = "w-2"
        w.worker(came, node="n-1")
    elapse(w, 0.1)
    assert w.rows(came, Replicate)
    w.send(came, Held((("data", 0, 5, "bytes"),)))
    elapse(w, 0.1)
    assert w.got("n-0", Dismiss)
    w.send("n-0", WorkerDied("w-0", -15, "", (), True))
    assert not w.rows("c-0", Cancelled)


def test_a_worker_that_shrinks_away_waits_for_one_of_its_node_that_is_being_set_up() -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("w-1", "worker", node="n-0", address="tcp://w-1")
    w.send("n-0", Leaving(("w-0",), True, "the node keeps fewer workers", 1))
    elapse(w, 0.5)
    assert not w.got("n-0", Dismiss)
    w.send("w-1", Subscribe(1, (), {}, False))
    elapse(w, 0.1)
    assert w.rows("w-1", Replicate)


def test_one_of_fewer_workers_waits_for_the_replacement_of_another() -> None:
    """Seed 2714778."""
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("n-0", Leaving(("w-0",), True, "the node keeps fewer workers", 1))
    w.send("n-0", Leaving(("w-1",), False, "a task there was given up", 1))
    elapse(w, 0.5)
    assert ("w-0",) not in [message.workers for message in w.got("n-0", Dismiss)]
    w.worker("w-2")
    elapse(w, 0.1)
    assert w.rows("w-2", Replicate)
    w.send("w-2", Held((("data", 0, 5, "bytes"),)))
    elapse(w, 0.1)
    assert ("w-0",) in [message.workers for message in w.got("n-0", Dismiss)]
    assert not w.rows("c-0", Cancelled)


@pytest.mark.parametrize("how", ["overdue", "dies before", "dies after", "restarted", "restarted before"])
def test_one_of_fewer_workers_waits_until_another_has_been_replaced(how: str) -> None:
    """The other has ended before its replacement has said hello."""
    w = World(workers=2)
    scattered(w, "w-0")
    died = WorkerDied("w-1", -9, "killed", (), False)
    restart = Ask(5, "restart_workers", (("W-1",), None))
    if how == "dies before":
        w.send("n-0", died)
    if how == "restarted before":
        w.send("c-0", restart)
        elapse(w, 0.1)
        w.send("n-0", died._replace(ordered=True))
    w.send("n-0", Leaving(("w-0",), True, "the node keeps fewer workers", 1))
    if how == "overdue":
        w.send("n-0", Leaving(("w-1",), False, "a task there was given up", 1))
        elapse(w, 0.1)
        w.send("n-0", died._replace(ordered=True))
    if how == "dies after":
        w.send("n-0", died)
    if how == "restarted":
        w.send("c-0", restart)
    elapse(w, 0.5)
    assert not is_dismissed(w)
    w.worker("w-2")
    elapse(w, 0.1)
    assert w.rows("w-2", Replicate)


def test_one_that_is_retired_stays_if_all_others_leave() -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("n-1", "node", workers=1)
    w.worker("w-1", node="n-1")
    w.send("c-0", Ask(5, "retire", ("W-0",)))
    w.send("n-1", Leaving(("w-1",), True, "drained", 0))
    elapse(w, 0.5)
    w.send("n-1", WorkerDied("w-1", -15, "", (), True))
    elapse(w, 0.5)
    assert not is_dismissed(w)
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and "W-0 is the only worker, and data could not" in answer.value
    w.submit("b")
    assert w.rows("w-0", Run)


def test_a_draining_node_waits_for_one_with_a_retired_and_a_dead_worker() -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("n-1", "node", workers=2)
    w.worker("w-1", node="n-1")
    w.worker("w-2", node="n-1")
    w.submit("a", options=tuple(Options(workers=("W-1",))))
    w.send("c-0", Ask(5, "retire", ("W-1",)))
    w.send("n-1", WorkerDied("w-2", -9, "killed", (), False))
    w.send("n-0", Leaving(("w-0",), True, "drained", 0))
    elapse(w, 0.5)
    assert not is_dismissed(w)


@pytest.mark.parametrize("keeps", [0, 1])
def test_it_does_not_wait_for_a_node_that_keeps_no_worker(keeps: int) -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("n-1", "node", workers=keeps)
    w.send("n-0", Leaving(("w-0",), True, "drained", 0))
    elapse(w, 0.5)
    assert is_dismissed(w) == (keeps == 0)
    if keeps:
        w.send("n-1", Adjusted(1, 0))
        elapse(w, 0.5)
        assert is_dismissed(w)


def test_who_retires_the_last_ones_one_by_one_is_refused_what_would_lose_data() -> None:
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("c-0", Ask(5, "retire", ("W-0",)))
    w.send("c-0", Ask(6, "retire", ("W-1",)))
    elapse(w, 0.3)
    assert [answer.req for answer in w.got("c-0", Answer) if not answer.ok] == [6] and not is_dismissed(w)


def test_a_silent_worker_that_is_named_does_not_keep_others_from_having_the_data() -> None:
    w = World(workers=3)
    w.send("c-0", Hold(1, (("data", 0, 5, "bytes"),)))
    w.send("c-0", Place(("data",), ("W-0",), 1))
    w.send("w-0", Held((("data", 0, 5, "bytes"),)))
    w.send("c-0", Ask(5, "replicate", (("data",), 2, ("W-0", "W-1"))))
    elapse(w, 0.1)
    assert w.rows("w-1", Replicate)
    w.send("n-0", Leaving(("w-0",), True, "drained", 2))
    for _ in range(40):
        elapse(w, 0.25)
        w.broker.heard("w-2", w.now)
        w.broker.heard("w-0", w.now)
    assert w.rows("w-2", Replicate)


@pytest.mark.parametrize("dismissed", [False, True])
def test_one_that_dies_before_it_is_retired_is_replaced(dismissed: bool) -> None:
    w = World(workers=1)
    w.join("n-1", "node", workers=1)
    w.worker("w-9", node="n-1")
    for number, worker in enumerate(("w-9",) if dismissed else ("w-9", "w-0")):
        w.send("c-0", Hold(number + 1, ((worker, 0, 5, "bytes"),)))
        w.send("c-0", Place((worker,), (worker.upper(),), 1))
        w.send(worker, Held(((worker, 0, 5, "bytes"),)))
    w.send("c-0", Ask(5, "retire", ("W-0",)))
    elapse(w, 0.1)
    assert is_dismissed(w) == dismissed
    if dismissed:
        w.send("n-0", Adjusted(0, 0))
    w.send("n-0", WorkerDied("w-0", -9, "killed", (), dismissed))
    w.send("n-1", Leaving(("w-9",), True, "drained", 0))
    elapse(w, 0.5)
    assert bool(w.got("n-1", Dismiss)) == dismissed


def test_who_holds_nothing_may_retire_while_another_is_being_replaced() -> None:
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("n-0", Leaving(("w-0",), False, "its memory does not shrink", 2))
    w.send("c-0", Ask(5, "retire", ("W-1",)))
    elapse(w, 0.2)
    assert all(answer.ok for answer in w.got("c-0", Answer)) and not is_dismissed(w)


def test_a_node_tells_how_many_it_keeps() -> None:
    node = NodeMachine("n-0", "node", 3)
    node.start(0.0)
    sessions = list(node.alive)
    for session in sessions:
        node.worker_started(session, 1, 0.0)
    node.welcomed(Welcome(1, 0, True, {}), 0.0)
    node.take()
    node.handle(Route("control"), Adjust(5, 2, False), 1.0)
    node.handle(Route("control"), Dismiss((sessions[1],), True), 1.0)
    node.handle(Route("control"), Dismiss((sessions[2],), False), 1.0)
    for session in sessions[1:]:
        node.worker_exited(session, 0, [], (), 1.1)
    told = [message for message in node.take()[CONTROL] if isinstance(message, Leaving | Adjusted)]
    assert [(type(message), message[-1]) for message in told] == [(Leaving, 2), (Adjusted, 1), (Adjusted, 1)]
    assert [message.req for message in told[1:]] == [0, 5] and node.hello_info()["workers"] == 1


def test_a_worker_that_is_set_up_is_waited_for_though_its_node_is_not_here() -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("w-1", "worker", node="n-1", address="tcp://w-1")
    w.send("n-0", Leaving(("w-0",), True, "drained", 0))
    elapse(w, 0.5)
    assert not is_dismissed(w)
