"""Calls of actors, both ends by hand: what is lost, comes twice, or by another way, is done once and in order."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zdist import limits
from zdist.core.actors import Life, Perform, performed
from zdist.core.entry import FINISHED, PENDING, Work
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL, Route
from zdist.core.worker import WorkerMachine
from zdist.protocol import messages as m
from zdist.protocol.actors import CALL, GONE, POLL, RETURNED, UNSEEN, WORKING, Seed

WORKER = "w-00000000000000aa"
MEMBER = (WORKER, "tcp://one", "one", "host", "n-1")
HOP = Route("data", b"hop")
WORK = Work(b"f" * 32, "Counter", b"code", tuple(m.Options(actor=True)), False)


def seed(attempt: int = 1) -> Seed:
    return Seed("a", attempt, MEMBER, "Counter", ("add",))


class Worker:
    """A worker with one actor, which does what it is told to when the test says so."""

    def __init__(self) -> None:
        self.machine = WorkerMachine(WORKER, "secret", name="one")
        self.machine.welcomed(m.Welcome(1, 0, True, {"lease": 10.0}), 0.0)
        self.machine.take()
        planted = seed()
        planted.life = Life(None)
        self.machine.store.put_value("a", 1, planted, 50, "zdist.Actor")
        self.todo: list[Perform] = []
        self.begun: list[tuple[str, int]] = []

    def take(self, message: m.ActorCall, route: Route = HOP) -> list[m.ActorReply]:
        self.hear(message, route)
        return self.replies(route)

    def hear(self, message: m.ActorCall, route: Route) -> None:
        self.machine.handle(route, message, 0.0)
        commands = [command for command in self.machine.commands if isinstance(command, Perform)]
        self.machine.commands.clear()
        self.todo += commands
        self.begun += [(call.caller, call.number) for call in commands]

    def replies(self, route: Route = HOP) -> list[Any]:
        return self.machine.take().get(route, [])

    def work(self, count: int = 1000) -> None:
        done, self.todo = self.todo[:count], self.todo[count:]
        for call in done:
            performed(self.machine, call, True, b"%d" % call.number, (), None)


def asks(*numbers: Any, caller: str = "c-1", settled: int = 0, token: str = "secret", attempt: int = 1) -> m.ActorCall:
    rows = tuple(
        [(*pair, CALL, "add", b"") if isinstance(pair, tuple) else (pair, 0, POLL, "", b"") for pair in numbers]
    )
    return m.ActorCall(token, WORKER, caller, "a", attempt, settled, rows)


def test_calls_begin_in_the_order_in_which_they_were_made_and_once() -> None:
    worker = Worker()
    worker.take(asks((3, 2), (5, 3)))
    worker.take(asks((2, 1), (3, 2)))
    assert worker.begun == []
    worker.take(asks((1, 0), caller="c-2"))
    worker.take(asks((1, 0), (2, 1)))
    worker.take(asks((5, 3), (1, 0)))
    assert worker.begun == [("c-2", 1), ("c-1", 1), ("c-1", 2), ("c-1", 3), ("c-1", 5)]


def test_replies_are_kept_until_the_caller_has_them_and_go_the_way_it_came_last() -> None:
    worker = Worker()
    assert [reply.code for reply in worker.take(asks((1, 0), 1, 2))] == [WORKING, UNSEEN]
    worker.take(asks((2, 1)))
    worker.take(asks((4, 3)))
    assert [reply.code for reply in worker.take(asks(1, 4, 3), CONTROL)] == [WORKING, WORKING, UNSEEN]
    worker.work()
    assert worker.replies(HOP) == []
    assert worker.take(asks(1, 2), CONTROL) == [m.ActorReply("c-1", n, RETURNED, b"%d" % n) for n in (1, 2)]
    stream = worker.machine.store.entries["a"].value.life.streams["c-1"]
    worker.take(asks(settled=1))
    assert list(stream.replies) == [2]
    worker.take(asks((3, 0), settled=2))
    assert list(stream.replies) == [] and worker.begun[-2:] == [("c-1", 3), ("c-1", 4)]


@pytest.mark.parametrize("message", [asks((1, 0), attempt=2), asks((1, 0))._replace(key="b")])
def test_who_calls_what_is_not_there_is_told(message: m.ActorCall) -> None:
    worker = Worker()
    (reply,) = worker.take(message)
    assert (reply.caller, reply.number, reply.code) == ("c-1", 1, GONE) and not worker.begun
    assert b"does not live on worker one" in reply.value


def test_a_copy_of_the_seed_is_no_actor() -> None:
    worker = Worker()
    worker.machine.store.put_value("a", 1, seed(), 50, "zdist.Actor")
    assert worker.take(asks((1, 0)))[0].code == GONE


def test_a_stranger_on_the_data_socket_calls_nothing() -> None:
    worker = Worker()
    assert worker.take(asks((1, 0), token="guess")) == [] and not worker.begun
    assert worker.take(asks((1, 0), token=""), CONTROL) == [] and worker.begun == [("c-1", 1)]


# --- the client's end ------------------------------------------------------------------------------------


class Caller:
    """A client that has an actor."""

    def __init__(self, **options: Any) -> None:
        self.ledger = Ledger("c-1", "secret", {"name": "me"}, **options)
        self.ledger.welcomed(m.Welcome(1, 0, True, {"cluster": "x"}), 0.0)
        self.entry = self.ledger.submit(WORK, [("a", b"", ())])[0]
        self.said()
        self.ledger.handle(CONTROL, m.Members((MEMBER,)), 0.0)
        self.ledger.handle(CONTROL, m.Finished((("a", 1, 50, None, (WORKER,), "zdist.Actor"),)), 0.0)
        self.said()

    def call(self, count: int = 1, args: m.Payload = b"", attempt: int = 1) -> list[Any]:
        return [self.ledger.calls.make(seed(attempt), CALL, "add", args, None) for _ in range(count)]

    def said(self, now: float = 0.0) -> dict[str, list[Any]]:
        if (due := self.ledger.deadline()) is not None and due <= now:
            self.ledger.tick(now)
        self.ledger.turn(now)
        self.ledger.check()
        out = {route.channel: messages for route, messages in self.ledger.take().items()}
        return {way: found for way, all_ in out.items() if (found := [x for x in all_ if type(x) is m.ActorCall])}

    def open_peer(self) -> None:
        self.call()
        assert list(self.said()) == ["control"]
        probe = self.ledger.fetcher.probes.serial
        self.ledger.handle(Route("tcp://one"), m.ProbeReply(probe, WORKER), 0.0)

    def reply(
        self, number: int, code: str = RETURNED, value: bytes = b"v", way: str = "control", now: float = 0.0
    ) -> None:
        self.ledger.handle(Route(way), m.ActorReply("c-1", number, code, value), now)
        self.ledger.turn(now)
        self.ledger.check()


def numbers(messages: list[m.ActorCall]) -> list[tuple[int, int]]:
    return [row[:2] for message in messages for row in message.rows]


def test_calls_go_by_the_peer_path_where_that_is_open_and_large_ones_by_the_broker() -> None:
    caller = Caller()
    caller.open_peer()
    caller.call(2)
    caller.call(1, m.Buffer(b"x" * limits.OWN_FRAME))
    caller.call(1)
    said = caller.said()
    assert numbers(said["tcp://one"]) == [(2, 1), (3, 2), (5, 4)] and numbers(said["control"]) == [(4, 3)]
    assert {message.token for message in said["tcp://one"]} == {"secret"} and said["control"][0].token == ""
    alone = Caller(paths=["relay"])
    alone.call(2)
    assert numbers(alone.said()["control"]) == [(1, 0), (2, 1)]


def test_no_more_are_sent_than_the_window_allows() -> None:
    caller = Caller()
    calls = caller.call(limits.ACTOR_WINDOW + 10)
    assert len(numbers(caller.said()["control"])) == limits.ACTOR_WINDOW
    for number in range(1, 4):
        caller.ledger.handle(CONTROL, m.ActorReply("c-1", number, RETURNED, b"v"), 0.0)
    (message,) = caller.said()["control"]
    assert (
        message.settled == 3 and len(message.rows) == 3 and [call.status for call in calls[2:4]] == [FINISHED, PENDING]
    )
    big = m.Buffer(bytes(limits.ACTOR_WINDOW_BYTES // 2 + 1))
    other = Caller()
    other.call(2, big)
    assert numbers(other.said()["control"]) == [(1, 0)]
    other.ledger.handle(CONTROL, m.ActorReply("c-1", 1, RETURNED, b"v"), 0.0)
    assert numbers(other.said()["control"]) == [(2, 1)]


def test_what_is_not_answered_is_asked_after_and_sent_again_if_it_never_came() -> None:
    caller = Caller()
    caller.open_peer()
    caller.reply(1)
    (call,) = caller.call()
    assert list(caller.said()) == ["tcp://one"]
    assert caller.said(limits.ACTOR_PATIENCE / 2) in ({}, {"tcp://one": []})
    (poll,) = caller.said(limits.ACTOR_PATIENCE)["control"]
    assert [row[:3] for row in poll.rows] == [(2, 0, POLL)]
    caller.reply(2, WORKING)
    assert "control" not in caller.said(2 * limits.ACTOR_PATIENCE)
    assert caller.said(3 * limits.ACTOR_PATIENCE)["control"]
    caller.reply(2, UNSEEN)
    assert numbers(caller.said(3 * limits.ACTOR_PATIENCE)["control"]) == [(2, 1)]
    caller.reply(2, way="tcp://other")
    assert call.status == PENDING
    caller.reply(2)
    assert (call.status, call.code, call.value) == (FINISHED, RETURNED, b"v")
    caller.reply(2, GONE)  # what comes late changes nothing
    assert call.code == RETURNED


def test_the_worker_hears_that_replies_have_come_and_nothing_is_left() -> None:
    caller = Caller()
    caller.call(2)
    caller.said()
    caller.reply(2)
    caller.reply(1)
    assert caller.said() == {}
    (message,) = caller.said(limits.ACTOR_ACK)["control"]
    assert (message.settled, message.rows) == (2, ())
    assert not caller.ledger.calls.targets and not caller.ledger.calls.open and caller.ledger.calls.deadline() is None
    caller.call()
    assert numbers(caller.said()["control"]) == [(3, 0)]


def test_the_worker_holds_what_a_reply_names_until_the_broker_knows_that_the_caller_does() -> None:
    caller = Caller()
    (call,) = caller.call()
    caller.said()
    caller.ledger.handle(CONTROL, m.ActorReply("c-1", 1, RETURNED, b"v", ("x",)), 0.0)
    assert call.status == FINISHED and [message.keys for message in caller.ledger.take()[CONTROL]] == [("x",)]
    assert caller.said(limits.ACTOR_ACK)["control"][0].settled == 0
    caller.ledger.handle(CONTROL, m.Finished((("x", 3, 5, b"value", (), "int"),)), 0.5)
    assert caller.said(limits.ACTOR_ACK + limits.ACTOR_PATIENCE)["control"][0].settled == 1
    assert not caller.ledger.calls.targets and caller.ledger.entries["x"].refs == 1
    del call
    caller.said(2.0)
    assert "x" not in caller.ledger.entries


def test_a_lost_actor_ends_all_its_calls_at_once() -> None:
    caller = Caller()
    sent = caller.call(2)
    caller.said()
    queued = caller.call(1)
    caller.ledger.handle(CONTROL, m.ActorGone((("a", "its worker died"),)), 0.0)
    caller.said()
    assert [call.status for call in sent + queued] == [FINISHED] * 3 and sent[0].value[3] == "its worker died"
    assert caller.entry.status == "error" and not caller.ledger.calls.targets


def test_a_worker_that_knows_no_such_actor_ends_them_as_well() -> None:
    caller = Caller()
    calls = caller.call(2)
    caller.said()
    caller.reply(2, GONE, b"not here")
    assert [(call.code, call.value) for call in calls] == [(GONE, "not here")] * 2
    old = caller.call()
    caller.call(1, attempt=2)
    assert old[0].code == GONE and "made anew" in old[0].value


def test_after_another_broker_has_come_it_is_asked_what_became_of_them() -> None:
    caller = Caller()
    (call,) = caller.call()
    caller.said()
    caller.ledger.welcomed(m.Welcome(2, 0, True, {"cluster": "x", "recover": 1.5}), 10.0)
    assert caller.said(10.0) == {}
    (poll,) = caller.said(11.5)["control"]
    assert poll.rows[0][:3] == (1, 0, POLL) and call.status == PENDING
    caller.ledger.abandon("closed", "client closed")
    caller.said(20.0)
    assert call.status == FINISHED and caller.ledger.calls.deadline() is None


@pytest.mark.parametrize("number", range(5))
def test_both_ends_over_ways_that_lose_repeat_and_overtake(number: int) -> None:
    """Whatever the network does, every call begins once, in order, and is answered."""
    rnd = random.Random(number)
    worker, caller = Worker(), Caller()
    caller.open_peer()
    calls, now = list(caller.ledger.calls.open.values()), 0.0
    there: list[tuple[Route, Any]] = [(CONTROL, asks((1, 0), token=""))]
    back: list[tuple[str, Any]] = []
    for step in range(4000):
        calm = step > 300
        if not calm and rnd.random() < 0.3:
            calls += caller.call(rnd.randrange(4))
        now += rnd.choice((0.0, 0.01, 0.3 if not calm else 1.0))
        for way, messages in caller.said(now).items():
            there += [(CONTROL if way == "control" else HOP, message) for message in messages]
        rnd.shuffle(there)
        while there and rnd.random() < 0.8:
            route, message = there.pop()
            if calm or rnd.random() > 0.2:
                worker.hear(message, route)
            if not calm and rnd.random() < 0.2:
                there.append((route, message))
        worker.work(rnd.randrange(4))
        for route, replies in worker.machine.take().items():
            back += [("control" if route == CONTROL else "tcp://one", reply) for reply in replies]
        rnd.shuffle(back)
        while back and rnd.random() < 0.8:
            way, reply = back.pop()
            if isinstance(reply, m.ActorReply) and (calm or rnd.random() > 0.2):
                caller.ledger.handle(Route(way), reply, now)
        if calm and not caller.ledger.calls.targets:
            break
    assert [n for _, n in worker.begun] == [call.number for call in calls] and len(calls) > 100
    assert [call.value for call in calls] == [b"%d" % call.number for call in calls]
