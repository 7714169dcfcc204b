"""Progress in a real terminal (a pseudo one): bars move by bytes, go away cleanly, and leave standard output alone."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEADLINE = 40.0

PROGRAM = """
import sys, time
from zdist import Client, LocalCluster, progress, wait

def nap(seconds):
    time.sleep(seconds)

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster, gather_paths=("relay",)) as client:
        if sys.argv[1] == "bytes":
            futures = client.map(bytes, [8_000_000] * 12, pure=False)
            wait(futures)
            print("sizes", {len(value) for value in client.gather(futures, progress=True)})
        elif sys.argv[1] == "tasks":
            progress(client.map(abs, range(1000)), client.map(nap, [0.2] * 10, pure=False))
            print("over")
        else:
            client.gather(client.submit(nap, 60), progress=True)
"""


class Terminal:
    """A program whose standard error is a terminal and whose standard output is a pipe."""

    def __init__(self, folder: Path, what: str) -> None:
        (folder / "program.py").write_text(PROGRAM)
        self.screen, end = pty.openpty()
        env = dict(os.environ, TERM="xterm", COLUMNS="100", ZDIST_RUNTIME_DIR=str(folder / "run"))
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "program.py"), what],
            stdout=subprocess.PIPE,
            stderr=end,
            text=True,
            env=env,
            start_new_session=True,
        )
        os.close(end)
        self.seen = ""

    def read(self, until: str = "") -> str:
        """What has been drawn, until that is among it, or until the end."""
        deadline = time.monotonic() + DEADLINE
        while not until or until not in plain(self.seen):
            assert time.monotonic() < deadline, f"{until!r} was not drawn: {plain(self.seen)[-500:]!r}"
            if select.select([self.screen], [], [], 1.0)[0]:
                try:
                    data = os.read(self.screen, 1 << 16)
                except OSError:  # the other end is closed
                    data = b""
                if not data:
                    break
                self.seen += data.decode()
        return plain(self.seen)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


Start = Callable[[str], Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "run").mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:

        def start(what: str) -> Terminal:
            terminal = Terminal(tmp_path, what)
            stack.callback(os.close, terminal.screen)
            stack.callback(end, terminal.process)
            return terminal

        yield start


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def test_a_gather_goes_by_bytes(start: Start) -> None:
    terminal = start("bytes")
    drawn = terminal.read()
    out, _ = terminal.process.communicate(timeout=DEADLINE)
    assert terminal.process.returncode == 0 and out == "sizes {8000000}\n"
    volumes = [float(text) for text in re.findall(r"([\d.]+) [kM]?B of 96\.0 MB", drawn)]
    assert volumes and volumes[-1] == 96.0
    assert "12/12 96.0 MB of 96.0 MB" in drawn.splitlines()[-1]


def test_tasks_have_a_bar_each_that_moves(start: Start) -> None:
    terminal = start("tasks")
    drawn = terminal.read()
    out, _ = terminal.process.communicate(timeout=DEADLINE)
    assert terminal.process.returncode == 0 and out == "over\n"
    done = [int(text) for text in re.findall(r"nap .*? (\d+)/10", drawn)]
    assert done == sorted(done) and done[-1] == 10 and len(set(done)) > 2
    assert "1,000/1,000" in drawn and terminal.seen.rstrip().endswith("\x1b[?25h")


def test_an_interrupt_leaves_the_terminal_in_order(start: Start) -> None:
    terminal = start("wait")
    terminal.read(until="0/1")
    terminal.process.send_signal(signal.SIGINT)
    drawn = terminal.read()
    assert "KeyboardInterrupt" in drawn
    assert terminal.seen.rfind("\x1b[?25h") > terminal.seen.rfind("\x1b[?25l")  # the cursor is back
    assert drawn.index("0/1") < drawn.index("Traceback") and "\nTraceback" in drawn  # on a line of its own
    terminal.process.communicate(timeout=DEADLINE)
    assert terminal.process.returncode == -signal.SIGINT
