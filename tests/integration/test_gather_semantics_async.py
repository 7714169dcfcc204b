"""What gather promises of event loops and time: asynchronous=, timeout=, cancelling the task that waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN, idle

from zdist import CancelledError, Client, LocalCluster, as_completed


@pytest.fixture
async def aclient(cluster: LocalCluster) -> AsyncIterator[Client]:
    async with Client(cluster, asynchronous=True, set_as_default=False) as client:
        yield client
        async with asyncio.timeout(WITHIN):
            assert await client.submit(functions.add, 1, 1, pure=False) == 2
        idle(client)


# --- asynchronous= ----------------------------------------------------------------------------------------


async def test_none_follows_the_client(aclient: Client) -> None:
    future = aclient.submit(functions.inc, 1)
    assert await aclient.gather(future) == 2
    assert await aclient.gather([future], asynchronous=None) == [2]
    assert await aclient.gather({"k": (future,)}, asynchronous=True) == {"k": (2,)}


async def test_true_on_a_synchronous_client(client: Client) -> None:
    future = client.submit(functions.inc, 1, pure=False)
    for given, expected in ((future, 2), ([future], [2]), ([], [])):
        awaitable = client.gather(given, asynchronous=True)
        assert await awaitable == expected
    values = client.gather(iter([future, future]), asynchronous=True)
    assert [value async for value in values] == [2, 2]


def test_false_on_an_asynchronous_client_from_another_thread(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True, set_as_default=False) as client:
            futures = client.map(functions.inc, range(20), pure=False)
            assert await asyncio.to_thread(client.gather, futures, asynchronous=False) == list(range(1, 21))
            values = await asyncio.to_thread(lambda: list(client.gather(iter(futures), asynchronous=False)))
            assert values == list(range(1, 21))

    asyncio.run(main())


async def test_false_on_the_loops_own_thread_is_a_clear_error(aclient: Client) -> None:
    futures = [aclient.submit(functions.inc, i, pure=False) for i in range(2)]
    for given in (futures[0], futures, {"k": futures}):
        with pytest.raises(RuntimeError, match=f"would block the event loop that .*{aclient.name} runs on.*await"):
            aclient.gather(given, asynchronous=False)
    values = aclient.gather(iter(futures), asynchronous=False)  # may be read in another thread
    with pytest.raises(RuntimeError, match="would block the event loop"):
        next(values)
    assert await asyncio.to_thread(list, values) == [1, 2]


async def test_another_client_on_the_loop_of_one_is_refused_as_well(aclient: Client, cluster: LocalCluster) -> None:
    """What it waits for may need this very loop."""
    blocking = await asyncio.to_thread(Client, cluster, set_as_default=False)
    try:
        future = blocking.submit(functions.inc, 1, pure=False)
        for call in (future.result, lambda: blocking.gather([future])):
            with pytest.raises(RuntimeError, match=f"would block the event loop that .*{aclient.name} runs on"):
                call()
        assert await blocking.gather([future], asynchronous=True) == [2]
    finally:
        await asyncio.to_thread(blocking.close)


async def test_a_synchronous_client_may_block_a_loop_that_no_client_runs_on(client: Client) -> None:
    assert client.gather([client.submit(functions.inc, 1, pure=False)]) == [2]  # as in a notebook


def test_a_client_of_one_loop_used_on_another(cluster: LocalCluster) -> None:
    """Awaiting works from any loop."""
    ready, over = threading.Event(), threading.Event()
    held: dict[str, Any] = {}

    async def owner() -> None:
        async with Client(cluster, asynchronous=True, set_as_default=False) as client:
            held["client"] = client
            ready.set()
            await asyncio.to_thread(over.wait, 30)

    thread = threading.Thread(target=asyncio.run, args=(owner(),))
    thread.start()
    try:
        assert ready.wait(20)
        client = held["client"]

        async def elsewhere() -> Any:
            return await client.gather(client.map(functions.inc, range(5), pure=False))

        assert asyncio.run(elsewhere()) == [1, 2, 3, 4, 5]
    finally:
        over.set()
        thread.join(20)


async def test_iterators_and_queues_on_a_loop(aclient: Client) -> None:
    async def source() -> AsyncIterator[Any]:
        for i in range(60):
            yield aclient.submit(functions.inc, i, pure=False)

    assert [value async for value in aclient.gather(source())] == list(range(1, 61))
    futures = aclient.map(functions.inc, range(60))
    assert [value async for value in aclient.gather(iter(futures))] == list(range(1, 61))
    assert sorted([value async for value in aclient.gather(as_completed(futures))]) == list(range(1, 61))
    for kind in (asyncio.Queue, asyncio.LifoQueue, asyncio.PriorityQueue):
        queue: Any = kind(maxsize=3)
        sink = aclient.gather(queue)
        assert type(sink) is kind and sink.maxsize == 3
        for i in range(30):
            await queue.put((i, aclient.submit(functions.inc, i)))
            assert await asyncio.wait_for(sink.get(), 20) == (i, i + 1)


async def test_an_async_iterator_closed_early_frees_everything(aclient: Client, gate: functions.Gate) -> None:
    first = aclient.submit(functions.inc, 0)
    assert await first == 1
    values = aclient.gather(iter([first, *aclient.map(functions.wait_at, [gate] * 20, range(20))]))
    assert await anext(values) == 1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(values), 0.05)
    await values.aclose()
    idle(aclient)
    gate.open()


# --- timeout= --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.05, "50ms", "0.05 s", timedelta(milliseconds=50)])
def test_timeout_leaves_the_futures_alone(client: Client, gate: functions.Gate, timeout: Any) -> None:
    late, here = client.submit(functions.wait_at, gate, "late"), client.submit(functions.inc, 0)
    assert client.gather(here) == 1
    for given in (late, [here, late], {"k": [late, here]}):
        with pytest.raises(TimeoutError):
            client.gather(given, timeout=timeout)
    with pytest.raises(TimeoutError, match="1 of 2 results were not here in the time given"):
        client.gather([here, late], timeout=timeout)
    values = client.gather(iter([here, late]), timeout=timeout)
    assert next(values) == 1
    with pytest.raises(TimeoutError):
        next(values)
    assert late.status == "pending" and not late.cancelled()
    gate.open()
    assert client.gather([late, here], timeout="20 s") == ["late", 1]
    assert list(values) == ["late"]  # nothing was lost with the time
    ledger: Any = client._ledger
    assert not ledger.collections.open and not late._entry.waiters


async def test_timeout_on_a_loop(aclient: Client, gate: functions.Gate) -> None:
    late = aclient.submit(functions.wait_at, gate, "late")
    for given in (late, [late]):
        with pytest.raises(TimeoutError):
            await aclient.gather(given, timeout="20ms")
    assert late.status == "pending"
    gate.open()
    assert await aclient.gather([late], timeout=20) == ["late"]


def test_a_transfer_that_takes_too_long_frees_its_credits(client: Client) -> None:
    pytest.importorskip("numpy")
    futures = client.map(functions.filled, range(12), [8 << 20] * 12, pure=False)
    client.gather(client.submit(functions.total, *[client.submit(len, f) for f in futures]))  # all are computed
    for direct in (True, False):
        with pytest.raises(TimeoutError):
            client.gather(futures, timeout=0, direct=direct)
        idle(client)
        assert [int(array[-1]) for array in client.gather(futures, direct=direct)] == list(range(12))
        idle(client)


# --- cancelling the task that waits -----------------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False])
async def test_cancelling_the_waiting_task_ends_the_transfer(aclient: Client, direct: bool) -> None:
    pytest.importorskip("numpy")
    futures = aclient.map(functions.filled, range(8), [8 << 20] * 8, pure=False)
    await aclient.gather([aclient.submit(len, future) for future in futures])
    fetcher: Any = aclient._ledger.fetcher
    cancelled = 0
    async with asyncio.timeout(WITHIN):
        while cancelled < 3:
            waiting = asyncio.create_task(aclient.gather(futures, direct=direct))
            while not fetcher.tickets and not waiting.done():
                await asyncio.sleep(0)
            if not waiting.cancel():
                continue  # all of it came while this thread did not run
            with pytest.raises(asyncio.CancelledError):
                await waiting
            idle(aclient)
            cancelled += 1
    arrays = await aclient.gather(futures, direct=direct)
    assert [int(array[0]) for array in arrays] == list(range(8))
    assert all(future.status == "finished" for future in futures)


async def test_cancelling_one_task_leaves_the_others(aclient: Client, gate: functions.Gate) -> None:
    late = aclient.submit(functions.wait_at, gate, "late")
    tasks = [asyncio.create_task(aclient.gather([late])) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    gate.open()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert done[1] == done[3] == ["late"]
    assert isinstance(done[0], asyncio.CancelledError) and isinstance(done[2], asyncio.CancelledError)


async def test_a_cancelled_future_is_no_cancelled_task(aclient: Client, gate: functions.Gate) -> None:
    """asyncio's own CancelledError would look as if somebody had cancelled the caller."""
    future = aclient.submit(functions.wait_at, gate)
    await aclient.cancel(future)
    with pytest.raises(CancelledError) as caught:
        await aclient.gather([future])
    assert not isinstance(caught.value, asyncio.CancelledError)
    steering = aclient.submit(functions.raise_kind, asyncio.CancelledError)
    with pytest.raises(RuntimeError, match="raised CancelledError: from a task"):
        await steering
    assert isinstance(await steering.exception(), asyncio.CancelledError)
    gate.open()
