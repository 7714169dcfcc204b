"""The client over a fake driver: names, arguments, gather, futures, errors, closing."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from fake_driver import FakeBroker, FakeDriver

from zdist import context, serialize
from zdist.client.client import Client
from zdist.client.future import Future
from zdist.client.waiting import as_completed
from zdist.errors import (
    AuthenticationError,
    BrokerUnreachable,
    CancelledError,
    ClusterClosed,
    KeyConflict,
    SerializationError,
    VersionMismatch,
)
from zdist.protocol import messages as m


def inc(x: int) -> int:
    return x + 1


def add(x: Any, y: Any, z: int = 0) -> Any:
    return x + y + z


def fail(text: str) -> None:
    raise ValueError(text)


def same(x: Any) -> Any:
    return x


class Unloadable:
    """Pickles well; cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def turn() -> None:
    FakeDriver.made[0].turn()


def sent(broker: FakeBroker, kind: type) -> list[Any]:
    return [message for message in broker.said if type(message) is kind]


# --- connecting ----------------------------------------------------------------------------------------


def test_no_broker_says_what_to_check(broker: FakeBroker, connect: Callable[..., Client]) -> None:
    broker.welcomes = False
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:7777 within 0\.1 s.*zdist broker"):
        connect(timeout=0.1)
    assert FakeDriver.made[0].closed


@pytest.mark.parametrize(
    ("code", "text", "error"),
    [("token", "wrong token", AuthenticationError), ("version", "version 9, this side 1", VersionMismatch)],
)
def test_a_refusal_is_told_as_its_error(
    broker: FakeBroker, connect: Callable[..., Client], code: str, text: str, error: type[Exception]
) -> None:
    broker.refusal = m.Refused(code, text)
    with pytest.raises(error, match=text):
        connect()


@pytest.mark.parametrize("address", ["", "tcp://nohost", "tcp://h:99999", "http://h:1", "tcp://h:x"])
def test_what_is_no_address(broker: FakeBroker, address: str) -> None:
    with pytest.raises(ValueError, match="no broker address"):
        Client(address)


def test_what_is_no_option(broker: FakeBroker) -> None:
    with pytest.raises(TypeError, match="n_workers"):
        Client("tcp://h:1", n_workers=3)
    with pytest.raises(ValueError, match="fallback"):
        Client("tcp://h:1", fallback="none")
    with pytest.raises(ValueError, match="gather_paths"):
        Client("tcp://h:1", gather_paths=("pigeon",))


def test_default_clients(connect: Callable[..., Client]) -> None:
    first = connect()
    second = connect()
    hidden = connect(set_as_default=False)
    assert Client.current() is second and context.default_client() is second
    with hidden.as_current():
        assert Client.current() is hidden
    second.close()
    assert Client.current() is first
    first.close()
    with pytest.raises(ValueError, match="no client"):
        Client.current()


# --- submitting ----------------------------------------------------------------------------------------


def test_results_arguments_and_names(client: Client) -> None:
    future = client.submit(add, 1, 2, z=3)
    assert future.key.startswith("add-") and future.result() == 6
    assert client.submit(add, 1, 2, z=3).key == future.key
    assert client.submit(add, 1, 2, z=4).key != future.key
    impure = [client.submit(add, 1, 2, pure=False).key for _ in range(3)]
    assert len({future.key, *impure}) == 4
    assert client.submit(add, future, 1).result() == 7


def test_a_pure_call_that_is_known_is_not_sent_again(client: Client, broker: FakeBroker) -> None:
    futures = [client.submit(inc, 1) for _ in range(3)]
    assert [future.result() for future in futures] == [2, 2, 2]
    assert sum(len(message.rows) for message in sent(broker, m.Submit)) == 1


def test_rows_of_one_turn_share_a_message(client: Client, broker: FakeBroker) -> None:
    futures = [client.submit(inc, i) for i in range(50)]
    client.gather(futures)
    (submit,) = sent(broker, m.Submit)
    assert len(submit.rows) == 50 and submit.named
    assert len(sent(broker, m.Define)) == 1


def test_futures_deep_inside_arguments_are_dependencies(client: Client, broker: FakeBroker) -> None:
    one = client.submit(inc, 0)
    assert client.submit(same, {"a": [(one, 2)]}).result() == {"a": [(1, 2)]}
    assert sent(broker, m.Submit)[-1].rows[-1][2] == (one.key,)


