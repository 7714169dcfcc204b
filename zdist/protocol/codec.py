"""Packets to frames and back. PURE.

Frame 0 is one msgpack array ``[protocol, session, seq, ack, [[code, *fields], …]]``; small payloads lie in it as bin,
large ones (`Buffer`) are frames of their own that the header names by number through an extension type. Decoding checks
every field against the message's annotations before anything reaches a machine.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

from zdist import limits
from zdist.errors import ProtocolError, VersionMismatch
from zdist.protocol.messages import PROTOCOL, TYPES, Buffer, Message, Packet

__all__ = ["decode", "encode"]

_FRAME: Final = 1  # extension type: the number of a payload frame
_CODES: Final[dict[type, int]] = {cls: code for code, cls in enumerate(TYPES)}

Bytes = bytes | bytearray | memoryview


def encode(packet: Packet) -> list[Bytes]:
    """Frames of a packet; the buffers in it are handed on, not copied.

    Raises ProtocolError if the header or the number of frames would pass the limits: the receiver would refuse it.
    """
    frames: list[Bytes] = [b""]

    def frame(value: object) -> msgpack.ExtType:
        if type(value) is not Buffer:
            raise ProtocolError(f"cannot encode a {type(value).__name__} in a message")
        if value.nbytes > limits.MAX_FRAME:
            raise ProtocolError(f"a payload of {value.nbytes} bytes, {limits.MAX_FRAME} are possible")
        frames.append(value.data)
        return msgpack.ExtType(_FRAME, (len(frames) - 1).to_bytes(4, "big"))

    codes = _CODES
    body = [(codes[type(message)], *message) for message in packet.messages]
    try:
        header = msgpack.packb((PROTOCOL, packet.session, packet.seq, packet.ack, body), default=frame)
    except (OverflowError, TypeError, ValueError) as exc:
        raise ProtocolError(f"a message that cannot be encoded: {type(exc).__name__}: {exc}") from None
    if len(header) > limits.MAX_HEADER or len(frames) > limits.MAX_FRAMES:
        raise ProtocolError(f"packet too large: {len(header)} bytes of header, {len(frames)} frames")
    frames[0] = header
    return frames


def decode(frames: Sequence[Any]) -> Packet:
    """The packet in these frames (bytes or ZeroMQ frames).

    Raises VersionMismatch for another protocol version and ProtocolError for anything that is no well-formed packet.
    """
    if not frames or len(frames) > limits.MAX_FRAMES:
        raise ProtocolError(f"{len(frames)} frames, 1 to {limits.MAX_FRAMES} expected")
    head = _view(frames[0])
    if len(head) > limits.MAX_HEADER:
        raise ProtocolError(f"header of {len(head)} bytes, at most {limits.MAX_HEADER} allowed")

    def payload(code: int, data: bytes) -> Buffer:
        number = int.from_bytes(data, "big")
        if code != _FRAME or not 0 < number < len(frames):
            raise ProtocolError(f"reference to payload frame {number} of {len(frames)}")
        return Buffer(_view(frames[number]))

    try:
        fields = msgpack.unpackb(head, ext_hook=payload, use_list=False, strict_map_key=False)
    except ProtocolError:
        raise
    except Exception as exc:  # msgpack raises many types for garbage
        raise ProtocolError(f"no zdist packet: {type(exc).__name__}: {exc}") from None
    if type(fields) is not tuple or not fields or type(fields[0]) is not int:
        raise ProtocolError("no zdist packet: the header is no array that starts with a version")
    if fields[0] != PROTOCOL:
        raise VersionMismatch(f"the peer speaks zdist protocol version {fields[0]}, this side version {PROTOCOL}")
    if (
        len(fields) != 5
        or not _header(fields[1:4])
        or len(fields[1]) > limits.MAX_SESSION
        or type(fields[4]) is not tuple
    ):
        raise ProtocolError("no zdist packet: malformed header")
    return Packet(fields[1], fields[2], fields[3], tuple([_message(m) for m in fields[4]]))


def _view(frame: Any) -> Any:
    """A frame's bytes without a copy."""
    return frame if isinstance(frame, (bytes, bytearray, memoryview)) else frame.buffer


def _message(fields: object) -> Message:
    if type(fields) is not tuple or not fields or type(fields[0]) is not int or not 0 <= fields[0] < len(TYPES):
        raise ProtocolError("unknown message code")
    cls = TYPES[fields[0]]
    values = fields[1:]
    try:
        good = _CHECKS[cls](values)
    except (TypeError, IndexError, KeyError):
        good = False
    if not good:
        raise ProtocolError(f"malformed {cls.__name__} message")
    made: Message = cls._make(values)
    return made


# --- checks, generated from the annotations so that they cost one expression per row --------------------

Check = Callable[[tuple[Any, ...]], bool]


def _test(hint: Any, value: str, depth: int = 0) -> str:
    """Source of an expression that is true when ``value`` has the annotated type."""
    if hint is Any:
        return "True"
    if hint is float:
        return f"type({value}) in (float, int)"
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        arms = [_test(arm, value, depth) for arm in typing.get_args(hint)]
        return "(" + " or ".join(arms) + ")"
    if hint is type(None):
        return f"{value} is None"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and args[-1] is Ellipsis:
        item = f"v{depth}"
        every = f"all([{_test(args[0], item, depth + 1)} for {item} in {value}])"
        return f"type({value}) is tuple and (not {value} or {every})"
    if origin is tuple:
        parts = [f"type({value}) is tuple and len({value}) == {len(args)}"]
        parts += [f"({_test(arg, f'{value}[{i}]', depth)})" for i, arg in enumerate(args) if arg is not Any]
        return " and ".join(parts)
    if origin is dict:
        every = f"all([type(k) is str for k in {value}])"
        if args[1] is not Any:
            every += f" and all([{_test(args[1], 'v', depth)} for v in {value}.values()])"
        return f"type({value}) is dict and {every}"
    return f"type({value}) is {hint.__name__}"


def _compile(hints: list[Any]) -> Check:
    tests = [f"len(m) == {len(hints)}"] + [f"({_test(hint, f'm[{i}]')})" for i, hint in enumerate(hints)]
    namespace: dict[str, Any] = {"Buffer": Buffer}
    check: Check = eval(f"lambda m: {' and '.join(tests)}", namespace)
    return check


_CHECKS: Final[dict[type, Check]] = {cls: _compile(list(typing.get_type_hints(cls).values())) for cls in TYPES}
_header: Final = _compile([str, int, int])
