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


K = "c-client-2-k"


@pytest.mark.parametrize("lives", [None, 5.5])
def test_what_is_to_be_made_of_what_still_runs_is_waited_for(lives: float | None) -> None:
    cluster = cluster_of(clients=3)
    one, two, three = cluster.clients
    submit(three, K, b"hang")
    running = want(one, K)
    mid = submit(one, MID, b"inline", K)
    end = submit(one, "c-client-0-end", b"inline", MID)
    pass_time(cluster, 0.5)
    his = want(two, MID)
    pass_time(cluster, 0.5)
    (worker,) = [worker for worker in cluster.workers() if worker.running]
    three.crash()
    cluster.replace_broker(DOWN)
    let_go(one, mid)
    pass_time(cluster, lives or 20.0)
    for _ in range(4 if lives else 0):
        cluster.replace_broker(DOWN)
        pass_time(cluster, lives or 0.0)
    worker._finish(worker.running[0], 15.0)
    assert comes_to(cluster, FINISHED, running, his, end, limit=10.0)


@pytest.mark.parametrize("lives", [None, 5.0])
def test_what_its_maker_waits_to_submit_is_not_lost_to_others(lives: float | None) -> None:
    cluster = cluster_of(clients=3)
    one, two, three = cluster.clients
    submit(one, "c-client-0-k", b"hang")
    running = want(two, "c-client-0-k")
    made = submit(two, "c-client-1-t", b"inline", "c-client-0-k")
    pass_time(cluster, 0.5)
    hers = want(three, "c-client-1-t")
    pass_time(cluster, 0.5)
    (worker,) = [worker for worker in cluster.workers() if worker.running]
    one.crash()
    for _ in range(5 if lives else 1):
        cluster.replace_broker(DOWN)
        pass_time(cluster, lives or 20.0)
    worker._finish(worker.running[0], 15.0)
    assert comes_to(cluster, FINISHED, running, made, hers, limit=20.0)


@pytest.mark.parametrize("gone", [False, True])
def test_its_own_client_may_want_it_again_meanwhile(gone: bool) -> None:
    cluster = cluster_of(clients=3)
    one, two, three = cluster.clients
    scatter(cluster, three, "data")
    hers = want(one, "data")
    submit(two, "c-client-1-x", b"hang")
    want(one, "c-client-1-x")
    mid = submit(one, MID, b"frozen", "data")
    assert comes_to(cluster, FINISHED, hers, mid)
    submit(one, "c-client-0-end", b"inline", MID, "c-client-1-x")
    pass_time(cluster, 0.5)
    for entry in (mid, hers):
        let_go(one, entry)
    pass_time(cluster, 0.5)
    for worker in cluster.workers():
        for key in (MID, "data") if gone or worker is not far(cluster) else (MID,):
            worker.machine.store.drop(key, cluster.network.now)
    two.crash()
    for worker in cluster.workers():
        if worker.running:
            worker.end(-9)
    cluster.replace_broker(DOWN)
    cluster.network.partition({three.name, cluster.nodes[1].name, far(cluster).name})
    assert cluster.run(lambda: bool(mid.gen), 8.0)
    pass_time(cluster, 0.5)
    assert want(one, MID) is mid
    pass_time(cluster, 1.0)
    cluster.network.heal()
    pass_time(cluster, 60.0)
    assert mid.status == (CANCELLED if gone else FINISHED)


def test_that_shared_state_refers_to_it_takes_it_from_nobody() -> None:
    cluster = cluster_of(clients=3)
    one, _, three = cluster.clients
    scatter(cluster, three, "data")
    want(one, "data")
    mid = submit(one, MID, b"hang", "data")
    end = submit(one, "c-client-0-end", b"hang", MID)
    pass_time(cluster, 0.5)
    one.ledger.ask("shared", ((), "variable", "v", "set", (b"future", (MID,)), None))
    one.soon()
    pass_time(cluster, 0.5)
    let_go(one, mid)
    pass_time(cluster, 0.5)
    for _ in range(6):
        cluster.replace_broker(DOWN)
        cluster.network.partition({three.name, cluster.nodes[1].name, far(cluster).name})
        pass_time(cluster, 5.0)
        cluster.network.heal()
        pass_time(cluster, 5.0)
        assert end.status == PENDING


@pytest.mark.parametrize("lives", [None, 5.5])
@pytest.mark.parametrize("how", ["lets go", "crashes"])
def test_it_can_be_made_again_though_all_who_knew_how_have_gone_before_what_it_is_made_of_comes(
    how: str, lives: float | None
) -> None:
    cluster = cluster_of(clients=3)
    one, two, three = cluster.clients
    data, hers = scatter(cluster, three, "data"), want(one, "data")
    mid = submit(one, MID, b"frozen", "data")
    end = submit(one, "c-client-0-end", b"inline", MID)
    assert comes_to(cluster, FINISHED, hers, mid, end)
    for entry in (hers, mid):
        let_go(one, entry)
    pass_time(cluster, 0.5)
    cluster.replace_broker(DOWN)
    cluster.network.partition({three.name, cluster.nodes[1].name, far(cluster).name})
    pass_time(cluster, 3.0)
    his = want(two, MID)  # one who has its future sends it on only now
    pass_time(cluster, 0.5)
    assert MID in tables(cluster).tasks and MID in cluster.broker.machine.intake.sought.keys
    if how == "crashes":
        one.crash()
    else:
        let_go(one, end)
    if lives:  # what its heir was told outlives the broker as well
        pass_time(cluster, 0.5)
        cluster.replace_broker(DOWN)
    pass_time(cluster, lives or 2.5)
    assert his.status == PENDING
    cluster.network.heal()
    assert comes_to(cluster, FINISHED, his, data, limit=20.0)
