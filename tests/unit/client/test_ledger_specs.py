"""A client that has a key from others and is told how that is computed."""

from __future__ import annotations

from test_ledger import PURE, answered, connected, deny, finish, kinds, turn

from zdist.core.entry import PENDING
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL
from zdist.protocol import messages as m

FN = b"g" * 32
FUNCTIONS = ((FN, "g", b"blob"),)
OPTIONS = tuple(m.Options(retries=1))
B_OF_A_OF_DATA = (
    ("data", b"", b"", (), ()), ("a", FN, b"args of a", ("data",), ()), ("b", FN, b"args of b", ("a",), OPTIONS)
)  # fmt: skip


def told(rows: tuple[tuple[str, bytes, bytes, tuple[str, ...], tuple[object, ...]], ...]) -> Ledger:
    ledger = connected()
    ledger.want(["b"])
    turn(ledger)
    ledger.handle(CONTROL, m.Specs(FUNCTIONS, rows), 0.0)
    ledger.check()
    return ledger


def anew(ledger: Ledger) -> list[m.Message]:
    """What a broker that takes the other's place is told."""
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 1.5}), 10.0)
    ledger.tick(11.5)
    found = turn(ledger, 11.5)
    ledger.check()
    return found


def test_it_submits_what_it_has_learned_while_a_successor_waits_for_workers() -> None:
    ledger = connected()
    ledger.welcomed(m.Welcome(2, 0, True, {"recover": 1.5}), 10.0)
    ledger.want(["b"])
    ledger.handle(CONTROL, m.Specs(((FN, "g", b"blob"),), (("b", FN, b"args of b", (), OPTIONS),)), 10.0)
    assert turn(ledger, 10.0) == []
    assert kinds(turn(ledger, 11.5)) == ["Define", "Submit"]
    ledger.check()


def test_it_submits_it_to_the_next_broker() -> None:
    ledger = told(B_OF_A_OF_DATA)
    assert turn(ledger) == []
    messages = anew(ledger)
    assert kinds(messages) == ["Claim", "Want", "Define", "Claim", "Submit", "Claim", "Submit", "Ask"]
    data, want, define, lineage, first, wanted, second, _ = messages
    assert data.rows == (("data", 0),) and want.keys == ("data",)
    assert define == m.Define(FN, "g", b"blob")
    assert lineage.rows == (("a", m.ANY_SPEC),) and first.rows == (("a", b"args of a", ("data",)),)
    assert wanted.rows == (("b", m.ANY),) and second.rows == (("b", b"args of b", ("a",)),)
    (release,) = answered(ledger, 11.5)
    assert [key for key, _ in release.rows] == ["a"]  # only b depends on it
    assert first.named and second.named and second.options == OPTIONS


def test_a_result_counts_with_the_next_broker_by_its_attempt() -> None:
    ledger = told(B_OF_A_OF_DATA)
    finish(ledger, "b", None)
    assert [row for message in anew(ledger) if type(message) is m.Claim for row in message.rows][-1] == ("b", 1)


def test_when_its_future_is_gone_nothing_is_left() -> None:
    ledger = told(B_OF_A_OF_DATA)
    ledger.dropped.append(ledger.entries["b"])
    assert kinds(turn(ledger)) == ["Release"] and not ledger.entries and not ledger.imports
    ledger.handle(CONTROL, m.Specs(FUNCTIONS, B_OF_A_OF_DATA), 0.0)
    assert not ledger.entries and not ledger.imports
    ledger.check()


def test_what_it_knows_itself_stays_as_it_is() -> None:
    ledger = connected()
    ledger.want(["b"])
    (own,) = ledger.submit(PURE, [("a", b"mine", ())])
    turn(ledger)
    ledger.handle(CONTROL, m.Specs(FUNCTIONS, B_OF_A_OF_DATA), 0.0)
    assert own.work is PURE and own.row == ("a", b"mine", ()) and own.status == PENDING
    assert ledger.entries["b"].parents == (own,) and "data" not in ledger.entries
    ledger.check()


def test_what_fails_there_fails_with_what_it_was_made_of() -> None:
    ledger = told(B_OF_A_OF_DATA)
    (made,) = ledger.submit(PURE, [("c", b"", ("b",))])
    assert kinds(turn(ledger)) == ["Define", "Submit"]
    deny(ledger, 0.0, ("b", "by hand"), ("c", "depends on b: by hand"))
    ledger.resolved.clear()
    assert made.status == "cancelled" and not ledger.entries
    ledger.check()
