"""Brokers that are killed one after another, before any of them has had the time to say what is lost."""

from __future__ import annotations

import pytest
from test_recovery_stories import DOWN, cluster_of, comes_to, let_go, pass_time, submit, tables, want

from zdist.core.entry import CANCELLED, FINISHED, PENDING, UNKNOWN, Entry
from zdist.testing.cluster import SimClient, SimCluster, SimWorker

LIVES = 5.0  # seconds of each


def far(cluster: SimCluster) -> SimWorker:
    """The worker of the second node."""
    (worker,) = cluster.nodes[1].children.values()
    return worker


def scatter(cluster: SimCluster, client: SimClient, key: str) -> Entry:
    """Data that lies on the second node alone."""
    (entry,) = client.ledger.hold([(key, client.snapshot(key, b"value"), "bytes")], finished=False)
    client.ledger.place([entry], (far(cluster).machine.name,), 1)
    client.soon()
    assert comes_to(cluster, FINISHED, entry)
    pass_time(cluster, 0.5)
    return entry


def brokers(cluster: SimCluster, number: int, down: float = DOWN, lives: float = LIVES) -> None:
    for _ in range(number):
        cluster.replace_broker(down)
        pass_time(cluster, down + lives)


# --- what is gone is told -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "lives"), [(DOWN, LIVES), (16.0, LIVES), (12.0, 9.0)])
def test_that_data_is_gone_is_told_though_no_broker_lives_long_enough_to_know_it(down: float, lives: float) -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine = scatter(cluster, one, "data")
    his = want(two, "data")
    made = submit(one, "made", b"hang", "data")
    pass_time(cluster, 0.5)
    cluster.nodes[1].crash()
    brokers(cluster, 5, down, lives)
    assert mine.status == his.status == made.status == CANCELLED
    assert mine.outcome == f"{UNKNOWN}: scattered data lost" and his.outcome == UNKNOWN
    assert not tables(cluster).tasks and not one.ledger.entries and not two.ledger.entries


@pytest.mark.parametrize("middle", [False, True])
def test_so_is_what_was_to_be_made_of_it_and_of_something_that_is_there(middle: bool) -> None:
    cluster = cluster_of()
    (one, _) = cluster.clients
    data = scatter(cluster, one, "data")
    there = submit(one, "c-client-0-there", b"inline")
    assert comes_to(cluster, FINISHED, there)
    made = submit(one, "c-client-0-made", b"hang", "data", "c-client-0-there")
    end = submit(one, "c-client-0-end", b"inline", "c-client-0-made") if middle else made
    if middle:
        let_go(one, made)
    pass_time(cluster, 0.5)
    cluster.nodes[1].crash()
    brokers(cluster, 6)
    assert data.status == end.status == CANCELLED and there.status == FINISHED


# --- and nothing else -----------------------------------------------------------------------------------------


def test_who_was_away_for_some_of_them_has_lost_nothing() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine, his = scatter(cluster, one, "data"), want(two, "data")
    pass_time(cluster, 0.5)
    for _ in range(3):  # two brokers do not hear of it, the third does
        cluster.network.partition({cluster.nodes[1].name, far(cluster).name})
        brokers(cluster, 2)
        cluster.network.heal()
        brokers(cluster, 1)
        assert comes_to(cluster, FINISHED, mine, his)


@pytest.mark.parametrize("lives", [6.0, 9.0, 19.0])
def test_what_is_found_late_by_each_of_them_is_not_given_up(lives: float) -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine, his = submit(one, "mine", b"hang"), want(two, "mine")
    pass_time(cluster, 0.5)
    for _ in range(5):
        cluster.replace_broker(DOWN)
        cluster.network.partition({one.name})
        pass_time(cluster, 4.0)
        cluster.network.heal()
        pass_time(cluster, lives - 4.0)
        assert mine.status == his.status == PENDING


def test_what_every_second_of_them_knows_is_not_given_up() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine, his = submit(one, "mine", b"hang"), want(two, "mine")
    pass_time(cluster, 0.5)
    for _ in range(4):
        cluster.network.partition({one.name})
        brokers(cluster, 1)
        cluster.network.heal()
        assert mine.status == his.status == PENDING
        brokers(cluster, 1)
        assert len(tables(cluster).tasks["mine"].who) == 2


def test_that_one_is_asked_again_and_again_changes_nothing() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    key = "c-client-0-k"
    k, his = submit(one, key, b"lazy"), want(two, key)
    made = submit(two, "c-client-1-made", b"inline", key)  # keeps what the client knows of it as its lineage
    assert comes_to(cluster, FINISHED, k, his, made)
    let_go(two, his)
    pass_time(cluster, 0.5)
    cluster.network.partition({one.name})
    for worker in cluster.workers():
        worker.end(-9)
    brokers(cluster, 1, lives=3.5)
    for _ in range(5):
        his = want(two, key)
        pass_time(cluster, 0.2)
        assert his.status == PENDING
        let_go(two, his)
        pass_time(cluster, 0.2)
    his = want(two, key)
    cluster.network.heal()
    assert comes_to(cluster, FINISHED, his)


