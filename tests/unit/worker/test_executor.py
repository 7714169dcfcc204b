"""The thread pool: who runs what, what is reported, and what tasks can do to it."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

import pytest
from fake_worker_driver import DEADLINE, Pool

from zdist import context, limits
from zdist.core import slot
from zdist.core.machine import BULK
from zdist.errors import RemoteError, SecededLimit, SerializationError
from zdist.protocol import messages as m
from zdist.serialize import Blob, dumps, dumps_args, dumps_function, loads, loads_error, register_reference
from zdist.worker import executor
from zdist.worker.logs import Records, recent
from zdist.worker.slots import Slots


class Ref:
    """Stands for a key in arguments."""

    def __init__(self, key: str) -> None:
        self.key = key


register_reference(Ref, lambda ref: ref.key)

gates: dict[str, threading.Event] = {}
notes: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def fresh() -> Any:
    gates.clear()
    notes.clear()
    yield
    for gate in gates.values():
        gate.set()


def gate(name: str) -> threading.Event:
    return gates.setdefault(name, threading.Event())


def identity(x: Any) -> Any:
    return x


def held(name: str) -> str:
    """A task that waits for the test."""
    gate(name + " began").set()
    assert gate(name).wait(DEADLINE)
    return name


def began(name: str) -> None:
    assert gate(name + " began").wait(DEADLINE)


def fails(kind: str) -> None:
    def inner_function() -> None:
        raise {"value": ValueError, "exit": SystemExit, "interrupt": KeyboardInterrupt}[kind]("because of " + kind)

    inner_function()


def test_a_lone_small_task_is_run_by_the_thread_that_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "LONG", 1e12)  # a busy machine may let a small task take long
    with Pool() as pool:
        pool.submit("a", identity, 1)
        assert pool.done()["a"][4] is not None
        before = pool.driver.hand_overs
        for n in range(5):
            pool.submit(f"b{n}", identity, n)
            row = pool.done(n + 2)[f"b{n}"]
            assert loads(row[4]) == n and row[5] == "int" and row[3] == len(row[4])
        assert pool.driver.hand_overs == before
        assert pool.driver.driven_by == {"zdist-one-task"}


def test_the_sockets_are_handed_over_before_a_task_that_is_long_or_of_unknown_length() -> None:
    with Pool() as pool:
        for n, (micros, expected) in enumerate(((-1.0, 1), (5.0, 1), (5000.0, 2))):
            if n:
                with pool.driver.lock:
                    pool.machine.functions[dumps_function(identity).digest].micros = micros
            pool.submit(f"a{n}", identity, n)
            pool.done(n + 1)
            assert pool.driver.hand_overs == expected


def test_done_tasks_are_reported_while_a_long_one_runs() -> None:
    with Pool() as pool:
        pool.submit("a", identity, 1)
        pool.submit("long", held, "long")
        began("long")
        assert "a" in pool.done()
        gate("long").set()
        pool.done(2)


def test_a_done_task_is_reported_while_an_idle_thread_has_the_sockets() -> None:
    with Pool(threads=2) as pool:
        pool.submit("long", held, "long")
        began("long")
        pool.driver.wait_for(lambda: pool.driver.drivers == 1)
        gate("long").set()
        assert list(pool.done()) == ["long"]


def test_a_queued_task_can_be_taken_back_while_another_runs() -> None:
    with Pool() as pool:
        pool.submit("long", held, "long")
        began("long")
        pool.submit("b", identity, 2)
        pool.driver.receive(m.TakeBack((("long", 1), ("b", 1))))
        assert pool.driver.wait(m.Returned) == [("b", 1)]
        gate("long").set()
        assert list(pool.done()) == ["long"]


def test_threads_run_side_by_side() -> None:
    with Pool(threads=3) as pool:
        for name in "abc":
            pool.submit(name, held, name)
        for name in "abc":
            began(name)
        for name in "abc":
            gate(name).set()
        assert set(pool.done(3)) == set("abc")


@pytest.mark.parametrize(
    ("kind", "error"), [("value", ValueError), ("exit", SystemExit), ("interrupt", KeyboardInterrupt)]
)
def test_what_a_task_raises_fails_the_task_and_never_the_worker(kind: str, error: type[BaseException]) -> None:
    with Pool() as pool:
        pool.submit("a", fails, kind)
        key, attempt, _micros, payload, text = pool.driver.wait(m.Erred)[0]
        assert (key, attempt) == ("a", 1)
        exc = loads_error(payload, text)
        assert type(exc) is error and exc.args == (f"because of {kind}",)
        names = []
        trace = exc.__traceback__
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert names == ["fails", "inner_function"]
        assert "inner_function" in text and f"because of {kind}" in text
        pool.submit("b", identity, 2)
        assert "b" in pool.done()


class Stubborn(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> Any:
        raise RuntimeError("no bytes")


def raises_stubborn() -> None:
    raise Stubborn


def test_an_exception_that_cannot_be_shown_or_pickled_still_fails_the_task() -> None:
    with Pool() as pool:
        pool.submit("a", raises_stubborn)
        row = pool.driver.wait(m.Erred)[0]
        assert isinstance(loads_error(row[3], row[4]), (RemoteError, Stubborn)) and "Stubborn" in row[4]


class Unloadable:
    def __reduce__(self) -> Any:
        return (__import__, ("no_such_module_anywhere",))

    def __call__(self) -> None: ...


def test_a_function_that_cannot_be_loaded_fails_its_tasks_with_all_names() -> None:
    with Pool() as pool:
        pool.submit("a", Unloadable())
        row = pool.driver.wait(m.Erred)[0]
        exc = loads_error(row[3], row[4])
        assert isinstance(exc, SerializationError)
        text = str(exc)
        assert (
            "Unloadable" in text and "worker one (tcp://127.0.0.1:1234)" in text and "no_such_module_anywhere" in text
        )
        pool.submit("b", identity, 2)
        assert "b" in pool.done()


def test_a_result_that_cannot_be_pickled_is_done_and_tells_key_and_type() -> None:
    with Pool() as pool:
        pool.submit("a", threading.Lock)
        row = pool.done()["a"]
        assert row[4] is None and row[3] > 0 and row[5] == "_thread.lock"
        pool.submit(
            "b", lambda x: type(x).__name__, Ref("a"), deps=[("a", 1, (), None)]
        )  # of use to tasks of this worker all the same
        assert loads(pool.done(2)["b"][4]) == "lock"
        with pool.driver.lock:
            pool.machine.handle(BULK, m.Get(1, "", "w-1", "c-1", (("a", 0, 0),)), 0.0)
        pool.driver.turn()
        data = next(message for message in pool.driver.said if type(message) is m.Data)
        key, code, text = data.absent[0]
        assert (key, code) == ("a", "unpicklable") and "task a" in text and "_thread.lock" in text


def test_a_value_is_frozen_when_somebody_asks_for_it() -> None:
    with Pool() as pool:
        pool.submit("a", bytes, 100_000, deliver=False)
        assert pool.done()["a"][4] is None
        entry = pool.machine.store.get("a")
        assert entry is not None and entry.blob is None
        with pool.driver.lock:
            pool.machine.handle(BULK, m.Get(1, "", "w-1", "c-1", (("a", 0, 0),)), pool.driver.now())
        pool.driver.turn()
        (row,) = pool.driver.wait(m.Data)
        assert loads([getattr(piece, "data", piece) for piece in row[4]]) == bytes(100_000)


def test_values_of_dependencies_are_found_wherever_they_are() -> None:
    with Pool() as pool:
        pool.submit("here", list, (1, 2))
        pool.done()
        args = (Ref("here"), Ref("inline"), Ref("fetched"))
        deps = [
            ("here", 10, (), None),
            ("inline", 10, (), dumps("inline").tobytes()),
            ("fetched", 10, ("w-2",), None),
        ]
        pool.submit("a", lambda *xs: list(xs), list(args), *args, deps=deps)
        with pool.driver.lock:
            pool.machine.fetcher.drop(0, ("fetched",), 0.0)
            pool.machine.fetcher.arrived.append(((0,), "fetched", 1, dumps({"f": 1}).pieces, 9, "peer"))
        pool.driver.turn()
        assert loads(pool.done(2)["a"][4]) == [[[1, 2], "inline", {"f": 1}], [1, 2], "inline", {"f": 1}]


def test_fetched_bytes_are_unpickled_once_for_all_tasks() -> None:
    with Pool() as pool:
        with pool.driver.lock:
            pool.machine.store.put_blob("data", 0, dumps([1, 2, 3]), "list")
        for key in "ab":
            pool.submit(key, id, Ref("data"), deps=[("data", 10, (), None)])
        rows = pool.done(2)
        assert loads(rows["a"][4]) == loads(rows["b"][4])
        entry = pool.machine.store.get("data")
        assert entry is not None and entry.value == [1, 2, 3]


def test_a_dependency_that_cannot_be_unpickled_fails_the_task_alone() -> None:
    with Pool() as pool:
        pool.submit("a", identity, Ref("bad"), deps=[("bad", 10, (), b"no stream")])
        row = pool.driver.wait(m.Erred)[0]
        exc = loads_error(row[3], row[4])
        assert isinstance(exc, SerializationError)
        pool.submit("b", identity, Ref("strange"))
        row = pool.driver.wait(m.Erred, 2)[1]
        assert "strange" in str(loads_error(row[3], row[4]))


def test_a_private_array_is_frozen_without_a_copy_and_a_shared_one_with() -> None:
    numpy = pytest.importorskip("numpy")
    with Pool() as pool:

        def private() -> Any:
            return numpy.zeros(100_000)

        def shared() -> Any:
            array = notes["array"] = numpy.zeros(100_000)
            return array

        from zdist.worker.results import freeze

        array = shared()
        blob = freeze(array, True, "k")[1]
        array[0] = 5.0
        assert loads(blob.pieces)[0] == 0.0

        def address(function: Any) -> int:
            result = function()
            notes["pointer"] = result.__array_interface__["data"][0]
            return freeze(result, True, "k")[1]  # type: ignore[no-any-return]

        pieces = address(private).pieces  # type: ignore[attr-defined]
        assert numpy.frombuffer(pieces[-1], dtype="u1").__array_interface__["data"][0] == notes["pointer"]
        pool.submit("a", numpy.ones, 50_000)
        row = pool.done()["a"]
        assert row[4] is None and row[3] > 400_000 and row[5] == "numpy.ndarray"
        entry = pool.machine.store.get("a")
        assert entry is not None and isinstance(entry.blob, Blob) and not entry.has_value
        pool.submit("b", float, Ref("c"), deps=[("c", 8, (), dumps(2).tobytes())])
        assert loads(pool.done(2)["b"][4]) == 2.0


def test_the_slot_file_tells_what_runs(tmp_path: Any) -> None:
    path = str(tmp_path / "slot")

    def running() -> list[tuple[str, int]]:
        with open(path, "rb") as file:
            found = slot.read(lambda length, offset: os.pread(file.fileno(), length, offset))
            return [(key, attempt) for key, attempt, until in found if until == 0.0]

    with Pool(threads=2, slot=path) as pool:
        assert running() == []
        pool.submit("größe" * 100, held, "a", attempt=7)
        pool.submit("b", held, "b")
        began("a")
        began("b")
        assert sorted(running()) == [("b", 1), ("größe" * 100, 7)]
        gate("a").set()
        pool.done(1)
        assert running() == [("b", 1)]
        gate("b").set()
        pool.done(2)
        assert running() == []


def secedes(name: str, back: bool) -> str:
    task = context.current.get()
    assert task is not None
    assert not task.seceded
    task.secede()
    task.secede()  # no effect
    assert task.seceded
    held(name)
    if back:
        gate(name + " returns").set()
        task.rejoin()
        assert not task.seceded
        gate(name + " is back").set()
    return name


def test_a_seceded_task_is_replaced_in_the_pool_and_its_thread_ends_with_it() -> None:
    with Pool() as pool:
        pool.submit("a", secedes, "a", False)
        began("a")
        assert pool.driver.wait(m.Seceded) == [m.Seceded("a", 1, False)]
        pool.submit("b", identity, 2)
        assert "b" in pool.done()
        gate("a").set()
        pool.done(2)
        pool.driver.wait_for(lambda: len(pool.executor.alive) == 1)
        pool.submit("c", identity, 3)
        assert "c" in pool.done(3)


def test_a_task_comes_back_into_the_pool_when_a_thread_is_free() -> None:
    with Pool() as pool:
        pool.submit("a", secedes, "a", True)
        began("a")
        pool.submit("b", held, "b")
        began("b")
        gate("a").set()
        assert gate("a returns").wait(DEADLINE)
        assert not gate("a is back").is_set()
        gate("b").set()
        assert gate("a is back").wait(DEADLINE)
        assert set(pool.done(2)) == {"a", "b"}
        assert m.Seceded("a", 1, True) in pool.driver.wait(m.Seceded, 2)
        pool.submit("c", identity, 3)
        assert "c" in pool.done(3)
        pool.driver.wait_for(lambda: len(pool.executor.alive) == 1)


def test_threads_that_have_left_the_pool_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECEDED_PER_WORKER", 1)
    with Pool() as pool:
        pool.submit("a", secedes, "a", False)
        began("a")
        pool.submit("b", secedes, "b", False)
        row = pool.driver.wait(m.Erred)[0]
        exc = loads_error(row[3], row[4])
        assert isinstance(exc, SecededLimit) and "task b" in str(exc) and "worker one" in str(exc)
        gate("a").set()
        pool.done(1)


def test_nothing_is_left_current_after_a_task() -> None:
    with Pool() as pool:
        seen: list[Any] = []

        def look() -> None:
            seen.append(context.current.get())

        with pool.driver.lock:
            original = pool.driver.turn

        def turn() -> None:
            if threading.current_thread().name == "zdist-one-task":
                look()
            original()

        pool.submit("a", lambda: context.current.get().key)  # type: ignore[union-attr]
        assert loads(pool.done()["a"][4]) == "a"
        pool.driver.turn = turn  # type: ignore[method-assign]
        pool.submit("b", identity, 1)
        pool.done(2)
        pool.submit("c", identity, 1)
        pool.done(3)
        assert seen and set(seen) == {None}


def test_output_and_log_records_of_a_task_are_sent_under_its_key() -> None:
    def talks() -> None:
        task = context.current.get()
        assert task is not None
        task.output("out", "hello\n")
        logging.getLogger("mine").warning("careful %d", 5)

    with Pool() as pool:
        records = pool.records = Records(pool, all_threads=False)  # type: ignore[attr-defined]
        logging.getLogger().addHandler(records)
        try:
            logging.getLogger("mine").warning("from the test")
            pool.submit("a", talks)
            out, record = pool.driver.wait(m.Output, 2)
        finally:
            logging.getLogger().removeHandler(records)
        assert out == m.Output("out", "hello\n", "a", "one")
        assert record.stream == "log" and record.key == "a" and record.text.endswith("WARNING mine: careful 5")
        assert recent(dask_worker=pool) == [("WARNING", record.text)]
        assert recent(0, dask_worker=pool) == []


def call(pool: Pool, function: Any, *args: Any) -> m.Called:
    blob = dumps_function(function)
    payload = dumps((blob.digest, blob.data, dumps_args(args, {}, None)[0])).tobytes()
    pool.driver.receive(m.Call(3, None, payload))
    answer = pool.driver.wait(m.Called)[0]
    assert isinstance(answer, m.Called) and answer.req == 3
    return answer


def test_a_call_runs_beside_the_tasks_and_gets_the_worker() -> None:
    def name(extra: str, dask_worker: Any = None) -> str:
        return dask_worker.name + extra  # type: ignore[no-any-return]

    with Pool() as pool:
        pool.submit("long", held, "long")
        began("long")
        answer = call(pool, name, "!")
        assert answer.ok and loads(getattr(answer.payload, "data", answer.payload)) == "one!"
        gate("long").set()
        pool.done()


@pytest.mark.parametrize("kind", ["value", "exit"])
def test_a_call_that_raises_is_answered_with_the_error(kind: str) -> None:
    with Pool() as pool:
        answer = call(pool, fails, kind)
        assert not answer.ok and isinstance(answer.payload, bytes)
        assert str(loads_error(answer.payload)) == f"because of {kind}"


def test_many_small_tasks_need_few_turns() -> None:
    with Pool(threads=2) as pool:
        blob = dumps_function(identity)
        rows = tuple((f"k{n}", 1, n, True, dumps_args((n,), {}, None)[0], ()) for n in range(600))
        pool.driver.receive(m.Define(blob.digest, blob.name, blob.data), m.Run(blob.digest, rows))
        done = pool.done(600)
        assert all(loads(done[f"k{n}"][4]) == n for n in range(0, 600, 97))
        messages = sum(type(message) is m.Done for message in pool.driver.said)
        assert messages < 300
        pool.driver.receive(m.Drop(tuple(done)))
        assert not pool.machine.store.entries and pool.machine.store.total == 0


def test_stopping_ends_idle_threads_and_leaves_running_ones() -> None:
    pool = Pool(threads=2)
    pool.executor.start()
    pool.submit("a", held, "a")
    began("a")
    pool.executor.stop(0.2)
    end = time.monotonic() + DEADLINE
    while len(pool.executor.alive) > 1:  # it may have spent its time on the one that runs
        assert time.monotonic() < end
        threading.Event().wait(0.01)
    assert len(pool.executor.alive) == 1
    (thread,) = list(pool.executor.alive)
    gate("a").set()
    thread.join(DEADLINE)
    assert not pool.executor.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_a_thread_of_the_pool_ends_the_worker() -> None:
    def broken(now: float) -> None:
        raise ZeroDivisionError("oh")

    pool = Pool()
    pool.machine.next_task = broken  # type: ignore[method-assign,assignment]
    pool.executor.start()
    (thread,) = list(pool.executor.alive)
    pool.submit("a", identity, 1)
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert pool.ended == ("a thread of the pool failed: ZeroDivisionError: oh", 1)


def test_a_task_on_the_second_thread_is_seen_before_the_first_has_run_any() -> None:
    slots = Slots(None, 2)
    first, second = slots.take(), slots.take()
    second.begin("b", 7, 5.0)
    assert slots.running() == [("b", 7, 5.0)]
    first.begin("a", 8)
    assert [row[0] for row in slots.running()] == ["a", "b"]
    second.end()
    assert [row[0] for row in slots.running()] == ["a"]
