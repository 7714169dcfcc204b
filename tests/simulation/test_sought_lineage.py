"""Keys that a successor is told of as what others were made of, before it knows whether they can be made again."""

from __future__ import annotations

import pytest
from test_recovery_stories import DOWN, cluster_of, comes_to, let_go, pass_time, submit, tables, want
from test_short_lived_brokers import far, scatter

from zdist.core.entry import CANCELLED, FINISHED, PENDING, Entry
from zdist.testing.cluster import SimClient, SimCluster

MID = "c-client-0-mid"


def seekers() -> tuple[SimCluster, SimClient, Entry, Entry]:
    """Two seek what a third has let go of, and submits, late, as what its own was made of; its data is gone."""
    cluster = cluster_of(clients=3)
    one, two, three = cluster.clients
    scatter(cluster, one, "data")
    mid = submit(one, MID, b"hang", "data")
    submit(one, "c-client-0-end", b"inline", MID)
    pass_time(cluster, 0.5)
    his, hers = want(two, MID), want(three, MID)
    pass_time(cluster, 0.5)
    cluster.nodes[1].crash()
    cluster.replace_broker(DOWN)
    let_go(one, mid)
    cluster.network.partition({one.name})
    pass_time(cluster, 2.5)
    cluster.network.heal()
    return cluster, three, his, hers


def test_all_who_seek_it_are_told_that_it_is_gone() -> None:
    cluster, _, his, hers = seekers()
    pass_time(cluster, 20.0)
    assert his.status == hers.status == CANCELLED and not tables(cluster).tasks


def test_who_lets_go_of_it_goes_on() -> None:
    cluster, three, _, hers = seekers()
    pass_time(cluster, 5.0)
    let_go(three, hers)
    pass_time(cluster, 20.0)
    assert three.ledger.over is None and not tables(cluster).tasks


@pytest.mark.parametrize("away", [2.5, 4.0])
def test_it_is_there_when_the_worker_that_has_it_comes_late(away: float) -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    data = scatter(cluster, one, "data")
    mid, his = submit(one, MID, b"lazy", "data"), want(two, MID)
    assert comes_to(cluster, FINISHED, mid, his)
    assert comes_to(cluster, FINISHED, submit(one, "c-client-0-end", b"inline", MID))
    pass_time(cluster, 0.5)
    assert [holder.session for holder in tables(cluster).tasks[MID].holders] == [far(cluster).name]
    cluster.replace_broker(DOWN)
    let_go(one, mid)
    cluster.network.partition({cluster.nodes[1].name, far(cluster).name})
    pass_time(cluster, DOWN + away)
    cluster.network.heal()
    pass_time(cluster, 20.0)
    assert data.status == his.status == FINISHED


def test_what_still_runs_outlives_the_client_that_has_submitted_it_and_the_broker() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine, his = submit(one, "c-client-0-k", b"hang"), want(two, "c-client-0-k")
    cluster.run(lambda: any(worker.running for worker in cluster.workers()), 1.0)
    (worker,) = [worker for worker in cluster.workers() if worker.running]
    one.crash()
    cluster.replace_broker(DOWN)
    pass_time(cluster, 15.0)
    assert his.status == mine.status == PENDING
    (task,) = worker.running
    worker._finish(task, 15.0)
    assert comes_to(cluster, FINISHED, his)


def test_what_is_made_of_it_and_of_what_another_has_running_is_told_at_last() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    data = scatter(cluster, two, "data")
    running, his = submit(one, "c-client-0-k", b"hang"), want(two, "c-client-0-k")
    mid = submit(two, "c-client-1-mid", b"hang", "data")
    end = submit(two, "c-client-1-end", b"inline", "c-client-1-mid", "c-client-0-k")
    let_go(two, mid)
    pass_time(cluster, 0.5)
    cluster.nodes[1].crash()
    cluster.replace_broker(DOWN)
    pass_time(cluster, 30.0)
    assert running.status == his.status == PENDING and data.status == end.status == CANCELLED
