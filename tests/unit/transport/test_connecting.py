"""Sockets that connect to where nobody answers, and soon somebody may."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import psutil
import zmq

from zdist.transport import sockets
from zdist.transport.channels import Channels


def test_a_connection_that_is_not_answered_is_begun_anew() -> None:
    """TCP alone would ask ever more slowly, and see that a link is open again only after as long as it was cut."""
    ctx = sockets.context()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        host, port = server.getsockname()
        with socket.create_connection((host, port)):  # nobody accepts it, so the kernel drops what else comes

            def asking() -> set[int]:
                found = psutil.Process().net_connections("tcp")
                return {c.laddr.port for c in found if c.status == psutil.CONN_SYN_SENT and c.raddr[1:] == (port,)}

            sock = sockets.dealer(ctx, f"tcp://{host}:{port}")
            seen: set[int] = set()
            end = time.monotonic() + 6.0
            while len(seen) < 2 and time.monotonic() < end:
                seen |= asking()
                threading.Event().wait(0.05)
            assert len(seen) == 2
            sock.close(0)
    ctx.destroy(0)


def test_connections_take_turns_on_the_threads_that_copy() -> None:
    endpoint: Any = None
    ctx = sockets.context(sockets.IO_THREADS)
    channels = Channels(endpoint, ctx, "test")
    dialled = [channels.dial(f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}") for port in range(1, 5)]
    threads = [sock.getsockopt(zmq.AFFINITY) for sock in dialled]
    ctx.destroy(0)
    assert sorted(threads) == [1, 1, 2, 2]
    assert threads[0] != threads[1]
