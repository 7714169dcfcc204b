"""A peer path that falls behind for a moment, as a connection does that has lost a packet."""

from __future__ import annotations

import pytest
from data_world import World
from test_learning import PEER_ADDRESS, paths, wanted

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


def test_it_is_used_again_once_it_delivers() -> None:
    world = warmed()
    world.fetcher.fetch(7, wanted(world, "m", 24, 4 * MIB), now=world.now)
    stall(world, 8)
    world.run()
    assert not world.fetcher.links.peers["w-1"].silence
    world.fetcher.fetch(8, wanted(world, "n", 24, 4 * MIB), now=world.now)
    world.run()
    assert paths(world, 8) == {"peer": 24}


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
