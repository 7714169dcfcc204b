"""Segments of shared memory: what is written is what others map, and nobody can change it for anybody else."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zdist import limits, serialize
from zdist.core.store import Pieces
from zdist.transport import segment as files
from zdist.transport import shm
from zdist.transport.claims import USERS
from zdist.transport.mapping import mappings
from zdist.transport.shm import Mapped, Segment, SharedMemory

ROOM = 1 << 28


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZDIST_SHM_DIR", str(tmp_path))
    monkeypatch.setattr(limits, "SHM_MIN", 1)
    monkeypatch.setattr(limits, "REGION_IDLE", 0.05)
    return tmp_path


@pytest.fixture
def make(place: Path) -> Iterator[Callable[..., SharedMemory]]:
    made: list[SharedMemory] = []

    def make(session: str, limit: int = ROOM, **options: Any) -> SharedMemory:
        made.append(SharedMemory(session, limit, **options))
        return made[-1]

    yield make
    for memory in made:
        memory.close()
    assert [path.name for path in place.iterdir()] == []


def put(memory: SharedMemory, value: Any, key: str = "k", attempt: int = 1) -> Segment:
    segment = memory.write(key, attempt, serialize.dumps(value, share=True))
    assert segment is not None
    return segment


def get(memory: SharedMemory, holder: str, key: str = "k", attempt: int = -1) -> Any:
    found, closed = memory.read(holder, [(key, attempt)])
    assert not closed
    return serialize.loads(found[key].pieces) if key in found else None


def names(memory: SharedMemory) -> list[str]:
    """Files of segments, used ones and spares."""
    return [name for name in os.listdir(memory.directory) if name != USERS]


def wait_for(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come true")


def test_arrays_are_mapped_writable_and_everybodys_own(make: Callable[..., SharedMemory]) -> None:
    holder, a, b = make("w-1"), make("c-1"), make("c-2")
    array = np.arange(100_000.0)
    segment = put(holder, array)
    mine, yours = get(a, "w-1"), get(b, "w-1")
    assert mine.flags.writeable and mine.flags.aligned and mine.ctypes.data % files.PAGE == 0
    mine[:] = -1
    assert (yours == array).all()
    assert (serialize.loads(segment.pieces) == array).all()
    assert b"".join(segment.slice(0, segment.nbytes)) == serialize.dumps(array).tobytes()


@pytest.mark.parametrize("by", ["drop", "close", "replace", "sweep"])
def test_a_mapping_outlives_the_file(make: Callable[..., SharedMemory], by: str) -> None:
    holder, reader = make("w-1"), make("c-1")
    array = np.arange(100_000)
    segment: Segment | None = put(holder, array)
    mine = get(reader, "w-1")
    if by == "drop":
        segment = None
        wait_for(lambda: not names(holder))
    elif by == "close":
        holder.close()
    elif by == "replace":
        other = put(holder, np.zeros(100_000), attempt=2)
        assert other.shared and segment is not None and not segment.shared
    else:
        for name in os.listdir(holder.directory):
            os.unlink(f"{holder.directory}/{name}")
        assert segment is not None
        assert (serialize.loads(segment.pieces) == array).all()  # the holder's own mapping is still there
    assert (mine == array).all()
    del segment


def test_a_thousand_later_values_change_nothing(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1", limit=1 << 21), make("c-1")
    first = put(holder, np.full(20_000, 7))
    kept = get(reader, "w-1")
    del first
    for n in range(1000):
        wait_for(lambda: holder.used + (1 << 18) < holder.limit)
        segment = put(holder, np.full(20_000, n), attempt=n + 2)
        assert get(reader, "w-1")[0] == n
        del segment
    assert (kept == 7).all()


def test_a_mapping_keeps_no_descriptor(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    before = len(os.listdir("/proc/self/fd"))
    kept = [put(holder, np.arange(20_000), key=f"k{n}") for n in range(50)]
    arrays = [get(reader, "w-1", key=f"k{n}") for n in range(50)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # of the maker, whatever is mapped
    assert len(mappings) >= 100
    del kept, arrays
    gc.collect()
    assert len(mappings) < 100


def test_a_small_array_does_not_keep_a_large_segment(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    value = {"large": np.zeros(1_000_000), "small": np.arange(20_000.0)}
    segment = put(holder, value)
    before = len(mappings)
    mine = get(reader, "w-1")
    assert len(mappings) == before + 1
    del mine["large"]
    gc.collect()
    assert len(mappings) == before
    assert mine["small"].flags.writeable and (mine["small"] == value["small"]).all()
    del segment


def test_two_takers_of_one_mapping_have_nothing_in_common(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment = put(holder, np.arange(50_000))
    found, _ = reader.read("w-1", [("k", 1)])
    first, second = (serialize.loads(found["k"].pieces) for _ in range(2))
    first[:] = 0
    assert (second == np.arange(50_000)).all() and second.flags.writeable
    del segment


# --- what is found ----------------------------------------------------------------------------------------


def test_attempts_and_keys_that_do_not_fit_are_not_found(make: Callable[..., SharedMemory], place: Path) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment = put(holder, b"x" * 1000, attempt=5)
    assert get(reader, "w-1", attempt=5) == get(reader, "w-1", attempt=4) == get(reader, "w-1") == b"x" * 1000
    assert get(reader, "w-1", attempt=6) is None
    assert get(reader, "w-1", key="j") is None
    os.link(f"{holder.directory}/{files.file_name('k')}", f"{holder.directory}/{files.file_name('j')}")
    assert get(reader, "w-1", key="j") is None  # says itself that it is another key's
    del segment


def test_a_process_without_shared_memory_is_told_apart_from_one_without_the_key(
    make: Callable[..., SharedMemory],
) -> None:
    holder, reader = make("w-1"), make("c-1")
    assert reader.read("w-1", [("k", 1)]) == ({}, "")
    assert "no shared memory of its holder here" in reader.read("w-2", [("k", 1)])[1]
    holder.close()
    assert "no shared memory of its holder here" in reader.read("w-1", [("k", 1)])[1]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "short header", "other host", "link", "directory"])
def test_what_is_no_segment_is_refused(
    make: Callable[..., SharedMemory], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment = put(holder, np.arange(50_000))
    path = Path(holder.directory, files.file_name("k"))
    if damage == "cut":
        os.truncate(path, 50_000)
    elif damage == "empty":
        os.truncate(path, 0)
    elif damage == "garbage":
        path.write_bytes(os.urandom(50_000))
    elif damage == "short header":
        path.write_bytes(files.PRELUDE.pack(files.MAGIC, 1 << 20, b"w-1") + bytes(100))
    elif damage == "other host":
        monkeypatch.setattr(files, "host_id", lambda: "another")
    else:
        path.unlink()
        if damage == "link":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
    found, closed = reader.read("w-1", [("k", 1)])
    assert not found and closed
    if damage == "directory":
        path.rmdir()
    del segment


# --- limits ---------------------------------------------------------------------------------------------


def test_what_is_small_or_too_much_stays_where_it_is(
    make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = make("w-1", limit=200_000)
    monkeypatch.setattr(limits, "SHM_MIN", 1000)
    assert holder.write("small", 1, serialize.dumps(b"x" * 500)) is None
    first = put(holder, b"x" * 150_000)
    assert holder.write("j", 1, serialize.dumps(b"y" * 150_000)) is None
    del first
    wait_for(lambda: holder.used == 0)
    assert put(holder, b"y" * 150_000, key="j").shared


@pytest.mark.parametrize("size", [10, 200_000])
def test_what_does_not_go_there_leaves_nothing_of_what_had_its_key_before(
    make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Readers look there before they ask, and the old value may be referred to for a while yet."""
    writer, reader = make("a", limit=100_000), make("b")
    old = put(writer, np.ones(1000))
    monkeypatch.setattr(limits, "SHM_MIN", 100)
    assert writer.write("k", 2, Pieces([memoryview(bytes(size))])) is None
    assert reader.read("a", [("k", -1)]) == ({}, "")
    assert old.nbytes > 1000
    del old
    gc.collect()
    new = put(writer, np.zeros(1000), attempt=3)
    assert get(reader, "a").sum() == 0
    del new


