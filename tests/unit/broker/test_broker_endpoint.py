"""The broker's sessions against strangers, floods, and peers that do not read."""

from __future__ import annotations

from typing import Any

import pytest
from broker_desk import FN, TOKEN, Desk, kinds

from zdist import limits
from zdist.core.machine import Route
from zdist.errors import ProtocolError
from zdist.protocol.messages import (
    Answer,
    Ask,
    BulkHello,
    Bye,
    Data,
    Done,
    Finished,
    Get,
    HelloPlease,
    Message,
    Ping,
    Pong,
    Refused,
    Submit,
    Welcome,
)

# --- strangers ------------------------------------------------------------------------------------------


def test_a_stranger_is_asked_for_a_hello_once_in_a_while() -> None:
    d = Desk()
    for _ in range(100):
        d.loose("c-9", Ping(), hop=b"s")
    assert kinds(d.to("s")) == ["HelloPlease"]
    for _ in range(100):
        d.loose("c-9", Ping(), hop=b"s", channel="bulk")
    d.now += limits.HELLO_PAUSE
    d.loose("c-9", Ping(), hop=b"s")
    d.loose("c-9", Ping(), hop=b"t", channel="bulk")
    assert [type(p.messages[0]) for _, p in d.turn()] == [HelloPlease, HelloPlease]


def test_large_packets_are_for_those_who_have_said_hello() -> None:
    d = Desk()
    d.hello("c-1")
    d.loose("c-1", BulkHello(TOKEN), hop=b"b", channel="bulk")
    small, large = limits.STRANGER_HEADER, limits.STRANGER_HEADER + 1
    admits = d.endpoint.admits
    assert admits(Route("control", b"c-1"), 3, 1 << 30) and admits(Route("bulk", b"b"), 3, 1 << 30)
    for channel, hop in (("control", b"s"), ("bulk", b"s"), ("bulk", b"c-1"), ("control", b"b")):
        assert admits(Route(channel, hop), 1, small)
        assert not admits(Route(channel, hop), 1, large) and not admits(Route(channel, hop), 2, 10)
    d.loose("c-1", Bye("done"))
    assert not admits(Route("control", b"c-1"), 1, large)


def test_refusals_are_answered_a_few_times_and_logged_once() -> None:
    d = Desk()
    for _ in range(500):
        d.hello("c-1", b"s", token="wrong")
    packets = d.to("s")
    assert set(kinds(packets)) == {"Refused"} and len(packets) <= 16
    assert [log.event for log in d.logged()] == ["peer.refused"]


def test_a_flood_of_garbage_over_many_connections_fills_no_log() -> None:
    d = Desk()
    for turn in range(10):
        for n in range(3000):
            d.endpoint.garbled(
                Route("control", b"%d" % (n if turn % 2 else 3000 + n)), ProtocolError("x" * 100_000), d.now
            )
        d.turn(limits.HEARTBEAT)
    logs = d.logged()
    assert len(logs) <= 11 * (limits.LOG_COMPLAINTS + 1)
    assert all(len(str(log.fields)) < 3000 for log in logs)
    noted = sum(log.fields.get("not_logged", 0) for log in logs) + sum(log.event == "peer.garbage" for log in logs)
    assert noted > 6000 and d.endpoint.complaints.total == 30_000


def test_a_wrong_token_on_the_bulk_socket_is_told_once() -> None:
    d = Desk()
    d.hello("c-1")
    for _ in range(50):
        d.loose("c-1", BulkHello("wrong"), hop=b"s", channel="bulk")
    assert [log.event for log in d.logged()] == ["peer.garbage"] and not d.endpoint.bulk


def test_what_the_relay_has_to_say_is_said() -> None:
    d = Desk()
    d.cluster()
    for session in ("c-1", "w-1"):
        d.loose(session, BulkHello(TOKEN), hop=session.encode() + b"b", channel="bulk")
    d.loose("c-1", Get(1, "", "w-1", "c-1", (("k", 0, 5),)), hop=b"c-1b", channel="bulk")
    d.loose("w-1", Data(1, "c-1", (("k", 1, 9, 0, (b"x" * 9,)),), ()), hop=b"w-1b", channel="bulk")
    assert [log.event for log in d.logged()] == ["relay.oversize"]


# --- one connection, one session -----------------------------------------------------------------------


