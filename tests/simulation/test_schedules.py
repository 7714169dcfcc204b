"""Whole clusters under faults, from seeds; ``python -m zdist.testing.simulate --seed N`` replays one."""

from __future__ import annotations

import pytest

from zdist.core.machine import Route
from zdist.errors import InvariantError
from zdist.protocol.messages import Data, Finished, Message
from zdist.testing.schedule import Schedule
from zdist.testing.simulate import main


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_schedules_keep_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--seeds", "2000"])
    output = capsys.readouterr().out
    assert code == 0, output
    for fault in ("break", "worker", "node", "client", "partition", "pause", "broker", "drain", "scale"):
        assert f"'{fault}'" in output, f"no schedule had the fault {fault}"


def test_a_seed_replays_exactly() -> None:
    first, second = Schedule(7), Schedule(7)
    reports = [first.run(), second.run()]
    assert reports[0].outcomes == reports[1].outcomes and reports[0].tasks == reports[1].tasks >= 50
    assert first.network.delivered == second.network.delivered
    assert first.network.now == second.network.now


def test_a_wrong_value_is_found() -> None:
    """The simulator can fail: a worker that serves other bytes than the task made is caught."""
    caught = 0
    for seed in range(8):
        schedule = Schedule(seed, faults=0)
        for client in schedule.cluster.clients:
            handle = client.ledger.handle

            def tamper(route: Route, message: Message, now: float, handle=handle) -> None:  # type: ignore[no-untyped-def]
                if isinstance(message, Data):
                    rows = tuple((*row[:4], tuple(bytes(len(p)) for p in row[4])) for row in message.rows)
                    message = message._replace(rows=rows)
                handle(route, message, now)

            client.ledger.handle = tamper  # type: ignore[method-assign]
        try:
            schedule.run()
        except InvariantError as exc:
            assert f"seed {seed}" in str(exc) and "wrong value" in str(exc)
            caught += 1
    assert caught, "no schedule moved data by a socket"


def test_a_lost_completion_is_found() -> None:
    """The simulator can fail: a broker that does not tell one client of its results leaves futures hanging."""
    schedule = Schedule(3, faults=0)
    broker = schedule.cluster.broker.machine
    victim = schedule.cluster.clients[0].ledger.session
    send = broker.send
    dropped: list[Message] = []

    def forget(session: str, message: Message) -> None:
        if isinstance(message, Finished) and session == victim:
            dropped.append(message)
        else:
            send(session, message)

    broker.send = forget  # type: ignore[method-assign]
    with pytest.raises(InvariantError, match=r"seed 3: .* hang"):
        schedule.run()
    assert dropped
