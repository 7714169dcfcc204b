"""What a worker reports of its tasks: completions and failures of a turn leave together at its end. PURE."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from zdist.core.machine import CONTROL, Route
from zdist.limits import LANE_NOTES
from zdist.protocol.messages import Attempt, Done, Erred, Key, Message, Payload

__all__ = ["Reports"]

DoneRow: TypeAlias = tuple[Key, Attempt, int, int, Payload | None, str]


class Reports:
    """Rows of Done and Erred that are yet to be sent."""

    __slots__ = ("done", "due", "erred", "settled")

    def __init__(self) -> None:
        self.done: list[DoneRow] = []
        self.erred: list[tuple[Key, Attempt, int, Payload, str]] = []
        self.settled: dict[Key, DoneRow] = {}  # of which the client has had a copy: they go with the next ones,
        self.due = float("inf")  # or then

    def settle(self, row: DoneRow, now: float) -> None:
        """The client has this early; it is enough if the broker hears of it soon."""
        if not self.settled:
            self.due = now + LANE_NOTES
        self.settled[row[0]] = row

    def drop(self, key: Key) -> None:
        """The broker need not hear of this at all."""
        if self.settled.pop(key, None) is not None and not self.settled:
            self.due = float("inf")

    def flush(self, send: Callable[[Route, Message], None], now: float) -> None:
        """End of a turn."""
        if self.settled and (self.done or now >= self.due):
            self.done = [*self.settled.values(), *self.done]
            self.settled, self.due = {}, float("inf")
        if self.done:
            send(CONTROL, Done(tuple(self.done)))
            self.done = []
        if self.erred:
            send(CONTROL, Erred(tuple(self.erred)))
            self.erred = []

    def clear(self) -> None:
        """There is nobody to report to."""
        self.done, self.erred, self.settled, self.due = [], [], {}, float("inf")
