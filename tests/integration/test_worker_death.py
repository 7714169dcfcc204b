"""Workers that die under their tasks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN, eventually

from zdist import CancelledError, Client, KilledWorker, as_completed, wait


def pids(client: Client) -> dict[str, int]:
    return {address: worker["pid"] for address, worker in client.scheduler_info()["workers"].items()}


def replaced(client: Client, pid: int) -> bool:
    now = pids(client).values()
    return pid not in now and len(now) == 2


def test_killing_a_worker_in_a_map_loses_nothing(client: Client) -> None:
    victim = next(iter(pids(client).values()))
    futures = client.map(functions.slow_inc, range(2_000), [0.002] * 2_000, pure=False)
    for count, _ in enumerate(as_completed(futures)):
        if count == 300:
            os.kill(victim, signal.SIGKILL)
    assert client.gather(futures, timeout=60) == list(range(1, 2_001))
    eventually(lambda: replaced(client, victim), "the worker is replaced")


def test_killing_a_worker_while_the_client_gathers(client: Client) -> None:
    victim = next(iter(pids(client).values()))
    futures = client.map(functions.slow_inc, range(2_000), [0.002] * 2_000, pure=False)
    futures[200].add_done_callback(lambda future: os.kill(victim, signal.SIGKILL))
    assert client.gather(futures, timeout=60) == list(range(1, 2_001))
    eventually(lambda: replaced(client, victim), "the worker is replaced")


def test_lost_results_are_computed_again(client: Client) -> None:
    address, victim = next(iter(pids(client).items()))
    base = client.submit(functions.filled, 3, 200_000, workers=[address], allow_other_workers=True, pure=False)
    chain = [base]
    for _ in range(4):
        chain.append(client.submit(functions.inc, chain[-1]))
    wait(chain)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: replaced(client, victim), "the worker is replaced")
    assert [int(a[0]) for a in client.gather(chain, timeout=30)] == [3, 4, 5, 6, 7]


def test_a_task_that_kills_its_workers(client: Client) -> None:
    future = client.submit(functions.die, pure=False)
    with pytest.raises(KilledWorker, match=r"SIGKILL|signal 9") as caught:
        future.result(timeout=60)
    assert future.key in str(caught.value)
    eventually(lambda: len(pids(client)) == 2, "two workers")


def test_the_exit_code_and_last_words_are_told(client: Client) -> None:
    def last_words() -> None:
        import sys

        print("these are my last words", file=sys.stderr, flush=True)
        functions.exit_hard(42)

    with pytest.raises(KilledWorker, match=r"\b42\b") as caught:
        client.submit(last_words, pure=False).result(timeout=60)
    assert "these are my last words" in str(caught.value)
    eventually(lambda: len(pids(client)) == 2, "two workers")


def test_bystanders_of_a_killer_survive(client: Client) -> None:
    killer = client.submit(functions.die, signal.SIGSEGV, pure=False)
    others = client.map(functions.slow_inc, range(400), [0.005] * 400, pure=False)
    with pytest.raises(KilledWorker, match=r"SIGSEGV|signal 11"):
        killer.result(timeout=60)
    values = client.gather(others, timeout=60, errors="return")
    # a worker has two threads: one other task ran at each death, and it may have been the same one each time
    unlucky = [n for n, value in enumerate(values) if isinstance(value, KilledWorker)]
    assert len(unlucky) <= 1
    assert all(value == n + 1 for n, value in enumerate(values) if n not in unlucky)
    eventually(lambda: len(pids(client)) == 2, "two workers")


def test_scattered_data_on_a_dead_worker_is_lost_with_a_reason(client: Client) -> None:
    address, victim = next(iter(pids(client).items()))
    future = client.scatter(b"z" * 300_000, workers=[address], hash=False)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: replaced(client, victim), "the worker is replaced")
    below = client.submit(len, future, pure=False)
    for lost in (future, below):
        with pytest.raises(CancelledError, match=r"lost|which nobody holds"):
            lost.result(timeout=20)


def test_broadcast_data_survives_one_death(client: Client) -> None:
    victim = next(iter(pids(client).values()))
    future = client.scatter(b"z" * 300_000, broadcast=True, hash=False)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: replaced(client, victim), "the worker is replaced")
    assert client.submit(len, future, pure=False).result(timeout=20) == 300_000


def test_a_stopped_worker_holds_up_only_its_own(client: Client, tmp_path: Path) -> None:
    address, pid = next(iter(pids(client).items()))
    other = next(a for a in pids(client) if a != address)
    os.kill(pid, signal.SIGSTOP)
    try:
        futures = client.map(functions.inc, range(50), workers=[other], pure=False)
        assert client.gather(futures, timeout=WITHIN) == list(range(1, 51))
    finally:
        os.kill(pid, signal.SIGCONT)
