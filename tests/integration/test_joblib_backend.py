"""joblib on a cluster: what ``Parallel`` promises, with the backend "zdist"."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import cluster_functions as functions
import numpy
import pytest
from cluster_checks import eventually

from zdist import Client, LocalCluster, context

joblib = pytest.importorskip("joblib", reason="joblib is not installed")
from joblib import Parallel, delayed  # noqa: E402

from zdist.integrations import joblib as backend_module  # noqa: E402


@pytest.fixture(autouse=True)
def current(client: Client) -> Iterator[Client]:
    """The client is the current one; and no thread of a call is left behind."""
    with client.as_current():
        yield client
    eventually(lambda: not calls(), "the end of all calls")


def calls() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith("-joblib")]


def inner(n: int, n_jobs: int) -> int:
    return sum(Parallel(n_jobs=n_jobs, batch_size=1)(delayed(functions.inc)(i) for i in range(n)))


def tree(depth: int) -> int:
    if not depth:
        return 1
    return sum(Parallel(n_jobs=-1)(delayed(tree)(depth - 1) for _ in range(2)))


def active() -> tuple[str, int, int]:
    backend, _ = joblib.parallel.get_active_backend()
    return type(backend).__name__, backend.nesting_level, Parallel().n_jobs


def identity(array: Any) -> tuple[int, int, bool]:
    """The process, which object it is there, and whether it can be written to."""
    return os.getpid(), id(array), array.flags.writeable


def raise_in_the_middle(i: int) -> int:
    if i == 3:
        raise KeyError("three") from ValueError("why")
    return i


@pytest.mark.parametrize("how", ["config", "context", "argument", "instance"])
def test_ways_to_name_it(how: str, client: Client) -> None:
    expected = list(range(1, 51))
    work = [delayed(functions.inc)(i) for i in range(50)]
    if how == "config":
        with joblib.parallel_config("zdist"):
            assert Parallel()(work) == expected
    elif how == "context":
        with joblib.parallel_backend("zdist"):
            assert Parallel()(work) == expected
    elif how == "argument":
        assert Parallel(backend="zdist", n_jobs=3)(work) == expected
    else:
        with context.as_current(None), joblib.parallel_config(backend_module.ZdistBackend(client=client)):
            assert Parallel()(work) == expected


def test_it_runs_on_the_workers_and_n_jobs_bounds_what_is_out(client: Client, gate: functions.Gate) -> None:
    with joblib.parallel_config("zdist"):
        assert joblib.effective_n_jobs() == joblib.effective_n_jobs(-1) == 4
        assert joblib.effective_n_jobs(-2) == 3
        assert joblib.effective_n_jobs(7) == 7
        values = Parallel(n_jobs=2, batch_size=1, pre_dispatch="all", return_as="generator")(
            delayed(functions.pid_at)(gate, i) for i in range(12)
        )
        eventually(lambda: gate.arrived() == 2, "two tasks")
        assert sum(map(len, client.processing().values())) == 2
        gate.open()
        pids = list(values)
    assert len(pids) == 12 and set(pids) <= set(client.run(os.getpid).values())


@pytest.mark.parametrize("workers", [1, 3])
def test_all_of_a_cluster_that_has_just_begun_do_the_work_and_not_this_process(workers: int) -> None:
    with LocalCluster(workers, 1) as cluster, Client(cluster) as fresh, joblib.parallel_config("zdist", client=fresh):
        pids = set(Parallel(n_jobs=-1, batch_size=1)(delayed(os.getpid)() for _ in range(20)))
        assert joblib.effective_n_jobs(-1) == workers
        assert pids <= set(fresh.run(os.getpid).values())


def test_options_reach_the_tasks(client: Client) -> None:
    address = next(iter(client.nthreads()))
    with joblib.parallel_config("zdist", workers=[address]):
        assert joblib.effective_n_jobs(-1) == 2
        assert set(Parallel(batch_size=1)(delayed(functions.worker_address)() for _ in range(8))) == {address}
    with pytest.raises(TypeError, match="no option colour; it takes client"):
        joblib.parallel_config("zdist", colour="red")
    with pytest.raises(ValueError, match="retries"):
        joblib.parallel_config("zdist", retries=-1)
    with pytest.raises(TypeError, match=r"takes a zdist\.Client, got str: 'tcp://here:1'"):
        Parallel(backend=backend_module.ZdistBackend(client="tcp://here:1"), n_jobs=2)([delayed(functions.inc)(1)])
    with pytest.raises(TypeError, match="list or tuple"):
        joblib.parallel_config("zdist", scatter={})
    with joblib.parallel_config("zdist", workers="nowhere"), pytest.raises(ValueError, match="nowhere"):
        Parallel()([delayed(functions.inc)(1)])


def test_calls_in_tasks(client: Client) -> None:
    with joblib.parallel_config("zdist"):
        assert Parallel(batch_size=1)([delayed(active)()] * 2) == [("ZdistBackend", 1, 1)] * 2
        assert Parallel(batch_size=1)(delayed(inner)(5, -1) for _ in range(20)) == [15] * 20
        assert Parallel(batch_size=1)(delayed(inner)(5, 2) for _ in range(8)) == [15] * 8
        assert Parallel(batch_size=1)(delayed(tree)(5) for _ in range(2)) == [32] * 2


def test_exceptions_are_those_of_the_task(client: Client, gate: functions.Gate) -> None:
    with Parallel(backend="zdist", n_jobs=3) as parallel:
        with pytest.raises(KeyError) as caught:
            parallel(delayed(raise_in_the_middle)(i) for i in range(20))
        assert caught.value.args == ("three",) and isinstance(caught.value.__cause__, ValueError)
        assert "raise_in_the_middle" in "".join(caught.value.__notes__)
        with pytest.raises(KeyboardInterrupt):
            parallel([delayed(functions.raise_kind)(KeyboardInterrupt)] * 2)
        with pytest.raises(Exception, match="lock"):
            parallel(delayed(functions.same)(x) for x in (1, 2, threading.Lock()))
        assert parallel(delayed(functions.inc)(i) for i in range(5)) == [1, 2, 3, 4, 5]
    with pytest.raises(Exception, match="lock"):  # handed out by the thread that collects
        Parallel(backend="zdist")(delayed(functions.same)(threading.Lock() if i == 30 else i) for i in range(40))
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(backend="zdist", n_jobs=2, timeout=0.1)(delayed(functions.wait_at)(gate, i) for i in range(8))
    gate.open()


def test_what_has_not_started_is_cancelled(client: Client, gate: functions.Gate) -> None:
    """By the caller's exception, and by a generator that is closed."""
    work = [delayed(functions.wait_at)(gate, i) for i in range(40)]

    def interrupted() -> Iterator[Any]:
        yield from work[:20]
        raise KeyboardInterrupt

    with joblib.parallel_config("zdist"):
        with pytest.raises(KeyboardInterrupt):
            Parallel(pre_dispatch="all", batch_size=1)(interrupted())
        with pytest.warns(UserWarning, match="have been cancelled"):
            values = Parallel(pre_dispatch="all", batch_size=1, return_as="generator")(work)
            values.close()
    gate.open()
    eventually(lambda: client.counts()["tasks"] == 0, "no tasks")
    assert gate.arrived() < 30


