from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fake_client import FakeClient, use_fakes

from zdist.client.waiting import FIRST_COMPLETED, as_completed, seconds, wait
from zdist.errors import CancelledError

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    return use_fakes(monkeypatch)


def beside(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# --- wait -------------------------------------------------------------------------------------------


def test_wait_for_all(client: FakeClient) -> None:
    a, b = client.future("a"), client.future("b", 1, "finished")
    thread = beside(lambda: client.settle(a, ValueError(), "error"))
    result = wait([a, {"x": b}], timeout=10)
    thread.join()
    assert result.done == {a, b} and result.not_done == set()


def test_wait_for_the_first(client: FakeClient) -> None:
    a, b = client.future("a"), client.future("b")
    thread = beside(lambda: client.settle(b))
    done, not_done = wait([a, b], return_when=FIRST_COMPLETED)
    thread.join()
    assert done == {b} and not_done == {a}


def test_wait_for_the_first_when_one_is_done_does_not_block(client: FakeClient) -> None:
    a, b = client.future("a"), client.future("b", 1, "finished")
    assert wait([a, b], return_when="FIRST_COMPLETED").done == {b}
    assert client.blocks == 0


def test_wait_for_nothing(client: FakeClient) -> None:
    assert wait([]) == (set(), set())
    assert wait([], return_when=FIRST_COMPLETED) == (set(), set())


@pytest.mark.parametrize("return_when", ["ALL_COMPLETED", "FIRST_COMPLETED"])
def test_wait_gives_up_in_time(client: FakeClient, return_when: str) -> None:
    with pytest.raises(TimeoutError, match="2 of 2 futures are not done in the time given"):
        wait([client.future("a"), client.future("b")], timeout="10ms", return_when=return_when)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("return_when", ["ALL_COMPLETED", "FIRST_COMPLETED"])
def test_wait_leaves_no_watchers_behind(client: FakeClient, return_when: str, asynchronous: bool) -> None:
    client.asynchronous = asynchronous
    a, b = client.future("a"), client.future("b")

    async def later(timeout: float) -> Any:
        return await wait([a, b], timeout=timeout, return_when=return_when)

    def now(timeout: float) -> Any:
        return asyncio.run(later(timeout)) if asynchronous else wait([a, b], timeout, return_when)

    for _ in range(3):
        with pytest.raises(TimeoutError):
            now(0.001)
    assert client.watchers == []
    if return_when == FIRST_COMPLETED:
        thread = beside(lambda: client.settle(a))
        assert now(10).not_done == {b}
        thread.join()
        assert client.watchers == []


def test_wait_tells_of_cancelled_ones(client: FakeClient) -> None:
    futures = [client.future(f"k{i}", None, "cancelled") for i in range(7)]
    with pytest.raises(CancelledError, match="cancelled while waited for: k0, k1, k2, k3, k4 and 2 more"):
        wait(futures)


def test_wait_knows_two_ways_only(client: FakeClient) -> None:
    with pytest.raises(NotImplementedError, match=r"'FIRST_EXCEPTION' is not supported, only 'ALL_COMPLETED'"):
        wait([], return_when="FIRST_EXCEPTION")


def test_wait_for_futures_of_two_clients(client: FakeClient) -> None:
    other = FakeClient()
    a, b = client.future("a"), other.future("b")
    thread = beside(lambda: (other.settle(b), client.settle(a)))
    assert wait([a, b], timeout=10).done == {a, b}
    thread.join()
    c, d = client.future("c"), other.future("d")
    thread = beside(lambda: other.settle(d))
    assert wait([c, d], timeout=10, return_when=FIRST_COMPLETED).done == {d}
    thread.join()


@pytest.mark.parametrize("return_when", ["ALL_COMPLETED", "FIRST_COMPLETED"])
def test_wait_for_futures_of_an_asynchronous_client(client: FakeClient, return_when: str) -> None:
    client.asynchronous = True
    a, b = client.future("a"), client.future("b", 1, "finished")

    async def main() -> Any:
        task = asyncio.ensure_future(wait([a, b], timeout=10, return_when=return_when))
        thread = beside(lambda: client.settle(a))
        done, _ = await task
        thread.join()
        assert b in done and (a in done or return_when == FIRST_COMPLETED)
        with pytest.raises(TimeoutError, match="1 of 1 futures"):
            await wait([client.future("c")], timeout=0.01, return_when=return_when)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("span", "expected"),
    [(None, None), (2, 2), (0.5, 0.5), ("500ms", 0.5), ("10s", 10), ("2 min", 120), ("3", 3), ("1h", 3600),
     (timedelta(minutes=1), 60), ("1.5s", 1.5), (".5 m", 30), ("2.", 2)],
)  # fmt: skip
def test_time_spans(span: Any, expected: float | None) -> None:
    assert seconds(span) == expected


