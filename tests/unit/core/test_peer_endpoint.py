"""How a client, worker or node greets its broker: tokens that come late, brokers that stop and come back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from zdist import limits
from zdist.core.endpoint import PeerEndpoint, Redial
from zdist.core.machine import CONTROL, Log, Machine, Route
from zdist.protocol.messages import Bye, Hello, HelloPlease, Message, Packet, Ping, Pong, Refused, Welcome

ADDRESS = "tcp://broker:1"


class Quiet(Machine[Route]):
    """A machine without business of its own."""

    role = "worker"

    def __init__(self) -> None:
        super().__init__()
        self.token = ""
        self.refusals: list[str] = []

    def hello_info(self) -> dict[str, Any]:
        return {}

    def authorize(self, token: str) -> None:
        self.token = token

    def welcomed(self, welcome: Welcome, now: float) -> None:
        pass

    def refused(self, code: str, text: str, now: float) -> None:
        self.refusals.append(code)

    def handle(self, route: Route, message: Message, now: float) -> None:
        assert type(message) is Pong, message

    def turn(self, now: float) -> None:
        pass

    def tick(self, now: float) -> None:
        pass

    def deadline(self) -> float | None:
        return None


class World:
    """An endpoint, the token file that it looks at, and a clock."""

    def __init__(self, token: str = "", patience: float = limits.NOTICE) -> None:
        self.file = token
        self.machine = Quiet()
        self.endpoint = PeerEndpoint(
            self.machine, "w-1", token, find_token=lambda: self.file, address=ADDRESS, patience=patience
        )
        self.now = 100.0
        self.logs: list[Log] = []
        self.redials = 0

    def turn(self, *incoming: Message) -> list[Message]:
        """Packets come in, a turn is made; the messages that go out."""
        for message in incoming:
            self.endpoint.receive(CONTROL, Packet("w-1", 0, 0, (message,)), self.now)
        self.endpoint.turn(self.now)
        commands = self.machine.commands[:]
        self.machine.commands.clear()
        self.logs += [command for command in commands if isinstance(command, Log)]
        self.redials += sum(isinstance(command, Redial) and command.channel == "control" for command in commands)
        return [message for _, packet in self.endpoint.flush(self.now) for message in packet.messages]

    def hellos(self, *incoming: Message) -> list[str]:
        """Tokens of the hellos that go out."""
        return [message.token for message in self.turn(*incoming) if isinstance(message, Hello)]

    def later(self) -> None:
        self.now = self.endpoint.deadline()

    def until(self, seconds: float) -> None:
        """Turn whenever it is due, for so long."""
        end = self.now + seconds
        while self.endpoint.deadline() <= end:
            self.later()
            self.turn()
        self.now = end


WELCOME = Welcome(7, 0, True, {})
NO_TOKEN = Refused("token", "the cluster token is missing or wrong")


def test_a_token_that_comes_late_is_found_with_the_next_hello() -> None:
    w = World()
    assert w.hellos() == [""]
    w.file = "secret"
    w.later()
    assert w.hellos() == ["secret"]
    assert w.redials == 1  # what was queued with the old token is gone, so a refusal is always of this one
    assert w.machine.token == "secret"
    w.turn(WELCOME)
    assert w.endpoint.up


def test_a_refused_token_is_final_only_if_there_is_no_other() -> None:
    w = World("old")
    assert w.hellos() == ["old"]
    w.file = "new"
    assert w.hellos(NO_TOKEN, NO_TOKEN) == ["new"]  # the second refusal was of another hello with the old one
    assert not w.machine.refusals
    w.turn(NO_TOKEN)
    assert w.machine.refusals == ["token"]
    assert w.endpoint.over


def test_other_refusals_are_final_at_once() -> None:
    w = World("old")
    w.turn()
    w.file = "new"
    assert w.hellos(Refused("name", "no")) == []
    assert w.machine.refusals == ["name"]


def test_data_requests_carry_the_token_that_was_found() -> None:
    w = World("one")
    w.turn()
    w.turn(WELCOME)
    w.file = "two"
    assert w.hellos(HelloPlease()) == ["two"]
    assert w.machine.token == "two"


# --- no broker ----------------------------------------------------------------------------------------


def test_waiting_for_a_broker_is_told_once_after_two_seconds() -> None:
    w = World()
    w.turn()
    w.until(limits.NOTICE - 0.01)
    assert w.logs == []
    w.until(0.02)
    (notice,) = w.logs
    assert (notice.level, notice.event, notice.fields["address"]) == ("warning", "broker.away", ADDRESS)
    assert "2 s" in notice.fields["reason"]
    w.until(60.0)
    assert len(w.logs) == 1
    w.turn(WELCOME)
    assert [log.event for log in w.logs] == ["broker.away", "broker.back"]
    assert w.endpoint.away == ""


def test_who_has_no_patience_to_lose_says_nothing() -> None:
    w = World(patience=float("inf"))
    w.turn()
    w.until(60.0)
    w.turn(WELCOME)
    assert w.logs == []


def test_a_broker_that_answers_soon_is_not_talked_about() -> None:
    w = World()
    w.turn()
    w.until(1.0)
    w.turn(WELCOME)
    w.until(1.0)
    assert w.logs == []


def test_a_session_that_was_given_up_is_told_so_and_one_whose_broker_is_another_is_not() -> None:
    w = World()
    w.turn()
    w.turn(WELCOME)
    w.turn(HelloPlease(), WELCOME)  # the first welcome may have been lost
    assert not w.machine.given_up
    w.endpoint.receive(CONTROL, Packet("w-1", w.endpoint.session.base + 1, 0, ()), w.now)
    w.turn(HelloPlease(), WELCOME._replace(fresh=False))
    assert not w.machine.given_up
    assert w.logs == []
    w.turn(HelloPlease(), WELCOME)
    assert w.machine.given_up
    assert [log.event for log in w.logs] == ["session.given_up"]
    w.endpoint.receive(CONTROL, Packet("w-1", w.endpoint.session.base + 1, 0, ()), w.now)
    w.turn(HelloPlease(), WELCOME._replace(epoch=8))
    assert not w.machine.given_up
    assert len(w.logs) == 1


def test_two_welcomes_to_one_session_do_not_begin_it_twice() -> None:
    """The broker calls both fresh while it has heard nothing numbered; what was said between them counts."""
    w = World()
    w.turn()
    welcome = WELCOME._replace(info={"life": 3})
    w.turn(welcome)
    w.endpoint.receive(CONTROL, Packet("w-1", w.endpoint.session.base + 1, 0, ()), w.now)
    w.machine.send(CONTROL, Ping())
    w.turn()
    session, base = w.endpoint.session, w.endpoint.session.base
    assert session.sent == base + 1
    w.turn(welcome)
    assert session.sent == base + 1 and session.received == base + 1 and not w.machine.given_up
    w.machine.send(CONTROL, Ping())
    w.turn()
    assert session.sent == base + 2
    w.turn(WELCOME._replace(info={"life": 4}))
    assert session.sent == session.base != base and w.machine.given_up


def test_hellos_do_not_pile_up_for_a_broker_that_is_long_gone() -> None:
    w = World()
    w.turn()
    w.until(10 * limits.REDIAL)
    assert 8 <= w.redials <= 10


def test_a_broker_that_stops_says_so_and_is_greeted_when_it_is_back() -> None:
    w = World()
    w.turn()
    w.turn(WELCOME)
    assert w.hellos(Bye("the broker at tcp://broker:1 was stopped")) == []
    (notice,) = w.logs
    assert notice.fields["reason"] == "the broker at tcp://broker:1 was stopped"
    assert w.endpoint.away == "the broker at tcp://broker:1 was stopped"
    assert not w.endpoint.up
    w.later()
    assert w.now < 101.0
    assert w.hellos() == [""]
    w.until(60.0)
    assert w.endpoint.next_hello - w.now <= limits.HELLO_RETRY_MAX
    w.turn(WELCOME._replace(epoch=8))
    assert w.endpoint.up
    assert [log.event for log in w.logs] == ["broker.away", "broker.back"]


@pytest.mark.parametrize("code", ["token", "name"])
def test_after_the_end_nothing_is_said(code: str) -> None:
    w = World()
    w.turn()
    w.turn(Refused(code, "no"))
    w.until(60.0)
    assert w.logs == []
    assert w.endpoint.deadline() == float("inf")


@pytest.mark.parametrize("stopped", [5.0, 500.0])
def test_who_was_stopped_itself_does_not_take_the_broker_for_dead(stopped: float) -> None:
    w = World("secret")
    w.turn()
    w.turn(WELCOME)
    w.until(3.0)
    w.endpoint.receive(CONTROL, Packet("w-1", 0, 0, ()), w.now)
    w.now += stopped
    said = [type(message) for message in w.turn()]
    assert Ping in said and Hello not in said
    assert w.endpoint.up and not w.redials
    w.until(3.0)  # what was to be read is read by now, and nothing was there
    w.until(2.0)
    assert not w.endpoint.up and w.redials


def test_a_pong_is_answered_with_the_next_ping_at_once() -> None:
    w = World("secret")
    w.turn()
    w.turn(WELCOME)
    w.later()
    assert w.turn() == [Ping()]
    w.now += 0.7  # the broker answers once a second, whenever that is
    for _ in range(3):
        assert Ping() in w.turn(Pong())
        w.now += limits.HEARTBEAT
        assert w.turn() == []
        assert w.endpoint.deadline() > w.now  # nobody wakes up for it before the answer is late


def test_a_pong_that_does_not_come_is_asked_for_once_a_heartbeat() -> None:
    w = World("secret")
    w.turn()
    w.turn(WELCOME)
    w.later()
    w.turn()
    assert w.turn(Pong()) == [Ping()]
    heard, asked = w.now, []
    while not w.redials:
        w.later()
        asked += [w.now - heard] * (Ping() in w.turn())
    assert 1.0 < asked[0] <= 1.25 * limits.HEARTBEAT
    assert [later - earlier <= limits.HEARTBEAT for earlier, later in pairwise(asked)] == [True] * (len(asked) - 1)
    assert 3.0 < w.now - heard <= 4.0


# --- time, and what comes late -------------------------------------------------------------------------------


def test_a_welcome_to_an_earlier_life_is_too_late() -> None:
    w = World()
    w.turn()
    w.turn(WELCOME._replace(info={"life": 4}))
    base = w.endpoint.session.base
    w.machine.send(CONTROL, Ping())
    w.turn(WELCOME._replace(info={"life": 3}))
    assert w.endpoint.session.base == base and w.endpoint.session.sent == base + 1 and not w.machine.given_up


def test_what_came_is_confirmed_when_nothing_else_is_said_for_a_while() -> None:
    w = World()
    w.turn()
    w.turn(WELCOME)
    w.endpoint.receive(CONTROL, Packet("w-1", w.endpoint.session.base + 1, 0, ()), w.now)
    w.endpoint.turn(w.now)
    assert w.endpoint.flush(w.now) == []
    w.now += limits.ACK_DELAY
    w.endpoint.turn(w.now)
    ((_, packet),) = w.endpoint.flush(w.now)
    assert packet.ack == w.endpoint.session.base + 1 and not packet.messages
    assert w.endpoint.flush(w.now) == []


def test_the_machine_is_called_when_its_time_has_come_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    w.turn()
    w.turn(WELCOME)
    called: list[float] = []
    monkeypatch.setattr(w.machine, "tick", called.append)
    monkeypatch.setattr(w.machine, "deadline", lambda: 105.0)
    for now in (104.0, 105.0, 106.0):
        w.endpoint.turn(now)
    monkeypatch.setattr(w.machine, "deadline", lambda: None)
    w.endpoint.turn(107.0)
    assert called == [105.0, 106.0]
