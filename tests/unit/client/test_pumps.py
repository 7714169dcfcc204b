"""Gathered queues at their edges: items that have no place in the order, clients that close, sinks that are gone."""

from __future__ import annotations

import asyncio
import gc
import queue
from collections.abc import Callable
from typing import Any

import pytest
from fake_driver import FakeBroker

from zdist.client import pumps
from zdist.client.client import Client
from zdist.client.waiting import as_completed
from zdist.limits import GATHER_WINDOW

pytestmark = pytest.mark.timeout(30)


def same(x: Any) -> Any:
    return x


def fail(text: str) -> None:
    raise ValueError(text)


class Plain:
    """Has no order."""


def test_a_failure_in_a_priority_queue_stands_in_its_item(client: Client) -> None:
    source: queue.PriorityQueue[Any] = queue.PriorityQueue()
    sink = client.gather(source)
    for i in range(4):
        source.put((i, client.submit(fail, "wrong") if i == 1 else client.submit(same, i)))
    source.join()
    assert repr([sink.get(timeout=5) for _ in range(4)]) == "[(0, 0), (1, ValueError('wrong')), (2, 2), (3, 3)]"
    client.close()


def test_a_value_that_cannot_be_compared_is_left_out_and_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    source: queue.PriorityQueue[Any] = queue.PriorityQueue()
    sink = client.gather(source)
    for _ in range(2):
        source.put((0, client.submit(Plain, pure=False)))
        source.join()
    source.put((1, client.submit(same, "after")))
    source.join()
    assert "left out" in caplog.text and sink.qsize() >= 2
    client.close()


@pytest.mark.parametrize("size", [0, -1])
def test_a_queue_without_a_bound_is_filled_within_one(client: Client, size: int) -> None:
    source: queue.Queue[Any] = queue.Queue(size)
    sink = client.gather(source)
    assert sink.maxsize == GATHER_WINDOW
    client.close()


def test_failures_in_an_asyncio_priority_queue(run_async: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def body(client: Client) -> None:
        source: asyncio.PriorityQueue[Any] = asyncio.PriorityQueue()
        sink = client.gather(source)
        source.put_nowait((0, client.submit(fail, "wrong")))
        await source.join()
        assert repr(await sink.get()) == "(0, ValueError('wrong'))"
        for _ in range(2):
            source.put_nowait((1, client.submit(Plain, pure=False)))
            await source.join()
        assert "left out" in caplog.text

    run_async(body)


def test_what_was_taken_from_an_asyncio_queue_is_handed_out_when_the_client_closes(
    run_async: Any, broker: FakeBroker
) -> None:
    async def body(client: Client) -> None:
        broker.manual = True
        source: asyncio.Queue[Any] = asyncio.Queue()
        sink = client.gather(source)
        source.put_nowait(client.submit(same, 1))
        while not source.empty():
            await asyncio.sleep(0)
        await client.close()
        assert "client closed" in str(await sink.get())
        await source.join()

    run_async(body)


def test_an_asyncio_pump_whose_sink_is_gone_takes_nothing(run_async: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "LOOK", 0.01)

    async def body(client: Client) -> None:
        source: asyncio.Queue[Any] = asyncio.Queue()
        sink = client.gather(source)
        (pump,) = client._pumps
        await asyncio.sleep(0)
        del sink
        gc.collect()
        await asyncio.wait_for(asyncio.shield(pump._task), 10)
        source.put_nowait(client.submit(same, 1))
        await asyncio.sleep(0)
        assert source.qsize() == 1 and not client._pumps

    run_async(body)


def test_an_asyncio_queue_off_the_loop_is_refused_and_the_client_can_be_closed(run_async: Any) -> None:
    async def body(client: Client) -> None:
        with pytest.raises(RuntimeError, match="loop"):
            await asyncio.to_thread(client.gather, asyncio.Queue())
        assert not client._pumps and not pumps._AsyncPump.running
        await client.close()

    run_async(body)


def test_what_is_done_does_not_wait_for_what_as_completed_is_still_to_give(
    connect: Callable[..., Client], broker: FakeBroker
) -> None:
    client = connect()
    done = [client.submit(same, i) for i in range(3)]
    assert client.gather(done) == [0, 1, 2]
    broker.manual = True
    values = client.gather(as_completed([*done, client.submit(same, 3)]))
    assert sorted(next(values) for _ in range(3)) == [0, 1, 2]
