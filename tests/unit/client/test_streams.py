"""gather of iterators and queues, over a driver without sockets."""

from __future__ import annotations

import asyncio
import gc
import itertools
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from fake_driver import FakeBroker, FakeDriver

from zdist.client import streams
from zdist.client.client import Client
from zdist.client.future import Future
from zdist.limits import GATHER_WINDOW

pytestmark = pytest.mark.timeout(30)


def same(x: Any) -> Any:
    return x


def fail(text: str) -> None:
    raise ValueError(text)


def stop(kind: type[BaseException]) -> None:
    raise kind("now")


def turn() -> None:
    FakeDriver.made[0].turn()


def waited_for(futures: list[Future]) -> int:
    return sum(bool(future._entry.waiters) for future in futures)


# --- iterators ------------------------------------------------------------------------------------------


def test_values_come_lazily_and_in_order(client: Client) -> None:
    taken = itertools.count()
    values = client.gather(client.submit(same, next(taken), pure=False) for _ in itertools.count())
    assert next(taken) == 0  # nothing is taken before it is asked for
    assert [next(values) for _ in range(3_000)] == list(range(1, 3_001))
    assert next(taken) <= 3_001 + GATHER_WINDOW


def test_the_first_value_does_not_wait_for_many_items(client: Client) -> None:
    values = client.gather(client.submit(same, i) if i < 2 else pytest.fail("taken") for i in range(3))
    assert next(values) == 0


def test_what_is_ahead_is_brought_in_few_batches_and_let_go_with_the_iterator(
    client: Client, broker: FakeBroker
) -> None:
    collections = client._ledger.collections
    for let_go in ("close", "with", "del"):
        futures = client.map(same, range(10), pure=False)
        turn()
        broker.manual = True
        futures += client.map(same, range(10, 3_000), pure=False)
        values = client.gather(iter(futures))
        assert [next(values) for _ in range(10)] == list(range(10))
        assert 10 <= waited_for(futures) <= GATHER_WINDOW and 1 <= len(collections.open) <= 10
        if let_go == "close":
            values.close()
            values.close()
            assert list(values) == []
        elif let_go == "with":
            with pytest.raises(LookupError), values:
                raise LookupError
        else:
            del values
            assert collections.abandoned  # what it had open waits for the driver's next turn
            turn()
        assert not collections.open and not client._ledger.fetcher.tickets
        broker.go()
        turn()
        assert client.gather(futures) == list(range(3_000))


def test_the_window_is_bounded_in_bytes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "GATHER_BYTES", 100_000)
    taken = itertools.count()
    values = client.gather(client.submit(same, bytes(10_000), key=f"b{next(taken)}") for _ in itertools.count())
    for _ in range(200):
        next(values)
    assert 200 <= next(taken) <= 200 + 2 * 10


def test_a_slow_source_is_not_drained_before_something_is_handed_out(client: Client) -> None:
    made = itertools.count()

    def source() -> Iterator[Future]:
        while True:
            end = time.monotonic() + 2 * streams.PULL
            while time.monotonic() < end:
                pass
            yield client.submit(same, next(made), pure=False)

    values = client.gather(source())
    assert [next(values) for _ in range(10)] == list(range(10))
    assert next(made) <= 22  # at most one more each time


def test_items_may_be_containers_or_values(client: Client) -> None:
    a = client.submit(same, 1)
    values = list(client.gather(iter([[a, "1"], {"k": a}, "1", a, a.key, (), None])))
    assert values == [[1, "1"], {"k": 1}, "1", 1, a.key, (), None]


def test_one_future_many_times_in_the_window_is_one_object(client: Client) -> None:
    future = client.submit(same, [1])
    other = client.submit(same, [2])
    values = list(client.gather(iter([other, future, future, [future], other, (future, future)])))
    ones = [values[1], values[2], values[3][0], *values[5]]
    assert values == [[2], [1], [1], [[1]], [2], ([1], [1])] and all(one is ones[0] for one in ones[1:])
    assert not client._ledger.collections.open


def test_errors_are_raised_in_their_turn(client: Client) -> None:
    values = client.gather(iter([client.submit(same, 0), client.submit(fail, "wrong"), client.submit(same, 2)]))
    assert next(values) == 0
    with pytest.raises(ValueError, match="wrong"):
        next(values)
    assert list(values) == [2]


