"""Brokers, workers and programs that start in any order, stop, come back and are killed."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import pickle
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

import zdist
from zdist import CancelledError, Client, Event, LocalCluster, Lock, Queue, log, wait
from zdist.node.process import child_environment

PATIENCE = 30.0
ZDIST = [sys.executable, "-P", "-m", "zdist"]


def wait_for_nodes(client: Client, count: int) -> None:
    """A node starts its workers before it connects, so they may be there first."""
    end = time.monotonic() + PATIENCE
    while client.counts()["nodes"] < count:
        assert time.monotonic() < end


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="zt-", dir="/tmp"))
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    monkeypatch.delenv("ZDIST_TOKEN", raising=False)
    yield path
    shutil.rmtree(path)


class Program:
    """A command in the background, and what it writes to standard error, as it comes."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment(), start_new_session=True
        )
        self.log = b""

    def says(self, pattern: str, more: int = 0) -> re.Match[str]:
        """Wait until it has written this, after ``more`` characters."""
        assert self.process.stderr is not None
        end = time.monotonic() + PATIENCE
        while (found := re.compile(pattern).search(self.log.decode(), more)) is None:
            left = max(0.0, end - time.monotonic())
            data = b""
            if select.select([self.process.stderr], [], [], left)[0]:
                data = os.read(self.process.stderr.fileno(), 1 << 16)
            assert data, f"{pattern} is not in:\n{self.log.decode()}"
            self.log += data
        return found

    def rest(self) -> str:
        """All that it has written, once it has ended."""
        _, err = self.process.communicate(timeout=PATIENCE)
        self.log += err
        return self.log.decode()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log records of this kind so far."""
        lines = [line for line in self.log.decode().splitlines() if line.startswith("{")]
        return [record for record in map(json.loads, lines) if record["event"] == name]


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    with contextlib.ExitStack() as stack:

        def run(*args: str) -> Program:
            program = Program([*ZDIST, *args])
            stack.callback(end, program)
            return program

        yield run


def end(program: Program) -> None:
    program.process.terminate()
    try:
        program.process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        program.process.kill()
        program.process.communicate()


@pytest.fixture
def shown() -> Iterator[io.StringIO]:
    """What this process logs."""
    stream = io.StringIO()
    before = log.settings()
    log.configure("console", "warning", stream=stream)
    yield stream
    log.configure(*before)


@pytest.fixture
def address() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


def wait_gone(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE)[0], f"process {pid} is still there"
    finally:
        os.close(fd)


# --- any order ----------------------------------------------------------------------------------------


def test_workers_and_clients_may_come_before_the_first_broker(start: Callable[..., Program], address: str) -> None:
    worker = start("worker", address, "--nworkers", "1")
    worker.says("broker.away")
    results: list[int] = []

    def program() -> None:
        with Client(address, timeout=PATIENCE, set_as_default=False) as client:
            results.append(client.submit(abs, -7).result(PATIENCE))

    thread = threading.Thread(target=program)
    thread.start()
    worker.says("no broker has answered for 2 s")
    broker = start("broker", "--bind", address)
    thread.join(PATIENCE)
    assert results == [7]
    worker.says("broker.back")
    assert len(worker.events("broker.away")) == 1
    broker.process.terminate()
    broker.rest()
    assert "warning" not in {record["level"] for record in broker.events("peer.refused")}  # that is no complaint


# --- a broker that stops -------------------------------------------------------------------------------


def test_a_broker_that_is_stopped_says_so_and_its_successor_does_the_work(
    start: Callable[..., Program], address: str, tmp_path: Path, shown: io.StringIO
) -> None:
    gate = tmp_path / "gate"

    def wait_for_gate(path: str) -> str:
        while not os.path.exists(path):
            time.sleep(0.01)
        return "through"

    broker = start("broker", "--bind", address)
    worker = start("worker", address, "--nworkers", "1")
    with Client(address, timeout=PATIENCE, set_as_default=False) as client:
        future = client.submit(wait_for_gate, str(gate))
        client.wait_for_workers(1, timeout=PATIENCE)
        wait_for_nodes(client, 1)  # else it would not hear the goodbye
        broker.process.send_signal(signal.SIGTERM)
        assert broker.process.wait(PATIENCE) == 0
        said = worker.says("was stopped.*broker.away")
        assert f"the broker at {address} was stopped" in said.string
        with pytest.raises(TimeoutError, match=f"the broker at {address} was stopped"):
            future.result(1.0)
        assert shown.getvalue().count("broker.away") == 1
        assert f"the broker at {address} was stopped" in shown.getvalue()
        successor = start("broker", "--bind", address)
        worker.says("broker.back")
        gate.touch()
        assert client.gather(future) == "through"
        assert shown.getvalue().count("broker.back") == 1
    assert len(worker.events("broker.away")) == 1
    successor.process.terminate()
    successor.rest()


def test_the_end_of_a_local_cluster_is_the_end_of_its_clients_futures() -> None:
    cluster = LocalCluster(n_workers=1, threads_per_worker=1)
    client = Client(cluster, set_as_default=False)
    future = client.submit(time.sleep, 60)
    cluster.close()
    with pytest.raises(CancelledError, match="the cluster was shut down: the program that started it has closed it"):
        future.result(PATIENCE)
    client.close()


# --- kill -9 ------------------------------------------------------------------------------------------


def test_the_workers_of_a_killed_node_say_goodbye_and_their_tasks_run_elsewhere(
    start: Callable[..., Program], tmp_path: Path, runtime: Path
) -> None:
    """At once: the broker does not have to wait for the end of the node's lease."""

    def first_time_long(mark: str) -> int:
        if os.path.exists(mark):
            return os.getppid()
        open(mark, "w").close()
        os.write(2, b"it has begun\n")
        time.sleep(600)
        return 0

    broker = start("broker", "--bind", "tcp://127.0.0.1:0")
    assert broker.process.stdout is not None
    address = broker.process.stdout.readline().decode().split()[-1]
    nodes = {name: start("worker", address, "--nworkers", "1", "--name", name) for name in ("left", "right")}
    with Client(address, timeout=PATIENCE, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        wait_for_nodes(client, 2)
        future = client.submit(first_time_long, str(tmp_path / "mark"), workers=["left"], allow_other_workers=True)
        nodes["left"].says("it has begun")
        nodes["left"].process.kill()
        assert future.result(PATIENCE) == nodes["right"].process.pid
        assert [worker["name"] for worker in client.scheduler_info()["workers"].values()] == ["right"]
        assert client.counts()["nodes"] == 1
    broker.says("node.left.*its workers say that it has ended")
    left = list(runtime.glob("node-*"))
    assert len(left) == 2
    third = start("worker", address, "--nworkers", "1", "--name", "third")
    third.says("worker.started")
    assert len([path for path in left if path.exists()]) == 1  # the living one's
    assert len(list(runtime.glob("node-*"))) == 2


def test_nothing_is_lost_or_computed_again_when_the_broker_is_killed(
    start: Callable[..., Program], address: str, tmp_path: Path, shown: io.StringIO
) -> None:
    """Twice: results on workers, scattered data, what runs (it runs on), what is made of them; queues and locks."""
    log_file, gate = tmp_path / "runs", tmp_path / "gate"

    def note(name: str) -> None:
        fd = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{name}\n".encode())
        os.close(fd)

    def make(i: int) -> bytes:
        note(f"make {i}")
        return bytes([i]) * 100_000

    def length(value: bytes) -> int:
        note("length")
        return len(value)

    def wait_for_gate() -> str:
        note("gate")
        while not os.path.exists(gate):
            time.sleep(0.01)
        return "through"

    broker = start("broker", "--bind", address)
    start("worker", address, "--nworkers", "2", "--nthreads", "2")
    with Client(address, timeout=PATIENCE, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        data = client.scatter(b"d" * 50_000)
        made = client.map(make, range(100), pure=False)
        lengths = client.map(length, made[:10], pure=False)
        assert client.gather(lengths) == [100_000] * 10
        wait(made, timeout=PATIENCE)
        open_ = client.submit(wait_for_gate, pure=False)
        queue, lock = Queue("left", client), Lock("held", client)
        assert lock.acquire()
        client.publish_dataset(made=made[:3])
        for i in range(6):
            queue.put(i)
        for i in range(2):
            assert queue.get(batch=2) == [2 * i, 2 * i + 1]
            broker.process.kill()
            broker.process.wait()
            broker = start("broker", "--bind", address)
            after = client.submit(length, made[20], pure=False)
            assert after.result(PATIENCE) == 100_000
            assert client.submit(length, data, pure=False).result(PATIENCE) == 50_000
        assert client.gather(made) == [bytes([i]) * 100_000 for i in range(100)]
        assert queue.get(batch=True) == [4, 5]
        assert Lock("held", client).acquire(blocking=False) is False
        assert [f.key for f in client.get_dataset("made")] == [f.key for f in made[:3]]
        lock.release()
        gate.touch()
        assert open_.result(PATIENCE) == "through"
    runs = Counter(log_file.read_text().splitlines())
    assert runs == Counter({f"make {i}": 1 for i in range(100)} | {"length": 14, "gate": 1})


def test_who_works_on_shared_state_waits_no_longer_than_it_said_while_the_broker_is_away(
    start: Callable[..., Program], address: str, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it did not wait for was not done."""
    broker = start("broker", "--bind", address)
    start("worker", address, "--nworkers", "1")
    with Client(address, timeout=PATIENCE, set_as_default=False) as client:
        wait_for_nodes(client, 1)  # it keeps a copy of the state
        queue, lock, set_ = Queue("left", client), Lock("free", client), Event("set", client)
        queue.put(1)
        set_.set()
        broker.process.kill()
        broker.process.wait()
        monkeypatch.setattr("zdist.client.sharing.NOTICE", 0.1)
        with pytest.raises(TimeoutError, match=r"get of queue left: not within 0\.1 s; the broker .* not answer"):
            queue.get(timeout=0.1)
        with pytest.raises(TimeoutError, match="put of queue left"):
            queue.put(2, timeout=0.1)
        assert lock.acquire(timeout=0.1) is False and set_.wait(timeout=0.1) is False
        start("broker", "--bind", address)
        assert queue.get(batch=True) == [1]
        assert Lock("free", client).acquire(blocking=False) and set_.wait(timeout=PATIENCE)


def test_finished_futures_are_there_for_others_after_the_broker_was_killed(
    start: Callable[..., Program], address: str, shown: io.StringIO
) -> None:
    """One that its client holds with its value, one in the result of a task, and one that only a queue refers to."""

    def returns_a_future(value: bytes) -> Any:
        inner = zdist.get_client().submit(bytes.upper, value, pure=False)
        inner.result()
        return inner

    broker = start("broker", "--bind", address)
    start("worker", address, "--nworkers", "1")
    with (
        Client(address, timeout=PATIENCE, set_as_default=False) as maker,
        Client(address, timeout=PATIENCE, set_as_default=False) as other,
    ):
        wait_for_nodes(maker, 1)
        mine = maker.submit(bytes.upper, b"mine", pure=False)
        assert mine.result(PATIENCE) == b"MINE"
        outer = other.submit(returns_a_future, b"inner", pure=False)
        with Client(address, timeout=PATIENCE, set_as_default=False) as passing:
            queued = passing.submit(bytes.upper, b"queued", pure=False)
            wait([outer, queued], timeout=PATIENCE)
            Queue("left", passing).put(queued)
            del queued
        pickled = pickle.dumps(mine)
        broker.process.kill()
        broker.process.wait()
        start("broker", "--bind", address)
        with other.as_current():
            assert pickle.loads(pickled).result(PATIENCE) == b"MINE"
        assert Queue("left", other).get(timeout=PATIENCE).result(PATIENCE) == b"QUEUED"
        assert outer.result(PATIENCE).result(PATIENCE) == b"INNER"


def test_a_worker_that_holds_its_interpreter_while_the_broker_is_replaced_loses_nothing(
    start: Callable[..., Program], address: str, tmp_path: Path, shown: io.StringIO
) -> None:
    """It comes back long after all others."""
    log_file = tmp_path / "runs"

    def hold(seconds: int) -> int:
        with open(log_file, "a") as file:
            file.write("hold\n")
        os.write(2, b"it has begun\n")
        ctypes.PyDLL(None).sleep(seconds)
        return seconds

    def make(size: int) -> bytes:
        with open(log_file, "a") as file:
            file.write("make\n")
        return b"m" * size

    broker = start("broker", "--bind", address)
    worker = start("worker", address, "--nworkers", "1", "--nthreads", "1")
    with Client(address, timeout=PATIENCE, set_as_default=False) as client:
        wait_for_nodes(client, 1)
        made = client.submit(make, 100_000)
        data = client.scatter(b"d" * 100_000)
        wait([made], timeout=PATIENCE)
        held = client.submit(hold, 5)
        worker.says("it has begun")
        broker.process.kill()
        broker.process.wait()
        start("broker", "--bind", address)
        assert held.result(PATIENCE) == 5
        assert client.gather([made, data]) == [b"m" * 100_000, b"d" * 100_000]
    assert Counter(log_file.read_text().splitlines()) == {"make": 1, "hold": 1}


def test_a_future_from_another_client_outlives_that_client_and_the_broker(
    start: Callable[..., Program], address: str, tmp_path: Path, shown: io.StringIO
) -> None:
    """Its task, and one that it is made of, are not finished when nobody is left who has submitted them."""
    gate = tmp_path / "gate"

    def wait_for_gate() -> int:
        while not os.path.exists(gate):
            time.sleep(0.01)
        return 6

    def times(value: int, factor: int) -> int:
        return value * factor

    broker = start("broker", "--bind", address)
    start("worker", address, "--nworkers", "1", "--nthreads", "2")
    with Client(address, timeout=PATIENCE, set_as_default=False) as taker:
        with Client(address, timeout=PATIENCE, set_as_default=False) as maker:
            Queue("futures", maker).put(maker.submit(times, maker.submit(wait_for_gate, pure=False), 7, pure=False))
            future = Queue("futures", taker).get(timeout=PATIENCE)
        broker.says("client.left")
        assert taker.submit(times, 2, 3, pure=False).result(PATIENCE) == 6  # and what it was told came before that
        for _ in range(2):
            broker.process.kill()
            broker.process.wait()
            broker = start("broker", "--bind", address)
            assert taker.submit(times, 2, 3, pure=False).result(PATIENCE) == 6
        assert future.status == "pending"
        gate.touch()
        assert future.result(PATIENCE) == 42


def test_actors_outlive_a_killed_broker_and_their_calls_are_done_once(
    start: Callable[..., Program], address: str, tmp_path: Path, shown: io.StringIO
) -> None:
    class Notes:
        def __init__(self, gate: str) -> None:
            self.gate, self.notes = gate, list[int]()

        def note(self, n: int) -> int:
            self.notes.append(n)
            return n

        def wait(self) -> str:
            while not os.path.exists(self.gate):
                time.sleep(0.01)
            return "through"

    broker = start("broker", "--bind", address)
    start("worker", address, "--nworkers", "1")
    with (
        Client(address, timeout=PATIENCE, set_as_default=False) as client,
        Client(address, timeout=PATIENCE, set_as_default=False, gather_paths=["relay"]) as through_the_broker,
    ):
        future = client.submit(Notes, str(tmp_path / "gate"), actor=True)
        actor = future.result(PATIENCE)
        lost = through_the_broker.submit(Notes, str(tmp_path / "gate"), actor=True).result(PATIENCE)
        stuck = [actor.wait(), lost.wait()]
        calls = [[handle.note(n) for n in range(100)] for handle in (actor, lost)]
        assert calls[0][0].done() is False
        broker.process.kill()
        broker.process.wait()
        calls[1] += [lost.note(100)]
        broker = start("broker", "--bind", address)
        (tmp_path / "gate").touch()
        assert [call.result(PATIENCE) for call in stuck] == ["through"] * 2
        assert [[call.result(PATIENCE) for call in made] for made in calls] == [list(range(100)), list(range(101))]
        assert actor.notes == list(range(100)) and lost.notes == list(range(101))
        assert client.submit(lambda handle: handle.note(7).result(), future, pure=False).result(PATIENCE) == 7


def test_tokens_of_killed_brokers_are_swept_a_day_later_and_those_of_free_ports_go_with_theirs(
    start: Callable[..., Program], runtime: Path
) -> None:
    def up() -> Program:
        broker = start("broker", "--bind", "tcp://127.0.0.1:0")
        assert broker.process.stdout is not None
        assert broker.process.stdout.readline()
        return broker

    second = up()
    (kept,) = runtime.glob("token-*")
    first = up()
    (token,) = set(runtime.glob("token-*")) - {kept}
    first.process.kill()
    first.rest()
    third = up()
    assert token.exists()  # for the next one at this address
    os.utime(token, (0, 0))
    fourth = up()
    assert not token.exists() and len(list(runtime.glob("token-*"))) == 3
    for broker in (second, third, fourth):
        broker.process.terminate()
        broker.rest()
    assert list(runtime.iterdir()) == []


# --- addresses and names --------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [True, False])
def test_a_local_cluster_on_tcp_is_found_by_address(processes: bool, runtime: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, protocol="tcp", processes=processes) as cluster:
        address = cluster.broker_address
        program = f"from zdist import Client\nwith Client({address!r}) as c: print(c.submit(abs, -7).result())"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=child_environment()
        )
        assert done.stdout == "7\n", done.stderr
    assert list(runtime.iterdir()) == []


def test_two_nodes_of_one_name_have_workers_of_different_names(start: Callable[..., Program]) -> None:
    broker = start("broker", "--bind", "tcp://127.0.0.1:0")
    assert broker.process.stdout is not None
    address = broker.process.stdout.readline().decode().split()[-1]
    for _ in range(2):
        start("worker", address, "--nworkers", "2", "--name", "twin")
    with Client(address, timeout=PATIENCE, set_as_default=False) as client:
        client.wait_for_workers(4, timeout=PATIENCE)
        names = sorted(worker["name"] for worker in client.scheduler_info()["workers"].values())
        assert names == ["twin-0", "twin-0~2", "twin-1", "twin-1~2"]

        def own_name() -> str:
            from zdist import get_worker

            return str(get_worker().name)

        for name in names:
            assert client.submit(own_name, workers=[name], pure=False).result(PATIENCE) == name
