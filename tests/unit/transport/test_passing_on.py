"""What is received and sent on stays the frame that it came in."""

from __future__ import annotations

import zmq

from zdist.protocol.codec import decode, encode
from zdist.protocol.messages import Buffer, Data, Packet
from zdist.transport.channels import _received


def test_a_received_buffer_is_sent_on_as_its_frame() -> None:
    data = Data(1, "c-1", (("k", 1, 100_000, 0, (Buffer(bytes(100_000)),)),), ())
    frames = [zmq.Frame(frame) for frame in encode(Packet("w-1", 0, 0, (data,)))]
    onward = encode(decode(frames))
    assert _received(onward[1]) is frames[1]
    assert onward[1] == bytes(100_000)


def test_anything_else_goes_as_it_is() -> None:
    frame = zmq.Frame(bytes(100))
    for data in (bytes(100), memoryview(bytes(100)), frame.buffer[:50], bytearray(100)):
        assert _received(data) is data
