"""Which way a transfer goes when the usual does not work, and that it is not looked after without need."""

from __future__ import annotations

import pytest
from data_world import ME, World

from zdist.core.links import CLOSED, DEAF, OPEN, UNKNOWN, Link
from zdist.core.machine import BULK
from zdist.core.steering import DEAF_STRIKES, UNREACHABLE_PAUSE
from zdist.limits import REQUEST_TIMEOUT
from zdist.protocol.messages import Data, Get


def world_with(*sessions: str, **options: bool) -> World:
    """A fetcher, and workers that all hold the key "k"."""
    world = World(delay=0.001, **options)
    for session in sessions:
        world.add(session).store.put_blob("k", 1, b"value", "bytes")
    return world


def fetch(world: World, *holders: str, direct: bool | None) -> None:
    world.fetcher.fetch(1, [("k", 1, 5, holders)], direct=direct, now=world.now)
    world.check()


def test_when_all_is_here_there_is_nothing_to_look_after() -> None:
    world = world_with("w-1")
    fetch(world, "w-1", direct=False)
    world.run(until=lambda: bool(world.arrived))
    assert world.fetcher.deadline() is None


def test_what_cannot_be_had_by_the_only_path_allowed_is_over_at_once() -> None:
    world = world_with("w-1", fallback=False)
    world.fetcher.links.peers["w-1"].closed("no way", world.now)
    fetch(world, "w-1", direct=True)
    assert world.failed[1, "k"][0] == "closed" and world.fetcher.deadline() is None


def test_what_is_on_its_way_is_waited_for_though_no_path_leads_to_where_it_is_said_to_be() -> None:
    world = world_with("w-1", "w-2", fallback=False)
    fetch(world, "w-1", direct=True)
    world.run(until=lambda: bool(world.gets()))
    world.fetcher.links.peers["w-2"].closed("no way", world.now)
    world.fetcher.relocate("k", ("w-2",), 5, world.now)
    world.run()
    assert world.arrived == {(1, "k"): b"value"} and not world.failed


def test_what_is_given_a_way_waits_for_no_verdict_any_more() -> None:
    world = world_with("w-1")
    fetch(world, "w-1", direct=True)
    (transfer,) = world.fetcher.parked["w-1"]
    world.fetcher.links.peers["w-1"].state = OPEN
    world.fetcher.plan([transfer], world.now)
    assert not world.fetcher.parked
    world.check()


@pytest.mark.parametrize("back", [True, False])
def test_a_holder_that_no_path_leads_to_is_waited_for_a_moment(back: bool) -> None:
    world = world_with("w-1")
    link = world.fetcher.links.by_relay("w-1")
    link.state, link.lost, link.closed_until = CLOSED, True, world.now + 100
    begin = world.now
    fetch(world, "w-1", direct=False)
    assert not world.failed
    if back:
        link.opened()
    world.run()
    assert world.now >= begin + UNREACHABLE_PAUSE
    assert bool(world.arrived) == back
    assert [code for code, *_ in world.failed.values()] == ([] if back else ["unreachable"])


def strike(world: World, link: Link) -> None:
    """What was asked by a path that is open has no answer."""
    link.opened()
    fetch(world, "w-1", direct=True)
    world.events.clear()
    assert link.requests
    world.now += 10 * REQUEST_TIMEOUT
    world.fetcher.tick(world.now)
    world.fetcher.abandon(1, world.now)


def test_a_peer_path_that_does_not_answer_is_probed_and_in_the_end_left_alone() -> None:
    world = world_with("w-1")
    link = world.fetcher.links.peers["w-1"]
    for _ in range(DEAF_STRIKES - 1):
        strike(world, link)
        assert link.state == UNKNOWN and link.probe
        world.fetcher.probes.cancel(link)
    strike(world, link)
    assert (link.state, link.fault) == (CLOSED, DEAF)


def test_a_holder_that_does_not_say_what_lies_in_its_memory_is_asked_for_the_bytes_in_the_end() -> None:
    world = World(delay=0.001, least=1000)
    holder = world.add("w-1")
    holder.peer = holder.relay = "blackhole"
    holder.store.put_blob("k", 1, bytes(5000), "bytes")
    begin = world.now
    world.fetcher.fetch(1, [("k", 1, 5000, ("w-1",))], now=world.now)
    world.run(until=lambda: any(not get.shm for get in world.gets()))
    assert world.now >= begin + REQUEST_TIMEOUT


# --- shared memory -----------------------------------------------------------------------------------------


def shared(*keys: str, attempt: int = 1) -> tuple[World, Get]:
    """Keys that do not lie in shared memory yet, and that their holder was asked to put there."""
    world = World(least=1000)
    world.add("w-1")
    world.fetcher.fetch(1, [(key, attempt, 5000, ("w-1",)) for key in keys], now=world.now)
    world.check()
    (get,) = world.gets()
    assert get.shm and not world.fetcher.requests.queued
    return world, get


def test_what_is_said_twice_to_lie_in_shared_memory_is_looked_for_once() -> None:
    world, get = shared("k")
    for _ in range(2):
        world.fetcher.handle(BULK, Data(get.req, ME, (), (), (("k", 1, 5000),)), world.now)
    assert [command.rows for command in world.maps] == [(("k", 1),)]


def test_what_nobody_wants_any_more_does_not_fail() -> None:
    world, get = shared("a", "b")
    world.fetcher.drop(1, ["a"], world.now)
    absent = tuple((key, "unpicklable", "a lock") for key in ("a", "b"))
    world.fetcher.handle(BULK, Data(get.req, ME, (), absent), world.now)
    world.check()
    assert list(world.failed) == [(1, "b")]


def test_what_lies_in_shared_memory_of_an_earlier_computation_is_not_taken() -> None:
    world = World(least=1000)
    holder = world.add("w-1")
    world.fetcher.fetch(1, [("k", -1, 5000, ("w-1",))], now=world.now)
    (command,) = world.maps
    world.fetcher.relocate("k", ("w-1",), 5000, world.now, attempt=5)
    world.fetcher.mapped(command.req, {"k": holder.put("k", 3, [bytes(5000)])}, "", world.now)
    assert not world.fetcher.arrived and [get.rows for get in world.gets()] == [(("k", 0, 1),)]


def test_one_key_that_two_want_in_different_ways_is_looked_for_twice() -> None:
    world = World(least=1000)
    world.add("w-1")
    for ticket, direct in enumerate((None, True)):
        world.fetcher.fetch(ticket, [("k", 1, 5000, ("w-1",))], direct=direct, now=world.now)
        world.check()
    for get in world.gets():
        world.fetcher.handle(BULK, Data(get.req, ME, (), (("k", "busy", ""),)), world.now)
    when = world.fetcher.deadline()
    assert when is not None and when > world.now
    world.fetcher.tick(when)
    assert [command.rows for command in world.maps] == [(("k", 1),), (("k", 1),)]
    assert not world.fetcher.requests.queued
    world.fetcher.check()
