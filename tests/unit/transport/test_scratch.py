"""Directories and files that go with their owners, and what is left of owners that were killed."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zdist.transport import scratch
from zdist.transport.scratch import LockedFile, Scratch, sweep

PATIENCE = 30.0


def test_a_directory_is_private_and_goes_with_its_owner(tmp_path: Path) -> None:
    directory = Scratch(tmp_path, "x-")
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert directory.path.parent == tmp_path
    (directory.path / "socket").touch()
    directory.remove()
    directory.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_private_replaces_an_old_one_and_goes_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "x-file"
    path.write_text("old")
    file = LockedFile(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_only_what_has_no_owner_is_swept(tmp_path: Path) -> None:
    live, dead = Scratch(tmp_path, "x-"), Scratch(tmp_path, "x-")
    file, orphan = LockedFile(tmp_path / "x-live", ""), LockedFile(tmp_path / "x-dead", "")
    (dead.path / "socket").touch()
    other = tmp_path / "y-other"
    other.touch()
    dead.release()
    orphan.release()
    sweep(tmp_path, "x-")
    assert sorted(tmp_path.iterdir()) == sorted([live.path, file.path, other])
    live.remove()
    file.remove()


def test_making_one_sweeps_those_of_its_kind(tmp_path: Path) -> None:
    dead = Scratch(tmp_path, "x-")
    dead.release()
    fresh = Scratch(tmp_path, "x-")
    assert list(tmp_path.iterdir()) == [fresh.path]
    fresh.remove()


def test_what_was_swept_before_it_had_its_lock_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, stolen = scratch.fcntl.flock, []

    def flock(lock: int, how: int) -> None:
        if not stolen:  # a sweeper comes between mkdtemp and flock
            stolen.append(next(tmp_path.iterdir()))
            stolen[0].rmdir()
        real(lock, how)

    monkeypatch.setattr(scratch.fcntl, "flock", flock)
    directory = Scratch(tmp_path, "x-")
    assert directory.path.is_dir()
    assert list(tmp_path.iterdir()) == [directory.path]
    directory.remove()


def test_whoever_put_another_in_its_place_keeps_it(tmp_path: Path) -> None:
    first = LockedFile(tmp_path / "x", "1")
    second = LockedFile(tmp_path / "x", "2")
    first.remove()
    assert (tmp_path / "x").read_text() == "2"
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "x-link").symlink_to(precious)
    sweep(tmp_path, "x-")
    assert precious.is_dir()


def test_many_at_once_do_not_sweep_each_other(tmp_path: Path) -> None:
    made: list[Scratch] = []
    threads = [
        threading.Thread(target=lambda: made.extend(Scratch(tmp_path, "x-") for _ in range(20))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(made) == 80
    assert all(directory.path.is_dir() for directory in made)
    for directory in made:
        directory.remove()


def test_a_killed_process_leaves_what_is_swept_although_its_forked_child_lives(tmp_path: Path) -> None:
    program = f"""
import os, sys, signal
from pathlib import Path
from zdist.transport.scratch import Scratch
directory = Scratch(Path({str(tmp_path)!r}), "x-")
child = os.fork()
if child:
    signal.pause()
directory.remove()  # not the child's
os.write(1, b"%d" % os.getpid() + bytes([10]))
os.close(1)
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        sweep(tmp_path, "x-")
        assert len(list(tmp_path.iterdir())) == 1
        process.kill()
        process.wait(PATIENCE)
        sweep(tmp_path, "x-")
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.communicate()
        fd = os.pidfd_open(child)
        os.kill(child, signal.SIGKILL)
        gone = select.select([fd], [], [], PATIENCE)[0]
        os.close(fd)
    assert gone
