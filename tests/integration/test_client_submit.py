"""submit, map and get: names, arguments, placement, order, retries."""

from __future__ import annotations

import itertools
import operator
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN, eventually

from zdist import Client, Future, LocalCluster, Variable, wait


def test_a_result_comes_home(client: Client) -> None:
    future = client.submit(functions.add, 1, y=2)
    assert future.result(timeout=20) == 3
    assert future.done() and future.status == "finished"


@pytest.mark.parametrize("value", [None, 0, "text", b"bytes" * 1000, [1, {"a": (2, {3})}], 10**400, float("inf")])
def test_values_keep_their_kind(client: Client, value: Any) -> None:
    result = client.submit(functions.same, value).result(timeout=20)
    assert result == value and type(result) is type(value)


def test_lambdas_closures_and_partials(client: Client) -> None:
    offset = 10
    assert client.submit(lambda x: x + offset, 1).result(timeout=20) == 11
    import functools

    assert client.submit(functools.partial(functions.add, 5), 6).result(timeout=20) == 11
    assert client.submit(operator.methodcaller("upper"), "a").result(timeout=20) == "A"
    assert client.submit(int, "12").result(timeout=20) == 12


def test_futures_anywhere_in_the_arguments(client: Client) -> None:
    one, two = client.submit(functions.inc, 0), client.submit(functions.inc, 1)
    assert client.submit(functions.add, one, two).result(timeout=20) == 3
    nested = client.submit(functions.describe, [one, (two, {"k": one})], named={"x": [two]})
    assert nested.result(timeout=20) == (([1, (2, {"k": 1})],), {"named": {"x": [2]}})


def test_a_string_equal_to_a_key_stays_a_string(client: Client) -> None:
    future = client.submit(functions.inc, 0)
    assert client.submit(functions.describe, future.key, future).result(timeout=20) == ((future.key, 1), {})


def test_a_long_chain(client: Client) -> None:
    future = client.submit(functions.inc, 0, pure=False)
    for _ in range(299):
        future = client.submit(functions.inc, future)
    assert future.result(timeout=30) == 300


