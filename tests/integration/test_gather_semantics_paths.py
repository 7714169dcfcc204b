"""What gather promises of ways and interruptions: direct=, Ctrl-C, callers that disturb nobody, memory, bad values."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import eventually

from zdist import Client, ConfigError, LocalCluster, PeerUnreachable, SerializationError, wait

SOCKETS = ("peer", "relay")  # shared memory would make the peer path needless


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a loaded machine may need longer for its answer to a probe than a program should wait."""
    monkeypatch.setattr("zdist.core.probes.PROBE_TIMEOUT", 2.0)


@pytest.fixture
def peer_client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, gather_paths=SOCKETS, set_as_default=False) as client:
        client.wait_for_workers(2)
        yield client


def made(client: Client, n: int = 4, nbytes: int = 200_000, worker: str | None = None) -> list[Any]:
    futures = client.map(functions.filled, range(n), [nbytes] * n, workers=worker and [worker], pure=False)
    wait(futures)
    return futures


def firsts(arrays: Any) -> list[int]:
    return [int(array[0]) for array in arrays]


@contextlib.contextmanager
def unreachable(address: str) -> Iterator[None]:
    """Nobody can connect to this worker's own socket meanwhile."""
    path = address.removeprefix("ipc://")
    os.rename(path, path + ".away")
    try:
        yield
    finally:
        os.rename(path + ".away", path)


def ways(client: Client) -> set[str]:
    return {batch.path for batch in client.gather_report().last}


# --- direct= ---------------------------------------------------------------------------------------------


def test_true_is_peer_to_peer_and_false_through_the_broker(peer_client: Client) -> None:
    futures = made(peer_client)
    for direct, way in ((True, "peer"), (False, "relay"), (True, "peer")):
        assert firsts(peer_client.gather(futures, direct=direct)) == [0, 1, 2, 3]
        assert ways(peer_client) == {way}


@pytest.mark.parametrize("lazily", [False, True])
def test_true_meets_a_closed_path_with_one_warning_for_each_worker(cluster: LocalCluster, lazily: bool) -> None:
    with Client(cluster, gather_paths=SOCKETS, set_as_default=False) as client:
        client.wait_for_workers(2)
        workers = client.scheduler_info()["workers"]
        closed, open_ = workers
        futures = [*made(client, 6, worker=closed), *made(client, 2, worker=open_)]
        with unreachable(closed), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if lazily:
                got = firsts(client.gather(iter(futures), direct=True))
            else:
                got = firsts(client.gather(futures, direct=True))
        assert got == [0, 1, 2, 3, 4, 5, 0, 1]
        (warning,) = caught
        text = str(warning.message)
        assert text.startswith(f"direct=True, but {workers[closed]['name']} went by the relay: ")
        reason = text.rpartition(": ")[2]
        assert len(reason) > 5 and warning.filename == __file__  # the line that called gather


def test_true_meets_a_closed_path_with_an_error_where_the_client_says_so(cluster: LocalCluster) -> None:
    with Client(cluster, gather_paths=SOCKETS, fallback="error", set_as_default=False) as client:
        client.wait_for_workers(2)
        workers = client.scheduler_info()["workers"]
        closed, open_ = workers
        bad, good = made(client, 2, worker=closed), made(client, 2, worker=open_)
        with unreachable(closed):
            for given in (bad, bad[0], [*good, *bad]):
                with pytest.raises(PeerUnreachable) as caught:
                    client.gather(given, direct=True)
                assert workers[closed]["name"] in str(caught.value)
            assert firsts(client.gather([*good, *bad], direct=True, errors="skip")) == [0, 1]
            assert isinstance(client.gather([*good, *bad], direct=True, errors="return")[2], PeerUnreachable)
            assert firsts(client.gather([*good, *bad])) == [0, 1, 0, 1]  # no path is demanded: the relay serves
            assert firsts(client.gather(bad, direct=False)) == [0, 1]


def test_the_clients_default_and_what_a_call_says(cluster: LocalCluster) -> None:
    for default, way in ((True, "peer"), (False, "relay")):
        with Client(cluster, direct_to_workers=default, gather_paths=SOCKETS, set_as_default=False) as client:
            futures = made(client)
            client.gather(futures)
            assert ways(client) == {way}
            next(values := client.gather(iter(futures)))
            assert ways(client) == {way}
            values.close()
            client.gather(futures, direct=not default)
            assert ways(client) == {"relay" if default else "peer"}


