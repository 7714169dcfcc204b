"""Actors, and coroutine functions as tasks, on a real cluster."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import actor_classes as classes
import cluster_functions as functions
import pytest
from actor_classes import Counter, Meeting
from cluster_checks import WITHIN, eventually

from zdist import (
    Actor,
    ActorFuture,
    ActorLost,
    CancelledError,
    Client,
    ClusterClosed,
    LocalCluster,
    SerializationError,
    ZdistError,
)


@pytest.fixture(params=["peer", "relay"])
def by(cluster: LocalCluster, client: Client, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client that calls by the worker's own socket, or only through the broker."""
    if request.param == "peer":
        yield client
        return
    with Client(cluster, gather_paths=["relay"], set_as_default=False) as other:
        yield other


def actor(client: Client, *args: Any, cls: Any = Counter, **options: Any) -> Any:
    return client.submit(cls, *args, actor=True, **options).result(WITHIN)


def calls_by_peer(client: Client, handle: Any) -> bool:
    link = client._ledger.fetcher.links.peer(handle._seed.member[0])
    return link is not None and link.state == "open"


def test_state_order_and_attributes(by: Client) -> None:
    future = by.submit(Counter, 5, actor=True)
    counter = future.result(WITHIN)
    assert isinstance(counter, Actor) and future.type == "zdist.Actor" and counter.key == future.key
    assert repr(counter) == f"<Actor: Counter, key={future.key}>" and {"add", "plus", "key"} <= set(dir(counter))
    call = counter.add()
    assert isinstance(call, ActorFuture) and call.result(WITHIN) == call.result() == 6 and call.done()
    assert "done, add" in repr(call)
    calls = [counter.note(i) for i in range(1500)]  # more than a window
    assert [c.result(WITHIN) for c in calls] == list(range(1, 1501))
    assert counter.notes().result(WITHIN) == counter.seen == list(range(1500))
    assert (counter.n, counter.kind, counter.double, counter.plus(2, b=3).result(WITHIN)) == (6, "counter", 12, 5)


def test_all_kinds_of_methods_run_where_the_actor_is(by: Client) -> None:
    counter = actor(by)
    assert counter.process().result(WITHIN) == ("counter", counter.pid().result(WITHIN))
    assert counter.add_ten().result(WITHIN) == 10
    assert [counter.take(item).result(WITHIN) for item in (5, "a")] == [15, 16]


def test_both_ways_are_used(client: Client, cluster: LocalCluster) -> None:
    counter = actor(client)
    eventually(lambda: counter.add().result(WITHIN) and calls_by_peer(client, counter), "the peer path")
    with Client(cluster, gather_paths=["relay"], set_as_default=False) as other:
        handle = actor(other)
        assert handle.add().result(WITHIN) == 1 and not calls_by_peer(other, handle)


def test_exceptions_come_as_raised(by: Client) -> None:
    counter = actor(by)
    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        counter.fail("on purpose").result(WITHIN)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "fail" and not any(f.filename.endswith("worker/actors.py") for f in frames)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        counter.nothing  # noqa: B018
    with pytest.raises(KeyError, match="no such thing"):
        counter.broken  # noqa: B018
    with pytest.raises(AttributeError, match="no method '_hidden'"):
        counter._hidden  # noqa: B018
    with pytest.raises(AttributeError, match="give Counter a method"):
        counter.n = 3
    with pytest.raises(ZdistError, match=r"stop of actor .* raised SystemExit"):
        counter.stop().result(WITHIN)
    with pytest.raises(TypeError, match="unexpected keyword"):
        counter.add(nonsense=1).result(WITHIN)
    with pytest.raises(SerializationError, match="what unpicklable of actor"):
        counter.unpicklable().result(WITHIN)
    with pytest.raises(SerializationError, match="arguments of note"):
        counter.note(threading.Lock())
    assert counter.add().result(WITHIN) == 1
    with pytest.raises(ValueError, match="negative"):
        by.submit(Counter, -1, actor=True).result(WITHIN)
    with pytest.raises(TypeError, match="takes a class"):
        by.submit(functions.inc, 1, actor=True)


def test_large_arguments_and_results(by: Client) -> None:
    counter = actor(by)
    for nbytes in (100, 70_000, 1_000_000):
        counts = [counter.note(b"a" * nbytes), counter.note(nbytes)]
        assert counts[1].result(WITHIN) == counts[0].result(WITHIN) + 1
        assert len(counter.large(nbytes).result(WITHIN)) == nbytes
    assert [x if isinstance(x, int) else len(x) for x in counter.seen] == [
        100,
        100,
        70_000,
        70_000,
        1_000_000,
        1_000_000,
    ]


def test_what_is_too_large_is_refused(client: Client) -> None:
    counter = actor(client)
    with pytest.raises(ValueError, match="scatter what is large"):
        counter.note(b"a" * (65 << 20))
    with pytest.raises(SerializationError, match="too large"):
        counter.large(65 << 20).result(WITHIN)


