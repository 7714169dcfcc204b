"""What becomes of each packet at the broker's sessions: heard once, confirmed in time, and not from everybody."""

from __future__ import annotations

from typing import Any

import pytest
from broker_desk import FN, TOKEN, Desk, kinds

from zdist import limits
from zdist.core.machine import Log, Route
from zdist.errors import ProtocolError
from zdist.protocol.messages import (
    Answer,
    Ask,
    BulkHello,
    Bye,
    Done,
    Get,
    Hello,
    HelloPlease,
    Packet,
    Ping,
    Refused,
    Release,
    Submit,
    WorkerDied,
)

C1 = Route("control", b"c-1")
B2 = Route("bulk", b"c-2b")


@pytest.fixture
def d() -> Desk:
    """A worker, and a client that has been welcomed a while ago."""
    d = Desk()
    d.cluster()
    d.turn(1.0)
    return d


def two_on_the_bulk_socket() -> Desk:
    d = Desk()
    for session in ("c-1", "c-2"):
        d.hello(session)
        d.loose(session, BulkHello(TOKEN), hop=session.encode() + b"b", channel="bulk")
    return d


def events(d: Desk) -> list[str]:
    return [log.event for log in d.logged()]


# --- heard ----------------------------------------------------------------------------------------------


def test_a_packet_that_comes_twice_is_heard_once(d: Desk) -> None:
    for _ in range(2):
        d.seq["c-1"] = 1
        d.say("c-1", Ask(1, "fence", None))
    assert kinds(d.to("c-1")) == ["Answer"]


def test_what_is_heard_is_confirmed_in_time_though_there_is_nothing_to_say(d: Desk) -> None:
    d.say("c-1", Release(()))
    assert d.to("c-1") == [] and d.endpoint.deadline() == d.now + limits.ACK_DELAY
    (packet,) = d.to("c-1", limits.ACK_DELAY)
    assert packet == Packet("c-1", 0, d.base("c-1") + 2, ())
    assert d.to("c-1", limits.ACK_DELAY) == []


def test_after_a_farewell_nothing_is_heard(d: Desk) -> None:
    d.loose("c-1", Bye("done"), Ask(1, "fence", None), Bye("again"))
    assert d.to("c-1") == [] and events(d) == [] and list(d.endpoint.peers) == ["w-1"]


def test_what_could_not_be_handled_ends_its_session_at_once_and_the_peer_is_told_why(d: Desk) -> None:
    def stumble(*_: Any) -> None:
        raise KeyError("of all things")

    d.machine.peers["c-1"].handlers = {Ask: stumble}
    d.say("c-1", Ask(1, "fence", None), Ask(2, "fence", None))
    (refused,) = [message for packet in d.to("c-1") for message in packet.messages]
    assert isinstance(refused, Refused) and refused.code == "defect" and "KeyError: 'of all things'" in refused.text
    assert events(d) == ["peer.unforeseen", "peer.refused"] and list(d.endpoint.peers) == ["w-1"]


def test_a_packet_that_cannot_be_encoded_ends_the_session_that_it_is_for() -> None:
    d = two_on_the_bulk_socket()
    d.turn()
    d.endpoint.undeliverable(B2, ProtocolError("too large"), d.now)  # but not if it is of another's data
    assert events(d) == ["relay.unsent"] and set(d.endpoint.peers) == {"c-1", "c-2"}
    d.endpoint.undeliverable(C1, ProtocolError("too large"), d.now)
    assert events(d) == ["peer.unforeseen", "peer.refused"] and set(d.endpoint.peers) == {"c-2"}
    assert kinds(d.to("c-1")) == ["Refused"]
    d.endpoint.undeliverable(C1, ProtocolError("too large"), d.now)
    assert events(d) == ["relay.unsent"]


# --- hellos ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "words", "level"), [("", "is missing", "info"), ("no", "is wrong", "warning")])
def test_who_has_not_the_token_is_told_what_is_the_matter(token: str, words: str, level: str) -> None:
    d = Desk()
    d.hello("c-1", token=token)
    (refused,) = [message for packet in d.to("c-1") for message in packet.messages]
    assert isinstance(refused, Refused) and refused.code == "token" and words in refused.text
    assert [command.level for command in d.machine.commands if isinstance(command, Log)] == [level]


def test_a_session_has_the_role_that_its_name_says() -> None:
    d = Desk()
    d.loose("c-1", Hello("node", TOKEN, 0, 0, {}))
    assert kinds(d.to("c-1")) == ["Refused"] and not d.endpoint.peers and not d.machine.peers


