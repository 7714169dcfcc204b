"""The worker's process: how it is started, what ends it, and results and options at its edges."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from zdist.transport.security import write_token
from zdist.worker import results
from zdist.worker.process import Settings, Worker, parser

DEADLINE = 30.0


@pytest.fixture
def process(tmp_path: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose broker is not there; it has printed a line when its pool runs."""
    token = tmp_path / "token"
    write_token("secret", token)
    code = (
        "import sys, zdist.worker.process as p; s = p.Worker.start;"
        "p.Worker.start = lambda self: (s(self), print('started', self.address, flush=True));"
        "sys.exit(p.main(sys.argv[1:]))"
    )
    options = ["--control", "tcp://127.0.0.1:9", "--token-file", str(token), "--name", "one", "--node", "n-1"]
    options += ["--slot", str(tmp_path / "slot"), "--nthreads", "2", "--resource", "gpu=1.5", "--tag", "a"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"started tcp://127.0.0.1:")
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def test_a_worker_ends_when_its_node_does(process: subprocess.Popen[bytes], tmp_path: Any) -> None:
    assert (tmp_path / "slot").stat().st_size > 0
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(DEADLINE) == 1


def test_sigterm_ends_a_worker_in_good_order_and_sigint_does_not(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0


def test_a_data_socket_that_a_network_can_reach_is_refused(tmp_path: Any) -> None:
    token = tmp_path / "token"
    write_token("secret", token)
    options = ["--control", "tcp://127.0.0.1:9", "--token-file", str(token), "--data-bind", "tcp://0.0.0.0:0"]
    done = subprocess.run(
        [sys.executable, "-m", "zdist.worker", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=DEADLINE,
    )
    assert done.returncode == 1 and b"zdist worker: " in done.stderr and b"0.0.0.0" in done.stderr


def test_a_worker_in_a_thread_leaves_nothing_behind() -> None:
    import logging
    import threading

    before = list(logging.getLogger().handlers)
    worker = Worker(Settings("tcp://127.0.0.1:9", "secret", name="inside"))
    threads = set(threading.enumerate())
    worker.start()
    assert worker.id.startswith("w-") and worker.address.startswith("tcp://127.0.0.1:")
    worker.end("enough", 3)
    worker.end("again", 4)
    worker.close()
    worker.close()
    assert (worker.reason, worker.code) == ("enough", 3)
    assert logging.getLogger().handlers == before
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("zdist-inside")]


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [("--resource", "gpu", "NAME=AMOUNT"), ("--resource", "gpu=much", "NAME=AMOUNT"), ("--data-ports", "9-5", "LO-HI")],
)
def test_a_malformed_option_says_what_is_expected(
    option: str, value: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--control", "tcp://127.0.0.1:9", option, value])
    assert text in capsys.readouterr().err


def test_options_are_read() -> None:
    args: argparse.Namespace = parser().parse_args(
        ["--control", "x", "--data-ports", "5-9", "--resource", "gpu=2", "--resource", "ram=0.5"]
    )
    assert args.data_ports == (5, 9) and args.resources == [("gpu", 2.0), ("ram", 0.5)]


class Odd:
    """Does not want to be measured."""

    @property
    def nbytes(self) -> int:
        raise RuntimeError("no")

    def __sizeof__(self) -> int:
        raise RuntimeError("no")


class Named:
    nbytes = "many"


def test_sizes_are_estimated_and_never_raise() -> None:
    assert results.sizeof(Odd()) > 0 and results.sizeof([Odd()]) > 0 and results.sizeof(Named()) > 0
    assert results.sizeof(b"x" * 1000) >= 1000
    assert 1000 * 90 < results.sizeof([b"x" * 100 for _ in range(1000)]) < 1000 * 200
    assert 1000 * 90 < results.sizeof(dict.fromkeys(range(1000), "x" * 100)) < 1000 * 250


def test_type_names_have_their_module() -> None:
    assert [results.type_name(value) for value in (1, Odd(), None)] == ["int", f"{__name__}.Odd", "NoneType"]
