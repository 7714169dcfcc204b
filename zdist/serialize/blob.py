"""The stream of a pickled object: envelope, pickle, buffers. Nothing is unpickled here.

``ENVELOPE frame0 frame1 …``; the envelope is ``msgpack([scheme, serializer, [frame lengths], tag])``. ``serializer`` is
a set of bits: CLOUD says that cloudpickle made the pickle, DEEP that the pickle holds references to keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final, TypeAlias

import msgpack

from zdist.errors import SerializationError
from zdist.limits import KIB, MAX_FRAMES, OWN_FRAME

Piece: TypeAlias = bytes | bytearray | memoryview
Stream: TypeAlias = "Piece | Sequence[Piece] | Blob"

SCHEME: Final = 1
CLOUD: Final = 1
DEEP: Final = 2
MAX_BUFFERS: Final = MAX_FRAMES // 4  # further buffers are packed into the pickle
MAX_ENVELOPE: Final = 64 * KIB  # holds the lengths of MAX_BUFFERS frames

_END: Final = b"\xc4\x00"
_SHORT: Final = tuple(
    tuple(bytes((0x94, SCHEME, bits, 0x91, n)) + _END for n in range(128)) for bits in range((CLOUD | DEEP) + 1)
)
_START: Final = dict.fromkeys(range(128), 7) | {0xCC: 8, 0xCD: 9}  # where the frame begins, by the length's first byte


def head(serializer: int, n: int) -> bytes:
    """``envelope(serializer, [n])``, by hand: packing it would double what a small value costs."""
    if n < 128:
        return _SHORT[serializer][n]
    if n < 256:
        return bytes((0x94, SCHEME, serializer, 0x91, 0xCC, n, 0xC4, 0))
    if n < 65536:
        return bytes((0x94, SCHEME, serializer, 0x91, 0xCD, n >> 8, n & 255, 0xC4, 0))
    return envelope(serializer, [n])


def single(serializer: int, data: bytes) -> bytes:
    """The stream of one frame."""
    return head(serializer, len(data)) + data


def envelope(serializer: int, lengths: list[int]) -> bytes:
    """The packed head of a stream."""
    packed: bytes = msgpack.packb([SCHEME, serializer, lengths, b""])
    return packed


class Blob:
    """A value's immutable bytes.

    ``pieces`` joined are the stream: envelope and pickle, then each large buffer. ``refs`` are the keys of futures
    inside the value: whoever holds the blob must keep these alive. ``large`` are the bytes of the large buffers.
    """

    __slots__ = ("large", "nbytes", "pieces", "refs")
    shared: ClassVar[bool] = False  # it lies in this process's own memory
    spilled: ClassVar[bool] = False

    def __init__(self, pieces: list[bytes | memoryview], refs: tuple[str, ...] = (), large: int = 0) -> None:
        self.pieces = pieces
        self.refs = refs
        self.large = large
        self.nbytes = sum(map(size, pieces))

    @classmethod
    def of(cls, serializer: int, frames: list[bytes | memoryview], refs: tuple[str, ...] = ()) -> Blob:
        """The stream of these frames; the envelope is joined to the pickle unless that would copy much."""
        first = frames[0]
        lengths = [size(frame) for frame in frames]
        opening, large = envelope(serializer, lengths), sum(lengths[1:])
        if len(first) < OWN_FRAME:
            return cls([opening + bytes(first), *frames[1:]], refs, large)
        return cls([opening, *frames], refs, large)

    def snapshot(self) -> Blob:
        """The same in memory that nobody else can write to; for a blob made with ``share``."""
        pieces = [piece if type(_base(piece)) is bytes else bytes(piece) for piece in self.pieces]
        return Blob(pieces, self.refs, self.large)

    def tobytes(self) -> bytes:
        """The whole stream in one piece."""
        return b"".join(self.pieces)

    def slice(self, offset: int, length: int) -> list[bytes | memoryview]:
        """Consecutive pieces with bytes ``offset`` to ``offset + length``, cut along the blob's own pieces, not copied.

        What lies beyond the end is left out.
        """
        out: list[bytes | memoryview] = []
        end = offset + length
        start = 0
        for piece in self.pieces:
            stop = start + size(piece)
            if start >= offset and stop <= end:
                if stop > start:
                    out.append(piece)
            elif start < end and stop > offset:
                out.append(memoryview(piece)[max(offset - start, 0) : min(end, stop) - start])
            start = stop
            if start >= end:
                break
        return out

    def __repr__(self) -> str:
        return f"Blob({self.nbytes} B in {len(self.pieces)} pieces)"


def _base(piece: Piece) -> Any:
    """The object whose memory a piece is."""
    return piece.obj if isinstance(piece, memoryview) else piece


def size(piece: Piece) -> int:
    """Bytes of a piece."""
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)


def parse(data: Stream) -> tuple[int, Piece, list[Piece]]:
    """Serializer, pickle and writable buffers of a stream, whole or in consecutive pieces.

    A buffer that is a whole writable piece is used as it stands; any other is copied once into memory of its own.
    Raises SerializationError when the bytes are no stream of this scheme or are cut short.
    """
    if type(data) is list and len(data) == 1:
        data = data[0]
    if type(data) is bytes and len(data) > 8 and data[2] <= CLOUD | DEEP:
        if data[:7] == _SHORT[0][data[4] & 127] and data[4] + 7 == len(data):  # nearly all
            return 0, data[7:], []
        start = _START.get(data[4], 0)
        frame = data[start:]
        if start and data[:start] == head(data[2], len(frame)):
            return data[2], frame, []
    if isinstance(data, Blob):
        data = data.pieces
    pieces = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
    views = [memoryview(piece).cast("B") if size(piece) else memoryview(b"") for piece in pieces]
    serializer, lengths, start = opening(views)
    if start + lengths[0] == len(views[0]) and lengths[1:] == [len(view) for view in views[1:]]:  # cut along the frames
        return serializer, views[0][start:], [bytearray(view) if view.readonly else view for view in views[1:]]
    total = sum(map(len, views))
    if start + sum(lengths) != total:
        raise SerializationError(f"a payload has {total} bytes where its envelope says {start + sum(lengths)}")
    cursor = _Cursor(views)
    cursor.take(start)
    first, *rest = [cursor.take(length) for length in lengths]
    pickled = first[0] if len(first) == 1 else b"".join(first)
    return serializer, pickled, [_own(parts, views) for parts in rest]


def opening(views: list[memoryview]) -> tuple[int, list[int], int]:
    """Serializer, frame lengths and the envelope's size. Raises SerializationError for what is no stream."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_ENVELOPE, read_size=KIB, use_list=True)
    room = MAX_ENVELOPE
    try:
        for view in views:
            for at in range(0, min(len(view), room), KIB):
                chunk = view[at : min(at + KIB, room)]
                unpacker.feed(chunk)
                try:
                    found = unpacker.unpack()
                except msgpack.OutOfData:
                    continue
                return (*_checked(found), unpacker.tell())
            room -= min(len(view), room)
    except (ValueError, msgpack.UnpackException) as error:
        raise SerializationError(f"a payload does not begin with an envelope: {error}") from None
    raise SerializationError("a payload ends before its envelope does")