def test_options_travel(client: Client, broker: FakeBroker) -> None:
    client.submit(
        inc, 1, workers="w", allow_other_workers=True, retries=2, priority=3, resources={"GPU": 1}, tags=["big"]
    ).result()
    options = m.Options(*sent(broker, m.Submit)[0].options)
    assert options == m.Options(2, 3, ("w",), True, (("GPU", 1.0),), ("big",), False)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"retries": -1}, "retries"),
        ({"resources": {"GPU": "many"}}, "resources"),
        ({"allow_other_workers": True}, "workers="),
        ({"key": ""}, "key"),
        ({"key": "x" * 2000}, "key"),
    ],
)
def test_bad_options(client: Client, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        client.submit(inc, 1, **options)


def test_a_key_given_again(client: Client, broker: FakeBroker) -> None:
    future = client.submit(inc, 1, key="mine")
    assert client.submit(inc, 1, key="mine").result() == 2
    with pytest.raises(KeyConflict, match=r"'mine'.*'inc'.*'add'"):
        client.submit(add, 1, 2, key="mine")
    with pytest.raises(KeyConflict, match="other arguments"):
        client.submit(inc, 2, key="mine")
    del future
    assert client.submit(inc, 2, key="mine").result() == 3


def test_unpicklable_things_are_named_at_submit(client: Client, broker: FakeBroker) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"arguments of same.*lock"):
        client.submit(same, lock)
    with pytest.raises(SerializationError, match=r"arguments of same.*lock"):
        client.map(same, [1, lock])

    def closure() -> Any:
        return lock

    with pytest.raises(SerializationError, match="function closure"):
        client.submit(closure)
    assert client.submit(inc, 1).result() == 2