def test_a_connection_speaks_for_one_session() -> None:
    d = Desk()
    d.hello("c-1", b"hop")
    d.turn()
    d.hello("c-2", b"hop")
    ((_, packet),) = d.turn()
    (refused,) = packet.messages
    assert isinstance(refused, Refused) and refused.code == "name" and "speaks for session c-1" in refused.text
    assert list(d.endpoint.peers) == ["c-1"] and list(d.machine.peers) == ["c-1"]
    d.loose("c-1", Bye("done"), hop=b"hop")
    d.hello("c-2", b"hop")
    assert kinds(d.to("hop")) == ["Welcome"]


def test_a_bulk_connection_serves_one_session() -> None:
    d = Desk()
    for session in ("c-1", "c-2"):
        d.hello(session)
        d.loose(session, BulkHello(TOKEN), hop=b"hop", channel="bulk")
    d.turn()
    assert d.endpoint.bulk[b"hop"].session.id == "c-1" and d.endpoint.peers["c-2"].bulk is None
    d.loose("c-2", BulkHello(TOKEN), hop=b"hop2", channel="bulk")
    d.turn()
    assert d.endpoint.bulk[b"hop2"].session.id == "c-2"


def test_sessions_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.MAX_SESSIONS", 3)
    d = Desk()
    for n in range(5):
        d.hello(f"c-{n}")
    codes = [m.code for _, p in d.turn() for m in p.messages if isinstance(m, Refused)]
    assert codes == ["full", "full"] and len(d.endpoint.peers) == 3


def test_a_first_welcome_that_was_lost_is_said_again_and_a_later_one_is_not_first() -> None:
    d = Desk()
    d.hello("n-1")
    d.hello("w-1", node="n-1", address="tcp://w")
    for seconds in (0.0, 1.0, 1.0):
        d.now += seconds
        d.hello("n-1")
        welcomes = [m for p in d.to("n-1") for m in p.messages if isinstance(m, Welcome)]
        assert all(m.fresh for m in welcomes) and (welcomes or not seconds)
    d.loose("n-1", Ping())  # of the life before, perhaps
    d.turn()
    life = d.endpoint.peers["n-1"].info["life"]
    for number, known in enumerate((life - 1, life)):
        d.now += 1
        d.hello("n-1", b"again%d" % number, epoch=1, life=known)
        (welcome,) = [m for p in d.to(f"again{number}") for m in p.messages if isinstance(m, Welcome)]
        assert welcome.fresh == (known != life)  # only who says that it was welcomed to this life goes on with it
    assert list(d.machine.tables.workers) == ["w-1"]


# --- what is on the bulk socket --------------------------------------------------------------------------


def test_requests_that_no_receiver_would_make_do_not_reach_the_relay() -> None:
    d = Desk()
    for session in ("c-1", "c-2"):
        d.hello(session)
        d.loose(session, BulkHello(TOKEN), hop=session.encode() + b"b", channel="bulk")
    d.turn()
    rows = tuple((f"k{n}", 0, 1) for n in range(limits.CHUNK_ROWS + 1))
    long = "k" * (limits.MAX_KEY + 1)
    bad: tuple[Message, ...] = (
        Get(1, "", "c-2", "c-1", rows),
        Get(2, "", "c-2", "c-1", ((long, 0, 1),)),
        Data(3, "c-2", (), ((long, "unknown", ""),)),
        Data(4, "c-2", (), (("k", "unknown", "x" * (limits.MAX_TEXT + 1)),)),
        Ping(),
    )
    d.loose("c-1", *bad, hop=b"c-1b", channel="bulk")
    assert not d.turn() and not d.endpoint.relay.grants
    d.loose(
        "c-1",
        *[Get(n, "", "c-2", "c-1", rows[:1]) for n in range(limits.BULK_MESSAGES + 1)],
        hop=b"c-1b",
        channel="bulk",
    )
    assert not d.turn() and not d.endpoint.relay.grants
    d.loose("c-1", Get(9, "", "c-2", "c-1", rows[:-1]), hop=b"c-1b", channel="bulk")
    assert kinds(d.to("c-2b")) == ["Get"]
    assert [log.event for log in d.logged()] == ["peer.garbage"]


# --- peers that do not read --------------------------------------------------------------------------------


