"""A worker's memory: what goes to disk, and when nothing new may start. PURE.

Three marks, fractions of the worker's limit: from the first on held values are spilled, those that were not asked for
the longest first; above the second no task starts; above the third its node ends the process. So that a task has room
for another result like the largest of late, values go earlier where these are large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from zdist import limits
from zdist.core.store import FREEZING, SHARING, UNFREEZABLE, Entry, Store
from zdist.protocol.messages import Attempt, Key

if TYPE_CHECKING:
    from zdist.core.store import Blob

__all__ = ["Memory", "Spill"]


class Spill(NamedTuple):
    """Command: write a held value to disk; answered by `Memory.spilled`."""

    key: Key
    attempt: Attempt


class Memory:
    """What is to be done about a worker's memory.

    ``limit``: bytes, 0 for none. ``usage`` tells the bytes in use (None: it cannot be told, and nothing is done);
    ``order`` takes commands, ``changed`` is called when the worker begins or ceases to be full.
    """

    def __init__(self, limit: int, store: Store, order: Callable[[Spill], None], changed: Callable[[], None]) -> None:
        self.limit = limit
        self.store = store
        self.order = order
        self.changed = changed
        self.least = limits.SPILL_MIN  # bytes; smaller values stay
        self.usage: Callable[[], int] | None = None
        self.look_at = 0.0 if limit else float("inf")
        self.largest = 0.0  # bytes of a result, of late
        self.spilling: dict[Key, int] = {}  # bytes that are being written
        self.stuck: dict[Key, Attempt] = {}  # values that could not be written of late
        self.forgive_at = 0.0
        self.away = 0  # running tasks that have left the thread pool
        self.full = False  # no task starts
        self.wait = False  # no task starts until something has been written

    @property
    def closed(self) -> bool:
        """No task may start now."""
        return (self.full or self.wait) and not self.away

    @property
    def paused(self) -> bool:
        """The broker is to send none."""
        return self.full and not self.away

    def seceded(self, change: int) -> None:
        """So many more running tasks wait for others, which may have to run here: that must not depend on memory."""
        paused = self.paused
        self.away += change
        if self.paused != paused:
            self.changed()

    def crowded(self, nbytes: int) -> bool:
        """Whether there is no room for a second copy of a result."""
        if nbytes < limits.LARGE_RESULT or self.usage is None:
            return False
        return self.usage() + nbytes > limits.SPILL_MARK * self.limit

    def grown(self, nbytes: int, now: float) -> None:
        """A large result was made."""
        self.largest = max(self.largest, nbytes)
        self.look(now)

    def look(self, now: float) -> None:
        """Measure, and decide."""
        if self.usage is None or not self.limit:
            return
        self.look_at = now + limits.MEASURE
        if now >= self.forgive_at:  # the disk may have room again
            self.forgive_at = now + limits.STUCK
            self.stuck.clear()
        used = self.usage()
        room = limits.PAUSE_MARK * self.limit - self.largest
        self.largest *= 0.99
        mark = max(min(limits.SPILL_MARK * self.limit, room), limits.SPILL_LEAST * self.limit)
        excess = used - mark - sum(self.spilling.values())
        if excess > 0:
            self._spill(excess)
        full = used > limits.PAUSE_MARK * self.limit
        self.wait = bool(self.spilling) and used > mark
        if full != self.full:
            paused, self.full = self.paused, full
            if self.paused != paused:
                self.changed()

    def deadline(self) -> float | None:
        """When to look again although nothing happens."""
        return self.look_at if self.closed else None

    def _spill(self, excess: float) -> None:
        """Order values to be written until that many bytes are free."""
        for entry in self.store.entries.values():
            if entry.nbytes < self.least or entry.key in self.spilling or not self._spillable(entry):
                continue
            if entry.blob is not None and entry.blob.spilled:
                entry.has_value, entry.value = False, None  # it was read again, and is still there
            else:
                self.spilling[entry.key] = entry.nbytes
                self.order(Spill(entry.key, entry.attempt))
            excess -= entry.nbytes
            if excess <= 0:
                return

    def _spillable(self, entry: Entry) -> bool:
        if entry.state in (FREEZING, SHARING, UNFREEZABLE) or self.stuck.get(entry.key) == entry.attempt:
            return False
        return entry.has_value or entry.blob is None or not entry.blob.spilled

    def spilled(self, key: Key, attempt: Attempt, blob: Blob | None, now: float) -> None:
        """Answer to Spill: where the value is now, or None if it has to stay."""
        if blob is not None:
            self.store.spilled(key, attempt, blob)
        else:
            self.stuck[key] = attempt
        self.gone(key, now)

    def gone(self, key: Key, now: float) -> None:
        """Nothing of it is on its way to disk any more."""
        self.spilling.pop(key, None)
        if not self.spilling:
            self.look(now)
