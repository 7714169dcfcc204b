"""zdist doctor: every way in which something can be closed, told apart, on real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from cluster_checks import eventually
from cluster_functions import Gate, wait_at

from zdist import Client, LocalCluster
from zdist.cli.doctor import as_data
from zdist.client.diagnosis import Diagnosis, PathState, diagnose
from zdist.worker.process import Settings, Worker
from zdist_broker.server import BrokerServer

SOON = 1.0  # seconds for what does not answer


def faults(found: Diagnosis) -> list[str]:
    return [problem.fault for problem in found.problems]


@pytest.fixture
def free_address() -> Iterator[str]:
    """Where nobody listens; nor is anybody else given this port meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    """Of the broker of this test, where nobody looks by himself."""
    return str(tmp_path / "token")


@pytest.fixture
def server(nothing_left: Path, token_file: str) -> Iterator[BrokerServer]:
    server = BrokerServer("tcp://127.0.0.1:0", token_file=token_file)
    server.start()
    yield server
    server.stop()


Join = Callable[..., Worker]


@pytest.fixture
def join(server: BrokerServer) -> Iterator[Join]:
    """Workers of this process, which may claim an address or a host that is not theirs."""
    workers: list[Worker] = []

    def join(name: str, *, claims: str = "", host: str = "", broker: BrokerServer = server) -> Worker:
        worker = Worker(Settings(broker.address, broker.token, name=name))
        worker.machine.address = claims or worker.address
        worker.machine.host = host or worker.machine.host
        worker.start()
        workers.append(worker)
        eventually(lambda: any(w.name == name for w in broker.machine.tables.workers.values()), f"{name} joins")
        return worker

    yield join
    for worker in workers:
        worker.close(reason="the test is over")


Look = Callable[..., Diagnosis]


@pytest.fixture
def look(server: BrokerServer, token_file: str) -> Look:
    """The doctor at the test's broker."""

    def look(**options: Any) -> Diagnosis:
        return diagnose(server.address, **{"token_file": token_file, "timeout": 5.0, **options})

    return look


def peer_of(found: Diagnosis, name: str) -> PathState:
    (worker,) = [worker for worker in found.workers if worker.name == name]
    return worker.peer


# --- all is well -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "ipc"])
def test_a_cluster_in_good_health(start: Callable[..., LocalCluster], protocol: str, tmp_path: Path) -> None:
    cluster = start(n_workers=2, threads_per_worker=1, protocol=protocol)
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(cluster.token)
    with Client(cluster, set_as_default=False) as observer:
        observer.wait_for_workers(2, timeout=20)
        before = observer.counts()
        said: list[str] = []
        found = diagnose(cluster.broker_address, token_file=str(token), tell=said.append)
        assert (found.code, found.problems) == (0, [])
        broker = found.broker
        assert broker.reachable and broker.round_trip is not None and 0 < broker.round_trip < 5
        assert broker.rate is not None and broker.rate > 1e5
        assert sorted(worker.name for worker in found.workers) == sorted(
            info["name"] for info in observer.scheduler_info()["workers"].values()
        )
        for worker in found.workers:
            assert worker.same_host and worker.peer.state == worker.relay.state == worker.shm.state == "open"
            assert worker.peer.round_trip is not None and 0 < worker.peer.round_trip < 5
            assert worker.peer.rate is not None and worker.peer.rate > 1e5
            assert worker.relay.rate is not None and worker.relay.rate <= broker.rate
        assert any("measuring" in text for text in said)
        eventually(lambda: observer.counts() == before, "nothing is left behind")


def test_busy_workers_are_looked_at_and_not_disturbed(server: BrokerServer, look: Look, join: Join, gate: Gate) -> None:
    join("busy")
    with Client(server.address, token=server.token, set_as_default=False) as client:
        future = client.submit(wait_at, gate)
        eventually(gate.arrived, "the task runs")
        found = look()
        assert found.code == 0 and peer_of(found, "busy").rate
        assert not future.done()
        gate.open()
        future.result(timeout=20)


def test_what_it_finds_is_json(server: BrokerServer, look: Look, join: Join) -> None:
    join("one")
    data = json.loads(json.dumps(as_data(look())))
    assert data["ok"] is True and data["code"] == 0 and data["problems"] == []
    assert data["broker"]["address"] == server.address and data["broker"]["round_trip_ms"] > 0
    (worker,) = data["workers"]
    assert worker["name"] == "one" and worker["peer"]["state"] == "open" and worker["peer"]["mb_per_second"] > 0


def test_shared_memory_that_cannot_be(
    look: Look, join: Join, monkeypatch: pytest.MonkeyPatch, nothing_left: Path
) -> None:
    """That is nothing that is wrong, so it is no problem; but it is said."""
    join("far", host="another")
    (far,) = look().workers
    assert (far.shm.state, far.shm.text) == ("no", "no: it runs on another host")
    join("near")
    found = look()
    (near,) = [worker for worker in found.workers if worker.name == "near"]
    assert near.shm.state == "open"
    monkeypatch.setenv("ZDIST_CLIENT__SHARED_MEMORY", "0")
    found = look()
    (near,) = [worker for worker in found.workers if worker.name == "near"]
    assert near.shm.state == "no" and "switched off" in near.shm.text and found.code == 0


