"""LocalCluster with real processes: how it starts, what it survives, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zdist import Client, ClusterClosed, KilledWorker, LocalCluster
from zdist.node.process import child_environment

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own, which must be empty in the end."""
    path = Path(tempfile.mkdtemp(prefix="zt-", dir="/tmp"))  # a short path, for sockets
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    yield path
    left = sorted(str(file.relative_to(path)) for file in path.rglob("*"))
    shutil.rmtree(path)
    assert left == []


def wait_gone(pid: int, timeout: float = PATIENCE) -> None:
    """Wait until a process that need not be our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], timeout)[0], f"process {pid} is still there after {timeout} s"
    finally:
        os.close(fd)


def pids(cluster: LocalCluster) -> list[int]:
    parts: Any = cluster._parts
    workers = [worker["pid"] for worker in cluster.workers.values()]
    assert all(workers)
    return [parts.broker.process.pid, parts.node.process.pid, *workers]


def script(code: str, *, stdin: bool = False, folder: Path | None = None) -> subprocess.Popen[str]:
    """Run a program that uses zdist, in a session of its own."""
    command = [sys.executable, "-"] if stdin else [sys.executable, "-c", code]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
        cwd=folder,
        start_new_session=True,
    )
    assert process.stdin is not None
    if stdin:
        process.stdin.write(code)
        process.stdin.close()
    return process


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):  # and nothing beyond: what a buffer has taken in, select does not see
        assert select.select([process.stdout], [], [], PATIENCE)[0], "the program has said nothing"
        piece = os.read(process.stdout.fileno(), 1)
        assert piece, f"the program has ended after {line!r}"
        line += piece
    return line.decode()


# --- the ordinary life -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["ipc", "tcp"])
def test_runs_and_leaves_nothing(protocol: str, runtime: Path) -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, protocol=protocol) as cluster:
        assert cluster.broker_address.startswith(protocol + "://")
        assert cluster.scheduler_address == cluster.broker_address
        assert cluster.status == "running"
        with Client(cluster) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
            assert client.gather(client.map(lambda x: x * x, range(20))) == [x * x for x in range(20)]
            addresses = list(client.scheduler_info()["workers"])
            assert all(address.startswith(protocol + "://") for address in addresses)
        assert sorted(cluster.workers) == ["local-0", "local-1"]
        processes = pids(cluster)
    assert cluster.status == "closed"
    for pid in processes:
        wait_gone(pid, 0)
    assert list(runtime.iterdir()) == []
    cluster.close()
    with pytest.raises(ClusterClosed, match="is closed"):
        cluster.broker_address  # noqa: B018


def test_scale_up_and_down() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(1, timeout=PATIENCE)
        cluster.scale(3)
        client.wait_for_workers(3, timeout=PATIENCE)
        gone = [worker["pid"] for name, worker in cluster.workers.items() if name != "local"]
        assert len(gone) == 2
        cluster.scale(1)
        for pid in gone:
            wait_gone(pid)
        assert client.submit(os.getpid, pure=False).result(PATIENCE) not in gone


def test_async_cluster_and_client() -> None:
    async def main() -> list[int]:
        async with (
            LocalCluster(n_workers=1, threads_per_worker=1, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            return list(await client.gather(client.map(abs, [-1, -2])))

    assert asyncio.run(main()) == [1, 2]


def test_threads_only() -> None:
    before = threading.active_count()
    with LocalCluster(processes=False, threads_per_worker=2) as cluster, Client(cluster) as client:
        assert client.submit(os.getpid).result(PATIENCE) == os.getpid()
        assert client.gather(client.map(abs, range(-50, 0))) == list(range(50, 0, -1))
        assert len(cluster.workers) == 1
    end = time.monotonic() + PATIENCE
    for thread in threading.enumerate():
        if thread.name.startswith("zdist"):
            thread.join(max(0.0, end - time.monotonic()))
    assert threading.active_count() <= before


# --- workers die ------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_the_work_completes() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        victim = cluster.workers["local-1"]["pid"]
        futures = client.map(lambda x: (time.sleep(0.002), x)[1], range(400), pure=False)
        os.kill(victim, signal.SIGKILL)
        wait_gone(victim)
        assert client.gather(futures) == list(range(400))
        end = time.monotonic() + PATIENCE
        while cluster.workers.get("local-1", {}).get("pid") in (None, 0, victim):
            assert time.monotonic() < end, "it was not replaced"
            threading.Event().wait(0.01)
        client.wait_for_workers(2, timeout=PATIENCE)
        assert cluster.workers["local-1"]["pid"] != victim


def test_a_task_that_kills_its_workers_says_how_and_where() -> None:
    def deadly() -> None:
        print("the end is near", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        with pytest.raises(
            KilledWorker, match=r"worker local \(pid \d+ on host .+\) was killed by signal 9 \(SIGKILL\)"
        ):
            client.submit(deadly).result(60)
        assert client.submit(abs, -1).result(PATIENCE) == 1


# --- the program ends however it ends -----------------------------------------------------------------

CRASH = """
import json, os, sys
from zdist import Client, LocalCluster
cluster = LocalCluster(n_workers=2, threads_per_worker=1)
client = Client(cluster)
client.wait_for_workers(2)
parts = cluster._parts
pids = [parts.broker.process.pid, parts.node.process.pid] + [w["pid"] for w in cluster.workers.values()]
print(json.dumps(pids), flush=True)
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("raise ValueError('crash')", 1),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), 9)", -9),
        ("os.abort()", -6),
    ],
)
def test_everything_ends_with_the_program(ending: str, code: int, runtime: Path) -> None:
    program = script(CRASH + ending)
    processes = json.loads(read_line(program))
    assert len(processes) == 4
    assert program.wait(PATIENCE) == code
    for pid in processes:
        wait_gone(pid)
    for directory in runtime.glob("local-*"):  # a killed program cannot tidy up; the next cluster does
        os.utime(directory, (0, 0))
    LocalCluster(n_workers=0).close()


