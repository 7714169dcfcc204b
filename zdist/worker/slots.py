"""The slot file of this worker: each thread notes what it runs, so that the node can tell after a crash."""

from __future__ import annotations

import mmap
import os

from zdist.core import slot
from zdist.protocol.messages import Attempt, Key

__all__ = ["Slot", "Slots"]

_pack = slot.HEADER.pack_into


class Slot:
    """One thread's record. Costs a fraction of a microsecond per task: nothing but two copies into mapped memory."""

    __slots__ = ("_flag", "_key", "_memory", "_start")

    def __init__(self, memory: memoryview, start: int) -> None:
        self._memory = memory
        self._start = start
        self._flag = start + slot.FLAG
        self._key = start + slot.KEY

    def claim(self) -> None:
        """A thread has this record: those who read go on to the next one, although nothing has run here yet."""
        _pack(self._memory, self._start, 0, 0.0, 1, 0)

    def begin(self, key: Key, attempt: Attempt, until: float = 0.0) -> None:
        """The thread runs this now, ``until`` then at most; the key is in place before the flag is set."""
        data = key.encode()[: slot.LENGTH]
        at = self._key
        memory = self._memory
        memory[at : at + len(data)] = data
        _pack(memory, self._start, attempt, until, len(data), 1)

    def end(self) -> None:
        """The thread runs nothing."""
        self._memory[self._flag] = 0


class Slots:
    """The file's records; ``path`` None keeps them in memory of this process, for workers that share it with others.

    Raises OSError if the file cannot be made.
    """

    def __init__(self, path: str | None, threads: int) -> None:
        size = slot.size(threads)
        if path is None:
            memory = mmap.mmap(-1, size)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, size)
                memory = mmap.mmap(fd, size)
            finally:
                os.close(fd)
        self._view = view = memoryview(memory)  # faster to write to than the map itself
        self._free = [Slot(view, start) for start in range(size - slot.RECORD, -1, -slot.RECORD)]

    def running(self) -> list[slot.Running]:
        """What the threads run; safe from another thread, but not a snapshot."""
        return slot.read(lambda length, offset: bytes(self._view[offset : offset + length]))

    def take(self) -> Slot:
        """A record for a thread that begins; beyond the last one a record that nobody reads."""
        try:
            record = self._free.pop()
            record.claim()
            return record
        except IndexError:
            return Slot(memoryview(mmap.mmap(-1, slot.RECORD)), 0)

    def give(self, record: Slot) -> None:
        """The record of a thread that ends."""
        record.end()
        self._free.append(record)
