"""wait, as_completed, progress and fire_and_forget on a cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN, eventually

from zdist import (
    FIRST_COMPLETED,
    CancelledError,
    Client,
    LocalCluster,
    SerializationError,
    as_completed,
    fire_and_forget,
    futures_of,
    progress,
    wait,
)


def test_wait_for_all(client: Client) -> None:
    futures = client.map(functions.fail_if_odd, range(20), pure=False)
    done, not_done = wait(futures)
    assert done == set(futures) and not_done == set()
    assert [f.status for f in futures] == ["finished", "error"] * 10


def test_wait_for_the_first(client: Client, gate: functions.Gate) -> None:
    late, soon = client.submit(functions.wait_at, gate), client.submit(functions.inc, 1)
    done, not_done = wait([late, soon], return_when=FIRST_COMPLETED)
    assert done == {soon} and not_done == {late}
    gate.open()
    assert wait([late, soon], timeout=20).not_done == set()


def test_wait_in_vain(client: Client, gate: functions.Gate) -> None:
    late = client.submit(functions.wait_at, gate)
    with pytest.raises(TimeoutError, match="1 of 1 futures are not done"):
        wait(late, timeout=0.1)
    gate.open()
    wait(late, timeout=20)


def test_wait_for_a_cancelled_one(client: Client, gate: functions.Gate) -> None:
    late = client.submit(functions.wait_at, gate, pure=False)
    late.cancel()
    with pytest.raises(CancelledError, match=late.key):
        wait([late], timeout=20)
    gate.open()


def test_in_order_of_completion(client: Client, gate: functions.Gate) -> None:
    late = client.submit(functions.wait_at, gate, "late")
    stream = as_completed([late, *client.map(functions.inc, range(100), pure=False)])
    first = [next(stream).result() for _ in range(100)]
    assert sorted(first) == list(range(1, 101)) and not stream.has_ready() and stream.count() == 1
    gate.open()
    assert next(stream).result() == "late"
    assert stream.is_empty() and list(stream) == []


def test_a_loop_that_submits_more(client: Client) -> None:
    stream, total, left = as_completed(client.map(functions.inc, range(10), pure=False)), 0, 90
    for future in stream:
        total += future.result()
        if left:
            stream.add(client.submit(functions.inc, left, pure=False))
            left -= 1
    assert total == sum(range(1, 11)) + sum(range(2, 92))


@pytest.mark.parametrize("nbytes", [8, 100_000])
def test_with_results(client: Client, nbytes: int) -> None:
    futures = client.map(functions.filled, range(40), [nbytes] * 40, pure=False)
    got = {future.key: int(value[0]) for future, value in as_completed(futures, with_results=True)}
    assert got == {future.key: i for i, future in enumerate(futures)}


def test_errors_among_results(client: Client) -> None:
    stream = as_completed(client.map(functions.fail_if_odd, [1]), with_results=True)
    with pytest.raises(ValueError, match="1 is odd"):
        next(stream)
    futures = client.map(functions.fail_if_odd, range(4))
    got = dict(as_completed(futures, with_results=True, raise_errors=False))
    assert got[futures[0]] == 0 and got[futures[2]] == 2
    kind, error, trace = got[futures[3]]
    assert kind is ValueError and str(error) == "3 is odd" and trace is not None


@pytest.mark.parametrize("nbytes", [0, 200_000])
def test_a_result_that_cannot_be_loaded_here_is_no_value(
    client: Client, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    monkeypatch.setenv("ZDIST_TEST_CLIENT", "1")
    future = client.submit(functions.explosive_with, nbytes, pure=False)
    with pytest.raises(SerializationError, match="cannot be loaded at the client"):
        list(as_completed([future], with_results=True))
    ((_, (kind, error, _)),) = as_completed([future], with_results=True, raise_errors=False)
    assert kind is SerializationError and "cannot be loaded at the client" in str(error)


def test_a_result_that_is_an_exception_is_a_value(client: Client) -> None:
    future = client.submit(functions.same, ValueError("a value"), pure=False)
    ((_, value),) = as_completed([future], with_results=True)
    assert type(value) is ValueError


def test_wait_keeps_no_future_alive(client: Client, gate: functions.Gate) -> None:
    late = client.submit(functions.wait_at, gate, pure=False)
    with contextlib.suppress(TimeoutError):
        wait([late], timeout=0.01, return_when=FIRST_COMPLETED)
    key = late.key
    del late
    eventually(lambda: client.submit(functions.inc, 1, pure=False).result(WITHIN) and not client.holds(key), "its end")
    gate.open()


def test_batches(client: Client) -> None:
    futures = client.map(functions.inc, range(200), pure=False)
    batches = list(as_completed(futures).batches())
    assert all(batches) and {f for batch in batches for f in batch} == set(futures)


def test_as_completed_in_vain(client: Client, gate: functions.Gate) -> None:
    late = client.submit(functions.wait_at, gate)
    with pytest.raises(TimeoutError, match="1 futures are not done in the time given"):
        list(as_completed([late], timeout=0.1))
    gate.open()
    assert list(as_completed([late], timeout=20)) == [late]


def test_gather_takes_as_completed(client: Client) -> None:
    values = client.gather(as_completed(client.map(functions.inc, range(50), pure=False)))
    assert sorted(values) == list(range(1, 51))


def test_futures_of_a_container(client: Client, gate: functions.Gate) -> None:
    a, b = client.submit(functions.inc, 1), client.submit(functions.wait_at, gate)
    assert futures_of([a, {"b": (b, a)}]) == [a, b]
    b.cancel()
    with pytest.raises(CancelledError, match=b.key):
        futures_of([a, b])
    gate.open()


def test_progress_returns_when_all_are_done(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    futures = client.map(functions.slow_inc, range(20), [0.01] * 20, pure=False)
    bad = client.submit(functions.fail, 1)
    progress(futures, bad, notebook=False)
    assert all(future.done() for future in [*futures, bad])
    lines = capsys.readouterr().err
    assert "slow_inc" in lines and "20/20" in lines and "1 failed" in lines


def test_fire_and_forget(client: Client, tmp_path: Path, gate: functions.Gate) -> None:
    path = tmp_path / "done"
    fire_and_forget(client.submit(functions.log_line, str(path), client.submit(functions.wait_at, gate, "x")))
    gate.open()
    eventually(path.exists, "the forgotten task runs")
    eventually(path.read_text, "and writes")
    assert path.read_text() == "x\n"


def test_fire_and_forget_outlives_the_client(
    cluster: LocalCluster, client: Client, tmp_path: Path, gate: functions.Gate
) -> None:
    path = tmp_path / "done"
    with Client(cluster, set_as_default=False) as short:
        fire_and_forget(short.submit(functions.log_line, str(path), short.submit(functions.wait_at, gate, "y")))
    gate.open()
    eventually(path.exists, "the forgotten task runs")
    eventually(path.read_text, "and writes")
    assert path.read_text() == "y\n"
