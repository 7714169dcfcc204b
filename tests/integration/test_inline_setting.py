"""The setting that says which results travel with the news of their completion."""

from __future__ import annotations

from collections.abc import Callable

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN

from zdist import Client, LocalCluster, wait


@pytest.mark.parametrize("processes", [True, False])
@pytest.mark.parametrize(("inline_result", "paths"), [(0, {"peer", "relay", "shm", "local"}), (16384, {"inline"})])
def test_results_travel_with_their_completion_up_to_the_size_that_is_set(
    start: Callable[..., LocalCluster], processes: bool, inline_result: int, paths: set[str]
) -> None:
    cluster = start(n_workers=1, threads_per_worker=1, processes=processes, inline_result=inline_result)
    with Client(cluster, set_as_default=False) as client:
        futures = client.map(functions.add, range(50), [1] * 50, pure=False)
        wait(futures, timeout=WITHIN)
        assert client.gather(futures) == list(range(1, 51))
        assert {batch.path for batch in client.gather_report()} <= paths
        held = [future._entry.outcome[3] is None for future in futures]
        assert held == [inline_result == 0] * 50
