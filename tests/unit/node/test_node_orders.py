"""What a node makes of orders that are out of bounds, and its copy of what clients share."""

from __future__ import annotations

import pytest
from test_node_machine import Bench

from zdist import limits
from zdist.core import mirror
from zdist.core.machine import CONTROL, Log
from zdist.errors import InvariantError
from zdist.protocol.messages import Adjust, Mirror, Mirrored, Welcome


def warned(bench: Bench, workers: int) -> list[str]:
    """The warnings that an order brings about."""
    bench.machine.handle(CONTROL, Adjust(1, workers, False), bench.now)
    events = [x.event for x in bench.machine.commands if isinstance(x, Log) and x.level == "warning"]
    bench.settle()
    return events


def test_more_workers_than_there_may_be_are_warned_of_and_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WORKERS", 3)
    bench = Bench(1)
    assert warned(bench, 3) == []
    assert warned(bench, 4) == ["node.too_many_workers"]
    assert len(bench.running) == 3


def test_a_worker_that_was_forgotten_is_found() -> None:
    bench = Bench(2)
    bench.machine.alive.popitem()
    with pytest.raises(InvariantError, match="forgotten its workers"):
        bench.machine.check()


def test_a_copy_of_what_clients_share_is_confirmed_when_all_of_it_is_there() -> None:
    bench = Bench(1)
    bench.handle(Mirror(7, 3, True, False, (("variable", "x", "", 1),)))
    assert bench.sent() == []
    bench.handle(Mirror(7, 3, False, True, (("variable", "y", "", 2),)))
    assert bench.sent() == [Mirrored(3)]


def test_the_copy_is_offered_to_another_broker_and_not_to_the_one_that_it_is_of() -> None:
    bench = Bench(1)
    copy = Mirror(7, 3, True, True, (("variable", "x", "", 1),))
    bench.handle(copy)
    bench.sent()
    bench.machine.welcomed(Welcome(7, 0, True, {}), bench.now)
    assert not [message for message in bench.sent() if isinstance(message, Mirror)]
    bench.machine.welcomed(Welcome(8, 0, True, {}), bench.now)
    assert [message for message in bench.sent() if isinstance(message, Mirror)] == [copy]


def offered(bench: Bench) -> set[str]:
    """Names of what an unknown broker is offered."""
    bench.machine.welcomed(Welcome(8, 0, True, {}), bench.now)
    return {name for message in bench.sent() if isinstance(message, Mirror) for _, name, _, _ in message.rows}


def test_rows_are_added_to_the_copy_until_it_begins_anew_and_count_when_the_last_is_there() -> None:
    bench = Bench(1)
    for version, (name, first, last) in enumerate((("a", True, True), ("b", False, True), ("c", False, False))):
        bench.handle(Mirror(7, 1 + version, first, last, (("variable", name, "", 1),)))
    bench.sent()
    assert offered(bench) == {"a", "b"}
    bench.handle(Mirror(7, 4, True, True, (("variable", "d", "", 1),)))
    bench.sent()
    assert offered(bench) == {"d"}


def test_a_copy_travels_in_messages_of_bounded_size_the_last_of_which_completes_it() -> None:
    rows = [("variable", str(n), "", (bytes(limits.MIRROR_BYTES // 3), 1)) for n in range(5)]
    sent = mirror.messages(7, 3, rows, first=True)
    assert [len(message.rows) for message in sent] == [2, 2, 1]
    assert [(message.first, message.last) for message in sent] == [(True, False), (False, False), (False, True)]
    assert len(mirror.messages(7, 3, [("variable", str(n), "", 1) for n in range(100)], first=True)) == 1
