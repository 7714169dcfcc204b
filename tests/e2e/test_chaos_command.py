"""``zdist chaos``: a short one, and that it notices when something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from zdist.cli import chaos_works
from zdist.cli.chaos_cluster import FAULTS, Chaos, Program
from zdist.cli.chaos_works import Tally
from zdist.node.process import child_environment

COMMAND = [sys.executable, "-P", "-m", "zdist", "chaos"]


def test_a_short_one_keeps_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FAULTS, "user killed")  # which takes a lease to be forgotten
    with Chaos(5, every=1.0, broker_share=0.3) as chaos:
        report = chaos.run(9.0)
    assert report.wrongs == []
    assert report.faults.total() >= 7
    assert report.futures > 0
    assert not chaos.folder.exists()


def test_the_command_tells_programs_what_it_found() -> None:
    done = subprocess.run(
        [*COMMAND, "--minutes", "0.02", "--every", "60", "--workers", "1", "--seed", "5", "--json"],
        stdout=subprocess.PIPE,
        env=child_environment(),
        check=False,
        timeout=300,
    )
    report = json.loads(done.stdout)
    assert report["wrongs"] == []
    assert done.returncode == 0
    assert report["futures"] > 0
    assert report["samples"] and report["seed"] == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_ends_it_early_ends_the_cluster(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**child_environment(), "TEST_CHAOS": str(tmp_path)}
    with subprocess.Popen([*COMMAND, "--every", "60"], stderr=subprocess.DEVNULL, env=environment) as chaos:
        deadline = time.monotonic() + 60
        while len(found := homes(tmp_path)) < 7:  # a broker, two nodes and four workers
            assert time.monotonic() < deadline, found
            threading.Event().wait(0.05)
        (home,) = set(found)
        chaos.send_signal(number)
        assert chaos.wait(60) == 1
    assert homes(tmp_path) == []
    assert not home.exists()


def homes(tmp_path: Path) -> list[Path]:
    """The directory of its cluster, for each process of that which lives."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("TEST_CHAOS") == str(tmp_path) and "ZDIST_RUNTIME_DIR" in environment:
                found.append(Path(environment["ZDIST_RUNTIME_DIR"]).parent)
    return found


def answers_wrongly(number: int) -> int:
    return number


def test_wrong_answers_and_what_is_left_behind_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_works, "square", answers_wrongly)
    monkeypatch.setattr(chaos_works, "WORKS", (chaos_works.squares,))
    with Chaos(1, nodes=1, workers=1, users=1, every=60.0) as chaos:
        (chaos.memory / "segment").touch()
        report = chaos.run(1.0)
    assert any("squares: ZdistError: squares: [0, 1, 2" in wrong for wrong in report.wrongs)
    assert any(wrong == f"left behind: 1 files, such as {chaos.memory / 'segment'}" for wrong in report.wrongs)
    assert "ZDIST_SHM_DIR" not in os.environ or os.environ["ZDIST_SHM_DIR"] != str(chaos.memory)
    assert not chaos.memory.exists()
    assert Path(chaos.folder, "broker.log").exists()  # kept, as something was wrong
    shutil.rmtree(chaos.folder)


@pytest.mark.parametrize(("command", "begun"), [(["sleep", "600"], False), (["true"], True)])
def test_only_a_user_that_had_not_begun_may_tell_nothing(command: list[str], begun: bool) -> None:
    chaos = Chaos(1)
    try:
        chaos.user = Program("user", command, chaos.folder)
        chaos.user.start()
        if begun:
            assert chaos.user.process is not None
            chaos.user.process.wait()
        chaos._end_user()
        assert bool(chaos.report.wrongs) == begun
    finally:
        shutil.rmtree(chaos.folder)
        shutil.rmtree(chaos.memory)


class Twice:
    """A future that is resolved twice, or never."""

    def __init__(self, times: int) -> None:
        self.times = times

    def add_done_callback(self, call: object) -> None:
        assert callable(call)
        for _ in range(self.times):
            call(self)


def test_futures_that_are_resolved_twice_or_never_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_works, "PATIENCE", 0.05)
    tally = Tally()
    tally.take([Twice(2), Twice(1), Twice(0)])
    tally.settle("work")
    assert tally.wrongs == ["work: 1 futures were resolved 0 times", "work: 1 futures were resolved 2 times"]
    assert tally.futures == 3


def test_each_role_is_killed_and_stopped() -> None:
    assert {name.split()[0] for name in FAULTS} == {"worker", "node", "user", "broker"}
    assert {name.split()[1] for name in FAULTS} == {"killed", "stopped"}
