"""concurrent.futures on a cluster: what CPython's own tests (tests/ecosystem) do not look at."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent import futures as standard
from pathlib import Path
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN, eventually, idle

import zdist
from zdist import Client, InitializerFailed, KilledWorker, LocalCluster, SerializationError, ZdistExecutor


@pytest.fixture
def executor(client: Client) -> Any:
    with client.get_executor() as executor:
        yield executor
    assert client.status == "running" and not executor._open
    idle(client)


def test_standard_futures(executor: ZdistExecutor) -> None:
    futures = [executor.submit(functions.add, i, y=i) for i in range(20)]
    assert all(isinstance(future, standard.Future) for future in futures)
    done, not_done = standard.wait(futures, timeout=WITHIN)
    assert (len(done), not_done) == (20, set())
    assert {future.result() for future in standard.as_completed(futures)} == set(range(0, 40, 2))


def test_arguments_may_have_the_names_of_options(executor: ZdistExecutor) -> None:
    named = {"self": 1, "fn": 2, "func": 3, "key": 4, "workers": 5, "retries": 6, "timeout": 7}
    assert executor.submit(functions.describe, **named).result(WITHIN) == ((), named)


def test_equal_calls_run_each_unless_pure(client: Client, tmp_path: Path) -> None:
    for pure, times in ((False, 3), (True, 1)):
        path = tmp_path / str(pure)
        with client.get_executor(pure=pure) as executor:
            list(executor.map(functions.log_line, [str(path)] * 3, "aaa"))
        assert path.read_text().count("a") == times


def test_exceptions_are_those_of_the_task(executor: ZdistExecutor) -> None:
    error = executor.submit(functions.fail, 1).exception(WITHIN)
    assert type(error) is ValueError and error.args == ("on purpose 1",)
    assert "in fail" in "".join(traceback.format_tb(error.__traceback__))
    with pytest.raises(SystemExit, match="3"):
        executor.submit(sys.exit, 3).result(WITHIN)


def test_what_cannot_be_pickled_fails_by_its_future(executor: ZdistExecutor) -> None:
    future = executor.submit(functions.same, threading.Lock())
    assert isinstance(future.exception(WITHIN), SerializationError)
    assert isinstance(executor.submit(threading.Lock).exception(WITHIN), SerializationError)


def test_callbacks_have_run_when_shutdown_returns(client: Client) -> None:
    seen: list[int] = []
    with client.get_executor() as executor:
        for i in range(50):
            executor.submit(functions.same, i).add_done_callback(lambda future: seen.append(future.result()))
    assert sorted(seen) == list(range(50))


def test_a_callback_may_wait_and_submit(executor: ZdistExecutor) -> None:
    inner: list[int] = []
    outer = executor.submit(functions.inc, 1)
    done = threading.Event()

    def go_on(future: Any) -> None:
        inner.append(executor.submit(functions.inc, future.result()).result(WITHIN))
        done.set()

    outer.add_done_callback(go_on)
    assert done.wait(WITHIN) and inner == [3]


def test_who_waits_holding_a_lock_that_a_callback_wants(executor: ZdistExecutor, gate: functions.Gate) -> None:
    lock = threading.Lock()
    called = threading.Event()

    def callback(_: Any) -> None:
        with lock:
            called.set()

    with lock:
        future = executor.submit(functions.wait_at, gate)
        future.add_done_callback(callback)
        gate.open()
        assert future.result(WITHIN) == 0
        assert not called.is_set()
    assert called.wait(WITHIN)


@pytest.mark.parametrize("how", ["wait", "result"])
def test_large_results(executor: ZdistExecutor, how: str) -> None:
    futures = [executor.submit(functions.filled, i, 1 << 20) for i in range(8)]
    small = executor.submit(functions.inc, 1)
    if how == "wait":
        assert not standard.wait([*futures, small], timeout=WITHIN).not_done
    assert [int(future.result(WITHIN)[-1]) for future in futures] == list(range(8))
    assert small.result(WITHIN) == 2


def test_a_value_that_does_not_come_holds_up_no_other(cluster: LocalCluster) -> None:
    """Its worker is stopped after the task, before the value is fetched."""
    with Client(cluster, shared_memory=0, set_as_default=False) as client:
        client.wait_for_workers(2, WITHIN)
        (stopped, pid), (other, _) = client.run(functions.worker_pid).items()
        busy, go_on = threading.Event(), threading.Event()
        slow, quick = client.get_executor(workers=stopped), client.get_executor(workers=other)
        quick.submit(functions.inc, 1).add_done_callback(lambda _: busy.set() or go_on.wait(WITHIN))
        assert busy.wait(WITHIN)  # the thread for callbacks
        large = slow.submit(functions.filled, 7, 1 << 20)
        eventually(lambda: large._remote.status == "finished", "the task is over")
        os.kill(pid, signal.SIGSTOP)
        try:
            go_on.set()
            small = [quick.submit(functions.inc, i) for i in range(5)]
            assert not standard.wait(small, timeout=WITHIN).not_done
            with pytest.raises(TimeoutError):
                large.result(0.1)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert standard.wait([large], timeout=WITHIN).done and large.result()[0] == 7


def test_many_threads(executor: ZdistExecutor) -> None:
    with standard.ThreadPoolExecutor(8) as threads:
        sums = threads.map(lambda n: sum(executor.map(functions.inc, range(n))), range(20, 28))
    assert list(sums) == [n * (n + 1) // 2 for n in range(20, 28)]


def test_results_that_are_late(executor: ZdistExecutor, gate: functions.Gate) -> None:
    future = executor.submit(functions.wait_at, gate, "late")
    with pytest.raises(TimeoutError):
        future.result(0.05)
    gate.open()
    assert future.result(WITHIN) == "late"


# --- asyncio -----------------------------------------------------------------------------------------------


async def test_asyncio(client: Client, gate: functions.Gate) -> None:
    loop = asyncio.get_running_loop()
    executor = client.get_executor(max_workers=1)
    assert await loop.run_in_executor(executor, functions.inc, 1) == 2
    with pytest.raises(ValueError, match="on purpose"):
        await loop.run_in_executor(executor, functions.fail, 1)
    running = loop.run_in_executor(executor, functions.wait_at, gate, "first")
    second = executor.submit(functions.wait_at, gate, "second")
    wrapped = asyncio.wrap_future(second)
    wrapped.cancel()
    await asyncio.wait([wrapped])
    assert second.cancelled()
    gate.open()
    assert await running == "first"
    await asyncio.to_thread(executor.shutdown)


async def test_an_asynchronous_client(cluster: LocalCluster, gate: functions.Gate) -> None:
    loop = asyncio.get_running_loop()
    async with Client(cluster, asynchronous=True, set_as_default=False) as client:
        executor = client.get_executor()
        work = [loop.run_in_executor(executor, functions.filled, i, 1 << 20) for i in range(3)]
        assert [int(array[0]) for array in await asyncio.gather(*work)] == [0, 1, 2]
        waits = executor.submit(functions.wait_at, gate)
        with pytest.raises(RuntimeError, match="block the event loop"):
            waits.result(WITHIN)
        gate.open()
        assert await asyncio.wrap_future(waits) == 0


# --- map -----------------------------------------------------------------------------------------------------


def test_map_reads_no_further_than_its_buffer(executor: ZdistExecutor) -> None:
    numbers = itertools.count()
    results = executor.map(functions.inc, numbers, buffersize=5)
    assert next(numbers) == 5
    assert list(itertools.islice(results, 3)) == [1, 2, 3]
    assert next(numbers) == 9  # 6, 7, 8 are submitted
    results.close()  # type: ignore[attr-defined]
    assert list(executor.map(functions.add, range(10), range(9), chunksize=4, buffersize=1)) == list(range(0, 18, 2))


@pytest.mark.parametrize("limit", [None, 5])
def test_map_keeps_nothing_that_it_has_given(client: Client, limit: int | None) -> None:
    """What its reader drops goes at once, whatever other threads still do for it."""
    late = 0
    with ZdistExecutor(client, max_workers=limit) as executor:
        for _ in range(10):
            for made in executor.map(functions.Box, range(10)):
                alive = weakref.ref(made)
                del made
                late += alive() is not None
    assert late < 5  # those threads may lose the processor between any two steps, but seldom do


def test_closing_a_map_cancels_the_rest(client: Client, gate: functions.Gate) -> None:
    with client.get_executor(max_workers=1) as executor:
        results = executor.map(functions.wait_at, [gate] * 3, "abc", timeout=0.05)
        with pytest.raises(TimeoutError):
            next(results)
        eventually(lambda: len(executor._open) == 1, "two of three are cancelled")
        gate.open()
    assert gate.arrived() == 1


@pytest.mark.parametrize(
    "options, error",
    [({"buffersize": 0}, ValueError), ({"buffersize": 1.5}, TypeError), ({"chunksize": 0}, ValueError)],
)
def test_bad_options_of_map(executor: ZdistExecutor, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        executor.map(functions.inc, [1], **options)


# --- cancelling and ending -----------------------------------------------------------------------------------


def test_max_workers_is_kept_to(client: Client, gate: functions.Gate) -> None:
    with client.get_executor(max_workers=2) as executor:
        futures = [executor.submit(functions.wait_at, gate, i) for i in range(6)]
        eventually(lambda: gate.arrived() == 2, "two run")
        assert [future.running() for future in futures] == [True, True, False, False, False, False]
        assert not futures[0].cancel() and futures[5].cancel() and futures[5].cancel()
        assert client.submit(functions.inc, 1).result(WITHIN) == 2  # others have the other threads
        assert gate.arrived() == 2
        gate.open()
        assert [future.result(WITHIN) for future in futures[:5]] == [0, 1, 2, 3, 4]
    assert gate.arrived() == 5 and futures[5].cancelled()
    with pytest.raises(standard.CancelledError):
        futures[5].result()


def test_without_a_limit_cancel_gives_up_what_has_started(client: Client, gate: functions.Gate) -> None:
    executor = client.get_executor()
    future = executor.submit(functions.wait_at, gate)
    eventually(lambda: gate.arrived() == 1, "it runs")
    waits = threading.Thread(target=standard.wait, args=([future],))
    waits.start()
    assert not future.running() and future.cancel() and future.cancelled()
    waits.join(WITHIN)
    assert not waits.is_alive()
    executor.shutdown()  # does not wait for it
    gate.open()


def test_shutdown_cancels_what_does_not_run(client: Client, gate: functions.Gate) -> None:
    executor = client.get_executor(max_workers=2)
    futures = [executor.submit(functions.wait_at, gate, i) for i in range(6)]
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(functions.inc, 1)
    assert [future.cancelled() for future in futures] == [False, False, True, True, True, True]
    gate.open()
    executor.shutdown()
    assert [future.result(0) for future in futures[:2]] == [0, 1]


def test_a_client_of_its_own_is_closed_with_the_last_future(cluster: LocalCluster, gate: functions.Gate) -> None:
    executor = ZdistExecutor(cluster.broker_address)
    future = executor.submit(functions.wait_at, gate)
    executor.shutdown(wait=False)
    assert executor.client.status == "running"
    gate.open()
    assert future.result(WITHIN) == 0
    eventually(lambda: executor.client.status == "closed", "the client is closed")


def test_closing_the_client_ends_its_futures(second: Client, gate: functions.Gate) -> None:
    executor = second.get_executor()
    future = executor.submit(functions.wait_at, gate)
    eventually(lambda: gate.arrived() == 1, "it runs")
    second.close()
    with pytest.raises(zdist.CancelledError, match="closed"):
        future.result(WITHIN)
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(functions.inc, 1)
    gate.open()


def test_when_the_interpreter_ends() -> None:
    program = """
