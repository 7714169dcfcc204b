"""What gather promises inside a task: objects of the same worker as they are, and no deadlock on a full pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN

from zdist import Client, LocalCluster, wait


@pytest.fixture(scope="module")
def narrow_cluster(nothing_left: object) -> Iterator[LocalCluster]:
    """One worker with one thread: whatever waits in the pool, blocks it."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def narrow(narrow_cluster: LocalCluster) -> Iterator[Client]:
    with Client(narrow_cluster, set_as_default=False) as client:
        yield client
        assert client.submit(functions.add, 1, 1, pure=False).result(timeout=WITHIN) == 2


# --- values of the same worker ------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [None, True, False])
@pytest.mark.parametrize("how", ["gather", "wait", "result", "iterator"])
@pytest.mark.parametrize("nbytes", [0, 10, 100_000, 4 << 20])
def test_the_same_object_is_handed_over(narrow: Client, nbytes: int, how: str, direct: bool | None) -> None:
    pytest.importorskip("numpy")
    found = narrow.submit(functions.same_objects, nbytes, how, direct, pure=False).result(timeout=60)
    assert found == [(True, True)] * 6


def test_what_another_worker_holds_comes_as_a_copy(client: Client) -> None:
    pytest.importorskip("numpy")
    first, second = client.scheduler_info()["workers"]
    here = client.submit(functions.filled, 5, 300_000, workers=[first], pure=False)
    there = client.submit(functions.filled, 6, 300_000, workers=[second], pure=False)
    wait([here, there])
    for where in (first, second):
        inside = client.submit(functions.gather_inside, functions.Keys([here, there]), workers=[where], pure=False)
        assert inside.result(timeout=30) == [5, 6]


# --- no deadlock ----------------------------------------------------------------------------------------------


def test_several_levels_of_gathers_on_one_thread(narrow: Client) -> None:
    assert narrow.submit(functions.level, 3, 3).result(timeout=60) == 1 + 3 + 9 + 27
    roots = [narrow.submit(functions.level, 2, 2, pure=False) for _ in range(4)]
    assert narrow.gather(roots, timeout=60) == [7] * 4


@pytest.mark.parametrize("how", ["result", "iterator", "wait", "as_completed"])
def test_every_way_of_waiting_leaves_the_pool(narrow: Client, how: str) -> None:
    assert narrow.submit(functions.level_by, 4, how, pure=False).result(timeout=60) == 4


def test_the_task_is_back_in_the_pool_afterwards(narrow: Client, gate: functions.Gate) -> None:
    task = narrow.submit(functions.away_and_back, gate, pure=False)
    gate.open()
    assert task.result(timeout=60) == [False, False, False]


def test_no_more_tasks_work_at_once_than_there_are_threads(start: Callable[..., LocalCluster]) -> None:
    with Client(start(n_workers=1, threads_per_worker=2), set_as_default=False) as client:
        assert max(client.gather(client.map(functions.crowd, [5] * 30, pure=False), timeout=60)) <= 2
