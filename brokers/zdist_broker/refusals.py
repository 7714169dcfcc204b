"""Answers of the relay without data: who confirms none of them would have its connection filled with them. PURE."""

from __future__ import annotations

from zdist.core.machine import require
from zdist.limits import REFUSED_KEYS

__all__ = ["Refusals"]


class Refusals:
    """How many keys are in such answers that a receiver has not confirmed yet."""

    def __init__(self) -> None:
        self.keys: dict[str, dict[int, int]] = {}  # by receiver and request
        self.sums: dict[str, int] = {}  # by receiver

    def add(self, receiver: str, req: int, keys: int) -> bool:
        """Note an answer; False if the receiver is not to have it, because too many are not confirmed."""
        self.confirmed(receiver, req)
        count = self.sums.get(receiver, 0) + keys
        if count > REFUSED_KEYS:
            return False
        self.keys.setdefault(receiver, {})[req] = keys
        self.sums[receiver] = count
        return True

    def confirmed(self, receiver: str, req: int) -> bool:
        """The receiver has got the answer to this request; False if there was none."""
        table = self.keys.get(receiver)
        if table is None or req not in table:
            return False
        self.sums[receiver] -= table.pop(req)
        if not table:
            self.forget(receiver)
        return True

    def forget(self, receiver: str) -> None:
        """It is gone."""
        self.keys.pop(receiver, None)
        self.sums.pop(receiver, None)

    def check(self) -> None:
        """Raise InvariantError if the sums do not fit."""
        sums = {receiver: sum(table.values()) for receiver, table in self.keys.items()}
        require(sums == self.sums, "relay: refused keys are not the sum")
        require(all(self.keys.values()), "relay: an empty table of refusals was kept")
