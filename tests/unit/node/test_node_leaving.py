"""A node ends workers in good order, and replaces those whose task has run for too long."""

from __future__ import annotations

import pytest
from test_node_machine import SIGKILL, SIGTERM, Bench

from zdist import limits
from zdist.core.node import EndWorker, Look
from zdist.core.slot import Running
from zdist.protocol.messages import Adjust, Adjusted, Alive, Dismiss, Interrupt, Leaving, Overdue, Welcome, WorkerDied


def bench_with_broker(workers: int = 2) -> Bench:
    bench = Bench(workers)
    bench.machine.welcomed(Welcome(2, 0, True, {}), bench.now)
    assert bench.sent() == [Alive(tuple(bench.running))]
    return bench


def seen(bench: Bench, session: str, *running: Running) -> bool:
    late = bench.machine.seen({session: list(running)}, {}, bench.now)
    bench.settle()
    return late


def test_it_looks_at_what_runs_twice_a_second() -> None:
    bench = Bench(1)
    bench.machine.tick(bench.now)
    assert [type(command) for command in bench.machine.commands] == [Look]
    bench.machine.commands.clear()
    assert bench.machine.deadline() == bench.now + limits.LOOK
    bench.machine.tick(bench.now + limits.LOOK / 2)
    assert bench.machine.commands == []


def test_a_worker_whose_task_is_overdue_is_replaced_at_once_and_ended_after_a_while() -> None:
    bench = bench_with_broker()
    old = bench.session(0)
    task = Running("a", 7, bench.now + 1)
    assert not seen(bench, old, task, Running("b", 8, 0.0))
    bench.now += 1
    assert seen(bench, old, task, Running("b", 8, 0.0))
    overdue, leaving = bench.sent()
    assert overdue == Overdue(old, (("a", 7),))
    assert leaving.workers == (old,) and not leaving.stay
    assert len(bench.running) == 3 and bench.signals == []
    assert not seen(bench, old, task)  # once is enough
    bench.later(limits.REPLACE_GRACE)
    assert bench.signals == [EndWorker(old, SIGTERM)]
    bench.later(limits.END_GRACE)
    assert bench.signals[-1] == EndWorker(old, SIGKILL)
    (report,) = bench.die(old)
    assert report.ordered and len(bench.running) == 2


def test_a_dismissed_worker_ends_before_patience_is_over() -> None:
    bench = bench_with_broker()
    old = bench.session(1)
    seen(bench, old, Running("a", 7, bench.now))
    bench.handle(Dismiss((old,), False))
    assert bench.signals == [EndWorker(old, SIGTERM)]
    bench.die(old)
    assert len(bench.running) == 2


def test_a_leaving_worker_that_crashes_counts_and_is_not_replaced_twice() -> None:
    bench = bench_with_broker(1)
    old = bench.session(0)
    seen(bench, old, Running("a", 7, bench.now))
    bench.sent()
    (report,) = bench.die(old, -11, running=(("b", 8),))
    assert isinstance(report, WorkerDied) and not report.ordered
    assert len(bench.running) == 1


def test_what_was_interrupted_may_end_by_itself_and_is_ended_else() -> None:
    bench = bench_with_broker(1)
    old = bench.session(0)
    bench.handle(Interrupt(old, (("a", 7),)))
    bench.handle(Interrupt("w-unknown", (("a", 7),)))
    assert not seen(bench, old, Running("a", 7, 0.0))
    bench.now += limits.INTERRUPT_GRACE
    assert not seen(bench, old, Running("a", 8, 0.0))  # another attempt
    assert seen(bench, old, Running("a", 7, 0.0))
    assert [type(m) for m in bench.sent()] == [Overdue, Leaving]


def test_fewer_workers_leave_in_good_order() -> None:
    bench = bench_with_broker(3)
    last = bench.session(2)
    bench.handle(Adjust(7, 2, False))
    (leaving,) = bench.sent()
    assert leaving.workers == (last,) and leaving.stay
    assert bench.signals == []
    bench.handle(Dismiss((last,), False))
    report, answer = bench.die(last, -15)
    assert report.ordered and answer == Adjusted(7, 2)


def test_a_worker_that_leaves_is_replaced_when_more_are_wanted_again() -> None:
    bench = bench_with_broker(2)
    old = bench.session(1)
    bench.handle(Adjust(1, 1, False))
    bench.handle(Adjust(2, 2, False))
    assert len([s for s in bench.running.values() if s.place == 1]) == 2
    bench.handle(Dismiss((old,), False))
    bench.die(old, -15)
    assert len(bench.running) == 2


def test_a_retired_worker_is_not_replaced_until_the_number_is_told_anew() -> None:
    bench = bench_with_broker(2)
    old = bench.session(0)
    bench.handle(Dismiss((old,), True))
    bench.die(old, -15)
    bench.later(60)
    assert len(bench.running) == 1
    bench.machine.scale(2, bench.now)
    bench.settle()
    assert len(bench.running) == 2


