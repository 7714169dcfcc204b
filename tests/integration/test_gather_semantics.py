"""What gather promises, clause by clause: containers, iterators, queues and errors.

What futures can have become, paths, time, interruptions and tasks: the other files named test_gather_semantics_*.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import about_data, eventually, idle, sent

from zdist import CancelledError, Client, Future, LocalCluster, SerializationError, as_completed, wait

Point = namedtuple("Point", "x y")


class Tagged(list):  # type: ignore[type-arg]
    tag = ""


class Pair(tuple):  # type: ignore[type-arg]
    def __new__(cls, first: Any, second: Any) -> Pair:
        return super().__new__(cls, (first, second))


class Bag(set):  # type: ignore[type-arg]
    pass


class Frozen(frozenset):  # type: ignore[type-arg]
    pass


@dataclass
class Record:
    future: Any


# --- accepts, and returns the same type ------------------------------------------------------------------


def test_every_container_comes_back_as_its_own_kind(client: Client) -> None:
    a, b = client.submit(functions.inc, 0), client.submit(functions.inc, 1)
    tagged = Tagged([a])
    tagged.tag = "kept"
    for given, expected in [
        (a, 1), ([a, b], [1, 2]), ((a, b), (1, 2)), ({a, b}, {1, 2}), (frozenset([a]), frozenset([1])),
        ({"a": a, "b": [b]}, {"a": 1, "b": [2]}), (Point(a, (b, {"k": a})), Point(1, (2, {"k": 1}))),
        (tagged, Tagged([1])), (Pair(a, b), Pair(1, 2)), (Bag([a]), Bag([1])), (Frozen([b]), Frozen([2])),
        (OrderedDict(y=a, x=b), OrderedDict(y=1, x=2)), (defaultdict(list, k=a), defaultdict(list, k=1)),
        (Counter({"n": b}), Counter({"n": 2})),
        ([Point(Tagged([(a,)]), {1: {2: {b}}})], [Point([(1,)], {1: {2: {2}}})]),
    ]:  # fmt: skip
        result = client.gather(given)
        assert result == expected and type(result) is type(expected), given
    assert client.gather(tagged).tag == "kept" and client.gather(defaultdict(list, k=a))["new"] == []


@pytest.mark.parametrize("layer", [list, tuple, dict, Point, Tagged])
def test_depth_has_no_limit(client: Client, layer: Any) -> None:
    future = client.submit(functions.inc, 0)
    deep: Any = future
    for _ in range(20_000):
        deep = {"k": deep} if layer is dict else Point(deep, 0) if layer is Point else layer([deep])
    result = client.gather(deep)
    for _ in range(20_000):
        result = result["k"] if layer is dict else result[0]
    assert result == 1


def test_anything_else_comes_back_untouched(client: Client) -> None:
    future = client.submit(functions.inc, 0, key="a-key")
    record, others = Record(future), deque([future])
    given = [future, "a-key", b"a-key", record, others, 5, None, range(3), {"a-key": "a-key"}]
    result = client.gather(given)
    assert result[:3] == [1, "a-key", b"a-key"]
    assert all(result[i] is given[i] for i in range(1, len(given)))
    assert record.future is future and others[0] is future
    assert client.gather("a-key") == "a-key" and client.gather({"a-key": 1}) == {"a-key": 1}


def test_a_lazy_iterator_keeps_the_order_and_fetches_ahead(client: Client, gate: functions.Gate) -> None:
    pytest.importorskip("numpy")
    made: list[Future] = []

    def source() -> Iterator[Future]:
        for i in range(40):
            made.append(client.submit(functions.filled, i, 50_000 + i, pure=False))
            yield made[-1]

    values = client.gather(source())
    assert not made  # lazy
    assert [int(next(values)[0]) for _ in range(20)] == list(range(20))
    assert 20 < len(made) <= 40
    assert [int(array[-1]) for array in values] == list(range(20, 40))
    assert not client._ledger.collections.open


def test_as_completed_is_an_iterator_as_well(client: Client) -> None:
    futures = client.map(functions.inc, range(50), pure=False)
    assert sorted(client.gather(as_completed(futures))) == list(range(1, 51))


def test_an_iterator_closed_early_frees_everything(client: Client, gate: functions.Gate) -> None:
    pytest.importorskip("numpy")
    head = client.map(functions.filled, range(8), [400_000] * 8, pure=False)
    wait(head)
    never = client.map(functions.wait_at, [gate] * 50, range(50))
    values = client.gather(iter([*head, *never]))
    assert [int(next(values)[0]) for _ in range(4)] == list(range(4))
    assert client._ledger.collections.open
    values.close()
    idle(client)
    assert list(values) == []
    gate.open()


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def test_a_queue_of_the_same_kind_fills_in_order_and_within_its_bounds(client: Client, kind: Any) -> None:
    source = kind(maxsize=4)
    sink = client.gather(source)
    assert type(sink) is kind and sink.maxsize == 4
    feeder = threading.Thread(target=lambda: [source.put((i, client.submit(functions.inc, i))) for i in range(60)])
    feeder.start()
    got = [sink.get(timeout=20) for _ in range(60)]
    feeder.join(20)
    assert sorted(got) == [(i, i + 1) for i in range(60)] and (kind is not queue.Queue or got == sorted(got))
    source.join()
    assert sink.empty()


def test_a_queue_ends_with_its_client(cluster: LocalCluster, gate: functions.Gate) -> None:
    client = Client(cluster, set_as_default=False)
    source: queue.Queue[Any] = queue.Queue()
    sink = client.gather(source)
    source.put(client.submit(functions.inc, 1))
    assert sink.get(timeout=20) == 2
    source.put(client.submit(functions.wait_at, gate))
    eventually(source.empty, "the future is taken")
    client.close()
    error = sink.get(timeout=20)  # whoever waits for it is told
    assert isinstance(error, CancelledError) and "client closed" in str(error)
    gate.open()


# --- errors= ---------------------------------------------------------------------------------------------


def test_raise_is_the_first_in_input_order_whoever_fails_first(client: Client, gate: functions.Gate) -> None:
    fine = client.submit(functions.inc, 1)
    late = client.submit(functions.fail, client.submit(functions.wait_at, gate, "late"), "first")
    early = client.submit(functions.fail, 2, "second")
    wait([early, fine])
    results: list[BaseException] = []

    def gather() -> None:
        try:
            client.gather({"a": fine, "b": [late], "c": (early,)})
        except ValueError as exc:
            results.append(exc)

    thread = threading.Thread(target=gather)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()  # the second has failed, the first may still
    gate.open()
    thread.join(20)
    assert [str(error) for error in results] == ["first late"]
    assert "fail" in [frame.name for frame in traceback.extract_tb(results[0].__traceback__)]  # where it was raised
    assert fine.status == "finished"


def test_raise_is_deterministic_among_all_kinds_of_failures(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that cannot be unpickled, large and fetched, stands before an error that is known at once."""
    monkeypatch.setenv("ZDIST_TEST_CLIENT", "1")
    large = client.submit(functions.explosive_with, 1 << 20, pure=False)
    small = client.submit(functions.return_explosive, pure=False)
    bad = client.submit(functions.fail, 1)
    wait([large, small, bad])
    for _ in range(5):
        for first in (large, small):
            with pytest.raises(SerializationError, match=first.key):
                client.gather([first, bad])
        with pytest.raises(ValueError, match="on purpose 1"):
            client.gather([bad, large, small])


