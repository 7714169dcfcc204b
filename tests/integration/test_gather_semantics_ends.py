"""What gather promises of duplicates, of nothing, and of futures that are cancelled, lost or of somebody else."""

from __future__ import annotations

import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import about_data, eventually, sent

from zdist import CancelledError, Client, Future, LocalCluster, serialize, wait
from zdist.errors import PeerUnreachable

Point = namedtuple("Point", "x y")


def test_duplicates_are_fetched_once_and_are_one_object(client: Client) -> None:
    pytest.importorskip("numpy")
    future = client.submit(functions.filled, 3, 300_000, pure=False)
    wait(future)
    seen = sent(client)
    a, (b, inner), d = client.gather([future, (future, {"k": Future(future.key, client)}), future])
    assert a is b is inner["k"] is d and a[0] == 3
    names = [row[0] for message in seen if type(message).__name__ == "Get" for row in message.rows]
    assert len(names) <= 1  # none by shared memory
    small = client.submit(functions.same, [1, 2])
    first, second, (third,) = client.gather([small, small, (small,)])
    assert first is second is third


@pytest.mark.parametrize(
    "empty", [[], (), {}, set(), frozenset(), Point([], {}), [[], {"k": ()}], iter(()), 7, "key", None]
)
def test_nothing_to_gather_sends_nothing(client: Client, empty: Any) -> None:
    assert client.nthreads()
    seen = sent(client)
    result = client.gather(empty)
    assert (list(result) == []) if isinstance(empty, Iterator) else (result == empty and type(result) is type(empty))
    assert client.nthreads() and about_data(seen) == ["Ask"]


def test_nothing_to_gather_needs_no_connection(cluster: LocalCluster) -> None:
    client = Client(cluster, set_as_default=False)
    done = client.submit(functions.inc, 1)
    wait(done)
    client.close()
    assert client.gather([]) == [] and client.gather({"k": ()}) == {"k": ()} and list(client.gather(iter(()))) == []
    assert client.gather([done]) == [2]  # its value had come along


def test_unfinished_futures_are_waited_for(client: Client, gate: functions.Gate) -> None:
    slow = client.submit(functions.wait_at, gate, 5)
    opener = threading.Thread(target=lambda: (eventually(lambda: gate.arrived() == 1), gate.open()))
    opener.start()
    assert client.gather([slow, client.submit(functions.inc, slow)], timeout=20) == [5, 6]
    opener.join(20)


def test_cancelled_says_by_whom(cluster: LocalCluster, client: Client, gate: functions.Gate) -> None:
    with Client(cluster, name="the-other", set_as_default=False) as other:
        mine, theirs = client.submit(functions.wait_at, gate), other.submit(functions.wait_at, gate)
        eventually(lambda: gate.arrived() >= 1, "the task runs")
        client.nthreads(), other.nthreads()
        other.cancel(theirs, force=True)
        with pytest.raises(CancelledError, match=r"cancelled by client the-other"):
            client.gather([mine], timeout=20)
    gone = client.submit(functions.wait_at, gate, "own")
    gone.cancel()
    with pytest.raises(CancelledError, match=f"{gone.key}: cancelled by client {client.name}"):
        client.gather(gone)
    gate.open()


def test_cancelled_says_that_scattered_data_is_lost(start: Callable[..., LocalCluster]) -> None:
    with Client(start(n_workers=1, threads_per_worker=1), set_as_default=False) as client:
        data = client.scatter(bytes(200_000))
        client.restart(timeout=30)
        with pytest.raises(CancelledError, match=r"restart|lost"):
            client.gather([data], timeout=20)
        with pytest.raises(CancelledError):
            client.gather(client.submit(len, data), timeout=20)