def _checked(opening: Any) -> tuple[int, list[int]]:
    if type(opening) is not list or len(opening) != 4 or opening[0] != SCHEME:
        raise SerializationError(f"a payload's envelope is not of scheme {SCHEME}: {str(opening)[:80]}")
    serializer, lengths = opening[1], opening[2]
    if type(serializer) is not int or not 0 <= serializer <= CLOUD | DEEP:
        raise SerializationError(f"a payload was made by a serializer unknown here: {str(serializer)[:80]}")
    if type(lengths) is not list or not lengths or not all(type(n) is int and n >= 0 for n in lengths):
        raise SerializationError("a payload's envelope has no valid frame lengths")
    return serializer, lengths


class _Cursor:
    """Takes consecutive runs of bytes off a list of views, without copying."""

    __slots__ = ("at", "index", "views")

    def __init__(self, views: list[memoryview]) -> None:
        self.views = views
        self.index = 0
        self.at = 0

    def take(self, length: int) -> list[memoryview]:
        out: list[memoryview] = []
        while length:
            view = self.views[self.index]
            part = view if not self.at and len(view) <= length else view[self.at : self.at + length]
            if len(part):
                out.append(part)
            length -= len(part)
            self.at += len(part)
            if self.at == len(view):
                self.index += 1
                self.at = 0
        return out or [memoryview(b"")]


def _own(parts: list[memoryview], views: Iterable[memoryview]) -> Piece:
    """One writable buffer of these parts that keeps nothing else alive."""
    if len(parts) == 1:
        part = parts[0]
        if not part.readonly and any(part is view for view in views):
            return part
        return bytearray(part)
    return bytearray().join(parts)
