"""In every network: the values are right, by whichever path, and the path is the one that this network leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from topologies import TOPOLOGIES, WORKERS, Stage

GROUPS = ((300, 100), (60, 10_000), (8, 1 << 20))
COUNT = sum(count for count, _ in GROUPS)


@pytest.fixture(scope="module", params=[name for name, topology in TOPOLOGIES.items() if not topology.cut])
def there(request: pytest.FixtureRequest, staged: Callable[..., Stage]) -> Iterator[Stage]:
    stage = staged(request.param)
    stage.prepare(*GROUPS)
    yield stage


def paths(got: dict[str, Any]) -> set[tuple[str, str]]:
    """Path and worker of what a gather has brought."""
    return {(batch[0], batch[1]) for batch in got["report"]}


def test_every_path_that_is_asked_for(there: Stage) -> None:
    for _ in range(2):  # with links that are unknown, and with links that are not
        relayed = there.gather(False)
        assert relayed["right"] == COUNT
        assert paths(relayed) == {("relay", worker) for worker in WORKERS}
        assert relayed["warnings"] == []
        directly = there.gather(True)
        assert directly["right"] == COUNT
        if there.topology.certain:
            assert paths(directly) == {("peer" if w in there.topology.peer else "relay", w) for w in WORKERS}
            closed = [worker for worker in WORKERS if worker not in there.topology.peer]
            assert len(directly["warnings"]) == len(closed)
            for worker, warning in zip(closed, sorted(directly["warnings"]), strict=True):
                assert worker in warning
                assert "closed" in warning
        chosen = there.gather(None)
        assert chosen["right"] == COUNT
        assert chosen["warnings"] == []
        closed = {("peer", worker) for worker in WORKERS if worker not in there.topology.peer}
        assert not closed & paths(chosen)
    carried = {path: sum(b[3] for b in chosen["report"] if b[0] == path) for path in ("peer", "relay")}
    assert {path for path, nbytes in carried.items() if 2 * nbytes > sum(carried.values())} <= set(there.topology.large)


def test_a_new_client(there: Stage) -> None:
    assert there.fresh(None)["right"] == COUNT
    assert there.fresh(None, first=True)["right"] == COUNT


def test_one_worker_fetches_from_the_other(there: Stage) -> None:
    there.idle()
    assert there.agent.ask("compute", workers=WORKERS) == 0
