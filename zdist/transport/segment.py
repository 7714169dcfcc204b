"""The file that a value in shared memory is: how it is laid out, written and checked.

Magic, length of the header, session of the maker; the header, ``msgpack [host, key, attempt, bytes, [[offset, length],
…]]``; from the next page on the pieces of the blob, those of a page or more at a page's start. The pieces joined are
the blob's stream, so any byte range of it can be served over the other paths too. The length of the header is 0 while
the file is written, for the first time or anew.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgpack

from zdist import limits
from zdist.protocol.messages import Attempt, Key, Session
from zdist.transport.host import host_id

__all__ = [
    "MAX_MAKER",
    "Header",
    "as_bytes",
    "check",
    "describe",
    "file_name",
    "fill",
    "maker",
    "padded",
    "views",
]

MAGIC: Final = b"zdistsh2"
PRELUDE: Final = struct.Struct(">8sI64s")  # magic, length of the header, maker
MAX_MAKER: Final = PRELUDE.size - 12  # bytes of its session
PAGE: Final = mmap.PAGESIZE
VECTOR: Final = 512  # buffers of one pwritev
SHARE: Final = 8  # a piece smaller than this part of its segment is copied, lest it keep the whole alive


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


def describe(maker: Session, key: Key, attempt: Attempt, lengths: list[int]) -> tuple[Header, bytes]:
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
    before = PRELUDE.pack(MAGIC, len(packed), maker.encode()) + packed
    return _header(*fields, start), before + bytes(start - len(before))


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
    """Write all of it, the length of the header last: what has none is not whole. Raises OSError when memory is full,
    where a write through a mapping would end the process."""
    magic, _, maker = PRELUDE.unpack_from(buffers[0])
    os.pwrite(fd, PRELUDE.pack(magic, 0, maker), 0)
    prelude, buffers[0] = buffers[0][: PRELUDE.size], buffers[0][PRELUDE.size :]
    at, first = PRELUDE.size, 0
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
    os.pwrite(fd, prelude, 0)


def maker(fd: int) -> Session:
    """Who made the file, which is what never changes in it. Raises ValueError if it is not one of this user."""
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
        raise ValueError(f"a file of user {about.st_uid} stands there")
    head = os.pread(fd, PRELUDE.size, 0)
    if len(head) < PRELUDE.size:
        raise ValueError("a file there is cut short")
    magic, _, name = PRELUDE.unpack(head)
    if magic != MAGIC or b"/" in name:
        raise ValueError("a file there is no segment")
    return str(name.rstrip(b"\0"), "ascii", "replace")


def check(fd: int) -> Header | None:
    """The header of a segment that is claimed; None if it has none. Raises ValueError if it is not one of this host."""
    head = os.pread(fd, PAGE, 0)
    _, length, _ = PRELUDE.unpack_from(head)
    if not length:
        return None
    if length > limits.MAX_HEADER:
        raise ValueError("a file there is no segment")
    end = PRELUDE.size + length
    if len(head) < end:
        head = os.pread(fd, end, 0)
    try:
        host, key, attempt, nbytes, table = msgpack.unpackb(head[PRELUDE.size : end], use_list=False)
        header = _header(host, key, attempt, nbytes, table, -(-end // PAGE) * PAGE)
        whole = header.size <= os.fstat(fd).st_size and sum([length for _, length in table]) == nbytes
    except (TypeError, ValueError, msgpack.UnpackException) as exc:
        raise ValueError(f"a file there is no segment: {exc}") from None
    if not whole:
        raise ValueError("a segment there is cut short")
    if host != host_id():
        raise ValueError("it belongs to another host")
    return header


def views(mapping: Any, header: Header, *, writable: bool) -> list[memoryview]:
    """The pieces of a blob. Those to be copied by whoever unpickles them are read-only: all where the mapping must not
    be written to, else those that are small beside the whole."""
    whole = memoryview(mapping)
    views = []
    for offset, length in header.table:
        view = whole[offset : offset + length]
        views.append(view if writable and length * SHARE >= header.size else view.toreadonly())
    return views
