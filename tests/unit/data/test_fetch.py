"""The fetcher against simulated holders: every wanted key ends, with the right bytes or a reason."""

from __future__ import annotations

import pytest
from data_world import ME, TOKEN, World
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist.core.links import UNREACHABLE_GRACE
from zdist.core.machine import BULK, Route
from zdist.core.store import Pieces
from zdist.limits import CHUNK, CHUNK_ROWS, MIB, PROBE_TIMEOUT, REQUEST_TIMEOUT
from zdist.protocol.fields import DATA
from zdist.protocol.messages import Data, Get, Probe, ProbeReply, Taken


def value(key: str, size: int) -> bytes:
    return (key.encode() * (size // len(key) + 1))[:size]


def hold(world: World, session: str, sizes: dict[str, int], attempt: int = 1) -> None:
    holder = world.holders[session]
    for key, size in sizes.items():
        holder.store.put_blob(key, attempt, world.cut(value(key, size)), "bytes")


def test_small_keys_of_one_holder_travel_in_few_requests() -> None:
    world = World()
    world.add("w-1")
    sizes = {f"k{i}": 100 for i in range(2000)}
    hold(world, "w-1", sizes)
    world.fetcher.fetch(7, [(k, 1, n, ("w-1",)) for k, n in sizes.items()], now=world.now)
    world.run()
    assert {k: len(v) for (_, k), v in world.arrived.items()} == sizes
    assert len(world.gets()) <= 2000 // CHUNK_ROWS + 4
    assert not world.failed and not world.fetcher.tickets
    assert world.fetcher.deadline() is None
    assert sum(row.keys for row in world.fetcher.report) == 2000
    assert sum(row.bytes for row in world.fetcher.report) == 200_000


@pytest.mark.parametrize("size", [1, 64 * 1024, 4 * MIB, CHUNK, 3 * CHUNK + 17])
@pytest.mark.parametrize("hint", [0, 10, None, 50 * MIB])
def test_any_size_whatever_the_hint(size: int, hint: int | None) -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"k": size})
    world.fetcher.fetch(1, [("k", -1, size if hint is None else hint, ("w-1",))], now=world.now)
    world.run()
    assert world.arrived == {(1, "k"): value("k", size)}


def test_unknown_path_flows_by_relay_and_moves_to_the_peer_when_it_opens() -> None:
    world = World()
    world.add("w-1")
    world.speed = {"tcp://host:1": 1e9, "relay": 50e6}
    sizes = {f"k{i}": 4 * MIB for i in range(12)}
    hold(world, "w-1", sizes)
    world.fetcher.fetch(1, [(k, 1, n, ("w-1",)) for k, n in sizes.items()], now=world.now)
    first = [m for _, m in world.log]
    assert isinstance(first[0], Probe) and isinstance(first[1], Get)
    assert world.log[1][0] == BULK
    world.run()
    assert len(world.arrived) == 12
    carried = {path: sum(row.bytes for row in world.fetcher.report if row.path == path) for path in ("peer", "relay")}
    assert 0 < carried["relay"] < CHUNK < carried["peer"]


def test_blackholed_peer_costs_no_waiting() -> None:
    world = World(delay=0.002)
    world.add("w-1").peer = "blackhole"
    hold(world, "w-1", {"k": 1000})
    start = world.now
    world.fetcher.fetch(1, [("k", 1, 1000, ("w-1",))], now=world.now)
    world.run(until=lambda: bool(world.arrived))
    assert world.now - start < 0.1
    assert world.paths == {(1, "k"): "relay"}


def test_relayed_data_is_confirmed_peer_data_is_not() -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"a": 10, "b": 10})
    world.fetcher.fetch(1, [("a", 1, 10, ("w-1",))], direct=False, now=world.now)
    world.run()
    assert world.taken == [world.gets("bulk")[0].req]
    world.fetcher.fetch(2, [("b", 1, 10, ("w-1",))], direct=True, now=world.now)
    world.run()
    assert len(world.taken) == 1
    assert world.paths == {(1, "a"): "relay", (2, "b"): "peer"}