def test_the_other_futures_go_on(client: Client, gate: functions.Gate) -> None:
    bad, going = client.submit(functions.fail, 1), client.submit(functions.wait_at, gate, "through")
    with pytest.raises(ValueError, match="on purpose"):
        client.gather([bad, going])
    assert going.status == "pending"
    gate.open()
    assert going.result(timeout=20) == "through"


def test_skip_at_any_depth(client: Client, gate: functions.Gate) -> None:
    good, bad = client.submit(functions.inc, 0), client.submit(functions.fail, 1)
    gone = client.submit(functions.wait_at, gate)
    gone.cancel()
    gate.open()
    for given, expected in [
        (bad, None), (gone, None), ([good, bad, gone], [1]), ((bad,), ()), ({bad, good}, {1}),
        (frozenset([gone]), frozenset()), ({"a": bad, "b": good}, {"b": 1}), (Point(bad, good), Point(None, 1)),
        ([Point(good, [gone, good])], [Point(1, [1])]),
        ([[[bad]], {"k": {"l": [bad, 5]}}], [[[]], {"k": {"l": [5]}}]), (Tagged([bad, good]), Tagged([1])),
        (Pair(bad, good), (1,)), (OrderedDict(a=good, b=bad), OrderedDict(a=1)), ([bad, bad, good, bad], [1]),
    ]:  # fmt: skip
        result = client.gather(given, errors="skip")
        assert result == expected and type(result) is (type(given) if given not in (bad, gone) else type(None)), given


