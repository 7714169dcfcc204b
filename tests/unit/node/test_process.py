"""Worker processes as the node holds them, with a stand-in for the worker's program."""

from __future__ import annotations

import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from zdist import limits
from zdist.core import slot as slots
from zdist.errors import AddressRefused
from zdist.node import process as node_process
from zdist.node.process import Output, WorkerProcess, WorkerSettings, child_environment, python_command
from zdist.transport.host import host_id

SETTINGS = WorkerSettings(control="ipc:///tmp/none")


class Started:
    """Starts stand-in workers and ends them with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exits: queue.Queue[tuple[str, float]] = queue.Queue()
        self.workers: list[WorkerProcess] = []

    def __call__(self, code: str) -> WorkerProcess:
        (self.folder / "standin.py").write_text(code)
        worker = WorkerProcess(
            SETTINGS,
            "n-1",
            "w-1",
            "alpha-0",
            str(self.folder / "slot"),
            lambda session: self.exits.put((session, time.monotonic())),
        )
        self.workers.append(worker)
        return worker

    def end(self) -> None:
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
            worker.process.wait()
            worker.close()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(node_process, "WORKER_MODULE", "standin")
    started = Started(tmp_path)
    yield started
    started.end()


def read_until(worker: WorkerProcess, done: Callable[[bytes], bool]) -> bytes:
    end = time.monotonic() + 10
    out = b""
    os.set_blocking(worker.output, True)  # wait for the worker, not for a clock
    while not done(out):
        assert time.monotonic() < end, out
        data = worker.read()
        assert data is not None, out
        out += data
    os.set_blocking(worker.output, False)
    return out


def test_the_end_of_a_killed_worker_is_noticed_within_a_tenth_of_a_second(start: Started) -> None:
    delays = []
    for _ in range(5):  # this thread, too, may have to wait for a processor
        worker = start("print('up', flush=True)\nimport sys\nsys.stdin.read()")
        read_until(worker, lambda out: b"up\n" in out)
        killed = time.monotonic()
        worker.signal(signal.SIGKILL)
        session, noticed = start.exits.get(timeout=10)
        assert session == "w-1"
        assert worker.process.returncode == -9
        delays.append(noticed - killed)
    assert statistics.median(delays) < 0.1


def test_a_worker_ends_with_its_lifeline(start: Started) -> None:
    worker = start("import sys\nsys.stdin.read()\nraise SystemExit(5)")
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    start.exits.get(timeout=10)
    assert worker.process.returncode == 5


def test_the_last_lines_are_kept_also_one_without_an_end(start: Started) -> None:
    worker = start("import sys\nfor i in range(100): print('line', i)\nsys.stderr.write('\\xe4nd')\n")
    start.exits.get(timeout=10)
    passed_on = worker.rest()
    assert passed_on.splitlines()[0] == b"line 0"
    assert passed_on.endswith("\xe4nd\n".encode())
    lines = worker.lines()
    assert len(lines) == limits.LOG_TAIL
    assert lines[-2:] == ["line 99", "\xe4nd"]


def test_a_line_without_end_is_cut_at_the_limit(start: Started) -> None:
    worker = start(f"print('x' * {3 * limits.MAX_TEXT}, end='', flush=True)")
    got = read_until(worker, lambda out: len(out) > limits.MAX_TEXT) + worker.rest()
    start.exits.get(timeout=10)
    got += worker.rest()
    assert got.count(b"x") == 3 * limits.MAX_TEXT


def test_running_comes_from_the_slot_and_the_slot_is_removed(start: Started, tmp_path: Path) -> None:
    worker = start("pass")
    start.exits.get(timeout=10)
    assert worker.running() == []
    record = bytearray(slots.RECORD)
    slots.HEADER.pack_into(record, 0, 7, 8.5, 3, 1)
    record[slots.KEY : slots.KEY + 3] = b"key"
    (tmp_path / "slot").write_bytes(record)
    assert worker.running() == [("key", 7, 8.5)]
    worker.close()
    assert not (tmp_path / "slot").exists()


def test_the_environment_finds_zdist_and_allows_one_thread_per_library(start: Started) -> None:
    worker = start("import os, zdist; print(os.environ['OMP_NUM_THREADS'], zdist.__name__)")
    start.exits.get(timeout=10)
    assert worker.rest() == b"1 zdist\n"


def test_the_working_directory_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "zdist.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "argparse.py").write_text("raise SystemExit('shadowed')")
    done = subprocess.run(
        [*python_command("zdist.node"), "--help"],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        timeout=30,
    )
    assert b"Supervise" in done.stdout, done.stderr


def test_arguments_of_a_worker() -> None:
    settings = WorkerSettings(
        control="tcp://127.0.0.1:1",
        token_file="/t",
        threads=3,
        data_bind="ipc:///d/",
        memory_limit=1 << 30,
        shared_memory=0,
        tags=("a", "b"),
        resources=(("gpu", 2.0), ("mem", 2.0**33 + 1)),
        insecure=True,
    )
    assert " ".join(settings.arguments("n-1", "w-2", "alpha-0", "/s")) == (
        "--control tcp://127.0.0.1:1 --node n-1 --session w-2 --name alpha-0 --nthreads 3 --slot /s --token-file /t "
        "--data-bind ipc:///d/w-2 --memory-limit 1073741824 --shared-memory 0 --tag a --tag b --resource gpu=2 "
        "--resource mem=8589934593 --insecure"
    )


def test_data_sockets_listen_where_they_have_to_be_reached() -> None:
    assert WorkerSettings("tcp://127.0.0.1:1").bind() == ""
    assert WorkerSettings("ipc:///tmp/b").bind() == ""
    assert WorkerSettings("tcp://10.0.0.1:1", insecure=True).bind() == "tcp://0.0.0.0:0"
    assert WorkerSettings("tcp://127.0.0.1:1", advertise="10.0.0.2", insecure=True).bind() == "tcp://0.0.0.0:0"
    for settings in (WorkerSettings("tcp://10.0.0.1:1"), WorkerSettings("ipc:///b", data_bind="tcp://10.0.0.2:0")):
        with pytest.raises(AddressRefused, match="--insecure"):
            settings.bind()


def test_the_host_id_is_the_same_in_another_process() -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from zdist.transport.host import host_id; print(host_id())"],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert other.stdout.strip() == host_id()
    assert len(host_id()) == 16


# --- passing output on ----------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as reader, open(write, "wb", buffering=0) as writer:
        yield reader, writer


def test_output_never_waits_for_a_slow_reader_and_loses_nothing(pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    read, write = pipe
    output = Output(write.fileno())
    sent = b"".join(b"%06d\n" % i for i in range(200_000))
    for start in range(0, len(sent), 70_000):
        output.write(sent[start : start + 70_000])
        output.flush()  # would hang here if it waited
    assert output.full
    got: list[bytes] = []

    def take() -> None:
        while data := read.read(1 << 16):
            got.append(data)

    reader = threading.Thread(target=take)
    reader.start()
    while output.pending:
        output.flush(1.0)
    assert not output.full
    write.close()
    reader.join(10)
    assert b"".join(got) == sent


def test_output_to_a_reader_that_is_gone_is_dropped(pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    read, write = pipe
    read.close()
    output = Output(write.fileno())
    output.write(b"lost\n")
    output.flush()
    output.write(b"lost\n")
    assert not output.pending
