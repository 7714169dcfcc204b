"""``zdist top``: figures for programs, the table on paper, and the screen of a terminal with its keys."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zdist import Client, LocalCluster, wait

ZDIST = [sys.executable, "-P", "-m", "zdist"]
DEADLINE = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        runtime = tmp_path_factory.mktemp("top")
        runtime.chmod(0o700)
        patch.setenv("ZDIST_RUNTIME_DIR", str(runtime))
        patch.delenv("ZDIST_TOKEN", raising=False)
        with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
            yield cluster


class Screen:
    """``zdist top`` in a pseudo-terminal of 40 lines."""

    def __init__(self, address: str, *options: str) -> None:
        self.screen, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.before = termios.tcgetattr(end)
        self.end = end
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {
            "TERM": "xterm"
        }
        self.process = subprocess.Popen(
            [*ZDIST, "top", address, *options], stdin=end, stdout=end, stderr=end, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.seen = ""

    def until(self, text: str) -> None:
        """Read until this has been drawn since the last call."""
        deadline = time.monotonic() + DEADLINE
        while text not in (shown := re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen)):
            assert time.monotonic() < deadline, f"{text!r} was not drawn: {shown[-3000:]}"
            if select.select([self.screen], [], [], 1.0)[0]:
                self.seen += os.read(self.screen, 1 << 16).decode(errors="replace")
        self.seen = ""

    def press(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def over(self) -> int:
        """Its exit code; the terminal is as it was."""
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.screen], [], [], 0.1)[0]:
                self.seen += os.read(self.screen, 1 << 16).decode(errors="replace")
        assert termios.tcgetattr(self.end) == self.before
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)
        os.close(self.end)


def boom() -> None:
    raise ValueError("as the test wants it")


def linger(path: str) -> None:
    Path(path + ".there").touch()
    while not os.path.exists(path):
        time.sleep(0.01)


def top(address: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ZDIST, "top", address, *options], capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL
    )


def test_json_for_programs(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=DEADLINE)
        futures = [client.submit(bytes, 10_000 + n) for n in range(20)]
        failed = client.submit(boom)
        wait([*futures, failed])
        assert top(cluster.broker_address, "--json", "--interval", "0.1").returncode == 0  # workers load what answers
        run = top(cluster.broker_address, "--json", "--interval", "0.1")
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert found["broker"]["address"] == cluster.broker_address and found["broker"]["uptime"] > 0
    assert (found["clients"], found["nodes"]) == (2, 1)
    assert found["tasks"]["total"] == 21 and (found["tasks"]["memory"], found["tasks"]["failed"]) == (20, 1)
    assert found["completed"] >= 20 and found["failed"] == 1
    assert found["per_second"] == {"completed": 0.0, "failed": 0.0, "relay_bytes": 0.0}
    (failure,) = found["failures"]
    assert failure == {"number": 1, "key": failed.key, "text": "ValueError: as the test wants it"}
    assert any("worker.joined" in record["line"] for record in found["log"])
    assert len(found["workers"]) == 2 and sum(worker["held"] for worker in found["workers"]) == 20
    for worker in found["workers"]:
        assert worker["status"] == "running" and worker["nthreads"] == 1 and worker["per_second"] == 0.0
        assert worker["memory"] > 1_000_000 and worker["stored"] > worker["held"] * 10_000 - 1
        assert worker["cpu"] >= 0 and worker["spilled"] == 0 and worker["completed"] >= worker["held"]


def test_without_a_terminal_the_table_is_printed_once(cluster: LocalCluster) -> None:
    run = top(cluster.broker_address, "--interval", "0.1")
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout and f"broker {cluster.broker_address}" in run.stdout
    assert "2 workers with 2 threads on 1 nodes" in run.stdout and "local-1" in run.stdout


def test_the_screen_and_its_keys(cluster: LocalCluster, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    with Client(cluster) as client:
        future = client.submit(linger, gate, key="lingering", workers="local-0")
        screen = Screen(cluster.broker_address, "--interval", "0.2")
        try:
            screen.until("worker ▾")
            screen.press("s")
            screen.until("status ▾")
            screen.press("1")
            screen.press("\r")
            screen.until("call stack of lingering")
            screen.until("in linger")
            screen.press("\x1b")
            screen.until("status ▾")
            screen.press("q")
            assert screen.over() == 0
        finally:
            screen.close()
            Path(gate).touch()
        future.result(timeout=DEADLINE)


def test_the_broker_goes_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    address = f"ipc://{tmp_path}/broker"

    def broker() -> subprocess.Popen[str]:
        process = subprocess.Popen([*ZDIST, "broker", "--bind", address], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline()
        return process

    first = broker()
    screen = Screen(address, "--interval", "0.1")
    try:
        screen.until("0 workers")
        first.kill()
        screen.until("the broker does not answer")
        second = broker()
        try:
            screen.until("up 00:00:0")
            screen.press("\x03")  # Ctrl-C
            assert screen.over() == 0
        finally:
            second.send_signal(signal.SIGTERM)
            second.communicate()
    finally:
        screen.close()
        first.kill()
        first.communicate()
