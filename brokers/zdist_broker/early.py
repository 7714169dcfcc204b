"""Relayed requests whose holder has no bulk connection: mostly it is about to have one. PURE."""

from __future__ import annotations

from collections.abc import Callable

from zdist.core.machine import require
from zdist.limits import ATTACH_WAIT, QUEUED_REQUESTS
from zdist.protocol.messages import Get

__all__ = ["Early"]


class Early:
    """They wait for ``ATTACH_WAIT``; as many of them for one holder, and of one receiver, as may be queued."""

    def __init__(self) -> None:
        self.gets: dict[str, list[tuple[Get, float]]] = {}  # by holder, and until when they wait
        self.counts: dict[str, int] = {}  # by receiver

    def add(self, get: Get, now: float) -> bool:
        """Let a request wait; False if too many do."""
        if max(len(self.gets.get(get.holder, ())), self.counts.get(get.receiver, 0)) >= QUEUED_REQUESTS:
            return False
        self.gets.setdefault(get.holder, []).append((get, now + ATTACH_WAIT))
        self._count(get, 1)
        return True

    def take(self, holder: str) -> list[Get]:
        """All that wait for a holder."""
        return self._remove(holder, lambda get, due: True)

    def forget(self, receiver: str) -> None:
        """It is gone."""
        if receiver in self.counts:
            for holder in list(self.gets):
                self._remove(holder, lambda get, due: get.receiver == receiver)

    def withdraw(self, receiver: str, req: int) -> None:
        """The receiver wants it no more."""
        if receiver in self.counts:
            for holder in list(self.gets):
                self._remove(holder, lambda get, due: get.receiver == receiver and get.req == req)

    def expire(self, now: float) -> list[Get]:
        """Those that have waited long enough."""
        return [get for holder in list(self.gets) for get in self._remove(holder, lambda get, due: due <= now)]

    def deadline(self) -> float:
        """When the next of them has."""
        return min([gets[0][1] for gets in self.gets.values()], default=float("inf"))

    def _remove(self, holder: str, which: Callable[[Get, float], bool]) -> list[Get]:
        gets = self.gets.pop(holder, [])
        if kept := [row for row in gets if not which(*row)]:
            self.gets[holder] = kept
        removed = [get for get, due in gets if which(get, due)]
        for get in removed:
            self._count(get, -1)
        return removed

    def _count(self, get: Get, change: int) -> None:
        self.counts[get.receiver] = self.counts.get(get.receiver, 0) + change
        if not self.counts[get.receiver]:
            del self.counts[get.receiver]

    def check(self) -> None:
        """Raise InvariantError if the counts do not fit."""
        counts: dict[str, int] = {}
        for gets in self.gets.values():
            for get, _ in gets:
                counts[get.receiver] = counts.get(get.receiver, 0) + 1
        require(counts == self.counts, "relay: early requests by receiver are not the sum")
        require(all(self.gets.values()), "relay: an empty list of early requests was kept")
