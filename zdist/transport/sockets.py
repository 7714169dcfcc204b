"""Sockets with zdist's options, and the remedies for ZeroMQ's hazards that are options of a socket."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket as stdlib_socket

import zmq

from zdist import limits
from zdist.transport.security import check_bind

__all__ = ["bind", "bulk_address", "context", "dealer", "more_files", "router", "unlink_ipc"]

QUEUE = 100_000  # HWM in messages; a backstop, since the protocol's own windows are in bytes


def context(io_threads: int = 1) -> zmq.Context[zmq.Socket[bytes]]:
    """A context for one driver; its sockets linger only as `close` says."""
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads)
    ctx.set(zmq.MAX_SOCKETS, 4 * limits.PEER_SOCKETS)
    return ctx


def more_files() -> None:
    """Raise the limit of open files as far as this user may: each connection takes one or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20) if hard > 0 else 1 << 20, hard))


def _options(sock: zmq.Socket[bytes]) -> None:
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, QUEUE)
    sock.setsockopt(zmq.RCVHWM, QUEUE)
    sock.setsockopt(zmq.MAXMSGSIZE, limits.MAX_FRAME)
    sock.setsockopt(zmq.RECONNECT_IVL, 20)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.IPV6, 1)


def dealer(ctx: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """A DEALER connected to a broker or a worker's data socket."""
    sock: zmq.Socket[bytes] = ctx.socket(zmq.DEALER)
    _options(sock)
    try:
        sock.connect(address)
    except zmq.ZMQError as exc:
        sock.close()
        raise ValueError(f"cannot connect to {address!r}: {exc}; write tcp://HOST:PORT or ipc:///PATH") from None
    return sock


def router(ctx: zmq.Context[zmq.Socket[bytes]], affinity: int = 0) -> zmq.Socket[bytes]:
    """A ROUTER that reports unreachable peers instead of dropping what is sent to them."""
    sock: zmq.Socket[bytes] = ctx.socket(zmq.ROUTER)
    _options(sock)
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
) -> str:
    """Bind and return the address that others dial.

    ``tcp://HOST:0`` or ``:*`` takes a free port, out of ``ports`` (first, last) if given. ``advertise`` replaces the
    host in the returned address; it is needed where the socket listens on all interfaces. Raises AddressRefused for an
    address that a network can reach unless ``insecure``, and OSError if the port is in use.
    """
    check_bind(address, insecure)
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        if len(rest.encode()) > 107:
            raise OSError(errno.ENAMETOOLONG, f"ipc path of {len(rest.encode())} bytes, 107 are possible: {rest}")
        sock.bind(address)
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
                raise OSError(exc.errno, f"cannot bind {address}: {exc.strerror}") from None
    else:
        raise OSError(errno.EADDRINUSE, f"cannot bind {address}: port {candidates[0]}{_to(candidates)} in use")
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    port = (endpoint.decode() if isinstance(endpoint, bytes) else str(endpoint)).rstrip("\0").rpartition(":")[2]
    shown = advertise or (stdlib_socket.getfqdn() if host in ("*", "0.0.0.0", "[::]") else host)
    return f"tcp://{shown}:{port}"


def _to(candidates: list[str]) -> str:
    return f" to {candidates[-1]}" if len(candidates) > 1 else ""


def bulk_address(control: str) -> str:
    """Where a broker binds its bulk socket when only its control address is given."""
    scheme, _, rest = control.partition("://")
    return f"ipc://{rest}.bulk" if scheme == "ipc" else f"tcp://{rest.rpartition(':')[0]}:0"


def unlink_ipc(address: str) -> None:
    """Remove the file of an ipc address that this process had bound."""
    if address.startswith("ipc://"):
        with contextlib.suppress(OSError):
            os.unlink(address[len("ipc://") :])