def test_hellos_in_a_row_are_answered_once() -> None:
    d = Desk()
    d.cluster()
    d.answers("c-1", 20)
    d.turn(1.0)
    for _ in range(100):
        d.hello("c-1")
    packets = d.to("c-1")
    assert kinds(packets).count("Welcome") == 1 and kinds(packets).count("Answer") == 20


def test_what_is_sent_again_comes_in_portions_as_they_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.peer.SENT_AGAIN", 1000)
    d = Desk()
    d.cluster()
    d.answers("c-1", 40)
    d.now += 1
    d.hello("c-1", b"new")
    got: list[int] = []
    packets = d.to("new")
    assert isinstance(packets[0].messages[0], Welcome)
    d.endpoint.peers["c-1"].control = b"c-1"  # `say` speaks over that one
    d.endpoint.control = {b"c-1": d.endpoint.peers["c-1"], b"w-1": d.endpoint.peers["w-1"]}
    rounds = 0
    while packets:
        rounds += 1
        numbered = [packet.seq - d.base("c-1") for packet in packets if packet.seq]
        assert len(numbered) <= 20
        got += numbered
        d.say("c-1", Ask(1000 + rounds, "fresh", None), ack=got[-1])  # more to say is added behind
        packets = [p for p in d.to("c-1") if p.seq]
        if rounds > 30:
            break
    assert got[:40] == list(range(1, 41)) and got == list(range(1, len(got) + 1))
    assert rounds > 3 and d.endpoint.peers["c-1"].behind == 0


def test_a_peer_that_says_hello_and_takes_nothing_is_given_up() -> None:
    d = Desk()
    d.cluster()
    d.answers("c-1", 20)
    sent = 0
    for _ in range(3 * limits.VAIN_REPEATS):
        d.now += 2 * limits.HELLO_PAUSE
        d.hello("c-1")
        sent += kinds(d.to("c-1")).count("Answer")
    assert "client.given_up" in [log.event for log in d.logged()]
    assert sent <= (limits.VAIN_REPEATS + 1) * 20
    d.now += 1
    d.hello("c-1")
    assert "c-1" in d.endpoint.peers  # it may begin anew


def test_a_full_socket_is_not_offered_everything_with_each_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.peer.SENT_AGAIN", 1000)
    d = Desk()
    d.cluster()
    d.answers("c-1", 40)
    offered = 0
    for _ in range(100):
        d.endpoint.undelivered(Route("control", b"c-1"), d.now)
        d.loose("c-1", Ping())
        offered += sum(packet.seq > 0 for packet in d.to("c-1", 0.001))
    assert offered <= 20
    assert "c-1" in d.endpoint.peers
    d.loose("c-1", Ping(), ack=40)
    d.turn(1.0)
    d.loose("c-1", Ping(), ack=40)
    d.turn()
    d.answers("c-1", 1)
    assert d.endpoint.peers["c-1"].behind == 0 and d.endpoint.peers["c-1"].session.unacked


def test_a_session_that_takes_nothing_is_given_up_before_it_fills_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.KEPT_BYTES", 100_000)
    monkeypatch.setattr("zdist.limits.CROWDED_BYTES", 50_000)
    d = Desk()
    d.cluster()
    d.hello("c-2")
    most = 0
    for n in range(3000):
        if "c-1" not in d.endpoint.peers:
            break
        d.say("c-1", Ask(n, "x" * 80, None))
        most = max(most, len(d.endpoint.peers["c-1"].session.unacked) if "c-1" in d.endpoint.peers else 0)
        d.turn(0.0001)
    (log,) = [log for log in d.logged() if log.event == "client.given_up"]
    assert 100_000 < log.fields["bytes"] < 200_000 and "does not read" in log.fields["reason"]
    assert "c-2" in d.endpoint.peers and "c-1" not in d.machine.peers
    d.hello("c-1")  # its connection is still full of what it did not take
    d.loose("c-1", Ping())
    assert not d.to("c-1")
    d.hello("c-1", b"another")
    assert kinds(d.to("another")) == ["Welcome"]


def test_packets_that_are_not_confirmed_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.KEPT_PACKETS", 200)
    d = Desk()
    d.cluster()
    for n in range(400):
        if "c-1" not in d.endpoint.peers:
            break
        d.say("c-1", Ask(n, "fence", None))
        d.turn()
    assert "c-1" not in d.endpoint.peers and n <= 200 + 2 * limits.WEIGH_EVERY