@pytest.mark.parametrize("span", ["", "ten", "5 parsecs", "-1s", "1.2.3s", ".", [1]])
def test_bad_time_spans(span: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout=.* is no time span; give seconds or a text such as"):
        seconds(span)


# --- as_completed -----------------------------------------------------------------------------------


def test_in_the_order_of_completion(client: FakeClient) -> None:
    a, b, c = (client.future(key) for key in "abc")
    stream = as_completed([a, b, c])
    assert (stream.count(), stream.has_ready(), stream.is_empty()) == (3, False, False)
    client.settle(c)
    client.settle(a, ValueError("x"), "error")
    assert stream.has_ready() and stream.count() == 3
    assert repr(stream) == "<as_completed: waiting=1 done=2>"
    assert [next(stream), next(stream)] == [c, a]
    thread = beside(lambda: client.settle(b))
    assert list(stream) == [b]
    thread.join()
    assert stream.is_empty() and stream.count() == 0 and list(stream) == []


def test_more_is_added_while_iterating(client: FakeClient) -> None:
    stream = as_completed([client.future("0", 0, "finished")])
    seen = []
    for future in stream:
        seen.append(future.key)
        if len(seen) < 50:
            stream.add(client.future(str(len(seen)), 0, "finished"))
        elif len(seen) == 50:
            stream.update(client.future(f"last{i}", 0, "finished") for i in range(3))
    assert seen == [*map(str, range(50)), "last0", "last1", "last2"]


def test_a_future_given_twice_comes_twice(client: FakeClient) -> None:
    a = client.future("a")
    stream = as_completed([a, a])
    client.settle(a)
    assert list(stream) == [a, a]


def test_only_futures_are_taken(client: FakeClient) -> None:
    a = client.future("a", 1, "finished")
    with pytest.raises(TypeError, match="as_completed takes futures, got int: 1"):
        as_completed([a, 1])
    stream = as_completed([a])
    with pytest.raises(TypeError, match="got str: 'a'"):
        stream.add("a")  # type: ignore[arg-type]
    assert list(stream) == [a]


def test_with_results(client: FakeClient) -> None:
    futures = [client.future(str(i), i, "finished") for i in range(100)]
    assert list(as_completed(futures, with_results=True)) == [(f, f.value) for f in futures]


@pytest.mark.parametrize("error", [ValueError("wrong"), IndexError("wrong"), KeyError("wrong")])
def test_an_error_is_raised_in_its_turn(client: FakeClient, error: Exception) -> None:
    good, bad, last = (
        client.future("a", 1, "finished"),
        client.future("b", error, "error"),
        client.future("c", 3, "finished"),
    )
    stream = as_completed([good, bad, last], with_results=True)
    assert next(stream) == (good, 1)
    with pytest.raises(type(error), match="wrong"):
        next(stream)
    assert next(stream) == (last, 3)


def test_errors_as_triples(client: FakeClient) -> None:
    error = ValueError("wrong")
    bad, gone = client.future("b", error, "error"), client.future("c")
    client.cancel(gone)
    stream = as_completed([bad, gone], with_results=True, raise_errors=False)
    assert next(stream) == (bad, (ValueError, error, None))
    future, result = next(stream)
    assert future is gone and isinstance(result, CancelledError)


def test_a_result_that_is_an_exception_is_a_result(client: FakeClient) -> None:
    value = ValueError("a value")
    (_, result), *rest = as_completed([client.future("a", value, "finished")], with_results=True)
    assert result is value and rest == []


def test_batches(client: FakeClient) -> None:
    first, late = [client.future(str(i), i, "finished") for i in range(5)], client.future("late")
    stream = as_completed([*first, late])
    assert stream.next_batch() == first
    assert stream.next_batch(block=False) == []
    thread = beside(lambda: client.settle(late))
    assert list(stream.batches()) == [[late]]
    thread.join()
    with pytest.raises(StopIteration):
        stream.next_batch()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failure_has_a_batch_of_its_own(client: FakeClient, asynchronous: bool) -> None:
    client.asynchronous = asynchronous
    futures = [client.future(str(i), i, "finished") for i in range(50)]
    for at in (3, 4, 40):
        futures.insert(at, client.future(f"bad{at}", ValueError(f"bad {at}"), "error"))
    batches = as_completed(futures, with_results=True).batches()
    seen: list[Any] = []
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        while True:
            try:
                batch = asyncio.run(batches._batch()) if asynchronous else next(batches)
                seen.append([value for _, value in batch])
            except ValueError as error:
                seen.append(str(error))
    assert seen == [[0, 1, 2], "bad 3", "bad 4", list(range(3, 38)), "bad 40", list(range(38, 50))]


def test_as_completed_gives_up_in_time(client: FakeClient) -> None:
    late = client.future("late")
    stream = as_completed([client.future("a", 1, "finished"), late], timeout=0.05)
    assert next(stream).key == "a"
    with pytest.raises(TimeoutError, match="1 futures are not done in the time given to as_completed"):
        next(stream)
    client.settle(late)
    assert next(stream) is late  # what is ready is handed out at any time


def test_clear_ends_a_wait_elsewhere(client: FakeClient) -> None:
    late = client.future("late")
    stream = as_completed([late])
    seen: list[Any] = []
    thread = beside(lambda: seen.extend(stream))
    stream.clear()
    thread.join(5)
    assert not thread.is_alive() and seen == [] and stream.is_empty()
    client.settle(late)
    assert stream.is_empty()


def test_futures_of_two_clients_in_one_stream(client: FakeClient) -> None:
    other = FakeClient()
    a, b = client.future("a"), other.future("b")
    stream = as_completed([a, b], with_results=True)
    thread = beside(lambda: (other.settle(b, 2), client.settle(a, 1)))
    assert list(stream) == [(b, 2), (a, 1)]
    thread.join()


def test_two_threads_share_a_stream(client: FakeClient) -> None:
    futures = [client.future(str(i)) for i in range(500)]
    stream = as_completed(futures)
    taken: list[Any] = []
    threads = [beside(lambda: taken.extend(stream)) for _ in range(2)]
    for future in futures:
        client.settle(future)
    for thread in threads:
        thread.join(10)
    assert sorted(f.key for f in taken) == sorted(f.key for f in futures)


def test_async_iteration(client: FakeClient) -> None:
    client.asynchronous = True
    futures = [client.future(str(i)) for i in range(20)]

    async def main() -> None:
        thread = beside(lambda: [client.settle(f, int(f.key)) for f in futures])
        assert [f.key async for f in as_completed(futures)] == [f.key for f in futures]
        thread.join()
        assert [r async for _, r in as_completed(futures, with_results=True)] == list(range(20))
        batches = [batch async for batch in as_completed(futures).batches()]
        assert [f for batch in batches for f in batch] == futures
        with pytest.raises(TimeoutError):
            async for _ in as_completed([client.future("never")], timeout=0.01):
                pass

    asyncio.run(main())