def test_a_late_hello_of_a_worker_whose_end_was_reported_is_refused() -> None:
    d = Desk()
    d.hello("n-1")
    d.say("n-1", WorkerDied("w-1", -9, "it was killed", (), False))
    d.hello("w-1", node="n-1", address="tcp://w")
    (refused,) = [message for packet in d.to("w-1") for message in packet.messages]
    assert isinstance(refused, Refused) and refused.code == "dead" and list(d.endpoint.peers) == ["n-1"]


def test_strangers_on_the_bulk_socket_are_asked_who_they_are_and_not_served() -> None:
    d = two_on_the_bulk_socket()
    assert [message for route, packet in d.turn() for message in packet.messages if route.channel == "bulk"] == []
    d.loose("c-1", Get(1, "", "c-2", "c-1", (("k", 0, 1),)), hop=b"s", channel="bulk")
    assert [(route.hop, packet.messages) for route, packet in d.turn()] == [(b"s", (HelloPlease(),))]


@pytest.mark.parametrize(
    ("token", "hop", "words"), [("no", b"new", "a wrong cluster token"), (TOKEN, b"c-2b", "another session's")]
)
def test_why_a_bulk_connection_was_not_taken_is_logged(token: str, hop: bytes, words: str) -> None:
    d = two_on_the_bulk_socket()
    d.loose("c-1", BulkHello(token), hop=hop, channel="bulk")
    (log,) = d.logged()
    assert log.event == "peer.garbage" and words in log.fields["error"]


# --- sockets that take no more ----------------------------------------------------------------------------


def finished(d: Desk) -> None:
    """A task of the client, whose end it is to be told."""
    d.say("c-1", Submit(FN, False, 1, (), (("k", b"", ()),)))
    d.turn()
    d.endpoint.undelivered(C1, d.now)
    d.say("w-1", Done((("k", (1 << 40) + 1, 5, 1, b"v", "int"),)))


def test_a_peer_whose_socket_is_full_is_told_nothing_until_it_speaks(d: Desk) -> None:
    finished(d)
    assert d.to("c-1") == []
    d.say("c-1", Ask(1, "fence", None))
    assert kinds(d.to("c-1")) == ["Finished", "Answer"]


def test_a_bulk_connection_that_takes_nothing_is_gone_and_its_session_stays() -> None:
    d = two_on_the_bulk_socket()
    d.turn()
    d.endpoint.undelivered(B2, d.now)
    d.loose("c-1", Get(1, "", "c-2", "c-1", (("k", 0, 1),)), hop=b"c-1b", channel="bulk")
    assert d.to("c-2b") == [] and "c-2" in d.endpoint.peers
    d.loose("c-2", Ping(), hop=b"c-2b", channel="bulk")
    assert kinds(d.to("c-2b")) == ["HelloPlease"]


def test_who_is_given_up_while_it_speaks_is_not_heard(d: Desk) -> None:
    finished(d)
    for _ in range(2 * limits.VAIN_REPEATS):
        if "c-1" in d.endpoint.peers:
            d.turn(limits.HELLO_PAUSE)
            d.endpoint.undelivered(C1, d.now)
            d.say("c-1", Ask(1, "fence", None))
    assert events(d) == ["client.given_up"]
    assert d.to("c-1", limits.ACK_DELAY) == []


# --- what is kept -----------------------------------------------------------------------------------------


def test_only_what_is_kept_in_many_packets_is_weighed_at_once(d: Desk) -> None:
    d.answers("c-1", 1)
    assert d.endpoint.deadline() > d.now
    d.answers("c-1", limits.WEIGH_EVERY)
    assert d.endpoint.deadline() < d.now


def test_who_is_given_up_does_not_count_for_what_is_kept_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.KEPT_BYTES", 20_000)
    monkeypatch.setattr("zdist.limits.KEPT_BYTES_TOTAL", 30_000)
    d = Desk()
    for session, packets in (("c-1", 2), ("c-2", 1)):
        d.hello(session)
        for n in range(packets):
            d.endpoint.peers[session].session.wrap([Answer(n, True, "x" * 15_000)])
    d.turn(1.0)  # what it has not confirmed by the next sweep counts
    d.turn(1.0)
    assert events(d) == ["client.given_up"] and list(d.endpoint.peers) == ["c-2"]


def test_of_those_who_stay_the_one_with_the_most_goes_in_the_same_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.KEPT_BYTES", 20_000)
    monkeypatch.setattr("zdist.limits.KEPT_BYTES_TOTAL", 30_000)
    d = Desk()
    for session, packets in (("c-1", 3), ("c-2", 1), ("c-3", 1)):
        d.hello(session)
        for n in range(packets):
            d.endpoint.peers[session].session.wrap([Answer(n, True, "x" * (16_000 + (session == "c-3")))])
    d.turn(1.0)  # what it has not confirmed by the next sweep counts
    d.turn(1.0)
    assert [log.fields["session"] for log in d.logged()] == ["c-1", "c-3"] and list(d.endpoint.peers) == ["c-2"]
