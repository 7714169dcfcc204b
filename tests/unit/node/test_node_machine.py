"""The node's machine: which workers run, what is reported, when a replacement starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zdist import limits
from zdist.core.machine import CONTROL, Route
from zdist.core.node import SIGKILL, SIGTERM, Ended, EndWorker, NodeMachine, StartWorker
from zdist.errors import ProtocolError
from zdist.protocol.messages import Adjust, Adjusted, Alive, Dismiss, Leaving, Pong, Stop, Submit, Welcome, WorkerDied


class Bench:
    """A node machine whose commands are carried out at once; time passes only when a test says so."""

    def __init__(self, workers: int = 2) -> None:
        self.now = 100.0
        self.machine = NodeMachine("n-1", "alpha", workers, hostname="h", host="0f", pid=7)
        self.pid = 1000
        self.running: dict[str, StartWorker] = {}
        self.signals: list[EndWorker] = []
        self.ended: Ended | None = None
        self.machine.start(self.now)
        self.settle()

    def settle(self) -> None:
        while self.machine.commands:
            commands, self.machine.commands = self.machine.commands, []
            for command in commands:
                if isinstance(command, StartWorker):
                    self.pid += 1
                    self.running[command.session] = command
                    self.machine.worker_started(command.session, self.pid, self.now)
                elif isinstance(command, EndWorker):
                    self.signals.append(command)
                elif isinstance(command, Ended):
                    assert self.ended is None
                    self.ended = command
        self.machine.check()

    def die(self, session: str, code: int = -9, lines: tuple[str, ...] = (), running: Any = ()) -> list[Any]:
        del self.running[session]
        self.machine.worker_exited(session, code, list(lines), running, self.now)
        self.settle()
        return self.sent()

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.machine.tick(self.now)
        self.settle()

    def sent(self) -> list[Any]:
        return self.machine.take().get(CONTROL, [])

    def handle(self, message: Any) -> None:
        self.machine.handle(CONTROL, message, self.now)
        self.settle()

    def session(self, place: int) -> str:
        (found,) = [start.session for start in self.running.values() if start.place == place]
        return found


def test_starts_workers_without_waiting_for_a_welcome() -> None:
    bench = Bench(3)
    assert [(start.place, start.name) for start in bench.running.values()] == [
        (0, "alpha-0"),
        (1, "alpha-1"),
        (2, "alpha-2"),
    ]
    assert all(session.startswith("w-") and len(session) == 18 for session in bench.running)
    assert len(set(bench.running)) == 3


def test_a_single_worker_bears_the_nodes_name() -> None:
    assert [start.name for start in Bench(1).running.values()] == ["alpha"]


def test_a_death_is_reported_with_how_and_where_and_the_worker_replaced() -> None:
    bench = Bench(2)
    bench.later(60)
    old = bench.session(1)
    (report,) = bench.die(old, -9, ("one", "two"), (("k", 5),))
    assert report == WorkerDied(
        old,
        -9,
        "worker alpha-1 (pid 1002 on host h) was killed by signal 9 (SIGKILL); last lines:\none\ntwo",
        (("k", 5),),
        False,
    )
    assert bench.session(1) != old
    assert bench.running[bench.session(1)].name == "alpha-1"


def test_an_exit_code_is_told_apart_from_a_signal() -> None:
    bench = Bench(1)
    (report,) = bench.die(bench.session(0), 3)
    assert report.code == 3
    assert report.text == "worker alpha (pid 1001 on host h) exited with code 3"


def test_an_unknown_signal_has_no_name() -> None:
    bench = Bench(1)
    (report,) = bench.die(bench.session(0), -99)
    assert "was killed by signal 99" in report.text
    assert "(SIG" not in report.text


def test_workers_that_die_at_once_are_replaced_ever_more_slowly() -> None:
    bench = Bench(1)
    pauses = []
    for _ in range(10):
        bench.die(bench.session(0))
        deadline = None if bench.running else bench.machine.deadline()
        pauses.append(0.0 if deadline is None else deadline - bench.now)
        if deadline is not None:
            bench.later(pauses[-1] * 0.9)
            assert not bench.running
            bench.later(deadline - bench.now)
        assert len(bench.running) == 1
    assert pauses[:4] == pytest.approx([0.0, 0.25, 0.5, 1.0])
    assert pauses[-1] == limits.RESTART_PAUSE_MAX


def test_a_worker_that_lived_resets_the_pause() -> None:
    bench = Bench(1)
    bench.die(bench.session(0))
    bench.later(limits.QUICK_DEATH + 0.1)
    bench.die(bench.session(0))
    bench.die(bench.session(0))
    assert len(bench.running) == 1


def test_a_worker_that_cannot_be_started_is_tried_again_later_and_not_reported() -> None:
    machine = NodeMachine("n-1", "alpha", 1)
    machine.start(0.0)
    for now in (0.0, 0.1):
        (start,) = [command for command in machine.commands if isinstance(command, StartWorker)]
        machine.commands.clear()
        machine.worker_failed(start.session, "OSError: no memory", now)
        machine.check()
    assert machine.take() == {}
    deadline = machine.deadline()
    assert deadline == pytest.approx(0.1 + limits.RESTART_PAUSE)
    machine.commands.clear()
    machine.tick(deadline or 0)
    assert [type(command) for command in machine.commands] == [StartWorker]


def test_adjust_scales_up_and_answers_at_once() -> None:
    bench = Bench(1)
    bench.handle(Adjust(7, 3, False))
    assert sorted(start.place for start in bench.running.values()) == [0, 1, 2]
    assert bench.sent() == [Adjusted(7, 3)]


def test_adjust_scales_down_by_order_and_answers_when_they_are_gone() -> None:
    bench = Bench(3)
    last = bench.session(2)
    bench.handle(Adjust(7, 2, False))
    assert bench.sent() == [Leaving((last,), True, "the node keeps fewer workers", 2)] and bench.signals == []
    bench.handle(Dismiss((last,), False))
    assert bench.signals == [EndWorker(last, SIGTERM)]
    assert bench.sent() == []
    report, answer = bench.die(last, -15)
    assert report.ordered
    assert answer == Adjusted(7, 2)
    assert len(bench.running) == 2


def test_a_worker_that_does_not_end_is_killed() -> None:
    bench = Bench(2)
    last = bench.session(1)
    bench.handle(Dismiss((last,), True))
    bench.later(limits.END_GRACE - 0.01)
    assert bench.signals == [EndWorker(last, SIGTERM)]
    bench.later(0.02)
    assert bench.signals == [EndWorker(last, SIGTERM), EndWorker(last, SIGKILL)]
    bench.later(60)
    assert len(bench.signals) == 2


def test_restart_replaces_all_and_forgets_pauses() -> None:
    bench = Bench(2)
    bench.die(bench.session(1))
    bench.die(bench.session(1))
    assert len(bench.running) == 1
    before = set(bench.running)
    bench.sent()
    bench.handle(Adjust(9, -1, True))
    assert len(bench.running) == 2
    assert bench.sent() == []
    (report, answer) = bench.die(next(iter(before)), -15)
    assert report.ordered
    assert answer == Adjusted(9, 2)
    assert len(bench.running) == 2
    assert not before & set(bench.running)


def test_stop_ends_the_workers_and_then_the_node() -> None:
    bench = Bench(2)
    bench.handle(Stop("cluster closes"))
    assert [end.signal for end in bench.signals] == [SIGTERM, SIGTERM]
    for session in list(bench.running):
        assert bench.ended is None
        bench.die(session, -15)
    assert bench.ended == Ended(0, "cluster closes")
    bench.later(60)
    bench.handle(Adjust(1, 4, False))
    assert bench.running == {}
    assert bench.sent()[-1] == Adjusted(1, 0)


def test_a_refused_node_ends_with_an_error() -> None:
    bench = Bench(1)
    bench.machine.refused("token", "the token is wrong", bench.now)
    bench.settle()
    bench.die(bench.session(0), -15)
    assert bench.ended == Ended(1, "refused by the broker: the token is wrong")


def test_a_node_without_workers_ends_at_once() -> None:
    bench = Bench(0)
    bench.machine.stop("SIGTERM", bench.now)
    bench.settle()
    assert bench.ended == Ended(0, "SIGTERM")


def test_a_fresh_broker_hears_of_earlier_deaths_and_one_that_knows_does_not() -> None:
    bench = Bench(1)
    (report,) = bench.die(bench.session(0), 1)
    bench.machine.welcomed(Welcome(2, 0, False, {}), bench.now)
    assert bench.sent() == []
    bench.machine.welcomed(Welcome(3, 0, True, {}), bench.now)
    assert bench.sent() == [Alive((bench.session(0),)), report]


def test_a_broker_that_takes_anothers_place_hears_who_lives() -> None:
    """Its workers may hold their interpreters for long, and not come back before."""
    bench = Bench(2)
    bench.machine.welcomed(Welcome(2, 0, True, {}), bench.now)
    assert bench.sent() == [Alive(tuple(bench.running))]
    bench.handle(Stop("for the test"))
    bench.die(bench.session(0), -15)
    bench.sent()
    bench.machine.welcomed(Welcome(3, 0, True, {}), bench.now)
    assert [message.workers for message in bench.sent() if isinstance(message, Alive)] == [()]  # the other is ended


def test_messages_that_are_not_for_a_node_break_the_protocol() -> None:
    bench = Bench(0)
    bench.handle(Pong())
    with pytest.raises(ProtocolError, match="no use for Submit"):
        bench.handle(Submit(b"", False, 1, (), ()))
    with pytest.raises(ProtocolError, match="data channel"):
        bench.machine.handle(Route("data", b"x"), Stop("no"), bench.now)


class NodeLife(RuleBasedStateMachine):
    """Orders and deaths in any order: what is wanted runs, nothing else, and the end comes once."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(2)
        self.reqs = 0
        self.answered: list[int] = []
        self.reported: set[str] = set()

    def collect(self) -> None:
        for message in self.bench.sent():
            if isinstance(message, Adjusted):
                self.answered.append(message.req)
            elif isinstance(message, WorkerDied):
                assert message.worker not in self.reported
                self.reported.add(message.worker)
            else:
                assert isinstance(message, Leaving)

    @rule(workers=st.integers(-1, 4), restart=st.booleans())
    def adjust(self, workers: int, restart: bool) -> None:
        self.reqs += 1
        self.bench.handle(Adjust(self.reqs, workers, restart))
        self.collect()

    @precondition(lambda self: self.bench.running)
    @rule(data=st.data(), code=st.sampled_from([0, 1, -9, -15]))
    def die(self, data: st.DataObject, code: int) -> None:
        session = data.draw(st.sampled_from(sorted(self.bench.running)))
        del self.bench.running[session]
        self.bench.machine.worker_exited(session, code, [], (), self.bench.now)
        self.bench.settle()
        self.collect()
        assert session in self.reported

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.bench.later(seconds)
        self.collect()

    @rule()
    def stop(self) -> None:
        self.bench.machine.stop("test", self.bench.now)
        self.bench.settle()
        self.collect()

    @invariant()
    def what_runs_is_what_the_machine_thinks(self) -> None:
        assert set(self.bench.running) == set(self.bench.machine.alive)
        assert (self.bench.ended is not None) == (self.bench.machine.stopping is not None and not self.bench.running)

    def teardown(self) -> None:
        machine = self.bench.machine
        for _ in range(8):  # whatever happened: after patience all that was ordered is done
            for session in [w.session for w in list(machine.alive.values()) if w.ending]:
                del self.bench.running[session]
                machine.worker_exited(session, -9, [], (), self.bench.now)
                self.bench.settle()
            self.bench.later(limits.RESTART_PAUSE_MAX)
        self.collect()
        assert len(machine.alive) == machine.wanted
        assert sorted(self.answered) == list(range(1, self.reqs + 1))


TestNodeLife = NodeLife.TestCase
TestNodeLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
