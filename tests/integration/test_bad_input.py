"""Bad input: each is a clear error, and the cluster goes on working, as the client fixture checks after each test."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster_functions as functions
import msgpack
import pytest
import zmq
from cluster_checks import eventually, still_works

from zdist import (
    AuthenticationError,
    BrokerUnreachable,
    Client,
    ConfigError,
    KeyConflict,
    LocalCluster,
    RemoteError,
    SerializationError,
    VersionMismatch,
)
from zdist.protocol.messages import PROTOCOL

# --- what cannot be pickled ----------------------------------------------------------------------------


def test_an_unpicklable_function(client: Client) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"function .*uses_a_lock.*lock"):

        def uses_a_lock() -> bool:
            return lock.locked()

        client.submit(uses_a_lock)


def test_an_unpicklable_argument(client: Client) -> None:
    with pytest.raises(SerializationError, match=r"argument.*same.*lock"):
        client.submit(functions.same, threading.Lock())
    with pytest.raises(SerializationError, match=r"argument.*same.*lock"):
        client.map(functions.same, [1, 2, threading.Lock()])


def test_an_unpicklable_result(client: Client) -> None:
    future = client.submit(functions.return_unpicklable)
    with pytest.raises(SerializationError, match=rf"{future.key}.*lock"):
        future.result(timeout=20)


def test_an_unpicklable_result_may_feed_a_task_of_the_same_worker(client: Client) -> None:
    worker = next(iter(client.scheduler_info()["workers"]))
    lock = client.submit(functions.return_unpicklable, workers=[worker], pure=False)
    assert client.submit(lambda x: x.locked(), lock, workers=[worker], pure=False).result(timeout=20) is False


def test_a_function_that_cannot_be_loaded_on_the_worker(client: Client) -> None:
    future = client.submit(functions.Explosive(), 1)
    with pytest.raises(Exception, match="cannot be loaded here") as caught:
        future.result(timeout=20)
    assert isinstance(caught.value, SerializationError | ImportError)
    assert "Explosive" in str(caught.value) or "function" in str(caught.value)


def test_an_argument_that_cannot_be_loaded_on_the_worker(client: Client) -> None:
    future = client.submit(functions.same, functions.Explosive())
    with pytest.raises((SerializationError, ImportError), match="cannot be loaded here"):
        future.result(timeout=20)


def test_a_result_that_cannot_be_loaded_at_the_client(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = client.submit(functions.return_explosive), client.submit(functions.inc, 1)
    monkeypatch.setenv("ZDIST_TEST_CLIENT", "1")
    with pytest.raises((SerializationError, ImportError), match="cannot be loaded at the client"):
        bad.result(timeout=20)
    assert good.result(timeout=20) == 2
    assert client.gather([good, bad], errors="skip") == [2]


def test_an_exception_that_cannot_be_pickled(client: Client) -> None:
    future = client.submit(functions.raise_unpicklable)
    with pytest.raises(RemoteError, match=r"Hopeless.*of a class that cannot be pickled") as caught:
        future.result(timeout=20)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "in raise_unpicklable" in text  # its traceback


def test_an_exception_with_unpicklable_attributes(client: Client) -> None:
    with pytest.raises(functions.LockError, match="holds a lock"):
        client.submit(functions.raise_with_a_lock).result(timeout=20)


# --- who is (not) there --------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "ipc:///tmp/zdist-nobody-here"])
def test_no_broker_at_the_address(client: Client, address: str) -> None:
    start = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=rf"{address}.*0\.5") as caught:
        Client(address, timeout=0.5, set_as_default=False)
    assert time.monotonic() - start < 5
    assert "zdist broker" in str(caught.value)  # what to do


@pytest.mark.parametrize("address", ["http://localhost:1", "tcp://", "nonsense", "tcp://127.0.0.1:99999", "", "ipc://"])
def test_an_address_that_is_none(client: Client, address: str) -> None:
    with pytest.raises(ValueError, match=r"is no broker address; write tcp://HOST:PORT"):
        Client(address, timeout=0.5, set_as_default=False)


@pytest.fixture
def mute_server() -> Iterator[str]:
    """Something that listens and is no broker."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_no_broker_behind_an_open_port(client: Client, mute_server: str) -> None:
    with pytest.raises(BrokerUnreachable, match=mute_server):
        Client(mute_server, timeout=0.5, token="t", set_as_default=False)


