"""What a peer makes of bytes that are no packets, of packets that do not get out, and of greetings at odd times."""

from __future__ import annotations

import pytest
from test_peer_endpoint import WELCOME, World

from zdist.core.endpoint import Dial
from zdist.core.machine import BULK, CONTROL, Log, Route
from zdist.errors import ProtocolError, VersionMismatch
from zdist.protocol.messages import BulkHello, Bye, Hello, HelloPlease, Message, Refused


@pytest.fixture
def w() -> World:
    """Welcomed."""
    w = World("secret")
    w.turn()
    w.turn(WELCOME)
    return w


def logged(w: World) -> list[tuple[str, str]]:
    return [(log.event, log.fields["channel"]) for log in w.machine.commands if isinstance(log, Log)]


def greets(w: World) -> bool:
    return any(isinstance(message, Hello) for message in w.turn())


def test_a_broker_of_another_version_ends_the_session(w: World) -> None:
    w.endpoint.garbled(CONTROL, VersionMismatch("this is 2"), w.now)
    assert w.machine.refusals == ["version"] and w.endpoint.over
    assert logged(w) == []


@pytest.mark.parametrize(
    ("route", "error"), [(Route("tcp://other"), VersionMismatch("this is 2")), (CONTROL, ProtocolError("no packet"))]
)
def test_other_garbage_is_told_once(w: World, route: Route, error: ProtocolError) -> None:
    for _ in range(2):
        w.endpoint.garbled(route, error, w.now)
    assert logged(w) == [("peer.garbage", route.channel)]
    assert not w.machine.refusals and w.endpoint.up


def test_a_packet_that_its_socket_did_not_take_goes_again_after_another_greeting(w: World) -> None:
    w.endpoint.undelivered(BULK, w.now)
    assert w.endpoint.up and not greets(w)
    w.endpoint.undelivered(CONTROL, w.now)
    assert not w.endpoint.up and greets(w)
    w.endpoint.undelivered(CONTROL, w.now)  # the greeting itself, which is repeated anyway
    assert not greets(w)


def test_a_message_that_cannot_be_encoded_ends_the_session_unless_it_is_data(w: World) -> None:
    w.endpoint.undeliverable(BULK, ProtocolError("too large"), w.now)
    assert logged(w) == [("peer.unsent", "bulk")] and not w.machine.refusals
    w.endpoint.undeliverable(CONTROL, ProtocolError("too large"), w.now)
    assert w.machine.refusals == ["defect"] and w.endpoint.over


def test_nothing_wakes_a_session_that_is_over(w: World) -> None:
    w.turn(Refused("name", "no"))
    assert w.turn(HelloPlease()) == []
    assert w.turn(WELCOME._replace(epoch=8)) == [] and not w.endpoint.up


def test_a_welcome_that_says_nothing_new_is_not_answered(w: World) -> None:
    said = w.turn(WELCOME._replace(fresh=False))
    assert said == []
    assert [type(message) for message in w.turn(WELCOME)] == [BulkHello]  # it has begun anew


def test_the_bulk_connection_is_greeted_where_that_is_asked_for(w: World) -> None:
    packet = w.endpoint.session.loose(HelloPlease())
    w.endpoint.receive(Route("tcp://other"), packet, w.now)
    assert w.turn() == []
    w.endpoint.receive(BULK, packet, w.now)
    assert w.turn() == [BulkHello("secret")]


def test_goodbye_is_said_to_a_broker_that_is_there(w: World) -> None:
    w.endpoint.leave("done")
    assert w.turn() == [Bye("done")]


def test_goodbye_is_not_said_later_to_one_that_is_not_there(w: World) -> None:
    w.turn(HelloPlease())
    w.endpoint.leave("done")
    assert w.turn(WELCOME._replace(fresh=False)) == [BulkHello("secret")]


def test_the_invariants_of_the_machine_are_looked_at(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(w.machine, "check", lambda: looked.append("machine"))
    w.endpoint.check()
    assert looked == ["machine"]


def test_the_bulk_channel_is_dialled_when_its_address_is_another(w: World) -> None:
    def dialled(address: str) -> list[tuple[str, str]]:
        said: list[Message] = [HelloPlease(), WELCOME._replace(fresh=False, info={"bulk": address})]
        w.endpoint.session.unacked.clear()
        for message in said:
            w.endpoint.receive(CONTROL, w.endpoint.session.loose(message), w.now)
        found = [(dial.channel, dial.address) for dial in w.machine.commands if isinstance(dial, Dial)]
        w.turn()
        return found

    assert dialled("tcp://one") == [("bulk", "tcp://one")]
    assert dialled("tcp://one") == []
    assert dialled("tcp://two") == [("bulk", "tcp://two")]
