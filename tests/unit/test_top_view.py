"""What ``zdist top`` draws fits its screen, whatever there is to show."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from zdist.cli.top_view import COLUMNS, View, by_column, detail, overview, size, span

ROW: dict[str, Any] = {
    "address": "tcp://x", "session": "w", "host": "h", "pid": 1, "node": "n", "status": "running", "nthreads": 2,
    "memory_limit": 10**9, "processing": 3, "held": 4, "completed": 5, "last_seen": 0.1, "per_second": 3.0,
    "memory": None, "stored": 5, "spilled": 0, "cpu": None, "fetched": None,
}  # fmt: skip


def found(workers: int, failures: int = 0, records: int = 0) -> dict[str, Any]:
    return {
        "broker": {"address": "tcp://127.0.0.1:7077", "id": "b", "uptime": 5e5},
        "clients": 1,
        "nodes": 1,
        "tasks": {"total": 5, "ready": 3},
        "completed": 5,
        "failed": 1,
        "per_second": {"completed": None, "failed": None, "relay_bytes": None},
        "bytes": {"relayed_by_broker": 5, "fetched_by_workers": {"shm": 10}},
        "workers": [{**ROW, "name": f"worker-{n}[x]", "held": n} for n in range(workers)],
        "failures": [{"number": n, "key": "k" * 100 + "[red]", "text": "t" * 200} for n in range(failures)],
        "log": [{"level": "INFO", "line": "l" * 300 + "[/]"} for _ in range(records)],
    }


def drawn(what: Any, width: int = 100, height: int = 40) -> str:
    file = io.StringIO()
    Console(file=file, width=width, height=height).print(what)
    return file.getvalue().rstrip("\n")


@pytest.mark.parametrize("workers", [0, 1, 5, 1000])
@pytest.mark.parametrize("height", [14, 24, 60])
@pytest.mark.parametrize("trouble", ["", "the broker does not answer " * 20])
def test_it_fits_the_screen(workers: int, height: int, trouble: str) -> None:
    view = View()
    view.selected, view.trouble = "worker-700[x]", trouble
    for width in (60, 160):
        text = drawn(overview(found(workers, 9, 9), view, height), width, height)
        assert text.count("\n") < height and "q quit" in text
        assert ("worker-700[x]" in text) == (workers == 1000)
        assert ("of 1000 workers" in text) == (workers == 1000)


def test_paper_has_all_of_it() -> None:
    text = drawn(overview(found(300, 9, 9), View()), 160)
    assert all(f"worker-{n}[x]" in text for n in range(300)) and "q quit" not in text


def test_order_and_units() -> None:
    rows = found(3)["workers"]
    column = [column.field for column in COLUMNS].index("held")
    rows[1]["held"] = None
    assert [row["name"] for row in by_column(rows, column)] == ["worker-2[x]", "worker-0[x]", "worker-1[x]"]
    assert [row["name"] for row in by_column(rows[::-1], 0)] == ["worker-0[x]", "worker-1[x]", "worker-2[x]"]
    assert [size(n) for n in (None, 0, 999, 1 << 20, 5 << 30)] == ["-", "0 B", "999 B", "1 MiB", "5 GiB"]
    assert (span(61), span(90_000)) == ("00:01:01", "1 d 01:00:00")


def test_one_worker() -> None:
    view = View()
    view.selected = "worker-1[x]"
    inner = {"assigned": [("a[b]", "waiting")], "keys": [("k", 5, "int")], "stacks": None}
    text = drawn(detail(inner, found(2), view))
    assert "a[b]  waiting" in text and "k  5 B int" in text and "a task may hold the GIL" in text
    inner["stacks"] = {"a[b]": ("  File x, line 1\n    y[z]\n",)}
    assert "call stack of a[b]" in drawn(detail(inner, found(2), view))
    assert "is not there" in drawn(detail(inner, found(1), view))
    assert "is not there" in drawn(detail(None, found(2), view))
