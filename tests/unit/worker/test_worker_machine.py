"""WorkerMachine: each order has its effect, stale ones have none, and the tables agree after every step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zdist import limits
from zdist.core.machine import BULK, CONTROL, Route
from zdist.core.store import Pieces
from zdist.core.task import GONE, Task
from zdist.core.worker import Exit, Freeze, RunCall, WorkerMachine
from zdist.errors import ProtocolError
from zdist.protocol import messages as m
from zdist.protocol.fields import DATA

FN = b"f" * 32
OTHER = "w-00000000000000bb"
SMALL = (b"bytes", None, "", 5, True)
LIVE = (None, None, "", 100, True)


def machine(**options: Any) -> WorkerMachine:
    worker = WorkerMachine("w-00000000000000aa", "secret", name="one", **options)
    worker.welcomed(m.Welcome(1, 0, True, {"lease": 10.0}), 0.0)
    worker.turn(0.0)
    worker.take()
    return worker


def control(worker: WorkerMachine, message: m.Message, now: float = 0.0) -> None:
    worker.handle(CONTROL, message, now)
    worker.check()


def define(worker: WorkerMachine, fn: bytes = FN) -> None:
    control(worker, m.Define(fn, "inc", b"code"))


def run(worker: WorkerMachine, key: str, attempt: int = 1, priority: int = 0, deps: Any = (), fn: bytes = FN) -> None:
    control(worker, m.Run(fn, ((key, attempt, priority, True, b"args", tuple(deps)),)))


def said(worker: WorkerMachine, now: float = 0.0) -> list[m.Message]:
    """What a flush would send to the broker."""
    worker.turn(now)
    worker.check()
    return worker.take().get(CONTROL, [])


def start(worker: WorkerMachine, now: float = 0.0) -> Task:
    task = worker.next_task(now)
    assert task is not None
    worker.check()
    return task


def holds(worker: WorkerMachine, key: str) -> bool:
    return worker.store.get(key) is not None


def test_a_first_welcome_is_answered_by_a_subscription() -> None:
    worker = WorkerMachine("w-1", "secret", name="one", threads=3, tags=("gpu",), resources={"ram": 2.0})
    worker.welcomed(m.Welcome(1, 0, True, {}), 0.0)
    assert said(worker) == [m.Subscribe(3, ("gpu",), {"ram": 2.0}, False)]
    worker.address = "tcp://127.0.0.1:5"
    assert worker.hello_info()["address"] == "tcp://127.0.0.1:5"


def test_tasks_start_in_order_of_priority_and_report_in_one_message() -> None:
    worker = machine()
    define(worker)
    for key, priority in (("b", 2), ("a", 1), ("c", 2)):
        run(worker, key, priority=priority)
    tasks = [start(worker) for _ in range(3)]
    assert [task.key for task in tasks] == ["a", "b", "c"]
    assert worker.next_task(0.0) is None
    worker.finished(tasks[0], 7, "value", "str", SMALL, 0.0)
    worker.finished(tasks[1], 8, "other", "str", LIVE, 0.0)
    worker.failed(tasks[2], 9, b"error", "text", 0.0)
    assert said(worker) == [
        m.Done((("a", 1, 7, 5, b"bytes", "str"), ("b", 1, 8, 100, None, "str"))),
        m.Erred((("c", 1, 9, b"error", "text"),)),
    ]
    assert holds(worker, "a") and holds(worker, "b") and not holds(worker, "c")
    control(worker, m.Drop(("a", "b", "never")))
    assert not worker.store.entries and not worker.tasks and said(worker) == []


def test_a_duration_is_measured_per_function() -> None:
    worker = machine()
    define(worker)
    function = worker.functions[FN]
    assert function.micros < 0
    for key, micros, expected in (("a", 100, 100.0), ("b", 200, 105.0), ("c", 5, 55.0)):
        run(worker, key)
        worker.finished(start(worker), micros, 1, "int", SMALL, 0.0)
        assert function.micros == expected


def test_a_function_that_never_came_is_asked_for_once() -> None:
    worker = machine()
    run(worker, "a")
    run(worker, "b")
    assert said(worker) == [m.WhichFunction(FN)]
    assert worker.next_task(0.0) is None
    define(worker)
    assert start(worker).key == "a"


def test_functions_without_tasks_make_room_the_least_recently_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FUNCTION_CACHE", 2)
    worker = machine()
    first, second, third = (bytes([n]) * 32 for n in range(3))
    define(worker, first)
    define(worker, second)
    run(worker, "a", fn=first)
    define(worker, third)
    assert list(worker.functions) == [first, third]
    run(worker, "b", fn=second)
    assert m.WhichFunction(second) in said(worker)


def test_the_bytes_of_functions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FUNCTION_CACHE_BYTES", 7)
    worker = machine()
    define(worker, b"1" * 32)
    define(worker, b"2" * 32)
    assert list(worker.functions) == [b"2" * 32] and worker.function_bytes == 4


def test_taken_back_are_only_those_that_have_not_started() -> None:
    worker = machine()
    define(worker)
    for key in "abc":
        run(worker, key)
    run(worker, "waits", deps=[("dep", 10, (), None)])
    running = start(worker)
    control(worker, m.TakeBack((("a", 1), ("b", 1), ("c", 2), ("waits", 1), ("unknown", 1))))
    assert said(worker) == [m.Returned((("b", 1), ("waits", 1)))]
    assert running.key == "a" and start(worker).key == "c" and worker.next_task(0.0) is None
    control(worker, m.TakeBack((("a", 1),)))
    assert said(worker) == [m.Returned(())]


def test_an_aborted_task_is_dropped_or_its_result_is() -> None:
    worker = machine()
    define(worker)
    run(worker, "a")
    run(worker, "b")
    running = start(worker)
    control(worker, m.Abort((("a", 1), ("b", 1), ("c", 1))))
    assert worker.next_task(0.0) is None
    assert said(worker) == [m.Subscribe(0, (), {}, False)]  # its thread is not free before it has ended
    worker.finished(running, 5, 1, "int", SMALL, 0.0)
    assert said(worker) == [m.Subscribe(1, (), {}, False)] and not worker.store.entries


def test_a_thread_that_an_aborted_task_has_left_is_free() -> None:
    worker = machine()
    define(worker)
    run(worker, "a")
    running = start(worker)
    control(worker, m.Abort((("a", 1),)))
    assert said(worker) == [m.Subscribe(0, (), {}, False)]
    assert worker.seceded(running, back=False)
    assert said(worker) == [m.Subscribe(1, (), {}, False)]
    assert worker.seceded(running, back=True)
    assert said(worker) == [m.Subscribe(0, (), {}, False)]
    worker.failed(running, 5, b"", "", 0.0)
    assert said(worker) == [m.Subscribe(1, (), {}, False)]


def test_a_newer_attempt_replaces_an_older_one_and_never_the_other_way() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", attempt=2)
    run(worker, "a", attempt=1)
    old = start(worker)
    assert old.attempt == 2
    run(worker, "a", attempt=3)
    new = start(worker)
    assert said(worker) == [m.Subscribe(0, (), {}, False)]
    worker.finished(old, 5, "old", "str", SMALL, 0.0)
    worker.finished(new, 5, "new", "str", SMALL, 0.0)
    assert said(worker) == [m.Subscribe(1, (), {}, False), m.Done((("a", 3, 5, 5, b"bytes", "str"),))]
    entry = worker.store.get("a")
    assert entry is not None and entry.value == "new"


def test_the_queue_forgets_what_was_taken_back() -> None:
    worker = machine()
    define(worker)
    worker.handle(CONTROL, m.Run(FN, tuple((f"k{n}", 1, n, True, b"args", ()) for n in range(500))), 0.0)
    control(worker, m.TakeBack(tuple((f"k{n}", 1) for n in range(1, 500))))
    assert len(worker.queue) <= 2 * 1 + 65
    assert start(worker).key == "k0" and worker.next_task(0.0) is None


def test_nothing_starts_when_the_broker_has_been_silent_for_a_lease() -> None:
    worker = machine()
    define(worker)
    run(worker, "a")
    assert not worker.ready(10.0) and worker.next_task(10.0) is None
    control(worker, m.Pong(), 12.0)
    assert worker.ready(21.9) and start(worker, 21.9).key == "a"
    run(worker, "b")
    assert worker.next_task(22.0) is None
    worker.welcomed(m.Welcome(1, 0, False, {"lease": 1.0}), 30.0)
    assert worker.next_task(31.0) is None and start(worker, 30.9).key == "b"


def test_a_dependency_that_came_along_or_is_held_is_found() -> None:
    worker = machine()
    define(worker)
    run(worker, "held")
    worker.finished(start(worker), 1, "value", "str", SMALL, 0.0)
    run(worker, "a", deps=[("held", 5, (), None), ("inline", 5, (OTHER,), b"payload"), ("held", 5, (), None)])
    task = start(worker)
    entry = worker.store.get("held")
    assert task.inputs["held"] is entry and task.inputs["inline"].payload == b"payload"  # type: ignore[union-attr]
    control(worker, m.Drop(("held",)))  # the task has it in hand already
    assert task.inputs["held"] is entry
    worker.finished(task, 1, None, "NoneType", SMALL, 0.0)
    assert not worker.inputs.table


def arrive(worker: WorkerMachine, key: str, attempt: int = 1) -> None:
    """What the fetcher does when a transfer is complete."""
    worker.fetcher.drop(0, (key,), 0.0)
    worker.fetcher.arrived.append(((0,), key, attempt, [b"stream"], 6, "peer"))
    worker.turn(0.0)
    worker.check()


def fail(worker: WorkerMachine, key: str, code: str = "missing", text: str = "") -> None:
    worker.fetcher.drop(0, (key,), 0.0)
    worker.fetcher.failed.append(((0,), key, code, text, (OTHER,)))
    worker.turn(0.0)
    worker.check()


def test_a_dependency_elsewhere_is_fetched_once_and_kept() -> None:
    worker = machine()
    define(worker)
    control(worker, m.Members(((OTHER, "tcp://127.0.0.1:9", "two", "host", "n-1"),)))
    for key in "ab":
        run(worker, key, deps=[("dep", 6, (OTHER,), None)])
    assert worker.next_task(0.0) is None and worker.fetcher.wants("dep")
    arrive(worker, "dep", attempt=4)
    assert m.Held((("dep", 4, 6, ""),)) in said(worker)
    first, second = start(worker), start(worker)
    assert first.inputs["dep"] is second.inputs["dep"] is worker.store.get("dep")


def test_a_dependency_that_nobody_has_is_reported_and_waited_for() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (OTHER,), None)])
    fail(worker, "dep")
    assert m.Missing((("dep", (OTHER,)),)) in said(worker)
    control(worker, m.Locate((("dep", 6, (), None), ("other", 6, (OTHER,), None))))
    assert worker.next_task(0.0) is None and not worker.fetcher.wants("dep") and not worker.fetcher.wants("other")
    control(worker, m.Locate((("dep", 6, (OTHER,), None),)))
    assert worker.fetcher.wants("dep")
    control(worker, m.Locate((("dep", 6, (), b"payload"),)))
    assert not worker.fetcher.wants("dep")
    assert start(worker).inputs["dep"].payload == b"payload"  # type: ignore[union-attr]


def test_a_broker_that_takes_this_worker_for_a_holder_is_told() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (worker.session,), None)])
    assert m.Missing((("dep", (worker.session,)),)) in said(worker)
    assert not worker.fetcher.wants("dep")


def test_a_dependency_without_bytes_lets_its_task_start_to_fail() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (OTHER,), None)])
    fail(worker, "dep", "unpicklable", "a lock")
    assert start(worker).inputs["dep"].error == "a lock"  # type: ignore[union-attr]


def test_a_dependency_computed_here_meanwhile_is_taken_from_here() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (OTHER,), None)])
    run(worker, "dep", attempt=2)
    worker.finished(start(worker), 1, "value", "str", SMALL, 0.0)
    assert start(worker).inputs["dep"] is worker.store.get("dep") and not worker.fetcher.wants("dep")
    arrive(worker, "dep")  # too late, and of another attempt
    entry = worker.store.get("dep")
    assert entry is not None and entry.attempt == 2


def test_a_task_taken_back_no_longer_wants_its_dependencies() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (OTHER,), None), ("inline", 1, (), b"p")])
    control(worker, m.TakeBack((("a", 1),)))
    assert not worker.inputs.table and not worker.fetcher.wants("dep")


def test_what_arrives_in_the_turn_in_which_its_task_is_taken_back_is_not_kept() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (OTHER,), None)])
    worker.fetcher.drop(0, ("dep",), 0.0)
    worker.fetcher.arrived.append(((0,), "dep", 1, [b"stream"], 6, "peer"))
    control(worker, m.TakeBack((("a", 1),)))
    worker.turn(0.0)
    worker.check()
    assert worker.store.get("dep") is None and said(worker) == [m.Returned((("a", 1),))]


@pytest.mark.parametrize("code", ["missing", "unpicklable"])
def test_what_fails_in_the_turn_in_which_its_task_is_taken_back_is_not_told(code: str) -> None:
    worker = machine()
    define(worker)
    run(worker, "a", deps=[("dep", 6, (OTHER,), None)])
    worker.fetcher.drop(0, ("dep",), 0.0)
    worker.fetcher.failed.append(((0,), "dep", code, "", (OTHER,)))
    control(worker, m.TakeBack((("a", 1),)))
    worker.turn(0.0)
    worker.check()
    assert said(worker) == [m.Returned((("a", 1),))]


def test_a_copy_is_fetched_and_announced() -> None:
    worker = machine()
    control(worker, m.Replicate((("data", 0, 6, (OTHER,)),)))
    assert worker.fetcher.wants("data")
    arrive(worker, "data", attempt=0)
    assert m.Held((("data", 0, 6, ""),)) in said(worker)
    control(worker, m.Replicate((("data", 0, 6, (OTHER,)),)))
    assert said(worker) == [m.Held((("data", 0, 6, ""),))]
    control(worker, m.Replicate((("more", 0, 6, (OTHER,)),)))
    control(worker, m.Drop(("data", "more")))
    assert not worker.fetcher.wants("more") and not worker.store.entries and not worker.inputs.table


def test_an_order_for_a_copy_is_over_when_nobody_holds_it_any_more() -> None:
    worker = machine()
    control(worker, m.Replicate((("data", 0, 6, (OTHER,)),)))
    control(worker, m.Locate((("data", 6, (), None),)))
    assert said(worker) == [m.Missing((("data", ()),))] and not worker.inputs.table
    assert not worker.fetcher.wants("data")


def test_an_order_for_a_copy_is_over_when_it_cannot_be_had() -> None:
    worker = machine()
    control(worker, m.Replicate((("lost", 0, 6, (OTHER,)), ("mine", 0, 6, (worker.session,)), ("nowhere", 0, 6, ()))))
    assert said(worker) == [m.Missing((("mine", (worker.session,)), ("nowhere", ())))]
    assert list(worker.inputs.table) == ["lost"]
    fail(worker, "lost")
    assert said(worker) == [m.Missing((("lost", (OTHER,)),))] and not worker.inputs.table


def test_a_fresh_broker_is_told_what_is_held_and_queued_work_is_forgotten() -> None:
    worker = machine()
    define(worker)
    run(worker, "held", attempt=3)
    worker.finished(start(worker), 1, "value", "str", SMALL, 0.0)
    for key in "abc":
        run(worker, key)
    run(worker, "waits", deps=[("dep", 6, (OTHER,), None)])
    succeeds, fails = start(worker), start(worker)
    worker.take()
    worker.welcomed(m.Welcome(2, 0, True, {}), 5.0)
    busy, free = m.Subscribe(0, (), {}, False), m.Subscribe(1, (), {}, False)
    unowned = m.Unowned((("a", 1), ("b", 1)))
    assert said(worker, 5.0) == [busy, unowned, m.Held((("held", 3, 5, "str"),))]
    assert worker.next_task(5.0) is None and not worker.inputs.table and not worker.fetcher.wants("dep")
    worker.finished(succeeds, 1, "late", "str", LIVE, 5.0)
    worker.failed(fails, 1, b"error", "text", 5.0)
    assert said(worker, 5.0) == [busy, free, m.Held((("a", 1, 100, "str"),))]


@pytest.mark.parametrize("attempt", [0, DATA + 1, 7])
def test_a_worker_that_was_given_up_lets_go_of_data_and_keeps_results(attempt: int) -> None:
    """The name of data may have been used again."""
    worker = machine()
    worker.store.put_blob("x", attempt, Pieces([b"old"]), "bytes")
    worker.given_up = True
    worker.welcomed(m.Welcome(1, 0, True, {"lease": 10.0}), 20.0)
    assert holds(worker, "x") == (attempt == 7)


def test_a_result_for_a_former_broker_never_replaces_one_for_the_new() -> None:
    worker = machine()
    define(worker)
    run(worker, "a", attempt=9)
    orphan = start(worker)
    worker.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    assert said(worker)[1:] == [m.Unowned((("a", 9),))]
    run(worker, "a", attempt=1)
    worker.finished(start(worker), 1, "new", "str", SMALL, 0.0)
    said(worker)
    worker.finished(orphan, 1, "old", "str", SMALL, 0.0)
    entry = worker.store.get("a")
    assert entry is not None and entry.value == "new"
    assert said(worker) == [m.Subscribe(1, (), {}, False)]  # and no word of the old one


def test_threads_that_run_on_for_a_former_broker_are_not_offered_to_the_next() -> None:
    worker = machine(threads=3)
    define(worker)
    for key in "abc":
        run(worker, key)
    a, b, c = start(worker), start(worker), start(worker)
    assert worker.seceded(a, back=False)
    worker.take()
    for epoch in (2, 3):
        worker.welcomed(m.Welcome(epoch, 0, True, {}), 0.0)
        everything = m.Unowned((("a", 1), ("b", 1), ("c", 1)))
        assert said(worker) == [m.Subscribe(1, (), {}, False), everything]  # a has left its thread
    assert worker.seceded(b, back=False)
    worker.failed(c, 1, b"error", "text", 0.0)
    assert said(worker) == [m.Subscribe(2, (), {}, False), m.Subscribe(3, (), {}, False)]
    assert worker.seceded(a, back=True)
    assert said(worker) == [m.Subscribe(2, (), {}, False)]
    worker.finished(b, 1, "late", "str", LIVE, 0.0)
    assert said(worker) == [m.Held((("b", 1, 100, "str"),))]  # it had no thread to give back


def test_what_the_next_broker_adopts_is_reported_to_it() -> None:
    worker = machine(threads=4)
    define(worker)
    for key in "abcd":
        run(worker, key, deps=[("dep", 6, (OTHER,), b"value")])
    a, b, c, d = start(worker), start(worker), start(worker), start(worker)
    assert worker.seceded(b, back=False)
    worker.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    worker.finished(c, 1, "value", "str", SMALL, 0.0)
    worker.failed(d, 1, b"error", "text", 0.0)
    assert m.Held((("c", 1, 5, "str"),)) in said(worker)
    control(worker, m.Adopt((("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1), ("a", 2))))
    assert said(worker) == [
        m.Seceded("b", 1, False),
        m.Returned((("d", 1), ("e", 1), ("a", 2))),  # c was announced as held
        m.Subscribe(4, (), {}, False),
    ]
    worker.finished(a, 1, "value", "str", SMALL, 0.0)
    worker.failed(b, 1, b"error", "text", 0.0)
    told = said(worker)
    assert [row[:2] for message in told if isinstance(message, m.Done) for row in message.rows] == [("a", 1)]
    assert [row[:2] for message in told if isinstance(message, m.Erred) for row in message.rows] == [("b", 1)]
    assert not worker.tasks


def test_what_was_adopted_may_lose_its_broker_again_and_may_be_aborted() -> None:
    worker = machine(threads=2)
    define(worker)
    for key in "ab":
        run(worker, key)
    a, b = start(worker), start(worker)
    for epoch in (2, 3):
        worker.welcomed(m.Welcome(epoch, 0, True, {}), 0.0)
        assert said(worker)[1:] == [m.Unowned((("a", 1), ("b", 1)))]
        control(worker, m.Adopt((("a", 1), ("b", 1))))
        worker.take()
    control(worker, m.Abort((("a", 1),)))
    for task in (a, b):
        worker.finished(task, 1, "value", "str", SMALL, 0.0)
    told = said(worker)
    assert [row[0] for message in told if isinstance(message, m.Done) for row in message.rows] == ["b"]
    assert worker.store.get("a") is None


def test_a_welcome_back_changes_nothing() -> None:
    worker = machine()
    define(worker)
    run(worker, "a")
    worker.welcomed(m.Welcome(1, 0, False, {}), 5.0)
    assert said(worker, 5.0) == [] and start(worker).key == "a"


def test_seceding_is_told_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECEDED_PER_WORKER", 1)
    worker = machine()
    define(worker)
    run(worker, "a")
    run(worker, "b")
    first, second = start(worker), start(worker)
    assert worker.seceded(first, back=False) and not worker.seceded(second, back=False)
    assert worker.seceded(first, back=True) and worker.seceded(second, back=False)
    assert said(worker) == [m.Seceded("a", 1, False), m.Seceded("a", 1, True), m.Seceded("b", 1, False)]
    worker.finished(second, 1, 1, "int", SMALL, 0.0)
    assert worker.memory.away == 0 and worker.seceded(first, back=False)


def test_a_value_asked_for_by_a_peer_is_frozen_then_served() -> None:
    worker = machine()
    define(worker)
    run(worker, "a")
    worker.finished(start(worker), 1, "value", "str", LIVE, 0.0)
    hop = Route("data", b"hop")
    worker.handle(hop, m.Get(5, "secret", worker.session, "c-1", (("a", 0, 0),)), 0.0)
    assert worker.commands == [Freeze("a", 1)] and hop not in worker.out
    worker.frozen("a", 1, Pieces([b"stream"]), 0.0)
    assert worker.take()[hop] == [m.Data(5, "c-1", (("a", 1, 6, 0, (b"stream",)),), ())]


def test_a_result_that_cannot_be_pickled_is_done_and_says_why_when_asked_for() -> None:
    worker = machine()
    define(worker)
    run(worker, "a")
    worker.finished(start(worker), 1, object(), "Lock", (None, None, "task a: no bytes", 56, True), 0.0)
    assert said(worker) == [m.Done((("a", 1, 1, 56, None, "Lock"),))]
    worker.handle(BULK, m.Get(5, "", worker.session, "c-1", (("a", 0, 0),)), 0.0)
    assert worker.take()[BULK] == [m.Data(5, "c-1", (), (("a", "unpicklable", "task a: no bytes"),))]


def test_a_frozen_result_is_kept_as_bytes_alone() -> None:
    worker = machine()
    define(worker)
    run(worker, "a")
    worker.finished(start(worker), 1, "value", "str", (None, Pieces([b"stream"]), "", 6, False), 0.0)
    entry = worker.store.get("a")
    assert entry is not None and not entry.has_value and entry.blob.pieces == [b"stream"]


def test_probes_need_the_token() -> None:
    worker = machine()
    hop = Route("data", b"hop")
    worker.handle(hop, m.Probe(1, "wrong"), 0.0)
    assert worker.take()[hop] == [m.ProbeReply(1, "")] and worker.commands[0].event == "data.refused"
    worker.handle(hop, m.Probe(2, "secret"), 0.0)
    assert worker.take()[hop] == [m.ProbeReply(2, worker.session)]


@pytest.mark.parametrize(
    ("route", "message"),
    [(Route("data", b"hop"), m.Drop(("a",))), (BULK, m.Stop("now")), (CONTROL, m.Get(1, "", "", "", ()))],
)
def test_messages_on_the_wrong_channel_are_a_breach_of_the_protocol(route: Route, message: m.Message) -> None:
    worker = machine()
    with pytest.raises(ProtocolError, match=type(message).__name__):
        worker.handle(route, message, 0.0)


def test_orders_to_the_process_become_commands() -> None:
    worker = machine()
    control(worker, m.Call(4, None, b"payload"))
    control(worker, m.Stop("cluster shuts down"))
    worker.refused("token", "wrong token", 0.0)
    kinds = [command for command in worker.commands if type(command) in (RunCall, Exit)]
    assert kinds == [
        RunCall(4, b"payload"), Exit("cluster shuts down", 0), Exit("refused by the broker: wrong token", 1)
    ]  # fmt: skip
    worker.called(4, True, b"answer")
    worker.output("out", "x" * (limits.MAX_TEXT + 5), "key")
    called, output = said(worker)
    assert called == m.Called(4, True, b"answer")
    assert isinstance(output, m.Output) and len(output.text) == limits.MAX_TEXT and output.worker == "one"


KEYS = [f"k{n}" for n in range(6)]
FUNCTIONS = [bytes([n]) * 32 for n in range(2)]


class Life(RuleBasedStateMachine):
    """Any order of orders, reports, arrivals and welcomes; the tables agree after each, and nothing starts twice."""

    @initialize()
    def begin(self) -> None:
        self.worker = machine(threads=2)
        self.attempts = dict.fromkeys(KEYS, 0)
        self.running: list[Task] = []
        self.started: set[tuple[int, str, int]] = set()
        self.epoch = 1
        self.returned: set[tuple[int, str, int]] = set()

    @rule(fn=st.sampled_from(FUNCTIONS))
    def define(self, fn: bytes) -> None:
        self.worker.handle(CONTROL, m.Define(fn, "f", b"code"), 0.0)

    @rule(
        key=st.sampled_from(KEYS),
        fn=st.sampled_from(FUNCTIONS),
        priority=st.integers(0, 2),
        deps=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([(), (OTHER,)]), st.sampled_from([None, b"p"]))),
    )
    def run(self, key: str, fn: bytes, priority: int, deps: list[tuple[str, Any, Any]]) -> None:
        self.attempts[key] += 1
        rows = tuple((dep, 5, holders, payload) for dep, holders, payload in deps if dep != key)
        row = (key, self.attempts[key], priority, True, b"args", rows)
        self.worker.handle(CONTROL, m.Run(fn, (row,)), 0.0)

    @rule()
    def start(self) -> None:
        task = self.worker.next_task(0.0)
        if task is not None:
            mark = (self.epoch, task.key, task.attempt)
            assert mark not in self.started and mark not in self.returned
            assert all(
                getattr(source, "payload", None) or getattr(source, "error", None) or hasattr(source, "blob")
                for source in task.inputs.values()
            )
            self.started.add(mark)
            self.running.append(task)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["small", "live", "blob", "error"]))
    def end(self, data: st.DataObject, how: str) -> None:
        task = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if how == "error":
            self.worker.failed(task, 5, b"e", "t", 0.0)
        else:
            frozen = {"small": SMALL, "live": LIVE, "blob": (None, Pieces([b"abc"]), "", 3, False)}[how]
            self.worker.finished(task, 5, "v", "str", frozen, 0.0)
        assert task.state == GONE

    @precondition(lambda self: self.running)
    @rule(data=st.data(), back=st.booleans())
    def secede(self, data: st.DataObject, back: bool) -> None:
        task = data.draw(st.sampled_from(self.running))
        if task.seceded == back:
            assert self.worker.seceded(task, back)

    @rule(key=st.sampled_from(KEYS), older=st.integers(0, 1), abort=st.booleans())
    def withdraw(self, key: str, older: int, abort: bool) -> None:
        rows = ((key, self.attempts[key] - older),)
        self.worker.handle(CONTROL, m.Abort(rows) if abort else m.TakeBack(rows), 0.0)
        for message in self.worker.take().get(CONTROL, []):
            if isinstance(message, m.Returned):
                for row in message.rows:
                    assert (self.epoch, *row) not in self.started
                    self.returned.add((self.epoch, *row))

    @rule(key=st.sampled_from(KEYS))
    def drop(self, key: str) -> None:
        self.worker.handle(CONTROL, m.Drop((key,)), 0.0)

    @rule(key=st.sampled_from(KEYS), holders=st.sampled_from([(), (OTHER,)]), payload=st.sampled_from([None, b"p"]))
    def locate(self, key: str, holders: Any, payload: Any) -> None:
        self.worker.handle(CONTROL, m.Locate(((key, 5, holders, payload),)), 0.0)

    @rule(key=st.sampled_from(KEYS))
    def replicate(self, key: str) -> None:
        self.worker.handle(CONTROL, m.Replicate(((key, 1, 5, (OTHER,)),)), 0.0)

    @rule(key=st.sampled_from(KEYS), outcome=st.sampled_from(["arrived", "missing", "unpicklable"]))
    def transfer(self, key: str, outcome: str) -> None:
        if self.worker.fetcher.wants(key):
            if outcome == "arrived":
                arrive(self.worker, key)
            else:
                fail(self.worker, key, outcome, "text")
                assert key not in self.worker.inputs.table or not self.worker.inputs.table[key].replica

    @rule()
    def new_broker(self) -> None:
        self.epoch += 1
        self.worker.welcomed(m.Welcome(self.epoch, 0, True, {}), 0.0)
        assert not self.worker.tasks

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "worker"):
            self.worker.turn(0.0)
            self.worker.check()
            assert self.worker.memory.away == sum(task.seceded for task in self.running)

    def teardown(self) -> None:
        """When all is over and dropped, nothing is left."""
        if not hasattr(self, "worker"):
            return
        worker = self.worker
        for task in self.running:
            worker.finished(task, 5, "v", "str", SMALL, 0.0)
        worker.handle(CONTROL, m.Abort(tuple(self.attempts.items())), 0.0)
        worker.handle(CONTROL, m.Drop(tuple(KEYS)), 0.0)
        worker.turn(0.0)
        worker.check()
        assert not worker.tasks and not worker.store.entries and not worker.inputs.table and not worker.memory.away
        assert not any(worker.fetcher.wants(key) for key in KEYS) and worker.next_task(0.0) is None


Life.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
TestLife = Life.TestCase


def test_time_limits_of_several_messages_all_count_and_are_forgotten_with_their_broker() -> None:
    worker = machine()
    define(worker)
    control(worker, m.TimeLimit((("a", 1, 5.0),)))
    control(worker, m.TimeLimit((("b", 2, 6.0),)))
    control(worker, m.Run(FN, tuple((key, n, n, 0, b"", ()) for key, n in (("a", 1), ("b", 2), ("c", 3)))))
    assert [worker.tasks[key].limit for key in "abc"] == [5.0, 6.0, 0.0]
    assert worker.limits == {}
    control(worker, m.TimeLimit((("d", 4, 5.0),)))
    worker.welcomed(m.Welcome(2, 0, True, {}), 1.0)
    assert worker.limits == {}
