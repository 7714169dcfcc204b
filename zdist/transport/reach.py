"""Can an address be connected to, and is it ZeroMQ that answers? For the diagnosis of what does not work."""

from __future__ import annotations

import errno
import socket
import time
from typing import Final, NamedTuple

__all__ = [
    "DENIED",
    "DROPPED",
    "FOREIGN",
    "LISTENS",
    "MISSING",
    "MUTE",
    "NO_ROUTE",
    "REFUSED",
    "UNRESOLVED",
    "Reach",
    "reach",
]

LISTENS: Final = "listens"  # a ZeroMQ socket
UNRESOLVED: Final = "unresolved"  # the host's name has no address
REFUSED: Final = "refused"  # the connection
DROPPED: Final = "dropped"  # no answer at all
NO_ROUTE: Final = "no-route"
FOREIGN: Final = "foreign"  # another protocol
MUTE: Final = "mute"  # takes the connection and says nothing
MISSING: Final = "missing"  # no such socket file
DENIED: Final = "denied"  # not for this user

SIGNATURE: Final = b"\xff" + bytes(7) + b"\x01\x7f"  # with which both sides of ZMTP 3 begin (rfc.zeromq.org/spec/23)
TRIES: Final = 4  # addresses of one name that are tried


class Reach(NamedTuple):
    """What became of a connection: one of the constants, and a text that says so."""

    state: str
    text: str


def reach(address: str, timeout: float) -> Reach:
    """Connect to ``tcp://HOST:PORT`` or ``ipc:///PATH``, look who greets, and hang up; ``timeout`` in seconds."""
    deadline = time.monotonic() + timeout
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        return _connect(socket.AF_UNIX, rest, rest, deadline)
    host, _, port = rest.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError, OverflowError) as exc:
        return Reach(UNRESOLVED, f"the name {host!r} does not resolve here: {getattr(exc, 'strerror', None) or exc}")
    result = Reach(UNRESOLVED, f"the name {host!r} has no address")
    for family, _, _, _, where in found[:TRIES]:
        result = _connect(family, where, f"{host}:{port}", deadline)
        if result.state in (LISTENS, FOREIGN, MUTE):
            break
    return result


def _connect(family: int, where: object, shown: str, deadline: float) -> Reach:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        started = time.monotonic()
        sock.settimeout(max(0.01, deadline - started))
        try:
            sock.connect(where)  # type: ignore[arg-type]
        except TimeoutError:
            return Reach(DROPPED, f"{shown} does not answer within {time.monotonic() - started:.1f} s")
        except OSError as exc:
            return _failure(exc, shown)
        return _greeting(sock, shown, deadline)


def _failure(exc: OSError, shown: str) -> Reach:
    if exc.errno == errno.ECONNREFUSED:
        return Reach(REFUSED, f"{shown} refuses the connection: nothing listens there, or a firewall rejects it")
    if exc.errno == errno.ENOENT:
        return Reach(MISSING, f"there is no socket file {shown}")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return Reach(DENIED, f"this user may not connect to {shown}")
    if exc.errno == errno.ETIMEDOUT:
        return Reach(DROPPED, f"{shown} does not answer")
    return Reach(NO_ROUTE, f"{shown} cannot be reached: {exc.strerror or exc}")


def _greeting(sock: socket.socket, shown: str, deadline: float) -> Reach:
    """Who is there? ZeroMQ speaks first; others are spoken to, so that they need not be waited for."""
    said, hung_up = b"", False
    try:
        sock.sendall(SIGNATURE)
        while len(said) < len(SIGNATURE):
            sock.settimeout(max(0.01, deadline - time.monotonic()))
            part = sock.recv(len(SIGNATURE) - len(said))
            hung_up = not part
            if hung_up:
                break
            said += part
    except TimeoutError:
        pass
    except OSError:
        hung_up = True
    if len(said) == len(SIGNATURE) and said[0] == 0xFF and said[9] == 0x7F:
        return Reach(LISTENS, f"a ZeroMQ socket listens at {shown}")
    if said:
        return Reach(FOREIGN, f"what answers at {shown} is no ZeroMQ socket: it says {said!r}")
    if hung_up:
        return Reach(FOREIGN, f"what answers at {shown} hangs up at once: a forwarded port with nothing behind it?")
    return Reach(MUTE, f"{shown} takes connections and says nothing: its process is stopped, or is no zdist at all")