def test_failed_ones_are_skipped_or_returned(client: Client) -> None:
    bad, none = client.submit(fail, "wrong"), client.submit(same, None)
    items = [bad, client.submit(same, 1), [bad], none, bad]
    assert list(client.gather(iter(items), errors="skip")) == [1, [], None]
    errors = list(client.gather(iter(items), errors="return"))
    assert errors[1] == 1 and errors[3] is None
    assert [str(error) for error in (errors[0], errors[2][0], errors[4])] == ["wrong"] * 3


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt])
def test_a_task_cannot_end_the_loop_that_reads_it(client: Client, kind: type[BaseException]) -> None:
    bad = client.submit(same, 1)
    bad._entry.status, bad._entry.outcome = "error", ("failed", *_error_of(kind), "")
    values = client.gather(iter([bad, client.submit(same, 2)]))
    with pytest.raises(RuntimeError, match=f"raised {kind.__name__}: now"):
        next(values)
    assert next(values) == 2


def _error_of(kind: type[BaseException]) -> tuple[bytes, str]:
    from zdist import serialize

    return serialize.dumps_error(kind("now")), "origin"


def test_what_the_source_raises_comes_after_the_items_before_it(client: Client) -> None:
    def source() -> Iterator[Future]:
        yield from client.map(same, range(10))
        raise LookupError("source ended badly")

    values, got = client.gather(source()), []
    with pytest.raises(LookupError, match="source ended badly"):
        for value in values:
            got.append(value)
    assert got == list(range(10))
    assert list(values) == []