def test_large_arguments_become_held_keys_snapshotted_once(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    data = bytearray(b"x" * 100_000)
    futures = client.map(add, [data, data], [b"1", b"2"], pure=False)
    data[:] = b"y" * 100_000
    turn()
    (hold,) = sent(broker, m.Hold)
    ((key, _, nbytes, _),) = hold.rows
    assert nbytes > 100_000 and [row[2] for _, row in broker.waiting] == [(key,), (key,)]
    held = client._ledger.store.get(key)
    assert held is not None and held.blob is not None
    assert serialize.loads(held.blob.slice(0, nbytes)) == b"x" * 100_000
    del futures
    turn()
    assert key in [row[0] for release in sent(broker, m.Release) for row in release.rows]


def test_map(client: Client, broker: FakeBroker) -> None:
    assert client.gather(client.map(add, [1, 2, 3], (10, 20), z=100)) == [111, 122]
    assert client.gather(client.map(inc, iter(range(500)))) == list(range(1, 501))
    assert [f.key for f in client.map(inc, range(2), key=["a", "b"])] == ["a", "b"]
    assert all(f.key.startswith("p-") for f in client.map(inc, range(2), key="p"))
    assert client.map(inc, []) == []
    with pytest.raises(ValueError, match="2 keys for 3"):
        client.map(inc, range(3), key=["a", "b"])
    with pytest.raises(ValueError, match="fewer keys"):
        client.map(inc, iter(range(3)), key=["q", "r"])
    with pytest.raises(TypeError, match="iterable"):
        client.map(inc)


def test_map_over_iterators_wants_as_many_names_as_items(client: Client) -> None:
    named = client.map(inc, iter([1, 2]), key=["a", "b"])
    assert [future.key for future in named] == ["a", "b"]
    with pytest.raises(ValueError, match="3 keys for 2 calls"):
        client.map(inc, iter([1, 2]), key=["c", "d", "e"])
    with pytest.raises(ValueError, match="fewer keys"):
        client.map(inc, iter([1, 2]), key=["f"])


def test_map_hands_on_tasks_while_it_reads(client: Client, broker: FakeBroker) -> None:
    seen = []

    def numbers() -> Any:
        for i in range(30):
            turn()
            seen.append(len(broker.values))
            yield i

    assert client.gather(client.map(inc, numbers(), batch_size=10)) == list(range(1, 31))
    assert seen[10] == 10 and seen[-1] == 20


def test_get_runs_a_dask_graph(client: Client) -> None:
    graph = {
        "x": 1,
        "y": (inc, "x"),
        ("t", 0): (add, "y", (inc, 10)),
        "l": ["y", ["x"]],
        "alias": "y",
        "s": (same, ["y", "not a key"]),
    }
    assert client.get(graph, ["y", [("t", 0), "x"], "l", "alias"]) == [2, [13, 1], [2, [1]], 2]
    assert client.get(graph, "s") == [2, "not a key"]
    assert isinstance(client.get(graph, "y", sync=False), Future)
    with pytest.raises(KeyError, match="nothing"):
        client.get(graph, "nothing")
    with pytest.raises(ValueError, match="cycle"):
        client.get({"a": (inc, "b"), "b": (inc, "a")}, "a")


# --- gathering ------------------------------------------------------------------------------------------


def test_errors(client: Client) -> None:
    good, bad, worse = client.submit(inc, 1), client.submit(fail, "bad"), client.submit(fail, "worse")
    for _ in range(2):
        with pytest.raises(ValueError, match="worse"):
            client.gather([good, worse, bad])
    assert client.gather([good, bad, [worse, good]], errors="skip") == [2, [2]]
    assert client.gather(bad, errors="skip") is None
    returned = client.gather([bad, good], errors="return")
    assert isinstance(returned[0], ValueError) and returned[1] == 2
    assert isinstance(client.gather(bad, errors="return"), ValueError)
    below = client.submit(inc, bad)
    with pytest.raises(ValueError, match="bad") as caught:
        below.result()
    assert bad.key in "".join(caught.value.__notes__)


def test_a_word_that_errors_does_not_know(client: Client, broker: FakeBroker) -> None:
    client.submit(inc, 1)
    with pytest.raises(ValueError, match="'ignore'"):
        client.gather([], errors="ignore")
    assert not sent(broker, m.Submit)


def test_the_first_failure_does_not_wait_for_what_stands_behind_it(client: Client, broker: FakeBroker) -> None:
    bad = client.submit(fail, "first")
    turn()
    broker.manual = True
    late = client.submit(inc, 1)
    with pytest.raises(ValueError, match="first"):
        client.gather([bad, late])
    with pytest.raises(TimeoutError):
        client.gather([late, bad], timeout=0.01)
    broker.go()
    assert client.gather([late, bad], errors="skip") == [2]


def test_a_value_that_does_not_unpickle_fails_alone(client: Client) -> None:
    good, broken = client.submit(inc, 1), client.submit(same, 5)
    client.gather([good, broken])
    row = broken._entry.outcome
    broken._entry.outcome = (*row[:3], serialize.dumps(Unloadable()).tobytes(), *row[4:])
    assert client.gather([good, broken], errors="skip") == [2]
    with pytest.raises(SerializationError, match="no number"):
        broken.result()
    assert good.result() == 2


def test_a_future_of_another_cluster(client: Client, broker: FakeBroker, connect: Callable[..., Client]) -> None:
    broker.cluster = "other"
    other = connect(name="elsewhere", set_as_default=False)
    foreign = other.submit(inc, 1)
    for call in (client.gather, client.cancel, lambda f: client.submit(inc, f), lambda f: client.map(inc, [f])):
        with pytest.raises(ValueError, match=r"cluster other .*cluster fake") as caught:
            call([foreign])
        assert not isinstance(caught.value, SerializationError)
    assert client.submit(inc, 1).result() == 2


def test_a_future_of_another_client_of_the_cluster_is_joined(client: Client, connect: Callable[..., Client]) -> None:
    second = connect()
    mine = client.submit(inc, 1)
    assert mine.result() == 2
    assert second.gather([mine]) == [2]
    assert second.submit(inc, mine).result() == 3


def test_ctrl_c_leaves_the_client_usable(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    future = client.submit(inc, 1)
    FakeDriver.made[0].interrupt = True
    with pytest.raises(KeyboardInterrupt):
        client.gather([future])
    assert not client._ledger.collections.open and not future._entry.waiters
    broker.go()
    assert client.gather([future]) == [2]


def test_a_timeout_leaves_no_trace(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    future = client.submit(inc, 1)
    for call in (future.result, future.exception, future.traceback):
        with pytest.raises(TimeoutError):
            call(timeout=0.01)
    assert not future._entry.waiters and future.status == "pending"


def test_the_report_tells_what_came_inline(client: Client) -> None:
    client.gather(client.map(inc, range(10)))
    (batch,) = client.gather_report()
    assert (batch.path, batch.keys) == ("inline", 10)
    assert "inline" in str(client.gather_report()) and "<table>" in client.gather_report()._repr_html_()


# --- futures -------------------------------------------------------------------------------------------


def test_what_a_future_tells(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    future = client.submit(inc, 1, key="k")
    assert repr(future) == "<Future: pending, key: k>"
    assert not future.done() and future.type is None
    broker.go()
    assert future.result() == 2
    assert repr(future) == "<Future: finished, type: object, key: k>"
    assert future.exception() is None and future.traceback() is None and future.done()


def test_an_exception_keeps_its_traceback(client: Client) -> None:
    future = client.submit(fail, "here")
    assert isinstance(future.exception(), ValueError)
    names, trace = [], future.traceback()
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "fail" in names


def test_callbacks_run_once_and_away_from_the_driver(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    future = client.submit(inc, 1)
    calls: list[tuple[Any, int]] = []
    called = threading.Semaphore(0)

    def callback(done: Future) -> None:
        calls.append((done.result(), threading.get_ident()))
        called.release()

    future.add_done_callback(callback)
    broker.go()
    turn()
    assert called.acquire(timeout=10)
    future.add_done_callback(callback)
    assert called.acquire(timeout=10)
    turn()
    assert [value for value, _ in calls] == [2, 2]
    assert threading.get_ident() not in [thread for _, thread in calls]


def test_release(client: Client, broker: FakeBroker) -> None:
    future = client.submit(inc, 1)
    other = client.submit(inc, 1)
    client.gather(future)
    future.release()
    future.release()
    turn()
    assert not sent(broker, m.Release)
    del other, future
    turn()
    ((key, gen),) = sent(broker, m.Release)[0].rows
    assert key.startswith("inc-") and gen == sent(broker, m.Submit)[0].gen
    assert not client._ledger.entries


def test_a_lone_await_or_result_keeps_its_future(client: Client) -> None:
    assert client.submit(inc, 1).result() == 2
    assert client.submit(fail, "x").exception().args == ("x",)


def test_futures_and_clients_make_no_cycles(connect: Callable[..., Client]) -> None:
    client = connect(set_as_default=False)
    gc.collect()
    gc.disable()
    try:
        future = client.submit(inc, 1)
        client.gather([future])
        future.add_done_callback(lambda f: None)
        gone = weakref.ref(future)
        client.watch([future], lambda f: None)
        del future
        idle = threading.Event()
        client._chore(idle.set)
        assert idle.wait(10)
        assert gone() is None
    finally:
        gc.enable()


def test_cancel(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    future = client.submit(inc, 1)
    turn()
    client.cancel(future)
    assert future.cancelled() and future.done() and future.status == "cancelled"
    with pytest.raises(CancelledError, match=f"cancelled by client {client.name}"):
        future.result()
    assert isinstance(future.exception(), CancelledError)
    assert client.gather([future], errors="skip") == []
    turn()
    assert [(c.keys, c.force) for c in sent(broker, m.Cancel)] == [((future.key,), False)]
    broker.waiting.clear()
    broker.manual = False
    assert client.submit(inc, 1).result() == 2
    assert future.cancelled()


def test_retry(client: Client, broker: FakeBroker) -> None:
    future = client.submit(fail, "once")
    assert future.exception() is not None
    future.retry()
    assert future.status == "pending"
    turn()
    assert sent(broker, m.Retry)[0].keys == (future.key,)


def test_pickled_futures(client: Client, broker: FakeBroker, connect: Callable[..., Client]) -> None:
    future = client.submit(inc, 1)
    assert future.result() == 2
    data = pickle.dumps(future)
    second = connect()
    copy = pickle.loads(data)
    assert copy.client is second and copy.key == future.key and copy.result() == 2
    second.close()
    broker.cluster = "other"
    connect()
    with pytest.raises(ValueError, match="belongs to cluster fake"):
        pickle.loads(data)


# --- scatter ----------------------------------------------------------------------------------------------


def test_scatter_names_and_kinds(client: Client, broker: FakeBroker) -> None:
    futures = client.scatter([1, "two", 1])
    assert isinstance(futures, list) and futures[0].key == futures[2].key != futures[1].key
    assert sum(len(place.keys) for place in sent(broker, m.Place)) == 2
    assert list(client.scatter({"a": 1})) == ["a"] and client.scatter({"a": 1})["a"].key == "a"
    assert isinstance(client.scatter((1, 2)), tuple) and isinstance(client.scatter({1}), set)
    assert client.scatter(7, hash=False).key != client.scatter(7, hash=False).key
    assert client.scatter([]) == []


def test_scatter_keys_conflict(client: Client) -> None:
    kept = client.scatter({"a": 1})
    with pytest.raises(KeyConflict, match="'a'"):
        client.scatter({"a": 2})
    del kept
    turn()
    client.scatter({"a": 2})


def test_broadcast_asks_for_copies(client: Client, broker: FakeBroker) -> None:
    client.scatter(1, broadcast=True, workers=["w1", "w2"])
    assert sent(broker, m.Place)[-1][1:] == (("w1", "w2"), 0)


# --- asking ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broadcast", [-1, 0, 1.5, "all"])
def test_a_number_of_copies_that_cannot_be(client: Client, broadcast: Any) -> None:
    with pytest.raises(ValueError, match="is not True, False, or a number of copies"):
        client.scatter(1, broadcast=broadcast)


def test_questions(client: Client, broker: FakeBroker) -> None:
    broker.answers |= {
        "workers": {"workers": {"tcp://a": {"name": "one"}, "tcp://b": {"name": "two"}}},
        "nthreads": {"tcp://a": 2, "tcp://b": 3},
        "who_has": lambda keys: dict.fromkeys(keys or (), ("tcp://a",)),
        "wait_for_workers": True,
    }
    assert list(client.scheduler_info()["workers"]) == ["tcp://a", "tcp://b"]
    assert client.nthreads() == client.ncores() == {"tcp://a": 2, "tcp://b": 3}
    assert client.nthreads("two") == {"tcp://b": 3}
    future = client.submit(inc, 1)
    assert client.who_has([future]) == {future.key: ["tcp://a"]}
    client.wait_for_workers(2)
    with pytest.raises(ValueError, match="n_workers"):
        client.wait_for_workers(0)
    with pytest.raises(TimeoutError):
        client._ask("unknown", timeout=0.01)
    assert not client._ledger.replies


def test_run(client: Client, broker: FakeBroker) -> None:
    good = serialize.dumps(5).tobytes()
    bad = serialize.dumps_error(ValueError("on b"))
    broker.answers["run"] = lambda payload: {"tcp://a": (True, good), "tcp://b": (False, bad), "tcp://c": (False, None)}
    assert client.run(inc, 1, on_error="ignore") == {"tcp://a": 5}
    with pytest.raises(ValueError, match="on b"):
        client.run(inc, 1)
    assert [type(v).__name__ for v in client.run(inc, 1, on_error="return").values()] == [
        "int",
        "ValueError",
        "ZdistError",
    ]
    assert client.run(inc, 1, wait=False) is None


# --- closing ------------------------------------------------------------------------------------------------


def test_close_cancels_what_is_unfinished_and_keeps_what_is_here(client: Client, broker: FakeBroker) -> None:
    done = client.submit(inc, 1)
    client.gather(done)
    broker.manual = True
    late = client.submit(inc, 5)
    client.close()
    client.close()
    assert client.status == "closed" and done.result() == 2
    with pytest.raises(CancelledError, match="client closed"):
        late.result()
    with pytest.raises(ClusterClosed, match="closed"):
        client.submit(inc, 2)


def test_a_cluster_that_ends(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    future = client.submit(inc, 1)
    broker.news.append(m.Stop("by test"))
    with pytest.raises(CancelledError, match="shut down: by test"):
        future.result()
    with pytest.raises(ClusterClosed, match="by test"):
        client.submit(inc, 2)


def test_a_client_that_nobody_holds_closes(connect: Callable[..., Client], broker: FakeBroker) -> None:
    client = Client("tcp://127.0.0.1:7777", set_as_default=False)
    driver = FakeDriver.made[-1]
    driver.machine = None  # what the driver holds keeps no client alive
    client._driver = driver  # type: ignore[assignment]
    driver.turn = lambda: None  # type: ignore[method-assign]
    del client
    gc.collect()
    assert driver.closed


def in_a_child(work: Callable[[], object]) -> str:
    """What came of it in a forked child, which ends after 20 s at the latest."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            text = repr(work())
        except ClusterClosed as exc:
            text = str(exc)
        except BaseException as exc:
            text = repr(exc)
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


def test_after_a_fork(client: Client, broker: FakeBroker) -> None:
    done = client.submit(inc, 1)
    client.gather(done)
    called = threading.Semaphore(0)
    done.add_done_callback(lambda _: called.release())
    assert called.acquire(timeout=10)
    broker.manual = True
    late = client.submit(inc, 2)

    def tells() -> tuple[int, bool]:
        done.add_done_callback(lambda _: called.release())
        return done.result(), called.acquire(timeout=10)

    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with client._lock:
            held.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    try:
        for work in (
            lambda: client.submit(inc, 3),
            late.result,
            late.exception,
            lambda: late.add_done_callback(print),
            lambda: next(as_completed([late])),
        ):
            text = in_a_child(work)
            assert "forked" in text and "make a new Client" in text
        assert in_a_child(tells) == "(2, True)"
    finally:
        over.set()
        thread.join()
    broker.go()
    assert late.result() == 3


# --- asynchronous --------------------------------------------------------------------------------------------


async def turning(until: asyncio.Future[Any] | asyncio.Task[Any]) -> Any:
    """What a background thread does for real clients."""
    for _ in range(200):
        if until.done():
            return until.result()
        turn()
        await asyncio.sleep(0)
    raise AssertionError("nothing comes any more")


async def test_asynchronous(broker: FakeBroker) -> None:
    client = Client("tcp://127.0.0.1:7777", asynchronous=True, set_as_default=False)
    with pytest.raises(RuntimeError, match="await client"):
        client.submit(inc, 1)
    await client
    future = client.submit(inc, 1)
    assert await turning(asyncio.ensure_future(client.gather([future, 3]))) == [2, 3]
    assert await turning(asyncio.ensure_future(client.submit(inc, 3).result())) == 4
    broker.manual = True
    late = client.submit(inc, 10)
    waiting = asyncio.ensure_future(client.gather(client.map(inc, [10, 11])))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="event loop"):
        client.gather(late, asynchronous=False)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not client._ledger.collections.open
    with pytest.raises(TimeoutError):
        await client.gather([late], timeout=0.01)
    called = asyncio.get_running_loop().create_future()
    late.add_done_callback(called.set_result)
    broker.go()
    assert await turning(called) is late
    await client.close()
    assert client.status == "closed"


async def gathered(client: Client, late: Future) -> Any:
    return await client.gather(late, timeout=60)


async def completed(client: Client, late: Future) -> Any:
    async for future in as_completed([late], timeout=60):
        return await future


@pytest.mark.parametrize("waits", [gathered, completed])
async def test_a_task_that_is_cancelled_in_the_moment_in_which_its_answer_comes_is_cancelled(
    broker: FakeBroker, waits: Any
) -> None:
    async with Client("tcp://127.0.0.1:7777", asynchronous=True, set_as_default=False) as client:
        broker.manual = True
        waiting = asyncio.ensure_future(waits(client, client.submit(inc, 10)))
        await asyncio.sleep(0)
        broker.go()
        turn()
        await asyncio.sleep(0)
        assert waiting.cancel(), "the loop was told of it, the task was not"
        with pytest.raises(asyncio.CancelledError):
            await waiting


def test_callbacks_of_a_client_that_outlives_its_loop(broker: FakeBroker) -> None:
    async def made() -> Client:
        return await Client("tcp://127.0.0.1:7777", asynchronous=True, set_as_default=False)

    client = asyncio.run(made())
    called = threading.Semaphore(0)
    client.submit(inc, 1).add_done_callback(lambda _: called.release())
    turn()
    assert called.acquire(timeout=10)
    asyncio.run(client.close())


def test_a_client_in_what_is_pickled_says_what_to_do(client: Client) -> None:
    for what in (client, [client]):
        with pytest.raises(TypeError, match=r"a Client cannot be pickled: .* get_client\(\)"):
            pickle.dumps(what)
    with pytest.raises(SerializationError, match=r"get_client\(\)"):
        client.submit(lambda: client.address)
