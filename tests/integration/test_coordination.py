"""Queues, variables, events, locks, datasets, metadata and topics on a real cluster."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN, eventually

import zdist
from zdist import Client, Event, LocalCluster, Lock, MultiLock, Queue, Semaphore, Variable, ZdistError


def feed(name: str, count: int) -> int:
    queue = Queue(name)
    for i in range(count):
        queue.put(i)
    return count


def pass_on(source: str, target: str) -> int:
    """Take numbers until there is a None."""
    taken = 0
    while (value := Queue(source).get(timeout=WITHIN)) is not None:
        Queue(target).put(value * 10)
        taken += 1
    return taken


def count_up(name: str, lock: Lock) -> int:
    with lock:
        variable = Variable(name)
        value = variable.get()
        variable.set(value + 1)
        assert lock.token is not None
        return lock.token


def use(semaphore: Semaphore, name: str) -> int:
    with semaphore:
        inside = Queue(name)
        inside.put(1)
        found = inside.qsize()
        inside.get()
        return int(found)


async def pass_one_on(source: str, target: str) -> int:
    """A coroutine that takes one number, and counts under a lock."""
    value: int = await Queue(source).get(timeout=WITHIN)
    lock, semaphore, both = Lock("coroutines"), Semaphore(2, "coroutines"), MultiLock(["coroutines"])
    async with lock, semaphore, both:
        assert await lock.locked() and await semaphore.get_value() and await both.locked()
        total = Variable(target)
        await total.set(await total.get() + value)
    await Event(target).set()
    return value


async def enter_plainly(name: str) -> None:
    with Lock(name):
        pass


class Doorkeeper:
    """Its async methods wait for a lock on one thread."""

    async def enter(self, name: str, taken: str, leave: str) -> str:
        async with Lock(name):
            await Event(taken).set()
            await Event(leave).wait()
        return taken

    async def let_go(self, leave: str) -> None:
        await Event(leave).set()


def report(topic: str, what: Any) -> None:
    zdist.get_client().log_event(topic, what)


def test_tasks_and_client_pass_values_through_queues(client: Client) -> None:
    source, target = Queue("source", client), Queue("target", client)
    feeding = client.submit(feed, "source", 20)
    passing = client.submit(pass_on, "source", "target")
    assert [target.get(timeout=WITHIN) for _ in range(20)] == [i * 10 for i in range(20)]
    source.put(None)
    assert (feeding.result(WITHIN), passing.result(WITHIN)) == (20, 20)
    assert source.qsize() == target.qsize() == 0


def test_a_queue_with_a_bound_and_batches(client: Client) -> None:
    queue = Queue(client=client, maxsize=3)
    for i in range(3):
        queue.put(i)
    with pytest.raises(TimeoutError, match="put of queue"):
        queue.put(3, timeout=0.05)
    assert queue.get(batch=2) == [0, 1]
    assert queue.get(batch=True) == [2]
    assert queue.get(batch=True) == []
    with pytest.raises(TimeoutError, match="get of queue"):
        queue.get(timeout="50ms")
    queue.put("x")
    assert queue.get() == "x"  # whoever gave up has taken nothing


def test_futures_in_queues_and_variables_stay_alive(client: Client, second: Client) -> None:
    queue, variable = Queue("futures", client), Variable("future", client)
    queue.put({"here": [client.submit(functions.inc, 1, pure=False)]})
    variable.set(client.submit(functions.inc, 2, pure=False))
    client.submit(functions.same, 0, pure=False).result(WITHIN)
    found = Queue("futures", second).get(timeout=WITHIN)
    assert found["here"][0].client is second
    assert found["here"][0].result(WITHIN) == 2
    assert Variable("future", second).get(timeout=WITHIN).result(WITHIN) == 3
    assert Variable("future", client).get().result(WITHIN) == 3
    del found
    variable.delete()
    eventually(lambda: not any(second.has_what().values()), "results that nobody wants are gone")


def test_a_lock_counts_without_losing_one(client: Client) -> None:
    Variable("counter", client).set(0)
    tokens = client.gather([client.submit(count_up, "counter", Lock("door", client), pure=False) for _ in range(12)])
    assert Variable("counter", client).get() == 12
    assert len(set(tokens)) == 12
    lock, other = Lock("door", client), Lock("door", client)
    assert lock.acquire()
    assert other.acquire(blocking=False) is False
    assert other.acquire(timeout=0.05) is False
    assert other.locked()
    with pytest.raises(ValueError, match="not acquired by this object"):
        other.release()
    lock.release()
    assert not other.locked()
    with pytest.raises(ValueError, match="makes no sense"):
        lock.acquire(blocking=False, timeout=1)
    Variable("counter", client).delete()


def test_a_lock_of_a_client_that_has_gone_is_free(client: Client, cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as other:
        assert Lock("left behind", other).acquire()
        assert Lock("left behind", client).acquire(timeout=0.05) is False
    assert Lock("left behind", client).acquire(timeout=WITHIN)


def test_a_semaphore_lets_so_many_in(client: Client) -> None:
    semaphore = Semaphore(2, "two", client)
    assert max(client.gather(client.map(use, [semaphore] * 12, name="inside", pure=False))) <= 2
    assert semaphore.acquire() and semaphore.acquire()
    assert semaphore.acquire(timeout=0.05) is False
    assert semaphore.get_value() == 2
    with pytest.raises(ZdistError, match="has 2 leases, not 3"):
        Semaphore(3, "two", client).acquire()
    assert semaphore.release() and semaphore.release()


def test_several_locks(client: Client) -> None:
    one, two = MultiLock(["a", "b"], client), MultiLock(["b", "c"], client)
    with one:
        assert two.acquire(timeout=0.05) is False
        assert two.acquire(num_locks=1)
        assert two.locked()
        two.release()
    assert two.acquire()
    two.release()


def test_an_event(client: Client) -> None:
    event = Event("go", client)
    assert event.wait(timeout=0.05) is False
    waiting = client.submit(Event.wait, Event("go", client), WITHIN, pure=False)
    event.set()
    assert waiting.result(WITHIN) is True
    assert event.is_set()
    event.clear()
    assert not event.is_set()


def test_coroutines_of_tasks_await_what_is_shared(client: Client) -> None:
    source, total = Queue("coroutine source", client), Variable("coroutine total", client)
    total.set(0)
    tasks = client.map(pass_one_on, ["coroutine source"] * 6, target="coroutine total", pure=False)
    for i in range(6):
        source.put(i)
    assert sorted(client.gather(tasks, timeout=WITHIN)) == list(range(6))
    assert total.get() == sum(range(6)) and source.qsize() == 0
    assert Event("coroutine total", client).is_set()
    assert not Lock("coroutines", client).locked() and Semaphore(2, "coroutines", client).get_value() == 0
    total.delete()


def test_coroutines_of_an_actor_do_not_hold_each_other_up(client: Client) -> None:
    keeper = client.submit(Doorkeeper, actor=True).result(WITHIN)
    first, second = keeper.enter("narrow", "first", "leave"), keeper.enter("narrow", "second", "leave")
    assert Event("first", client).wait(timeout=WITHIN) and not Event("second", client).is_set()
    keeper.let_go("leave").result(WITHIN)
    assert (first.result(WITHIN), second.result(WITHIN)) == ("first", "second")
    assert not Lock("narrow", client).locked()


def test_where_verbs_are_awaited_a_plain_with_is_refused(client: Client) -> None:
    async def main() -> None:
        async with Client(client.address, asynchronous=True, token=client._token, set_as_default=False) as mine:
            for held in (Lock("plain", mine), Semaphore(1, "plain", mine), MultiLock(["plain"], mine)):
                with pytest.raises(TypeError, match="use `async with`"), held:
                    pass
                async with held:
                    assert held.token
        async with Lock("plain", client) as lock:  # any client will do
            assert lock.token and client.gather(client.submit(functions.inc, 1)) == 2

    asyncio.run(main())
    with pytest.raises(TypeError, match="use `async with`"):
        client.submit(enter_plainly, "plain").result(WITHIN)
    assert not Lock("plain", client).locked()


def test_datasets(client: Client, second: Client) -> None:
    client.publish_dataset(numbers=client.map(functions.inc, range(3), pure=False))
    client.publish_dataset([1, 2], name=("a", 1))
    with pytest.raises(KeyError, match="already"):
        client.publish_dataset(numbers=1)
    assert second.list_datasets() == ("numbers", ("a", 1))
    assert second.gather(second.get_dataset("numbers")) == [1, 2, 3]
    assert second.datasets["a", 1] == [1, 2]
    assert second.get_dataset("other", default=5) == 5
    with pytest.raises(KeyError, match="other"):
        second.get_dataset("other")
    del second.datasets["a", 1]
    second.unpublish_dataset("numbers")
    with pytest.raises(KeyError, match="numbers"):
        second.unpublish_dataset("numbers")
    with pytest.raises(ValueError, match="scatter it"):
        client.publish_dataset(large=b"x" * (1 << 21))


def test_names_of_datasets(client: Client) -> None:
    name = ("a", ("b", (1, 2.5)), None)
    client.datasets[name] = 1
    assert client.list_datasets() == (name,) and name in client.datasets and client.datasets[name] == 1
    client.unpublish_dataset(name)
    for bad in (b"x", ("a", b"x"), ["a"], {"a": 1}):
        with pytest.raises(TypeError, match="the name of a dataset is a text, a number, or a tuple of such, not"):
            client.publish_dataset(1, name=bad)
        with pytest.raises(TypeError, match="the name of a dataset"):
            client.get_dataset(bad)


def test_metadata(client: Client, second: Client) -> None:
    client.set_metadata("x", {"y": 1, "z": {"w": [2]}})
    client.set_metadata(["x", "v"], "text")
    assert second.get_metadata("x") == {"y": 1, "z": {"w": [2]}, "v": "text"}
    assert second.get_metadata(["x", "z", "w"]) == [2]
    client.set_metadata("x", 5)
    assert second.get_metadata("x") == 5
    assert second.get_metadata("missing", default=None) is None
    with pytest.raises(KeyError, match="missing"):
        second.get_metadata("missing")


def test_topics(client: Client, second: Client) -> None:
    got: list[Any] = []
    client.log_event("before", 0)
    second.subscribe_topic("news", got.append)
    client.log_event(["news", "other"], {"n": 1})
    client.submit(report, "news", 2, pure=False).result(WITHIN)
    eventually(lambda: len(got) == 2, "two events")
    assert [what for _, what in got] == [{"n": 1}, 2]
    assert [what for _, what in client.get_events("other")] == [{"n": 1}]
    second.unsubscribe_topic("news")
    client.log_event("news", 3)
    assert [what for _, what in client.get_events("news")] == [{"n": 1}, 2, 3]
    assert len(got) == 2
    with pytest.raises(ValueError, match="has not subscribed"):
        second.unsubscribe_topic("news")


def test_a_topic_is_subscribed_to_once(client: Client) -> None:
    async def main() -> None:
        async with Client(client.address, asynchronous=True, token=client._token, set_as_default=False) as mine:
            got: asyncio.Queue[Any] = asyncio.Queue()
            both = [mine.subscribe_topic("once", got.put_nowait) for _ in range(2)]
            outcomes = await asyncio.gather(*both, return_exceptions=True)
            assert outcomes[0] is None and "has subscribed to 'once' already" in str(outcomes[1])
            for i in range(3):
                await mine.log_event("once", i)
            assert [(await asyncio.wait_for(got.get(), WITHIN))[1] for _ in range(3)] == [0, 1, 2]
            await mine.unsubscribe_topic("once")
            given_up = asyncio.ensure_future(mine.subscribe_topic("once", got.put_nowait))
            with mine._lock:  # or the answer may be there before it is given up
                await asyncio.sleep(0)
                given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            await mine.subscribe_topic("once", got.put_nowait)
            early = asyncio.ensure_future(mine.subscribe_topic("ended", got.put_nowait))
            await asyncio.sleep(0)
            await mine.unsubscribe_topic("ended")
            await early
            await mine.log_event(["ended", "once"], 3)
            assert (await asyncio.wait_for(got.get(), WITHIN))[1] == 3 and got.empty()

    asyncio.run(main())


def test_an_interrupted_get_takes_nothing(client: Client) -> None:
    async def main() -> None:
        async with Client(client.address, asynchronous=True, token=client._token, set_as_default=False) as mine:
            queue = Queue("patience", mine)
            getting = asyncio.ensure_future(queue.get())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(getting), 0.05)
            getting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await getting
            await queue.put(1)
            assert await queue.qsize() == 1
            async with Lock("async", mine) as lock:
                assert lock.token
                assert not await Lock("async", mine).acquire(timeout=0.05)
            got: list[int] = []

            async def handle(event: tuple[float, int]) -> None:
                got.append(event[1])

            await mine.subscribe_topic("async", handle)
            await mine.log_event("async", 7)
            async with asyncio.timeout(WITHIN):
                while not got:
                    await asyncio.sleep(0)
            assert got == [7]
            await mine.unsubscribe_topic("async")
            await queue.close()

    asyncio.run(main())


def test_threads_of_one_client_wait_side_by_side(client: Client) -> None:
    queue, got = Queue("threads", client), []
    threads = [threading.Thread(target=lambda: got.append(queue.get(timeout=WITHIN))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for i in range(8):
        queue.put(i)
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(8))


def test_names(client: Client) -> None:
    with pytest.raises(ValueError, match="the name of a Queue"):
        Queue("", client)
    with pytest.raises(ValueError, match="maxsize=-1 is not a number of items"):
        Queue("x", client, maxsize=-1)
    with pytest.raises(ValueError, match="batch=-5 is not a number of items"):
        Queue("x", client).get(batch=-5)
    with pytest.raises(ValueError, match="max_leases"):
        Semaphore(0, "x", client)
    with pytest.raises(ValueError, match="list of names"):
        MultiLock("ab", client)
    assert Queue(client=client).name != Queue(client=client).name
