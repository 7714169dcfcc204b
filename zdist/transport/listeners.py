"""Sockets that others connect to, and what becomes of them when a process runs out of file descriptors."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Any, Final

import zmq

from zdist.limits import LISTENERS_LOOK, SPARE_FILES, SPARE_SHARE

__all__ = ["Listeners"]

Socket = zmq.Socket[bytes]
COUNTED: Final = sys.platform == "linux" and os.stat("/proc/self/fd").st_size > 0  # Linux counts them since 6.2


class Listeners:
    """Stop listening while few descriptors are left, so that connections are refused, not kept waiting.

    ZeroMQ accepts a connection whenever one asks; without a descriptor for it, it would try again without a pause on
    TCP, and abort the process on IPC. Who is connected already is served on, and needs no more descriptors.
    """

    def __init__(self, log: Any, poller: zmq.Poller) -> None:
        self.log = log
        self.poller = poller
        self.sockets: list[Socket] = []
        self.accepts: list[Socket] = []  # each tells of the connections that one of them takes
        self.closed: dict[Socket, str] = {}  # and where to listen again
        self.due = float("inf")  # when `look` is next needed

    def add(self, sock: Socket) -> None:
        """A socket that is bound, or will be."""
        self.sockets.append(sock)
        self.accepts.append(sock.get_monitor_socket(zmq.EVENT_ACCEPTED))
        self.poller.register(self.accepts[-1], zmq.POLLIN)
        self.due = 0.0

    def told(self, accepts: Socket) -> None:
        """One of ``accepts`` is readable: in a burst of connections the next regular look would be too late."""
        with contextlib.suppress(zmq.Again):
            while True:
                accepts.recv_multipart(zmq.NOBLOCK)
                self.due = 0.0

    def shut(self) -> None:
        """Close ``accepts``; whoever gave the sockets closes those."""
        for sock, accepts in zip(self.sockets, self.accepts, strict=True):
            sock.disable_monitor()
            accepts.close(0)

    def look(self, now: float) -> None:
        """At ``due``, or half way there if this process is awake: close or open."""
        if now < self.due - LISTENERS_LOOK / 2:
            return
        self.due = now + LISTENERS_LOOK
        limit, free = files()
        least = max(SPARE_FILES, limit // SPARE_SHARE)
        if self.closed:
            if free >= 2 * least:
                self._open()
        elif free < least:
            self._close(limit, free)

    def _close(self, limit: int, free: int) -> None:
        for sock in self.sockets:
            address = sock.getsockopt(zmq.LAST_ENDPOINT)
            where = (address.decode() if isinstance(address, bytes) else str(address)).rstrip("\0")
            if where:
                sock.unbind(where)
                self.closed[sock] = where
        self.log.warning(
            "listener.closed",
            addresses=list(self.closed.values()),
            limit=limit,
            reason=f"only {free} file descriptors are free",
            note="new connections are refused until some are, old ones are served; raise the limit (ulimit -n)",
        )

    def _open(self) -> None:
        for sock, where in list(self.closed.items()):
            try:
                sock.bind(where)
            except zmq.ZMQError as exc:  # somebody else listens there now
                self.log.error("listener.unavailable", address=where, error=exc.strerror)
            else:
                del self.closed[sock]
        if not self.closed:
            self.log.info("listener.open")


def files() -> tuple[int, int]:
    """How many file descriptors this process may have, and how many of them are free."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        limit = sys.maxsize
    try:
        taken = os.stat("/proc/self/fd").st_size if COUNTED else len(os.listdir("/dev/fd"))
    except OSError:  # there is none left to list them with
        return limit, 0
    return limit, max(limit - taken, 0)
