"""How fast the pure machines are, without sockets: tasks from submission to their last release."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from time import process_time
from typing import Any

import pytest

from zdist.protocol.messages import Define, Done, Drop, Finished, Release, Run, Submit, Subscribe, function_digest
from zdist_broker.machine import BrokerMachine

FN = function_digest(b"pickled")
MESSAGE_ROWS = 1000


def broker_with(workers: int) -> BrokerMachine:
    broker = BrokerMachine(epoch=1, cluster="bench")
    broker.joined("c-0", "client", {"name": "client"}, 0.0)
    broker.joined("n-0", "node", {"name": "node"}, 0.0)
    for n in range(workers):
        session = f"w-{n}"
        broker.joined(session, "worker", {"node": "n-0", "address": f"tcp://h:{n}", "name": session}, 0.0)
        broker.handle(session, Subscribe(1, (), {}, False), 0.0)
    broker.handle("c-0", Define(FN, "noop", b"pickled"), 0.0)
    return broker


def submissions(count: int) -> list[Submit]:
    rows = [(f"noop-{n:032x}", b"args-%d" % n, ()) for n in range(count)]
    return [
        Submit(FN, False, gen + 1, (), tuple(rows[start : start + MESSAGE_ROWS]))
        for gen, start in enumerate(range(0, count, MESSAGE_ROWS))
    ]


def drain(broker: BrokerMachine) -> int:
    """Answer the broker's messages as workers and client would, until it has nothing more to say."""
    dropped = 0
    value = b"v" * 20
    while True:
        broker.turn(0.0)
        out = broker.take()
        if not out:
            return dropped
        for session, messages in out.items():
            for message in messages:
                kind = type(message)
                if kind is Run:
                    rows = tuple([(row[0], row[1], 10, 20, value, "int") for row in message.rows])
                    broker.handle(session, Done(rows), 0.0)
                elif kind is Finished:
                    wants = broker.peers[session].wants
                    broker.handle(session, Release(tuple([(row[0], wants[row[0]]) for row in message.rows])), 0.0)
                elif kind is Drop:
                    dropped += len(message.keys)


@pytest.fixture
def quiet_gc() -> Iterator[None]:
    """As in the broker's process: what is alive is not scanned again and again."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def lifecycles(count: int, workers: int) -> float:
    """Whole lifecycles a second of processor time, what the test itself does for them included."""
    broker, messages = broker_with(workers), submissions(count)
    start = process_time()
    for message in messages:
        broker.handle("c-0", message, 0.0)
    assert drain(broker) == count
    seconds = process_time() - start
    assert not broker.tables.tasks
    return count / seconds


@pytest.mark.parametrize("workers", [2, 1000])
def test_lifecycle(benchmark: Any, quiet_gc: None, workers: int) -> None:
    count = 20_000

    def fresh() -> tuple[tuple[BrokerMachine, list[Submit]], dict[str, Any]]:
        return (broker_with(workers), submissions(count)), {}

    def run(broker: BrokerMachine, messages: list[Submit]) -> None:
        for message in messages:
            broker.handle("c-0", message, 0.0)
        assert drain(broker) == count

    benchmark.pedantic(run, setup=fresh, rounds=3)
    benchmark.extra_info["lifecycles_per_s"] = count / benchmark.stats.stats.min


def test_rate_hardly_depends_on_the_queue(quiet_gc: None) -> None:
    """Ten times the tasks: anything linear per task would make the rate a tenth; caches and neighbours may halve it."""
    small = max(lifecycles(10_000, 2) for _ in range(3))
    large = max(lifecycles(100_000, 2) for _ in range(2))
    assert large > 0.25 * small, f"{small:,.0f}/s with 10,000 tasks, {large:,.0f}/s with 100,000"