def test_a_drained_node_ends_with_its_workers_and_at_once_when_told_again() -> None:
    for again in (False, True):
        bench = bench_with_broker(2)
        sessions = tuple(bench.running)
        bench.machine.drain("SIGTERM", 20.0, bench.now)
        bench.settle()
        (leaving,) = bench.sent()
        assert leaving == Leaving(sessions, True, "SIGTERM", 0) and bench.signals == []
        if again:
            bench.machine.drain("SIGTERM", 20.0, bench.now)
            bench.settle()
        else:
            bench.later(20.0)
        assert [end.signal for end in bench.signals] == [SIGTERM, SIGTERM]
        for session in sessions:
            bench.die(session, -15)
        assert bench.ended is not None and bench.ended.code == 0


def test_a_node_without_patience_ends_at_once() -> None:
    bench = Bench(1)
    bench.machine.drain("SIGTERM", 0.0, bench.now)
    bench.settle()
    assert [end.signal for end in bench.signals] == [SIGTERM]


@pytest.mark.parametrize("order", ["drain", "scale"])
def test_workers_that_connected_before_their_node_leave_in_good_order(order: str) -> None:
    bench = Bench(1)
    worker = bench.session(0)
    if order == "drain":
        bench.machine.drain("SIGTERM", 20.0, bench.now)
    else:
        bench.machine.scale(0, bench.now)
    bench.settle()
    bench.sent()  # nobody hears this
    bench.machine.welcomed(Welcome(2, 0, True, {}), bench.now)
    alive, leaving = bench.sent()
    assert alive == Alive((worker,))
    assert leaving.workers == (worker,) and leaving.stay and bench.signals == []
    bench.handle(Dismiss((worker,), False))
    assert bench.signals == [EndWorker(worker, SIGTERM)]


def test_a_fresh_broker_hears_who_is_leaving() -> None:
    bench = bench_with_broker(1)
    old = bench.session(0)
    seen(bench, old, Running("a", 7, bench.now))
    bench.sent()
    bench.machine.welcomed(Welcome(3, 0, True, {}), bench.now)
    alive, leaving = bench.sent()
    assert isinstance(leaving, Leaving) and leaving.workers == (old,)
    assert isinstance(alive, Alive) and alive.workers[0] == old and len(alive.workers) == 2  # it is not gone yet


def test_a_worker_that_runs_nothing_and_whose_memory_does_not_shrink_is_replaced_in_good_order() -> None:
    bench = bench_with_broker(1)
    bench.machine.memory_limit = 100 * limits.MIB
    old = bench.session(0)
    full = {old: 85 * limits.MIB}
    looks = int(limits.FULL_AND_IDLE / limits.LOOK)
    for _ in range(looks - 1):
        assert not bench.machine.seen({old: []}, full, bench.now)
    assert not bench.machine.seen({old: [Running("a", 7, 0.0)]}, full, bench.now)
    for _ in range(looks - 1):
        assert not bench.machine.seen({old: []}, full, bench.now)
    assert bench.machine.seen({old: []}, full, bench.now)
    bench.settle()
    (leaving,) = bench.sent()
    assert leaving.workers == (old,) and not leaving.stay and len(bench.running) == 2  # another is to come


def test_a_worker_that_uses_too_much_memory_is_killed_and_its_report_says_so() -> None:
    bench = Bench(1)
    bench.machine.memory_limit = 100 * limits.MIB
    old = bench.session(0)
    assert not bench.machine.seen({}, {old: 90 * limits.MIB, "w-unknown": 1 << 40}, bench.now)
    assert bench.machine.seen({}, {old: 96 * limits.MIB}, bench.now)
    assert not bench.machine.seen({}, {old: 97 * limits.MIB}, bench.now)
    bench.settle()
    assert bench.signals == [EndWorker(old, SIGKILL)]
    (report,) = bench.die(old, -9, running=(("a", 7),))
    assert not report.ordered
    assert "was killed by its node: it used 96 MiB of memory, and its limit is 100 MiB" in report.text


def test_what_is_said_of_workers_that_are_no_more_or_about_to_end_changes_nothing() -> None:
    bench = Bench(2)
    bench.handle(Interrupt("w-unknown", (("k", 1),)))
    bench.machine.worker_exited("w-unknown", 0, [], (), bench.now)
    ending = bench.session(0)
    bench.handle(Dismiss((ending,), False))
    running = {session: [Running("k", 1, 1.0)] for session in (ending, "w-unknown")}
    bench.sent()
    assert not bench.machine.seen(running, {}, bench.now) and bench.sent() == []


def test_of_what_was_interrupted_only_so_much_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INTERRUPTED", 2)
    bench = Bench(1)
    worker = bench.machine.alive[bench.session(0)]
    sizes = []
    for n in range(5):
        bench.handle(Interrupt(worker.session, ((f"k{n}", 1),)))
        sizes.append(len(worker.interrupted))
    assert sizes == [1, 2, 3, 1, 2]
