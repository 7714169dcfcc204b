"""The relay: routing, the budget of bytes, fairness, and peers that stall, vanish or lie."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from zdist.errors import ProtocolError
from zdist.limits import (
    ATTACH_WAIT,
    CHUNK,
    GRANT_TIMEOUT,
    MIB,
    QUEUED_REQUESTS,
    REFUSED_KEYS,
    RELAY_BUDGET,
    RELAY_CEILING,
    TAKE_TIMEOUT,
    WHOLE,
)
from zdist.protocol.messages import Buffer, Data, Get, HelloPlease, Probe, Taken
from zdist_broker.relay import SMALL, STILL, TURN, UNPROVEN, Relay


class Bench:
    def __init__(self, *sessions: str) -> None:
        self.relay = Relay()
        self.now = 0.0
        for session in sessions:
            self.relay.joined(session, 0.0)

    def send(self, session: str, message: object) -> dict[str, list[object]]:
        self.relay.handle(session, message, self.now)  # type: ignore[arg-type]
        return self.out()

    def get(
        self, session: str, req: int, size: int = CHUNK, holder: str = "w-0", key: str = "k"
    ) -> dict[str, list[object]]:
        return self.send(session, Get(req, "token", holder, session, ((key, 0, size),)))

    def data(self, session: str, receiver: str, req: int, size: int = CHUNK) -> dict[str, list[object]]:
        return self.send(session, Data(req, receiver, (("k", 1, size, 0, (Buffer(memoryview(bytes(size))),)),), ()))

    def tick(self, seconds: float) -> dict[str, list[object]]:
        self.now += seconds
        self.relay.tick(self.now)
        return self.out()

    def out(self) -> dict[str, list[object]]:
        self.relay.check()
        return {s: list(m) for s, m in self.relay.take().items()}


def absent(out: dict[str, list[object]], session: str) -> list[str]:
    return [code for m in out.get(session, []) if isinstance(m, Data) for _, code, _ in m.absent]


def test_a_request_goes_to_its_holder_and_the_data_comes_back() -> None:
    b = Bench("c-0", "w-0")
    get = Get(5, "token", "w-0", "c-0", (("k", 0, 100),))
    assert b.send("c-0", get) == {"w-0": [get]}
    assert b.relay.granted == 100
    data = Data(5, "c-0", (("k", 1, 100, 0, (b"x" * 60,)),), ())
    assert b.send("w-0", data) == {"c-0": [data]}
    assert b.relay.granted == 60
    assert b.send("c-0", Taken(5)) == {}
    assert b.relay.granted == 0


def test_an_answer_without_data_costs_nothing() -> None:
    b = Bench("c-0", "w-0")
    b.get("c-0", 1)
    out = b.send("w-0", Data(1, "c-0", (), (("k", "unknown", "not here"),)))
    assert absent(out, "c-0") == ["unknown"]
    assert b.relay.granted == 0


def test_nobody_asks_in_anothers_name_or_answers_what_was_not_asked() -> None:
    b = Bench("c-0", "c-1", "w-0", "w-1")
    out = b.send("c-1", Get(1, "token", "w-0", "c-0", (("k", 0, 10),)))
    assert out["w-0"][0].receiver == "c-1"  # type: ignore[attr-defined]
    assert b.data("w-1", "c-1", 1, 10) == {}
    assert b.data("w-0", "c-0", 1, 10) == {}
    assert list(b.data("w-0", "c-1", 1, 10)) == ["c-1"]
    assert b.data("w-0", "c-1", 1, 10) == {}
    assert b.relay.ignored == 3


def test_the_budget_bounds_what_is_under_way() -> None:
    clients = [f"c-{n}" for n in range(2 * RELAY_BUDGET // CHUNK)]
    b = Bench("w-0", *clients)
    passed = sum(len(b.get(c, 1).get("w-0", [])) for c in clients)
    assert passed == RELAY_BUDGET // CHUNK
    assert RELAY_BUDGET - CHUNK < b.relay.granted <= RELAY_BUDGET
    b.data("w-0", "c-0", 1)
    assert len(b.send("c-0", Taken(1))["w-0"]) == 1


def test_a_value_in_one_piece_is_passed_on_also_to_a_receiver_that_has_not_taken_anything() -> None:
    b = Bench("w-0", "c-0")
    assert UNPROVEN < WHOLE
    assert len(b.get("c-0", 1, WHOLE)["w-0"]) == 1
    assert not b.get("c-0", 2, 1).get("w-0")  # and nothing else meanwhile
    b.data("w-0", "c-0", 1, WHOLE)
    assert len(b.send("c-0", Taken(1))["w-0"]) == 1


def test_receivers_are_served_by_turns() -> None:
    b = Bench("w-0", "c-0", "c-1")
    served = []
    for req in range(30):
        for get in b.get("c-0", req).get("w-0", []):
            served.append((get.receiver, get.req))  # type: ignore[attr-defined]
    greedy = len(served)
    assert greedy < RELAY_BUDGET // CHUNK  # something is left for others
    for req in range(3):
        for get in b.get("c-1", req).get("w-0", []):
            served.append((get.receiver, get.req))  # type: ignore[attr-defined]
    assert ("c-1", 0) in served
    for _ in range(8):
        receiver, req = served.pop(0)
        b.data("w-0", receiver, req)
        for get in b.send(receiver, Taken(req)).get("w-0", []):
            served.append((get.receiver, get.req))  # type: ignore[attr-defined]
    assert {receiver for receiver, _ in served} == {"c-0", "c-1"} or ("c-1", 2) not in served


def test_many_small_requests_are_not_held_up() -> None:
    b = Bench("w-0", "c-0")
    assert sum(len(b.get("c-0", n, 1000).get("w-0", [])) for n in range(500)) == 500


def served(b: Bench, *receivers: str, host: str = "h") -> list[str]:
    """These, all on one host, ask for a turn and more at once; whose requests are passed on, in order."""
    for receiver in receivers:
        b.relay.joined(receiver, b.now, host)
        b.relay.proven[receiver] = None
    passed: list[str] = []
    for receiver in receivers:
        for req in range(2 * TURN // CHUNK):
            passed += passed_on(b.get(receiver, req))
    return passed


def passed_on(out: dict[str, list[object]]) -> list[str]:
    return [m.receiver for m in out.get("w-0", []) if isinstance(m, Get)]


def take(b: Bench, receiver: str, req: int) -> list[str]:
    """The receiver gets the answer to this request and takes it; whose requests are passed on then."""
    b.data("w-0", receiver, req)
    return passed_on(b.send(receiver, Taken(req)))


def test_two_receivers_of_a_host_are_served_at_a_time_each_for_its_turn() -> None:
    b = Bench("w-0")
    assert set(served(b, "c-0", "c-1", "c-2")) == {"c-0", "c-1"}
    turn = -(-TURN // CHUNK)
    got = sum(receiver == "c-0" for receiver, _ in b.relay.grants)
    for req in range(turn - 1):
        passed = take(b, "c-0", req)
        assert passed in (["c-0"], [])
        got += len(passed)
    assert got == turn
    assert set(take(b, "c-0", turn - 1)) == {"c-1", "c-2"}  # only when the first has taken all of its own
    assert "c-0" in b.relay.queues


def test_a_receiver_alone_on_its_host_goes_on_after_its_turn() -> None:
    b = Bench("w-0")
    served(b, "c-0", "c-1")
    for req in range(2 * TURN // CHUNK):
        take(b, "c-0", req)
    assert "c-0" not in b.relay.queues


def test_receivers_of_several_hosts_do_not_wait_for_each_other() -> None:
    b = Bench("w-0")
    assert set(served(b, "c-0", "c-1")) | set(served(b, "c-2", host="other")) == {"c-0", "c-1", "c-2"}


def test_small_requests_wait_for_no_turn() -> None:
    b = Bench("w-0")
    served(b, "c-0", "c-1", "c-2")
    assert "w-0" in b.get("c-3", 1, SMALL)


def test_receivers_of_many_hosts_get_their_shares() -> None:
    receivers = [f"c-{i}" for i in range(40)]
    b = Bench("w-0")
    got = dict.fromkeys(receivers, 0)
    asked: list[tuple[str, int]] = []

    def note(out: dict[str, list[object]]) -> None:
        asked.extend((m.receiver, m.req) for m in out.get("w-0", []) if isinstance(m, Get))

    for i, receiver in enumerate(receivers):
        b.relay.joined(receiver, b.now, f"host-{i}")
        b.relay.proven[receiver] = None
    for receiver in receivers:
        for req in range(20):
            note(b.get(receiver, req))
    for _ in range(400):
        receiver, req = asked.pop(0)
        got[receiver] += 1
        b.data("w-0", receiver, req)
        note(b.send(receiver, Taken(req)))
    assert min(got.values()) >= 8  # of ten; the first had more while they were alone


def test_small_requests_take_nobodys_turn() -> None:
    b = Bench("w-0")
    for receiver in ("c-0", "c-1", "c-2"):
        b.relay.joined(receiver, b.now, "h")
    for receiver in ("c-0", "c-1"):
        assert "w-0" in b.get(receiver, 1, 1000)
    assert "w-0" in b.get("c-2", 1, MIB)


def test_who_stands_still_holds_up_nobody() -> None:
    b = Bench("w-0")
    assert set(served(b, "c-0", "c-1", "c-2")) == {"c-0", "c-1"}
    assert b.relay.deadline() == STILL
    assert set(passed_on(b.tick(STILL))) == {"c-2"}
    assert b.relay.deadline() == GRANT_TIMEOUT  # nobody waits for a turn any more


def test_a_holder_that_is_about_to_connect_is_waited_for() -> None:
    b = Bench("c-0")
    assert b.get("c-0", 1) == {}
    assert b.relay.deadline() == ATTACH_WAIT
    b.relay.joined("w-0", 0.5)
    assert list(b.out()) == ["w-0"]
    b.get("c-0", 2, holder="w-1")
    assert absent(b.tick(ATTACH_WAIT), "c-0") == ["unreachable"]


def test_a_holder_that_goes_is_answered_for() -> None:
    b = Bench("w-0", "c-0", "c-1")
    requests = RELAY_BUDGET // CHUNK
    for req in range(requests):
        b.get("c-0", req)
    b.get("c-1", 0)
    b.data("w-0", "c-1", 0)
    b.relay.gone("w-0", 1.0)
    out = b.out()
    assert absent(out, "c-0") == ["unreachable"] * requests
    assert "c-1" not in out  # it has what it asked for
    assert b.relay.granted == CHUNK
    b.send("c-1", Taken(0))
    assert b.relay.granted == 0


def test_a_broken_connection_frees_what_went_over_it() -> None:
    b = Bench("w-0", "c-0")
    b.get("c-0", 1)
    b.data("w-0", "c-0", 1)
    b.get("c-0", 2)
    b.relay.detached("c-0", 1.0)
    assert b.out() == {} and b.relay.granted == 0
    assert b.data("w-0", "c-0", 2) == {}


def test_a_receiver_that_gives_up_frees_its_grant_before_the_data() -> None:
    b = Bench("w-0", "c-0")
    requests = RELAY_BUDGET // CHUNK
    for req in range(requests):
        b.get("c-0", req)
    queued = sum(len(q) for q in b.relay.queues.values())
    assert queued
    b.send("c-0", Taken(requests - 1))
    assert sum(len(q) for q in b.relay.queues.values()) == queued - 1
    b.send("c-0", Taken(0))
    assert b.data("w-0", "c-0", 0) == {}
    assert b.send("c-0", Taken(77)) == {}


def test_a_receiver_that_does_not_take_loses_the_budget_but_gets_no_more() -> None:
    b = Bench("w-0", "c-0", "c-1")
    b.get("c-0", 1)
    b.data("w-0", "c-0", 1)
    b.get("c-0", 2)
    b.tick(TAKE_TIMEOUT - 1)
    b.data("w-0", "c-0", 2)
    b.tick(1)
    assert b.relay.granted == CHUNK
    assert b.get("c-0", 3) == {}
    assert list(b.get("c-1", 1)) == ["w-0"]
    assert list(b.send("c-0", Taken(1))) == ["w-0"]  # it reads again


def stall(b: Bench, *receivers: str) -> int:
    """These ask for all that they get, have it sent, and take nothing until it is reclaimed; bytes of that."""
    sent = 0
    passed: list[object] = []
    for receiver in receivers:
        for req in range(RELAY_BUDGET // CHUNK):
            passed += b.get(receiver, req).get("w-0", ())
    while passed:
        get = passed.pop(0)
        assert isinstance(get, Get)
        passed += b.data("w-0", get.receiver, get.req).get("w-0", ())
        sent += CHUNK
    b.tick(TAKE_TIMEOUT)
    return sent


def test_a_slow_receiver_is_no_stalled_one() -> None:
    b = Bench("w-0", "c-0")
    for req in range(6):
        b.get("c-0", req)
        b.data("w-0", "c-0", req)
    for req in range(6):  # one after the other, each in time
        assert not b.relay.debts
        b.tick(0.9 * TAKE_TIMEOUT)
        b.send("c-0", Taken(req))
    assert not (b.relay.debts or b.relay.granted or b.relay.took)


def test_a_greedy_receiver_that_stalls_holds_the_others_up_for_a_moment_only() -> None:
    b = Bench("w-0", "c-live", *(f"c-{n}" for n in range(10)))
    stall(b, *(f"c-{n}" for n in range(10)))
    assert list(b.get("c-live", 99)) == ["w-0"]
    b.data("w-0", "c-live", 99)
    b.send("c-live", Taken(99))  # it does as it should
    under = sum(len(b.get("c-live", req).get("w-0", ())) for req in range(20))
    assert under >= RELAY_BUDGET // CHUNK // 5  # enough to keep a link busy


def test_what_lies_in_the_queues_of_stalled_receivers_counts_up_to_the_ceiling() -> None:
    stalled, more = [f"c-{n}" for n in range(10)], [f"c-{n}" for n in range(10, 40)]
    b = Bench("w-0", "c-live", *stalled, *more)
    first = stall(b, *stalled)
    assert RELAY_BUDGET / 2 < b.relay.owed == first <= RELAY_BUDGET  # as none of them has proven itself
    assert list(b.get("c-live", 0)) == ["w-0"]  # there is room for others still
    b.data("w-0", "c-live", 0)
    b.send("c-live", Taken(0))
    second = stall(b, *more)
    assert RELAY_CEILING - CHUNK < b.relay.owed + b.relay.granted <= RELAY_CEILING and second
    assert b.get("c-live", 1) == {}  # no room for anybody: it waits
    for receiver in stalled:
        b.relay.detached(receiver, b.now)  # their connections were closed, and what was queued there is freed
    assert "w-0" in b.out()
    assert b.relay.owed <= second


def test_debtors_are_asked_whether_they_are_there() -> None:
    b = Bench("w-0", "c-0", "c-1")
    stall(b, "c-0")
    assert b.relay.deadline() == b.now + GRANT_TIMEOUT
    assert b.tick(GRANT_TIMEOUT) == {"c-0": [HelloPlease()]}
    assert b.tick(GRANT_TIMEOUT - 1) == {}
    b.relay.joined("c-0", b.now)  # it is, and has taken nothing yet
    assert b.relay.owed
    for _, req in list(b.relay.debts):
        b.send("c-0", Taken(req))
    assert b.relay.owed == 0 and not b.relay.debtors
    assert HelloPlease() not in b.tick(10 * GRANT_TIMEOUT).get("c-0", [])


def test_ten_greedy_receivers_get_the_same() -> None:
    b = Bench("w-0", *(f"c-{n}" for n in range(10)))
    served: dict[str, int] = {}
    under: list[tuple[str, int]] = []
    for n in range(10):
        for req in range(100):
            under += [(m.receiver, m.req) for m in b.get(f"c-{n}", req).get("w-0", ()) if isinstance(m, Get)]
    for _ in range(500):
        receiver, req = under.pop(0)
        served[receiver] = served.get(receiver, 0) + 1
        b.data("w-0", receiver, req)
        under += [(m.receiver, m.req) for m in b.send(receiver, Taken(req)).get("w-0", ()) if isinstance(m, Get)]
    assert len(served) == 10 and max(served.values()) <= 1.5 * min(served.values())


def test_a_holder_that_does_not_answer_is_given_up() -> None:
    b = Bench("w-0", "c-0")
    b.get("c-0", 1)
    assert b.relay.deadline() == GRANT_TIMEOUT
    assert absent(b.tick(GRANT_TIMEOUT), "c-0") == ["busy"]
    assert b.relay.granted == 0 and b.relay.deadline() is None


def test_a_holder_that_sends_more_than_was_asked_for() -> None:
    b = Bench("w-0", "c-0")
    b.get("c-0", 1, 100)
    assert absent(b.data("w-0", "c-0", 1, 101), "c-0") == ["busy"]
    assert [c.event for c in b.relay.commands] == ["relay.oversize"]
    assert b.relay.granted == 0


def test_bad_requests_are_ignored() -> None:
    b = Bench("w-0", "c-0")
    assert b.send("c-0", Get(1, "", "w-0", "c-0", ())) == {}
    assert b.get("c-0", 1, -5) == {}
    b.get("c-0", 1)
    assert b.get("c-0", 1) == {}
    for req in range(2 * QUEUED_REQUESTS):
        b.get("c-0", req, holder="w-9")
    assert len(b.relay.early.gets["w-9"]) == QUEUED_REQUESTS
    assert b.relay.ignored == 3 + QUEUED_REQUESTS
    with pytest.raises(ProtocolError, match="Probe from c-0"):
        b.relay.handle("c-0", Probe(1, ""), 0.0)


class RelayLife(RuleBasedStateMachine):
    """Anything in any order: the books agree after each step and are empty when everybody has gone; and once all do as
    they should, whoever has asked and still waits is answered."""

    @initialize()
    def begin(self) -> None:
        self.bench = Bench()
        for session in "abc":
            self.bench.relay.joined(session, 0.0, "host")
        self.asked: list[tuple[str, str, int, int]] = []
        self.waiting: dict[tuple[str, int], None] = {}  # receiver and request: neither answered nor given up
        self.got: dict[tuple[str, int], None] = {}  # answered with data, not taken

    @rule(r=st.sampled_from("abc"), h=st.sampled_from("abcd"), req=st.integers(0, 9), size=st.integers(1, 8 * MIB))
    def get(self, r: str, h: str, req: int, size: int) -> None:
        ignored = self.bench.relay.ignored
        out = self.bench.get(r, req, size, holder=h)
        if self.bench.relay.ignored == ignored and r in self.bench.relay.connected:
            self.waiting[r, req] = None
        self.note(out)

    @rule(n=st.integers(0, 99), take=st.booleans(), share=st.integers(0, 4))
    def answer(self, n: int, take: bool, share: int) -> None:
        if self.asked:
            holder, receiver, req, size = self.asked.pop(n % len(self.asked))
            self.note(self.bench.data(holder, receiver, req, size * share // 4))
            if take:
                self.taken(receiver, req)

    @rule(r=st.sampled_from("abc"), req=st.integers(0, 9))
    def taken(self, r: str, req: int) -> None:
        self.waiting.pop((r, req), None)
        self.got.pop((r, req), None)
        self.note(self.bench.send(r, Taken(req)))

    @rule(s=st.sampled_from("abcd"), how=st.sampled_from(("gone", "detached", "joined")))
    def session(self, s: str, how: str) -> None:
        if how == "joined":
            self.bench.relay.joined(s, self.bench.now, "host")
        else:  # it knows nothing of what it has asked
            getattr(self.bench.relay, how)(s, self.bench.now)
            for table in (self.waiting, self.got):
                for name in [name for name in table if name[0] == s]:
                    del table[name]
        self.note(self.bench.out())

    @rule(seconds=st.sampled_from((0.01, 0.1, 1.0, 11.0)))
    def pause(self, seconds: float) -> None:
        self.note(self.bench.tick(seconds))

    def note(self, out: dict[str, list[object]]) -> None:
        for session, messages in out.items():
            for m in messages:
                if isinstance(m, Get):
                    self.asked.append((session, m.receiver, m.req, min(m.rows[0][2], CHUNK)))
                elif isinstance(m, Data):
                    self.waiting.pop((session, m.req), None)
                    if m.rows:
                        self.got[session, m.req] = None

    def teardown(self) -> None:
        relay = self.bench.relay
        for _ in range(200):
            while self.got:
                self.taken(*next(iter(self.got)))
            for _ in range(len(self.asked)):
                self.answer(0, True, 4)
            self.pause(1.0)
        assert not self.waiting
        for s in "abcd":
            relay.gone(s, self.bench.now)
        self.bench.tick(ATTACH_WAIT)
        assert not (relay.granted or relay.owed or relay.grants or relay.sent or relay.queues or relay.early.gets)
        assert not (relay.debts or relay.used or relay.debtors or relay.took)


TestRelayLife = RelayLife.TestCase
TestRelayLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_refusals_that_a_receiver_does_not_confirm_are_bounded() -> None:
    b = Bench("c-0", "c-1")
    b.relay.alive = lambda session: session != "w-gone"
    rows = tuple((f"k{n}", 0, 1) for n in range(500))
    told = 0
    for req in range(1000):
        told += len(absent(b.send("c-0", Get(req, "", "w-gone", "c-0", rows)), "c-0"))
    assert 60_000 < told <= REFUSED_KEYS
    assert absent(b.send("c-1", Get(1, "", "w-gone", "c-1", rows)), "c-1") == ["unknown"] * 500  # others are answered
    for req in range(1000):
        b.send("c-0", Taken(req))
    assert not b.relay.refusals.keys.get("c-0")
    assert len(absent(b.send("c-0", Get(5000, "", "w-gone", "c-0", rows)), "c-0")) == 500


def test_answers_without_data_count_as_refusals() -> None:
    b = Bench("c-0", "w-0")
    passed = 0
    for req in range(1000):
        b.get("c-0", req)
        out = b.send("w-0", Data(req, "c-0", (), tuple((f"k{n}", "unknown", "") for n in range(500))))
        passed += len(absent(out, "c-0"))
    assert passed <= REFUSED_KEYS and b.relay.granted == 0


def test_what_a_receiver_that_has_left_asked_of_a_late_holder_is_forgotten() -> None:
    b = Bench("c-0", "c-1")
    for receiver in ("c-0", "c-1"):
        b.get(receiver, 1, holder="w-9")
    b.relay.gone("c-0", b.now)
    b.relay.joined("w-9", b.now)
    assert [get.receiver for get in b.out()["w-9"] if isinstance(get, Get)] == ["c-1"]


def test_requests_for_holders_that_are_not_connected_are_bounded_per_receiver() -> None:
    b = Bench("c-0")
    for req in range(3 * QUEUED_REQUESTS):
        b.get("c-0", req, holder=f"w-{req % 50}")
    assert sum(map(len, b.relay.early.gets.values())) == QUEUED_REQUESTS
    for req in range(3 * QUEUED_REQUESTS):
        b.send("c-0", Taken(req))
    assert not b.relay.early.gets and not b.relay.early.counts
