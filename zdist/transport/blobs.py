"""Values in shared memory, as stores and fetchers see them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from zdist.core.store import Pieces
from zdist.protocol.messages import Attempt
from zdist.transport.mapping import mappings
from zdist.transport.segment import Header, file_name, views

if TYPE_CHECKING:
    from zdist.transport.shm import SharedMemory

__all__ = ["Ended", "Mapped", "Segment"]


class Ended(NamedTuple):
    """What is left of a segment that nobody refers to."""

    name: str
    serial: int
    inode: int  # 0 where its file is another process's too, which alone may use it again
    room: int


class Segment:
    """A blob in shared memory that belongs to this process; its file goes when nobody refers to it any more."""

    __slots__ = ("__weakref__", "_bytes", "header", "inode", "memory", "name", "origin", "room", "serial")

    def __init__(
        self, memory: SharedMemory, serial: int, inode: int, room: int, origin: str, view: Any, header: Header
    ) -> None:
        self.memory = memory
        self.name = file_name(header.key)
        self.serial = serial
        self.inode = inode
        self.room = room  # bytes of its file
        self.origin = origin  # directory of its maker
        self.header = header
        self._bytes = Pieces(views(view, header, writable=False))

    @property
    def nbytes(self) -> int:
        """Bytes of the blob."""
        return self.header.nbytes

    @property
    def attempt(self) -> Attempt:
        """Which computation of its key it is of."""
        return self.header.attempt

    spilled = False

    @property
    def shared(self) -> bool:
        """Does its file stand where others look for it? Not if a newer computation has taken the place."""
        return self.memory.current.get(self.name) == self.serial

    @property
    def pieces(self) -> list[Any]:
        """A copy-on-write mapping of its own for each taker."""
        try:
            fd = os.open(f"{self.memory.directory}/{self.name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_ino == self.inode:
                    return views(mappings.map(fd, self.origin, private=True), self.header, writable=True)
            finally:
                os.close(fd)
        except (OSError, ValueError):  # the file is gone, our own mapping is not; or one mapping too many
            pass
        return self._bytes.pieces

    def slice(self, offset: int, length: int) -> list[Any]:
        """Buffers covering ``length`` bytes from ``offset`` on, as far as there are any."""
        return self._bytes.slice(offset, length)

    def __del__(self) -> None:
        inode = self.inode if self.origin == self.memory.directory else 0
        self.memory.turnstile.ended(Ended(self.name, self.serial, inode, self.room))

    def __repr__(self) -> str:
        return f"<Segment {self.header.key} attempt {self.attempt}, {self.nbytes} B>"


class Mapped:
    """A blob in the shared memory of another process, mapped copy-on-write by this one."""

    __slots__ = ("_taken", "_views", "header")
    shared = False
    spilled = False

    def __init__(self, view: Any, header: Header) -> None:
        self.header = header
        self._views = views(view, header, writable=True)
        self._taken = False

    @property
    def nbytes(self) -> int:
        """Bytes of the blob."""
        return self.header.nbytes

    @property
    def attempt(self) -> Attempt:
        """Which computation of its key it is of."""
        return self.header.attempt

    @property
    def pieces(self) -> list[Any]:
        """For the first taker the mapping itself, for others something to copy from."""
        if self._taken:
            return [bytes(view) for view in self._views]
        self._taken = True
        return self._views

    def slice(self, offset: int, length: int) -> list[Any]:
        """Buffers covering ``length`` bytes from ``offset`` on, as far as there are any."""
        return Pieces([view.toreadonly() for view in self._views]).slice(offset, length)