def test_direct_waits_for_the_verdict_then_takes_the_peer_path() -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"k": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], direct=True, now=world.now)
    assert not world.gets()
    world.run()
    assert world.paths == {(1, "k"): "peer"}
    assert not world.fetcher.warnings


@pytest.mark.parametrize("peer", ["blackhole", "wrong"])
def test_direct_on_a_closed_path_falls_back_with_one_warning(peer: str) -> None:
    world = World()
    world.add("w-1").peer = peer
    hold(world, "w-1", {f"k{i}": 3 * CHUNK for i in range(3)})
    start = world.now
    world.fetcher.fetch(1, [(f"k{i}", 1, 3 * CHUNK, ("w-1",)) for i in range(3)], direct=True, now=world.now)
    world.run(until=lambda: len(world.arrived) == 3)
    assert world.now - start < PROBE_TIMEOUT + 1
    assert set(world.paths.values()) == {"relay"}
    ((ticket, worker, reason),) = world.fetcher.warnings
    assert (ticket, worker) == (1, "w-1-name")
    assert ("no answer" if peer == "blackhole" else "wrong advertised address") in reason


def test_direct_without_fallback_fails_closed() -> None:
    world = World(fallback=False)
    world.add("w-1").peer = "blackhole"
    hold(world, "w-1", {"k": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], direct=True, now=world.now)
    world.run()
    code, text, _ = world.failed[1, "k"]
    assert code == "closed" and "no answer from tcp://host:1" in text


def test_a_joined_caller_is_not_bound_by_anothers_direct() -> None:
    world = World(fallback=False)
    world.add("w-1").peer = "blackhole"
    hold(world, "w-1", {"k": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], direct=True, now=world.now)
    world.fetcher.fetch(2, [("k", 1, 10, ("w-1",))], direct=None, now=world.now)
    world.run()
    assert world.failed[1, "k"][0] == "closed"
    assert world.arrived == {(2, "k"): value("k", 10)}


def test_a_key_wanted_twice_is_fetched_once() -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"k": 10})
    for ticket in (1, 2):
        world.fetcher.fetch(ticket, [("k", 1, 10, ("w-1",))], now=world.now)
    world.run()
    assert len(world.gets()) == 1
    assert set(world.arrived) == {(1, "k"), (2, "k")}


def test_contrary_direct_is_two_transfers_by_their_own_paths() -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"k": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], direct=True, now=world.now)
    world.fetcher.fetch(2, [("k", 1, 10, ("w-1",))], direct=False, now=world.now)
    world.run()
    assert world.paths == {(1, "k"): "peer", (2, "k"): "relay"}


def test_abandoning_one_caller_leaves_the_other() -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"k": 10, "mine": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",)), ("mine", 1, 10, ("w-1",))], now=world.now)
    world.fetcher.fetch(2, [("k", 1, 10, ("w-1",))], now=world.now)
    world.fetcher.abandon(1, world.now)
    world.run()
    assert set(world.arrived) == {(2, "k")}
    assert not world.fetcher.tickets and not world.fetcher.wants("mine")


def test_abandoning_frees_the_windows_and_the_relays_grant() -> None:
    world = World()
    world.add("w-1").relay = "blackhole"
    hold(world, "w-1", {"k": 64 * MIB})
    world.fetcher.fetch(1, [("k", 1, 64 * MIB, ("w-1",))], direct=False, now=world.now)
    asked = [get.req for get in world.gets()]
    assert asked and world.fetcher.requests.inflight > 0
    world.fetcher.abandon(1, world.now)
    assert world.fetcher.requests.inflight == 0
    assert world.taken == asked
    world.fetcher.handle(BULK, Data(asked[0], ME, (("k", 1, 9, 0, (b"too late!",)),), ()), world.now)
    world.check()
    assert not world.arrived


def test_absent_everywhere_is_missing_and_names_the_holders() -> None:
    world = World()
    world.add("w-1")
    world.add("w-2")
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1", "w-2"))], now=world.now)
    world.run()
    code, _, tried = world.failed[1, "k"]
    assert code == "missing" and sorted(tried) == ["w-1", "w-2"]


