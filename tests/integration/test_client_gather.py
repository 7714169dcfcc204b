"""gather: containers, errors, paths, time-outs; result, exception and the rest of Future."""

from __future__ import annotations

import pickle
import queue
import threading
import traceback
from collections import namedtuple
from pathlib import Path
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import eventually

from zdist import CancelledError, Client, Future, LocalCluster, wait

Point = namedtuple("Point", "x y")


# --- containers --------------------------------------------------------------------------------------


def test_the_same_kind_comes_back(client: Client) -> None:
    a, b = client.submit(functions.inc, 0), client.submit(functions.inc, 1)
    for given, expected in [
        (a, 1),
        ([a, b], [1, 2]),
        ((a, b), (1, 2)),
        ({a, b}, {1, 2}),
        (frozenset([a]), frozenset([1])),
        ({"a": a, "b": [b]}, {"a": 1, "b": [2]}),
        (Point(a, (b, {"k": a})), Point(1, (2, {"k": 1}))),
        ([a, a.key, 5, None, [b]], [1, a.key, 5, None, [2]]),
        ([], []),
        ({}, {}),
        (7, 7),
    ]:
        result = client.gather(given)
        assert result == expected and type(result) is type(expected)


def test_deep_nesting(client: Client) -> None:
    deep: Any = client.submit(functions.inc, 0)
    for _ in range(2_000):
        deep = [deep]
    result = client.gather(deep)
    while isinstance(result, list):
        (result,) = result
    assert result == 1


def test_duplicates_are_one_object(client: Client) -> None:
    future = client.submit(functions.same, [1, 2])
    first, second, (third,) = client.gather([future, future, (future,)])
    assert first is second is third


def test_an_iterator_comes_back_lazily(client: Client) -> None:
    values = client.gather(client.submit(functions.inc, i) for i in range(3_000))
    assert not isinstance(values, list)
    assert next(values) == 1
    assert list(values) == list(range(2, 3_001))


def test_a_queue_comes_back(client: Client) -> None:
    source: queue.Queue[Future] = queue.Queue()
    sink = client.gather(source)
    assert type(sink) is queue.Queue
    for i in range(20):
        source.put(client.submit(functions.inc, i))
    assert [sink.get(timeout=20) for _ in range(20)] == list(range(1, 21))


# --- errors -----------------------------------------------------------------------------------------


def test_the_first_error_in_input_order_is_raised(client: Client, gate: functions.Gate) -> None:
    waiting = client.submit(functions.wait_at, gate)
    first, second = client.submit(functions.fail, waiting, "first"), client.submit(functions.fail, 2, "second")
    wait(second)
    gate.open()
    for _ in range(3):
        with pytest.raises(ValueError, match="first 0"):
            client.gather([first, second])
    assert client.gather(client.map(functions.inc, range(10))) == list(range(1, 11))


def test_errors_are_skipped(client: Client) -> None:
    futures = client.map(functions.fail_if_odd, range(6))
    assert client.gather(futures, errors="skip") == [0, 2, 4]
    named = dict(enumerate(futures))
    assert client.gather([named, (futures[1],), futures[3]], errors="skip") == [{0: 0, 2: 2, 4: 4}, ()]
    assert client.gather(futures[1], errors="skip") is None
    assert client.gather(Point(*futures[:2]), errors="skip") == Point(0, None)


def test_errors_are_returned(client: Client) -> None:
    good, bad = client.map(functions.fail_if_odd, range(2))
    result = client.gather([good, bad], errors="return")
    assert result[0] == 0 and isinstance(result[1], ValueError) and str(result[1]) == "1 is odd"


def test_another_word_for_errors_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match=r"errors.*'ignore'.*raise.*skip"):
        client.gather([client.submit(functions.inc, 1)], errors="ignore")


def test_errors_go_down_the_graph(client: Client) -> None:
    bad = client.submit(functions.fail, "x")
    below = client.submit(functions.inc, client.submit(functions.inc, bad))
    with pytest.raises(ValueError, match="on purpose x"):
        below.result(timeout=20)
    assert below.status == "error" and isinstance(below.exception(), ValueError)


def test_an_exception_arrives_as_itself_with_its_traceback(client: Client) -> None:
    future = client.submit(functions.raise_own, 42)
    error = future.exception(timeout=20)
    assert type(error) is functions.OwnError and error.code == 42
    lines = traceback.extract_tb(future.traceback())
    assert any(line.name == "raise_own" and line.line == 'raise OwnError(code, "with a code")' for line in lines)
    with pytest.raises(functions.OwnError) as caught:
        future.result()
    assert "raise_own" in [frame.name for frame in caught.traceback]


