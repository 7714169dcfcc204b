"""Brokers that are killed one after another, before any of them has had the time to say what is lost."""

from __future__ import annotations

from test_recovery_stories import DOWN, cluster_of, comes_to, pass_time, submit, tables, want

from zdist.core.entry import CANCELLED, FINISHED, PENDING, UNKNOWN, Entry
from zdist.testing.cluster import SimClient, SimCluster

LIVES = 5.0  # seconds of each


def scatter(cluster: SimCluster, client: SimClient, key: str) -> Entry:
    """Data that lies on the second node alone."""
    (worker,) = cluster.nodes[1].children.values()
    (entry,) = client.ledger.hold([(key, client.snapshot(key, b"value"), "bytes")], finished=False)
    client.ledger.place([entry], (worker.machine.name,), 1)
    client.soon()
    assert comes_to(cluster, FINISHED, entry)
    pass_time(cluster, 0.5)
    return entry


def brokers(cluster: SimCluster, number: int) -> None:
    for _ in range(number):
        cluster.replace_broker(DOWN)
        pass_time(cluster, DOWN + LIVES)


def test_that_data_is_gone_is_told_though_no_broker_lives_long_enough_to_know_it() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine = scatter(cluster, one, "data")
    his = want(two, "data")
    made = submit(one, "made", b"hang", "data")
    pass_time(cluster, 0.5)
    cluster.nodes[1].crash()
    brokers(cluster, 4)
    assert mine.status == his.status == made.status == CANCELLED
    assert mine.outcome == f"{UNKNOWN}: scattered data lost" and his.outcome == UNKNOWN
    assert not tables(cluster).tasks and not one.ledger.entries and not two.ledger.entries


def test_who_was_away_for_some_of_them_has_lost_nothing() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine, his = scatter(cluster, one, "data"), want(two, "data")
    pass_time(cluster, 0.5)
    node = cluster.nodes[1]
    away = {node.name, *(worker.name for worker in node.children.values())}
    for _ in range(3):  # two brokers do not hear of it, the third does
        cluster.network.partition(away)
        brokers(cluster, 2)
        cluster.network.heal()
        brokers(cluster, 1)
        assert comes_to(cluster, FINISHED, mine, his)


def test_brokers_that_lived_for_long_are_not_counted() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine = submit(one, "mine", b"hang")
    his = want(two, "mine")
    for _ in range(5):  # its maker comes back late each time
        cluster.replace_broker(DOWN)
        cluster.network.partition({one.name})
        pass_time(cluster, 4.0)
        cluster.network.heal()
        pass_time(cluster, 30.0)
        assert mine.status == his.status == PENDING
