"""Both ends of a lane by themselves: what they send early, what they ignore, and when a lane is given up."""

from __future__ import annotations

from typing import Any

import pytest

from zdist import limits
from zdist.core.entry import FINISHED, PENDING, Entry, Work
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL, Log, Route
from zdist.core.worker import WorkerMachine
from zdist.protocol import messages as m

FN = b"f" * 32
OWN = Work(FN, "inc", b"code", (), True)
WORKER = "w-00000000000000aa"
PEER = Route("tcp://one")
HOP = Route("data", b"hop")
FIRST = 5 << limits.LANE_BITS
SMALL = (b"bytes", None, "", 5, True)


# --- the client ------------------------------------------------------------------------------------------


class Client:
    """A ledger with a lane, and what it sends."""

    def __init__(self, *, lane: bool = True, until: int = FIRST + limits.LANE_CREDIT, **options: Any) -> None:
        self.ledger = Ledger("c-1", "token", {"name": "me"}, **options)
        self.count = 0
        self.welcome(1)
        self.control(m.Members(((WORKER, PEER.channel, "one", "host", "n-1"),)))
        if lane:
            self.control(m.Lane(WORKER, FIRST, until))
            self.answer_probe()

    def welcome(self, epoch: int) -> None:
        self.ledger.welcomed(m.Welcome(epoch, 0, True, {}), 0.0)
        self.out()

    def control(self, message: m.Message) -> None:
        self.ledger.handle(CONTROL, message, 0.0)
        self.ledger.check()

    def out(self, now: float = 0.0) -> dict[Route, list[Any]]:
        self.ledger.turn(now)
        self.ledger.check()
        return self.ledger.take()

    def answer_probe(self) -> None:
        (probe,) = self.out()[PEER]
        self.ledger.handle(PEER, m.ProbeReply(probe.req, WORKER), 0.0)

    def submit(self, args: bytes = b"args", work: Work = OWN, own: bool = True) -> Entry:
        self.count += 1
        return self.ledger.submit(work, [(f"k{self.count}", args, ())], own=own)[0]

    def copy(self, entry: Entry, attempt: int, route: Route = PEER, value: bytes = b"v", untold: bool = True) -> None:
        self.ledger.handle(route, m.DoneEarly(entry.key, attempt, 1, value, "int", untold), 0.0)
        self.ledger.check()

    def finish(self, entry: Entry, attempt: int = 1, value: bytes | None = b"v") -> None:
        self.control(m.Finished(((entry.key, attempt, 1, value, () if value else (WORKER,), "int"),)))


def kinds(messages: list[Any]) -> list[type]:
    return [type(message) for message in messages]


def early(out: dict[Route, list[Any]]) -> list[Any]:
    return [message for message in out.get(PEER, []) if isinstance(message, m.RunEarly)]


def test_lone_tasks_in_a_row_make_a_client_ask_for_a_lane_and_then_less_often() -> None:
    client = Client(lane=False)
    asked = []
    for n in range(4 * limits.LANE_AFTER):
        entry = client.submit()
        if m.Lane("", 0, 0) in client.out()[CONTROL]:
            asked.append(n + 1)
        client.finish(entry)
    assert asked == [limits.LANE_AFTER, 3 * limits.LANE_AFTER]


def test_a_client_that_may_not_use_peer_paths_asks_for_none_and_takes_none() -> None:
    client = Client(lane=False, paths=("relay",))
    for _ in range(3 * limits.LANE_AFTER):
        entry = client.submit()
        assert not any(isinstance(message, m.Lane) for message in client.out()[CONTROL])
        client.finish(entry)
    client.control(m.Lane(WORKER, FIRST, FIRST + 10))
    assert client.out() == {CONTROL: [m.Lane("", FIRST, FIRST)]}


def test_a_lone_task_goes_to_the_worker_at_once_and_to_the_broker_soon() -> None:
    client = Client()
    entry = client.submit()
    out = client.out()
    assert out[PEER] == [m.RunEarly("token", FN, FIRST, entry.key, b"args", ())]
    assert out[CONTROL] == [m.Define(FN, "inc", b"code")]
    assert client.ledger.deadline() == limits.LANE_NOTES
    out = client.out(limits.LANE_NOTES)
    assert out == {CONTROL: [m.SubmitEarly(FN, ((entry.gen, FIRST, entry.key, b"args"),))]}
    client.copy(entry, FIRST)
    assert entry.status == FINISHED and entry.outcome[3] == b"v" and not client.ledger.flying
    client.finish(entry, FIRST, b"another")
    assert entry.outcome[3] == b"v"
    second = client.submit()
    assert early(client.out())[0].attempt == FIRST + 1
    client.finish(second, FIRST + 1)
    client.copy(second, FIRST + 1, value=b"late")
    assert second.outcome[3] == b"v"