def test_return_puts_the_exception_in_its_place(client: Client, gate: functions.Gate) -> None:
    good, bad = client.submit(functions.inc, 0), client.submit(functions.raise_own, 7)
    gone = client.submit(functions.wait_at, gate)
    gone.cancel()
    gate.open()
    result = client.gather({"x": [good, bad], "y": Point(gone, bad)}, errors="return")
    error = result["x"][1]
    assert result["x"][0] == 1 and type(error) is functions.OwnError and error.code == 7
    assert result["y"].y is error and isinstance(result["y"].x, CancelledError)
    assert type(client.gather(bad, errors="return")) is functions.OwnError
    assert "raise_own" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: [f], iter, lambda f: queue.Queue()])
def test_another_word_is_refused_before_anything_is_sent(client: Client, wrap: Callable[[Any], Any]) -> None:
    pytest.importorskip("numpy")
    future = client.submit(functions.filled, 1, 100_000, pure=False)
    wait(future)
    seen = sent(client)
    with pytest.raises(ValueError, match=r"errors='ignore'.*'raise', 'skip' and 'return'"):
        client.gather(wrap([future]) if wrap is iter else wrap(future), errors="ignore")
    with pytest.raises(ValueError, match="no time span"):
        client.gather(wrap([future]) if wrap is iter else [future], timeout="soon")
    assert client.nthreads()  # a round trip to the broker: whatever was to be sent before it was sent
    assert set(about_data(seen)) <= {"Ask"}


# --- exceptions that would steer the program that asks ---------------------------------------------------


@pytest.mark.parametrize(
    "kind", [StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt, BaseException]
)
def test_a_task_never_steers_the_program_that_asks(client: Client, kind: type[BaseException]) -> None:
    bad, good = client.submit(functions.raise_kind, kind), client.submit(functions.inc, 1)
    own = bad.exception(timeout=20)
    assert type(own) is kind and own.args == ("from a task",)
    for ask in (bad.result, lambda: client.gather(bad), lambda: client.gather([good, bad])):
        with pytest.raises(RuntimeError, match=f"raised {kind.__name__}: from a task") as caught:
            ask()
        assert type(caught.value.__cause__) is kind
        assert "raise_kind" in [frame.name for frame in traceback.extract_tb(caught.value.__cause__.__traceback__)]
    returned = client.gather([bad, good], errors="return")
    assert type(returned[0]) is kind and returned[1] == 2
    assert client.gather([bad, good], errors="skip") == [2]

    def read() -> Iterator[Any]:
        yield bad.result()

    with pytest.raises(RuntimeError):
        list(read())
    with pytest.raises(RuntimeError):
        list(map(Future.result, [good, bad]))  # ended silently after the first if StopIteration came out
    below = client.submit(functions.inc, bad)
    with pytest.raises(RuntimeError, match=kind.__name__):
        below.result(timeout=20)
