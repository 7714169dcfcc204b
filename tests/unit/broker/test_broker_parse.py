"""Free-form values as the broker takes them apart."""

from __future__ import annotations

from typing import Any

import pytest

from zdist import limits
from zdist.protocol.messages import Data
from zdist_broker.parse import fit_cell, fit_data

LONG = "k" * (limits.MAX_KEY + 1)


@pytest.mark.parametrize(
    ("kind", "item", "value"),
    [
        ("event", "", True), ("metadata", "path", b"value"), ("plugin", 0, b"part"), ("plugin", -1, b"12"),
        ("lock", 1, ("c-0", 1, 1)), ("queue", 1, (b"value", ("key",))), ("variable", "", (b"value", ())),
        ("answer", 1, ("queue", "it", "get", ("ok", ()), ())),
    ],
)  # fmt: skip
def test_cells_that_a_broker_makes_are_taken_from_a_node(kind: str, item: Any, value: Any) -> None:
    assert fit_cell((kind, "it", item, value))
    assert not fit_cell((kind, LONG, item, value))


@pytest.mark.parametrize(
    ("kind", "item", "value"),
    [
        ("event", "", False), ("event", "x", True), ("metadata", 1, b"value"), ("metadata", "path", "value"),
        ("plugin", "x", b"part"), ("plugin", 0, "part"), ("plugin", -1, b"123456789"), ("plugin", -1, b"many"),
        ("lock", 1, ("c-0", 1)), ("lock", "x", ("c-0", 1, 1)), ("queue", "x", (b"value", ())),
        ("queue", 1, (b"value", (5,))), ("answer", 1, ("queue", "it", "get", ("ok",), ())),
        ("other", 1, (b"value", ())), ("lock", 1.5, ("c-0", 1, 1)), ("lock", 1, ["c-0", 1, 1]),
    ],
)  # fmt: skip
def test_cells_that_no_broker_makes_are_not(kind: str, item: Any, value: Any) -> None:
    assert not fit_cell((kind, "it", item, value))


def test_an_answer_with_data_names_no_more_keys_than_can_be_asked_for() -> None:
    row, gone = ("k", 1, 0, 0, ()), ("k", "unknown", "")
    rows, absent = (row,) * limits.CHUNK_ROWS, (gone,) * limits.CHUNK_ROWS
    assert fit_data(Data(1, "c-0", rows, absent))
    assert not fit_data(Data(1, "c-0", (*rows, row), ()))
    assert not fit_data(Data(1, "c-0", (), (*absent, gone)))