def test_another_holder_serves_what_one_does_not_have() -> None:
    world = World()
    world.add("w-1")
    world.add("w-2")
    hold(world, "w-2", {"k": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1", "w-2"))], now=world.now)
    world.run()
    assert world.arrived == {(1, "k"): value("k", 10)}


def test_holder_dies_in_the_middle_and_another_has_the_rest() -> None:
    world = World()
    world.add("w-1")
    world.add("w-2")
    size = 5 * CHUNK
    hold(world, "w-1", {"k": size})
    hold(world, "w-2", {"k": size})
    world.fetcher.fetch(1, [("k", 1, size, ("w-1",))], now=world.now)
    transfer = world.fetcher.tables[None]["k"]
    world.run(until=lambda: transfer.got > CHUNK)
    world.holders["w-1"].alive = False
    world.fetcher.relocate("k", ("w-1", "w-2"), size, world.now)
    world.fetcher.forget("w-1", world.now)
    already = transfer.got
    served = len(world.gets())
    world.run()
    assert world.arrived == {(1, "k"): value("k", size)}
    asked = sum(row[2] for get in world.gets()[served:] for row in get.rows)
    assert already and asked <= size - CHUNK  # what came is kept


def test_a_silent_holder_is_given_up_for_one_that_answers() -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"k": 10})
    world.fetcher.fetch(0, [("k", 1, 10, ("w-1",))], now=world.now)
    world.run()
    assert world.fetcher.links.peers["w-1"].state == "open"
    hold(world, "w-1", {"j": 10})
    world.holders["w-1"].peer = "blackhole"  # the path is cut
    start = world.now
    world.fetcher.fetch(1, [("j", 1, 10, ("w-1",))], now=world.now)
    world.run(until=lambda: (1, "j") in world.arrived)
    assert world.paths[1, "j"] == "relay"
    assert world.now - start < REQUEST_TIMEOUT


def test_forgetting_the_only_holder_is_missing() -> None:
    world = World()
    world.add("w-1").relay = "blackhole"
    world.holders["w-1"].peer = "blackhole"
    hold(world, "w-1", {"k": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], now=world.now)
    world.fetcher.forget("w-1", world.now)
    world.check()
    assert world.failed[1, "k"][0] == "missing"
    world.fetcher.fetch(2, [("k", 1, 10, ("w-1",))], now=world.now)
    world.check()
    assert world.failed[2, "k"][0] == "missing"


def test_no_holders_waits_for_relocate() -> None:
    world = World()
    world.add("w-1")
    world.add("w-2")
    hold(world, "w-2", {"k": 10}, attempt=2)
    world.holders["w-1"].relay = world.holders["w-1"].peer = "blackhole"
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], now=world.now)
    world.fetcher.relocate("k", (), 0, world.now)
    assert world.fetcher.wants("k")
    world.fetcher.relocate("k", ("w-2",), 10, world.now, attempt=2)
    world.run(until=lambda: bool(world.arrived))
    assert world.arrived == {(1, "k"): value("k", 10)}


def test_newer_attempt_restarts_the_blob_older_one_does_not_count() -> None:
    world = World()
    old, new = b"o" * 3 * CHUNK, b"n" * 3 * CHUNK
    for session, attempt, data in (("w-1", 1, old), ("w-2", 2, new)):
        world.add(session)
        world.holders[session].store.put_blob("k", attempt, Pieces([data]), "bytes")
    world.fetcher.fetch(1, [("k", -1, len(old), ("w-1",))], now=world.now)
    transfer = world.fetcher.tables[None]["k"]
    world.run(until=lambda: transfer.got > 0)
    world.fetcher.relocate("k", ("w-1", "w-2"), len(old), world.now)
    world.holders["w-1"].store.put_blob("k", 2, Pieces([new]), "bytes")
    world.run()
    assert world.arrived == {(1, "k"): new}
    world.fetcher.fetch(2, [("k", 3, len(old), ("w-1",))], now=world.now)
    world.run()
    assert world.failed[2, "k"][0] == "missing" and "earlier" in world.failed[2, "k"][1]


