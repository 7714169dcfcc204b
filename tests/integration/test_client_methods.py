"""A closer look at the cluster, copies of results, and what is absent on purpose."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN, eventually

from zdist import Client, LocalCluster, get_client, get_worker, rejoin, secede, wait
from zdist.client.absent import ABSENT
from zdist.errors import ZdistError


def holders(client: Client, future: Any) -> int:
    return len(client.who_has([future])[future.key])


def owned(client: Client) -> dict[str, int]:
    return {address: len(keys) for address, keys in client.has_what().items()}


async def where(dask_worker: Any) -> str:
    await asyncio.sleep(0)
    return str(dask_worker.address)


def divide(a: int, b: Any, bias: int = 0) -> float:
    return a / (len(b) + bias)


def here(_: Any = None) -> int:
    return os.getpid()


# --- copies ---------------------------------------------------------------------------------------------


def test_results_and_data_are_replicated_and_reduced(client: Client) -> None:
    result, (data,) = client.submit(functions.zeros, 300_000), client.scatter([b"x" * 100])
    assert client.replicate([result, data]) is None
    assert holders(client, result) == holders(client, data) == 2
    client.replicate(result, n=2)  # at most one copy for each worker; there already
    client.replicate(result, n=1)
    assert (holders(client, result), holders(client, data)) == (1, 2)
    assert len(client.gather(result)) == 300_000
    (other,) = set(client.scheduler_info()["workers"]) - set(client.who_has([result])[result.key])
    client.replicate(result, n=1, workers=[other])
    assert holders(client, result) == 2


def test_what_cannot_be_replicated_says_why(client: Client) -> None:
    with pytest.raises(ValueError, match="n=0 is not a number of copies"):
        client.replicate([], n=0)
    future = client.submit(functions.inc, 1)
    with pytest.raises(ZdistError, match="there is no worker 'nobody'"):
        client.replicate(future, workers="nobody")
    failed, lock = client.submit(functions.fail, 1), client.submit(functions.return_unpicklable)
    with pytest.raises(ZdistError, match=r"1 of 2 results .*: its task has failed"):
        client.replicate([failed, future])
    assert holders(client, future) == 2
    with pytest.raises(ZdistError, match=f"{lock.key}: .*pickle"):
        client.replicate(lock)


def test_scatter_with_replicas(client: Client) -> None:
    data = client.scatter(b"y" * 1000, replicas=2)
    assert holders(client, data) == 2
    with pytest.raises(ValueError, match="replicas=0"):
        client.scatter(b"y", replicas=0)


def test_rebalance_moves_results_to_the_other_worker(client: Client) -> None:
    first, second = client.scheduler_info()["workers"]
    futures = [client.submit(functions.filled, n, 40_000, workers=first) for n in range(10)]
    wait(futures)
    assert owned(client)[first] == 10
    client.rebalance(futures[:2])
    assert owned(client)[second] <= 2
    client.rebalance()
    assert 4 <= owned(client)[first] <= 6 and sum(owned(client).values()) == 10
    assert [int(array[0]) for array in client.gather(futures)] == list(range(10))
    before = client.who_has()
    client.rebalance()
    assert client.who_has() == before


# --- a closer look --------------------------------------------------------------------------------------


def test_nbytes(client: Client) -> None:
    a, b = client.submit(functions.zeros, 100_000), client.submit(functions.zeros, 200_000)
    wait([a, b])
    client.replicate(a)
    each = client.nbytes(summary=False)
    assert each.keys() == {a.key, b.key} and 100_000 <= each[a.key] < 110_000
    assert client.nbytes() == {"zeros": sum(each.values())}
    assert client.nbytes([a.key], summary=False) == {a.key: each[a.key]} == client.nbytes([a], summary=False)
    assert client.nbytes(["unknown"]) == {}


def test_call_stack(client: Client, gate: functions.Gate) -> None:
    assert client.call_stack() == {}
    future = client.submit(functions.wait_at, gate, 1)
    waiting = client.submit(functions.inc, client.submit(functions.same, future))
    eventually(gate.arrived)
    ((address, stacks),) = client.call_stack().items()
    assert address in client.scheduler_info()["workers"]
    lines = stacks[future.key]
    assert "in wait_at" in lines[0] and any("in pass_through" in line for line in lines[1:])
    assert client.call_stack([waiting])[address].keys() == {future.key}  # what it waits for
    assert client.call_stack(keys=["unknown"]) == {}
    gate.open()
    assert client.gather([future, waiting]) == [1, 2]


def test_versions_and_what_differs(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    found = client.get_versions(check=True, packages=["pytest", "no-such-thing"])
    assert found.keys() == {"scheduler", "workers", "client"} and len(found["workers"]) == 2
    for each in (found["scheduler"], found["client"], *found["workers"].values()):
        assert each["packages"]["zdist"] and each["packages"]["msgpack"] and each["host"]["python"].startswith("3.")
        assert each["packages"]["pytest"] and each["packages"]["no-such-thing"] is None
    monkeypatch.setattr("cloudpickle.__version__", "0.1")
    with pytest.raises(ValueError, match=r"versions differ:\npackage +client +broker +workers\ncloudpickle +0\.1 "):
        client.get_versions(check=True)


def test_logs_of_the_broker(client: Client) -> None:
    logs = client.get_scheduler_logs()
    assert any("worker.joined" in line for _, line in logs) and {level for level, _ in logs} <= {"INFO", "WARNING"}
    assert client.get_scheduler_logs(1) == client.get_scheduler_logs()[-1:]


def test_a_coroutine_function_is_run(client: Client) -> None:
    found = client.run(where)
    assert found == {address: address for address in client.scheduler_info()["workers"]}
    assert client.run_coroutine(where) == found


def test_a_function_that_is_run_knows_its_worker_and_its_client(client: Client) -> None:
    def inside() -> Any:
        secede()
        rejoin()
        return get_worker().address, get_client().submit(pow, 2, 10, pure=False).result(WITHIN)

    async def inside_later() -> Any:
        return get_worker().address, await get_client().submit(pow, 2, 10, pure=False)

    workers = client.scheduler_info()["workers"]
    assert client.run(inside) == client.run(inside_later) == {address: (address, 1024) for address in workers}


# --- tasks again here -----------------------------------------------------------------------------------


def test_a_failed_task_runs_here_with_its_inputs(client: Client, second: Client) -> None:
    empty = client.submit(bytes)
    blamed = client.submit(divide, 3, empty, bias=0)
    after = client.submit(functions.inc, blamed)
    for future in (blamed, after, [client.submit(functions.inc, 1), after]):
        with pytest.raises(ZeroDivisionError) as caught:
            client.recreate_error_locally(future)
        assert caught.traceback[-1].path == Path(__file__)
    large = client.submit(divide, 8, b"x" * 100_000, pure=False)
    assert client.recreate_task_locally(large) == 8 / 100_000
    assert client.recreate_task_locally(client.submit(here)) == os.getpid()
    with pytest.raises(ZeroDivisionError):  # of another client's task the broker knows how it is made
        second.recreate_error_locally(after)
    with pytest.raises(ValueError, match="none of these 1 futures has failed"):
        client.recreate_error_locally(empty)
    with pytest.raises(ValueError, match="is data, which no task has made"):
        client.recreate_task_locally(client.scatter(5))


# --- connecting, and what is absent -----------------------------------------------------------------------


def test_a_scheduler_file(client: Client, cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "broker.json"
    client.write_scheduler_file(file)
    assert json.loads(file.read_text())["address"] == client.address
    assert cluster.token not in file.read_text() and list(tmp_path.iterdir()) == [file]
    with Client(scheduler_file=file, token=cluster.token, set_as_default=False) as other:
        assert other.submit(functions.inc, 1).result() == 2
    file.write_text("[]")
    with pytest.raises(ValueError, match="no file that write_scheduler_file has written"):
        Client(scheduler_file=file)
    with pytest.raises(ValueError, match="not both"):
        Client(client.address, scheduler_file=file)


def test_methods_on_an_event_loop(cluster: LocalCluster) -> None:
    async def main() -> None:
        client = Client(cluster, asynchronous=True, set_as_default=False)
        await client.start()
        try:
            assert client.asynchronous
            future = client.submit(divide, 1, b"")
            with pytest.raises(ZeroDivisionError):
                await client.recreate_error_locally(future)
            data = await client.scatter(b"z")
            await client.replicate(data)
            await client.rebalance()
            assert len((await client.who_has([data]))[data.key]) == 2
            assert await client.nbytes() and await client.call_stack() == {} and await client.get_versions()
        finally:
            await client.close()

    asyncio.run(main())


def test_what_is_absent_says_why(client: Client) -> None:
    with pytest.raises(AttributeError, match="run_on_scheduler: nothing of a user's runs in the broker"):
        client.run_on_scheduler  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'no_such'"):
        client.no_such  # noqa: B018
    assert not any(hasattr(client, name) for name in ABSENT)
    assert client.start() is None

    async def answer() -> int:
        return threading.get_ident()

    assert client.sync(answer) == threading.get_ident()


def test_a_worker_that_dies_while_results_move_harms_nothing(client: Client) -> None:
    first, second = client.scheduler_info()["workers"]
    futures = [client.submit(functions.filled, n, 4_000_000, workers=first) for n in range(12)]
    wait(futures)
    client.run(functions.die, workers=second, wait=False)
    client.rebalance()
    assert [int(array[0]) for array in client.gather(futures, timeout=WITHIN)] == list(range(12))


def test_workers_are_replaced_and_lose_nothing(client: Client) -> None:
    first, _ = client.scheduler_info()["workers"]
    before = client.run(os.getpid)
    futures = [client.submit(functions.filled, n, 40_000, workers=first) for n in range(3)]
    data = client.scatter([b"x" * 1000], workers=first)
    wait(futures)
    assert client.restart_workers(first) == {first: "OK"}
    after = client.run(os.getpid)
    assert len(set(before.values()) & set(after.values())) == 1 and len(after) == 2
    assert [int(array[0]) for array in client.gather(futures)] == [0, 1, 2] and client.gather(data) == [b"x" * 1000]
    with pytest.raises(ZdistError, match="there is no worker 'nobody'"):
        client.restart_workers(["nobody"])


def test_all_workers_are_replaced_and_lose_nothing(client: Client) -> None:
    workers = list(client.scheduler_info()["workers"])
    before = client.run(os.getpid)
    data = client.scatter([bytes([n]) * 1000 for n in range(8)])
    assert client.restart_workers(workers) == dict.fromkeys(workers, "OK")
    assert not set(before.values()) & set(client.run(os.getpid).values())
    assert client.gather(data) == [bytes([n]) * 1000 for n in range(8)]


def test_the_only_worker_is_replaced_unless_that_would_lose_data() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as alone, Client(alone, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WITHIN)
        (worker,) = client.scheduler_info()["workers"]
        made = client.submit(functions.filled, 7, 40_000)
        (data,) = client.scatter([b"x" * 1000])
        wait(made)
        with pytest.raises(ZdistError, match=f"the only worker, and {data.key} could not be computed again: add one"):
            client.restart_workers(worker)
        assert client.gather(data) == b"x" * 1000 and client.submit(here).result(timeout=WITHIN)
        before = client.run(os.getpid)
        data.release()
        assert client.restart_workers(worker) == {worker: "OK"}
        assert client.run(os.getpid) != before and int(client.gather(made)[0]) == 7