def test_one_large_packet_is_no_reason_to_give_a_session_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.KEPT_BYTES", 1000)
    d = Desk()
    d.cluster()
    d.say("c-1", Ask(1, "x" * 80, None), *[Ask(n, "workers", None) for n in range(5)], ack=0)
    d.turn()
    d.endpoint.peers["c-1"].session.wrap([Answer(1, True, "x" * 5000)])
    d.endpoint.peers["c-1"].session.acknowledge(d.endpoint.peers["c-1"].session.sent - 1)
    d.turn(1.0)
    d.turn(1.0)
    assert "c-1" in d.endpoint.peers


def test_the_most_behind_goes_when_all_together_are_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.KEPT_BYTES_TOTAL", 30_000)
    d = Desk()
    for n, count in ((1, 30), (2, 200), (3, 30)):
        d.hello(f"c-{n}")
        d.answers(f"c-{n}", count)
    d.turn(1.0)  # what it has not confirmed by the next sweep counts
    d.turn(1.0)
    assert list(d.endpoint.peers) == ["c-1", "c-3"]


def test_a_client_with_much_unread_is_told_where_values_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.CROWDED_BYTES", 50_000)
    d = Desk()
    d.cluster()
    attempt = (1 << 40) + 1
    kept: list[tuple[Any, ...]] = []
    for n in range(100):
        d.say("c-1", Submit(FN, False, n, (), ((f"k{n}", b"", ()),)))
        d.turn()
        d.say("w-1", Done(((f"k{n}", attempt + n, 5, 1000, b"v" * 1000, "bytes"),)))
        kept += [row for p in d.to("c-1", 0.1) for m in p.messages if isinstance(m, Finished) for row in m.rows]
    assert [row[0] for row in kept] == [f"k{n}" for n in range(100)]
    values = [row for row in kept if row[3] is not None]
    assert 40 <= len(values) < 70 and all(row[4] == ("w-1",) for row in kept if row[3] is None)
    last = d.endpoint.peers["c-1"].session.sent - d.base("c-1")
    d.loose("c-1", Ping(), ack=last)
    d.turn(1.0)
    d.say("c-1", Submit(FN, False, 200, (), (("again", b"", ()),)), ack=last)
    d.turn()
    d.say("w-1", Done((("again", attempt + 100, 5, 1000, b"v" * 1000, "bytes"),)))
    (row,) = [row for p in d.to("c-1") for m in p.messages if isinstance(m, Finished) for row in m.rows]
    assert row[3] == b"v" * 1000


def test_a_broker_that_was_stopped_gives_nobody_up_before_it_has_read() -> None:
    d = Desk()
    d.cluster()
    d.turn(1.0)
    d.turn(10 * limits.LEASE_CLIENT)
    assert set(d.endpoint.peers) == {"w-1", "c-1"}
    d.loose("c-1", Ping())  # which lay in the socket
    for _ in range(int(limits.LEASE_CLIENT)):
        d.turn(1.0)
    assert set(d.endpoint.peers) == {"c-1"}
    for _ in range(3):
        d.turn(1.0)
    assert not d.endpoint.peers


def test_a_worker_lives_as_long_as_its_node_speaks_for_it() -> None:
    """It may hold the GIL. Both are given up when both have been silent for a lease, and soon then."""
    d = Desk()
    d.hello("n-1", name="n")
    d.hello("w-1", node="n-1", address="tcp://w")
    for _ in range(int(3 * limits.LEASE_NODE)):
        d.loose("n-1", Ping())
        d.turn(1.0)
    assert set(d.endpoint.peers) == {"n-1", "w-1"}
    for _ in range(int(limits.LEASE_NODE) - 1):
        d.turn(1.0)
    assert set(d.endpoint.peers) == {"n-1", "w-1"}
    d.turn(0.5)
    d.turn(0.5)
    assert not d.endpoint.peers


def test_pings_are_answered_once_a_second_all_together() -> None:
    d = Desk()
    for session in ("c-1", "n-1"):
        d.hello(session)
    d.now = 5.1
    d.turn()
    for session in ("c-1", "n-1", "n-1"):
        d.loose(session, Ping())
        assert d.turn(0.1) == []
    assert d.endpoint.deadline() == 6.0
    d.now = 6.0
    answers = [(route.hop, message) for route, packet in d.turn() for message in packet.messages]
    assert answers == [(b"c-1", Pong()), (b"n-1", Pong())]
    assert d.turn(1.0) == []