def test_a_full_tmpfs_is_no_error(make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    holder = make("w-1")
    written = 0

    def full(fd: int, buffers: list[Any], offset: int) -> int:
        nonlocal written
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.pwrite(fd, bytes(buffers[0])[:100], offset)
        return written

    monkeypatch.setattr(files.os, "pwritev", full)
    assert holder.write("k", 1, serialize.dumps(np.arange(50_000))) is None
    assert holder.used == 0 and names(holder) == []
    monkeypatch.undo()


def test_writes_that_go_in_part_go_on(make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    holder, reader = make("w-1"), make("c-1")
    step = iter(range(1, 10**6, 7919))

    def stingy(fd: int, buffers: list[Any], offset: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[: next(step)], offset)

    monkeypatch.setattr(files.os, "pwritev", stingy)
    segment = put(holder, [np.arange(20_000), np.arange(30_000.0)])
    first, second = get(reader, "w-1")
    assert (first == np.arange(20_000)).all() and (second == np.arange(30_000.0)).all()
    del segment


def test_too_many_mappings_are_refused(make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment = put(holder, b"x" * 10_000)
    monkeypatch.setattr(limits, "SHM_MAPPINGS", 0)
    found, closed = reader.read("w-1", [("k", 1)])
    assert not found and "mappings already" in closed
    del segment


def test_where_there_is_none_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_SHM_DIR", str(tmp_path / "nowhere"))
    assert shm.default_limit() == 0
    assert shm.connect("c-1", None) is None and shm.connect("c-1", ROOM) is None
    shm.sweep_all()
    monkeypatch.setenv("ZDIST_SHM_DIR", str(tmp_path))
    assert shm.connect("c-1", 0) is None
    memory = shm.connect("c-1", None)
    assert memory is not None and 0 < memory.limit == pytest.approx(shm.default_limit(), rel=0.1)
    memory.close()
    memory.close()
    assert memory.write("k", 1, serialize.dumps(b"x" * limits.SHM_MIN)) is None


# --- handing on -----------------------------------------------------------------------------------------


def test_what_is_adopted_outlives_its_first_holder_and_can_be_had_from_both(
    make: Callable[..., SharedMemory],
) -> None:
    first, second, reader = make("w-1"), make("w-2", adopt=True), make("c-1")
    array = np.arange(50_000)
    segment: Segment | None = put(first, array)
    found, _ = second.read("w-1", [("k", 1)])
    replica: Any = found["k"]
    assert isinstance(replica, Segment) and replica.shared
    paths = [Path(memory.directory, files.file_name("k")) for memory in (first, second)]
    assert paths[0].samefile(paths[1])
    own = serialize.loads(replica.pieces)
    own[:] = 0
    del segment
    wait_for(lambda: not names(first))
    assert (get(reader, "w-2") == array).all()
    del replica, found
    wait_for(lambda: not names(second))
    assert first.used == second.used == 0


def test_what_cannot_be_adopted_is_mapped(make: Callable[..., SharedMemory]) -> None:
    first, second = make("w-1"), make("w-2", limit=1000, adopt=True)
    segment = put(first, np.arange(50_000))
    found, _ = second.read("w-1", [("k", 1)])
    replica = found["k"]
    assert isinstance(replica, Mapped) and not replica.shared
    assert b"".join(replica.slice(0, replica.nbytes)) == b"".join(segment.slice(0, segment.nbytes))
    assert names(second) == []


# --- ends -----------------------------------------------------------------------------------------------


def test_a_forked_child_takes_nothing_away(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment: Segment | None = put(holder, b"x" * 10_000)
    pid = os.fork()
    if pid == 0:
        try:
            segment = None
            holder.close()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert get(reader, "w-1") == b"x" * 10_000
    assert segment is not None


def test_what_a_killed_process_left_is_swept_what_a_living_one_has_is_not(place: Path) -> None:
    program = (
        "import sys, os, signal\nfrom zdist import limits, serialize\nlimits.SHM_MIN = 1\n"
        "from zdist.transport.shm import SharedMemory\n"
        "memory = SharedMemory(sys.argv[1], 1 << 28)\n"
        "kept = memory.write('k', 1, serialize.dumps(b'x' * 10_000))\n"
        "print('ready', flush=True)\nsys.stdin.read()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in ("w-1", "w-2")
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert processes[0].stdin is not None
        processes[0].stdin.close()
        assert processes[0].wait(20) != 0
        assert len(list(place.iterdir())) == 2
        memory = SharedMemory("c-1", ROOM)
        assert sorted(path.name for path in place.iterdir()) == [f"{shm.prefix()}c-1", f"{shm.prefix()}w-2"]
        assert get(memory, "w-2") == b"x" * 10_000
        shm.sweep_all("w-2")
        assert get(memory, "w-2") == b"x" * 10_000
        memory.close()
    finally:
        for process in processes:
            process.kill()
            with process:
                process.wait(20)
    shm.sweep_all("w-2")
    assert list(place.iterdir()) == []


def test_files_are_for_their_owner_alone(make: Callable[..., SharedMemory], place: Path) -> None:
    holder = make("w-1")
    segment = put(holder, b"x" * 10_000)
    (directory,) = place.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    del segment


def test_many_threads_at_once(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    wrong: list[Any] = []

    def work(number: int) -> None:
        for n in range(30):
            key = f"k{n % 3}"  # that others write, too
            segment = put(holder, np.full(3_000, number), key=key, attempt=n)
            found, closed = reader.read("w-1", [(key, -1)])
            for blob in found.values():
                array = serialize.loads(blob.pieces)
                if closed or len(set(array.tolist())) != 1:
                    wrong.append((closed, array))
            if set(serialize.loads(segment.pieces).tolist()) != {number}:
                wrong.append(segment)
            del segment

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    wait_for(lambda: not names(holder))
    assert holder.used == 0 and holder.current == {}


# --- any shape --------------------------------------------------------------------------------------------

shapes = st.lists(st.sampled_from((0, 1, 63, 64, 100, 4095, 4096, 4097, 70_000)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes, st.integers(0, 300_000), st.integers(0, 300_000), st.text(min_size=1, max_size=20))
def test_any_range_of_any_shape(make: Any, sizes: list[int], offset: int, length: int, key: str) -> None:
    holder, reader = make_once(make)
    pieces = [bytes([n % 251]) * size for n, size in enumerate(sizes, 1)]
    whole = b"".join(pieces)
    segment = holder.write(key, 3, Pieces(pieces))
    if not whole:
        assert segment is None
        return
    assert segment is not None and segment.nbytes == len(whole)
    found, closed = reader.read("w-1", [(key, 3)])
    assert not closed and found[key].nbytes == len(whole) and found[key].attempt == 3
    for blob in (segment, found[key]):
        assert b"".join(blob.slice(offset, length)) == (whole[offset : offset + length] if length else b"")
    assert b"".join(found[key].pieces) == b"".join(segment.pieces) == whole
    assert all(start % (files.PAGE if size >= files.PAGE else 64) == 0 for start, size in segment.header.table)


_made: dict[int, tuple[SharedMemory, SharedMemory]] = {}


def make_once(make: Callable[..., SharedMemory]) -> tuple[SharedMemory, SharedMemory]:
    """The same pair for all examples of a test."""
    if id(make) not in _made:
        _made[id(make)] = (make("w-1"), make("c-1"))
    return _made[id(make)]


def test_a_cleaner_that_is_about_to_start_ends_with_its_memory(
    make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client of this process makes something that has to be given back, just when this one is closed."""
    memory = make("w-1")
    reached, go_on = threading.Event(), threading.Event()
    start = threading.Thread.start

    def slow_start(thread: threading.Thread) -> None:
        if thread.name == "zdist-shm":
            reached.set()
            assert go_on.wait(10)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", slow_start)
    errors: list[BaseException] = []

    def close() -> None:
        try:
            memory.close()
        except BaseException as exc:
            errors.append(exc)

    writer = threading.Thread(target=put, args=(memory, np.ones(100)))
    closer = threading.Thread(target=close)
    writer.start()
    assert reached.wait(10)
    closer.start()
    closer.join(0.1)  # it fails within that, or waits for the other
    go_on.set()
    for thread in (writer, closer):
        thread.join(10)
    assert not errors
    assert memory.cleaner is not None and not memory.cleaner.is_alive()
