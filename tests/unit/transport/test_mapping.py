"""Segments that are used again: nobody ever sees anything but the value that was asked for."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from zdist import limits, serialize
from zdist.transport import claims
from zdist.transport import mapping as mapping_module
from zdist.transport.blobs import Segment
from zdist.transport.mapping import Turnstile, mappings
from zdist.transport.shm import SharedMemory

ROOM = 1 << 26
SIZE = 50_000


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SharedMemory]]:
    monkeypatch.setenv("ZDIST_SHM_DIR", str(tmp_path))
    monkeypatch.setattr(limits, "SHM_MIN", 1)
    monkeypatch.setattr(limits, "REGION_IDLE", 60.0)
    made: list[SharedMemory] = []

    def make(session: str, limit: int = ROOM, **options: Any) -> SharedMemory:
        made.append(SharedMemory(session, limit, **options))
        return made[-1]

    yield make
    for memory in made:
        memory.close()
    gc.collect()
    assert not mappings.idle


def put(memory: SharedMemory, number: int, key: str = "k", size: int = SIZE) -> Segment:
    segment = memory.write(key, number, serialize.dumps(np.full(size, number), share=True))
    assert segment is not None
    return segment


def get(memory: SharedMemory, holder: str, key: str = "k") -> Any:
    found, closed = memory.read(holder, [(key, -1)])
    assert not closed
    return serialize.loads(found[key].pieces) if key in found else None


def written_to(holder: SharedMemory, number: int, size: int = SIZE) -> tuple[int, int]:
    """Put a value, look at it and let it go; the file that it was in."""
    segment = put(holder, number, key=f"k{number}", size=size)
    assert (serialize.loads(segment.pieces) == number).all()
    return segment.inode, segment.room


def test_a_file_that_nobody_looks_at_is_written_anew(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    first = put(holder, 1)
    array = get(reader, "w-1")
    address, inode = array.ctypes.data, first.inode
    array[:] = -1
    del first, array
    second = put(holder, 2)
    assert second.inode == inode
    array = get(reader, "w-1")
    assert array.ctypes.data == address  # and so are the pages of the reader
    assert (array == 2).all() and array.flags.writeable
    assert (serialize.loads(second.pieces) == 2).all()


def test_only_pages_that_were_written_to_are_looked_up_again(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    thrown: list[int] = []
    madvise = mappings.libc.madvise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mappings.libc, "madvise", lambda *about: thrown.append(about[1]) or madvise(*about))
        for number in range(4):
            segment = put(holder, number)
            array = get(reader, "w-1")
            assert (array == number).all()
            if number == 2:
                array[1000] = 7
            del segment, array
    assert len(thrown) == 1 and thrown[0] >= SIZE * 8


@pytest.mark.parametrize("why", ["no pagemap", "short pagemap"])
def test_where_pages_cannot_be_told_apart_they_are_mapped_anew(
    make: Callable[..., SharedMemory], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment = put(holder, 1)
    array = get(reader, "w-1")
    array[:] = -1
    del segment, array

    def pread(fd: int, length: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/pagemap"):
            if why == "no pagemap":
                raise PermissionError
            return b""
        return os.preadv(fd, [room := bytearray(length)], offset) and bytes(room)

    monkeypatch.setattr(mapping_module.os, "pread", pread)
    segment = put(holder, 2)
    array = get(reader, "w-1")
    monkeypatch.undo()
    assert (array == 2).all()
    assert segment.shared


def test_what_is_looked_at_is_left_alone(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment: Segment | None = put(holder, 1)
    assert segment is not None
    inode = segment.inode
    array = get(reader, "w-1")
    segment = None
    assert written_to(holder, 2)[0] != inode
    assert written_to(holder, 3)[0] != inode
    assert (array == 1).all()
    part = array[7:9]
    del array
    assert written_to(holder, 4)[0] != inode
    assert (part == 1).all()
    frames = put(holder, 5, key="j")
    sent, inode_sent = frames.slice(0, frames.nbytes), frames.inode  # as a socket that has not sent it yet
    del frames
    assert written_to(holder, 6)[0] != inode_sent
    assert b"".join(sent) == serialize.dumps(np.full(SIZE, 5)).tobytes()
    del part, sent
    inodes = {inode, inode_sent}
    kept = [put(holder, n, key=f"j{n}") for n in range(7, 12)]
    assert inodes <= {segment.inode for segment in kept}


def test_sizes_that_differ_do_not_share_files(make: Callable[..., SharedMemory]) -> None:
    holder = make("w-1")
    inode, room = written_to(holder, 1, size=100_000)
    assert written_to(holder, 2, size=50_000)[0] != inode  # half of it would lie idle
    assert written_to(holder, 3, size=90_000) == (inode, room)
    assert written_to(holder, 4, size=100_000) == (inode, room)


def test_spares_make_room_for_new_files(make: Callable[..., SharedMemory]) -> None:
    holder = make("w-1", limit=1_000_000)
    kept = [put(holder, n, key=f"k{n}", size=40_000) for n in range(3)]
    del kept[1:]
    assert len(holder.spares) == 2
    large = put(holder, 9, key="large", size=80_000)
    assert not holder.spares
    assert (serialize.loads(large.pieces) == 9).all()
    assert holder.used <= holder.limit


def test_spares_are_bounded(make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    holder = make("w-1")
    monkeypatch.setattr(limits, "SEGMENTS_KEPT", 3 * SIZE * 8)
    kept = [put(holder, n, key=f"k{n}") for n in range(6)]
    kept.clear()
    assert len(holder.spares) == 2


def test_one_being_written_anew_is_not_found(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment = put(holder, 1)
    fd = os.open(f"{holder.directory}/{segment.name}", os.O_RDWR)
    mappings.claims.give_up(holder.directory, segment.inode)  # as if nobody had it
    assert claims.lock(holder.users, segment.inode)
    assert get(reader, "w-1") is None
    os.pwrite(fd, bytes(4), 8)
    claims.unlock(holder.users, segment.inode)
    assert get(reader, "w-1") is None  # its maker was killed half way
    os.close(fd)
    mappings.claims.take(holder.directory, segment.inode)


def test_files_of_others_are_not_written_to(make: Callable[..., SharedMemory]) -> None:
    first, second, reader = make("w-1"), make("w-2", adopt=True), make("c-1")
    segment: Segment | None = put(first, 1)
    assert segment is not None
    inode = segment.inode
    found, _ = second.read("w-1", [("k", 1)])
    array = get(reader, "w-2")
    segment = None
    assert written_to(first, 2)[0] != inode  # the second holder has it
    found.clear()
    assert not second.spares
    assert written_to(first, 3)[0] != inode  # what came by the second holder is still looked at
    assert written_to(second, 3)[0] != inode
    assert (array == 1).all()
    del array
    kept = [put(first, n, key=f"j{n}") for n in range(4, 7)]
    assert inode in {segment.inode for segment in kept}


READER = """
import os, sys
from zdist import limits, serialize
limits.SHM_MIN = 1
from zdist.transport.shm import SharedMemory
memory = SharedMemory("c-9", 1 << 28)
def get():
    found, closed = memory.read("w-1", [("k", -1)])
    return serialize.loads(found["k"].pieces)