def test_ctrl_c_reaches_the_program_and_not_the_workers() -> None:
    program = script(
        CRASH
        + """
import time
future = client.submit(lambda: (time.sleep(1), os.getpid())[1])
try:
    print("waiting", flush=True)
    client.submit(time.sleep, 60).result()
except KeyboardInterrupt:
    print(json.dumps([future.result(20), sorted(w["pid"] for w in cluster.workers.values())]), flush=True)
client.close(); cluster.close()
"""
    )
    processes = json.loads(read_line(program))
    assert read_line(program) == "waiting\n"
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    ran_at, workers = json.loads(read_line(program))
    assert sorted(processes[2:]) == workers
    assert ran_at in workers
    assert program.wait(PATIENCE) == 0


@pytest.mark.parametrize("stdin", [False, True])
def test_a_script_needs_no_guard(stdin: bool, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    code = """
import beside
from zdist import Client
print("once", flush=True)
def quadruple(x):
    return beside.double(beside.double(x))
with Client(n_workers=1, threads_per_worker=1) as client:
    print(client.gather(client.map(quadruple, range(3))), client.submit(beside.double, 4).result(), flush=True)
"""
    program = script(code, stdin=stdin, folder=tmp_path)
    assert program.stdout is not None
    assert program.stdout.read() == "once\n[0, 4, 8] 8\n"
    assert program.wait(PATIENCE) == 0


def test_a_forked_child_neither_ends_the_cluster_nor_keeps_it_alive() -> None:
    program = script(
        CRASH
        + """
sys.stdout.flush()
child = os.fork()
if child == 0:
    sys.exit(0)  # runs the exit handlers
os.waitpid(child, 0)
print(client.submit(abs, -7).result(20), flush=True)
lasting = os.fork()
if lasting == 0:
    os.close(1); os.close(2)
    import time
    time.sleep(30)
    os._exit(0)
print(lasting, flush=True)
os._exit(0)
"""
    )
    processes = json.loads(read_line(program))
    assert read_line(program) == "7\n"
    lasting = int(read_line(program))
    try:
        assert program.wait(PATIENCE) == 0
        for pid in processes:
            wait_gone(pid)
        os.kill(lasting, 0)
    finally:
        os.kill(lasting, signal.SIGKILL)
    for directory in Path(os.environ["ZDIST_RUNTIME_DIR"]).glob("local-*"):
        os.utime(directory, (0, 0))
    wait_gone(lasting)
    LocalCluster(n_workers=0).close()


# --- what cannot be --------------------------------------------------------------------------------


def test_a_broker_that_is_gone_is_told() -> None:
    with LocalCluster(n_workers=0) as cluster:
        broker = pids(cluster)[0]
        os.kill(broker, signal.SIGKILL)
        wait_gone(broker)
        assert cluster.status == "failed"
        with pytest.raises(ClusterClosed, match=rf"the broker \(pid {broker}\) has ended with code -9"):
            cluster.scale(1)
    assert cluster.status == "closed"
