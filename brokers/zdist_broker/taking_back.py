"""Queued tasks are taken back from loaded workers when others are idle. PURE."""

from __future__ import annotations

from itertools import islice

from zdist.limits import ASK_BACK_TIMEOUT, STEAL_MICROS, STEAL_PAUSE, STEAL_SAMPLE
from zdist.protocol.messages import TakeBack
from zdist_broker.placement import Placement
from zdist_broker.state import SECEDED, Worker


class TakingBack:
    """Whom to ask for tasks, and when; `Intake.returned` takes what comes back."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.due_at: float | None = None  # when to look again

    def balance(self, now: float, *, due: bool = False) -> None:
        """Ask the most loaded workers for queued tasks if others are idle and nothing is ready; after ``flush``.

        Little work is asked back only after a pause (``due``): mostly it is done before the answer would come.
        """
        loaded, default = self.placement.loaded, self.placement.default
        if not loaded or default.live or not default.idle():
            self.due_at = None
            return
        sample = islice(loaded, STEAL_SAMPLE)
        victims = [w for w in sample if w.asked_back is None or now >= w.asked_back + ASK_BACK_TIMEOUT]
        if not victims:
            self.due_at = now + ASK_BACK_TIMEOUT
            return
        victim = max(victims, key=lambda w: w.load)
        if victim.load < STEAL_MICROS and not due:
            if self.due_at is None:
                self.due_at = now + STEAL_PAUSE
            return
        self.due_at = now + STEAL_PAUSE
        del loaded[victim]  # to the end of the line
        loaded[victim] = None
        self._ask_back(victim, now)

    def _ask_back(self, victim: Worker, now: float) -> None:
        surplus = max(victim.count - victim.threads, 0)  # it may have caught up since it was noted as loaded
        idle = sum(max(w.threads - w.count, 0) for w in islice(self.placement.default.free, STEAL_SAMPLE))
        share = max(1, surplus * idle // (idle + 1))
        rows: list[tuple[str, int]] = []
        for task in reversed(victim.assigned.values()):
            if not surplus or len(rows) == share:
                break
            if task.waiting:  # no more than FOLLOWERS, and those whose inputs were lost
                continue
            surplus -= 1
            assert task.terms is not None
            if not task.flags & SECEDED and task.terms.pool.idle():
                rows.append((task.key, task.attempt))
        victim.asked_back = now
        if rows:
            victim.victim = True
            for pool in victim.pools:
                pool.ahead.pop(victim, None)
            self.placement.tables.tell(victim, TakeBack(tuple(rows)))