@pytest.mark.parametrize("why", ["two", "busy", "options", "large", "not own", "parents"])
def test_only_lone_tasks_go_by_a_lane(why: str) -> None:
    client = Client()
    if why in ("busy", "parents"):
        first = client.submit(own=False)
        client.out()
        if why == "parents":
            client.finish(first)
    if why == "two":
        client.submit()
    if why == "parents":
        client.ledger.submit(OWN, [("child", b"args", (first.key,))], own=True)
    else:
        work = Work(FN, "inc", b"code", tuple(m.Options(retries=1)), True) if why == "options" else OWN
        client.submit(b"x" * (limits.LANE_ARGS + 1) if why == "large" else b"args", work, own=why != "not own")
    out = client.out()
    assert not early(out) and any(isinstance(message, m.Submit) for message in out[CONTROL])


def test_a_lane_whose_peer_path_is_not_open_is_not_used_and_a_closed_one_is_given_up() -> None:
    client = Client(lane=False)
    client.control(m.Lane(WORKER, FIRST, FIRST + 10))
    first = client.submit()
    assert not early(client.out())
    client.finish(first)
    client.ledger.fetcher.links.peers[WORKER].closed("no way", 0.0)
    client.submit()
    assert m.Lane("", FIRST, FIRST) in client.out()[CONTROL] and client.ledger.lane is None


def test_copies_of_other_attempts_from_elsewhere_or_unasked_change_nothing() -> None:
    client = Client()
    entry = client.submit()
    client.out()
    client.copy(entry, FIRST + 1)
    client.copy(entry, FIRST, Route("tcp://two"))
    client.ledger.handle(PEER, m.DoneEarly("other", FIRST, 1, b"v", "int", True), 0.0)
    assert entry.status == PENDING
    client.copy(entry, FIRST)
    assert entry.status == FINISHED


def test_a_copy_for_a_future_that_was_let_go_of_changes_nothing_and_the_lane_is_given_up() -> None:
    client = Client()
    entry = client.submit()
    client.out()
    client.ledger.dropped.append(entry)
    client.out()
    client.submit()
    out = client.out()
    assert m.Lane("", FIRST, FIRST + 1) in out[CONTROL] and not early(out)
    client.copy(entry, FIRST)
    assert entry.key not in client.ledger.entries


def test_a_lane_whose_copies_do_not_come_is_given_up() -> None:
    client = Client()
    for n in range(limits.LANE_MISSES):
        entry = client.submit()
        assert early(client.out())
        client.finish(entry, FIRST + n)
    client.submit()
    out = client.out()
    assert m.Lane("", FIRST, FIRST + limits.LANE_MISSES) in out[CONTROL] and not early(out)


def test_failures_are_told_by_the_broker_and_say_nothing_against_the_lane() -> None:
    client = Client()
    for n in range(limits.LANE_MISSES + 1):
        entry = client.submit()
        assert early(client.out())[0].attempt == FIRST + n
        client.control(m.Failed(((entry.key, b"pickle", entry.key, "text"),)))


def test_no_more_than_the_credit_goes_by_a_lane_and_an_empty_block_is_given_back() -> None:
    client = Client(until=FIRST + 1)
    entry = client.submit()
    assert early(client.out())
    client.copy(entry, FIRST)
    second = client.submit()
    assert not early(client.out())
    client.finish(second)
    client.control(m.Lane(WORKER, FIRST, FIRST + 2))
    entry = client.submit()
    assert early(client.out())[0].attempt == FIRST + 1
    client.copy(entry, FIRST + 1)
    assert client.ledger.lane is not None
    client.ledger.lane.next = client.ledger.lane.until = client.ledger.lane.end
    client.submit()
    assert m.Lane("", FIRST, FIRST + (1 << limits.LANE_BITS)) in client.out()[CONTROL]
    assert client.ledger.ask_after == limits.LANE_AFTER