def test_unpicklable_fails_alone_and_says_why() -> None:
    world = World()
    holder = world.add("w-1")
    hold(world, "w-1", {"good": 10})
    holder.values["bad"] = b""
    holder.store.put_value("bad", 1, object(), 10, "object")
    world.fetcher.fetch(1, [("bad", 1, 10, ("w-1",)), ("good", 1, 10, ("w-1",))], now=world.now)
    world.run()
    assert world.failed == {(1, "bad"): ("unpicklable", "cannot pickle it", ())}
    assert set(world.arrived) == {(1, "good")}


def test_slow_freezing_is_waited_for() -> None:
    world = World()
    world.freeze_seconds = 30.0
    holder = world.add("w-1")
    holder.values["k"] = b"x" * 100
    holder.store.put_value("k", 1, object(), 100, "object")
    world.fetcher.fetch(1, [("k", 1, 100, ("w-1",))], now=world.now)
    world.run()
    assert world.arrived == {(1, "k"): b"x" * 100}
    assert holder.freezes == [("k", 1)]


def test_a_client_holder_is_reached_by_relay_whatever_direct_says() -> None:
    world = World(fallback=False)
    world.add("c-other", member=False)
    hold(world, "c-other", {"k": 10})
    world.fetcher.fetch(1, [("k", 0, 10, ("c-other",))], direct=True, now=world.now)
    world.run()
    assert world.failed == {}
    assert world.paths == {(1, "k"): "relay"} and not world.fetcher.warnings


def test_unreachable_by_relay_is_tried_again_for_a_moment() -> None:
    world = World(paths=("relay",))
    holder = world.add("w-1")
    holder.relay = "unreachable"
    hold(world, "w-1", {"k": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], now=world.now)
    world.after(0.3, lambda: setattr(holder, "relay", "open"))
    world.run()
    assert set(world.arrived) == {(1, "k")}
    holder.relay = "unreachable"
    world.fetcher.fetch(2, [("k", 1, 10, ("w-1",))], now=world.now)
    start = world.now
    world.run(until=lambda: (2, "k") in world.failed)
    assert world.failed[2, "k"][::2] == ("unreachable", ())
    assert UNREACHABLE_GRACE <= world.now - start < UNREACHABLE_GRACE + 3


def test_silence_is_not_a_denial() -> None:
    world = World(paths=("relay",))
    world.add("w-1").relay = "blackhole"
    world.add("w-2")
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1", "w-2"))], now=world.now)
    world.run()
    assert world.failed[1, "k"][0] == "unreachable"
    assert world.failed[1, "k"][2] == ("w-2",)  # it said no; the other may well have the data


def test_peer_only_waits_and_fails_closed() -> None:
    world = World(paths=("peer",))
    world.add("w-1").peer = "blackhole"
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], now=world.now)
    world.run()
    assert world.failed[1, "k"][0] == "closed"
    assert not world.gets("bulk")


def test_priority_goes_first_when_the_window_is_full() -> None:
    world = World()
    world.add("w-1")
    sizes = {f"k{i}": 8 * MIB for i in range(8)}
    hold(world, "w-1", sizes | {"urgent": 8 * MIB})
    world.fetcher.fetch(1, [(k, 1, n, ("w-1",)) for k, n in sizes.items()], now=world.now, priority=5)
    world.fetcher.fetch(2, [("urgent", 1, 8 * MIB, ("w-1",))], now=world.now, priority=1)
    world.run()
    order = [key for _, key in world.arrived]
    assert order.index("urgent") <= 2


