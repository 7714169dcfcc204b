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


def sent(client: Client) -> list[Any]:
    """The messages that this client sends, from now on: a list that grows."""
    seen: list[Any] = []
    driver: Any = client._driver
    flush = driver.endpoint.flush

    def watch(now: float) -> Any:
        packets = list(flush(now))
        seen.extend(message for _, packet in packets for message in packet.messages)
        return packets

    driver.endpoint.flush = watch
    return seen


def about_data(seen: list[Any]) -> list[str]:
    """Of these those that are no part of a connection's own life."""
    return [name for name in (type(message).__name__ for message in seen) if name not in ("Ping", "Probe", "Taken")]


def idle(client: Client) -> None:
    """Nothing is collected, asked for or reserved any more."""
    ledger: Any = client._ledger
    assert not ledger.collections.open and not ledger.fetcher.tickets
    requests = ledger.fetcher.requests
    eventually(lambda: not requests.open and requests.inflight == 0 == requests.relayed, "no credits are in use")
    with client._lock:
        ledger.check()