def test_generators_one_inside_another_and_side_by_side(client: Client) -> None:
    with joblib.parallel_config("zdist"):
        ones = Parallel(return_as="generator")(delayed(functions.inc)(i) for i in range(30))
        others = Parallel(return_as="generator_unordered")(delayed(functions.inc)(i) for i in range(30))
        twos = Parallel(return_as="generator")(delayed(functions.inc)(i) for i in ones)
        assert list(twos) == list(range(2, 32))
        assert sorted(others) == list(range(1, 31))


def test_a_large_array_is_sent_once_and_read_only(client: Client) -> None:
    large, small = numpy.ones(300_000), numpy.ones(10_000)
    with joblib.parallel_config("zdist"):
        found = Parallel(batch_size=1)(delayed(identity)(large) for _ in range(12))
        assert len(set(found)) <= 2 and not any(writeable for _, _, writeable in found)
        assert all(w for _, _, w in Parallel(batch_size=1)(delayed(identity)(small) for _ in range(4)))
        assert all(w for _, _, w in Parallel(batch_size=1, mmap_mode="c")(delayed(identity)(large) for _ in range(4)))
        changed = Parallel(batch_size=1, max_nbytes=None)(delayed(functions.one_is_changed)(large) for _ in range(8))
        assert changed == [2] * 8
        with pytest.raises(ValueError, match="read-only"):
            Parallel(batch_size=1)(delayed(functions.one_is_changed)(large) for _ in range(2))
    assert large[0] == 1


def test_scattered_objects(client: Client) -> None:
    array, words = numpy.ones(1000), ["a"] * 10
    with joblib.parallel_config("zdist", scatter=[array, words]):
        found = Parallel(batch_size=1)(delayed(identity)(array=array) for _ in range(12))
        assert len(set(found)) <= 2 and not any(writeable for _, _, writeable in found)
        assert Parallel()(delayed(len)(words) for _ in range(3)) == [10] * 3


def test_without_a_client_or_with_an_asynchronous_one(cluster: LocalCluster) -> None:
    with context.as_current(None), pytest.raises(ValueError, match=r"make one with zdist\.Client"):
        Parallel(backend="zdist", n_jobs=2)([delayed(functions.inc)(1)])
    asynchronous = Client(cluster, asynchronous=True)
    with pytest.raises(TypeError, match="synchronous client"):
        Parallel(backend=backend_module.ZdistBackend(client=asynchronous), n_jobs=2)([delayed(functions.inc)(1)])


def test_a_client_that_is_closed_meanwhile(cluster: LocalCluster, gate: functions.Gate) -> None:
    other = Client(cluster, set_as_default=False)
    backend = backend_module.ZdistBackend(client=other)
    values = Parallel(backend=backend, n_jobs=2, batch_size=1, return_as="generator")(
        delayed(functions.wait_at)(gate, i) for i in range(4)
    )
    eventually(lambda: gate.arrived() == 2, "two tasks")
    other.close()
    with pytest.raises(Exception, match="closed"):
        next(values)
    gate.open()


def test_a_client_registers_it(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(joblib.parallel.BACKENDS, "zdist")
    monkeypatch.delitem(sys.modules, backend_module.__name__)
    with Client(cluster, set_as_default=False):
        assert joblib.parallel.BACKENDS["zdist"].__module__ == backend_module.__name__


def test_waiting_does_not_take_the_processor(client: Client, gate: functions.Gate) -> None:
    values = Parallel(backend="zdist", n_jobs=2, return_as="generator")([delayed(functions.wait_at)(gate)] * 2)
    eventually(lambda: gate.arrived() == 2, "two tasks")
    before = time.process_time()
    threading.Event().wait(0.2)
    assert time.process_time() - before < 0.1
    gate.open()
    assert list(values) == [0, 0]
