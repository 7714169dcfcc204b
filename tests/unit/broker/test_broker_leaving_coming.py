"""Workers leave with the only copy of data while others are about to come: these get it."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist import limits
from zdist.core.machine import CONTROL
from zdist.core.node import NodeMachine, StartWorker
from zdist.protocol.messages import (
    Cancelled,
    Dismiss,
    Held,
    Hold,
    Leaving,
    Place,
    Replicate,
    Subscribe,
    Welcome,
    WorkerDied,
)


def tick(w: World, seconds: float) -> None:
    end = w.now + seconds
    while w.now < end:
        w.now = min(end, w.now + 0.05)
        w.broker.tick(w.now)
        w.turn()
        w.broker.check()


def scattered(w: World, session: str) -> None:
    """A worker has the only copy of data, as its client has let go of it."""
    w.send("c-0", Hold(1, (("data", 5, "bytes"),)))
    w.send("c-0", Place(("data",), (), 1))
    assert w.rows(session, Replicate)
    w.send(session, Held((("data", 0, 5, "bytes"),)))
    assert [holder.session for holder in w.task("data").holders] == [session]


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
    tick(w, 0.5)
    assert not w.got("n-0", Dismiss)
    w.worker(new)
    tick(w, 0.1)
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
    w.send("n-0", Leaving(("w-0",), True, "drained"))
    tick(w, 0.5)
    assert not w.got("n-0", Dismiss)
    came = "w-1"
    if other == "being set up":
        w.send(came, Subscribe(1, (), {}, False))
    else:
        came = "w-2"
        w.worker(came, node="n-1")
    tick(w, 0.1)
    assert w.rows(came, Replicate)
    w.send(came, Held((("data", 0, 5, "bytes"),)))
    tick(w, 0.1)
    assert w.got("n-0", Dismiss)
    w.send("n-0", WorkerDied("w-0", -15, "", (), True))
    assert not w.rows("c-0", Cancelled)


def test_a_worker_that_shrinks_away_waits_for_one_of_its_node_that_is_being_set_up() -> None:
    w = World(workers=1)
    scattered(w, "w-0")
    w.join("w-1", "worker", node="n-0", address="tcp://w-1")
    w.send("n-0", Leaving(("w-0",), True, "the node keeps fewer workers"))
    tick(w, 0.5)
    assert not w.got("n-0", Dismiss)
    w.send("w-1", Subscribe(1, (), {}, False))
    tick(w, 0.1)
    assert w.rows("w-1", Replicate)


def test_one_of_fewer_workers_waits_for_the_replacement_of_another() -> None:
    """Seed 2714778."""
    w = World(workers=2)
    scattered(w, "w-0")
    w.send("n-0", Leaving(("w-0",), True, "the node keeps fewer workers"))
    w.send("n-0", Leaving(("w-1",), False, "a task there was given up"))
    tick(w, 0.5)
    assert ("w-0",) not in [message.workers for message in w.got("n-0", Dismiss)]
    w.worker("w-2")
    tick(w, 0.1)
    assert w.rows("w-2", Replicate)
    w.send("w-2", Held((("data", 0, 5, "bytes"),)))
    tick(w, 0.1)
    assert ("w-0",) in [message.workers for message in w.got("n-0", Dismiss)]
    assert not w.rows("c-0", Cancelled)
