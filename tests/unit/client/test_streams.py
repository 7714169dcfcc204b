from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_client import FakeClient, FakeFuture, use_fakes

from zdist.client.streams import gather_async_iterator, gather_async_queue, gather_iterator, gather_queue
from zdist.limits import GATHER_WINDOW

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClient]:
    client = use_fakes(monkeypatch)
    yield client
    for pump in list(client._pumps):
        pump.stop()
    assert not [t for t in threading.enumerate() if t.name == "zdist-gather-queue"]


def finished(client: FakeClient, i: int) -> FakeFuture:
    return client.future(str(i), i, "finished")


def test_values_come_lazily_and_in_order(client: FakeClient) -> None:
    taken = itertools.count()
    source = (finished(client, next(taken)) for _ in itertools.count())
    values = gather_iterator(client, source)
    assert next(taken) == 0  # nothing is taken before it is asked for
    assert [next(values) for _ in range(5_000)] == list(range(1, 5_001))
    assert next(taken) <= 5_001 + GATHER_WINDOW


def test_the_first_value_does_not_wait_for_many_items(client: FakeClient) -> None:
    values = gather_iterator(client, (finished(client, i) if i < 2 else pytest.fail("taken") for i in range(3)))
    assert next(values) == 0


def test_values_are_fetched_ahead(client: FakeClient) -> None:
    values = gather_iterator(client, iter([finished(client, i) for i in range(100)]))
    assert [next(values) for _ in range(10)] == list(range(10))
    assert 10 < len(client.prefetched) <= 100 and client.prefetched == [str(i) for i in range(len(client.prefetched))]


def test_items_may_be_containers_or_values(client: FakeClient) -> None:
    a = finished(client, 1)
    assert list(gather_iterator(client, iter([[a, "1"], {"k": a}, "1", a]))) == [[1, "1"], {"k": 1}, "1", 1]


def test_errors_are_raised_in_their_turn(client: FakeClient) -> None:
    bad = client.future("bad", ValueError("wrong"), "error")
    values = gather_iterator(client, iter([finished(client, 0), bad, finished(client, 2)]))
    assert next(values) == 0
    with pytest.raises(ValueError, match="wrong"):
        next(values)
    assert list(values) == [2]


def test_failed_ones_are_skipped(client: FakeClient) -> None:
    bad = client.future("bad", ValueError("wrong"), "error")
    items = [bad, finished(client, 1), [bad], None, bad]
    assert list(gather_iterator(client, iter(items), errors="skip")) == [1, [], None]


def test_what_the_source_raises_comes_after_the_items_before_it(client: FakeClient) -> None:
    def source() -> Iterator[FakeFuture]:
        yield from (finished(client, i) for i in range(10))
        raise LookupError("source ended badly")

    values, got = gather_iterator(client, source()), []
    with pytest.raises(LookupError, match="source ended badly"):
        for value in values:
            got.append(value)
    assert got == list(range(10))
    assert list(values) == []


def test_async_iterator(client: FakeClient) -> None:
    bad = client.future("bad", ValueError("wrong"), "error")
    items = [*(finished(client, i) for i in range(100)), bad]

    async def main() -> None:
        got = [value async for value in gather_async_iterator(client, iter(items), errors="skip")]
        assert got == list(range(100))
        with pytest.raises(ValueError, match="wrong"):
            async for _ in gather_async_iterator(client, iter(items)):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue])
def test_a_queue_of_the_same_kind_is_filled_in_order(client: FakeClient, kind: Any) -> None:
    source = kind()
    sink = gather_queue(client, source)
    assert type(sink) is kind and sink.maxsize == GATHER_WINDOW
    for i in range(50):
        source.put(finished(client, i))
        assert sink.get(timeout=5) == i
    source.join()


def test_a_queue_is_bounded(client: FakeClient) -> None:
    source: queue.Queue[Any] = queue.Queue(maxsize=3)
    sink = gather_queue(client, source)
    feeder = threading.Thread(target=lambda: [source.put(finished(client, i)) for i in range(100)])
    feeder.start()
    assert [sink.get(timeout=5) for _ in range(100)] == list(range(100))
    assert sink.maxsize == 3
    feeder.join()


def test_failures_in_a_queue(client: FakeClient) -> None:
    error = ValueError("wrong")
    items = [finished(client, 0), client.future("bad", error, "error"), finished(client, 2)]
    for errors, expected in (("raise", [0, error, 2]), ("skip", [0, 2])):
        source: queue.Queue[Any] = queue.Queue()
        sink = gather_queue(client, source, errors=errors)
        for item in items:
            source.put(item)
        assert [sink.get(timeout=5) for _ in expected] == expected


def test_stopping_ends_a_pump_that_waits_at_either_end(client: FakeClient) -> None:
    gather_queue(client, queue.Queue())
    full: queue.Queue[Any] = queue.Queue(maxsize=1)
    sink = gather_queue(client, full)
    for i in range(3):
        full.put(finished(client, i), timeout=5)
    assert len(client._pumps) == 2
    for pump in list(client._pumps):
        pump.stop()
    assert not client._pumps and sink.qsize() <= 1


def test_asyncio_queue(client: FakeClient) -> None:
    error = ValueError("wrong")

    async def main() -> None:
        source: asyncio.Queue[Any] = asyncio.Queue()
        sink = gather_async_queue(client, source)
        late = client.future("late")
        for item in (finished(client, 0), client.future("bad", error, "error"), late):
            source.put_nowait(item)
        assert [await sink.get(), await sink.get()] == [0, error]
        client.settle(late, 2)
        assert await asyncio.wait_for(sink.get(), 5) == 2
        (pump,) = client._pumps
        pump.stop()
        await asyncio.wait([pump._task])
        assert not client._pumps

    asyncio.run(main())
