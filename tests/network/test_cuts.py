"""A link between two roles is cut while users work, and heals: a sample of ``tox -e cuts``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from cuts import Cell, cut
from topologies import Stage


@pytest.fixture(scope="module")
def there(staged: Callable[..., Stage]) -> Iterator[Stage]:
    yield staged("open")


@pytest.mark.parametrize("cell", [Cell("client-broker", "back", 2.0), Cell("node-broker", "both", 2.0)], ids=str)
def test_nothing_is_lost_doubled_or_hung(there: Stage, cell: Cell) -> None:
    row = cut(there, cell, seed=3, before=0.5)
    assert row.violations == []
    assert row.futures > 50