def test_a_tree(client: Client) -> None:
    level = client.map(functions.same, range(256))
    while len(level) > 1:
        level = [client.submit(functions.add, a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    assert level[0].result(timeout=30) == 255 * 128


# --- names ------------------------------------------------------------------------------------------


def test_pure_calls_share_a_key(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    first = client.submit(functions.log_line, path, "x")
    again = client.submit(functions.log_line, path, "x")
    other = client.submit(functions.log_line, path, "y")
    assert first.key == again.key != other.key
    assert first.key.startswith("log_line-")
    client.gather([first, again, other])
    assert sorted(Path(path).read_text().split()) == ["x", "y"]


def test_impure_calls_do_not(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    futures = [client.submit(functions.log_line, path, "x", pure=False) for _ in range(5)]
    assert len({f.key for f in futures}) == 5
    client.gather(futures)
    assert len(Path(path).read_text().split()) == 5


def test_two_clients_join_one_computation(client: Client, second: Client, tmp_path: Path, gate: functions.Gate) -> None:
    path = str(tmp_path / "runs")
    waiting = client.submit(functions.wait_at, gate, "x")
    mine = client.submit(functions.log_line, path, waiting)
    other = second.submit(functions.log_line, path, second.submit(functions.wait_at, gate, "x"))
    assert mine.key == other.key
    gate.open()
    assert mine.result(timeout=20) == other.result(timeout=20) == 1
    third = second.submit(functions.log_line, path, second.submit(functions.wait_at, gate, "x"))
    assert third.result(timeout=20) == 1  # also after the fact


def test_the_first_client_may_go_while_another_wants_the_key(
    cluster: LocalCluster, client: Client, gate: functions.Gate
) -> None:
    with Client(cluster, set_as_default=False) as short:
        first = short.submit(functions.wait_at, gate, "shared")
        mine = client.submit(functions.wait_at, gate, "shared")
        assert first.key == mine.key
    gate.open()
    assert mine.result(timeout=20) == "shared"


def test_names_are_the_same_in_every_process(cluster: LocalCluster, client: Client) -> None:
    import subprocess
    import sys

    program = (
        "import sys, cluster_functions as f; from zdist import Client\n"
        "with Client(sys.argv[1], set_as_default=False) as c:\n"
        "    print(c.submit(f.describe, {'b', 'a', 'c'}, 1.5, 'x', k=[None, b'y', {'z': 1}]).key)"
    )
    keys = {client.submit(functions.describe, {"b", "a", "c"}, 1.5, "x", k=[None, b"y", {"z": 1}]).key}
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "ZDIST_TOKEN": cluster.token}
        env["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
        out = subprocess.run(
            [sys.executable, "-c", program, cluster.broker_address],
            env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert out.returncode == 0, out.stderr
        keys.add(out.stdout.strip())
    assert len(keys) == 1


def test_a_key_of_ones_own(client: Client) -> None:
    future = client.submit(functions.inc, 1, key="mine")
    assert future.key == "mine" and future.result(timeout=20) == 2


# --- map --------------------------------------------------------------------------------------------


def test_map_zips(client: Client) -> None:
    assert client.gather(client.map(functions.add, [1, 2, 3], (10, 20))) == [11, 22]
    assert client.gather(client.map(functions.total, range(3), range(10, 20), z=100)) == [110, 112, 114]
    assert client.gather(client.map(functions.inc, (i for i in range(5)))) == [1, 2, 3, 4, 5]
    assert client.map(functions.inc, []) == []


def test_map_over_futures(client: Client) -> None:
    assert client.gather(client.map(functions.inc, client.map(functions.inc, range(50)))) == list(range(2, 52))


def test_map_over_what_another_client_submits_meanwhile(client: Client, second: Client) -> None:
    def inputs() -> Iterator[Future]:
        for i in range(3):
            (scattered,) = second.scatter([i])
            future = second.submit(functions.inc, scattered, pure=False)
            Variable("last", client=second).set(future)
            yield future

    assert client.gather(client.map(functions.inc, inputs())) == [2, 3, 4]
    Variable("last", client=second).delete()


def test_what_another_client_submits_may_be_dropped_at_once(client: Client, second: Client) -> None:
    for n in range(5):
        assert (
            client.submit(functions.inc, second.submit(functions.slow_inc, n, 0.05, pure=False)).result(WITHIN) == n + 2
        )
        mapped = client.map(functions.inc, (second.submit(functions.slow_inc, i, 0.05, pure=False) for i in range(3)))
        assert client.gather(mapped) == [2, 3, 4]
        assert client.gather([second.submit(functions.slow_inc, n, 0.05, pure=False)]) == [n + 1]


def test_an_argument_that_submits_while_it_is_pickled(client: Client, second: Client) -> None:
    class Late:
        def __reduce__(self) -> Any:
            return functions.same, (second.submit(functions.inc, 5, pure=False).result(WITHIN),)

    other = second.submit(functions.inc, 1, pure=False)
    assert client.submit(functions.add, other, Late(), pure=False).result(WITHIN) == 8
    assert client.gather(client.map(functions.add, [Late()], [other], pure=False)) == [8]


def test_map_names(client: Client) -> None:
    prefixed = client.map(functions.inc, range(2), key="mine")
    assert len({f.key for f in prefixed}) == 2 and all(f.key.startswith("mine-") for f in prefixed)
    named = client.map(functions.inc, range(3), key=["a", "b", "c"])
    assert [f.key for f in named] == ["a", "b", "c"] and client.gather(named) == [1, 2, 3]
    same = client.map(functions.inc, [7, 7, 8])
    assert same[0].key == same[1].key != same[2].key


def test_map_in_batches(client: Client) -> None:
    assert client.gather(client.map(functions.inc, range(1000), batch_size=64)) == list(range(1, 1001))


def test_a_big_map(client: Client) -> None:
    assert client.gather(client.map(functions.inc, range(10_000), pure=False)) == list(range(1, 10_001))


def test_get_runs_a_graph(client: Client) -> None:
    graph = {"x": 1, "y": (functions.inc, "x"), "z": (functions.add, "y", (functions.inc, 10)), "l": ["y", ["z"]]}
    assert client.get(graph, "z") == 13
    assert client.get(graph, ["y", ["z", "x"]]) == [2, [13, 1]]
    assert client.get(graph, "l") == [2, [13]]


# --- where and when ----------------------------------------------------------------------------------


def test_tasks_spread_over_workers(client: Client, gate: functions.Gate) -> None:
    futures = client.map(functions.pid_at, [gate] * 4, range(4))
    eventually(lambda: gate.arrived() == 4, "four tasks at once")
    gate.open()
    assert len(set(client.gather(futures))) == 2


def test_workers_by_address_or_name(client: Client) -> None:
    for address, info in client.scheduler_info()["workers"].items():
        by_address = client.submit(functions.worker_address, 1, workers=[address], pure=False)
        by_name = client.submit(functions.worker_address, 2, workers=info["name"], pure=False)
        assert client.gather([by_address, by_name]) == [address, address]


def test_a_worker_that_is_not_there_is_waited_for(client: Client) -> None:
    future = client.submit(functions.inc, 1, workers=["nobody"], pure=False)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.3)
    assert future.status == "pending"
    future.cancel()
    other = client.submit(functions.inc, 1, workers=["nobody"], allow_other_workers=True, pure=False)
    assert other.result(timeout=20) == 2


def test_retries(client: Client, tmp_path: Path) -> None:
    enough = client.submit(functions.fail_until, str(tmp_path / "a"), 2, retries=2)
    assert enough.result(timeout=20) == 3
    too_few = client.submit(functions.fail_until, str(tmp_path / "b"), 2, retries=1)
    with pytest.raises(RuntimeError, match="attempt 2 fails"):
        too_few.result(timeout=20)
    assert len((tmp_path / "b").read_text().split()) == 2


def test_priority(start: Callable[..., LocalCluster], tmp_path: Path, gate: functions.Gate) -> None:
    with Client(start(n_workers=1, threads_per_worker=1), set_as_default=False) as client:
        order = str(tmp_path / "order")
        blocker = client.submit(functions.wait_at, gate)
        tasks = [client.submit(functions.log_line, order, p, priority=p) for p in (0, -5, 10, 1)]
        gate.open()
        client.gather([blocker, *tasks])
        assert Path(order).read_text().split() == ["10", "1", "0", "-5"]


def test_resources_bound_what_runs_at_once(start: Callable[..., LocalCluster], tmp_path: Path) -> None:
    cluster = start(n_workers=2, threads_per_worker=3, resources={"GPU": 1})
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
        futures = client.map(
            functions.interval, itertools.repeat(str(tmp_path), 8), [0.03] * 8, resources={"GPU": 1}, pure=False
        )
        runs: dict[str, list[tuple[float, float]]] = {}
        for where, began, ended in client.gather(futures):
            runs.setdefault(where, []).append((began, ended))
        for spans in runs.values():
            spans.sort()
            assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_amounts_of_resources_are_exact(start: Callable[..., LocalCluster]) -> None:
    amounts = {"MEM": 2.0**33 + 1, "SHARE": 0.1234567}
    with Client(start(n_workers=1, threads_per_worker=1, resources=amounts), set_as_default=False) as client:
        assert client.submit(functions.inc, 1, resources=amounts).result(WITHIN) == 2
        assert [worker["resources"] for worker in client.scheduler_info()["workers"].values()] == [amounts]


def test_a_resource_nobody_has_is_waited_for(client: Client) -> None:
    future = client.submit(functions.inc, 1, resources={"UNOBTAINIUM": 1}, pure=False)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.3)
    future.cancel()


# --- arguments of size -------------------------------------------------------------------------------


def test_big_arguments_are_taken_as_they_are_at_submit(client: Client) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1 << 18)
    expected = int(array.sum())
    futures = [client.submit(numpy.sum, array, pure=False) for _ in range(4)]
    array[:] = 0
    assert [int(v) for v in client.gather(futures)] == [expected] * 4


def test_one_big_object_given_twice_is_one_on_the_worker(client: Client) -> None:
    data = b"x" * (1 << 20)
    assert client.submit(operator.is_, data, data).result(timeout=20) is True


def test_a_big_closure(client: Client) -> None:
    blob = os.urandom(1 << 20)
    assert client.gather(client.map(lambda x: x + len(blob), range(100))) == list(range(1 << 20, (1 << 20) + 100))


def test_submit_refuses_what_it_cannot_run(client: Client) -> None:
    with pytest.raises(TypeError, match=r"takes a function first, got (int|str)"):
        client.submit(5, 1)
    with pytest.raises(TypeError, match=r"takes a function first, got (int|str)"):
        client.map("name", [1])


def test_pickled_futures_are_the_same_work(client: Client) -> None:
    future = client.submit(functions.inc, 41)
    with client.as_current():
        copy = pickle.loads(pickle.dumps(future))
    assert copy.key == future.key
    del future
    assert copy.result(timeout=20) == 42
    wait(copy)
