"""Who may connect: the cluster token, and which addresses may be bound without leave.

The token is a random text in a file that only its owner can read. On loopback and ipc it keeps other users of the
machine out; it is no protection on a network, where anyone can read it as it passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import secrets
import stat
import tempfile
from pathlib import Path

from zdist.errors import AddressRefused, AuthenticationError, ZdistError
from zdist.limits import TOKEN_KEPT
from zdist.transport.scratch import LockedFile, sweep

__all__ = [
    "CLUSTERS", "NODES", "TokenSource", "check_bind", "find_token", "is_local", "new_token", "publish_token",
    "runtime_dir", "sweep_runtime", "token_path", "write_token",
]  # fmt: skip

TOKENS, NODES, CLUSTERS = "token-", "node-", "local-"  # what a process puts into the runtime directory and owns


def runtime_dir() -> Path:
    """The private (0700) directory of this user for tokens, sockets and state files.

    ``$ZDIST_RUNTIME_DIR``, else a directory in the system's temporary folder; short, because ipc paths are limited to
    107 bytes. Raises AuthenticationError if it belongs to somebody else or others may write to it.
    """
    given = os.environ.get("ZDIST_RUNTIME_DIR")
    path = (
        Path(given)
        if given
        else Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir(), f"zdist-{os.getuid()}")
    )
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = path.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise AuthenticationError(
            f"{path} must be a directory of user {os.getuid()} that nobody else can enter (mode 0700); "
            "remove it or set ZDIST_RUNTIME_DIR to a private directory"
        )
    return path


def sweep_runtime() -> None:
    """Remove what this user's processes that were killed have left in the runtime directory."""
    parent = runtime_dir()
    for prefix in (NODES, CLUSTERS):
        sweep(parent, prefix)
    sweep(parent, TOKENS, TOKEN_KEPT)


def new_token() -> str:
    """A fresh cluster token."""
    return secrets.token_hex(16)


def token_path(address: str) -> Path:
    """Where the token of the broker at this address lies for the same user's workers and clients."""
    name = hashlib.blake2b(_canonical(address).encode(), digest_size=8).hexdigest()
    return runtime_dir() / (TOKENS + name)


def write_token(token: str, path: Path) -> None:
    """Write a token file with mode 0600, replacing an old one in one step.

    Raises AuthenticationError where its directory is not there or cannot be written.
    """
    try:
        _write(token, path)
    except FileNotFoundError:
        raise AuthenticationError(
            f"cannot write token file {path}: there is no directory {path.parent}; make it (mode 0700) first"
        ) from None
    except OSError as exc:
        raise AuthenticationError(f"cannot write token file {path}: {exc.strerror}") from None


def _write(token: str, path: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".token-")  # mkstemp creates with 0600
    with os.fdopen(handle, "w") as file:
        file.write(token + "\n")
    os.replace(temporary, path)


def publish_token(token: str, address: str) -> LockedFile:
    """Put the token of the broker at this address where `find_token` looks, for as long as the lock is held.

    It outlives a broker that is killed, so that the next one at the address is still that of its peers; a day later it
    is swept. ``remove`` ends it.
    """
    path = token_path(address)
    sweep_runtime()
    return LockedFile(path, token + "\n")


class TokenSource:
    """Finds the token of the broker at ``address`` anew at each call: a broker may have come, or another one.

    Once found, a token is kept while no other is there. Parameters and errors (raised by the constructor only): see
    `find_token`.
    """

    def __init__(self, address: str, token_file: str | os.PathLike[str] | None = None) -> None:
        self.address = address
        self.token_file = token_file
        self.token = find_token(address, token_file)

    def __call__(self) -> str:
        with contextlib.suppress(ZdistError, OSError):
            self.token = find_token(self.address, self.token_file) or self.token
        return self.token


def find_token(address: str, token_file: str | os.PathLike[str] | None = None) -> str:
    """The token for the broker at ``address``: from ``token_file``, ``$ZDIST_TOKEN``, or the user's runtime directory.

    Returns "" when there is none in the runtime directory, as before the first broker has come to this address. Raises
    AuthenticationError if a given file cannot be read or others could have written it.
    """
    if token_file is None and os.environ.get("ZDIST_TOKEN"):
        return os.environ["ZDIST_TOKEN"]
    path = Path(token_file) if token_file is not None else token_path(address)
    if token_file is None and address.startswith("ipc:///") and not path.exists():
        path = Path(address[len("ipc://") :]).with_name("token")  # a local cluster's, in its private directory
    try:
        text, about = path.read_text().strip(), path.stat()
    except OSError as exc:
        if token_file is None:
            return ""
        raise AuthenticationError(f"cannot read token file {path}: {exc.strerror}") from None
    if about.st_mode & 0o077:
        raise AuthenticationError(f"token file {path} is open to others; run: chmod 600 {path}")
    return text


def _canonical(address: str) -> str:
    return address.replace("//localhost:", "//127.0.0.1:").rstrip("/")


def is_local(address: str) -> bool:
    """Can only processes of this machine reach the address?"""
    scheme, _, rest = address.partition("://")
    if scheme in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(address: str, insecure: bool) -> None:
    """Raise AddressRefused for what is no address, and without ``insecure`` for one that a network can reach.

    ZeroMQ would take a port of more than 16 bits, and listen at another.
    """
    scheme, _, rest = address.partition("://")
    port = rest.rpartition(":")[2]
    possible = port == "*" or (port.isdecimal() and int(port) < 1 << 16)
    if not rest or scheme not in ("tcp", "ipc") or (scheme == "tcp" and (":" not in rest or not possible)):
        raise AddressRefused(
            f"{address!r} is no address to listen at; write tcp://HOST:PORT, the port at most 65535, or ipc:///PATH"
        )
    if not insecure and not is_local(address):
        raise AddressRefused(
            f"{address} can be reached over a network, where anyone could run code here; "
            "bind tcp://127.0.0.1:PORT, or give --insecure if the network is trusted"
        )
