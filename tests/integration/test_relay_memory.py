"""The broker's memory is bounded whatever is relayed, and to whomever: half a gigabyte here, more in
``tests/benchmarks/relay_memory.py``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from cluster_checks import WITHIN, eventually
from relay_readers import BrokerMemory, RawReader, Reader, block, broker_pid, relay_all

from zdist import Client, Future, LocalCluster, wait
from zdist.limits import MIB

COUNT, NBYTES = 8, 64 * MIB
BOUND = 128 * MIB


@pytest.fixture
def blocks(client: Client) -> Iterator[list[Future]]:
    """Half a gigabyte of results that lie on the workers."""
    futures = client.map(block, range(COUNT), [NBYTES] * COUNT, pure=False)
    wait(futures, timeout=WITHIN)
    yield futures
    del futures


def test_a_reader_that_saturates_the_relay(client: Client, blocks: list[Future]) -> None:
    memory = BrokerMemory(broker_pid())
    relay_all(client, blocks, NBYTES)
    assert memory.growth <= BOUND
    carried = [batch for batch in client.gather_report() if batch.path == "relay"]
    assert sum(batch.bytes for batch in carried) >= COUNT * NBYTES


def test_ten_readers_at_once(cluster: LocalCluster, client: Client, blocks: list[Future]) -> None:
    failures: list[BaseException] = []

    def read() -> None:
        try:
            with Client(cluster, set_as_default=False) as reader:
                relay_all(reader, [Future(future.key, reader) for future in blocks[:2]], NBYTES)
        except BaseException as exc:
            failures.append(exc)

    memory = BrokerMemory(broker_pid())
    threads = [threading.Thread(target=read) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert memory.growth <= BOUND


def test_a_reader_that_is_stopped_in_the_middle(cluster: LocalCluster, client: Client, blocks: list[Future]) -> None:
    memory = BrokerMemory(broker_pid())
    with Reader(cluster, [future.key for future in blocks]) as reader:
        reader.stop_after_the_first()
        relay_all(client, blocks, NBYTES)  # others do not notice
        assert memory.growth <= BOUND
        assert reader.go_on() == [str(NBYTES // 8)] * (COUNT - 1)
        assert memory.growth <= BOUND


def test_ten_readers_that_take_nothing(cluster: LocalCluster, client: Client, blocks: list[Future]) -> None:
    memory = BrokerMemory(broker_pid())
    with ExitStack() as stack:
        readers = [stack.enter_context(RawReader(cluster)) for _ in range(10)]
        for reader in readers:
            reader.ask(blocks, NBYTES)
        relay_all(client, blocks, NBYTES)
        assert memory.growth <= BOUND
        assert client.submit(block, 1, 8, pure=False).result(WITHIN).tolist() == [1]
    eventually(lambda: memory.growth <= BOUND)
    relay_all(client, blocks, NBYTES)
    assert memory.growth <= BOUND