import time
from zdist import ZdistExecutor
def slow(x):
    time.sleep(0.3)
    return x
executor = ZdistExecutor(max_workers=1)
for x in range(2):
    executor.submit(slow, x).add_done_callback(lambda future: print(future.result()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n1\n") and "Traceback" not in done.stderr


# --- workers ---------------------------------------------------------------------------------------------------


def executor_in_a_task(n: int) -> int:
    with ZdistExecutor() as executor:
        return sum(executor.map(functions.inc, range(n)))


def test_in_tasks(client: Client) -> None:
    assert client.gather(client.map(executor_in_a_task, range(10, 20)), timeout=WITHIN) == [
        n * (n + 1) // 2 for n in range(10, 20)
    ]


def test_options_of_submit(client: Client, tmp_path: Path) -> None:
    address = next(iter(client.scheduler_info()["workers"]))
    with client.get_executor(workers=[address], retries=2) as executor:
        assert set(executor.map(functions.worker_address, range(8))) == {address}
        assert executor.submit(functions.fail_until, str(tmp_path / "log"), 2).result(WITHIN) == 3
    with pytest.raises(ValueError, match="retries"):
        client.get_executor(retries=-1)


def prepared(path: str) -> int:
    """Was this process prepared, and how often?"""
    return Path(path).read_text().split().count(str(os.getpid()))


def prepare(path: str) -> None:
    functions.log_line(path, os.getpid())


def test_an_initializer_runs_once_in_each_process_also_a_new_one(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "pids")
    with client.get_executor(initializer=prepare, initargs=(path,)) as executor:
        assert set(executor.map(prepared, [path] * 40)) == {1}
        assert set(executor.map(prepared, [path] * 40, chunksize=3)) == {1}
        before = client.run(functions.worker_pid)
        os.kill(next(iter(before.values())), signal.SIGKILL)
        eventually(lambda: len(set(client.run(functions.worker_pid, on_error="ignore").values()) - {*before.values()}))
        address, pid = next((a, p) for a, p in client.run(functions.worker_pid).items() if p not in before.values())
        with client.get_executor(initializer=prepare, initargs=(path,), workers=address) as other:
            assert other.submit(prepared, path).result(WITHIN) == 1
        eventually(lambda: executor.submit(functions.worker_pid).result(WITHIN) == pid)
        assert (tmp_path / "pids").read_text().split().count(str(pid)) == 2  # once for each executor


def test_an_initializer_that_fails(client: Client, caplog: pytest.LogCaptureFixture, gate: functions.Gate) -> None:
    executor = client.get_executor(max_workers=2, initializer=functions.fail, initargs=("early",))
    futures = [executor.submit(functions.wait_at, gate) for _ in range(5)]
    assert not standard.wait(futures, timeout=WITHIN).not_done
    for future in futures:
        error = future.exception()
        assert isinstance(error, InitializerFailed) and isinstance(error, standard.BrokenExecutor)
        assert "on purpose early" in str(error) and isinstance(error.__cause__, ValueError)
    with pytest.raises(standard.BrokenExecutor, match="on purpose early"):
        executor.submit(functions.inc, 1)
    executor.shutdown()
    (record,) = [record for record in caplog.records if record.name == "concurrent.futures"]
    assert record.levelname == "CRITICAL"
    assert gate.arrived() == 0


def test_an_initializer_that_cannot_be_pickled(client: Client) -> None:
    with pytest.raises(SerializationError, match="initializer"):
        client.get_executor(initializer=functions.same, initargs=(threading.Lock(),))


def test_a_task_that_kills_its_workers(start: Callable[..., LocalCluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_BROKER__ALLOWED_DEATHS", "0")
    with ZdistExecutor(start(n_workers=1, threads_per_worker=1)) as executor:
        error = executor.submit(functions.die).exception(WITHIN)
        assert isinstance(error, KilledWorker) and not isinstance(error, standard.BrokenExecutor)
        assert executor.submit(functions.inc, 1).cancel()  # it takes more; to wait for the next worker takes a while


def test_bad_options(client: Client) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        client.get_executor(max_workers=0)
    with pytest.raises(TypeError, match="initializer"):
        client.get_executor(initializer=1)
    with pytest.raises(TypeError, match="for 4 tasks write max_workers=4"):
        ZdistExecutor(4)
    with contextlib.closing(Client(client.address, token=client.cluster.token, set_as_default=False)) as closed:
        closed.close()
        with pytest.raises(RuntimeError, match="closed"):
            closed.get_executor().submit(functions.inc, 1)
