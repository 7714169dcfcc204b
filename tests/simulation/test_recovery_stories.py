"""Stories of whole clusters in which brokers are killed, and peers are cut off or away at the wrong moment."""

from __future__ import annotations

from typing import Any

import pytest

from zdist.core.entry import FINISHED, PENDING, Entry, Work
from zdist.core.machine import CONTROL
from zdist.protocol.messages import Bye, function_digest
from zdist.testing.cluster import SimClient, SimCluster, SimWorker

DOWN = 0.1  # seconds without a broker


def work(blob: bytes = b"pickled f") -> Work:
    return Work(function_digest(blob), "f", blob, (), False)


def cluster_of(*, workers: int = 1, clients: int = 2) -> SimCluster:
    """Two nodes, whose workers are there."""
    cluster = SimCluster(1, nodes=2, workers=workers, clients=clients)
    pass_time(cluster, 3.0)
    assert len(tables(cluster).workers) == 2 * workers
    return cluster


def tables(cluster: SimCluster) -> Any:
    return cluster.broker.machine.tables


def pass_time(cluster: SimCluster, seconds: float) -> None:
    cluster.run(lambda: False, seconds)


def submit(client: SimClient, key: str, kind: bytes = b"frozen", *deps: str, function: Work | None = None) -> Entry:
    (entry,) = client.ledger.submit(function or work(), [(key, kind, deps)])
    client.soon()
    return entry


def want(client: SimClient, key: str) -> Entry:
    """Its future came from another client."""
    (entry,) = client.ledger.want([key])
    client.soon()
    return entry


def let_go(client: SimClient, entry: Entry) -> None:
    """Its last future is gone."""
    client.ledger.dropped.append(entry)
    client.soon()


def shared(cluster: SimCluster, client: SimClient, verb: str, *args: Any) -> None:
    reply = client.ledger.ask("shared", ((), "queue", "it", verb, args, None))
    client.soon()
    assert cluster.run(lambda: reply.done, 5.0) and reply.ok, reply.value


def comes_to(cluster: SimCluster, status: str, *entries: Entry, limit: float = 5.0) -> bool:
    return cluster.run(lambda: all(entry.status == status for entry in entries), limit)


def holder_of(cluster: SimCluster, key: str) -> SimWorker:
    (holder,) = tables(cluster).tasks[key].holders
    return next(worker for worker in cluster.workers() if worker.name == holder.session)


# --- data that clients hold -------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [1.0, 5.0])
def test_what_a_client_holds_for_others_is_there_though_it_comes_late(away: float) -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    (mine,) = one.ledger.hold([("arg", one.snapshot("arg", b"value"), "bytes")], finished=True)
    one.soon()
    pass_time(cluster, 0.5)
    his = want(two, "arg")
    assert comes_to(cluster, FINISHED, his)
    let_go(one, mine)
    pass_time(cluster, 0.5)
    assert "arg" in one.ledger.store.entries and "arg" in tables(cluster).tasks
    cluster.replace_broker(DOWN)
    cluster.network.partition({one.name})
    pass_time(cluster, DOWN + away)
    cluster.network.heal()
    collection = two.ledger.collect([his], None, cluster.network.now)
    two.soon()
    pass_time(cluster, 40.0)
    assert his.status == FINISHED
    assert [entry for entry, _ in collection.arrived] == [his]


def test_a_worker_that_was_away_does_not_bring_back_data_that_has_been_replaced() -> None:
    cluster = cluster_of(clients=1)
    (client,) = cluster.clients
    far = cluster.nodes[1]
    (worker,) = far.children.values()
    (old,) = client.ledger.hold([("config", client.snapshot("config", b"old value"), "bytes")], finished=False)
    client.ledger.place([old], (worker.machine.name,), 1)
    client.soon()
    assert comes_to(cluster, FINISHED, old)
    pass_time(cluster, 0.5)
    cluster.network.partition({far.name, worker.name})
    assert cluster.run(lambda: len(tables(cluster).workers) == 1, 20.0)  # its lease is over
    let_go(client, old)
    pass_time(cluster, 0.5)
    assert "config" not in tables(cluster).tasks
    client.ledger.hold([("config", client.snapshot("config", b"new value"), "bytes")], finished=True)
    client.soon()
    pass_time(cluster, 0.5)
    cluster.network.heal()
    pass_time(cluster, 6.0)
    assert worker.alive and len(tables(cluster).workers) == 2
    assert [holder.session for holder in tables(cluster).tasks["config"].holders] == [client.ledger.session]


# --- who was away when it happened ----------------------------------------------------------------------------


def test_the_maker_of_a_key_gets_its_result_though_it_was_away_when_others_were_told() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine, his = submit(one, "k"), want(two, "k")
    cluster.run(lambda: bool(mine.gen) and "k" in tables(cluster).tasks, 1.0)
    cluster.network.partition({one.name})
    assert comes_to(cluster, FINISHED, his)
    assert mine.status == PENDING
    cluster.replace_broker(DOWN)
    pass_time(cluster, 2.5)
    cluster.network.heal()
    cluster.run(lambda: mine.status != PENDING, 40.0)
    assert mine.status == FINISHED


