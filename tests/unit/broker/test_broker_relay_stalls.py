"""The relay: what one receiver or holder fails to do is not laid to another's account."""

from __future__ import annotations

from test_broker_relay import Bench, absent, stall

from zdist.limits import ATTACH_WAIT, TAKE_TIMEOUT
from zdist.protocol.messages import Taken


def test_who_takes_one_thing_after_the_other_is_not_found_stalled() -> None:
    b = Bench("w-0", "c-0")
    b.relay.proven["c-0"] = None
    for req in range(6):
        b.get("c-0", req)
        b.data("w-0", "c-0", req)
    for req in range(6):  # all were sent at once, and the last is taken after several times what one may take
        b.tick(0.9 * TAKE_TIMEOUT)
        assert len(b.relay.sent) == 6 - req and not b.relay.debts
        b.send("c-0", Taken(req))
    assert not b.relay.commands


def test_a_receiver_that_stalls_is_reported_once() -> None:
    b = Bench("w-0", "c-0", "c-1")
    b.relay.proven["c-0"] = None
    for receiver, req in (("c-0", 1), ("c-0", 2), ("c-0", 3), ("c-1", 1)):
        b.get(receiver, req)
        b.data("w-0", receiver, req)
    b.tick(TAKE_TIMEOUT)
    assert b.relay.debtors == {"c-0": 3, "c-1": 1}
    told = [(command.event, command.fields["receiver"]) for command in b.relay.commands]
    assert told == [("relay.stalled", "c-0"), ("relay.stalled", "c-1")]


def test_the_end_of_a_connection_settles_the_debts_of_its_own_receiver_only() -> None:
    b = Bench("w-0", "c-0", "c-1")
    stall(b, "c-0", "c-1")
    others = {name: size for name, size in b.relay.debts.items() if name[0] == "c-1"}
    assert others and len(others) < len(b.relay.debts)
    b.relay.detached("c-0", b.now)
    assert b.relay.debts == others and b.relay.owed == sum(others.values())


def test_each_request_waits_for_the_same_holder_from_its_own_beginning() -> None:
    b = Bench("c-0")
    b.get("c-0", 1)
    b.tick(ATTACH_WAIT / 2)
    b.get("c-0", 2)
    out = b.tick(ATTACH_WAIT / 2)
    assert [m.req for m in out["c-0"]] == [1] and absent(out, "c-0") == ["unreachable"]  # type: ignore[attr-defined]
    out = b.tick(ATTACH_WAIT / 2)
    assert [m.req for m in out["c-0"]] == [2] and absent(out, "c-0") == ["unreachable"]  # type: ignore[attr-defined]
