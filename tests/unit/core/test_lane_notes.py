"""What the client with a lane tells its broker by and by: how long that goes well, and when it asks for another."""

from __future__ import annotations

import pytest
from test_lane import FIRST, FN, Client, early, loop

from zdist import limits
from zdist.core.machine import CONTROL
from zdist.protocol import messages as m

QUIET = limits.LANE_QUIET


def test_a_broker_that_was_told_of_a_lane_of_late_is_spared() -> None:
    client = Client()
    client.ledger.defined.add(FN)
    loop(client, 0)
    assert CONTROL in client.out(QUIET)
    entry = client.submit()
    client.out(QUIET)
    client.copy(entry, FIRST + 1)
    client.ledger.dropped.append(entry)
    client.submit()
    assert early(client.out(QUIET))[0].over == (entry.key,)


def test_a_broker_that_was_spared_has_not_been_told() -> None:
    client = Client()
    client.ledger.defined.add(FN)
    spared = []
    for n in range(3):
        entry = client.submit()
        (order,) = early(client.out(0.4 * n * QUIET))
        spared.append(order.over)
        client.copy(entry, FIRST + n)
        client.ledger.dropped.append(entry)
    assert spared == [(), ("k1",), ()]


@pytest.mark.parametrize("used, after", [(limits.LANE_PROVEN - 1, 99), (limits.LANE_PROVEN, limits.LANE_AFTER)])
def test_who_loses_a_lane_that_has_lasted_asks_for_another_soon(used: int, after: int) -> None:
    client = Client()
    assert client.ledger.lane is not None
    client.ledger.ask_after = 99
    client.ledger.lane.next = FIRST + used
    client.control(m.Lane("", FIRST, 0))
    assert client.ledger.ask_after == after