def test_an_extension_that_comes_when_the_lane_is_given_back_is_no_new_lane() -> None:
    """Else its attempts would be used again."""
    client = Client(until=FIRST + 1)
    lane = client.ledger.lane
    assert lane is not None
    lane.misses = limits.LANE_MISSES
    client.submit()
    assert early(client.out()) == [] and client.ledger.lane is None
    client.control(m.Lane(WORKER, FIRST, FIRST + 2))
    assert client.ledger.lane is None and CONTROL not in client.out()
    client.control(m.Lane(WORKER, FIRST + (1 << limits.LANE_BITS), FIRST + (1 << limits.LANE_BITS) + 1))
    assert client.ledger.lane is not None


def test_the_end_of_a_lane_is_acknowledged_behind_what_was_submitted_and_the_copy_under_way_still_counts() -> None:
    client = Client()
    entry = client.submit()
    client.out()
    client.control(m.Lane("", FIRST, 0))
    submitted, acknowledged = client.out()[CONTROL]
    assert isinstance(submitted, m.SubmitEarly) and acknowledged == m.Lane("", FIRST, FIRST + 1)
    client.control(m.Lane("", FIRST, 0))
    assert not client.out()
    client.copy(entry, FIRST)
    assert entry.status == FINISHED


def test_a_new_broker_ends_the_lane_and_is_told_of_what_is_pending_as_usual() -> None:
    client = Client()
    entry = client.submit()
    client.out()
    client.ledger.welcomed(m.Welcome(2, 0, True, {}), 0.0)
    out = client.out()
    assert [type(message) for message in out[CONTROL]] == [m.Define, m.Claim, m.Submit] and not early(out)
    client.copy(entry, FIRST)
    assert entry.status == PENDING and client.ledger.lane is None
    client.finish(entry)
    assert entry.status == FINISHED


def test_the_broker_hears_of_many_tasks_and_their_releases_at_once_and_before_anything_else() -> None:
    client = Client()
    other = Work(b"g" * 32, "dec", b"code", (), True)
    client.ledger.defined |= {FN, other.fn}
    rows = []
    for n, work in enumerate((OWN, OWN, other)):
        entry = client.submit(work=work)
        client.out()
        client.copy(entry, FIRST + n, untold=False)
        rows.append((entry.gen, FIRST + n, entry.key, b"args"))
        client.ledger.dropped.append(entry)
    client.out()
    client.ledger.ask("who", None)
    out = client.out()[CONTROL]
    assert out[:2] == [m.SubmitEarly(FN, tuple(rows[:2])), m.SubmitEarly(other.fn, (rows[2],))]
    assert out[2] == m.Release(tuple((key, gen) for gen, _, key, _ in rows))
    assert isinstance(out[3], m.Ask) and client.ledger.deadline() is None and not client.ledger.entries


def loop(client: Client, n: int, *, untold: bool = True, drop: bool = True) -> Entry:
    """A lone task, from its order to the drop of its future; `early` says what the next order tells the worker."""
    entry = client.submit()
    client.out()
    client.copy(entry, FIRST + n, untold=untold)
    if drop:
        client.ledger.dropped.append(entry)
    return entry


def test_the_broker_is_spared_what_client_and_worker_are_through_with() -> None:
    client = Client()
    client.ledger.defined.add(FN)
    for n in range(5):
        entry = client.submit()
        out = client.out(n * limits.LANE_NOTES)
        (order,) = early(out)
        assert order.over == ((f"k{n}",) if n else ()) and CONTROL not in out
        client.copy(entry, FIRST + n)
        client.ledger.dropped.append(entry)
    assert kinds(client.out(1.0)[CONTROL]) == [m.SubmitEarly, m.Release]  # nothing has come after the last


def test_a_broker_that_has_not_heard_of_a_lane_for_long_is_told_of_its_use() -> None:
    client = Client()
    client.ledger.defined.add(FN)
    loop(client, 0)
    client.submit()
    assert early(client.out(limits.LANE_QUIET))[0].over == ()


