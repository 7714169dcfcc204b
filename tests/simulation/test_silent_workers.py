"""Workers that are silent for a while (a task holds their interpreter), and data that they have or are to have."""

from __future__ import annotations

import pytest

from zdist.core.entry import FINISHED, Entry, Work
from zdist.protocol.messages import function_digest
from zdist.testing.cluster import SimClient, SimCluster, SimWorker, value_of

BLOB = b"pickled function"
WORK = Work(function_digest(BLOB), "f", BLOB, (), False)


def cluster_of(seed: int, *, nodes: int, workers: int) -> SimCluster:
    """One whose workers are all there."""
    cluster = SimCluster(seed, nodes=nodes, workers=workers, clients=1)
    assert cluster.run(lambda: len(cluster.broker.machine.tables.workers) == nodes * workers, 5.0)
    pass_time(cluster, 1.0)
    return cluster


def pass_time(cluster: SimCluster, seconds: float) -> None:
    cluster.run(lambda: False, seconds)


def scatter(client: SimClient, number: int) -> list[Entry]:
    rows = [(key, client.snapshot(key, value_of(key, [])), "bytes") for key in (f"data-{n}" for n in range(number))]
    entries = client.ledger.hold(rows, finished=False)
    client.ledger.place(entries, (), 1)
    client.soon()
    return entries


def all_finished(entries: list[Entry]) -> bool:
    return all(entry.status == FINISHED for entry in entries)


def silence(cluster: SimCluster, worker: SimWorker, seconds: float) -> None:
    worker.paused = True

    def go_on() -> None:
        worker.paused = False
        worker.soon()

    cluster.network.after(seconds, go_on)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("silent", [True, False])
def test_the_data_of_a_node_that_drains_goes_to_those_who_take_it(seed: int, silent: bool) -> None:
    cluster = cluster_of(seed, nodes=4, workers=1)
    entries = scatter(cluster.clients[0], 24)
    assert cluster.run(lambda: all_finished(entries), 20.0)
    pass_time(cluster, 1.0)
    assert not cluster.clients[0].ledger.store.entries
    going, other = cluster.nodes[0], cluster.workers()[-1]
    assert other.node is not going
    if silent:
        silence(cluster, other, 25.0)
    going.machine.drain("drained", 20.0, cluster.network.now)
    going.soon()
    assert cluster.run(lambda: not going.alive, 40.0)
    pass_time(cluster, 30.0)
    assert all_finished(entries) and not cluster.undismissed


@pytest.mark.parametrize("silent", [True, False])
def test_scattered_data_goes_to_those_who_take_it(silent: bool) -> None:
    cluster = cluster_of(1, nodes=4, workers=1)
    cluster.workers()[-1].paused = silent  # for good, but its node lives, so it is never given up
    entries = scatter(cluster.clients[0], 8)
    assert cluster.run(lambda: all_finished(entries), 600.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("greeted", [True, False])
def test_a_successor_waits_for_what_a_silent_worker_holds_also_if_its_hello_has_come(seed: int, greeted: bool) -> None:
    cluster = cluster_of(seed, nodes=1, workers=2)
    (client,) = cluster.clients
    data = scatter(client, 4)
    tasks = client.ledger.submit(WORK, [(f"task-{n}", b"lazy", ()) for n in range(8)])
    client.soon()
    assert cluster.run(lambda: all_finished([*data, *tasks]), 20.0)
    pass_time(cluster, 1.0)
    assert not client.ledger.store.entries
    silent = next(w for w in cluster.workers() if any(entry.key in w.machine.store.entries for entry in data))
    silent.paused = not greeted
    cluster.replace_broker(8.0)
    pass_time(cluster, 7.9)  # so its hello, if it has said one, lies in its socket
    assert silent.endpoint.up is not greeted
    silence(cluster, silent, 14.0)
    pass_time(cluster, 60.0)
    assert all_finished(data)
    assert all(cluster.starts[task.key] == 1 for task in tasks)
