"""The fetcher and answers that are given by hand: in part, empty, of another attempt, or to what is wanted no more."""

from __future__ import annotations

from typing import Any

import pytest
from data_world import ME, World

from zdist.core.machine import BULK, Route
from zdist.core.steering import MAX_STRIKES
from zdist.limits import CHUNK
from zdist.protocol.messages import Data, Get, ProbeReply


class Hand(World):
    """Two holders that never answer: the test does. Requests go by relay."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Get] = []
        for session in ("w-1", "w-2"):
            holder = self.add(session)
            holder.relay = holder.peer = "blackhole"

    def want(
        self, *keys: str, size: int = 10, attempt: int = 1, ticket: int = 1, holders: str = "12", **more: Any
    ) -> None:
        rows = [(key, attempt, size, tuple(f"w-{n}" for n in holders)) for key in keys]
        self.fetcher.fetch(ticket, rows, now=self.now, **{"direct": False, **more})

    def asked(self) -> Get:
        """The oldest request that has not been answered."""
        while self.unanswered[0].req not in self.fetcher.requests.open:
            self.unanswered.pop(0)
        return self.unanswered[0]

    @property
    def unanswered(self) -> list[Get]:
        self.queue += self.gets()
        self.log.clear()
        return self.queue

    def answer(
        self, get: Get, *rows: tuple[str, int, int, int, tuple[bytes, ...]], absent: dict[str, str] | None = None
    ) -> None:
        gone = tuple((key, code, "") for key, code in (absent or {}).items())
        self.fetcher.handle(BULK, Data(get.req, ME, rows, gone), self.now)
        self.check()

    def give(self, get: Get, total: int, attempt: int = 1, byte: bytes = b"x") -> None:
        """All that was asked for."""
        rows = [(k, attempt, total, o, (byte * min(length, total - o),)) for k, o, length in get.rows]
        self.answer(get, *rows)


@pytest.mark.parametrize("row", [(), (("k", 1, 100, 0, ()),)])
def test_who_answers_with_nothing_time_and_again_does_not_have_it(row: Any) -> None:
    world = Hand()
    world.want("k")
    asked = []
    for _ in range(MAX_STRIKES + 1):
        get = world.asked()
        asked.append(get.holder)
        world.answer(get, *row)
    assert asked == [asked[0]] * MAX_STRIKES + [({"w-1", "w-2"} - {asked[0]}).pop()]


def test_what_an_answer_leaves_out_is_asked_for_again() -> None:
    world = Hand()
    world.want("a", *(f"k{n}" for n in range(2 * MAX_STRIKES)), holders="1")
    while world.fetcher.tickets:
        get = world.asked()
        world.answer(get, (get.rows[-1][0], 1, 1, 0, (b"x",)))
    assert len(world.arrived) == 2 * MAX_STRIKES + 1 and not world.failed


def test_what_a_second_caller_wants_sooner_is_asked_for_sooner() -> None:
    world = Hand()
    world.want("k0", "k1", "k2", "k3", size=CHUNK, holders="1", priority=5)
    for ticket, key, priority in ((2, "k1", 9), (3, "k3", 1), (4, "k0", 0)):  # k0 is under way
        world.want(key, size=CHUNK, holders="1", ticket=ticket, priority=priority)
    order = []
    while world.fetcher.tickets:
        get = world.asked()
        order += [row[0] for row in get.rows]
        world.give(get, CHUNK)
    assert list(dict.fromkeys(order)) == ["k0", "k3", "k1", "k2"]


def test_a_caller_that_asks_twice_is_told_once() -> None:
    world = Hand()
    world.want("k")
    world.want("k")
    world.give(world.asked(), 10)
    assert world.arrived == {(1, "k"): b"x" * 10}


def test_who_leaves_the_path_open_joins_who_does_not() -> None:
    world = Hand()
    world.want("k")
    world.want("k", ticket=2, direct=None)
    world.give(world.asked(), 10)
    assert world.arrived.keys() == {(1, "k"), (2, "k")}


def test_the_owner_is_to_take_what_came_at_once() -> None:
    world = Hand()
    world.want("k")
    get = world.asked()
    assert world.fetcher.deadline() != 0.0
    world.fetcher.handle(BULK, Data(get.req, ME, (("k", 1, 1, 0, (b"x",)),), ()), world.now)
    assert world.fetcher.deadline() == 0.0
    world.check()
    assert world.fetcher.deadline() is None


# --- other attempts and sizes -------------------------------------------------------------------------


def test_the_size_that_is_told_last_counts_until_its_holder_tells() -> None:
    world = Hand()
    for key in ("known", "told"):
        world.want(key, size=1000, holders="1", direct=True)  # waits for the peer path
    world.fetcher.relocate("told", ("w-1",), 100_000, world.now)
    world.fetcher.relocate("known", ("w-1",), 0, world.now)
    world.fetcher.handle(Route("tcp://host:1"), ProbeReply(1, "w-1"), world.now)
    asked = {row[0]: row[2] for get in world.gets() for row in get.rows}
    assert 1000 <= asked["known"] < 2000 and 100_000 <= asked["told"] < 120_000


def test_a_transfer_of_any_attempt_takes_the_one_that_it_is_told_of() -> None:
    world = Hand()
    world.want("k", attempt=-1)
    get = world.asked()
    world.fetcher.relocate("k", ("w-1", "w-2"), 10, world.now, 5)
    world.give(get, 10, attempt=5)
    assert world.arrived == {(1, "k"): b"x" * 10}


@pytest.mark.parametrize("attempt", [0, 1, 2])
def test_a_transfer_begins_anew_when_it_is_told_of_a_newer_attempt(attempt: int) -> None:
    world = Hand()
    world.want("k", size=3 * CHUNK, holders="1")
    get = world.asked()
    world.give(get, 3 * CHUNK)
    world.fetcher.relocate("k", ("w-1",), 3 * CHUNK, world.now, attempt)
    transfer = world.fetcher.tables[False]["k"]
    assert (transfer.attempt, transfer.got) == ((2, 0) if attempt == 2 else (1, get.rows[0][2]))
    world.check()


def test_the_beginning_of_a_newer_attempt_counts_and_its_middle_does_not() -> None:
    world = Hand()
    world.want("k", size=3 * CHUNK, holders="1")
    world.give(world.asked(), 3 * CHUNK, byte=b"o")
    middle = world.asked()
    assert middle.rows[0][1]
    world.give(middle, 3 * CHUNK, attempt=2, byte=b"o")
    transfer = world.fetcher.tables[False]["k"]
    assert (transfer.attempt, transfer.got) == (2, 0)
    while (beginning := world.asked()).rows[0][1]:
        world.give(beginning, 3 * CHUNK, byte=b"o")  # what was asked before is void
    world.give(beginning, 3 * CHUNK, attempt=3, byte=b"n")
    assert (transfer.attempt, transfer.got) == (3, beginning.rows[0][2])
    while world.fetcher.tickets:
        world.give(world.asked(), 3 * CHUNK, attempt=3, byte=b"n")
    assert world.arrived == {(1, "k"): b"n" * 3 * CHUNK}


# --- what is wanted no more -----------------------------------------------------------------------------


def test_what_was_not_asked_for_cannot_be_absent() -> None:
    world = Hand()
    world.want("k", holders="1")
    world.answer(world.asked(), ("k", 1, 1, 0, (b"x",)), absent={"other": "unknown", "k": "unknown"})
    assert world.arrived == {(1, "k"): b"x"} and not world.failed


@pytest.mark.parametrize("code", ["unknown", "unpicklable"])
def test_what_is_wanted_no_more_may_be_absent(code: str) -> None:
    world = Hand()
    world.want("a", "b", holders="1")
    get = world.asked()
    world.fetcher.drop(1, ("a",), world.now)
    world.answer(get, ("b", 1, 1, 0, (b"x",)), absent={"a": code})
    assert world.arrived == {(1, "b"): b"x"} and not world.failed and not world.fetcher.tickets


def test_a_holder_that_did_not_have_the_attempt_before_may_have_the_new_one() -> None:
    world = Hand()
    world.want("k", holders="1")
    get = world.asked()
    world.fetcher.relocate("k", ("w-1",), 10, world.now, 2)
    world.answer(get, absent={"k": "unknown"})
    assert not world.failed
    world.give(world.asked(), 10, attempt=2)
    assert world.arrived == {(1, "k"): b"x" * 10}