# --- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [None, True, False])
@pytest.mark.parametrize("nbytes", [8, 100_000, 20 << 20])
def test_arrays_come_by_every_path_and_are_writable(client: Client, direct: bool | None, nbytes: int) -> None:
    pytest.importorskip("numpy")
    futures = client.map(functions.filled, range(4), [nbytes] * 4, pure=False)
    for i, array in enumerate(client.gather(futures, direct=direct)):
        assert array.nbytes == nbytes and (array == i).all()
        array += 1
        assert array.flags.owndata or array.nbytes >= 8


def test_a_client_may_fix_the_paths(cluster: LocalCluster) -> None:
    pytest.importorskip("numpy")
    for paths in (("peer",), ("relay",), ("peer", "relay")):
        with Client(cluster, gather_paths=paths, set_as_default=False) as client:
            futures = client.map(functions.filled, range(3), [300_000] * 3, pure=False)
            assert [int(a[0]) for a in client.gather(futures)] == [0, 1, 2]


def test_a_clients_default_direction(cluster: LocalCluster) -> None:
    for direct in (True, False):
        with Client(cluster, direct_to_workers=direct, set_as_default=False) as client:
            assert client.submit(functions.filled, 3, 80_000).result(timeout=20)[-1] == 3


def test_results_go_from_worker_to_worker(client: Client) -> None:
    pytest.importorskip("numpy")
    first, second = client.scheduler_info()["workers"]
    a = client.submit(functions.filled, 1, 4 << 20, workers=[first])
    b = client.submit(functions.filled, 2, 4 << 20, workers=[second])
    assert client.submit(lambda x, y: int((x + y).sum()), a, b).result(timeout=20) == 3 * (4 << 17)


# --- time ------------------------------------------------------------------------------------------


def test_a_timeout_leaves_the_futures_alone(client: Client, gate: functions.Gate) -> None:
    future = client.submit(functions.wait_at, gate, "late")
    with pytest.raises(TimeoutError):
        client.gather([future], timeout=0.1)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.1)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.1)
    assert future.status == "pending" and not future.done()
    gate.open()
    assert client.gather([future], timeout=20) == ["late"]


