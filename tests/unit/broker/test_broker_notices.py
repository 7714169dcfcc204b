"""What clients are told of tasks that no worker may take, and who is who among workers of one name."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist import limits
from zdist.core.machine import Log
from zdist.protocol.messages import NodeEnded, Options, Starved
from zdist_broker.machine import Expel

NOWHERE = tuple(Options(workers=("elsewhere",)))


def wait(w: World, seconds: float = limits.NOTICE) -> None:
    w.turn()
    w.now += seconds
    w.turn()


def logs(w: World, event: str) -> list[Log]:
    return [command for command in w.broker.commands if isinstance(command, Log) and command.event == event]


def test_without_workers_the_client_is_told_after_a_while() -> None:
    w = World(workers=0, clients=2)
    w.submit("a", "b")
    w.turn()
    assert w.broker.deadline() == limits.NOTICE
    w.now = limits.NOTICE - 0.1
    assert w.got("c-0", Starved) == []
    w.now = limits.NOTICE
    ((count, why),) = w.rows("c-0", Starved)
    assert count == 2
    assert why == "there are no workers; start some: zdist worker tcp://broker"
    assert w.got("c-1", Starved) == []
    assert len(logs(w, "no-worker")) == 1


def test_when_a_worker_comes_that_is_over() -> None:
    w = World(workers=0)
    w.submit("a")
    wait(w)
    assert len(w.got("c-0", Starved)) == 1
    w.worker("w-1")
    assert w.got("c-0", Starved) == [Starved(())]
    assert w.broker.deadline() is None
    assert w.got("c-0", Starved) == []


def test_a_worker_that_comes_in_time_is_waited_for_in_silence() -> None:
    w = World(workers=0)
    w.submit("a")
    w.turn()
    w.worker("w-1")
    wait(w)
    assert w.got("c-0", Starved) == []
    assert not logs(w, "no-worker")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            Options(workers=("elsewhere",)),
            "no worker has a name or address out of workers=['elsewhere']; there are W-0",
        ),
        (Options(tags=("gpu", "big")), "no worker has the tags big, gpu; there are W-0"),
        (Options(resources=(("gpu", 2.0),)), "no worker has the resources gpu=2; there are W-0"),
        (
            Options(resources=(("mem", 2.0**33), ("share", 0.1234567))),
            "no worker has the resources mem=8589934592, share=0.1234567; there are W-0",
        ),
        (
            Options(workers=("W-0",), tags=("gpu",)),
            "no worker has a name or address out of workers=['W-0'] and the tags gpu; there are W-0",
        ),
        (Options(workers=("x",), allow_other=True, tags=("gpu",)), "no worker has the tags gpu; there are W-0"),
    ],
)
def test_what_no_worker_has_is_named(options: Options, why: str) -> None:
    w = World(workers=1)
    w.submit("a", options=tuple(options))
    wait(w)
    assert w.rows("c-0", Starved) == [(1, why)]


def test_the_number_is_brought_up_to_date_at_growing_intervals() -> None:
    w = World(workers=1)
    w.submit("a", options=NOWHERE)
    wait(w)
    assert [row[0] for row in w.rows("c-0", Starved)] == [1]
    w.submit("b", "c", options=NOWHERE)
    wait(w)
    assert w.got("c-0", Starved) == []
    wait(w)
    assert [row[0] for row in w.rows("c-0", Starved)] == [3]
    assert len(logs(w, "no-worker")) == 1


def test_cancelled_tasks_wait_no_more() -> None:
    w = World(workers=1)
    gen = w.submit("a", options=NOWHERE)
    wait(w)
    w.got("c-0", Starved)
    w.release("a", gen)
    assert w.got("c-0", Starved) == [Starved(())]


# --- names ----------------------------------------------------------------------------------------------


def names(w: World) -> list[str]:
    return [worker.name for worker in w.broker.tables.workers.values()]


def test_workers_of_one_name_on_different_nodes_are_told_apart() -> None:
    w = World(workers=0)
    for number in range(3):
        w.join(f"n-{number}x", "node")
    first = w.broker.joined("w-a", "worker", {"name": "twin", "node": "n-0x", "address": "tcp://a"}, 0.0)
    second = w.broker.joined("w-b", "worker", {"name": "twin", "node": "n-1x", "address": "tcp://b"}, 0.0)
    third = w.broker.joined("w-c", "worker", {"name": "twin", "node": "n-2x", "address": "tcp://c"}, 0.0)
    assert names(w) == ["twin", "twin~2", "twin~3"]
    assert [info["name"] for info in (first, second, third)] == ["twin", "twin~2", "twin~3"]  # type: ignore[index]


def test_a_replacement_has_the_name_of_the_one_that_it_replaces() -> None:
    w = World(workers=0)
    w.broker.joined("w-a", "worker", {"name": "one", "node": "n-0", "address": "tcp://a"}, 0.0)
    w.broker.joined("w-b", "worker", {"name": "one", "node": "n-0", "address": "tcp://b"}, 0.0)
    assert names(w) == ["one", "one"]  # the first one's end is about to be reported


def test_a_free_name_is_given_again() -> None:
    w = World(workers=0)
    w.join("n-1", "node")
    w.broker.joined("w-a", "worker", {"name": "twin", "node": "n-0", "address": "tcp://a"}, 0.0)
    w.broker.joined("w-b", "worker", {"name": "twin", "node": "n-1", "address": "tcp://b"}, 0.0)
    w.leave("w-a")
    w.broker.joined("w-c", "worker", {"name": "twin", "node": "n-0", "address": "tcp://c"}, 0.0)
    assert names(w) == ["twin~2", "twin"]


# --- orphans --------------------------------------------------------------------------------------------


def test_a_worker_that_says_that_its_node_has_ended_ends_the_node_and_all_its_workers() -> None:
    w = World(workers=2)
    w.join("n-other", "node")
    w.worker("w-9", node="n-other")
    w.submit("a", "b", "c")
    w.turn()
    lost = [key for key in "abc" if w.where(key) != "w-9"]
    w.broker.commands.clear()
    w.send("w-0", NodeEnded())
    w.turn()
    assert list(w.broker.tables.nodes) == ["n-other"]
    assert list(w.broker.tables.workers) == ["w-9"]
    expelled = [command.session for command in w.broker.commands if isinstance(command, Expel)]
    assert sorted(expelled) == ["n-0", "w-0", "w-1"]
    assert len(lost) == 2
    assert all(w.states()[key] in ("ready", "assigned") for key in lost)
    (left,) = logs(w, "node.left")
    assert left.fields["reason"] == "its workers say that it has ended"


def test_an_orphan_whose_node_is_not_there_says_nothing_new() -> None:
    w = World(workers=1)
    w.worker("w-9", node="n-unknown")
    w.send("w-9", NodeEnded())
    assert list(w.broker.tables.nodes) == ["n-0"]


def test_a_task_that_waited_for_its_input_again_counts_once() -> None:
    w = World(workers=1)
    w.submit("a")
    w.finish("a", value=None)
    w.submit("x", deps=("a",), options=NOWHERE)
    w.turn()
    w.die("w-0")
    w.worker("w-1")
    w.finish("a", value=None)
    wait(w)
    ((count, _),) = w.rows("c-0", Starved)
    assert count == 1
