"""How rows that are to be told are divided into messages."""

from __future__ import annotations

import pytest

from zdist_broker.rows import parts


@pytest.mark.parametrize(
    ("count", "runs"), [(1, [[0]]), (3, [[0, 1, 2]]), (4, [[0, 1, 2], [3]]), (7, [[0, 1, 2], [3, 4, 5], [6]])]
)
def test_no_message_has_more_rows_than_it_may(count: int, runs: list[list[int]]) -> None:
    assert parts(list(range(count)), 3) == runs
