"""``zdist doctor`` as a person runs it: processes, exit codes, what is printed."""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ZDIST = [sys.executable, "-P", "-m", "zdist"]
DEADLINE = 60.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    monkeypatch.delenv("ZDIST_TOKEN", raising=False)
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``zdist …`` in the background and wait for its first line of output, if it is to print one."""
    with contextlib.ExitStack() as stack:

        def start(*args: str) -> subprocess.Popen[str]:
            process = subprocess.Popen([*ZDIST, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            stack.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def address_of(broker: subprocess.Popen[str]) -> str:
    assert broker.stdout is not None
    assert select.select([broker.stdout], [], [], DEADLINE)[0], "it prints nothing"
    found = re.search(r"\w+://\S+", broker.stdout.readline())
    assert found is not None
    return found[0]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ZDIST, *args], capture_output=True, text=True, timeout=DEADLINE, check=False)


def wait_for(address: str, workers: int) -> None:
    from zdist import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=DEADLINE)


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_healthy_cluster(start: Start, scheme: str, tmp_path: Path) -> None:
    bind = "tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/broker"
    address = address_of(start("broker", "--bind", bind))
    start("worker", address, "--nworkers", "2", "--name", "here")
    wait_for(address, 2)
    done = run("doctor", address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reachable" in done.stdout and "All is well." in done.stdout
    assert "here-0" in done.stdout and "here-1" in done.stdout
    assert done.stderr == ""
    found = json.loads(run("doctor", address, "--json").stdout)
    assert found["ok"] and len(found["workers"]) == 2
    assert all(worker["peer"]["state"] == worker["relay"]["state"] == "open" for worker in found["workers"])


def test_a_wrong_advertised_address(start: Start) -> None:
    address = address_of(start("broker", "--bind", "tcp://127.0.0.1:0"))
    start("worker", address, "--nworkers", "1", "--insecure", "--advertise", "no-such-host.invalid")
    wait_for(address, 1)
    done = run("doctor", address)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "'no-such-host.invalid' does not resolve" in done.stdout
    assert "--advertise IP" in done.stdout and "data goes through the broker" in done.stdout


def test_a_broker_that_is_stopped_or_gone(start: Start, tmp_path: Path) -> None:
    broker = start("broker", "--bind", f"ipc://{tmp_path}/broker")
    address = address_of(broker)
    broker.send_signal(signal.SIGSTOP)
    done = run("doctor", address, "--timeout", "0.5")
    assert done.returncode == 2 and "says nothing" in done.stdout and "stopped" in done.stdout
    broker.send_signal(signal.SIGCONT)
    broker.terminate()
    assert broker.wait(DEADLINE) == 0
    done = run("doctor", address, "--json")
    assert done.returncode == 2
    assert [problem["fault"] for problem in json.loads(done.stdout)["problems"]] == ["broker-missing"]


def test_a_token_that_is_missing(start: Start, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = address_of(start("broker", "--bind", "tcp://127.0.0.1:0"))
    elsewhere = runtime / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(elsewhere))
    done = run("doctor", address)
    assert done.returncode == 1 and "token" in done.stdout and "--token-file" in done.stdout
    (token,) = runtime.glob("token-*")
    assert "no worker is connected" in run("doctor", address, "--token-file", str(token)).stdout


def test_help_tells_the_exit_codes() -> None:
    done = run("doctor", "--help")
    assert done.returncode == 0 and "Exit code 0" in done.stdout and "--token-file" in done.stdout
    assert "doctor" in run("--help").stdout
    assert run("doctor", "nonsense").returncode == 2