def test_the_configuration_sets_the_default(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZDIST_CLIENT__DIRECT_TO_WORKERS", "false")
    monkeypatch.setenv("ZDIST_CLIENT__GATHER_PATHS", "[peer, relay]")
    with Client(cluster, set_as_default=False) as client:
        client.gather(made(client))
        assert ways(client) == {"relay"}
    with Client(cluster, direct_to_workers=True, set_as_default=False) as client:  # what is given counts
        client.gather(made(client))
        assert ways(client) == {"peer"}
    monkeypatch.setenv("ZDIST_CLIENT__DIRECT_TO_WORKERS", "perhaps")
    with pytest.raises(ConfigError, match=r"DIRECT_TO_WORKERS.*client\.direct_to_workers"):
        Client(cluster, set_as_default=False)
    monkeypatch.delenv("ZDIST_CLIENT__DIRECT_TO_WORKERS")
    token = tmp_path / "token"
    token.write_text(cluster.token)
    token.chmod(0o600)
    file = tmp_path / "cluster.yaml"
    file.write_text(
        f"broker: {{bind: '{cluster.broker_address}', token_file: '{token}'}}\nclient: {{direct_to_workers: true}}\n"
    )
    with Client.from_yaml(file, set_as_default=False) as client:
        client.gather(made(client))
        assert ways(client) == {"peer"}
    other = tmp_path / "other.yaml"
    other.write_text(f"broker: {{bind: '{cluster.broker_address}', token_file: '{tmp_path / 'none'}'}}\n")
    with Client.from_yaml(other, token_file=token, set_as_default=False) as client:
        assert client.submit(abs, -3).result(timeout=20) == 3


# --- Ctrl-C ----------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, threading, time
import cluster_functions as functions
from zdist import Client, LocalCluster, wait

def settle(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)

def strike(armed, moment):
    armed.wait()
    moment()
    os.kill(os.getpid(), signal.SIGINT)

with LocalCluster(processes=False, threads_per_worker=2) as cluster:
    relay = cluster._parts.server.endpoint.relay
    with Client(cluster, gather_paths=("peer", "relay")) as client:
        ledger, driver = client._ledger, client._driver
        requests = ledger.fetcher.requests
        def under_way():  # or over, if this thread came late: the gather waits for the last one
            return requests.inflight or (ledger.collections.open and not ledger.fetcher.tickets)
        futures = client.map(functions.filled, range(12), [4 << 20] * 12, pure=False)
        wait(futures)
        gate = functions.Gate({gate!r})
        late = client.submit(functions.wait_at, gate, "late")
        hits = 0
        for i in range({times}):
            armed = threading.Event()
            moments = (lambda: settle(under_way), lambda: time.sleep(i % 7 / 1000), lambda: None)
            striker = threading.Thread(target=strike, args=(armed, moments[i % 3]))
            striker.start()
            values = None
            try:
                armed.set()
                if i % 4 < 2:
                    client.gather([*futures, late], direct=bool(i % 2))
                else:
                    values = client.gather(iter([*futures, late]), direct=bool(i % 2))
                    list(values)
                time.sleep(20)
            except KeyboardInterrupt:
                hits += 1
            striker.join()
            if values is not None:
                values.close()
            with client._lock:
                assert not ledger.collections.open and not ledger.fetcher.tickets
            settle(lambda: requests.inflight == 0 == requests.relayed and not requests.open)
            settle(lambda: relay.granted == 0 and not relay.grants)
            with client._lock:
                ledger.check()
        gate.open()
        arrays = client.gather([*futures, late], timeout=30)
        print(hits, [int(a[-1]) for a in arrays[:-1]], arrays[-1])
"""


def test_ctrl_c_ends_the_transfer_frees_its_credits_and_leaves_the_client_usable(
    gate: functions.Gate, nothing_left: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT.format(gate=gate.path, times=24))],
        env=env, capture_output=True, text=True, start_new_session=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.stdout == f"24 {list(range(12))} late\n", done.stderr


# --- one caller and another ----------------------------------------------------------------------------------


def test_callers_never_touch_each_others_gathers(peer_client: Client, gate: functions.Gate) -> None:
    """The same keys at once: one gives up in no time, one fails, others insist on a path, the rest get it all."""
    client = peer_client
    futures = made(client, 12, 3 << 20)
    bad = client.submit(functions.fail, 1)
    late = client.submit(functions.wait_at, gate, "late")
    results: dict[int, Any] = {}

    def gather(i: int, what: list[Any], options: dict[str, Any]) -> None:
        try:
            results[i] = client.gather(what, **options)
        except BaseException as exc:
            results[i] = exc

    plans: list[tuple[list[Any], dict[str, Any]]] = []
    for _ in range(3):
        plans += [
            (futures, {}), (futures, {"direct": True}), (futures, {"direct": False}), ([*futures, bad], {}),
            ([*futures, late], {"timeout": 0}), (futures[::-1], {}), ([late], {"timeout": "10ms"}), ([bad, late], {}),
        ]  # fmt: skip
    threads = [threading.Thread(target=gather, args=(i, *plan)) for i, plan in enumerate(plans)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    arrays = []
    for i, (what, options) in enumerate(plans):
        if late in what and bad not in what:
            assert isinstance(results[i], TimeoutError)
        elif bad in what:
            assert isinstance(results[i], ValueError) and str(results[i]) == "on purpose 1"
        else:
            order = list(range(12)) if what is futures else list(range(12))[::-1]
            assert firsts(results[i]) == order, options
            arrays += results[i]
    for n, array in enumerate(arrays):
        array[:] = n  # nobody shares memory with anybody else
    assert firsts(arrays) == list(range(len(arrays)))
    gate.open()
    assert client.gather(late, timeout=20) == "late"
    assert not client._ledger.collections.open and not client._ledger.fetcher.tickets


def test_a_call_that_demands_a_path_does_not_bind_the_others(cluster: LocalCluster) -> None:
    """The same keys, whose peer path is closed: those that leave the path open get them by the relay."""
    with Client(cluster, gather_paths=SOCKETS, fallback="error", set_as_default=False) as client:
        client.wait_for_workers(2)
        closed, _ = client.scheduler_info()["workers"]
        futures = made(client, 4, 2 << 20, worker=closed)
        results: list[tuple[bool | None, Any]] = []

        def gather(direct: bool | None) -> None:
            results.append((direct, client.gather(futures, direct=direct, errors="return", timeout=30)))

        with unreachable(closed):
            threads = [threading.Thread(target=gather, args=(direct,)) for direct in (True, None, True, False, None)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(40)
        assert len(results) == 5
        for direct, got in results:
            if direct:
                assert [type(value) for value in got] == [PeerUnreachable] * 4
            else:
                assert firsts(got) == [0, 1, 2, 3]


# --- memory ------------------------------------------------------------------------------------------------


def owner_bytes(array: Any) -> int:
    """Bytes of the memory that an array keeps alive."""
    base = array
    while getattr(base, "base", None) is not None:
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return int(getattr(base, "nbytes", 0) or len(base))


@pytest.mark.parametrize("direct", [None, True, False])
@pytest.mark.parametrize("nbytes", [64, 10_000, 40_000, 100_000, 300_000, 5 << 20])
def test_arrays_are_writable_and_keep_nothing_else_alive(client: Client, direct: bool | None, nbytes: int) -> None:
    futures = made(client, 12, nbytes)
    arrays = client.gather(futures, direct=direct)
    for i, array in enumerate(arrays):
        assert array.flags.writeable and array.nbytes == nbytes
        array += 1
        assert (array == i + 1).all()
        assert owner_bytes(array) <= nbytes * 3 // 2 + (64 << 10)  # memory is kept in sizes that fit many
    again = client.gather(futures, direct=direct)
    assert firsts(again) == list(range(12))  # what was written is nobody else's


def test_a_small_array_of_a_large_value_keeps_only_itself(client: Client) -> None:
    future = client.submit(functions.small_and_large, 1_000, 8 << 20, pure=False)
    for direct in (None, True, False):
        small, large = client.gather(future, direct=direct)
        assert small.flags.writeable and large.flags.writeable and large.nbytes == 8 << 20
        del large
        gc.collect()
        assert owner_bytes(small) <= 1_000 + 1_000


# --- values that cannot be unpickled -----------------------------------------------------------------------------


def test_a_value_that_fails_to_unpickle_fails_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_TEST_CLIENT", "1")
    good = [*made(client, 6, 100_000), client.submit(functions.inc, 5)]
    bad = [
        client.submit(functions.explosive_with, 100_000, pure=False),
        client.submit(functions.return_explosive, pure=False),
        client.submit(functions.exiting, pure=False),
    ]
    wait(bad)
    mixed = [good[0], bad[0], *good[1:4], bad[1], bad[2], *good[4:]]
    for direct in (None, True, False):
        got = client.gather(mixed, errors="return", direct=direct)
        failed = [value for value in got if isinstance(value, BaseException)]
        assert [type(error) for error in failed] == [SerializationError] * 3
        assert [future.key in str(error) for future, error in zip(bad, failed, strict=True)] == [True] * 3
        rest = client.gather(mixed, errors="skip", direct=direct)
        assert firsts(rest[:-1]) == list(range(6)) and rest[-1] == 6
    for future in bad:
        with pytest.raises(SerializationError, match=future.key):
            client.gather([*good, future])
        with pytest.raises(SerializationError, match=future.key):
            future.result(timeout=20)
    values = client.gather(iter(mixed), errors="skip")
    assert len(list(values)) == 7


def test_a_value_that_cannot_be_pickled_fails_alone(client: Client) -> None:
    good, bad = made(client, 2), client.submit(functions.return_unpicklable, pure=False)
    wait([bad])
    got = client.gather([good[0], bad, good[1]], errors="return")
    assert firsts([got[0], got[2]]) == [0, 1]
    assert isinstance(got[1], SerializationError) and bad.key in str(got[1])
    eventually(lambda: not client._ledger.fetcher.tickets, "nothing is left")
