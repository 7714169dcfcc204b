"""Addresses as people write them: what they look like, and whether they can be dialled."""

from __future__ import annotations

import re
import socket

from zdist.errors import BrokerUnreachable

__all__ = ["broker_address", "check_host"]

HOST = re.compile(r"\[[0-9A-Fa-f:.%\w]+\]|[^\s/:\[\]@*]+")


def broker_address(text: object) -> str:
    """A broker's address as ZeroMQ takes it; without a scheme it is tcp.

    Raises ValueError for what is none; the text shows what one looks like.
    """
    if isinstance(text, str):
        scheme, separator, rest = text.strip().partition("://")
        if not separator:
            scheme, rest = "tcp", scheme
        host, _, port = rest.rpartition(":")
        if scheme == "ipc" and rest:
            return f"ipc://{rest}"
        if scheme == "tcp" and HOST.fullmatch(host) and port.isdecimal() and 0 < int(port) < 65536:
            return f"tcp://{host}:{port}"
    raise ValueError(
        f"{text!r} is no broker address; write tcp://HOST:PORT, for instance tcp://127.0.0.1:7077, or ipc:///PATH"
    )


def check_host(address: str) -> None:
    """Raise BrokerUnreachable if the host of a tcp address has no IP address; may ask a name server."""
    if not address.startswith("tcp://"):
        return
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise BrokerUnreachable(
            f"the host name {host!r} of {address} cannot be resolved ({reason}); check its spelling, or give the "
            "IP address"
        ) from None
