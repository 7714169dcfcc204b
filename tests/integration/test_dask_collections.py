"""dask collections and graphs on a cluster; what dask's own tests say of them is in tests/ecosystem."""

from __future__ import annotations

import copy
import operator
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import eventually

import zdist
from zdist import Client, LocalCluster
from zdist.client.graph import Graph

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask's arrays need numpy")
db = pytest.importorskip("dask.bag", reason="dask's bags need fsspec")


@pytest.fixture(scope="module")
def cluster(nothing_left: Path) -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def get(client: Client) -> Any:
    return zdist.dask_get(client)


def square(name: str = "plain") -> Any:
    """60 by 60, in nine chunks; each name is another array to dask."""
    return da.from_array(da.arange(3600, chunks=400).compute(scheduler="sync").reshape(60, 60), chunks=20, name=name)


# --- collections -------------------------------------------------------------------------------------


def test_arrays(get: Any) -> None:
    x = square()
    y = ((x + x.T).sum(axis=0) / 2).mean()
    assert y.compute(scheduler=get) == y.compute(scheduler="sync")
    assert (x[::7, 3:].compute(scheduler=get) == x[::7, 3:].compute(scheduler="sync")).all()


def test_bags(get: Any) -> None:
    bag = db.from_sequence(range(100), npartitions=10).map(functions.inc).filter(lambda x: x % 3 == 0)
    assert bag.sum().compute(scheduler=get) == sum(x for x in range(1, 101) if x % 3 == 0)
    assert bag.fold(operator.add).compute(scheduler=get) == 1683


def test_delayed_in_containers(get: Any) -> None:
    one, two = dask.delayed(functions.inc)(0), dask.delayed(functions.inc)(1)
    assert dask.compute({"a": one, "b": [two, (one, 5)]}, scheduler=get) == ({"a": 1, "b": [2, (1, 5)]},)
    assert dask.delayed(functions.describe)([one, {"k": two}], x=two).compute(scheduler=get) == (
        ([1, {"k": 2}],),
        {"x": 2},
    )


def test_dataframes(get: Any) -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    dd = pytest.importorskip("dask.dataframe", reason="dask's dataframes need pyarrow")
    local = pd.DataFrame({"a": range(100), "b": [i % 5 for i in range(100)]})
    frame = dd.from_pandas(local, npartitions=4)
    assert frame.groupby("b").a.sum().compute(scheduler=get).to_dict() == local.groupby("b").a.sum().to_dict()
    assert frame.merge(frame, on="a").b_x.sum().compute(scheduler=get) == local.b.sum()
    kept = frame[frame.b > 1].persist(scheduler=get)
    with dask.config.set(scheduler=get):
        assert kept.a.max().compute() == 99 and len(kept) == 60


def test_the_scheduler_can_be_set_for_all_or_be_a_client(client: Client) -> None:
    x = dask.delayed(functions.worker_address)()
    workers = set(client.scheduler_info()["workers"])
    with client.as_current(), dask.config.set(scheduler=zdist.dask_get()):
        assert x.compute() in workers
        assert copy.deepcopy(dask.config.get("scheduler")) is dask.config.get("scheduler")
    assert x.compute(scheduler=client) in workers


def test_without_a_client_it_says_so() -> None:
    get = pickle.loads(pickle.dumps(zdist.dask_get()))
    with pytest.raises(ValueError, match="found no client"):
        dask.delayed(functions.inc)(1).compute(scheduler=get)


def test_collections_within_tasks(get: Any) -> None:
    def nested(n: int) -> int:
        found = db.from_sequence(range(n), npartitions=2).map(functions.inc).sum()
        return int(found.compute(scheduler=zdist.dask_get()))

    both = dask.compute(dask.delayed(nested)(4), dask.delayed(nested)(5), dask.delayed(nested)(6), scheduler=get)
    assert both == (10, 15, 21)


# --- futures -----------------------------------------------------------------------------------------


