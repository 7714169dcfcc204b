"""What a client can ask of the cluster and do to it; how clients begin and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN, eventually

from zdist import (
    BrokerUnreachable,
    CancelledError,
    Client,
    ClusterClosed,
    LocalCluster,
    default_client,
    get_client,
    wait,
)


def test_scheduler_info(client: Client, cluster: LocalCluster) -> None:
    info = client.scheduler_info()
    assert info["address"] == cluster.broker_address == cluster.scheduler_address
    assert len(info["workers"]) == 2
    for address, worker in info["workers"].items():
        assert address.startswith(("ipc://", "tcp://"))
        assert worker["nthreads"] == 2 and worker["pid"] != os.getpid() and worker["name"]
    assert client.nthreads() == dict.fromkeys(info["workers"], 2)
    assert repr(client) == f"<Client: {client.name} running at {cluster.broker_address}>"


def test_who_has_what(client: Client) -> None:
    addresses = list(client.scheduler_info()["workers"])
    futures = {a: client.submit(functions.filled, i, 100_000, workers=[a]) for i, a in enumerate(addresses)}
    wait(list(futures.values()))
    assert {k: list(v) for k, v in client.who_has().items()} == {f.key: [a] for a, f in futures.items()}
    assert {k: list(v) for k, v in client.has_what().items()} == {a: [f.key] for a, f in futures.items()}
    first = futures[addresses[0]]
    assert list(client.who_has([first])) == [first.key]
    assert list(client.has_what([addresses[0]])) == [addresses[0]]


def test_wait_for_workers(client: Client) -> None:
    client.wait_for_workers(2, timeout=WITHIN)
    with pytest.raises(TimeoutError, match=r"\b3\b.*\b2\b|\b2\b.*\b3\b"):
        client.wait_for_workers(3, timeout=0.2)


def test_run(client: Client) -> None:
    pids = client.run(os.getpid)
    assert set(pids) == set(client.scheduler_info()["workers"]) and len(set(pids.values())) == 2
    one = next(iter(pids))
    assert client.run(functions.add, 1, y=2, workers=[one]) == {one: 3}
    assert client.run(lambda dask_worker: dask_worker.address) == {a: a for a in pids}
    with pytest.raises(ValueError, match="on purpose 5"):
        client.run(functions.fail, 5)


def test_worker_logs(client: Client) -> None:
    client.run(functions.log_something, "a line for the log")
    logs = client.get_worker_logs()
    assert set(logs) == set(client.scheduler_info()["workers"])
    assert all("a line for the log" in str(lines) for lines in logs.values())


def test_restart(start: Callable[..., LocalCluster], gate: functions.Gate) -> None:
    with Client(start(n_workers=2, threads_per_worker=1), set_as_default=False) as client:
        client.wait_for_workers(2)
        before = set(client.run(os.getpid).values())
        finished, running = client.submit(functions.inc, 1), client.submit(functions.wait_at, gate)
        wait(finished)
        ledger: Any = client._ledger
        ledger.window = (2, 1 << 20)
        unheard = client.map(functions.wait_at, [gate] * 4, "abcd")  # all but the first are not with the broker yet
        client.restart(timeout=WITHIN)
        for future in (finished, running, *unheard):
            with pytest.raises(CancelledError, match="restart"):
                future.result(timeout=20)
        client.wait_for_workers(2, timeout=WITHIN)
        after = set(client.run(os.getpid).values())
        assert len(after) == 2 and not before & after
        assert client.submit(functions.inc, 1).result(timeout=20) == 2


def test_scale(start: Callable[..., LocalCluster]) -> None:
    cluster = start(n_workers=1, threads_per_worker=1)
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1)
        result = client.submit(functions.filled, 5, 100_000)
        wait(result)
        cluster.scale(3)
        client.wait_for_workers(3, timeout=WITHIN)
        cluster.scale(1)
        eventually(lambda: len(client.scheduler_info()["workers"]) == 1, "one worker is left")
        assert client.gather(result, timeout=20)[0] == 5  # moved or computed again
        assert client.gather(client.map(functions.inc, range(100), pure=False)) == list(range(1, 101))


# --- beginning and end --------------------------------------------------------------------------------


def test_a_client_with_nothing_starts_a_cluster(nothing_left: object) -> None:
    with Client(n_workers=1, threads_per_worker=2, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WITHIN)
        assert list(client.nthreads().values()) == [2]
        address = client.cluster.broker_address
        assert client.submit(functions.inc, 1).result(timeout=20) == 2
    with pytest.raises(BrokerUnreachable):
        Client(address, timeout=0.5)


def test_a_closed_client(cluster: LocalCluster, gate: functions.Gate) -> None:
    client = Client(cluster, set_as_default=False)
    future = client.submit(functions.wait_at, gate)
    client.close()
    client.close()
    assert client.status == "closed"
    with pytest.raises(CancelledError, match="closed"):
        future.result(timeout=5)
    with pytest.raises(ClusterClosed, match="closed"):
        client.submit(functions.inc, 1)
    gate.open()


def test_the_default_client(cluster: LocalCluster) -> None:
    with Client(cluster) as outer:
        assert default_client() is get_client() is outer
        with Client(cluster) as inner:
            assert default_client() is inner
        assert default_client() is outer
    with pytest.raises(ValueError, match="no default client"):
        default_client()


def test_clients_at_an_address(cluster: LocalCluster) -> None:
    with Client(cluster.broker_address, token=cluster.token, name="by-address", set_as_default=False) as client:
        assert client.submit(functions.inc, 1).result(timeout=20) == 2


def test_a_client_that_goes_releases_what_it_held(cluster: LocalCluster, client: Client) -> None:
    with Client(cluster, set_as_default=False) as short:
        futures = short.map(functions.filled, range(4), [100_000] * 4, pure=False)
        wait(futures)
        assert sum(map(len, client.has_what().values())) == 4
    eventually(lambda: not any(client.has_what().values()), "the results are dropped")


def test_shutdown(start: Callable[..., LocalCluster]) -> None:
    cluster = start(n_workers=2, threads_per_worker=1)
    other = Client(cluster, set_as_default=False)
    with Client(cluster, set_as_default=False) as client:
        address = cluster.broker_address
        pids = [int(pid) for pid in client.run(os.getpid).values()]
        client.shutdown()
        assert client.status == "closed"
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the workers end")
    with pytest.raises(BrokerUnreachable, match=address):
        Client(address, token="t", timeout=0.5)
    with pytest.raises((CancelledError, ClusterClosed)):
        other.submit(functions.inc, 1).result(timeout=5)
    other.close()


def test_all_in_this_process(start: Callable[..., LocalCluster]) -> None:
    with Client(start(processes=False, threads_per_worker=2), set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WITHIN)
        assert client.submit(os.getpid).result(timeout=20) == os.getpid()
        assert client.gather(client.map(functions.inc, range(100))) == list(range(1, 101))
        assert client.submit(functions.fib, 6).result(timeout=30) == 8


def test_over_tcp(start: Callable[..., LocalCluster]) -> None:
    pytest.importorskip("numpy")
    with Client(start(n_workers=2, threads_per_worker=1, protocol="tcp"), set_as_default=False) as client:
        client.wait_for_workers(2, timeout=WITHIN)
        assert all(a.startswith("tcp://127.0.0.1:") for a in client.scheduler_info()["workers"])
        arrays = client.map(functions.filled, range(6), [1 << 20] * 6)
        for direct in (None, True, False):
            assert [int(a[-1]) for a in client.gather(arrays, direct=direct)] == list(range(6))


SCRIPT = """
import os, signal, threading
import cluster_functions as functions
from zdist import Client, LocalCluster

with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
    client.wait_for_workers(2)
    before = sorted(client.run(os.getpid).values())
    gate = functions.Gate({gate!r})
    future = client.submit(functions.wait_at, gate, "through")
    try:
        print("ready", flush=True)
        client.gather(future, timeout=60)
        print("not interrupted")
    except KeyboardInterrupt:
        gate.open()
        print("interrupted", client.gather(future, timeout=20), sorted(client.run(os.getpid).values()) == before)
"""


def test_ctrl_c_in_the_client_never_reaches_the_workers(gate: functions.Gate, nothing_left: object) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}
    script = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT.format(gate=gate.path))],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert script.stdout is not None and script.stdout.readline() == "ready\n"
        eventually(lambda: gate.arrived() == 1, "the task runs")
        os.killpg(script.pid, signal.SIGINT)
        out, err = script.communicate(timeout=60)
    finally:
        script.kill()
        script.wait()
    assert out == "interrupted through True\n", err


def test_statuses(cluster: LocalCluster) -> None:
    client: Any = Client(cluster, set_as_default=False)
    assert client.status == "running" and client.asynchronous is False
    client.close()
    assert client.status == "closed"
