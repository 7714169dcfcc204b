"""The session layer delivers each message once and in order, whatever connections lose."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zdist import limits
from zdist.core.session import Session, base_of, batches, weight_of
from zdist.protocol.messages import Answer, Buffer, Define, Erred, Finished, Message, Packet, Pong, Release, Run


class TwoSides(RuleBasedStateMachine):
    """Two sessions over a connection that is FIFO until it breaks and loses any suffix."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = (Session("c-1"), Session("c-1"))
        self.wires: tuple[list[Packet], list[Packet]] = ([], [])  # towards side 0, towards side 1
        self.sent: tuple[list[int], list[int]] = ([], [])
        self.got: tuple[list[int], list[int]] = ([], [])
        self.up = True

    @rule(side=st.integers(0, 1), count=st.integers(1, 3))
    def say(self, side: int, count: int) -> None:
        numbers = [len(self.sent[side]) + i for i in range(count)]
        self.sent[side].extend(numbers)
        packet = self.sides[side].wrap([Release((("k", n),)) for n in numbers])
        if self.up:
            self.wires[1 - side].append(packet)

    @precondition(lambda self: self.up)
    @rule(side=st.integers(0, 1))
    def acknowledge(self, side: int) -> None:
        self.wires[1 - side].append(self.sides[side].loose())

    @rule(side=st.integers(0, 1), count=st.integers(1, 4))
    def arrive(self, side: int, count: int) -> None:
        for _ in range(min(count, len(self.wires[side]))):
            packet = self.wires[side].pop(0)
            fresh = self.sides[side].accept(packet, 0.0)
            assert fresh is not None, "no gap within one connection"
            if fresh:
                self.got[side].extend(m.rows[0][1] for m in packet.messages if isinstance(m, Release))

    @precondition(lambda self: self.up)
    @rule(kept=st.tuples(st.integers(0, 3), st.integers(0, 3)))
    def break_connection(self, kept: tuple[int, int]) -> None:
        self.up = False
        for wire, number in zip(self.wires, kept, strict=True):
            del wire[number:]

    @precondition(lambda self: not self.up and not self.wires[0] and not self.wires[1])
    @rule()
    def greet(self) -> None:
        self.up = True
        for side in (0, 1):
            self.wires[1 - side].extend(self.sides[side].resend(self.sides[1 - side].received))

    @invariant()
    def once_and_in_order(self) -> None:
        for side in (0, 1):
            assert self.got[side] == self.sent[1 - side][: len(self.got[side])]
            self.sides[side].check()

    def teardown(self) -> None:
        self.arrive(0, 1000)
        self.arrive(1, 1000)
        if not self.up:
            self.greet()
        self.arrive(0, 1000)
        self.arrive(1, 1000)
        for side in (0, 1):
            assert self.got[side] == self.sent[1 - side]
            self.acknowledge(side)
            self.arrive(1 - side, 1000)
            assert not self.sides[1 - side].unacked


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_gap_is_told_from_a_repetition() -> None:
    a, b = Session("c-1"), Session("c-1")
    first, second, third = (a.wrap([Release(())]) for _ in range(3))
    assert b.accept(first, 0.0) is True
    assert b.accept(first, 0.0) is False
    assert b.accept(third, 0.0) is None
    assert b.accept(second, 0.0) is True and b.received == 2


def test_acknowledgements_are_due_by_number_or_by_age() -> None:
    a, b = Session("c-1"), Session("c-1")
    assert not b.ack_due(100.0)
    b.accept(a.wrap([Release(())]), 1.0)
    assert not b.ack_due(1.0) and b.ack_due(1.0 + limits.ACK_DELAY)
    for _ in range(limits.ACK_EVERY - 1):
        b.accept(a.wrap([Release(())]), 1.0)
    assert b.ack_due(1.0)
    b.loose()
    assert not b.ack_due(100.0)


def test_what_users_make_large_travels_in_packets_of_its_own() -> None:
    small = Release(())
    large = Answer(1, True, "x")
    assert batches([small] * 3) == [[small] * 3]
    assert batches([small, large, small, small]) == [[small], [large], [small, small]]
    assert [len(batch) for batch in batches([small] * 20)] == [8, 8, 4]
    assert batches([large, large]) == [[large], [large]]


# --- what it takes to keep a packet --------------------------------------------------------------------------


def weighed(*messages: Message) -> int:
    return weight_of(Packet("c-1", 1, 0, messages), set())


def test_what_the_tables_of_the_sender_hold_anyway_is_not_counted() -> None:
    """Functions and arguments are there as long as the tasks; values that travel along are not."""
    large = bytes(10_000)
    assert weighed(Define(b"f", "inc", large)) == 100
    deps = (("x", 5, ("w-1",), b"12345"), ("y", 5, ("w-1",), None))
    assert weighed(Run(b"f", (("a", 1, 0, 2, large, ()), ("b", 1, 0, 2, large, deps)))) == 2 * 100 + 5
    rows = (("a", 1, 7, large, (), "bytes"), ("b", 1, 7, None, ("w-1",), "bytes"), ("c", 1, 3, Buffer(b"123"), (), "x"))
    assert weighed(Finished(rows)) == 3 * 200 + 10_000 + 3


def test_of_anything_else_all_parts_are_counted_and_shared_ones_once() -> None:
    error = bytes(1000)
    one = weighed(Erred((("a", 1, 5, error, ""),)))
    assert weighed(Erred((("a", 1, 5, error, ""), ("b", 1, 5, error, "")))) < one + 500
    assert weighed(Erred((("a", 1, 5, error, ""), ("b", 1, 5, bytes(1000), "")))) > one + 1000
    assert weighed(Answer(1, True, {"key": ["text"]})) == 10 + 10 + (50 + 3) + 60 + (50 + 4)
    assert weighed(Answer(1, True, Buffer(b"12345"))) == 10 + 10 + 50 + 5


def test_what_was_said_in_another_life_is_neither_taken_in_nor_confirms_anything() -> None:
    lives = [base_of(epoch, life) for epoch in (7, 8) for life in (1, 2)]
    for base in lives:
        session = Session("s", base)
        kept = session.wrap([Pong()])
        for other in lives:
            if other == base:
                continue
            assert session.accept(Packet("s", other + 1, other + 1, ()), 0.0) is not True
            session.resend(other + 5)
            assert list(session.unacked) == [kept]
        assert session.accept(Packet("s", base + 1, base + 1, ()), 0.0) is True
        assert not session.unacked
