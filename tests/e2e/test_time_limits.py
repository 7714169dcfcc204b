"""Tasks that run out of time, cancelling by force, and workers that leave in good order, with real processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_node import PATIENCE, Ground, ground, read_until, wait_gone  # noqa: F401

from zdist import CancelledError, Client, LocalCluster, TaskTimeout, wait
from zdist.errors import ZdistError


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        end = time.monotonic() + PATIENCE  # one that the test before had replaced counts until it has gone
        while [w["status"] for w in client.scheduler_info()["workers"].values()] != ["running"] * 2:
            assert time.monotonic() < end, "there are not two workers that stay"
            threading.Event().wait(0.01)
        yield client


def spin(folder: str = "") -> None:
    if folder:
        Path(folder, str(os.getpid())).touch()
    while True:
        pass


def hold_the_gil(seconds: int) -> None:
    ctypes.PyDLL(None).sleep(seconds)


def pid(*_: object) -> int:
    return os.getpid()


def begun(folder: Path) -> int:
    """The process in which a task has begun; waits for it."""
    end = time.monotonic() + PATIENCE
    while not (names := os.listdir(folder)):
        assert time.monotonic() < end, "no task has begun"
        threading.Event().wait(0.01)
    return int(names[0])


@pytest.mark.parametrize(("function", "args"), [(spin, ()), (hold_the_gil, (60,))])
def test_a_task_over_its_time_fails_and_frees_its_slot(client: Client, function: Any, args: tuple[Any, ...]) -> None:
    kept = client.scatter({"small": 1, "large": bytearray(1 << 20)})
    results = client.map(bytearray, [100_000, 200_000, 300_000, 400_000], pure=False)
    wait(results, timeout=PATIENCE)
    before = set(client.run(pid).values())
    began = time.monotonic()
    future = client.submit(function, *args, timeout=0.5, pure=False)
    with pytest.raises(TaskTimeout, match=r"timeout of 0\.5 s.*worker"):
        future.result(timeout=PATIENCE)
    assert time.monotonic() - began < 0.5 + 5
    slots = client.map(pid, range(2), pure=False)
    assert len(client.gather(slots)) == 2
    assert time.monotonic() - began < 0.5 + 5
    if function is spin:  # with the GIL held, only what lies in shared memory can be had
        assert client.gather(kept)["small"] == 1
    assert len(client.gather(kept["large"])) == 1 << 20
    assert [len(value) for value in client.gather(results)] == [100_000, 200_000, 300_000, 400_000]
    end = time.monotonic() + PATIENCE
    while len(before & set(client.run(pid, on_error="ignore").values())) != 1:
        assert time.monotonic() < end, "the worker was not replaced"


def test_retries_apply_to_timeouts(client: Client, tmp_path: Path) -> None:
    def slow_at_first(folder: str) -> str:
        tries = len(os.listdir(folder))
        Path(folder, f"try-{tries}").touch()
        while not tries:
            pass
        return "done"

    future = client.submit(slow_at_first, str(tmp_path), timeout="2s", retries=1)
    assert future.result(timeout=PATIENCE) == "done"


def test_a_task_within_its_time_is_left_alone(client: Client) -> None:
    before = client.run(pid)
    assert client.gather(client.map(pid, range(4), timeout=PATIENCE, pure=False))
    assert client.run(pid) == before


@pytest.mark.parametrize("limit", [0, -1, "soon"])
def test_a_timeout_that_is_none_is_refused(client: Client, limit: Any) -> None:
    with pytest.raises(ValueError, match=r"0 seconds|time span"):
        client.submit(pid, timeout=limit)


def test_cancel_by_force_ends_what_runs(client: Client, tmp_path: Path) -> None:
    future = client.submit(spin, str(tmp_path))
    process = begun(tmp_path)
    client.cancel(future, force=True)
    with pytest.raises(CancelledError):
        future.result(timeout=PATIENCE)
    wait_gone(process)
    assert len(client.gather(client.map(pid, range(4), pure=False))) == 4


def test_cancel_lets_run_what_runs(client: Client, tmp_path: Path) -> None:
    future = client.submit(spin, str(tmp_path))
    process = begun(tmp_path)
    client.cancel(future)
    with pytest.raises(CancelledError):
        future.result(timeout=PATIENCE)
    os.kill(process, 0)
    os.kill(process, signal.SIGKILL)
    wait_gone(process)


def test_a_retired_worker_takes_nothing_with_it() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        data = client.scatter([bytearray([n]) * 300_000 for n in range(4)])
        results = client.map(bytes, range(100_000, 100_010))
        wait(results, timeout=PATIENCE)
        first, second = client.nthreads()
        gone = client.retire_workers(first)
        assert list(gone) == [first]
        assert list(client.nthreads()) == [second]
        assert [value[0] for value in client.gather(data)] == [0, 1, 2, 3]
        assert [len(value) for value in client.gather(results)] == list(range(100_000, 100_010))
        # at once, or when its node has said that it starts no other
        with pytest.raises(ZdistError, match=r"no worker would be left|is the only worker"):
            client.retire_workers(second)
        cluster.scale(2)
        client.wait_for_workers(2, timeout=PATIENCE)


def test_a_node_does_not_wait_for_a_broker_that_has_gone(ground: Ground) -> None:  # noqa: F811
    first, second = ground.node(), ground.node()
    with ground.client() as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        ground.settled(client, 2)
        client.submit(time.sleep, 60)
        first.terminate()
        read_until(first.stderr, b"node.draining")
        began = time.monotonic()
        ground.broker.close(PATIENCE)
        second.terminate()
        first.communicate(timeout=PATIENCE)
        second.communicate(timeout=PATIENCE)
        assert time.monotonic() - began < 15


def test_sigterm_drains_a_node(ground: Ground, tmp_path: Path) -> None:  # noqa: F811
    def held(folder: str) -> str:
        Path(folder, str(os.getpid())).touch()
        while not os.path.exists(folder + ".go"):
            time.sleep(0.01)
        return "finished"

    node = ground.node()
    with ground.client() as client:
        client.wait_for_workers(1, timeout=PATIENCE)
        ground.settled(client, 1)
        data = client.scatter(bytearray(300_000))
        running = client.submit(held, str(tmp_path))
        begun(tmp_path)
        other = ground.node()
        client.wait_for_workers(2, timeout=PATIENCE)
        node.terminate()
        read_until(node.stderr, b"node.draining")
        assert node.poll() is None
        Path(f"{tmp_path}.go").touch()
        node.communicate(timeout=PATIENCE)
        assert node.returncode == 0
        assert running.result(timeout=PATIENCE) == "finished"
        assert len(client.gather(data)) == 300_000
        assert other.poll() is None
    assert isinstance(other, subprocess.Popen)
