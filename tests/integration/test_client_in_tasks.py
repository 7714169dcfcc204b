"""What tasks can do: submit and gather themselves, leave the pool, print at the client."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import cluster_functions as functions
import pytest
from cluster_checks import eventually

import zdist
from zdist import Client, LocalCluster, SecededLimit
from zdist.limits import SECEDED_PER_WORKER


def test_tasks_that_gather_tasks(client: Client) -> None:
    assert client.submit(functions.fib, 10).result(timeout=60) == 55


def test_nested_gathers_on_a_full_pool_never_deadlock(client: Client) -> None:
    futures = client.map(functions.nested, [12] * 8, pure=False)
    assert client.gather(futures, timeout=60) == [12] * 8


def test_too_deep_a_nesting_is_a_clear_error(start: Callable[..., LocalCluster]) -> None:
    with Client(start(n_workers=1, threads_per_worker=1), set_as_default=False) as client:
        future = client.submit(functions.nested, SECEDED_PER_WORKER + 50)
        with pytest.raises(SecededLimit, match=str(SECEDED_PER_WORKER)):
            future.result(timeout=60)
        assert client.submit(functions.nested, 5).result(timeout=30) == 5
        assert client.submit(threading.active_count, pure=False).result(timeout=20) < 50


def test_worker_client(client: Client) -> None:
    assert client.gather(client.map(functions.fan_out, range(10, 16)), timeout=60) == [
        sum(range(1, n + 1)) for n in range(10, 16)
    ]


def test_seceded_tasks_leave_their_place_to_others(client: Client, gate: functions.Gate) -> None:
    outside = client.map(functions.step_out, [gate] * 6, range(6))
    eventually(lambda: gate.arrived() == 6, "six tasks run on four threads")
    assert client.gather(client.map(functions.inc, range(10), pure=False), timeout=20) == list(range(1, 11))
    gate.open()
    assert client.gather(outside, timeout=20) == list(range(6))


def test_the_worker_of_a_task(client: Client) -> None:
    addresses = client.gather(client.map(functions.worker_address, range(20)))
    assert set(addresses) <= set(client.scheduler_info()["workers"])


def test_futures_among_results_stay_usable(client: Client) -> None:
    inner = client.submit(functions.submit_inside, 41).result(timeout=20)
    assert isinstance(inner, zdist.Future) and inner.result(timeout=20) == 42


def test_futures_inside_objects_are_replaced_by_their_values(client: Client, gate: functions.Gate) -> None:
    future = client.submit(functions.wait_at, gate, 2)
    below = client.submit(functions.content, functions.Box([future]))
    gate.open()
    assert below.result(timeout=20) == [2]


def test_print_shows_at_the_client(client: Client, second: Client, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"hello from {os.getpid()}"
    assert client.submit(functions.speak, text).result(timeout=20) == len(text)
    seen = ["", ""]

    def shown() -> bool:
        out, err = capfd.readouterr()
        seen[0] += out
        seen[1] += err
        return f"{text}\n" in seen[0] and f"aside: {text}\n" in seen[1]

    eventually(shown, "the text is shown")
    assert seen[0].count(f"{text}\n") == 1  # not by the other client


def test_warn_warns_at_the_client(client: Client) -> None:
    with pytest.warns(RuntimeWarning, match="mind the gap") as record:
        client.submit(functions.caution, "mind the gap").result(timeout=20)
        eventually(lambda: len(record), "the warning")


def test_outside_of_tasks(client: Client) -> None:
    with pytest.raises(ValueError, match="works only inside a task"):
        zdist.get_worker()
    with client.as_current():
        assert zdist.get_client() is client
    for call in (zdist.secede, zdist.rejoin):
        with pytest.raises(ValueError, match="works only inside a task"):
            call()
