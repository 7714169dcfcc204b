"""Lone tasks, one after the other, in real clusters: they go by a lane, and whatever ends it, none is lost."""

from __future__ import annotations

import os
import signal
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import eventually

from zdist import Client, LocalCluster, limits
from zdist.protocol import messages as m


def copies(client: Client) -> list[m.DoneEarly]:
    """What comes to the client by lanes from now on."""
    ledger: Any = client._ledger
    came: list[m.DoneEarly] = []
    take = ledger._done_early

    def note(route: Any, message: m.DoneEarly, now: float) -> None:
        came.append(message)
        take(route, message, now)

    ledger._done_early = note
    return came


def loop_until_early(client: Client, came: list[m.DoneEarly], times: int) -> None:
    """Submit one, wait for it, again, until so many have come by a lane."""
    seen = len(came)
    for n in range(5_000):
        assert client.submit(functions.inc, n, pure=False).result(timeout=30) == n + 1
        if len(came) >= seen + times:
            return
    raise AssertionError(f"{len(came) - seen} results came by a lane, {client._ledger.lane}")


def test_a_loop_of_lone_tasks_goes_by_a_lane_and_leaves_nothing(client: Client) -> None:
    came = copies(client)
    loop_until_early(client, came, 50)
    kept = [client.submit(functions.inc, n, pure=False) for n in (1, 2)]
    assert client.gather([*kept, client.submit(functions.inc, kept[0])]) == [2, 3, 3]
    assert set(client.who_has(kept)) == {future.key for future in kept}


def test_errors_large_results_and_arguments_and_prints_are_as_ever(client: Client, capsys: Any) -> None:
    came = copies(client)
    loop_until_early(client, came, 5)
    with pytest.raises(ZeroDivisionError):
        client.submit(divmod, 1, 0, pure=False).result(timeout=30)
    loop_until_early(client, came, 5)
    assert len(client.submit(bytes, 300_000, pure=False).result(timeout=30)) == 300_000
    assert client.submit(len, b"x" * 300_000, pure=False).result(timeout=30) == 300_000
    future = client.submit(functions.inc, 1, pure=False)
    future.cancel()
    assert future.cancelled()
    loop_until_early(client, came, 5)


def test_the_death_of_the_lanes_worker_is_survived(client: Client) -> None:
    came = copies(client)
    for n in range(3):
        loop_until_early(client, came, 20)
        pid = client.submit(functions.worker_pid, pure=False).result(timeout=30)
        futures = [client.submit(functions.slow_inc, n, 0.2, pure=False)]
        os.kill(pid, signal.SIGKILL)
        assert client.gather(futures, timeout=60) == [n + 1]
    eventually(lambda: len(client.scheduler_info()["workers"]) == 2, "two workers")
    loop_until_early(client, came, 5)


def test_two_clients_have_lanes_of_their_own_and_a_third_works_without(client: Client, cluster: LocalCluster) -> None:
    with Client(cluster) as second, Client(cluster, gather_paths=("relay",)) as third:
        came, others, none = copies(client), copies(second), copies(third)
        for _ in range(10):
            loop_until_early(client, came, 3)
            loop_until_early(second, others, 3)
            assert third.submit(functions.inc, 1, pure=False).result(timeout=30) == 2
        assert not none
        lanes, other_lanes = ({copy.attempt >> limits.LANE_BITS for copy in copies} for copies in (came, others))
        assert not lanes & other_lanes
