"""Packets survive the wire; nothing else gets through."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist.errors import ProtocolError, VersionMismatch
from zdist.protocol.codec import decode, encode
from zdist.protocol.messages import PROTOCOL, TYPES, Buffer, Data, Packet, Ping, Submit

INT64 = st.integers(-(2**63), 2**63 - 1)
FREE = st.recursive(
    st.none() | st.booleans() | INT64 | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated field."""
    if hint is Any:
        return FREE
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        return st.one_of([values(arm) for arm in args])
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*[values(arg) for arg in args])
    if origin is dict:
        return st.dictionaries(st.text(max_size=4), values(args[1]), max_size=3)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=20),
        int: INT64,
        bool: st.booleans(),
        bytes: st.binary(max_size=20),
        float: st.floats(allow_nan=False),
        type(None): st.none(),
        Buffer: st.binary(max_size=20).map(Buffer),
    }
    return simple[hint]


def messages() -> st.SearchStrategy[Any]:
    return st.one_of(
        [st.tuples(*[values(h) for h in typing.get_type_hints(cls).values()]).map(cls._make) for cls in TYPES]
    )


def plain(value: Any) -> Any:
    """Buffers by content, so that packets can be compared."""
    if isinstance(value, Buffer):
        return ("buffer", bytes(value.data))
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


@settings(deadline=None)
@given(st.text(max_size=20), st.integers(0, 2**40), st.integers(0, 2**40), st.lists(messages(), max_size=4))
def test_any_packet_survives(session: str, seq: int, ack: int, batch: list[Any]) -> None:
    packet = Packet(session, seq, ack, tuple(batch))
    frames = [bytes(frame) for frame in encode(packet)]
    arrived = decode(frames)
    assert plain(arrived) == plain(packet)
    assert [type(m) for m in arrived.messages] == [type(m) for m in batch]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_a_protocol_error(frames: list[bytes]) -> None:
    try:
        decode(frames)
    except ProtocolError:
        return
    assert decode(frames).seq >= 0  # bytes that happen to be a packet are one


@settings(deadline=None)
@given(messages(), st.data())
def test_a_damaged_message_never_reaches_a_machine(message: Any, data: st.DataObject) -> None:
    """Replace one field by something of another type: decoding refuses it or the type allowed it."""
    code = TYPES.index(type(message))
    hints = list(typing.get_type_hints(type(message)).values())
    fields: list[Any] = [f if not isinstance(f, Buffer) else b"" for f in message]
    if not fields:
        fields = [1]
    else:
        place = data.draw(st.integers(0, len(fields) - 1))
        if hints[place] is Any:
            return
        fields[place] = msgpack.ExtType(9, b"x")
    header = msgpack.packb((PROTOCOL, "c-1", 1, 0, [[code, *fields]]), default=lambda b: bytes(b.data))
    with pytest.raises(ProtocolError):
        decode([header])


@settings(deadline=None)
@given(st.lists(messages(), min_size=1, max_size=3), st.data())
def test_a_packet_with_changed_bytes_is_refused_or_is_well_typed(batch: list[Any], data: st.DataObject) -> None:
    """What gets through after any change of bytes can be encoded again, so a machine sees nothing ill-typed."""
    frames = [bytearray(frame) for frame in encode(Packet("c-1", 1, 0, tuple(batch)))]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, len(frames) - 1))]
        place = data.draw(st.integers(0, max(len(frame) - 1, 0)))
        change = data.draw(st.sampled_from(("set", "insert", "cut", "drop")))
        if change == "set" and frame:
            frame[place] = data.draw(st.sampled_from((0, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xCB, 0xCF, 0xD4, 0xDD, 0xFF)))
        elif change == "insert":
            frame[place:place] = data.draw(st.binary(min_size=1, max_size=3))
        elif change == "cut":
            del frame[place:]
        elif len(frames) > 1:
            frames.pop()
    try:
        packet = decode(frames)
    except ProtocolError:
        return
    assert plain(decode([bytes(frame) for frame in encode(packet)])) == plain(packet) or "nan" in repr(packet)


@pytest.mark.parametrize(
    "header", [b"\x91" * 100_000, b"\x81" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
)
def test_headers_that_promise_too_much_are_refused_at_once(header: bytes) -> None:
    with pytest.raises(ProtocolError, match="no zdist packet"):
        decode([header])


def nested(depth: int) -> Any:
    value: Any = ()
    for _ in range(depth):
        value = (value,)
    return value


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, nested(2000)], ids=["large", "small", "deep"])
def test_a_value_that_cannot_be_encoded_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError, match="cannot"):
        encode(Packet("c-1", 1, 0, (Submit(b"f", False, value, (), ()),)))


def test_a_payload_beyond_the_largest_frame_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist.limits.MAX_FRAME", 1000)
    with pytest.raises(ProtocolError, match="a payload of 1001 bytes, 1000 are possible"):
        encode(Packet("c-1", 1, 0, (Submit(b"f", False, 1, (), (("k", Buffer(bytes(1001)), ()),)),)))


def test_another_version_is_named() -> None:
    header = msgpack.packb((PROTOCOL + 1, "whatever", {"new": "layout"}))
    with pytest.raises(VersionMismatch, match=f"version {PROTOCOL + 1}, this side version {PROTOCOL}"):
        decode([header])


def test_rows_are_checked_one_by_one() -> None:
    good = ("key", b"args", ("dep",))
    for bad in [("key", b"args"), (1, b"args", ()), ("key", "args", ()), ("key", b"args", (1,)), "row"]:
        packet = Packet("c-1", 1, 0, (Submit(b"f", False, 1, (), (good, bad)),))  # type: ignore[arg-type]
        with pytest.raises(ProtocolError, match="malformed Submit"):
            decode(encode(packet))


def test_large_buffers_are_frames_of_their_own_and_not_copied() -> None:
    data = bytearray(1 << 20)
    frames = encode(Packet("w-1", 0, 0, (Data(1, "c-1", (("k", 1, 1 << 20, 0, (Buffer(data),)),), ()),)))
    assert len(frames) == 2 and frames[1] is data and len(frames[0]) < 100
    piece = decode(frames).messages[0].rows[0][4][0]  # type: ignore[union-attr]
    data[5] = 7
    assert piece.data[5] == 7


def test_a_reference_to_a_frame_that_is_not_there() -> None:
    frames = encode(Packet("w-1", 0, 0, (Data(1, "c-1", (("k", 1, 5, 0, (Buffer(b"hello"),)),), ()),)))
    with pytest.raises(ProtocolError, match="payload frame 1 of 1"):
        decode(frames[:1])


def test_what_is_no_message_cannot_be_encoded() -> None:
    with pytest.raises(ProtocolError, match="cannot encode a object"):
        encode(Packet("c-1", 1, 0, (Ping(), Submit(b"", False, 1, (object(),), ()))))