array = get()
"""
HOLDS = (
    READER
    + """
print(int(array[0]), flush=True)
sys.stdin.readline()
print(set(array.tolist()), flush=True)
del array
print("let go", flush=True)
sys.stdin.readline()
"""
)
FORKS = (
    READER
    + """
pid = os.fork()
if pid == 0:
    print(int(array[0]), flush=True)
    sys.stdin.readline()
    print(set(array.tolist()), flush=True)
    os._exit(0)
del array
os.waitpid(pid, 0)
memory.close()
print("let go", flush=True)
sys.stdin.readline()
"""
)


@pytest.mark.parametrize("how", ["holds", "forks", "killed"])
def test_other_processes_are_waited_for(make: Callable[..., SharedMemory], how: str) -> None:
    holder = make("w-1")
    segment: Segment | None = put(holder, 1)
    assert segment is not None
    inode = segment.inode
    program = [sys.executable, "-c", FORKS if how == "forks" else HOLDS]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "1\n"
            segment = None
            assert written_to(holder, 2)[0] != inode
            assert written_to(holder, 3)[0] != inode
            if how == "killed":
                process.kill()
                process.wait(20)
            else:
                process.stdin.write("look\n")
                process.stdin.flush()
                assert process.stdout.readline() == "{1}\n"
                assert process.stdout.readline() == "let go\n"
            kept = [put(holder, n, key=f"k{n}") for n in range(4, 7)]
            # what was ever mapped in two processes is not used again while one of them lives
            assert (inode in {segment.inode for segment in kept}) == (how != "forks")
        finally:
            process.kill()


def test_a_forked_child_leaves_the_claims_of_its_parent(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    segment: Segment | None = put(holder, 1)
    assert segment is not None
    inode = segment.inode
    array = get(reader, "w-1")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            same = bool((array == 1).all())
            segment = array = None
            gc.collect()
            code = 0 if same and not mappings.claims.makers else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    segment = None
    assert written_to(holder, 2)[0] != inode
    assert (array == 1).all()


class Last:
    """Looks at a view while it is being collected, and keeps it."""

    seen: list[memoryview]

    def __init__(self, view: memoryview) -> None:
        self.view, self.me = view, self

    def __del__(self) -> None:
        Last.seen.append(self.view)


def test_a_view_in_a_garbage_cycle_counts_until_its_finalizers_have_run(make: Callable[..., SharedMemory]) -> None:
    holder, reader = make("w-1"), make("c-1")
    Last.seen = []
    segment: Segment | None = put(holder, 1)
    assert segment is not None
    inode = segment.inode
    found, _ = reader.read("w-1", [("k", -1)])
    Last(found.pop("k").slice(0, 1 << 20)[-1])
    segment = None
    gc.collect()
    before = bytes(Last.seen[0])
    assert written_to(holder, 2)[0] != inode
    assert bytes(Last.seen[0]) == before
    Last.seen.clear()


def test_without_the_file_of_claims_nothing_is_claimed_and_nothing_written_anew(
    make: Callable[..., SharedMemory],
) -> None:
    holder = make("w-1")
    assert claims.lock(holder.users, 7)
    claims.unlock(holder.users, 7)
    os.unlink(f"{holder.directory}/{claims.USERS}")  # somebody has swept here by hand
    assert not claims.lock(holder.users, 7)
    with pytest.raises(FileNotFoundError):
        claims.Claims().take(holder.directory, 7)
    holder.close()
    claims.Claims().take(holder.directory, 7)  # whoever is gone writes nothing


def test_idle_mappings_go_in_time_however_busy_the_cleaner_is(
    make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REGION_IDLE", 0.05)
    holder, reader = make("w-1"), make("c-1")
    segment = put(holder, 1)
    assert get(reader, "w-1") is not None
    end = time.monotonic() + 20
    while mappings.idle and time.monotonic() < end:
        for memory in (holder, reader):
            memory.unwanted.put(f"{memory.directory}/nothing")
    assert not mappings.idle
    del segment


def test_who_stays_sweeps_for_who_leaves(make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REGION_IDLE", 0.05)
    holder, reader, other = make("w-1"), make("c-1"), make("c-2")
    segment: Segment | None = put(holder, 1)
    array = get(reader, "w-1")
    assert segment is not None and other.cleaner is None
    reader.close()
    segment = None
    holder.close()
    del array
    end = time.monotonic() + 20
    while mappings.idle and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert not mappings.idle


def test_what_is_kept_is_bounded(make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    holder, reader = make("w-1"), make("c-1")
    kept = [put(holder, n, key=f"k{n}") for n in range(20)]
    monkeypatch.setattr(limits, "SEGMENTS_KEPT", SIZE * 10)
    for n in range(20):
        assert (get(reader, "w-1", f"k{n}") == n).all()
    assert 0 < mappings.kept <= 4 * limits.SEGMENTS_KEPT
    assert mappings.kept == sum(mapping.size for mapping in mappings.idle.values())
    del kept


def test_adopting_one_file_again_leaves_no_second_link(make: Callable[..., SharedMemory]) -> None:
    first, second = make("w-1"), make("w-2", adopt=True)
    segment = put(first, 1)
    for _ in range(3):
        found, _ = second.read("w-1", [("k", 1)])
        again, _ = second.read("w-1", [("k", 1)])
        assert len([name for name in os.listdir(second.directory) if name.startswith("new-")]) == 0
        found.clear()
        again.clear()
    assert second.used == 0
    del segment


def test_one_mapping_too_many_is_done_without(
    make: Callable[..., SharedMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = make("w-1")
    segment = put(holder, 1)
    monkeypatch.setattr(limits, "SHM_MAPPINGS", 0)
    assert (serialize.loads(segment.pieces) == 1).all()


def test_what_ends_inside_of_a_turnstile_ends_when_it_is_left() -> None:
    ended: list[int] = []
    turnstile: Turnstile[int] = Turnstile(ended.append)
    turnstile.ended(1)
    with turnstile.lock:
        turnstile.ended(2)
        turnstile.ended(3)
        assert ended == [1]
    turnstile.settle()
    assert ended == [1, 2, 3]


class Reuse(RuleBasedStateMachine):
    """Two holders, of which one adopts, and a reader: whatever is held stays as it was."""

    segments = Bundle("segments")
    arrays = Bundle("arrays")

    def __init__(self) -> None:
        super().__init__()
        self.memories = [SharedMemory("w-1", 1 << 22), SharedMemory("w-2", 1 << 22, adopt=True)]
        self.reader = SharedMemory("c-1", 1 << 20)
        self.number = 0
        self.alive: dict[int, tuple[Any, int]] = {}
        self.blobs: dict[int, tuple[Any, int]] = {}

    def keep(self, blob: Any, number: int) -> int:
        self.blobs[id(blob)] = (blob, number)
        return id(blob)

    @rule(target=segments, who=st.sampled_from([0, 1]), key=st.sampled_from("abc"), size=st.sampled_from([3000, 3100]))
    def write(self, who: int, key: str, size: int) -> Any:
        self.number += 1
        blob = self.memories[who].write(key, self.number, serialize.dumps(np.full(size, self.number), share=True))
        return self.keep(blob, self.number) if blob is not None else 0

    @rule(target=segments, key=st.sampled_from("abc"))
    def adopt(self, key: str) -> Any:
        found, _ = self.memories[1].read("w-1", [(key, -1)])
        return self.keep(found[key], found[key].attempt) if found else 0

    @rule(target=arrays, who=st.sampled_from([0, 1]), key=st.sampled_from("abc"), change=st.booleans())
    def read(self, who: int, key: str, change: bool) -> Any:
        found, _ = self.reader.read(f"w-{who + 1}", [(key, -1)])
        return self.hold(found[key], found[key].attempt, change) if found else 0

    @rule(target=arrays, segment=segments, change=st.booleans())
    def use(self, segment: int, change: bool) -> Any:
        blob, number = self.blobs.get(segment, (None, 0))
        return self.hold(blob, number, change) if blob is not None else 0

    def hold(self, blob: Any, number: int, change: bool) -> int:
        array = serialize.loads(blob.pieces)
        assert (array == number).all()
        if change:
            array[1500:] = -number
        self.alive[id(array)] = (array, -number if change else number)
        return id(array)

    @rule(segment=consumes(segments))
    def drop(self, segment: int) -> None:
        self.blobs.pop(segment, None)

    @rule(array=consumes(arrays))
    def let_go(self, array: int) -> None:
        self.alive.pop(array, None)

    @invariant()
    def nothing_has_changed(self) -> None:
        for array, number in self.alive.values():
            assert (array[:1500] == abs(number)).all() and (array[1500:] == number).all()
        for blob, number in self.blobs.values():
            assert (serialize.loads([b"".join(blob.slice(0, blob.nbytes))]) == number).all()

    def teardown(self) -> None:
        self.alive.clear()
        self.blobs.clear()
        memories = (*self.memories, self.reader)
        used = [memory.used for memory in memories]
        for memory in memories:
            memory.close()
        assert used == [0, 0, 0]


def test_nothing_ever_changes_for_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_SHM_DIR", str(tmp_path))
    monkeypatch.setattr(limits, "SHM_MIN", 1)
    run_state_machine_as_test(Reuse, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
    assert not mappings.live and not mappings.idle
    assert not [directory for directory in mappings.claims.makers if directory.startswith(str(tmp_path))]
