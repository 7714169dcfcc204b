"""Replies of actors that nobody expects, and ways that a reply says are broken."""

from __future__ import annotations

import pytest
from test_actor_machines import Caller, numbers

from zdist import limits
from zdist.core.actors import too_large
from zdist.core.entry import PENDING
from zdist.core.machine import CONTROL, Route
from zdist.protocol import messages as m
from zdist.protocol.actors import GONE, RETURNED, UNSEEN


@pytest.mark.parametrize("code", [RETURNED, GONE])
def test_a_reply_to_a_call_that_was_not_sent_changes_nothing(code: str) -> None:
    caller = Caller()
    calls = caller.call(limits.ACTOR_WINDOW + 1)
    caller.said()
    caller.reply(limits.ACTOR_WINDOW + 1, code)
    assert {call.status for call in calls} == {PENDING}


def test_a_call_that_got_lost_by_the_peer_path_has_that_looked_at() -> None:
    caller = Caller()
    caller.open_peer()
    caller.reply(1)
    caller.call()
    assert list(caller.said()) == ["tcp://one"]
    caller.ledger.handle(CONTROL, m.ActorReply("c-1", 2, UNSEEN, b""), 0.0)
    out = caller.ledger.take()
    assert [type(message) for message in out[Route("tcp://one")]] == [m.Probe]
    assert numbers([x for x in out[CONTROL] if isinstance(x, m.ActorCall)]) == [(2, 1)]


def test_without_peer_paths_a_call_that_got_lost_goes_again() -> None:
    caller = Caller(paths=["relay"])
    caller.call()
    caller.said()
    caller.reply(1, UNSEEN)
    assert numbers(caller.said()["control"]) == [(1, 0)]


def test_a_reply_may_be_as_large_as_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_BYTES", 10)
    assert too_large(bytes(10)) == ""
    assert too_large(m.Buffer(bytes(11))) == "it has 11 bytes pickled, 10 are possible"
