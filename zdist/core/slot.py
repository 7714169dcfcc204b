"""The slot file: what each thread of a worker runs right now, readable after the worker was killed. PURE.

One record of fixed size per thread: attempt, when its time is over, length of the key in bytes, a flag, padding, the
key in UTF-8. The key is written while the flag is clear and the flag last, so a worker killed in between leaves no half
a record behind. Times are those of the host's monotonic clock, which all of its processes share.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from zdist import limits
from zdist.protocol.messages import Attempt, Key

__all__ = ["FLAG", "HEADER", "KEY", "LENGTH", "RECORD", "Running", "read", "size"]

HEADER: Final = struct.Struct("<QdHB")  # attempt, deadline, length of the key, 1 while running; packed in this order
FLAG: Final = 18  # offset of the flag within a record
KEY: Final = 24  # offset of the key
LENGTH: Final = 4 * limits.MAX_KEY  # of a key in bytes: a character takes up to four
RECORD: Final = KEY + LENGTH


def size(threads: int) -> int:
    """Bytes of a worker's slot file: its threads, and those that have left the pool. The file is sparse."""
    return RECORD * (threads + limits.SECEDED_PER_WORKER)


class Running(NamedTuple):
    """What a thread runs, and until when it may (0: for any time)."""

    key: Key
    attempt: Attempt
    until: float


def read(pread: Callable[[int, int], bytes]) -> list[Running]:
    """The tasks that are running, or were when the worker was killed. ``pread(length, offset)`` reads the file.

    Records are taken into use in order, so the first that never was ends the search.
    """
    running = []
    start = 0
    while len(header := pread(HEADER.size, start)) == HEADER.size:
        attempt, until, length, flag = HEADER.unpack(header)
        if flag:
            key = pread(min(length, LENGTH), start + KEY).decode("utf-8", "replace")
            running.append(Running(key, attempt, until))
        elif not length:
            break
        start += RECORD
    return running
