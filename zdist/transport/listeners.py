"""Sockets that others connect to, and what becomes of them when a process runs out of file descriptors."""

from __future__ import annotations

import os
import resource
from typing import Any

import zmq

from zdist.limits import LISTENERS_LOOK, SPARE_FILES

__all__ = ["Listeners"]

Socket = zmq.Socket[bytes]


class Listeners:
    """Stop listening while few descriptors are left, so that connections are refused, not kept waiting.

    ZeroMQ accepts a connection whenever one asks; without a descriptor for it, it would try again without a pause, and
    neither side would be told. Who is connected already is served on, and needs no more descriptors.
    """

    def __init__(self, log: Any) -> None:
        self.log = log
        self.sockets: list[Socket] = []
        self.closed: dict[Socket, str] = {}  # and where to listen again
        self.due = float("inf")  # when `look` is next needed

    def add(self, sock: Socket) -> None:
        """A socket that is bound, or will be."""
        self.sockets.append(sock)
        self.due = 0.0

    def look(self, now: float) -> None:
        """At ``due``: close or open."""
        if now < self.due:
            return
        self.due = now + LISTENERS_LOOK
        if self.closed:
            if spare(2 * SPARE_FILES):
                self._open()
        elif not spare(SPARE_FILES):
            self._close()

    def _close(self) -> None:
        for sock in self.sockets:
            address = sock.getsockopt(zmq.LAST_ENDPOINT)
            where = (address.decode() if isinstance(address, bytes) else str(address)).rstrip("\0")
            if where:
                sock.unbind(where)
                self.closed[sock] = where
        self.log.warning(
            "listener.closed",
            addresses=list(self.closed.values()),
            limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            reason=f"fewer than {SPARE_FILES} file descriptors are free",
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


def spare(count: int) -> bool:
    """Whether so many more file descriptors could be opened."""
    taken: list[int] = []
    try:
        for _ in range(count):
            taken.append(os.open(os.curdir, os.O_PATH | os.O_CLOEXEC) if not taken else os.dup(taken[0]))
        return True
    except OSError:
        return False
    finally:
        for fd in taken:
            os.close(fd)
