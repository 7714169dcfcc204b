"""Shared memory between real processes: which values go that way, that nobody can change them, and what is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_functions as functions
import numpy as np
import psutil
import pytest
from cluster_checks import eventually, gone

from zdist import Client, LocalCluster, wait
from zdist.transport import shm
from zdist.transport.claims import USERS

LARGE = 1 << 20


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of its own in the place of /dev/shm for the processes that one test starts; empty at its end."""
    path = Path(tempfile.mkdtemp(prefix="zt-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZDIST_SHM_DIR", str(path))
        yield path
        try:
            gone(lambda: [item.name for item in path.iterdir()], "directories in shared memory")
        finally:
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def alone(place: Path, start: Callable[..., LocalCluster]) -> Iterator[Callable[..., tuple[LocalCluster, Client]]]:
    """Start a cluster and a client for one test, whose shared memory nobody else looks at."""
    clients: list[Client] = []

    def alone(workers: int = 1, **settings: Any) -> tuple[LocalCluster, Client]:
        cluster = start(n_workers=workers, threads_per_worker=1, **settings)
        clients.append(Client(cluster, set_as_default=False))
        clients[-1].wait_for_workers(workers, timeout=20)
        return cluster, clients[-1]

    yield alone
    for client in clients:
        client.close()


def paths(client: Client) -> Counter[str]:
    """Keys by the way that they came."""
    found: Counter[str] = Counter()
    for row in client.gather_report():
        found[row.path] += row.keys
    return found


def segments() -> list[str]:
    """Values in shared memory."""
    found = shm.root().glob(f"{shm.prefix()}*/*")
    return [str(path) for path in found if path.name != USERS and not path.name.startswith(shm.SPARE)]


def test_large_results_come_by_shared_memory_writable_and_private(client: Client) -> None:
    futures = client.map(functions.filled, range(6), [LARGE] * 6, pure=False)
    wait(futures)
    mine, again = client.gather(futures), client.gather(futures)
    assert paths(client) == {"shm": 12}
    for n, array in enumerate(mine):
        assert array.flags.writeable and (array == n).all()
        array[:] = -1
    assert all((array == n).all() for n, array in enumerate(again))
    assert [int(array[0]) for array in client.gather(futures)] == list(range(6))


def test_one_that_is_held_does_not_change_for_a_thousand_others(client: Client) -> None:
    kept = client.submit(functions.filled, 7, LARGE, pure=False).result()
    for start in range(0, 1000, 50):
        batch = client.gather(client.map(functions.filled, range(start, start + 50), [1 << 18] * 50, pure=False))
        assert [int(array[-1]) for array in batch] == list(range(start, start + 50))
        del batch
    assert (kept == 7).all()
    assert paths(client)["shm"] == 1001


@pytest.mark.parametrize("direct", [True, False])
def test_the_broker_is_kept_out_or_asked_for(client: Client, direct: bool) -> None:
    future = client.submit(functions.filled, 1, LARGE, pure=False)
    assert (client.gather(future, direct=direct) == 1).all()
    assert set(paths(client)) == {"shm" if direct else "relay"}


def test_paths_can_be_named(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False, gather_paths=("peer", "relay")) as client:
        futures = client.map(functions.filled, range(4), [LARGE] * 4, pure=False)
        assert [int(array[0]) for array in client.gather(futures)] == [0, 1, 2, 3]
        assert "shm" not in paths(client)
        assert not segments()
    with pytest.raises(ValueError, match="shm"):
        Client(cluster, gather_paths=("shared",))


def test_workers_hand_results_to_one_another(client: Client) -> None:
    one, two = client.scheduler_info()["workers"]
    made = client.submit(functions.filled, 5, LARGE, workers=[one], pure=False)
    changed = client.submit(functions.one_is_changed, made, workers=[two], pure=False)
    assert changed.result() == 6
    assert client.run(functions.ways_of_inputs, workers=[two])[two].get("shm", 0) >= 1
    assert (made.result() == 5).all()  # whose array was written to is the second worker's affair


def test_large_arguments_reach_workers_by_shared_memory_as_they_were(client: Client) -> None:
    before = sum(ways.get("shm", 0) for ways in client.run(functions.ways_of_inputs).values())
    array = np.arange(LARGE // 8)
    future = client.submit(functions.total, array, pure=False)
    array[:] = 0
    assert (future.result() == np.arange(LARGE // 8)).all()
    after = client.run(functions.ways_of_inputs).values()
    assert sum(ways.get("shm", 0) for ways in after) == before + 1


def test_scattered_data_is_mapped_by_every_worker(client: Client) -> None:
    before = {name: ways.get("shm", 0) for name, ways in client.run(functions.ways_of_inputs).items()}
    array = np.arange(LARGE // 8)
    future = client.scatter(array, broadcast=True)
    assert len(client.who_has([future])[future.key]) == 2
    after = {name: ways.get("shm", 0) for name, ways in client.run(functions.ways_of_inputs).items()}
    assert {name: after[name] - before[name] for name in before} == dict.fromkeys(before, 1)
    sums = [client.submit(functions.one_is_changed, future, workers=[name], pure=False) for name in before]
    assert client.gather(sums) == [1, 1]
    assert (client.gather(future) == array).all()


@pytest.mark.parametrize("direct", [None, False])
def test_a_result_is_gathered_while_its_worker_is_stuck(
    alone: Callable[..., Any], tmp_path: Path, direct: bool | None
) -> None:
    _, client = alone()
    ready = client.submit(functions.filled, 3, LARGE, pure=False)
    wait(ready)
    sign = tmp_path / "stuck"
    stuck = client.submit(functions.hold_the_lock, 6.0, str(sign), pure=False)
    eventually(sign.exists)
    array = client.gather(ready, direct=direct, timeout=3)
    assert not stuck.done()
    assert (array == 3).all()
    assert paths(client) == {"shm" if direct is None else "relay": 1}
    stuck.cancel()


def test_the_broker_looks_at_what_it_relays_no_longer_than_it_takes(alone: Callable[..., Any], place: Path) -> None:
    _, client = alone()
    futures = client.map(functions.filled, range(40), [4 * LARGE] * 40, pure=False)
    wait(futures)
    (worker,) = client.scheduler_info()["workers"].values()
    os.kill(worker["pid"], signal.SIGSTOP)
    try:
        assert [int(array[-1]) for array in client.gather(futures, direct=False, timeout=8)] == list(range(40))
    finally:
        os.kill(worker["pid"], signal.SIGCONT)
    brokers = [child for child in psutil.Process().children() if "zdist_broker" in " ".join(child.cmdline())]
    maps = [Path(f"/proc/{broker.pid}/maps") for broker in brokers]
    gone(lambda: [file for file in maps if str(place) in file.read_text()], "mappings of the broker")


@pytest.mark.parametrize("where", ["no room", "switched off", "nowhere", "closed to us"])
def test_other_ways_serve_where_there_is_none(
    where: str, alone: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "nowhere":
        monkeypatch.setenv("ZDIST_SHM_DIR", str(place / "nowhere"))
    elif where == "closed to us":
        monkeypatch.setenv("ZDIST_SHM_DIR", "/proc")
    limit = {"no room": LARGE // 2, "switched off": 0}.get(where)
    _, client = alone(shared_memory=limit)
    futures = client.map(functions.filled, range(4), [LARGE] * 4, pure=False)
    assert [int(array[0]) for array in client.gather(futures)] == [0, 1, 2, 3]
    assert set(paths(client)) <= {"peer", "relay"}
    argument = np.arange(LARGE // 8)
    assert (client.submit(functions.same, argument, pure=False).result() == argument).all()
    assert not [name for name in segments() if f"/{shm.prefix()}w-" in name]


def test_files_are_used_again_and_given_back_when_they_are_not(alone: Callable[..., Any], place: Path) -> None:
    _, client = alone()
    for n in range(20):
        array = client.submit(functions.filled, n, LARGE, pure=False).result()
        assert array.flags.writeable and (array == n).all()
        array[:] = -1
        del array
        assert len(list(place.glob(f"{shm.prefix()}w-*/*"))) <= 4
    gone(lambda: list(place.glob(f"{shm.prefix()}*/{shm.SPARE}*")), "spares")


def test_room_that_is_free_again_is_used_again(alone: Callable[..., Any]) -> None:
    _, client = alone(shared_memory=3 * LARGE)
    for n in range(5):
        futures = client.map(functions.filled, [n, n], [LARGE] * 2, pure=False)
        assert [int(array[0]) for array in client.gather(futures)] == [n, n]
        del futures
        eventually(lambda: not segments(), "an empty shared memory")
    assert paths(client) == {"shm": 10}


def test_what_nobody_wants_is_gone_and_arrays_stay(client: Client) -> None:
    future = client.submit(functions.filled, 9, LARGE, pure=False)
    array = future.result()
    scattered = client.scatter(np.arange(LARGE // 8), broadcast=True)
    assert len(segments()) >= 2
    key = future.key
    del future, scattered
    gone(segments, "segments")
    assert key not in client.who_has()
    assert (array == 9).all()


def test_nothing_is_left_when_a_cluster_closes(alone: Callable[..., Any], place: Path) -> None:
    cluster, client = alone(workers=2)
    futures = client.map(functions.filled, range(4), [LARGE] * 4, pure=False)
    data = client.scatter(np.arange(LARGE // 8), broadcast=True)
    arrays = client.gather(futures)
    assert len(list(place.iterdir())) == 3
    client.close()
    cluster.close()
    assert list(place.iterdir()) == []
    assert [int(array[0]) for array in arrays] == [0, 1, 2, 3]
    del futures, data


def test_a_node_removes_what_a_killed_worker_has_left(alone: Callable[..., Any], place: Path) -> None:
    _, client = alone()
    future = client.submit(functions.filled, 1, LARGE, pure=False)
    wait(future)
    (before,) = place.glob(f"{shm.prefix()}w-*")
    os.kill(client.submit(functions.worker_pid, pure=False).result(), signal.SIGKILL)
    gone(lambda: before.exists(), "the directory of the killed worker")
    assert (future.result(timeout=20) == 1).all()  # computed again


HOLDS = """
import sys, numpy, zdist
client = zdist.Client(sys.argv[1], token=sys.argv[2])
kept = client.submit(len, numpy.arange(1 << 17))
kept.result()
print("ready", flush=True)
sys.stdin.read()
"""


def test_killed_clients_and_nodes_are_swept_by_the_next_start(alone: Callable[..., Any], place: Path) -> None:
    cluster, client = alone()
    command = [sys.executable, "-c", HOLDS, cluster.broker_address, cluster.token]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert [path for path in segments() if f"/{shm.prefix()}c-" in path]
        process.kill()
    wait(client.submit(functions.filled, 1, LARGE, pure=False))
    workers = [worker["pid"] for worker in cluster.workers.values()]
    (node,) = {psutil.Process(pid).ppid() for pid in workers}
    for pid in [node, *workers]:
        os.kill(pid, signal.SIGKILL)
    gone(lambda: [pid for pid in [node, *workers] if psutil.pid_exists(pid) and alive(pid)], "processes")
    assert len(list(place.iterdir())) == 3  # that of the killed client, of the worker, and of our own client
    with LocalCluster(n_workers=0):
        eventually(lambda: len(list(place.iterdir())) == 1, "a swept shared memory")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_in_threads_share_memory_too(alone: Callable[..., Any], place: Path) -> None:
    cluster, client = alone(processes=False)
    assert (client.submit(functions.filled, 1, LARGE, pure=False).result() == 1).all()
    assert paths(client) == {"shm": 1}
    client.close()
    cluster.close()
    assert list(place.iterdir()) == []
