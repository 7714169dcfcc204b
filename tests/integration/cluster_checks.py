"""What several test files of this folder look at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import cluster_functions as functions

from zdist import Client

WITHIN = 20.0  # seconds that a tired machine may take for what normally takes milliseconds


def gone(remains: Callable[[], Any], what: str) -> None:
    """Wait until nothing remains."""
    pause = threading.Event()
    for _ in range(int(WITHIN / 0.02)):
        left = remains()
        if not left:
            return
        pause.wait(0.02)
    raise AssertionError(f"left behind: {what}: {left}")


def eventually(condition: Callable[[], Any], what: str = "the condition", within: float = WITHIN) -> Any:
    """Wait until the condition holds and return its value."""
    pause = threading.Event()
    for _ in range(int(within / 0.02)):
        value = condition()
        if value:
            return value
        pause.wait(0.02)
    raise AssertionError(f"{what} did not come true within {within} s; last value {value!r}")


def still_works(client: Client) -> None:
    """Both ways through the cluster on every worker."""
    workers = list(client.scheduler_info()["workers"])
    assert workers
    sums = [client.submit(functions.add, 1, i, workers=[w], pure=False) for i, w in enumerate(workers)]
    assert client.gather(sums, direct=False) == [1 + i for i in range(len(workers))]