def test_compute_gives_futures(client: Client) -> None:
    x = square()
    one = client.compute(x.sum())
    assert isinstance(one, zdist.Future) and one.result() == sum(range(3600))
    mixed = client.compute([x.max(), 5, [dask.delayed(functions.inc)(1), 7]])
    assert client.gather(mixed) == [3599, 5, [2, 7]]
    assert client.compute(dask.delayed(functions.inc)(2), sync=True) == 3


def test_persist_keeps_results_on_the_workers(client: Client, get: Any) -> None:
    x = square() + 1
    kept = x.persist(scheduler=get)
    held = zdist.futures_of([kept.dask[key] for key in dask.core.flatten(kept.__dask_keys__())])
    assert len(held) == 9
    client.gather(held)
    assert set(client.who_has()) == {future.key for future in held}
    started = client.counts()["tasks"]
    assert kept.sum().compute(scheduler=get) == sum(range(1, 3601))
    eventually(lambda: client.counts()["tasks"] == started, "only what was persisted is left")
    again = client.persist(kept)
    assert (again[:2].compute(scheduler=get) == x[:2].compute(scheduler="sync")).all()


def test_the_same_key_is_the_same_result_while_it_lives(client: Client, tmp_path: Path) -> None:
    line = dask.delayed(functions.log_line)(str(tmp_path / "log"), "once", dask_key_name="line")
    first, second = client.compute(line), client.compute(line)
    assert first.key == second.key and client.gather([first, second]) == [1, 1]
    first.release()
    second.release()
    assert client.compute(line, sync=True) == 2


def test_other_tasks_of_the_same_name_are_kept_apart(client: Client) -> None:
    ones, twos = (client.persist(square("x") * n) for n in (1, 2))
    named = [client.compute(dask.delayed(functions.inc)(n, dask_key_name="n")) for n in (1, 10)]
    assert client.gather(named) == [2, 11]
    assert (twos.sum() / ones.sum()).compute(scheduler=client) == 2
    shadow = da.from_array(da.zeros(9, chunks=9).compute(scheduler="sync"), chunks=3, name="x")
    assert (shadow + 1).sum().compute(scheduler=client) == 9


def test_normalize_collection_finds_what_is_persisted(client: Client, tmp_path: Path) -> None:
    line = dask.delayed(functions.log_line)(str(tmp_path / "log"), "text")
    sum_ = dask.delayed(functions.add)(line, 10)
    assert client.normalize_collection(sum_) is sum_
    kept = client.persist(line)
    assert client.normalize_collection(sum_).compute(scheduler=client) == 11
    assert kept.compute(scheduler=client) == 1
    del kept
    assert client.normalize_collection(sum_) is sum_


def test_futures_are_inputs_of_collections(client: Client) -> None:
    scattered = client.scatter(5)
    made = client.submit(functions.inc, 1)
    both = dask.delayed(functions.add)(scattered, dask.delayed(made))
    assert both.compute(scheduler=client) == 7
    assert client.get({"x": made, "y": (functions.add, "x", scattered)}, ["y", "x"]) == [7, 2]


# --- what is left, in what order, and options ---------------------------------------------------------


def test_intermediate_results_are_dropped(client: Client, get: Any) -> None:
    x = square()
    assert (x @ x.T).sum().compute(scheduler=get) == (x @ x.T).sum().compute(scheduler="sync")
    eventually(lambda: not client.counts()["tasks"] and not client.counts()["data"], "nothing is left")
    assert client.who_has() == {}


def test_the_whole_graph_is_there_before_the_first_task_ends(client: Client, gate: functions.Gate) -> None:
    graph: dict[Any, Any] = {"first": (functions.wait_at, gate, 0), ("step", 0): (functions.inc, "first")}
    graph |= {("step", i): (functions.inc, ("step", i - 1)) for i in range(1, 50)}
    last = client.get(graph, ("step", 49), sync=False)
    eventually(lambda: client.counts()["tasks"] == 51, "all tasks at the broker")
    assert client.counts()["wants"] == 1
    gate.open()
    assert last.result() == 50


