"""What links are learned to be, where that is hard: from values of middling size, and from silence."""

from __future__ import annotations

import pytest
from data_world import World

from zdist.core.links import PEER, RELAY, Estimate
from zdist.limits import MIB, REQUEST_TIMEOUT

PEER_ADDRESS = "tcp://host:1"


def wanted(world: World, name: str, count: int, size: int) -> list[tuple[str, int, int, tuple[str, ...]]]:
    """Values that the only worker holds, as rows for the fetcher."""
    rows = [(f"{name}{i}", 1, size, ("w-1",)) for i in range(count)]
    for key, *_ in rows:
        world.holders["w-1"].store.put_blob(key, 1, world.cut(bytes(size)), "bytes")
    return rows


def paths(world: World, ticket: int) -> dict[str, int]:
    """How many keys of a caller came by which path."""
    found: dict[str, int] = {}
    for (number, _), path in world.paths.items():
        if number == ticket:
            found[path] = found.get(path, 0) + 1
    return found


@pytest.mark.parametrize(("slow", "expected"), [(PEER_ADDRESS, "relay"), ("relay", "peer")])
def test_values_of_10_kb_tell_a_slow_path_from_a_fast_one(slow: str, expected: str) -> None:
    world = World(delay=0.001)
    world.add("w-1")
    world.speed = {PEER_ADDRESS: 1e9, "relay": 1e9, slow: 25e6}
    for ticket, direct in enumerate((True, False, None, None)):
        world.fetcher.fetch(ticket, wanted(world, f"k{ticket}-", 500, 10_000), direct=direct, now=world.now)
        world.run()
    assert len(world.arrived) == 2000
    assert paths(world, 2) == {expected: 500}
    assert paths(world, 3) == {expected: 500}


def test_an_estimate_by_middling_values_gives_way_to_a_better_one_and_never_replaces_it() -> None:
    link = Estimate(PEER)
    link.started(0.0)
    link.carried(MIB, 0.1, True, small=100)
    rough = link.bandwidth
    assert 8e6 < rough < 20e6
    link.started(1.0)
    link.carried(8 * MIB, 1.01, True)
    better = link.bandwidth
    assert better > 500e6
    link.started(2.0)
    link.carried(MIB, 2.1, True, small=100)
    assert link.bandwidth == better


def test_a_relay_that_falls_silent_is_left_for_an_open_peer_path() -> None:
    world = World(delay=0.001)
    holder = world.add("w-1")
    world.speed = {PEER_ADDRESS: 500e6, "relay": 50e6}
    rows = wanted(world, "k", 24, 4 * MIB)
    start = world.now
    world.fetcher.fetch(1, rows, now=world.now)  # begins by relay, as the peer path is not known yet
    holder.relay = "blackhole"
    world.run(until=lambda: len(world.arrived) == 24)
    assert world.now - start < REQUEST_TIMEOUT
    assert paths(world, 1) == {"peer": 24}
    asked = len(world.gets("bulk"))
    world.fetcher.fetch(2, wanted(world, "m", 24, 4 * MIB), now=world.now)
    again = world.now
    world.run(until=lambda: len(world.arrived) == 48)
    assert world.now - again < 0.5
    assert len(world.gets("bulk")) == asked


def test_a_relay_that_falls_silent_is_asked_again_where_there_is_no_other_way() -> None:
    world = World(delay=0.001)
    holder = world.add("w-1")
    holder.peer = "blackhole"
    world.fetcher.fetch(1, wanted(world, "k", 24, 4 * MIB), now=world.now)
    holder.relay = "blackhole"
    start = world.now
    world.after(2.0, lambda: setattr(holder, "relay", "open"))
    world.run(until=lambda: len(world.arrived) == 24)
    assert paths(world, 1) == {"relay": 24}
    assert world.now - start < REQUEST_TIMEOUT + 1.0


def test_the_delay_of_a_path_is_learned_from_large_values_too() -> None:
    link = Estimate(RELAY)
    for start in (0.0, 1.0, 2.0, 3.0):  # the first MiB takes 70 ms, each after it 20
        link.started(start)
        for i in range(8):
            link.carried(MIB, start + 0.07 + i * 0.02, i == 7)
    assert 0.045 < link.delay < 0.06
    assert 45e6 < link.bandwidth < 60e6


@pytest.mark.parametrize("seed", range(5))
def test_what_is_nearly_here_does_not_change_its_way(seed: int) -> None:
    world = World(seed, delay=0.03)
    world.add("w-1")
    world.speed = {PEER_ADDRESS: 300e6, "relay": 50e6}
    for ticket, direct in enumerate((True, False, None, None, None)):
        world.fetcher.fetch(ticket, wanted(world, f"k{ticket}-", 24, 4 * MIB), direct=direct, now=world.now)
        world.run(until=lambda count=24 * ticket + 24: len(world.arrived) == count)
    batches = world.fetcher.report
    assert sum(row.bytes for row in batches if row.path == "relay") < 24.1 * 4 * MIB  # what had to, and no more