def test_a_time_that_is_up_leaves_the_item_for_the_next_try(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    future = client.submit(same, 5)
    values = client.gather(iter([future]), timeout="20ms")
    for _ in range(2):
        with pytest.raises(TimeoutError, match="1 of 1"):
            next(values)
    broker.go()
    turn()
    assert list(values) == [5]


def test_two_cannot_read_one_iterator_at_once(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    values = client.gather(iter([client.submit(same, 1)]))

    def until() -> bool:
        with pytest.raises(RuntimeError, match="waits for the next value of this iterator already"):
            next(values)
        broker.go()
        return False

    FakeDriver.made[0].drive = lambda ready, timeout: until() or turn() or ready()  # type: ignore[method-assign,assignment]
    assert next(values) == 1


# --- asynchronous iterators -----------------------------------------------------------------------------


def test_async_iterator(run_async: Any) -> None:
    async def body(client: Client) -> None:
        items = [*client.map(same, range(300)), client.submit(fail, "wrong")]
        assert [value async for value in client.gather(iter(items), errors="skip")] == list(range(300))
        with pytest.raises(ValueError, match="wrong"):
            async for _ in client.gather(iter(items)):
                pass

    run_async(body)


def test_an_asynchronous_source(run_async: Any) -> None:
    async def body(client: Client) -> None:
        given = asyncio.Event()

        async def source() -> AsyncIterator[Future]:
            for i in range(50):
                yield client.submit(same, i, pure=False)
            await given.wait()
            yield client.submit(same, 50)

        values = client.gather(source())
        assert [await anext(values) for _ in range(50)] == list(range(50))  # nobody waits for what the source waits for
        given.set()
        assert [value async for value in values] == [50]

        async def silent() -> AsyncIterator[Future]:
            await asyncio.Event().wait()
            yield client.submit(same, 1)

        late = client.gather(silent(), timeout=0.01)
        with pytest.raises(TimeoutError):
            await anext(late)
        await late.aclose()
        assert len(asyncio.all_tasks()) == 2  # this one and the turns
        assert [value async for value in late] == []

    run_async(body)


def test_an_async_iterator_that_is_closed_early_leaves_nothing(run_async: Any, broker: FakeBroker) -> None:
    async def body(client: Client) -> None:
        futures = client.map(same, range(4))
        await client.gather(futures)
        broker.manual = True
        futures += client.map(same, range(4, 100))
        values = client.gather(iter(futures))
        assert [await anext(values) for _ in range(4)] == list(range(4))
        assert waited_for(futures) >= 2
        waiting = asyncio.create_task(anext(values))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await values.aclose()
        assert not client._ledger.collections.open and not waited_for(futures)

    run_async(body)


def test_an_asynchronous_source_needs_an_asynchronous_gather(client: Client) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="asynchronous=True"):
        client.gather(source())


# --- queues ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_pump_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name == "zdist-gather-queue"]
    for thread in left:
        thread.join(10)
    assert not [thread for thread in left if thread.is_alive()]


@pytest.mark.usefixtures("no_pump_left")
@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def test_a_queue_of_the_same_kind_is_filled_in_order(client: Client, kind: Any) -> None:
    source = kind()
    sink = client.gather(source)
    assert type(sink) is kind and sink.maxsize == GATHER_WINDOW
    for i in range(50):
        source.put((i, client.submit(same, i)))
        assert sink.get(timeout=5) == (i, i)
    source.join()
    client.close()


@pytest.mark.usefixtures("no_pump_left")
def test_a_queue_is_bounded(client: Client) -> None:
    source: queue.Queue[Any] = queue.Queue(maxsize=3)
    sink = client.gather(source)
    feeder = threading.Thread(target=lambda: [source.put(client.submit(same, i)) for i in range(100)])
    feeder.start()
    assert [sink.get(timeout=5) for _ in range(100)] == list(range(100))
    assert sink.maxsize == 3
    feeder.join()
    client.close()


@pytest.mark.usefixtures("no_pump_left")
def test_failures_in_a_queue(client: Client) -> None:
    items = [client.submit(same, 0), client.submit(fail, "wrong"), client.submit(same, 2)]
    for errors, expected in (("raise", "[0, ValueError('wrong'), 2]"), ("skip", "[0, 2]")):
        source: queue.Queue[Any] = queue.Queue()
        sink = client.gather(source, errors=errors)
        for item in items:
            source.put(item)
        source.join()
        assert repr(list(sink.queue)) == expected
    client.close()


@pytest.mark.usefixtures("no_pump_left")
def test_a_pump_ends_with_the_client_wherever_it_waits(connect: Callable[..., Client], broker: FakeBroker) -> None:
    client = connect()
    idle = client.gather(queue.Queue())
    full: queue.Queue[Any] = queue.Queue(maxsize=1)
    sink = client.gather(full)
    for i in range(3):
        full.put(client.submit(same, i), timeout=5)
    assert len(client._pumps) == 2
    client.close()
    assert not client._pumps and sink.qsize() == 1 and idle.empty()


@pytest.mark.usefixtures("no_pump_left")
def test_a_pump_ends_when_nobody_has_its_sink(client: Client) -> None:
    source: queue.Queue[Any] = queue.Queue(maxsize=1)
    sink = client.gather(source)
    for i in range(3):
        source.put(client.submit(same, i), timeout=5)
    gone = weakref.ref(sink)
    (pump,) = client._pumps
    del sink
    pump.join(10)
    gc.collect()
    assert gone() is None and not pump._thread.is_alive() and not client._pumps


class Odd(queue.Queue):  # type: ignore[type-arg]
    def __init__(self, name: str, size: int) -> None:
        super().__init__(size)


def test_queues_that_cannot_be_gathered(client: Client) -> None:
    with pytest.raises(TypeError, match="SimpleQueue cannot be bounded"):
        client.gather(queue.SimpleQueue())
    with pytest.raises(TypeError, match=r"cannot make a .*Odd"):
        client.gather(Odd("x", 1))
    with pytest.raises(ValueError, match="timeout"):
        client.gather(queue.Queue(), timeout=1)
    with pytest.raises(TypeError, match=r"asyncio\.Queue"):
        client.gather(asyncio.Queue())
    assert not client._pumps


def test_asyncio_queue(run_async: Any) -> None:
    async def body(client: Client) -> None:
        for kind in (asyncio.Queue, asyncio.LifoQueue, asyncio.PriorityQueue):
            source: Any = kind(maxsize=2)
            sink = client.gather(source)
            assert type(sink) is kind and sink.maxsize == 2
            for i in range(20):
                await source.put((i, client.submit(same, i)))
                assert await sink.get() == (i, i)
        source = asyncio.Queue()
        sink = client.gather(source)
        source.put_nowait(client.submit(fail, "wrong"))
        assert str(await sink.get()) == "wrong"
        await source.join()
        assert len(client._pumps) == 4
        (pump,) = [pump for pump in client._pumps if pump._sink() is sink]
        del sink
        source.put_nowait(client.submit(same, 1))
        await asyncio.wait([pump._task])  # nobody has its sink
        assert len(client._pumps) == 3

    run_async(body)