@pytest.mark.parametrize("why", ["kept", "told", "extend"])
def test_the_broker_is_not_spared_what_concerns_it(why: str) -> None:
    client = Client(until=FIRST + limits.LANE_CREDIT // 2 if why == "extend" else FIRST + limits.LANE_CREDIT)
    client.ledger.defined.add(FN)
    entry = loop(client, 0, untold=why != "told", drop=why != "kept")
    client.submit()
    assert early(client.out())[0].over == ()
    (submitted, *_) = client.out(limits.LANE_NOTES)[CONTROL]
    assert [row[2] for row in submitted.rows] == [entry.key, "k2"]


def test_other_futures_that_went_at_the_same_time_are_released() -> None:
    client = Client()
    client.ledger.defined.add(FN)
    other = client.submit(own=False)
    client.out()
    client.finish(other)
    entry = loop(client, 0)
    client.ledger.dropped.append(other)
    client.submit()
    out = client.out()
    assert early(out)[0].over == (entry.key,)
    assert out[CONTROL] == [m.Release(((other.key, 1),))]


def test_what_the_broker_has_not_heard_is_forgotten_with_it() -> None:
    client = Client()
    entry = client.submit()
    client.out()
    client.copy(entry, FIRST)
    client.ledger.dropped.append(entry)
    client.out()
    client.welcome(2)
    assert client.out(1.0) == {}


# --- the worker -----------------------------------------------------------------------------------------


def worker(*, lane: bool = True, define: bool = True) -> WorkerMachine:
    machine = WorkerMachine(WORKER, "token", name="one")
    machine.welcomed(m.Welcome(1, 0, True, {"lease": 10.0}), 0.0)
    if define:
        control(machine, m.Define(FN, "inc", b"code"))
    if lane:
        control(machine, m.Lane("c-1", FIRST, FIRST + 128))
    said(machine)
    return machine


def control(machine: WorkerMachine, message: m.Message) -> None:
    machine.handle(CONTROL, message, 0.0)
    machine.check()


def run_early(
    machine: WorkerMachine,
    key: str = "k",
    attempt: int = FIRST,
    token: str = "token",
    hop: Route = HOP,
    over: tuple[str, ...] = (),
) -> None:
    machine.handle(hop, m.RunEarly(token, FN, attempt, key, b"args", over), 0.0)
    machine.check()


def order(machine: WorkerMachine, key: str = "k", attempt: int = FIRST) -> None:
    control(machine, m.Run(FN, ((key, attempt, 0, 2, b"args", ()),)))


def said(machine: WorkerMachine) -> dict[Route, list[Any]]:
    machine.turn(0.0)
    machine.check()
    return machine.take()


def run_one(machine: WorkerMachine, frozen: Any = SMALL) -> dict[Route, list[Any]]:
    task = machine.next_task(0.0)
    assert task is not None
    machine.finished(task, 10, "value", "str", frozen, 0.0)
    return said(machine)


def test_an_early_order_is_run_and_reported_to_the_client_at_once_and_to_the_broker_soon() -> None:
    machine = worker()
    run_early(machine)
    assert run_one(machine) == {HOP: [m.DoneEarly("k", FIRST, 5, b"bytes", "str", True)]}
    run_early(machine, "k2", FIRST + 1)
    assert list(run_one(machine)) == [HOP] and machine.deadline() == limits.LANE_NOTES
    machine.turn(limits.LANE_NOTES)
    rows = tuple((key, FIRST + n, 10, 5, b"bytes", "str") for n, key in enumerate(("k", "k2")))
    assert machine.take() == {CONTROL: [m.Done(rows)]} and machine.deadline() is None


def test_what_the_client_is_through_with_leaves_nothing_and_is_not_reported() -> None:
    machine = worker()
    for n in range(4):
        run_early(machine, f"k{n}", FIRST + n, over=(f"k{n - 1}",) if n else ())
        assert list(run_one(machine)) == [HOP]
    assert list(machine.store.entries) == ["k3"]
    machine.turn(limits.LANE_NOTES)
    assert [row[0] for row in machine.take()[CONTROL][0].rows] == ["k3"]
    assert machine.deadline() is None


def test_an_order_lets_go_of_nothing_but_what_went_by_its_lane() -> None:
    machine = worker()
    order(machine, "other", 7)
    run_one(machine)
    run_early(machine, over=("other", "unknown"), token="wrong")
    run_early(machine, over=("other", "unknown"))
    assert "other" in machine.store.entries


@pytest.mark.parametrize("what", ["output", "secede"])
def test_a_client_is_told_of_what_the_broker_knows_about(what: str) -> None:
    machine = worker()
    run_early(machine)
    task = machine.next_task(0.0)
    assert task is not None
    if what == "output":
        machine.output("out", "text", "k")
    else:
        machine.seceded(task, False)
    machine.finished(task, 10, "value", "str", SMALL, 0.0)
    assert not said(machine)[HOP][0].untold


def test_what_the_broker_is_to_hear_soon_goes_with_what_it_hears_now() -> None:
    machine = worker()
    run_early(machine)
    run_one(machine)
    order(machine, "other", 7)
    assert [row[0] for row in run_one(machine)[CONTROL][0].rows] == ["k", "other"]


def test_a_large_result_and_a_failure_have_no_early_copy() -> None:
    machine = worker()
    run_early(machine)
    assert list(run_one(machine, (None, None, "", 100000, True))) == [CONTROL]
    run_early(machine, "f", FIRST + 1)
    task = machine.next_task(0.0)
    assert task is not None
    machine.failed(task, 10, b"error", "text", 0.0)
    assert said(machine) == {CONTROL: [m.Erred((("f", FIRST + 1, 10, b"error", "text"),))]}


@pytest.mark.parametrize("early_first", [True, False])
@pytest.mark.parametrize("when", ["queued", "running", "finished", "dropped"])
def test_the_two_copies_of_an_order_start_one_task(early_first: bool, when: str) -> None:
    machine = worker()
    copies = [run_early, order] if early_first else [order, run_early]
    copies[0](machine)
    task = machine.next_task(0.0) if when != "queued" else None
    if when in ("finished", "dropped"):
        assert task is not None
        machine.finished(task, 10, "value", "str", SMALL, 0.0)
    if when == "dropped":
        control(machine, m.Drop(("k",)))
    copies[1](machine)
    assert (machine.next_task(0.0) is not None) == (when == "queued")
    assert machine.next_task(0.0) is None


def test_an_order_that_follows_later_ones_is_carried_out_as_well() -> None:
    machine = worker()
    run_early(machine, "k1", FIRST + 1)
    order(machine, "k0", FIRST)
    assert list(machine.tasks) == ["k1", "k0"]


def test_what_was_taken_back_is_not_started_by_an_early_copy_that_comes_late() -> None:
    machine = worker()
    order(machine)
    control(machine, m.TakeBack((("k", FIRST),)))
    assert said(machine)[CONTROL] == [m.Returned((("k", FIRST),))]
    run_early(machine)
    assert machine.next_task(0.0) is None


def test_an_early_order_without_a_lane_or_function_or_of_a_held_key_is_ignored_and_the_order_is_not() -> None:
    for machine in (worker(lane=False), worker(define=False)):
        run_early(machine)
        assert not machine.tasks and not said(machine)
        order(machine)
        assert "k" in machine.tasks
    machine = worker()
    machine.store.put_value("k", 7, "value", 5, "str")
    run_early(machine)
    assert not machine.tasks


def test_a_wrong_token_is_refused_and_told_once_a_connection() -> None:
    machine = worker()
    for _ in range(3):
        run_early(machine, token="wrong")
    logs = [command for command in machine.commands if isinstance(command, Log)]
    assert not machine.tasks and [log.event for log in logs] == ["data.refused"]


def test_the_end_of_a_lane_takes_what_is_nobodys_and_leaves_the_rest() -> None:
    machine = worker()
    for n in range(3):
        run_early(machine, f"k{n}", FIRST + n)
    running = machine.next_task(0.0)
    assert running is not None and running.key == "k0"
    control(machine, m.Lane("", FIRST, FIRST + 2))
    assert list(machine.tasks) == ["k0", "k1"]
    run_early(machine, "k5", FIRST + 5)
    assert list(machine.tasks) == ["k0", "k1"]


def test_a_running_task_that_is_nobodys_leaves_nothing() -> None:
    machine = worker()
    run_early(machine)
    task = machine.next_task(0.0)
    assert task is not None
    control(machine, m.Lane("", FIRST, FIRST))
    machine.finished(task, 10, "value", "str", SMALL, 0.0)
    assert said(machine) == {CONTROL: [m.Subscribe(0, (), {}, False), m.Subscribe(1, (), {}, False)]}
    assert not machine.store.entries and not machine.tasks


def test_a_new_broker_ends_all_lanes() -> None:
    machine = worker()
    run_early(machine)
    machine.welcomed(m.Welcome(2, 0, True, {"lease": 10.0}), 0.0)
    run_early(machine, "later", FIRST + 1)
    assert not machine.tasks
