"""Private directories of local clusters: sockets, token and slots, gone with the process that made them."""

from __future__ import annotations

import os
from typing import Final

from zdist.errors import AddressRefused
from zdist.transport.scratch import Scratch
from zdist.transport.security import CLUSTERS, runtime_dir, sweep_runtime

__all__ = ["PrivateDirectory"]

MAX_IPC: Final = 107  # bytes of an ipc path
LONGEST_NAME: Final = 24  # of a socket file in the directory


class PrivateDirectory(Scratch):
    """A private directory with a short name. Making one removes what killed processes have left.

    Raises AddressRefused if the runtime directory's path is too long for sockets.
    """

    def __init__(self) -> None:
        sweep_runtime()
        parent = runtime_dir()
        super().__init__(parent, CLUSTERS)
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
