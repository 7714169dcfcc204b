"""What the broker counts for those who look at it: nothing of it decides anything. PURE."""

from __future__ import annotations

from collections import deque

from zdist.limits import FAILURES_KEPT

__all__ = ["Tally"]

SHOWN = 200  # characters of a failure's text


class Tally:
    """Completions and failures since the broker's beginning, the last failures, and the last log records.

    What client and worker settle between them by a lane, without the broker, is not among the completions.
    """

    def __init__(self) -> None:
        self.completed = 0
        self.failed = 0
        self.failures: deque[tuple[int, str, str]] = deque(maxlen=FAILURES_KEPT)  # number, key, last line of the text

    def failure(self, key: str, text: str) -> None:
        """A task has failed for good."""
        self.failed += 1
        self.failures.append((self.failed, key, text.rstrip().rpartition("\n")[2].strip()[:SHOWN]))