def test_tasks_run_in_the_order_that_dask_gives_them(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "log"
    graph: dict[Any, Any] = {}
    for i in range(6):
        graph["load", i] = (functions.log_line, str(log), f"load {i}")
        graph["use", i] = (operator.contains, [("load", i)], 0)
    graph["all"] = (any, [("use", i) for i in range(6)])
    worker = next(iter(client.scheduler_info()["workers"]))
    client.get(graph, "all", workers=[worker])
    from dask.order import order

    place = order(graph)
    expected = sorted((key for key in graph if key[0] == "load"), key=place.__getitem__)
    assert log.read_text().split("\n")[:-1] == [f"load {key[1]}" for key in expected]


def test_annotations_and_options(client: Client) -> None:
    first, second = sorted(client.scheduler_info()["workers"])
    with dask.annotate(workers=[first]):
        here = dask.delayed(functions.worker_address)(1)
    there = dask.delayed(functions.worker_address)(2)
    with dask.config.set({"optimization.fuse.active": False}):
        assert client.compute([here, there], workers=[second], sync=True) == [first, second]


def test_retries_by_annotation(client: Client, tmp_path: Path) -> None:
    with dask.annotate(retries=2):
        flaky = dask.delayed(functions.fail_until)(str(tmp_path / "log"), 2)
    assert flaky.compute(scheduler=client) == 3


# --- errors ------------------------------------------------------------------------------------------


def test_errors_come_with_their_remote_traceback(get: Any) -> None:
    failing = dask.delayed(functions.inc)(dask.delayed(functions.fail)(3))
    with pytest.raises(ValueError, match="on purpose 3") as caught:
        failing.compute(scheduler=get)
    assert "cluster_functions.py" in "".join(traceback.format_exception(caught.value))


def test_cycles_and_missing_keys(client: Client) -> None:
    from dask._task_spec import Task, TaskRef

    cycle = {"a": (functions.inc, "b"), "b": (functions.inc, "a")}
    with pytest.raises(ValueError, match="the graph has a cycle through"):
        client.get(cycle, "a")
    with pytest.raises(KeyError, match="the graph has no key 'c'"):
        client.get({"a": 1}, ["a", "c"])
    with pytest.raises(KeyError, match="'a' needs 'gone', which the graph does not have"):
        client.get({"a": Task("a", functions.inc, TaskRef("gone"))}, "a")
    with pytest.raises(TypeError, match="persist takes dask collections, got int"):
        client.persist(5)


def test_what_cannot_be_pickled_is_named(client: Client, get: Any) -> None:
    with pytest.raises(zdist.SerializationError, match="lock"):
        dask.delayed(functions.same)(threading.Lock()).compute(scheduler=get)
    eventually(lambda: not client.counts()["tasks"], "nothing is left")


# --- graphs by hand ----------------------------------------------------------------------------------


def graphs() -> tuple[dict[Any, Any], Any, Any]:
    """A graph of tuples, keys, and what they are."""
    graph: dict[Any, Any] = {
        "x": 1,
        ("y", 0): (functions.inc, "x"),
        2.5: "x",
        "nested": (functions.add, (functions.inc, ("y", 0)), (sum, ["x", (functions.inc, 10)])),
        "list": [("y", 0), ["x", (functions.inc, "x")]],
        "literal": ["no", "key"],
        "closure": (lambda x: x * 7, "x"),
        "unused": (functions.fail, "x"),
    }
    keys = ["nested", [("y", 0), "x", [2.5]], "list", "literal", "closure"]
    return graph, keys, [15, [2, 1, [1]], [2, [1, 2]], ["no", "key"], 7]


def test_graphs_of_tuples(client: Client) -> None:
    graph, keys, values = graphs()
    assert client.get(graph, keys) == values


def test_graphs_of_tuples_without_dask(client: Client) -> None:
    graph, keys, values = graphs()
    assert client.gather(client.submit_graph(Graph(graph), keys)) == values
    with pytest.raises(ValueError, match="cycle"):
        client.submit_graph(Graph({"a": (functions.inc, "b"), "b": (functions.inc, "a")}), "a")
    program = "import sys; sys.modules['dask'] = None; import zdist; zdist.dask_get()\n"
    program += "from zdist.client.graph import Graph; from zdist import Client\n"
    program += "try: Client.compute(None, [1])\nexcept ImportError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install zdist[dask]" in done.stdout


def test_graphs_of_nodes(client: Client) -> None:
    spec = pytest.importorskip("dask._task_spec", reason="this dask has graphs of tuples only")
    ref, task = spec.TaskRef, spec.Task
    graph = {
        "x": spec.DataNode("x", 3),
        "alias": spec.Alias("alias", "x"),
        "inner": task("inner", functions.add, ref("x"), task(None, functions.inc, ref("alias"))),
        "containers": spec.List(ref("x"), spec.Tuple(ref("inner"), 1), spec.Dict({"k": ref("x")}), spec.Set(ref("x"))),
        "named": task("named", functions.total, ref("x"), y=ref("inner"), z=task(None, functions.inc, 1)),
        "dict": spec.Dict({"a": task(None, functions.inc, ref("x"))}),
    }
    graph["fused"] = spec.Task.fuse(
        task("f1", functions.inc, ref("inner")),
        task("f2", functions.add, ref("f1"), ref("f1")),
        task("f3", functions.add, ref("f2"), ref("x")),
    )
    keys = list(graph)
    expected = [3, 3, 7, [3, (7, 1), {"k": 3}, {3}], 12, {"a": 4}, 19]
    assert client.get(graph, keys) == expected
    sync = spec.execute_graph(graph)
    assert [sync[key] for key in keys] == expected


def test_a_deep_fused_chain_and_many_closures(client: Client) -> None:
    spec = pytest.importorskip("dask._task_spec", reason="this dask has graphs of tuples only")
    chain = [spec.Task("c0", functions.inc, 0)]
    chain += [spec.Task(f"c{i}", functions.inc, spec.TaskRef(f"c{i - 1}")) for i in range(1, 2000)]
    assert client.get({"end": spec.Task.fuse(*chain, key="end")}, "end") == 2000
    closures = {f"k{i}": (lambda x, i=i: x + i, 1) for i in range(300)}
    assert client.get(closures, list(closures)) == list(range(1, 301))


def test_lists_of_keys_give_tuples(get: Any) -> None:
    """As with dask's own schedulers; ``client.get`` gives lists, as dask.distributed's does."""
    graph = {"a": 1, "b": (operator.add, "a", 1)}
    assert get(graph, [["a", "b"], ["b"]]) == ((1, 2), (2,))
    assert get(graph, "b") == 2
    assert get.client.get(graph, [["a", "b"], ["b"]]) == [[1, 2], [2]]


def test_a_default_client_is_what_dask_computes_with(client: Client) -> None:
    """From its making on, unless dask has been told of another scheduler; what was persisted can be used at once."""
    assert dask.config.get("scheduler", None) is None
    with Client(client.address) as default:
        kept = da.ones((10,), chunks=5).persist()
        assert kept.sum().compute() == 10
        assert dask.delayed(functions.worker_address)().compute() in default.scheduler_info()["workers"]
        with dask.config.set(scheduler="sync"), Client(client.address):
            assert dask.delayed(os.getpid)().compute() == os.getpid()
    assert dask.config.get("scheduler", None) is None


def test_what_was_persisted_is_waited_for(client: Client, tmp_path: Path) -> None:
    def block(part: Any) -> Any:
        while not (tmp_path / "go").exists():
            threading.Event().wait(0.01)
        return part

    kept = client.persist(da.ones((10,), chunks=5).map_blocks(block, dtype=float, meta=da.ones(1)._meta))
    futures = client.futures_of({"a": [kept], "b": kept})
    assert len(futures) == 2 and zdist.futures_of(kept) == futures
    with pytest.raises(TimeoutError):
        zdist.wait(kept, timeout=0.1)
    (tmp_path / "go").touch()
    done, not_done = zdist.wait([kept], timeout=30)
    assert done == set(futures) and not not_done
