"""Data that is scattered again under its name while workers still speak of the copies that it had before."""

from __future__ import annotations

from typing import Any

import pytest
from test_recovery_stories import DOWN, cluster_of, comes_to, holder_of, let_go, pass_time, submit, tables, want

from zdist.core.entry import CANCELLED, FINISHED, Entry
from zdist.protocol.fields import content_attempt
from zdist.testing.cluster import SimCluster, joined, value_of


def ask(client: Any, what: str, *args: Any) -> None:
    client.ledger.ask(what, args)
    client.soon()


def scatter(client: Any, worker: Any, value: bytes = b"value") -> Entry:
    attempt = content_attempt(repr(value))
    blob = client.snapshot("data", value, attempt)
    entries = client.ledger.hold([("data", blob, "bytes")], finished=False, attempt=attempt)
    client.ledger.place(entries, (worker.machine.name,), 1)
    client.soon()
    (entry,) = entries
    return entry  # type: ignore[no-any-return]


def holders(cluster: SimCluster) -> list[str]:
    return [worker.machine.name for worker in cluster.workers() if "data" in worker.machine.store.entries]


def let_go_with_a_report_on_its_way() -> tuple[SimCluster, Any, Any, Any]:
    """A worker has a copy of data that is let go of now, and what it says of that has not come to the broker."""
    cluster = cluster_of(clients=1)
    (client,) = cluster.clients
    one, two = cluster.workers()
    first = scatter(client, one)
    assert comes_to(cluster, FINISHED, first)
    pass_time(cluster, 0.5)
    ask(client, "replicate", ("data",), 2, None)
    assert cluster.run(lambda: "data" in two.machine.store.entries, 5.0)
    cluster.network.partition({two.name})
    let_go(client, first)
    pass_time(cluster, 0.2)
    assert "data" not in tables(cluster).tasks
    return cluster, client, one, two


def test_a_copy_of_the_first_is_no_place_to_move_the_second_to() -> None:
    cluster, client, one, _ = let_go_with_a_report_on_its_way()
    second = scatter(client, one)
    assert comes_to(cluster, FINISHED, second)
    pass_time(cluster, 0.5)
    cluster.network.heal()
    pass_time(cluster, 1.0)
    one.node.machine.drain("drained", 20.0, cluster.network.now)
    one.node.soon()
    pass_time(cluster, 15.0)
    collection = client.ledger.collect([second], None, cluster.network.now)
    client.soon()
    pass_time(cluster, 10.0)
    assert second.status == FINISHED and [entry for entry, _ in collection.arrived] == [second]


def test_a_copy_of_the_first_is_not_taken_for_the_only_one_of_the_second() -> None:
    """Nobody leaves or dies."""
    cluster, client, _, two = let_go_with_a_report_on_its_way()
    second = scatter(client, two)
    pass_time(cluster, 0.2)
    cluster.network.heal()
    assert comes_to(cluster, FINISHED, second)
    pass_time(cluster, 5.0)
    assert holders(cluster) or "data" in client.ledger.store.entries


def test_what_a_client_wants_back_from_others_is_not_kept_after_its_end() -> None:
    """It lets go of data that was not placed yet, and gets its future back from another client before the Drop."""
    cluster = cluster_of(clients=2)
    client, _ = cluster.clients
    cluster.network.delay = 0.05
    mine = scatter(client, cluster.workers()[0])
    pass_time(cluster, 0.0005)
    let_go(client, mine)
    pass_time(cluster, 0.0005)
    again = want(client, "data")
    pass_time(cluster, 0.6)
    assert "data" not in tables(cluster).tasks
    let_go(client, again)
    pass_time(cluster, 60.0)
    assert not client.ledger.entries and not client.ledger.store.entries


@pytest.mark.parametrize("keep", [False, True])
def test_a_task_does_not_get_the_value_of_data_that_had_its_name(keep: bool) -> None:
    """A worker that was cut off brings that to a successor; ``keep``: the maker of the task keeps its future."""
    cluster = cluster_of(clients=2)
    client, other = cluster.clients
    one, _ = cluster.workers()
    first = scatter(client, one, b"first")
    assert comes_to(cluster, FINISHED, first)
    cluster.network.partition({one.name})
    let_go(client, first)
    pass_time(cluster, 0.5)
    made = submit(client, "data", b"frozen")
    pass_time(cluster, 1.0)
    his = want(other, "data")
    pass_time(cluster, 1.0)
    if not keep:
        let_go(client, made)
        pass_time(cluster, 0.5)
    cluster.replace_broker(DOWN)
    pass_time(cluster, 0.3)
    cluster.network.heal()
    pass_time(cluster, 60.0)
    collection = other.ledger.collect([his], None, cluster.network.now)
    other.soon()
    pass_time(cluster, 10.0)
    assert [joined(data) for _, data in collection.arrived] == [value_of("data", [])]


@pytest.mark.parametrize("broker", ["lives", "dies first", "dies last"])
@pytest.mark.parametrize("back", [0.5, 4.0, 20.0])
def test_a_worker_that_was_cut_off_does_not_bring_back_what_had_the_name_before(broker: str, back: float) -> None:
    """Of equal size and type: only the content tells one from the other."""
    cluster = cluster_of(clients=2)
    client, other = cluster.clients
    one, two = cluster.workers()
    first = scatter(client, one, b"first")
    assert comes_to(cluster, FINISHED, first)
    cluster.network.partition({one.name})
    if broker == "dies first":
        cluster.replace_broker(DOWN)
    let_go(client, first)
    pass_time(cluster, 3.0)
    again = scatter(client, two, b"again")
    comes_to(cluster, FINISHED, again, limit=3.0)
    if broker == "dies last":
        cluster.replace_broker(DOWN)
    pass_time(cluster, back)
    cluster.network.heal()
    his = want(other, "data")
    pass_time(cluster, 60.0)
    for reader, entry in ((client, again), (other, his)):
        collection = reader.ledger.collect([entry], None, cluster.network.now)
        reader.soon()
        pass_time(cluster, 10.0)
        assert [joined(data) for _, data in collection.arrived] == [b"again"]


@pytest.mark.parametrize("lost", [False, True])
def test_what_was_made_of_data_is_not_computed_again_of_other_data_of_that_name(lost: bool) -> None:
    """Seed 8089732: the data is cancelled, and its name given to other data, while no broker is there."""
    cluster = cluster_of()
    one, _ = cluster.clients
    (old,) = one.ledger.hold([("config", one.snapshot("config", b"old"), "bytes")], finished=True)
    made = submit(one, "c-client-0-made", b"lazy", "config")
    assert comes_to(cluster, FINISHED, made)
    pass_time(cluster, 0.5)
    holder = holder_of(cluster, made.key)
    cluster.replace_broker(1.0)
    one.ledger.cancel([old], force=False)
    (new,) = one.ledger.hold([("config", one.snapshot("config", b"new"), "bytes")], finished=True)
    assert made.status == FINISHED and new is not old
    if lost:
        holder.end(-9)
    pass_time(cluster, 30.0)
    assert new.status == FINISHED and made.status == (CANCELLED if lost else FINISHED)
