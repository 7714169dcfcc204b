"""Events that clients log under topics: the last ones of each, in memory only. PURE."""

from __future__ import annotations

from collections import deque

from zdist.limits import TOPIC_BYTES, TOPIC_EVENTS, TOPICS

__all__ = ["Topics"]


class Topics:
    """Rings of events: number, when (as its client's clock had it), payload."""

    def __init__(self) -> None:
        self.rings: dict[str, deque[tuple[int, float, bytes]]] = {}
        self.size = 0
        self.number = 0

    def log(self, name: str, when: float, payload: bytes) -> None:
        """Add an event; the oldest of its topic goes, and of all topics where they take too much."""
        ring = self.rings.pop(name, None) or deque()
        self.rings[name] = ring  # the one used last is the last
        self.number += 1
        ring.append((self.number, when, payload))
        self.size += len(payload)
        if len(ring) > TOPIC_EVENTS:
            self._drop(name)
        while self.size > TOPIC_BYTES or len(self.rings) > TOPICS:
            self._drop(next(iter(self.rings)))

    def _drop(self, name: str) -> None:
        ring = self.rings[name]
        self.size -= len(ring.popleft()[2])
        if not ring:
            del self.rings[name]

    def after(self, name: str, number: int) -> tuple[tuple[int, float, bytes], ...]:
        """Events of a topic with higher numbers."""
        return tuple(event for event in self.rings.get(name, ()) if event[0] > number)
