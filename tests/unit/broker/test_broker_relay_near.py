"""The relay and shared memory: what lies in that of the broker's host does not pass through its holder's socket."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_broker_relay import Bench

from zdist import limits, serialize
from zdist.core.links import MIN_CHUNK
from zdist.limits import CHUNK, MIB
from zdist.protocol.messages import Buffer, Data, Get, Taken, payload_size
from zdist.transport.mapping import mappings
from zdist.transport.shm import SharedMemory
from zdist_broker.near import look
from zdist_broker.relay import Peek, Relay, Row


def rows(*sizes: int) -> tuple[Row, ...]:
    return tuple([(f"k{n}", 1, size, 0, (Buffer(memoryview(bytes(size))),)) for n, size in enumerate(sizes)])


def ask(*sizes: int, holder: str = "w-0", shm: bool = False, req: int = 1) -> Get:
    return Get(req, "", holder, "c-0", tuple([(f"k{n}", 0, size) for n, size in enumerate(sizes)]), shm)


@pytest.fixture
def b() -> Bench:
    bench = Bench()
    bench.relay = Relay(host="here")
    for session, host in (("c-0", "here"), ("w-0", "here"), ("w-1", "there")):
        bench.relay.joined(session, 0.0, host)
    return bench


def peeks(b: Bench) -> list[Get]:
    commands, b.relay.commands[:] = b.relay.commands[:], []
    return [command.get for command in commands if type(command) is Peek]


def test_what_is_found_goes_to_the_receiver_and_its_holder_hears_nothing(b: Bench) -> None:
    get = ask(MIB, MIN_CHUNK)
    assert b.send("c-0", get) == {} and peeks(b) == [get]
    assert b.relay.granted == MIB + MIN_CHUNK
    found = rows(MIB, MIN_CHUNK - 1)
    b.relay.peeked(get, found, b.now)
    assert b.out() == {"c-0": [Data(1, "c-0", found, ())]}
    assert b.relay.granted == b.relay.carried == MIB + MIN_CHUNK - 1
    b.send("c-0", Taken(1))
    assert b.relay.granted == 0


def test_what_is_not_found_is_asked_for(b: Bench) -> None:
    get = ask(MIB)
    b.send("c-0", get)
    b.relay.peeked(get, (), b.now)
    assert b.out() == {"w-0": [get]} and b.relay.granted == MIB
    assert list(b.send("w-0", Data(1, "c-0", rows(MIB), ()))) == ["c-0"]


@pytest.mark.parametrize(
    "get",
    [
        ask(MIB, holder="w-1"),  # on another host
        ask(MIB, MIN_CHUNK - 1),  # too small to lie there
        ask(0),  # of unknown size
        ask(1, shm=True),  # which asks for no bytes
        ask(MIB, shm=True),
    ],
)
def test_other_requests_are_passed_on(b: Bench, get: Get) -> None:
    assert b.send("c-0", get) == {get.holder: [get]} and not peeks(b)


def test_a_broker_of_no_host_looks_nowhere() -> None:
    b = Bench("c-0")
    b.relay.joined("w-0", 0.0, "")
    get = ask(MIB)
    assert b.send("c-0", get) == {"w-0": [get]} and not peeks(b)


@pytest.mark.parametrize("end", ["taken", "receiver", "holder"])
def test_what_was_given_up_meanwhile_is_not_sent(b: Bench, end: str) -> None:
    get = ask(MIB)
    b.send("c-0", get)
    if end == "taken":
        b.send("c-0", Taken(1))
    else:
        b.relay.gone({"receiver": "c-0", "holder": "w-0"}[end], b.now)
    b.out()
    for found in (rows(MIB), ()):
        b.relay.peeked(get, found, b.now)
        assert b.out() == {} and b.relay.granted == b.relay.carried == 0


def test_the_next_are_granted_when_less_was_there_than_asked_for(b: Bench) -> None:
    b.relay.proven["c-0"] = None
    asked = [ask(CHUNK, req=req) for req in range(40)]
    for get in asked:
        b.send("c-0", get)
    under_way = peeks(b)
    assert 0 < len(under_way) < 40
    for get in under_way:
        b.relay.peeked(get, rows(1), b.now)
        b.out()
    assert peeks(b)


# --- the look itself -------------------------------------------------------------------------------------


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedMemory]:
    monkeypatch.setenv("ZDIST_SHM_DIR", str(tmp_path))
    monkeypatch.setattr(limits, "REGION_IDLE", 0.05)
    made = SharedMemory("w-0", 1 << 26)
    yield made
    made.close()


def put(memory: SharedMemory, key: str, value: Any) -> tuple[Any, bytes]:
    blob = serialize.dumps(value, share=True)
    segment = memory.write(key, 7, blob)
    assert segment is not None
    return segment, b"".join(map(bytes, blob.pieces))


def joined(row: Row) -> bytes:
    return b"".join(bytes(getattr(piece, "data", piece)) for piece in row[4])


def test_any_range_is_the_holders_bytes(memory: SharedMemory) -> None:
    kept = [put(memory, f"k{n}", {"a": np.arange(MIB // 8) + n, "b": np.full(MIB // 8, n)}) for n in range(2)]
    size = len(kept[0][1])
    found = look(Get(1, "", "w-0", "c-0", (("k0", 0, size), ("k1", 1000, MIB), ("k1", size - 5, MIB), ("k0", size, 1))))
    assert [row[:4] for row in found] == [
        ("k0", 7, size, 0), ("k1", 7, size, 1000), ("k1", 7, size, size - 5), ("k0", 7, size, size),
    ]  # fmt: skip
    assert [joined(row) for row in found] == [kept[0][1], kept[1][1][1000 : 1000 + MIB], kept[1][1][-5:], b""]


def test_no_more_than_a_whole_value_at_once(memory: SharedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.near.WHOLE", MIB)
    kept = put(memory, "k", np.arange(MIB // 4))
    found = look(Get(1, "", "w-0", "c-0", (("k", 0, MIB - 1), ("k", 5, MIB), ("k", 9, MIB))))
    assert [sum(map(payload_size, row[4])) for row in found] == [MIB - 1, 1] and kept


@pytest.mark.parametrize("holder", ["w-9", "w-\0", "w-\ud800", "../" * 20 + "tmp"])
def test_a_holder_without_shared_memory_is_asked(memory: SharedMemory, holder: str) -> None:
    kept = put(memory, "k", np.arange(MIB // 8))
    assert look(ask(MIB)._replace(rows=(("k", 0, MIB),))) and kept
    assert look(Get(1, "", holder, "c-0", (("k", 0, MIB),))) == ()


def test_all_or_nothing(memory: SharedMemory) -> None:
    kept = put(memory, "k", np.arange(MIB // 8))
    assert look(Get(1, "", "w-0", "c-0", (("k", 0, MIB), ("other", 0, MIB)))) == () and kept


def test_what_is_under_way_does_not_change_and_is_let_go(memory: SharedMemory) -> None:
    segment, before = put(memory, "k", np.arange(MIB // 8))
    found = look(Get(1, "", "w-0", "c-0", (("k", 0, 2 * MIB),)))
    live = len(mappings)
    del segment
    gc.collect()
    assert len(mappings) == live - 1
    others = [put(memory, f"k{n}", np.full(MIB // 8, n)) for n in range(4)]
    assert joined(found[0]) == before and others
    del found
    gc.collect()
    assert len(mappings) == live - 2 + len(others)
