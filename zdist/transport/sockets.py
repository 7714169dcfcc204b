"""Sockets with zdist's options, and the remedies for ZeroMQ's hazards that are options of a socket."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket as stdlib_socket
import threading
from typing import Final, TypeAlias

import zmq

from zdist import limits
from zdist.errors import AddressUnavailable
from zdist.transport.security import check_bind

__all__ = [
    "IO_THREADS",
    "Context",
    "bind",
    "bulk_address",
    "common",
    "context",
    "dealer",
    "more_files",
    "router",
    "unlink_ipc",
]

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

UNREAD = 60_000  # milliseconds after which a connection that takes nothing is closed, and what was queued for it goes
CONNECT = 2_000  # milliseconds after which connecting begins anew: TCP itself would ask at ever longer intervals
INBOX = 1000  # messages taken in ahead from one connection to a ROUTER; what is beyond waits with its sender
IO_THREADS = 2  # of a peer: what two workers send is copied on two cores
QUEUE = 100_000  # HWM in messages; a backstop, since the protocol's own windows are in bytes


def context(io_threads: int = 1) -> Context:
    """A context of its own; its sockets linger only as `close` says."""
    ctx: Context = zmq.Context(io_threads)
    ctx.set(zmq.MAX_SOCKETS, limits.CONTEXT_SOCKETS)
    return ctx


class _Common:
    """The context that the drivers of this process share: a second client finds the I/O thread, and the memory that it
    receives into, as the first has left them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.context: Context | None = None
        self.users = 0
        self.pid = 0

    def enter(self) -> Context:
        """Use it, until `leave`."""
        with self.lock:
            if self.context is None or self.pid != os.getpid():  # a context does not survive a fork
                self.context, self.users, self.pid = context(IO_THREADS), 0, os.getpid()
            self.users += 1
            return self.context

    def leave(self, ctx: Context) -> None:
        """The sockets are closed. With the last user the context ends, when what lingers is sent."""
        with self.lock:
            self.users -= 1
            if self.users:
                return
            self.context = None
        ctx.term()


common: Final = _Common()


def more_files() -> None:
    """Raise the limit of open files as far as this user may: each connection takes one or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20) if hard > 0 else 1 << 20, hard))


def _options(sock: zmq.Socket[bytes], largest: int = limits.MAX_FRAME) -> None:
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, QUEUE)
    sock.setsockopt(zmq.RCVHWM, QUEUE)
    sock.setsockopt(zmq.MAXMSGSIZE, largest)
    sock.setsockopt(zmq.RECONNECT_IVL, 20)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, 500)  # so that all are back well within RECOVERY
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.TCP_MAXRT, UNREAD)
    sock.setsockopt(zmq.IPV6, 1)


def dealer(ctx: Context, address: str, affinity: int = 0) -> zmq.Socket[bytes]:
    """A DEALER connected to a broker or a worker's data socket; the bits of ``affinity`` are I/O threads."""
    sock: zmq.Socket[bytes] = ctx.socket(zmq.DEALER)
    _options(sock)
    if affinity:
        sock.setsockopt(zmq.AFFINITY, affinity)
    sock.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT)
    # the other side closes a connection on which no ping came for that long, and drops what it had queued for it
    sock.setsockopt(zmq.HEARTBEAT_IVL, int(limits.SILENT_PEER * 250))
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(limits.SILENT_PEER * 1000))
    sock.setsockopt(zmq.HEARTBEAT_TTL, int(limits.SILENT_PEER * 1000))
    try:
        sock.connect(address)
    except zmq.ZMQError as exc:
        sock.close()
        raise ValueError(f"cannot connect to {address!r}: {exc}; write tcp://HOST:PORT or ipc:///PATH") from None
    return sock


def router(
    ctx: Context, affinity: int = 0, *, largest: int = limits.MAX_FRAME, inbox: int = INBOX
) -> zmq.Socket[bytes]:
    """A ROUTER that reports unreachable peers instead of dropping what is sent to them, with frames of at most
    ``largest`` bytes; a peer that sends a larger one is disconnected. ``inbox``: messages taken in ahead from each."""
    sock: zmq.Socket[bytes] = ctx.socket(zmq.ROUTER)
    _options(sock, largest)
    sock.setsockopt(zmq.RCVHWM, inbox)
    sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if affinity:
        sock.setsockopt(zmq.AFFINITY, affinity)
    return sock


def bind(
    sock: zmq.Socket[bytes],
    address: str,
    *,
    insecure: bool,
    ports: tuple[int, int] | None = None,
    advertise: str | None = None,
    option: str = "",
) -> str:
    """Bind and return the address that others dial.

    ``tcp://HOST:0`` or ``:*`` takes a free port, out of ``ports`` (first, last) if given. ``advertise`` replaces the
    host in the returned address; it is needed where the socket listens on all interfaces. ``option`` is what a person
    sets to choose another address. Raises AddressRefused for an address that a network can reach unless ``insecure``,
    and AddressUnavailable if the port is in use or the host is not this one.
    """
    check_bind(address, insecure)
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        if len(rest.encode()) > 107:
            raise AddressUnavailable(f"ipc path of {len(rest.encode())} bytes, 107 are possible: {rest}")
        try:
            sock.bind(address)
        except zmq.ZMQError as exc:
            raise _unavailable(address, exc.strerror, option) from None
        return address
    host, _, port = rest.rpartition(":")
    if port not in ("0", "*"):
        candidates = [port]
    elif ports is not None:
        candidates = [str(number) for number in range(ports[0], ports[1] + 1)]
    else:
        candidates = ["*"]
    for candidate in candidates:
        try:
            sock.bind(f"tcp://{host}:{candidate}")
            break
        except zmq.ZMQError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise _unavailable(address, exc.strerror, option) from None
    else:
        several = f"all ports from {candidates[0]} to {candidates[-1]} are"
        in_use = several if len(candidates) > 1 else f"port {candidates[0]} is"
        raise _unavailable(address, f"{in_use} in use", option)
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    port = (endpoint.decode() if isinstance(endpoint, bytes) else str(endpoint)).rstrip("\0").rpartition(":")[2]
    shown = advertise or (stdlib_socket.getfqdn() if host in ("*", "0.0.0.0", "[::]") else host)
    return f"tcp://{shown}:{port}"


def _unavailable(address: str, reason: object, option: str) -> AddressUnavailable:
    advice = f"; choose another with {option}" if option else ""
    return AddressUnavailable(f"cannot listen at {address}: {reason}{advice}")


def bulk_address(control: str) -> str:
    """Where a broker binds its bulk socket when only its control address is given."""
    scheme, _, rest = control.partition("://")
    return f"ipc://{rest}.bulk" if scheme == "ipc" else f"tcp://{rest.rpartition(':')[0]}:0"


def unlink_ipc(address: str) -> None:
    """Remove the file of an ipc address that this process had bound."""
    if address.startswith("ipc://"):
        with contextlib.suppress(OSError):
            os.unlink(address[len("ipc://") :])