def test_a_broker_of_another_protocol_version(client: Client) -> None:
    answered = threading.Event()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def answer() -> None:
            poller = zmq.Poller()
            poller.register(router, zmq.POLLIN)
            while not answered.is_set():
                if poller.poll(50):
                    hop = router.recv_multipart()[0]
                    router.send_multipart([hop, msgpack.packb([PROTOCOL + 41, "b-0", 0, 0, []])])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(VersionMismatch, match=rf"\b{PROTOCOL + 41}\b.*\b{PROTOCOL}\b"):
                Client(f"tcp://127.0.0.1:{port}", timeout=5, token="t", set_as_default=False)
        finally:
            answered.set()
            thread.join()


def test_a_peer_of_another_version_is_refused_with_both_named(client: Client, cluster: LocalCluster) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(cluster.broker_address)
        peer.send(msgpack.packb([PROTOCOL + 41, "c-0123456789abcdef", 0, 0, []]))
        assert peer.poll(10_000)
        answer = b" ".join(peer.recv_multipart())
        assert str(PROTOCOL + 41).encode() in answer and f"version {PROTOCOL}".encode() in answer


def not_there(path: Path) -> str:
    raise FileNotFoundError(2, "No such file or directory", str(path))


@pytest.mark.parametrize("token", [None, "wrong", "x" * 10_000])
def test_a_wrong_or_missing_token(
    client: Client, cluster: LocalCluster, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is None:  # none to be found anywhere
        monkeypatch.setattr("zdist.transport.security.Path.read_text", not_there)
    with pytest.raises(AuthenticationError, match=r"token") as caught:
        Client(cluster.broker_address, token=token, timeout=5, set_as_default=False)
    assert cluster.broker_address in str(caught.value)


def test_a_worker_with_a_wrong_token_is_refused(client: Client, cluster: LocalCluster, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong\n")
    token.chmod(0o600)
    worker = subprocess.run(
        [sys.executable, "-c", "import sys; from zdist.cli import main; sys.exit(main())",
         "worker", cluster.broker_address, "--nworkers", "1", "--token-file", str(token)],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert worker.returncode != 0 and "token" in worker.stderr + worker.stdout
    assert len(client.scheduler_info()["workers"]) == 2


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_a_port_in_use(client: Client, mute_server: str) -> None:
    broker = subprocess.run(
        [sys.executable, "-m", "zdist_broker", "--bind", mute_server],
        env=environment(), capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    output = broker.stderr + broker.stdout
    assert broker.returncode != 0
    assert mute_server in output and "in use" in output and "Traceback" not in output


# --- garbage ----------------------------------------------------------------------------------------

GARBAGE = [
    [b""],
    [b"GET / HTTP/1.1\r\n\r\n"],
    [os.urandom(1000)],
    [msgpack.packb([PROTOCOL])],
    [msgpack.packb([PROTOCOL, "c-0", 1, 0, [[9999, 1]]])],
    [msgpack.packb([PROTOCOL, "c-0", 1, 0, [[0, "x"] * 50]])],
    [msgpack.packb([PROTOCOL, "c-0", 1 << 62, -5, []])],
    [msgpack.packb({"a": 1}), b"frame"] * 20,
    [b"\x91" * 5000],
    [pickle.dumps({"a": 1})],
]


@pytest.mark.parametrize("which", ["control", "worker"])
def test_garbage_from_a_zmq_peer(client: Client, cluster: LocalCluster, which: str) -> None:
    address = cluster.broker_address if which == "control" else next(iter(client.scheduler_info()["workers"]))
    with zmq.Context() as context:
        for frames in GARBAGE:
            with context.socket(zmq.DEALER) as peer:
                peer.linger = 1000
                peer.connect(address)
                for _ in range(3):
                    peer.send_multipart(frames)
    still_works(client)
    arrays = client.map(functions.filled, range(4), [100_000] * 4, pure=False)
    assert [int(a[0]) for a in client.gather(arrays, direct=True)] == list(range(4))


def test_garbage_from_a_raw_connection(start: Callable[..., LocalCluster]) -> None:
    with Client(start(n_workers=1, protocol="tcp"), set_as_default=False) as client:
        client.wait_for_workers(1)
        for address in (client.cluster.broker_address, *client.scheduler_info()["workers"]):
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"\xff" + b"\x00" * 8 + b"\x01\x7f"):
                with socket.create_connection((host, int(port)), timeout=5) as peer:
                    peer.sendall(data)
        still_works(client)


# --- misuse -----------------------------------------------------------------------------------------


def test_futures_of_another_cluster(client: Client, start: Callable[..., LocalCluster]) -> None:
    with Client(start(n_workers=1), set_as_default=False) as other:
        foreign, mine = other.submit(functions.inc, 1), client.submit(functions.inc, 2)
        for use in (
            lambda: client.gather([mine, foreign]),
            lambda: client.gather(foreign),
            lambda: client.submit(functions.inc, foreign),
        ):
            with pytest.raises(ValueError, match=r"another cluster|belongs to") as caught:
                use()
            text = str(caught.value)
            assert client.cluster.broker_address in text and other.cluster.broker_address in text
        assert foreign.result(timeout=20) == 2
        still_works(other)


def test_a_key_given_again_for_other_work(client: Client, gate: functions.Gate) -> None:
    first = client.submit(functions.wait_at, gate, "first", key="taken")
    for again in (
        lambda: client.submit(functions.wait_at, gate, "other", key="taken"),
        lambda: client.submit(functions.inc, 1, key="taken"),
    ):
        with pytest.raises(KeyConflict, match=r"'?taken'?.*"):
            again().result(timeout=20)
    same = client.submit(functions.wait_at, gate, "first", key="taken")
    gate.open()
    assert first.result(timeout=20) == same.result(timeout=20) == "first"


def test_a_name_given_to_other_data_by_another_client(client: Client, second: Client) -> None:
    kept = client.scatter({"named": 1})["named"]
    with pytest.raises(KeyConflict, match="named"):
        second.scatter({"named": 2})["named"].result(timeout=20)
    assert second.scatter({"named": 1})["named"].result(timeout=20) == kept.result(timeout=20) == 1


def test_a_key_given_again_by_another_client(client: Client, second: Client, gate: functions.Gate) -> None:
    first = client.submit(functions.wait_at, gate, "first", key="ours")
    eventually(lambda: gate.arrived() == 1, "the first one runs")
    with pytest.raises(KeyConflict, match="ours"):
        second.submit(functions.inc, 1, key="ours").result(timeout=20)
    gate.open()
    assert first.result(timeout=20) == "first"


def test_a_freed_key_may_be_given_again(client: Client) -> None:
    for i in range(5):
        assert client.submit(functions.inc, i, key="reused").result(timeout=20) == i + 1


@pytest.mark.parametrize("key", ["", "x" * 5000, 5])
def test_keys_that_are_none(client: Client, key: object) -> None:
    with pytest.raises((ValueError, TypeError), match="key"):
        client.submit(functions.inc, 1, key=key)  # type: ignore[arg-type]


def test_bad_options(client: Client) -> None:
    with pytest.raises((ValueError, TypeError), match="retries"):
        client.submit(functions.inc, 1, retries=-1)
    with pytest.raises((ValueError, TypeError), match="resources"):
        client.submit(functions.inc, 1, resources={"GPU": "many"})
    with pytest.raises(ValueError, match="key"):
        client.map(functions.inc, range(3), key=["only", "two"])
    with pytest.raises(TypeError, match="takes iterables after the function, got int: 5"):
        client.map(functions.add, [1], 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="priority='high' must be a whole number"):
        client.submit(functions.inc, 1, priority="high")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="named by one text or several, got 3"):
        client.submit(functions.inc, 1, workers=3)


def test_a_client_with_unknown_settings(client: Client) -> None:
    with pytest.raises(TypeError, match="n_wrokers"):
        Client(n_wrokers=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("borker: {}\n", ["borker: unknown key", 'did you mean "broker"', "nodes"]),
        ("nodes:\n  - wrokers: 3\n", ["nodes[0].wrokers", 'did you mean "nworkers"']),
        ("client:\n  timeout: soon\n", ["client.timeout", "number", "'soon'"]),
        ("a: [\n", ["not valid YAML"]),
        ("- 1\n", ["no mapping"]),
    ],
)
def test_a_yaml_file_with_mistakes(client: Client, tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Client.from_yaml(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_an_argument_list_that_never_ends_well(client: Client) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("no more input")

    with pytest.raises(LookupError, match="no more input"):
        client.map(functions.inc, broken())
