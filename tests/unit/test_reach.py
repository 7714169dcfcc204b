"""Plain connections, to tell what is in the way: each kind of failure by itself."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from zdist.transport import reach as module
from zdist.transport.reach import reach

WITHIN = 20.0
SOON = 0.2


@contextlib.contextmanager
def listening(backlog: int = 5) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(backlog)
        yield sock, f"tcp://127.0.0.1:{sock.getsockname()[1]}"


@contextlib.contextmanager
def answering(said: bytes) -> Iterator[str]:
    """A program that says something to who connects, and hangs up."""
    with listening() as (sock, address):

        def serve() -> None:
            taken, _ = sock.accept()
            with taken:
                taken.recv(1)
                taken.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield address
        thread.join(WITHIN)
        assert not thread.is_alive()


@contextlib.contextmanager
def full() -> Iterator[str]:
    """An address that does not answer to new connections, as behind a firewall that drops packets."""
    with listening(0) as (sock, address), contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(sock.getsockname())
        yield address


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:*", "ipc"])
def test_a_zeromq_socket(bind: str, tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.bind(bind if bind != "ipc" else f"ipc://{tmp_path}/s")
        address = sock.getsockopt_string(zmq.LAST_ENDPOINT)
        found = reach(address, WITHIN)
        assert found.state == module.LISTENS and address.partition("://")[2] in found.text
        assert reach(address.replace("127.0.0.1", "localhost"), WITHIN).state == module.LISTENS


def test_nobody_listens(tmp_path: Path) -> None:
    with listening() as (_, address):
        pass
    assert reach(address, WITHIN).state == module.REFUSED
    assert reach(f"ipc://{tmp_path}/none", WITHIN).state == module.MISSING
    with socket.socket(socket.AF_UNIX) as sock:  # left behind by a process that was killed
        sock.bind(str(tmp_path / "left"))
    assert reach(f"ipc://{tmp_path}/left", WITHIN).state == module.REFUSED


def test_a_name_that_does_not_resolve() -> None:
    found = reach("tcp://no-such-host.invalid:7077", WITHIN)
    assert found.state == module.UNRESOLVED and "no-such-host.invalid" in found.text


def test_packets_that_are_dropped() -> None:
    with full() as address:
        found = reach(address, SOON)
    assert found.state == module.DROPPED and re.search(r"does not answer within \d+\.\d s", found.text)


def test_another_program() -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n") as address:
        found = reach(address, WITHIN)
    assert found.state == module.FOREIGN and "HTTP/1.1 4" in found.text


def test_one_that_hangs_up() -> None:
    with answering(b"") as address:
        found = reach(address, WITHIN)
    assert found.state == module.FOREIGN and "hangs up" in found.text


def test_one_that_says_nothing() -> None:
    with listening() as (_, address):
        assert reach(address, SOON).state == module.MUTE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to everything")
def test_a_socket_of_somebody_else(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.bind(f"ipc://{tmp_path}/s")
        (tmp_path / "s").chmod(0)
        assert reach(f"ipc://{tmp_path}/s", WITHIN).state == module.DENIED