def test_slow_path_is_left_for_the_fast_one() -> None:
    world = World(delay=0.001)
    world.add("w-1")
    world.speed = {"tcp://host:1": 5e6, "relay": 500e6}
    sizes = {f"k{i}": 4 * MIB for i in range(24)}
    hold(world, "w-1", sizes)
    start = world.now
    world.fetcher.fetch(1, [(k, 1, n, ("w-1",)) for k, n in sizes.items()], now=world.now)
    world.run()
    fixed = 24 * 4 * MIB / 500e6
    assert len(world.arrived) == 24
    assert world.now - start < fixed + 2 * CHUNK / 5e6  # one window on the slow path
    sizes = {f"m{i}": 4 * MIB for i in range(24)}
    hold(world, "w-1", sizes)
    start = world.now
    world.fetcher.fetch(2, [(k, 1, n, ("w-1",)) for k, n in sizes.items()], now=world.now)
    world.run(until=lambda: len(world.arrived) == 48)
    assert world.now - start < 1.1 * fixed + 0.01


def test_very_slow_link_gets_through_all_the_same() -> None:
    world = World(paths=("relay",))
    world.add("w-1")
    world.speed = {"relay": 100e3}
    hold(world, "w-1", {"k": 2 * MIB})
    world.fetcher.fetch(1, [("k", 1, 2 * MIB, ("w-1",))], now=world.now)
    world.run()
    assert world.arrived == {(1, "k"): value("k", 2 * MIB)}


def test_foreign_late_and_malformed_data_changes_nothing() -> None:
    world = World()
    world.add("w-1")
    world.add("w-2")
    for session in ("w-1", "w-2"):
        hold(world, session, {"k": 10})
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1", "w-2"))], direct=False, now=world.now)
    (get,) = world.gets()
    for route in (Route("tcp://host:2"), Route("tcp://nobody:1")):
        world.fetcher.handle(route, Data(get.req, ME, (("k", 1, 3, 0, (b"bad",)),), ()), world.now)
    world.fetcher.handle(BULK, Data(999, ME, (("k", 1, 3, 0, (b"bad",)),), ()), world.now)
    world.check()
    assert not world.arrived
    world.fetcher.handle(BULK, Data(get.req, ME, (("k", 1, 5, 3, (b"bad",)),), ()), world.now)  # not what was asked
    world.check()
    world.run()
    assert world.arrived == {(1, "k"): value("k", 10)}


def test_probe_reply_of_a_stranger_is_nothing() -> None:
    world = World()
    world.add("w-1")
    world.fetcher.handle(Route("tcp://nobody:1"), ProbeReply(1, "w-1"), world.now)
    assert world.fetcher.links.peers["w-1"].state == "unknown"


def test_closed_path_is_probed_again_and_used_again() -> None:
    world = World()
    holder = world.add("w-1")
    holder.peer = "blackhole"
    hold(world, "w-1", {f"k{i}": 10 for i in range(9)})
    world.fetcher.fetch(0, [("k0", 1, 10, ("w-1",))], now=world.now)
    world.run()
    assert world.fetcher.links.peers["w-1"].state == "closed"
    holder.peer = "open"
    world.now += 6
    world.fetcher.fetch(1, [("k1", 1, 10, ("w-1",))], now=world.now)
    world.run()
    world.fetcher.fetch(2, [("k2", 1, 10, ("w-1",))], now=world.now)
    world.run()
    assert world.paths == {(0, "k0"): "relay", (1, "k1"): "relay", (2, "k2"): "peer"}


