"""What the fields of messages are made of. PURE."""

from __future__ import annotations

from hashlib import blake2b, sha256
from typing import Final, TypeAlias


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

DATA: Final = 1 << 63  # from here on attempts stand for the content of data


def content_attempt(token: str) -> Attempt:
    """In place of an attempt for data whose content has this token, so that other data of its name is told from it;
    0 if there is no token, and the name is the data's own."""
    return DATA | int.from_bytes(blake2b(token.encode(), digest_size=8).digest()) if token else 0


def serves(attempt: Attempt, asked: Attempt) -> bool:
    """Whether a blob of this attempt will do for who asked for that one (-1: any): what a task has made later does,
    other data of the same name does not."""
    return attempt == asked or asked < 0 or asked < attempt < DATA


def payload_size(payload: Payload) -> int:
    """Bytes of a payload."""
    return payload.nbytes if isinstance(payload, Buffer) else len(payload)


def function_digest(blob: Payload | bytearray | memoryview) -> Digest:
    """What names a function: the SHA-256 digest of its pickled bytes, which processors have instructions for."""
    return sha256(blob.data if isinstance(blob, Buffer) else blob).digest()