# --- the broker ---------------------------------------------------------------------------------------------


def test_no_broker(free_address: str, tmp_path: Path) -> None:
    assert faults(diagnose(free_address, timeout=SOON)) == ["broker-refused"]
    assert faults(diagnose(f"ipc://{tmp_path}/none", timeout=SOON)) == ["broker-missing"]
    unresolved = diagnose("tcp://no-such-host.invalid:7077", timeout=SOON)
    assert faults(unresolved) == ["broker-unresolved"]
    assert unresolved.code == 2 and not unresolved.broker.reachable and unresolved.problems[0].advice


def test_another_program_at_the_address() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        found = diagnose(f"tcp://127.0.0.1:{sock.getsockname()[1]}", timeout=0.3)
    assert (found.code, faults(found)) == (2, ["broker-mute"])


def test_the_wrong_socket_of_the_cluster(server: BrokerServer, join: Join) -> None:
    worker = join("one")
    for address in (server.bulk_address, worker.address):
        found = diagnose(address, timeout=SOON)
        assert (found.code, faults(found)) == (2, ["broker-stranger"])
        assert "does not answer as a zdist broker" in found.problems[0].text


def test_no_address() -> None:
    with pytest.raises(ValueError, match="no broker address"):
        diagnose("http://nonsense")


def test_tokens(look: Look, tmp_path: Path) -> None:
    assert faults(look(token_file=None)) == ["token-missing"]
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("not it")
    found = look(token_file=str(wrong))
    assert (found.code, faults(found)) == (1, ["token-wrong"]) and found.broker.reachable
    wrong.chmod(0o644)
    assert faults(look(token_file=str(wrong))) == ["token-file"]
    assert faults(look(token_file=str(tmp_path / "none"))) == ["token-file"]


@contextlib.contextmanager
def broker_of_another_version() -> Iterator[str]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        port = sock.bind_to_random_port("tcp://127.0.0.1")
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                if sock.poll(20):
                    sock.send_multipart([sock.recv_multipart()[0], msgpack.packb([99, "", 0, 0, []])])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            over.set()
            thread.join()


def test_another_version() -> None:
    with broker_of_another_version() as address:
        found = diagnose(address)
    assert (found.code, faults(found)) == (1, ["version"])
    assert "99" in found.problems[0].text


def test_no_workers(look: Look) -> None:
    found = look()
    assert (found.code, faults(found)) == (1, ["no-workers"]) and found.broker.round_trip


def test_a_closed_relay(server: BrokerServer, look: Look, join: Join, free_address: str) -> None:
    """Only the control port is open: rates of peer paths are measured all the same."""
    join("one")
    server.endpoint.info["bulk"] = free_address
    found = look()
    assert (found.code, faults(found)) == (1, ["relay-closed"])
    assert found.broker.rate is None and peer_of(found, "one").rate


# --- the workers ------------------------------------------------------------------------------------------------


def test_closed_peer_paths(look: Look, join: Join, free_address: str, tmp_path: Path) -> None:
    join("good")
    join("refused", claims=free_address)
    join("nameless", claims="tcp://no-such-host.invalid:4000")
    join("elsewhere", claims=free_address.replace("127.0.0.1", "127.0.0.3"), host="another")
    join("unlinked", claims=f"ipc://{tmp_path}/none")
    found = look()
    assert found.code == 1
    assert {problem.where: problem.fault for problem in found.problems} == {
        "refused": "peer-refused",
        "nameless": "peer-unresolved",
        "elsewhere": "peer-loopback",
        "unlinked": "peer-missing",
    }
    assert peer_of(found, "good").state == "open"
    for worker in found.workers:
        assert worker.relay.state == "open" and worker.relay.rate, worker
    advice = {problem.where: problem.advice for problem in found.problems}
    assert "--advertise HOST" in advice["refused"] and "--data-ports LO-HI" in advice["refused"]
    assert "--advertise" in advice["nameless"] and "--advertise HOST" in advice["elsewhere"]


def test_addresses_at_which_others_answer(look: Look, join: Join) -> None:
    first = join("first")
    join("second", claims=first.address)  # two nodes behind one NAT
    other = BrokerServer("tcp://127.0.0.1:0", token="another")
    other.start()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        try:
            foreign = join("foreign", broker=other)
            join("moved", claims=foreign.address)
            join("silent", claims=f"tcp://127.0.0.1:{port}")
            found = look()
            foreign.close()
        finally:
            other.stop()
    assert {problem.where: problem.fault for problem in found.problems} == {
        "second": "peer-stranger",
        "moved": "peer-token",
        "silent": "peer-silent",
    }
    assert peer_of(found, "first").state == "open"


def test_a_worker_behind_a_firewall(look: Look, join: Join) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # its queue is full, so the kernel drops what comes
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        join("dropped", claims=f"tcp://127.0.0.1:{full.getsockname()[1]}")
        found = look(timeout=SOON)
    assert faults(found) == ["peer-dropped"]
    assert "does not answer" in found.problems[0].text and "--data-ports" in found.problems[0].advice
