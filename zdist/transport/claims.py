"""Who looks at which segment: locks on bytes of a file in the directory of the segment's maker.

A segment is written anew only when nobody maps it. Each process that maps one has a shared lock on the byte that has
the segment's inode for its number, from before its first look until its last view is gone; the maker takes the same
byte for itself alone while it writes. The kernel lets go of the locks of whoever is killed. They are locks of open file
descriptions: one descriptor for each maker, however many segments are mapped, and a forked child has them in common
with its parent.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

__all__ = ["USERS", "Claims", "lock", "make", "unlock"]

USERS: Final = "users"  # the file
_FLOCK: Final = "hhqqi4x"  # struct flock: kind, from the start, first byte, one byte, no process
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


def _set(fd: int, kind: int, inode: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, inode, 1, 0))


def make(directory: str) -> int:
    """The maker's descriptor of a new file. Raises OSError; AttributeError where there are no such locks."""
    fd = os.open(f"{directory}/{USERS}", os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    try:
        _set(fd, fcntl.F_WRLCK, 0)
        _set(fd, fcntl.F_UNLCK, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def lock(fd: int, inode: int) -> bool:
    """For the maker: does nobody look at this segment, and will nobody until `unlock`?"""
    if not os.fstat(fd).st_nlink:  # somebody has removed the file: who looks now claims nothing
        return False
    try:
        _set(fd, fcntl.F_WRLCK, inode)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int, inode: int) -> None:
    _set(fd, fcntl.F_UNLCK, inode)


class _Maker:
    """What this process claims of one maker's segments."""

    __slots__ = ("counts", "fd", "inherited")

    def __init__(self, fd: int) -> None:
        self.fd = fd  # -1: the maker is gone
        self.counts: dict[int, int] = {}  # mappings, by inode
        self.inherited: set[int] = set()  # mapped by a forked child too, for nobody knows how long


class Claims:
    """Those of this process. Not to be entered by two threads at once."""

    def __init__(self) -> None:
        self.makers: dict[str, _Maker] = {}

    def take(self, directory: str, inode: int) -> None:
        """Before a mapping. Raises BlockingIOError while the maker writes it anew; OSError."""
        maker = self.makers.get(directory)
        if maker is None:
            try:
                fd = os.open(f"{directory}/{USERS}", os.O_RDONLY | _FLAGS)
            except FileNotFoundError:
                if os.path.isdir(directory):
                    raise  # the maker may still be there
                fd = -1  # whoever is gone writes nothing anew: what can still be mapped stays as it is
            maker = self.makers[directory] = _Maker(fd)
        count = maker.counts.get(inode, 0)
        try:
            if not count and maker.fd >= 0:
                _set(maker.fd, fcntl.F_RDLCK, inode)
            maker.counts[inode] = count + 1
        finally:
            self._settle(directory, maker)

    def give_up(self, directory: str, inode: int) -> None:
        """After a mapping."""
        maker = self.makers[directory]
        maker.counts[inode] -= 1
        if not maker.counts[inode]:
            del maker.counts[inode]
            if maker.fd >= 0 and inode not in maker.inherited:
                _set(maker.fd, fcntl.F_UNLCK, inode)
        self._settle(directory, maker)

    def _settle(self, directory: str, maker: _Maker) -> None:
        if not maker.counts and not maker.inherited:
            del self.makers[directory]
            if maker.fd >= 0:
                os.close(maker.fd)

    def forked(self) -> None:
        """A child maps what this process maps: that is claimed until both have ended."""
        for maker in self.makers.values():
            maker.inherited.update(maker.counts)
