"""The file that a value in shared memory is: how it is laid out, written, checked and mapped.

Magic and length of the header; the header, ``msgpack [host, key, attempt, bytes, [[offset, length], …]]``; from the
next page on the pieces of the blob, those of a page or more at a page's start. The pieces joined are the blob's stream,
so any byte range of it can be served over the other paths too.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import weakref
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgpack

from zdist import limits
from zdist.protocol.messages import Attempt, Key
from zdist.transport.host import host_id

__all__ = [
    "Header",
    "as_bytes",
    "check",
    "describe",
    "file_name",
    "fill",
    "load",
    "map_file",
    "mappings",
    "padded",
    "views",
]

MAGIC: Final = b"zdistsh1"
PRELUDE: Final = struct.Struct(">8sI")  # magic, length of the header
PAGE: Final = mmap.PAGESIZE
VECTOR: Final = 512  # buffers of one pwritev
SHARE: Final = 8  # a piece smaller than this part of its segment is copied, lest it keep the whole alive
NORESERVE: Final = 0x4000  # MAP_NORESERVE: most pages of a private mapping are never written to
FIXED: Final = 0x10  # MAP_FIXED


class Header(NamedTuple):
    """What a segment says of itself; ``table`` has offset in the file and length of each piece, ``size`` is that of
    the file in bytes."""

    host: str
    key: Key
    attempt: Attempt
    nbytes: int
    table: tuple[tuple[int, int], ...]
    size: int


def _header(host: str, key: Key, attempt: Attempt, nbytes: int, table: Iterable[tuple[int, int]], start: int) -> Header:
    """``table`` counts from the end of the header, which is ``start``."""
    placed = tuple([(start + at, length) for at, length in table])
    return Header(host, key, attempt, nbytes, placed, max([at + length for at, length in placed]))


def file_name(key: Key) -> str:
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def as_bytes(piece: Any) -> memoryview:
    view = memoryview(piece)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def describe(key: Key, attempt: Attempt, lengths: list[int]) -> tuple[Header, bytes]:
    """Where pieces of these lengths go; and all that stands before them."""
    table, at = [], 0
    for length in lengths:
        step = PAGE if length >= PAGE else 64
        at = -(-at // step) * step
        table.append((at, length))
        at += length
    fields = (host_id(), key, attempt, sum(lengths), table)
    packed = msgpack.packb(fields)
    start = -(-(PRELUDE.size + len(packed)) // PAGE) * PAGE
    return _header(*fields, start), PRELUDE.pack(MAGIC, len(packed)) + packed + bytes(
        start - PRELUDE.size - len(packed)
    )


def padded(packed: bytes, pieces: list[memoryview], table: Iterable[tuple[int, int]]) -> list[memoryview]:
    """Buffers that, one behind the other, are the file."""
    buffers, at = [memoryview(packed)], len(packed)
    for piece, (offset, length) in zip(pieces, table, strict=True):
        if offset > at:
            buffers.append(memoryview(bytes(offset - at)))
        buffers.append(piece)
        at = offset + length
    return buffers


def fill(fd: int, buffers: list[memoryview]) -> None:
    """Write all of it. Raises OSError when memory is full, where a write through a mapping would end the process."""
    at = first = 0
    while first < len(buffers):
        done = os.pwritev(fd, buffers[first : first + VECTOR], at)
        at += done
        while done:
            size = buffers[first].nbytes
            if done < size:
                buffers[first] = buffers[first][done:]
                break
            done -= size
            first += 1


def check(fd: int) -> Header:
    """The header of a segment. Raises ValueError if the file is not one of this user and host."""
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
        raise ValueError(f"a file of user {about.st_uid} stands there")
    head = os.pread(fd, PAGE, 0)
    if len(head) < PRELUDE.size:
        raise ValueError("a file there is cut short")
    magic, length = PRELUDE.unpack_from(head)
    if magic != MAGIC or length > limits.MAX_HEADER:
        raise ValueError("a file there is no segment")
    end = PRELUDE.size + length
    if len(head) < end:
        head = os.pread(fd, end, 0)
    try:
        host, key, attempt, nbytes, table = msgpack.unpackb(head[PRELUDE.size : end], use_list=False)
        start = -(-end // PAGE) * PAGE
        header = _header(host, key, attempt, nbytes, table, start)
        whole = header.size <= about.st_size and sum([length for _, length in table]) == nbytes
    except (TypeError, ValueError, msgpack.UnpackException) as exc:
        raise ValueError(f"a file there is no segment: {exc}") from None
    if not whole:
        raise ValueError("a segment there is cut short")
    if host != host_id():
        raise ValueError("it belongs to another host")
    return header


# --- mapping ------------------------------------------------------------------------------------------

_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def mappings() -> int:
    """How many of ours there are in this process."""
    return len(_mapped)


class _Libc:
    """mmap of the C library: Python's own keeps a descriptor open for each mapping."""

    mmap: Any = None
    ctypes: Any = None


def load() -> None:
    """Make sure that mapping is possible. Raises ImportError, OSError or AttributeError where it is not."""
    if _Libc.mmap is None:
        import ctypes

        function = ctypes.CDLL(None, use_errno=True).mmap
        size, number = ctypes.c_size_t, ctypes.c_int
        function.argtypes = [size, size, number, number, number, ctypes.c_long]
        function.restype = size
        _Libc.ctypes, _Libc.mmap = ctypes, function


def map_file(fd: int, size: int, *, private: bool) -> mmap.mmap:
    """A mapping of a file that needs no descriptor: writable and copy-on-write if ``private``, else not to be written
    to. It is laid over anonymous memory, which Python counts and unmaps. Raises OSError."""
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    ctypes = _Libc.ctypes
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    protection = mmap.PROT_READ | mmap.PROT_WRITE if private else mmap.PROT_READ
    kind = mmap.MAP_PRIVATE | NORESERVE if private else mmap.MAP_SHARED
    if _Libc.mmap(address, size, protection, kind | FIXED, fd, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _mapped.add(mapping)
    return mapping


def views(mapping: mmap.mmap, header: Header, *, writable: bool) -> list[memoryview]:
    """The pieces of a blob. Those to be copied by whoever unpickles them are read-only: all where the mapping must not
    be written to, else those that are small beside the whole."""
    whole = memoryview(mapping)
    views = []
    for offset, length in header.table:
        view = whole[offset : offset + length]
        views.append(view if writable and length * SHARE >= header.size else view.toreadonly())
    return views
