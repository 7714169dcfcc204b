"""The fetcher and the memory of its host: looked at first, asked for second, bytes where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from data_world import ME, World
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist.core.links import CLOSED, OPEN
from zdist.core.machine import BULK
from zdist.core.store import Pieces
from zdist.limits import CHUNK_ROWS, PROBE_RETRY, REQUEST_TIMEOUT
from zdist.protocol.fields import DATA
from zdist.protocol.messages import Data, Get

LEAST = 1000
LARGE = 5000


def value(key: str, size: int = LARGE) -> bytes:
    return (key.encode() * (size // len(key) + 1))[:size]


def near(**options: Any) -> World:
    world = World(least=LEAST, **options)
    world.add("w-1")
    return world


def share(world: World, session: str, key: str, attempt: int = 1, size: int = LARGE) -> None:
    holder = world.holders[session]
    holder.store.put_blob(key, attempt, holder.put(key, attempt, world.cut(value(key, size)).pieces), "bytes")


def hold(world: World, session: str, key: str, attempt: int = 1, size: int = LARGE) -> None:
    world.holders[session].store.put_blob(key, attempt, world.cut(value(key, size)), "bytes")


def live(world: World, session: str, key: str, size: int = LARGE) -> None:
    holder = world.holders[session]
    holder.values[key] = value(key, size)
    holder.store.put_value(key, 1, object(), size, "object")


def fetch(world: World, *keys: str, ticket: int = 1, holders: tuple[str, ...] = ("w-1",), **options: Any) -> None:
    size = options.pop("size", LARGE)
    attempt = options.pop("attempt", 1)
    world.fetcher.fetch(ticket, [(key, attempt, size, holders) for key in keys], now=world.now, **options)
    world.check()


def asked(world: World) -> list[Get]:
    return [get for get in world.gets() if get.shm]


def test_what_lies_in_shared_memory_takes_no_message() -> None:
    world = near(paths=("shm", "relay"))
    for key in ("a", "b"):
        share(world, "w-1", key)
    fetch(world, "a", "b")
    assert world.arrived == {(1, "a"): value("a"), (1, "b"): value("b")}
    assert set(world.paths.values()) == {"shm"}
    assert world.log == [] and len(world.mapped) == 1
    (row,) = world.fetcher.report
    assert (row.path, row.worker, row.keys, row.bytes, row.reason) == ("shm", "w-1-name", 2, 2 * LARGE, "same host")
    assert world.fetcher.deadline() is None


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_not_there_yet_is_asked_for_and_then_mapped(frozen: bool) -> None:
    world = near()
    (hold if frozen else live)(world, "w-1", "k")
    fetch(world, "k")
    assert world.fetcher.deadline() is not None and not world.arrived
    world.run()
    assert world.arrived == {(1, "k"): value("k")} and world.paths[1, "k"] == "shm"
    (get,) = world.gets()
    assert get.shm and get.rows == (("k", 0, 1),)
    assert world.holders["w-1"].shares == [("k", 1)] and world.holders["w-1"].freezes == []
    assert [command.rows for command in world.mapped] == [(("k", 1),), (("k", 1),)]


def test_it_is_asked_for_by_the_peer_path_once_that_is_known_to_be_open() -> None:
    world = near()
    for key in ("a", "b"):
        hold(world, "w-1", key)
    fetch(world, "a")
    world.run()
    fetch(world, "b")
    world.run()
    assert [get.token for get in asked(world)] == ["", "secret"]
    assert [get.token for get in world.gets("bulk")] == [""]
    assert len(world.arrived) == 2


@pytest.mark.parametrize(
    ("size", "host", "direct", "path"),
    [
        (LEAST - 1, "host", True, "peer"),
        (LARGE, "elsewhere", True, "peer"),
        (LARGE, "host", False, "relay"),
        (LARGE, "host", True, "shm"),
        (LARGE, "host", None, "shm"),
    ],
)
def test_shared_memory_is_for_large_values_of_this_host(size: int, host: str, direct: bool | None, path: str) -> None:
    world = World(least=LEAST)
    world.add("w-1", host=host)
    share(world, "w-1", "k", size=size)
    fetch(world, "k", size=size, direct=direct)
    world.run()
    assert world.paths == {(1, "k"): path}
    assert not world.fetcher.warnings


@pytest.mark.parametrize("memory", ["closed", "full", "lost"])
@pytest.mark.parametrize("frozen", [True, False])
def test_where_it_cannot_be_the_bytes_come_by_other_ways(memory: str, frozen: bool) -> None:
    world = near()
    world.holders["w-1"].memory = memory
    for key in ("a", "b"):
        (hold if frozen else live)(world, "w-1", key)
    fetch(world, "a", "b")
    world.run(until=lambda: len(world.arrived) == 2)
    assert world.arrived == {(1, "a"): value("a"), (1, "b"): value("b")}
    assert set(world.paths.values()) <= {"peer", "relay"}
    link = world.fetcher.links.shms["w-1"]
    assert link.state == (OPEN if memory == "full" else CLOSED)
    assert len(asked(world)) == (0 if memory == "closed" else 1)


def test_a_closed_memory_is_looked_at_again_after_a_while() -> None:
    world = near()
    world.holders["w-1"].memory = "closed"
    for key in ("a", "b", "c"):
        share(world, "w-1", key)
    fetch(world, "a")
    world.run()
    world.holders["w-1"].memory = "open"
    fetch(world, "b")
    world.run()
    world.now += PROBE_RETRY
    fetch(world, "c")
    assert world.paths[1, "a"] != "shm" and world.paths[1, "b"] != "shm"
    assert world.paths[1, "c"] == "shm"
    assert len(world.mapped) == 2


def test_a_holder_that_does_not_answer_does_not_keep_others_waiting() -> None:
    world = near(paths=("shm", "peer", "relay"))
    holder = world.holders["w-1"]
    live(world, "w-1", "live")
    share(world, "w-1", "there")
    holder.relay = holder.peer = "blackhole"  # its process is stuck
    fetch(world, "live", "there")
    assert world.paths == {(1, "there"): "shm"}
    start = world.now
    world.run(until=lambda: bool([get for get in world.gets("bulk") if not get.shm]))
    assert world.now - start < REQUEST_TIMEOUT + 1
    share(world, "w-1", "later")
    fetch(world, "later", ticket=2)
    assert world.paths[2, "later"] == "shm"
    holder.relay = "open"
    world.run(until=lambda: (1, "live") in world.arrived)
    assert world.paths[1, "live"] == "relay"


def test_a_newer_attempt_will_do_an_older_one_will_not() -> None:
    world = near(paths=("shm", "relay"))
    share(world, "w-1", "k", attempt=2)
    fetch(world, "k", attempt=1)
    assert world.paths == {(1, "k"): "shm"}
    share(world, "w-1", "old", attempt=2)
    fetch(world, "old", attempt=3)
    world.run()
    assert world.failed[1, "old"][0] == "missing" and "earlier" in world.failed[1, "old"][1]
    assert world.fetcher.links.shms["w-1"].state == OPEN


def test_other_data_of_the_name_will_not_do() -> None:
    world = near(paths=("shm", "relay"))
    share(world, "w-1", "k", attempt=DATA + 2)
    fetch(world, "k", attempt=DATA + 1)
    world.run()
    assert world.failed[1, "k"][0] == "missing"
    assert world.fetcher.links.shms["w-1"].state == OPEN


def test_any_attempt_is_found_and_told() -> None:
    world = near(paths=("shm",))
    share(world, "w-1", "k", attempt=7)
    world.fetcher.fetch(1, [("k", -1, LARGE, ("w-1",))], now=world.now)
    world.look()
    ((_, key, attempt, blob, nbytes, path),) = world.fetcher.arrived
    assert (key, attempt, nbytes, path) == ("k", 7, LARGE, "shm") and blob is world.holders["w-1"].segments["k"]


def test_unpicklable_and_unknown_end_as_on_any_other_way() -> None:
    world = near()
    holder = world.holders["w-1"]
    holder.values["bad"] = b""
    holder.store.put_value("bad", 1, object(), LARGE, "object")
    fetch(world, "bad", "nowhere")
    world.run()
    assert world.failed[1, "bad"] == ("unpicklable", "cannot pickle it", ())
    assert world.failed[1, "nowhere"][::2] == ("missing", ("w-1",))


def test_slow_freezing_is_waited_for() -> None:
    world = near()
    world.freeze_seconds = 7.0
    live(world, "w-1", "k")
    fetch(world, "k")
    world.run()
    assert world.arrived == {(1, "k"): value("k")}
    assert world.holders["w-1"].shares == [("k", 1)]


def test_a_client_may_be_here_only_a_look_can_tell() -> None:
    world = World(least=LEAST)
    world.add("c-near", member=False)
    world.add("c-far", member=False).memory = "closed"
    share(world, "c-near", "a")
    hold(world, "c-far", "b")
    fetch(world, "a", holders=("c-near",))
    fetch(world, "b", holders=("c-far",))
    world.run()
    assert world.paths == {(1, "a"): "shm", (1, "b"): "relay"}


def test_a_replica_of_this_host_is_preferred() -> None:
    world = World(least=LEAST)
    world.add("w-far", host="elsewhere")
    world.add("w-1")
    hold(world, "w-far", "k")
    share(world, "w-1", "k")
    fetch(world, "k", holders=("w-far", "w-1"))
    assert world.paths == {(1, "k"): "shm"}


def test_giving_up_leaves_nothing_behind() -> None:
    world = near()
    live(world, "w-1", "k")
    world.fetcher.fetch(1, [("k", 1, LARGE, ("w-1",))], now=world.now)
    world.fetcher.abandon(1, world.now)  # before the driver has looked
    world.check()
    assert not world.fetcher.requests.open and world.fetcher.requests.looking == {}
    fetch(world, "k")
    (get,) = asked(world)
    world.fetcher.abandon(1, world.now)  # while the holder is asked
    world.check()
    assert not world.fetcher.requests.open and world.taken == [get.req]
    world.run()
    assert not world.arrived and world.fetcher.deadline() is None


def test_answers_that_were_not_asked_for_change_nothing() -> None:
    world = near(paths=("shm", "relay"))
    hold(world, "w-1", "k")
    fetch(world, "k")
    (get,) = asked(world)
    strange = [
        Data(get.req, ME, (("k", 1, 3, 0, (b"bad",)),), ()),  # bytes where none were asked for: to be had as such
        Data(get.req + 1, ME, (), (), (("k", 1, LARGE),)),
        Data(get.req, ME, (), (), (("other", 1, LARGE),)),
    ]
    for message in strange:
        world.fetcher.handle(BULK, message, world.now)
        world.check()
    assert not world.arrived and not world.failed
    world.run()
    assert world.arrived == {(1, "k"): value("k")}


def test_forgetting_a_worker_that_is_asked() -> None:
    world = near()
    hold(world, "w-1", "k")
    fetch(world, "k")
    world.fetcher.forget("w-1", world.now)
    world.check()
    assert world.failed[1, "k"][0] == "missing"
    assert "w-1" not in world.fetcher.links.shms


def test_a_transfer_that_has_begun_elsewhere_stays_there() -> None:
    world = near()
    world.holders["w-1"].memory = "closed"
    size = 1 << 24
    world.holders["w-1"].store.put_blob("k", 1, Pieces([bytes(size)]), "bytes")
    fetch(world, "k", size=size)
    transfer = world.fetcher.tables[None]["k"]
    world.run(until=lambda: transfer.got > 0)
    world.holders["w-1"].memory = "open"
    world.now += PROBE_RETRY
    world.run()
    assert world.arrived[1, "k"] == bytes(size)
    assert world.paths[1, "k"] != "shm" and len(world.mapped) == 1


def test_many_keys_are_looked_for_in_few_commands() -> None:
    world = near(paths=("shm", "relay"))
    keys = [f"k{i}" for i in range(2 * CHUNK_ROWS)]
    for key in keys:
        share(world, "w-1", key, size=LEAST)
    fetch(world, *keys, size=LEAST)
    assert len(world.arrived) == len(keys) and len(world.mapped) == 2


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_key_ends_with_its_bytes_or_a_reason(data: st.DataObject) -> None:
    draw = data.draw
    world = World(
        draw(st.integers(0, 2**32)),
        loss=draw(st.sampled_from((0.0, 0.2))),
        repeat=draw(st.sampled_from((0.0, 0.3))),
        delay=draw(st.sampled_from((0.001, 0.3))),
        least=LEAST,
    )
    world.freeze_seconds = draw(st.sampled_from((0.0, 0.01, 2.5)))
    sessions = [f"w-{i}" for i in range(draw(st.integers(1, 3)))] + ["c-9"]
    for session in sessions:
        holder = world.add(session, member=session != "c-9", host=draw(st.sampled_from(("host", "host", "far"))))
        holder.memory = draw(st.sampled_from(("open", "open", "full", "closed", "lost")))
        holder.peer = draw(st.sampled_from(("open", "open", "blackhole")))
        holder.relay = draw(st.sampled_from(("open", "open", "unreachable")))
    wanted: set[tuple[int, str]] = set()
    values: dict[str, bytes] = {}
    for i in range(draw(st.integers(1, 10))):
        key, size = f"k{i}", draw(st.sampled_from((10, LEAST, LARGE, 70_000)))
        values[key] = value(key, size)
        told = draw(st.lists(st.sampled_from(sessions), min_size=1, unique=True))
        for session in draw(st.lists(st.sampled_from(told), unique=True)):
            state = draw(st.sampled_from((share, hold, live)))
            state(world, session, key, size=size)
        ticket = draw(st.integers(0, 3))
        direct = (None, None, True, False)[ticket]
        hint = draw(st.sampled_from((0, size, size * 2)))
        world.fetcher.fetch(ticket, [(key, draw(st.sampled_from((-1, 1))), hint, told)], direct=direct, now=world.now)
        wanted.add((ticket, key))
        for _ in range(draw(st.integers(0, 3))):
            world.step()
    if draw(st.booleans()):
        world.fetcher.abandon(0, world.now)
    if draw(st.booleans()):
        world.holders[sessions[0]].alive = False
        world.holders[sessions[0]].segments.clear()
        world.fetcher.forget(sessions[0], world.now)
    world.run(5_000)
    for ticket, key in wanted:
        if (ticket, key) in world.arrived:
            assert world.arrived[ticket, key] == values[key]
        else:
            assert (ticket, key) in world.failed or ticket == 0
    assert not world.fetcher.tickets and not any(world.fetcher.tables.values())
    assert not world.fetcher.requests.open and not world.fetcher.requests.looking