def test_each_call_makes_an_actor_of_its_own(client: Client) -> None:
    first, second, *more = client.gather([client.submit(Counter, actor=True) for _ in range(2)]) + client.gather(
        client.map(Counter, [10, 20], actor=True)
    )
    assert [a.add().result(WITHIN) for a in (first, first, second, *more)] == [1, 2, 1, 11, 21]


def test_handles_go_through_tasks_values_and_other_clients(client: Client, second: Client) -> None:
    future = client.submit(Counter, actor=True)
    counter = future.result(WITHIN)
    for given in (future, counter):  # to the worker where it lives, and to the other
        used = [
            client.submit(classes.use, given, 10, workers=[w], pure=False) for w in client.scheduler_info()["workers"]
        ]
        assert sorted(sum(client.gather(used), []))[-1] == counter.n  # noqa: RUF017
    assert counter.n == 40
    back = client.submit(classes.pass_on, counter, pure=False).result(WITHIN)["actor"][0]
    assert back.key == counter.key and back.add().result(WITHIN) == 41
    theirs = second.submit(classes.pass_on, back, pure=False).result(WITHIN)["actor"][0]
    assert theirs._client is second and theirs.add().result(WITHIN) == 42
    other = actor(client, 100)
    assert other.call(counter).result(WITHIN) == 43  # from one actor to another
    assert counter.note(other).result(WITHIN) == 1 and counter.notes().result(WITHIN)[0].n == 100
    assert counter.result_of(client.submit(pow, 3, 2, pure=False)).result(WITHIN) == 9
    for _ in range(20):  # only what was made of the future holds the actor: it is told of that in time
        owner = actor(client, client.submit(Counter, actor=True), cls=classes.Owner)
        assert owner.add().result(WITHIN) == 1
    started = [counter.start(i) for i in range(5)]
    assert client.gather([call.result(WITHIN) for call in started]) == [i * i for i in range(5)]
    inside = client.submit(classes.start_one, 7, pure=False).result(WITHIN)
    assert inside.add().result(WITHIN) == 8
    assert counter.context().result(WITHIN)[1] == 1024


