"""``python -m zdist.node`` beside a broker's process: how it ends, what it says, what it reports."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from zdist import Client, KilledWorker
from zdist.client.watching import Watcher
from zdist.cluster.children import Child, broker_command, node_command
from zdist.node.process import child_environment

PATIENCE = 20.0
LOGS = {"log_level": "info", "log_format": "json"}


class Ground:
    """A broker, and nodes as tests ask for them; all end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token_file = str(folder / "token")
        command = broker_command("tcp://127.0.0.1:0", token_file=self.token_file, log_level="error", log_format="json")
        self.broker = Child("the broker", [*command, "--lifeline"])
        self.address = self.broker.line(PATIENCE).split()[-1]
        self.nodes: list[subprocess.Popen[bytes]] = []

    def node(self, *more: str, token_file: str | None = None, workers: int = 1) -> subprocess.Popen[bytes]:
        command = node_command(
            self.address,
            name="alpha",
            workers=workers,
            threads=1,
            token_file=self.token_file if token_file is None else token_file,
            **LOGS,
        )
        node = subprocess.Popen(
            [*command, *more],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,
        )
        self.nodes.append(node)
        return node

    def client(self) -> Client:
        token = Path(self.token_file).read_text().strip()
        return Client(self.address, token=token, timeout=PATIENCE)

    def settled(self, client: Client, nodes: int) -> None:
        """Workers may be there before their nodes are: wait until the broker has heard of so many, of one worker each,
        and they of the broker."""
        watcher, end = Watcher(client), time.monotonic() + PATIENCE
        while watcher.look(PATIENCE)["nodes"] < nodes:
            assert time.monotonic() < end, "the nodes have not come"
        client.scale(nodes)  # which all of them confirm

    def end(self) -> None:
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.communicate(timeout=PATIENCE)
        self.broker.close(PATIENCE)


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    path = Path(tempfile.mkdtemp(prefix="zt-", dir="/tmp"))
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    ground = Ground(path)
    yield ground
    ground.end()
    shutil.rmtree(path)


def wait_gone(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE)[0], f"process {pid} is still there"
    finally:
        os.close(fd)


def read_until(stream: IO[bytes] | None, text: bytes) -> bytes:
    """Read a log until a text has come."""
    assert stream is not None
    got = b""
    while text not in got:
        assert select.select([stream], [], [], PATIENCE)[0], got
        data = os.read(stream.fileno(), 1 << 16)
        assert data, got
        got += data
    return got


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_node_and_its_workers(ground: Ground, number: signal.Signals) -> None:
    node = ground.node(workers=2)
    with ground.client() as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        pids = list(client.run(os.getpid).values())
        assert len(pids) == 2
        node.send_signal(number)
        assert node.wait(PATIENCE) == 0
        for pid in pids:
            wait_gone(pid)
        end = time.monotonic() + PATIENCE
        while client.scheduler_info()["workers"]:
            assert time.monotonic() < end, "the broker was not told"


def test_workers_end_with_a_node_that_is_killed(ground: Ground) -> None:
    node = ground.node(workers=2)
    with ground.client() as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        pids = list(client.run(os.getpid).values())
    assert len(pids) == 2 and all(os.path.exists(f"/proc/{pid}") for pid in pids)
    node.kill()
    for pid in pids:
        wait_gone(pid)


def busy() -> None:
    os.write(2, b"busy\n")
    while True:
        pass


def deaf() -> None:
    os.write(2, b"busy\n")
    ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock, so no signal handler of Python's runs


@pytest.mark.parametrize("task", [busy, deaf])
def test_a_busy_worker_does_not_hold_up_the_end(ground: Ground, task: Callable[[], None]) -> None:
    node = ground.node()
    with ground.client() as client:
        client.wait_for_workers(1, timeout=PATIENCE)
        ground.settled(client, 1)
        (pid,) = client.run(os.getpid).values()
        running = client.submit(task)
        read_until(node.stderr, b"busy")
        node.terminate()
        read_until(node.stderr, b"node.draining")
        node.terminate()  # the second means at once
        assert node.wait(PATIENCE) == 0
        wait_gone(pid)
        assert running.status == "pending"  # the order to end is not the task's fault


def test_a_wrong_token_ends_the_node_with_the_reason(ground: Ground) -> None:
    wrong = ground.folder / "wrong"
    wrong.write_text("f" * 32 + "\n")
    wrong.chmod(0o600)
    node = ground.node(token_file=str(wrong))
    _, log = node.communicate(timeout=PATIENCE)
    assert node.returncode == 1
    assert b'"event": "node.refused"' in log
    assert b"token" in log


def test_a_missing_token_file_is_named(ground: Ground) -> None:
    node = ground.node(token_file=str(ground.folder / "none"))
    _, log = node.communicate(timeout=PATIENCE)
    assert node.returncode == 1
    assert b"cannot read token file" in log


def test_what_workers_write_is_passed_on_and_stands_in_the_report(ground: Ground) -> None:
    def deadly() -> None:
        os.write(2, b"the end is near\n")
        os._exit(7)

    node = ground.node()
    with ground.client() as client:
        with pytest.raises(KilledWorker, match=r"exited with code 7; last lines:\n(.*\n)*.*the end is near"):
            client.submit(deadly).result(60)
        log = read_until(node.stderr, b"the end is near")
        assert b"worker.started" in log
        assert client.submit(abs, -1).result(PATIENCE) == 1


def test_tags_and_resources_reach_the_workers(ground: Ground) -> None:
    ground.node("--tag", "fast", "--resource", "gpu=2")
    with ground.client() as client:
        client.wait_for_workers(1, timeout=PATIENCE)
        (worker,) = client.scheduler_info()["workers"].values()
        assert list(worker["tags"]) == ["fast"]
        assert worker["resources"] == {"gpu": 2.0}
        assert worker["name"] == "alpha"