def test_cancelled_says_that_the_client_was_closed(cluster: LocalCluster, gate: functions.Gate) -> None:
    client = Client(cluster, set_as_default=False)
    future = client.submit(functions.wait_at, gate)
    caught: list[BaseException] = []

    def gather() -> None:
        try:
            client.gather([future])
        except BaseException as exc:
            caught.append(exc)

    threads = [threading.Thread(target=gather) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: gate.arrived() == 1 and len(client._ledger.collections.open) == 3, "all wait")
    client.close()
    for thread in threads:
        thread.join(20)
    assert [type(error) for error in caught] == [CancelledError] * 3
    assert all("client closed" in str(error) for error in caught)
    with pytest.raises(CancelledError, match="client closed"):
        client.gather(future)
    gate.open()


def test_a_released_future_says_so(client: Client) -> None:
    done, large = client.submit(functions.inc, 1, pure=False), client.submit(functions.filled, 1, 100_000, pure=False)
    wait([done, large])
    for future in (done, large):
        future.release()
    assert client.gather(done) == 2  # its value is here
    eventually(large.cancelled, "it was let go")
    for given in (large, [large]):
        with pytest.raises(CancelledError, match=f"^{large.key}: its future was released$"):
            client.gather(given, timeout=20)


def test_a_key_cancelled_and_given_again_is_two_results(client: Client, gate: functions.Gate) -> None:
    old = client.submit(functions.wait_at, gate, key="twice")
    old.cancel()
    new = client.submit(functions.inc, 1, key="twice")
    assert client.gather([old, new, [new]], errors="skip") == [2, [2]]
    result = client.gather([old, new], errors="return")
    assert isinstance(result[0], CancelledError) and result[1] == 2
    gate.open()


def test_a_future_of_another_cluster_is_refused_and_both_are_named(
    client: Client, start: Callable[..., LocalCluster]
) -> None:
    with Client(start(n_workers=1, processes=False), set_as_default=False) as other:
        mine, theirs = client.submit(functions.inc, 1), other.submit(functions.inc, 1)
        for given in (theirs, [mine, theirs], {"k": (theirs,)}):
            with pytest.raises(ValueError, match="belongs to cluster") as caught:
                client.gather(given)
            for name in (other.cluster_id, other.address, client.cluster_id, client.address):
                assert name in str(caught.value)
        values = client.gather(iter([mine, theirs, mine]))
        assert next(values) == 2
        with pytest.raises(ValueError, match="belongs to cluster"):
            next(values)
        assert list(values) == [2]


def test_a_future_of_another_client_of_the_cluster_is_gathered(client: Client, second: Client) -> None:
    theirs = second.submit(functions.filled, 4, 100_000, pure=False)
    mine = client.submit(functions.inc, 1)
    array, same, two = client.gather([theirs, theirs, mine])
    assert array is same and array[0] == 4 and two == 2
    assert [int(array[0]) for array in client.gather(iter([theirs]))] == [4]


def test_what_has_come_outlives_ctrl_c_while_it_is_unpickled(
    client: Client, gate: functions.Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, running = client.submit(functions.same, "x" * 100_000), client.submit(functions.wait_at, gate)
    values = client.gather(iter([first, running]))
    wait(first)
    loads = serialize.loads_each

    def interrupted(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(serialize, "loads_each", loads)
        raise KeyboardInterrupt

    monkeypatch.setattr(serialize, "loads_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(values)
    assert len(next(values)) == 100_000 and not running.done()
    gate.open()
    assert next(values) == 0


def test_a_stream_does_not_wait_for_what_waits_for_its_consumer(client: Client, gate: functions.Gate) -> None:
    done = client.submit(functions.same, 1)
    wait(done)
    values = client.gather(iter([done, client.submit(functions.inc, 2), client.submit(functions.wait_at, gate)]))
    assert [next(values), next(values)] == [1, 3]
    gate.open()
    assert next(values) == 0


def test_a_client_without_a_path_says_which_it_may_use(cluster: LocalCluster) -> None:
    with Client(cluster, gather_paths=["shm"], set_as_default=False) as client:
        future = client.submit(functions.same, "x" * 100_000)
        with pytest.raises(PeerUnreachable, match=r"with gather_paths=\['shm'\] there is no way") as told:
            client.gather([future], direct=False)
        assert "fallback" not in str(told.value)