def test_callers_at_once_are_each_served_in_order(cluster: LocalCluster, client: Client, second: Client) -> None:
    counter = actor(client)
    theirs = client.submit(classes.use, counter, 300, pure=False)
    handles = {"one": counter, "two": second.submit(classes.pass_on, counter, pure=False).result(WITHIN)["actor"][0]}

    def call(name: str) -> None:
        for future in [handles[name].note((name, i)) for i in range(500)]:
            future.result(WITHIN)

    threads = [threading.Thread(target=call, args=(name,)) for name in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert theirs.result(WITHIN) == list(range(1, 301))
    seen = counter.seen
    for name in handles:
        assert [i for who, i in seen if who == name] == list(range(500))


def test_it_works_while_all_threads_are_busy(client: Client, gate: functions.Gate) -> None:
    counters = client.gather(client.map(Counter, range(4), actor=True))
    busy = client.map(gate.pass_through, range(4), pure=False)
    eventually(lambda: gate.arrived() == 4, "all threads are busy")
    stuck = counters[0].wait_at(gate)
    assert counters[1].add().result(WITHIN) == 2  # one that waits does not hold up another
    with pytest.raises(TimeoutError, match=r"wait_at of actor .* has not returned within 0.01 s"):
        stuck.result(timeout="10ms")
    assert not stuck.done()
    gate.open()
    assert client.gather(busy) == [0, 1, 2, 3] and stuck.result(WITHIN) == "actor"


def test_async_methods_take_turns_on_one_thread(by: Client) -> None:
    meeting = actor(by, cls=Meeting)
    waiting = meeting.wait()
    assert meeting.seen().result(WITHIN) == ["wait"] and not waiting.done()
    meeting.wake().result(WITHIN)
    assert waiting.result(WITHIN) == ["wait", "wake", "woken"]
    with pytest.raises(ZeroDivisionError, match="later"):
        meeting.fail().result(WITHIN)
    assert meeting.ask(actor(by, 5)).result(WITHIN) == (6, 8)


def dropped(client: Client, mark: Path) -> None:
    eventually(mark.exists, "the object is gone")
    eventually(lambda: not client.counts()["held"], "no seed is left")


def test_it_lives_as_long_as_somebody_holds_it(client: Client, second: Client, tmp_path: Path) -> None:
    mark = tmp_path / "gone"
    counter = actor(client, 0, str(mark))
    theirs = second.submit(classes.pass_on, counter, pure=False).result(WITHIN)["actor"][0]
    del counter
    assert theirs.add().result(WITHIN) == 1
    holder = actor(second)
    holder.hold(theirs).result(WITHIN)
    del theirs
    gc.collect()
    client.submit(pow, 2, 2, pure=False).result(WITHIN)
    assert not mark.exists() and holder.held.add().result(WITHIN) == 2
    del holder
    gc.collect()
    dropped(client, mark)


def test_a_call_that_nobody_waits_for_is_done(client: Client, tmp_path: Path, gate: functions.Gate) -> None:
    mark = tmp_path / "gone"
    counter = actor(client, 0, str(mark))
    counter.wait_at(gate)
    counter.note("x")
    del counter
    gc.collect()
    eventually(gate.arrived, "the call has begun")
    assert not mark.exists()
    gate.open()
    dropped(client, mark)


def test_cancelled_and_released(client: Client) -> None:
    future = client.submit(Counter, actor=True)
    counter = future.result(WITHIN)
    late = counter.wait_at(functions.Gate("/nowhere"))
    future.cancel()
    with pytest.raises(ActorLost, match="cancelled by client"):
        late.result(WITHIN)
    with pytest.raises(ActorLost, match="cancelled by client"):
        counter.add()
    with pytest.raises(CancelledError):
        future.result(WITHIN)


def test_an_actor_whose_worker_dies_is_lost_at_once(by: Client) -> None:
    by.wait_for_workers(2, WITHIN)
    future = by.submit(Counter, actor=True, retries=5)
    counter = future.result(WITHIN)
    dependent = by.submit(classes.use, future, 1, pure=False)
    assert dependent.result(WITHIN) == [1]
    pid = counter.pid().result(WITHIN)
    gate = functions.Gate("/nowhere/gate")
    for call in (counter.kill(), counter.wait_at(gate)):
        with pytest.raises(ActorLost, match=r"actor Counter-\w+ is gone, and its state with it: .*signal 9"):
            call.result(5.0)
    for broken in (counter.add, lambda: counter.n, future.result, by.submit(classes.use, future, 1, pure=False).result):
        with pytest.raises(ActorLost, match="is gone, and its state with it"):
            broken()
    future.retry()
    with pytest.raises(ActorLost):
        future.result(WITHIN)
    eventually(lambda: pid not in by.run(os.getpid).values() and len(by.nthreads()) == 2, "a new worker")


def test_a_worker_with_actors_is_not_retired(client: Client) -> None:
    client.wait_for_workers(2, WITHIN)
    counter = actor(client)
    with pytest.raises(ZdistError, match="1 actors live there and cannot be moved"):
        client.retire_workers(counter._seed.member[2])
    assert counter.add().result(WITHIN) == 1


async def test_asynchronous_client(cluster: LocalCluster) -> None:
    async with Client(cluster, asynchronous=True, set_as_default=False) as client:
        counter = await client.submit(Counter, actor=True)
        assert await counter.add() == 1 and await counter.add(2).result() == 3
        assert await counter.n == 3
        assert await asyncio.gather(*[counter.add() for _ in range(100)]) == list(range(4, 104))
        with pytest.raises(ZeroDivisionError):
            await counter.fail("x")
        assert await client.submit(classes.use, counter, 1, pure=False) == [104]


def test_coroutine_functions_are_tasks(client: Client) -> None:
    assert client.submit(classes.later, 1).result(WITHIN) == 2
    assert client.gather(client.map(classes.later, range(50))) == list(range(1, 51))
    assert client.submit(functions.add, client.submit(classes.later, 1), 1).result(WITHIN) == 3
    with pytest.raises(ZeroDivisionError, match="in a coroutine") as caught:
        client.submit(classes.fail_later, pure=False).result(WITHIN)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "fail_later"
    assert client.submit(classes.fail_later, pure=False).exception(WITHIN).args == ("in a coroutine",)


def test_coroutines_that_wait_for_tasks_give_their_threads_back(client: Client) -> None:
    client.wait_for_workers(2, WITHIN)
    name = next(iter(client.scheduler_info()["workers"].values()))["name"]
    futures = client.map(classes.asks_for_more, range(6), workers=[name], pure=False)
    assert client.gather(futures) == [[name, i + 1, i + 2, i + 3, i + 1] for i in range(6)]


def test_actors_end_with_a_worker_that_shares_its_process(start: Callable[..., LocalCluster], tmp_path: Path) -> None:
    marks = [tmp_path / name for name in ("called", "idle", "async")]
    cluster = start(n_workers=1, threads_per_worker=1, processes=False)
    with Client(cluster, set_as_default=False) as client:
        called, idle = (actor(client, 0, str(mark)) for mark in marks[:2])
        meeting = actor(client, cls=Meeting)
        late = meeting.wait()
        assert called.add().result(WITHIN) == 1 and not late.done() and idle.key
        assert meeting.seen().result(WITHIN) == ["wait"]
    cluster.close()
    assert eventually(lambda: all(mark.exists() for mark in marks[:2]))
    with pytest.raises(ClusterClosed):
        late.result(WITHIN)
