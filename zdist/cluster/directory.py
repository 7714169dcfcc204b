"""Private directories of local clusters: sockets, token and slots, gone with the process that made them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

from zdist.errors import AddressRefused
from zdist.transport.security import runtime_dir

__all__ = ["PrivateDirectory"]

PREFIX: Final = "local-"
MAX_IPC: Final = 107  # bytes of an ipc path
LONGEST_NAME: Final = 24  # of a socket file in the directory
SETTLED: Final = 10.0  # seconds after which a directory without a lock has no owner


class PrivateDirectory:
    """A 0700 directory with a short name, locked (flock) by its owner, so that others can tell when that is gone.

    systemd-tmpfiles leaves a locked directory alone, too. Making one removes those whose owners were killed. Raises
    AddressRefused if the runtime directory's path is too long for sockets.
    """

    def __init__(self) -> None:
        parent = runtime_dir()
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self.owner = os.getpid()
        self.lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        room = MAX_IPC - LONGEST_NAME - len(os.fsencode(self.path))
        if room < 0:
            self.remove()
            raise AddressRefused(
                f"the runtime directory {parent} is {-room} bytes too long for ipc sockets; "
                "set ZDIST_RUNTIME_DIR to a shorter path"
            )

    def ipc(self, name: str) -> str:
        """An ipc address in the directory."""
        return f"ipc://{self.path}/{name}"

    def remove(self) -> None:
        """Remove the directory and all that is in it; idempotent."""
        if self.lock >= 0 and os.getpid() == self.owner:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self.lock)
            self.lock = -1


def sweep(parent: Path) -> None:
    """Remove the directories in ``parent`` whose owners are gone."""
    for path in parent.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > SETTLED and not _owned(path):
                shutil.rmtree(path, ignore_errors=True)


def _owned(path: Path) -> bool:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
