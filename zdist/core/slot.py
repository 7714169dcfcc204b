"""The slot file: what each thread of a worker runs right now, readable after the worker was killed. PURE.

One record of fixed size per thread: attempt, length of the key in bytes, a flag, padding, the key in UTF-8. The key is
written while the flag is clear and the flag last, so a worker killed in between leaves no half a record behind.
"""

from __future__ import annotations

import struct
from typing import Final

from zdist import limits
from zdist.protocol.messages import Attempt, Key

__all__ = ["FLAG", "HEADER", "KEY", "LENGTH", "RECORD", "read", "size"]

HEADER: Final = struct.Struct("<QHB")  # attempt, length of the key, 1 while running; packed in this order
FLAG: Final = 10  # offset of the flag within a record
KEY: Final = 16  # offset of the key
LENGTH: Final = 4 * limits.MAX_KEY  # of a key in bytes: a character takes up to four
RECORD: Final = KEY + LENGTH


def size(threads: int) -> int:
    """Bytes of a worker's slot file: its threads, and those that have left the pool. The file is sparse."""
    return RECORD * (threads + limits.SECEDED_PER_WORKER)


def read(data: bytes) -> list[tuple[Key, Attempt]]:
    """The tasks that were running when the file was left as it is; ``data`` is its whole content."""
    running = []
    for start in range(0, len(data) - RECORD + 1, RECORD):
        attempt, length, flag = HEADER.unpack_from(data, start)
        if flag:
            key = data[start + KEY : start + KEY + min(length, RECORD - KEY)].decode("utf-8", "replace")
            running.append((key, attempt))
    return running
