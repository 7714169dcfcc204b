"""The same on an event loop: Client(asynchronous=True)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN

from zdist import CancelledError, Client, LocalCluster, as_completed, wait


@pytest.fixture
async def aclient(cluster: LocalCluster) -> AsyncIterator[Client]:
    async with Client(cluster, asynchronous=True, set_as_default=False) as client:
        yield client
        async with asyncio.timeout(WITHIN):
            assert await client.submit(functions.add, 1, 1, pure=False) == 2


async def test_await_for_everything(aclient: Client) -> None:
    await aclient.wait_for_workers(2)
    future = aclient.submit(functions.inc, 1)
    assert await future == 2
    assert await future.result() == 2
    assert await aclient.gather(aclient.map(functions.inc, range(100))) == list(range(1, 101))
    assert await aclient.gather({"a": [future]}) == {"a": [2]}
    assert await aclient.submit(functions.add, await aclient.scatter(5), 1) == 6
    assert len((await aclient.run(functions.worker_pid)).values()) == 2


async def test_await_client(cluster: LocalCluster) -> None:
    client = await Client(cluster, asynchronous=True, set_as_default=False)
    assert await client.submit(functions.inc, 1) == 2
    await client.close()
    assert client.status == "closed"


async def test_errors(aclient: Client) -> None:
    bad = aclient.submit(functions.fail, 1)
    with pytest.raises(ValueError, match="on purpose 1"):
        await bad
    with pytest.raises(ValueError, match="on purpose 1"):
        await aclient.gather([bad])
    assert isinstance(await bad.exception(), ValueError)
    assert await aclient.gather([bad, aclient.submit(functions.inc, 1)], errors="skip") == [2]


async def test_wait_and_as_completed(aclient: Client, gate: functions.Gate) -> None:
    late = aclient.submit(functions.wait_at, gate)
    futures = aclient.map(functions.inc, range(20), pure=False)
    assert (await wait(futures)).done == set(futures)
    assert late in (await wait([late, *futures], return_when="FIRST_COMPLETED")).not_done
    with pytest.raises(TimeoutError):
        await wait([late], timeout=0.1)
    got = [value async for _, value in as_completed(futures, with_results=True)]
    assert sorted(got) == list(range(1, 21))
    stream, seen = as_completed([late]), []
    gate.open()
    async for future in stream:
        seen.append(await future)
        if len(seen) < 5:
            stream.add(aclient.submit(functions.same, len(seen), pure=False))
    assert seen == [0, 1, 2, 3, 4]


async def test_timeout_and_cancellation_leave_the_future_alone(aclient: Client, gate: functions.Gate) -> None:
    late = aclient.submit(functions.wait_at, gate, "late")
    with pytest.raises(TimeoutError):
        await aclient.gather(late, timeout=0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(aclient.gather(late), 0.1)
    waiting = asyncio.ensure_future(aclient.gather(late))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.open()
    assert await late == "late"


async def test_cancel(aclient: Client, gate: functions.Gate) -> None:
    future = aclient.submit(functions.wait_at, gate, pure=False)
    await aclient.cancel(future)
    with pytest.raises(CancelledError):
        await future
    gate.open()


async def test_many_at_once(aclient: Client) -> None:
    futures = aclient.map(functions.inc, range(500), pure=False)
    results = await asyncio.gather(*(aclient.gather(futures[i : i + 50]) for i in range(0, 500, 25)))
    assert results[0] == list(range(1, 51)) and len(results) == 20


async def test_callbacks_run_on_the_loop(aclient: Client) -> None:
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    loops = []

    def note(future: object) -> None:
        loops.append(asyncio.get_running_loop())
        seen.set()

    aclient.submit(functions.inc, 1, pure=False).add_done_callback(note)
    await asyncio.wait_for(seen.wait(), 20)
    assert loops == [loop]


async def test_iterators_and_queues(aclient: Client) -> None:
    source = (aclient.submit(functions.inc, i) for i in range(100))
    assert [value async for value in aclient.gather(source)] == list(range(1, 101))
    queue: asyncio.Queue[object] = asyncio.Queue()
    sink = aclient.gather(queue)
    for i in range(10):
        queue.put_nowait(aclient.submit(functions.inc, i))
    assert [await asyncio.wait_for(sink.get(), 20) for _ in range(10)] == list(range(1, 11))


async def test_a_blocking_call_on_the_loop_is_refused(aclient: Client) -> None:
    future = aclient.submit(functions.inc, 1, pure=False)
    with pytest.raises(RuntimeError, match="event loop"):
        aclient.gather(future, asynchronous=False)
    assert await future == 2


async def test_an_awaitable_from_a_synchronous_client(client: Client) -> None:
    future = client.submit(functions.inc, 1, pure=False)
    assert await client.gather([future], asynchronous=True) == [2]
