"""A peer path that falls behind for a moment, as a connection does that has lost a packet."""

from __future__ import annotations

import pytest
from data_world import World
from test_learning import PEER_ADDRESS, paths, wanted

from zdist.core.links import CLOSED
from zdist.limits import MIB

LOST = 0.2  # seconds until a connection repeats what was lost, if nothing else has told it


def warmed(host: str = "host") -> World:
    """Both paths of a worker are known, and the peer path is the faster one."""
    world = World(delay=0.001)
    world.add("w-1", host=host)
    world.speed = {PEER_ADDRESS: 2e9, "relay": 1e9}
    for ticket, direct in enumerate((True, False, None)):
        world.fetcher.fetch(ticket, wanted(world, f"k{ticket}-", 24, 4 * MIB), direct=direct, now=world.now)
        world.run()
    assert paths(world, 2) == {"peer": 24}
    return world


def stall(world: World, after: int) -> None:
    """Nothing comes by the peer path for a moment, once so many more values have."""
    count = len(world.arrived) + after
    world.run(until=lambda: len(world.arrived) >= count)
    world.last[PEER_ADDRESS] = world.now + LOST


@pytest.mark.parametrize("size", [4 * MIB, 100 * MIB])
def test_what_a_stalled_peer_path_owes_comes_by_the_relay(size: int) -> None:
    world = warmed()
    count = 24 if size < 10 * MIB else 1
    start = world.now
    world.fetcher.fetch(7, wanted(world, "m", count, size), now=start)
    stall(world, count // 3)
    world.run(until=lambda: all((7, f"m{i}") in world.arrived for i in range(count)))
    assert world.now - start < LOST
    assert all(world.arrived[7, f"m{i}"] == bytes(size) for i in range(count))
    assert paths(world, 7).get("relay", 0) > 0


def test_while_it_is_silent_the_relay_carries_what_it_can_though_nothing_is_known_of_it() -> None:
    world = World(delay=0.001)
    world.add("w-1")
    world.speed = {PEER_ADDRESS: 2e9, "relay": 1e9}
    world.fetcher.fetch(0, wanted(world, "k", 24, 4 * MIB), direct=True, now=world.now)
    world.run()
    world.fetcher.fetch(7, wanted(world, "m", 100, 4 * MIB), now=world.now)
    stall(world, 8)
    over = world.last[PEER_ADDRESS]
    world.run(until=lambda: world.now >= over)
    carried = 4 * MIB * (len(world.arrived) - 24 - 8)
    assert carried > 0.5 * LOST * world.speed["relay"]
    world.run()
    assert paths(world, 7)["peer"] >= 50  # it delivers again, and is the faster one


def test_it_is_used_again_once_it_delivers() -> None:
    world = warmed()
    world.fetcher.fetch(7, wanted(world, "m", 24, 4 * MIB), now=world.now)
    stall(world, 8)
    world.run()
    assert not world.fetcher.links.peers["w-1"].silence
    world.fetcher.fetch(8, wanted(world, "n", 24, 4 * MIB), now=world.now)
    world.run()
    assert paths(world, 8) == {"peer": 24}


def test_a_path_that_does_so_again_and_again_is_left_for_a_relay_that_is_faster_then() -> None:
    world = warmed()
    for ticket in range(7, 10):
        world.fetcher.fetch(ticket, wanted(world, f"m{ticket}-", 24, 4 * MIB), now=world.now)
        stall(world, 8)
        world.run()
    world.fetcher.fetch(10, wanted(world, "n", 24, 4 * MIB), now=world.now)
    world.run()
    assert paths(world, 10) == {"relay": 24}
    assert list(world.fetcher.report)[-1].reason == "relay faster"
    world.now += 60.0
    world.fetcher.fetch(11, wanted(world, "o", 24, 4 * MIB), now=world.now)  # it may have come to an end
    world.run()
    assert paths(world, 11) == {"peer": 24}


def test_direct_is_direct() -> None:
    world = warmed()
    asked = len(world.gets("bulk"))
    world.fetcher.fetch(7, wanted(world, "m", 24, 4 * MIB), direct=True, now=world.now)
    stall(world, 8)
    world.run()
    assert paths(world, 7) == {"peer": 24}
    assert len(world.gets("bulk")) == asked
    assert len({key for get in world.gets(PEER_ADDRESS) for key, *_ in get.rows if key[0] == "m"}) == 24


def test_a_holder_that_is_slow_by_either_way_is_waited_for() -> None:
    world = warmed()
    world.freeze_seconds = 0.06
    holder = world.holders["w-1"]
    for number in range(20):
        key = f"s{number}"
        holder.values[key] = bytes(1000)
        holder.store.put_value(key, 1, None, 1000, "bytes")
        direct = (True, False)[number % 2] if number < 16 else None
        asked = len(world.gets("bulk"))
        world.fetcher.fetch(10 + number, [(key, 1, 1000, ("w-1",))], direct=direct, now=world.now)
        world.run()
        assert world.arrived[10 + number, key] == bytes(1000)
    assert len(world.gets("bulk")) == asked


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("fallback", [True, False])
def test_a_path_that_is_only_slow_is_waited_for_by_who_wants_no_other(known: bool, fallback: bool) -> None:
    world = World(delay=0.001, fallback=fallback)
    world.add("w-1")
    world.speed = {PEER_ADDRESS: 1e9, "relay": 1e9}
    for ticket, direct in enumerate((False, True) if known else (False,)):
        world.fetcher.fetch(ticket, wanted(world, f"k{ticket}-", 8, 4 * MIB), direct=direct, now=world.now)
        world.run()
    world.speed[PEER_ADDRESS] = 20e6 if known else 1e6
    world.fetcher.fetch(7, wanted(world, "m", 8, MIB), direct=True, now=world.now)
    world.run()
    assert paths(world, 7) == {"peer": 8} and not world.failed and not world.fetcher.warnings


def test_nobody_asks_twice_where_the_relay_would_not_be_sooner() -> None:
    world = warmed()
    world.speed["relay"] = 20e6
    for ticket in range(10, 16):  # that is learned
        world.fetcher.fetch(ticket, wanted(world, f"k{ticket}-", 8, 4 * MIB), direct=False, now=world.now)
        world.run()
    asked = len(world.gets("bulk"))
    world.fetcher.fetch(7, wanted(world, "m", 24, 4 * MIB), now=world.now)
    stall(world, 8)
    world.run(until=lambda: world.fetcher.links.peers["w-1"].silence > 0.0)
    assert not world.fetcher.requests.stale
    world.run()
    assert paths(world, 7) == {"peer": 24} and len(world.gets("bulk")) == asked
    assert len([row for get in world.gets(PEER_ADDRESS) for row in get.rows if row[0].startswith("m")]) == 24


def test_who_was_away_does_not_take_that_for_silence() -> None:
    world = warmed()
    world.fetcher.fetch(7, wanted(world, "m", 8, MIB), now=world.now)
    world.now += 0.1  # all of it has come meanwhile, and waits in the sockets
    world.fetcher.tick(world.now)
    assert world.fetcher.links.peers["w-1"].silence == 0.0
    assert world.fetcher.deadline() == world.now
    world.fetcher.tick(world.now)  # they were looked at, and nothing was there
    assert world.fetcher.links.peers["w-1"].silence > 0.0


def test_a_path_that_stays_silent_is_closed() -> None:
    world = warmed()
    world.fetcher.fetch(7, wanted(world, "m", 24, 4 * MIB), now=world.now)
    world.run(until=lambda: len(world.arrived) >= 80)
    world.holders["w-1"].peer = "blackhole"
    start = world.now
    world.run(until=lambda: world.fetcher.links.peers["w-1"].state == CLOSED)
    assert world.now - start < 3.0
    world.run()
    assert len(world.arrived) == 96


def test_a_worker_that_is_gone_is_not_probed() -> None:
    world = warmed()
    world.fetcher.fetch(7, wanted(world, "m", 24, 4 * MIB), now=world.now)
    stall(world, 8)
    world.run(until=lambda: world.fetcher.links.peers["w-1"].silence > 0.0)
    world.holders["w-1"].alive = False
    world.fetcher.forget("w-1", world.now)
    world.events.clear()
    world.log.clear()
    world.run()
    assert not world.log and world.fetcher.deadline() is None