def test_a_late_whole_blob_is_still_welcome() -> None:
    world = World(paths=("relay",))
    world.add("w-1").relay = "blackhole"
    world.fetcher.fetch(1, [("k", 1, 10, ("w-1",))], now=world.now)
    (get,) = world.gets()
    world.run(until=lambda: len(world.gets()) == 2)
    world.fetcher.handle(BULK, Data(get.req, ME, (("k", 1, 4, 0, (b"late",)),), ()), world.now)
    world.run()
    assert world.arrived == {(1, "k"): b"late"}
    assert not world.fetcher.tickets


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_lossy_network_every_key_ends_with_its_bytes_or_a_reason(data: st.DataObject) -> None:
    draw = data.draw
    world = World(
        draw(st.integers(0, 2**32)),
        loss=draw(st.sampled_from((0.0, 0.1, 0.4))),
        repeat=draw(st.sampled_from((0.0, 0.3))),
        delay=draw(st.sampled_from((0.001, 0.3, 3.0))),
        fallback=draw(st.booleans()),
    )
    world.freeze_seconds = draw(st.sampled_from((0.0, 0.01, 2.5)))
    sessions = [f"w-{i}" for i in range(draw(st.integers(1, 4)))]
    for session in sessions:
        holder = world.add(session)
        holder.peer = draw(st.sampled_from(("open", "open", "blackhole", "wrong")))
        holder.relay = draw(st.sampled_from(("open", "open", "open", "unreachable", "blackhole")))
    sizes = st.sampled_from((1, 300, 300, 70_000, 70_000, MIB + 5))
    wanted: set[tuple[int, str]] = set()
    values: dict[str, bytes] = {}
    for i in range(draw(st.integers(1, 12))):
        key, size = f"k{i}", draw(sizes)
        values[key] = value(key, size)
        told = draw(st.lists(st.sampled_from(sessions), min_size=1, unique=True))
        for session in draw(st.lists(st.sampled_from(told), unique=True)):
            holder = world.holders[session]
            holder.values[key] = values[key]
            if draw(st.booleans()):
                holder.store.put_blob(key, 1, world.cut(values[key]), "bytes")
            else:
                holder.store.put_value(key, 1, None, size, "bytes")
        ticket = draw(st.integers(0, 5))
        hint = draw(st.sampled_from((0, 1, size, size * 2)))
        direct = (None, None, True, False, True, None)[ticket]
        world.fetcher.fetch(ticket, [(key, draw(st.sampled_from((-1, 1))), hint, told)], direct=direct, now=world.now)
        wanted.add((ticket, key))
        for _ in range(draw(st.integers(0, 3))):
            world.step()
    if draw(st.booleans()):
        world.fetcher.abandon(0, world.now)
    if draw(st.booleans()):
        world.holders[sessions[0]].alive = False
        world.fetcher.forget(sessions[0], world.now)
    world.run(5_000)
    for ticket, key in wanted:
        if (ticket, key) in world.arrived:
            assert world.arrived[ticket, key] == values[key]
        else:
            assert (ticket, key) in world.failed or ticket == 0
    assert not world.fetcher.tickets and not any(world.fetcher.tables.values())
    assert world.fetcher.requests.inflight == 0 and not world.fetcher.parked


def test_requests_carry_the_token_to_peers_only() -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"a": 10, "b": 10})
    world.fetcher.fetch(1, [("a", 1, 10, ("w-1",))], direct=True, now=world.now)
    world.fetcher.fetch(2, [("b", 1, 10, ("w-1",))], direct=False, now=world.now)
    world.run()
    assert [get.token for get in world.gets("bulk")] == [""]
    assert [get.token for get in world.gets("tcp://host:1")] == [TOKEN]
    assert not any(isinstance(m, Taken) for r, m in world.log if r != BULK)


@pytest.mark.parametrize("has", [5, DATA + 1, DATA + 3])
def test_other_data_of_the_name_is_not_taken(has: int) -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"k": 10}, attempt=has)
    world.fetcher.fetch(1, [("k", DATA + 2, 10, ("w-1",))], now=world.now)
    world.run()
    assert not world.arrived and world.failed[1, "k"][0] == "missing" and "other data" in world.failed[1, "k"][1]


@pytest.mark.parametrize("told", [5, DATA + 1, DATA + 3])
def test_what_the_broker_says_of_the_name_counts(told: int) -> None:
    world = World()
    world.add("w-1")
    hold(world, "w-1", {"k": 10}, attempt=told)
    world.holders["w-1"].relay = world.holders["w-1"].peer = "blackhole"
    world.fetcher.fetch(1, [("k", DATA + 2 if told != 5 else 4, 10, ("w-1",))], now=world.now)
    world.holders["w-1"].relay = world.holders["w-1"].peer = "open"
    world.fetcher.relocate("k", ("w-1",), 10, world.now, attempt=told)
    world.run(until=lambda: bool(world.arrived))
    assert world.arrived == {(1, "k"): value("k", 10)}
