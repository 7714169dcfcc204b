"""What those who look are told: bytes, what runs, how a task is made, the broker's log."""

from __future__ import annotations

from typing import Any

import pytest
from broker_world import FN, World, ask

from zdist.protocol.messages import Buffer, Erred, Hold


def rows(w: World) -> dict[str, Any]:
    return {row["name"]: row for row in ask(w, "status")["workers"]}


@pytest.fixture
def w() -> World:
    """Three results of two groups, and a task that has none yet."""
    w = World(workers=1)
    for key, nbytes in (("load-12345678", 10), ("load-87654321", 20), ("sum-12345678", 5)):
        w.submit(key)
        w.finish(key, nbytes=nbytes)
    w.submit("open")
    w.turn()
    return w


def test_bytes_by_key_and_by_group(w: World) -> None:
    assert ask(w, "nbytes", (None, False)) == {"load-12345678": 10, "load-87654321": 20, "sum-12345678": 5}
    assert ask(w, "nbytes", (None, True)) == {"load": 30, "sum": 5}
    assert ask(w, "nbytes", (("load-12345678", "open", "unknown"), False)) == {"load-12345678": 10}


def test_bytes_of_too_many_keys_are_not_told(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.looking.ASK_ENTRIES", 2)
    assert ask(w, "nbytes", (None, True)) == {"load": 30, "sum": 5}
    assert ask(w, "nbytes", (None, False))[1].endswith("the answer would have more than 2 entries; ask for fewer keys")


def test_who_runs_anything_at_all() -> None:
    w = World(workers=2)
    w.submit("a")
    worker = w.where("a")
    assert ask(w, "running") == {f"tcp://{worker}": []}


def test_how_a_task_is_made() -> None:
    w = World(workers=0)
    w.send("c-0", Hold(1, (("data", 0, 5, "int"),)))
    w.submit("a", args=Buffer(b"args"), deps=("data",))  # type: ignore[arg-type]
    assert ask(w, "spec", "a") == (FN, "fast", b"pickled fast", b"args", ("data",))
    assert ask(w, "spec", "data") is None


def test_how_a_task_is_made_is_not_told_if_that_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.looking.CALL_BYTES", len(b"pickled fast") + 4)
    w = World(workers=0)
    w.submit("small", args=b"1234")
    w.submit("large", args=b"12345")
    assert ask(w, "spec", "small")[3] == b"1234"
    assert ask(w, "spec", "large") == ("error", "spec: function and arguments of large have more than 16 bytes")


def test_a_failure_is_told_once_of_the_task_that_raised() -> None:
    w = World(workers=1)
    w.submit("a")
    w.submit("b", deps=("a",))
    w.turn()
    w.send("w-0", Erred((("a", w.task("a").attempt, 1, b"error", "Traceback\nValueError: no\n"),)))
    w.submit("c", deps=("a",))
    found = ask(w, "status")
    assert (found["failed"], found["failures"]) == (1, [(1, "a", "ValueError: no")])


def test_the_last_lines_of_the_log() -> None:
    w = World(workers=0)
    w.broker.looks.records.extend([("info", "one"), ("warning", "two"), ("info", "three")])
    assert [line for _, line in ask(w, "logs")] == ["one", "two", "three"]
    assert ask(w, "logs", 2) == [("warning", "two"), ("info", "three")]
    assert len(ask(w, "logs", 9)) == 3 and ask(w, "logs", 0) == []


def test_a_worker_is_shown_with_its_node_if_that_is_there() -> None:
    w = World(workers=1)
    w.worker("w-9", node="n-9")
    assert {name: row["node"] for name, row in rows(w).items()} == {"W-0": "N-0", "W-9": ""}


def test_a_worker_was_last_seen_when_its_node_was() -> None:
    w = World(workers=1)
    w.worker("w-9", node="n-9")
    w.now = 5.0
    w.broker.heard("n-0", w.now)
    w.now = 7.0
    assert {name: row["last_seen"] for name, row in rows(w).items()} == {"W-0": 2.0, "W-9": 7.0}
