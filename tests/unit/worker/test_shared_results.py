"""Results that go into shared memory: at completion or when somebody asks, and what becomes of the live object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_worker_driver import Pool

from zdist import limits
from zdist.core.machine import Route
from zdist.protocol import messages as m
from zdist.serialize import Blob, dumps, loads, register_reference
from zdist.transport.shm import Segment, SharedMemory
from zdist.worker.results import freeze, freeze_kept

HOP = Route("data", b"somebody")


class Ref:
    """Stands for a key in arguments."""

    def __init__(self, key: str) -> None:
        self.key = key


register_reference(Ref, lambda ref: ref.key)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedMemory]:
    monkeypatch.setenv("ZDIST_SHM_DIR", str(tmp_path))
    monkeypatch.setattr(limits, "SHM_MIN", 1000)
    memory = SharedMemory("w-1", 1 << 22)
    yield memory
    memory.close()


def array(size: int = 50_000) -> Any:
    return np.arange(size)


def shape_of(x: Any) -> Any:
    return x.shape


@pytest.mark.parametrize(("deliver", "kind"), [(2, Segment), (1, Blob), (0, type(None))])
def test_a_result_lies_where_who_waits_for_it_can_have_it(memory: SharedMemory, deliver: int, kind: type) -> None:
    payload, blob, error, _nbytes, keep = freeze(array(), deliver, "k", 16384, memory, 7)
    assert (payload, error) == (None, "") and type(blob) is kind
    assert keep is (deliver == 0)
    if blob is not None:
        assert (loads(blob.pieces) == array()).all()
    if deliver == 2:
        assert blob.header.key == "k" and blob.attempt == 7


@pytest.mark.parametrize("shared", [True, False])
def test_without_room_it_is_a_snapshot_unless_nobody_else_has_it(memory: SharedMemory, shared: bool) -> None:
    memory.limit = 0
    value: Any = [array()] if shared else array()
    _, blob, _, _, keep = freeze(value, 2, "k", 16384, memory, 7)
    assert type(blob) is Blob and not keep
    if shared:
        value[0][:] = 0
    assert (np.asarray(loads(blob.pieces)) == array()).all()


def test_what_is_small_or_has_no_memory_to_go_to(memory: SharedMemory) -> None:
    assert freeze(1, 2, "k", 16384, memory, 7)[0] is not None
    assert type(freeze("x" * 500, 2, "k", 0, memory, 7)[1]) is Blob
    assert type(freeze(array(), 2, "k", 16384, None, 7)[1]) is Blob


@pytest.mark.parametrize(
    ("value", "keep"), [(array(), False), ({"a": array(), "b": 1}, False), (list(range(50_000)), True)]
)
def test_the_object_goes_when_loading_it_again_costs_nothing(memory: SharedMemory, value: Any, keep: bool) -> None:
    blob, error, kept = freeze_kept(value, "k", memory, 3)
    assert type(blob) is Segment and not error and kept is keep
    assert freeze_kept(value, "k")[2]
    memory.limit = 0
    del blob
    assert type(freeze_kept(value, "k", memory, 3)[0]) is Blob


def test_a_value_is_shared_when_somebody_of_this_host_asks(memory: SharedMemory) -> None:
    with Pool(memory=memory) as pool:
        pool.submit("a", array, deliver=0)
        pool.done()
        entry: Any = pool.machine.store.get("a")
        assert entry.has_value and entry.blob is None
        ask = m.Get(5, "secret", "w-1", "c-1", (("a", 0, 1),), True)
        with pool.driver.lock:
            pool.machine.handle(HOP, ask, pool.driver.now())
            pool.driver.turn()
        pool.driver.wait_for(lambda: any(type(message) is m.Data for message in pool.driver.said))
        assert pool.driver.said[-1] == m.Data(5, "c-1", (), (), (("a", 1, entry.nbytes),))
        assert type(entry.blob) is Segment and not entry.has_value and entry.value is None
        reader = SharedMemory("c-1", 1 << 20)
        found, _ = reader.read("w-1", [("a", 1)])
        assert (loads(found["a"].pieces) == array()).all()
        reader.close()
        pool.submit("b", shape_of, Ref("a"), deps=(("a", 100, (), None),))
        assert loads(pool.done(2)["b"][4]) == (50_000,)
        assert entry.has_value


def test_a_heap_blob_moves_when_somebody_of_this_host_asks(memory: SharedMemory) -> None:
    with Pool(memory=memory) as pool:
        pool.submit("a", array, deliver=1)
        pool.done()
        entry: Any = pool.machine.store.get("a")
        assert type(entry.blob) is Blob
        with pool.driver.lock:
            pool.machine.handle(HOP, m.Get(5, "secret", "w-1", "c-1", (("a", 0, 1),), True), pool.driver.now())
            pool.driver.turn()
        pool.driver.wait_for(lambda: entry.blob.shared)
        assert b"".join(entry.blob.pieces) == dumps(array()).tobytes()
        memory.limit = 0
        pool.submit("b", array, deliver=1)
        pool.done(2)
        with pool.driver.lock:
            pool.machine.handle(HOP, m.Get(6, "secret", "w-1", "c-1", (("b", 0, 1),), True), pool.driver.now())
            pool.driver.turn()
        other: Any = pool.machine.store.get("b")
        pool.driver.wait_for(lambda: not pool.machine.store.waiting)
        assert type(other.blob) is Blob