def test_who_was_away_when_a_key_was_finished_and_its_maker_let_go_gets_it_within_its_lease() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine, his = submit(one, "k"), want(two, "k")
    cluster.run(lambda: len(getattr(tables(cluster).tasks.get("k"), "who", ())) == 2, 1.0)
    cluster.network.partition({two.name})
    assert comes_to(cluster, FINISHED, mine)
    let_go(one, mine)
    pass_time(cluster, 0.5)
    assert his.status == PENDING and "k" in tables(cluster).tasks
    cluster.replace_broker(DOWN)
    pass_time(cluster, 13.0)
    cluster.network.heal()
    cluster.run(lambda: his.status != PENDING, 30.0)
    assert his.status == FINISHED


def test_a_future_in_a_queue_outlives_its_maker_that_ends_while_a_silent_worker_is_waited_for() -> None:
    cluster = cluster_of(workers=2)
    one, two = cluster.clients
    assert comes_to(cluster, FINISHED, submit(one, "k"))
    shared(cluster, one, "put", b"future", ("k",), 0)
    pass_time(cluster, 0.5)
    holder = holder_of(cluster, "k")
    silent = next(worker for worker in cluster.workers() if worker is not holder)
    silent.paused = True
    pass_time(cluster, 1.0)
    cluster.replace_broker(DOWN)
    pass_time(cluster, 8.0)
    assert cluster.broker.machine.absent.parked  # its claim
    one.ledger.send(CONTROL, Bye("its program ends"))
    one.soon()
    pass_time(cluster, 0.1)
    one.crash()
    pass_time(cluster, 2.0)
    silent.paused = False
    silent.soon()
    pass_time(cluster, 25.0)
    shared(cluster, two, "get", 1)
    his = want(two, "k")
    cluster.run(lambda: his.status != PENDING, 30.0)
    assert his.status == FINISHED


# --- heirs ------------------------------------------------------------------------------------------------


def test_an_heir_that_asked_before_the_maker_came_can_have_the_result_computed_again() -> None:
    cluster = cluster_of()
    one, two = cluster.clients
    mine, his = submit(one, "k"), want(two, "k")
    assert comes_to(cluster, FINISHED, mine, his)
    pass_time(cluster, 0.5)
    cluster.replace_broker(DOWN)
    cluster.network.partition({one.name})
    assert comes_to(cluster, PENDING, his) and comes_to(cluster, FINISHED, his)
    cluster.network.heal()
    assert comes_to(cluster, PENDING, mine) and comes_to(cluster, FINISHED, mine, limit=9.0)
    pass_time(cluster, 0.5)
    assert len(tables(cluster).tasks["k"].who) == 2
    let_go(one, mine)
    pass_time(cluster, 1.0)
    holder = holder_of(cluster, "k")
    cluster.replace_broker(DOWN)
    holder.end(-9)
    assert comes_to(cluster, PENDING, his)
    cluster.run(lambda: his.status != PENDING, 40.0)
    assert his.status == FINISHED


def test_an_heir_is_told_which_attempt_counts_of_an_input_of_which_nothing_else_is_known() -> None:
    cluster = cluster_of(clients=3)
    one, two, three = cluster.clients
    made, his = submit(one, "k"), want(two, "k")
    assert comes_to(cluster, FINISHED, made, his)
    pass_time(cluster, 0.5)
    cluster.replace_broker(DOWN)
    one.crash()
    assert comes_to(cluster, PENDING, his) and comes_to(cluster, FINISHED, his, limit=9.0)
    tasks = tables(cluster).tasks
    assert tasks["k"].fn is None and tasks["k"].attempt
    mine = submit(two, "d", b"hang", "k")
    assert cluster.run(lambda: "d" in tasks, 2.0)
    inherited = want(three, "d")
    assert cluster.run(lambda: len(tasks["d"].who) == 2, 2.0)
    let_go(two, mine)
    let_go(two, his)
    assert cluster.run(lambda: inherited.work is not None, 3.0)
    pass_time(cluster, 1.0)
    worker = holder_of(cluster, "k")
    cluster.replace_broker(DOWN)
    pass_time(cluster, 40.0)
    assert inherited.status == PENDING  # it runs on
    assert worker.alive and worker.machine.store.get("k") is not None


# --- functions ------------------------------------------------------------------------------------------------


def test_a_client_goes_on_after_it_let_go_of_all_that_waited_for_a_forgotten_function() -> None:
    cluster = cluster_of(clients=1)
    (client,) = cluster.clients
    (peer,) = tables(cluster).clients.values()
    peer.trim_at = 3  # functions that a client may define until those without tasks are forgotten; else thousands
    for n in range(6):
        entry = submit(client, f"k{n}", b"inline", function=work(b"pickled %d" % n))
        assert comes_to(cluster, FINISHED, entry)
        let_go(client, entry)
        pass_time(cluster, 0.2)
    forgotten = work(b"pickled 0").fn
    assert forgotten not in tables(cluster).functions and forgotten in client.ledger.defined
    entry = submit(client, "again", b"inline", function=work(b"pickled 0"))
    while not entry.gen:
        pass_time(cluster, 0.0001)
    let_go(client, entry)  # before it is asked what that is
    del entry  # and with it the function
    pass_time(cluster, 1.0)
    assert comes_to(cluster, FINISHED, submit(client, "next", b"inline", function=work(b"pickled 9")), limit=60.0)