def test_gathers_in_many_threads(client: Client) -> None:
    futures = client.map(functions.inc, range(400), pure=False)
    results: dict[int, Any] = {}

    def gather(i: int) -> None:
        results[i] = client.gather(futures[i * 40 : i * 40 + 80])

    threads = [threading.Thread(target=gather, args=(i,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {i: list(range(i * 40 + 1, i * 40 + 81)) for i in range(9)}


# --- Future -----------------------------------------------------------------------------------------


def test_what_a_future_tells(client: Client, gate: functions.Gate) -> None:
    future = client.submit(functions.wait_at, gate, 5, key="tell-me")
    assert (future.key, future.status, future.done(), future.cancelled()) == ("tell-me", "pending", False, False)
    assert "pending" in repr(future) and "tell-me" in repr(future)
    gate.open()
    assert future.result(timeout=20) == 5
    assert future.exception() is None and future.traceback() is None
    assert "finished" in repr(future) and "int" in repr(future)
    assert future.type is int or future.type == "int"
    bad = client.submit(functions.fail, 1)
    wait(bad)
    assert bad.status == "error" and bad.done() and "error" in repr(bad)


def test_callbacks(client: Client, gate: functions.Gate) -> None:
    seen: queue.Queue[Any] = queue.Queue()
    future = client.submit(functions.wait_at, gate)
    future.add_done_callback(seen.put)
    assert seen.empty()
    gate.open()
    assert seen.get(timeout=20) is future
    future.add_done_callback(seen.put)
    assert seen.get(timeout=20) is future
    bad = client.submit(functions.fail, 1)
    bad.add_done_callback(lambda f: seen.put((f.status, f.exception())))
    status, error = seen.get(timeout=20)
    assert status == "error" and isinstance(error, ValueError)


def test_a_callback_that_raises_disturbs_nobody(client: Client) -> None:
    seen: queue.Queue[Any] = queue.Queue()

    def bad_callback(future: Future) -> None:
        raise RuntimeError("in a callback")

    future = client.submit(functions.inc, 1, pure=False)
    future.add_done_callback(bad_callback)
    future.add_done_callback(seen.put)
    assert seen.get(timeout=20) is future and future.result() == 2


def test_cancel(client: Client, gate: functions.Gate) -> None:
    running = client.submit(functions.wait_at, gate, pure=False)
    below = client.submit(functions.inc, running)
    eventually(lambda: gate.arrived() == 1, "the task runs")
    running.cancel()
    for future in (running, below):
        with pytest.raises(CancelledError, match="cancelled"):
            future.result(timeout=20)
        assert future.cancelled() and future.done() and future.status == "cancelled"
    with pytest.raises(CancelledError):
        client.gather([running])
    assert client.gather([running, client.submit(functions.inc, 0)], errors="skip") == [1]
    gate.open()


def test_cancel_many_through_the_client(client: Client) -> None:
    futures = client.map(functions.slow_inc, range(50), [0.2] * 50, pure=False)
    client.cancel(futures)
    eventually(lambda: all(f.cancelled() for f in futures), "all are cancelled")
    assert client.submit(functions.inc, 1, pure=False).result(timeout=20) == 2


def test_a_cancelled_key_can_be_used_anew(client: Client, gate: functions.Gate) -> None:
    client.submit(functions.wait_at, gate, key="again").cancel()
    assert client.submit(functions.inc, 1, key="again").result(timeout=20) == 2
    gate.open()


def test_cancel_takes_only_ones_own_want(client: Client, second: Client, gate: functions.Gate) -> None:
    mine, theirs = client.submit(functions.wait_at, gate, "t"), second.submit(functions.wait_at, gate, "t")
    client.cancel(mine)
    eventually(mine.cancelled, "mine is cancelled")
    gate.open()
    assert theirs.result(timeout=20) == "t"


def test_cancel_by_force_takes_all(client: Client, second: Client, gate: functions.Gate) -> None:
    mine, theirs = client.submit(functions.wait_at, gate, "f"), second.submit(functions.wait_at, gate, "f")
    eventually(lambda: gate.arrived() >= 1, "the task runs")
    client.nthreads(), second.nthreads()  # by these answers the broker knows that both want the task
    client.cancel(mine, force=True)
    with pytest.raises(CancelledError):
        theirs.result(timeout=20)
    gate.open()


def test_retry(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "present"
    bad = client.submit(functions.fail_while_absent, str(path))
    below = client.submit(len, bad)
    wait([bad, below])
    assert bad.status == below.status == "error"
    path.touch()
    client.retry([below])
    assert below.result(timeout=20) == 5
    assert bad.result(timeout=20) == "there"


def test_retry_of_one_future(client: Client, tmp_path: Path) -> None:
    bad = client.submit(functions.fail_while_absent, str(tmp_path / "one"))
    wait(bad)
    (tmp_path / "one").touch()
    bad.retry()
    assert bad.result(timeout=20) == "there"


def test_a_future_travels_by_pickle(client: Client) -> None:
    future = client.submit(functions.inc, 1)
    data = pickle.dumps(future)
    with client.as_current():
        copy = pickle.loads(data)
    assert copy.result(timeout=20) == 2 and copy.key == future.key


# --- release ----------------------------------------------------------------------------------------


def held(client: Client) -> list[str]:
    return [key for keys in client.has_what().values() for key in keys]


def test_what_nobody_holds_is_dropped_everywhere(client: Client) -> None:
    future = client.submit(functions.filled, 1, 200_000, pure=False)
    wait(future)
    key = future.key
    assert key in held(client) and list(client.who_has([future])) == [key]
    del future
    eventually(lambda: held(client) == [], "the result is dropped")
    assert not client.who_has()


def test_intermediate_results_are_dropped(client: Client) -> None:
    last = client.submit(functions.filled, 1, 200_000, pure=False)
    for _ in range(5):
        last = client.submit(functions.inc, last)
    wait(last)
    eventually(lambda: held(client) == [last.key], "only the last is kept")
    assert client.gather(last)[0] == 6


def test_release_by_hand(client: Client) -> None:
    future = client.submit(functions.filled, 1, 200_000, pure=False)
    wait(future)
    assert held(client) == [future.key]
    future.release()
    eventually(lambda: held(client) == [], "the result is dropped")


def test_one_of_two_holders_is_enough(client: Client, second: Client) -> None:
    mine, theirs = (c.submit(functions.filled, 7, 200_000) for c in (client, second))
    wait([mine]), wait([theirs])
    del mine
    assert theirs.result(timeout=20)[0] == 7
    assert held(second) == [theirs.key]
    del theirs
    eventually(lambda: held(client) == [], "the result is dropped")
