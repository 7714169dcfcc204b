"""Bad input is counted, and told once a connection and never in floods. PURE."""

from __future__ import annotations

from typing import Any

from zdist.core.machine import Log
from zdist.limits import LOG_COMPLAINTS

__all__ = ["Complaints"]

HOPS = 4096  # connections remembered, the oldest make room


class Complaints:
    """Log records about peers' bad input: one for each connection and kind, a few between two sweeps."""

    __slots__ = ("commands", "counts", "left", "silenced", "total")

    def __init__(self, commands: list[Any]) -> None:
        self.commands = commands
        self.counts: dict[tuple[str, bytes], int] = {}
        self.total = 0
        self.left = LOG_COMPLAINTS
        self.silenced = 0

    def add(self, level: str, event: str, hop: bytes, fields: dict[str, Any]) -> int:
        """Count it, and log the first from each connection; how many there were."""
        self.total += 1
        name = (event, hop)
        count = self.counts.get(name, 0) + 1
        if count == 1 and len(self.counts) >= HOPS:
            del self.counts[next(iter(self.counts))]
        self.counts[name] = count
        if count == 1:
            if self.left:
                self.left -= 1
                self.commands.append(Log(level, event, fields))
            else:
                self.silenced += 1
        return count

    def sweep(self) -> None:
        """Some time has passed: say what was left unsaid, and allow a few more."""
        if self.silenced:
            self.commands.append(Log("warning", "peer.complaints", {"not_logged": self.silenced}))
        self.silenced = 0
        self.left = LOG_COMPLAINTS