def test_data_that_is_scattered_anew_is_sought_anew() -> None:
    cluster = cluster_of()
    two = cluster.clients[1]
    want(two, "data")
    brokers(cluster, 3)
    (mine,) = two.ledger.hold([("data", two.snapshot("data", b"value"), "bytes")], finished=True)
    two.soon()
    pass_time(cluster, 1.0)
    two.ledger.place([mine], (far(cluster).machine.name,), 1)
    two.soon()
    pass_time(cluster, 1.0)
    assert mine.status == FINISHED and two.ledger.store.get("data") is None
    cluster.replace_broker(DOWN)
    cluster.network.partition({cluster.nodes[1].name, far(cluster).name})
    pass_time(cluster, 4.0)
    cluster.network.heal()
    pass_time(cluster, 4.0)
    assert mine.status == FINISHED


def late(cluster: SimCluster, *names: str, away: float = 4.0, lives: float = 5.0) -> None:
    """A broker to which these come later than it says what it seeks."""
    cluster.network.partition(set(names))
    cluster.replace_broker(DOWN)
    pass_time(cluster, DOWN + away)
    cluster.network.heal()
    pass_time(cluster, lives)


def test_a_result_that_each_of_them_finds_late_is_not_given_up() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    part, his = submit(two, "c-client-1-x", b"lazy"), want(one, "c-client-1-x")
    assert comes_to(cluster, FINISHED, part, his)
    made = submit(one, "c-client-0-made", b"lazy", "c-client-1-x")
    assert comes_to(cluster, FINISHED, made)
    pass_time(cluster, 0.5)
    away = [process.name for process in (*cluster.workers(), *cluster.nodes, two)]
    for _ in range(6):
        late(cluster, *away)
        assert made.status == FINISHED


@pytest.mark.parametrize("middle", [False, True])
def test_nor_is_what_is_to_be_made_of_what_they_find_late(middle: bool) -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    part, his = submit(two, "c-client-1-x", b"hang"), want(one, "c-client-1-x")
    made = submit(one, "c-client-0-made", b"hang", "c-client-1-x")
    end = submit(one, "c-client-0-end", b"hang", "c-client-0-made") if middle else made
    if middle:
        let_go(one, made)
    pass_time(cluster, 0.5)
    for _ in range(6):
        late(cluster, two.name, lives=4.0)
        assert end.status == his.status == part.status == PENDING


def test_nor_what_every_second_of_them_has_taken_at_once() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    submit(two, "c-client-1-x", b"hang")
    his = want(one, "c-client-1-x")
    made = submit(one, "c-client-0-made", b"hang", "c-client-1-x")
    pass_time(cluster, 0.5)
    for _ in range(5):
        late(cluster, two.name, away=LIVES, lives=0.0)
        assert made.status == his.status == PENDING
        late(cluster, one.name, away=3.5, lives=3.5)  # what it is made of is there before it is submitted
        assert "c-client-0-made" in tables(cluster).tasks


def test_nor_what_is_to_be_made_of_what_still_runs() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    submit(one, "c-client-0-k", b"hang")
    his, end = want(two, "c-client-0-k"), submit(two, "c-client-1-end", b"inline", "c-client-0-k")
    cluster.run(lambda: any(worker.running for worker in cluster.workers()), 1.0)
    (worker,) = [worker for worker in cluster.workers() if worker.running]
    one.crash()
    brokers(cluster, 6)
    assert his.status == PENDING
    worker._finish(worker.running[0], 15.0)
    assert comes_to(cluster, FINISHED, his, end, limit=20.0)


@pytest.mark.parametrize("chain", [False, True])
def test_a_finished_result_on_a_late_worker_is_there_though_its_input_was_given_up(chain: bool) -> None:
    cluster = cluster_of()
    one, _ = cluster.clients
    data = scatter(cluster, one, "data")
    made = submit(one, "c-client-0-t", b"lazy", "data")
    assert comes_to(cluster, FINISHED, made)
    pass_time(cluster, 0.5)
    for worker in cluster.workers():
        worker.machine.store.drop("data", cluster.network.now)
    (holder,) = [worker for worker in cluster.workers() if worker.machine.store.get(made.key) is not None]
    brokers(cluster, 5 if chain else 1, lives=5.5 if chain else 40.0)
    assert data.status == CANCELLED and made.status == FINISHED
    late(cluster, holder.name, holder.node.name, lives=20.0)
    assert made.status == FINISHED
