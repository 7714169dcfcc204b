"""What the fields of messages are made of. PURE."""

from __future__ import annotations

from hashlib import sha256
from typing import TypeAlias


class Buffer:
    """A large run of bytes that travels as a frame of its own instead of inside the header."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = data

    @property
    def nbytes(self) -> int:
        return self.data.nbytes if isinstance(self.data, memoryview) else len(self.data)

    def __repr__(self) -> str:
        return f"Buffer({self.nbytes} B)"


Payload: TypeAlias = bytes | Buffer
Session: TypeAlias = str
Key: TypeAlias = str
Attempt: TypeAlias = int
Digest: TypeAlias = bytes


def payload_size(payload: Payload) -> int:
    """Bytes of a payload."""
    return payload.nbytes if isinstance(payload, Buffer) else len(payload)


def function_digest(blob: Payload | bytearray | memoryview) -> Digest:
    """What names a function: the SHA-256 digest of its pickled bytes, which processors have instructions for."""
    return sha256(blob.data if isinstance(blob, Buffer) else blob).digest()
