"""Keys that are asked for before anybody has told a successor of them. PURE.

A client that has a future from another may ask for it sooner than that other, or a worker that runs it, has come back.
Its want is kept until the key is known. What workers hold and nobody has claimed by then it is given as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zdist.core.machine import require
from zdist.limits import COPIES_MOST, SOUGHT
from zdist.protocol.messages import ANY
from zdist_broker.parse import fit_key
from zdist_broker.recovery import Recovery, is_stub
from zdist_broker.state import PINS, RELEASED, Claimed, Client, Tables

if TYPE_CHECKING:
    from zdist_broker.intake import Intake

__all__ = ["Sought"]

LOOK: Final = 0.02  # seconds between looks whether they are known


class Sought:
    """Who wants keys that are in no table: under which generation, and what is claimed of it."""

    def __init__(self, tables: Tables, recovery: Recovery) -> None:
        self.tables = tables
        self.recovery = recovery
        self.keys: dict[str, dict[Client, tuple[int, Claimed | None]]] = {}
        self.look_at: float | None = None

    def keep(self, client: Client, key: str, gen: int, claim: Claimed | None, now: float) -> bool:
        """Whether somebody may still tell of the key; then the want waits for that."""
        began = self.recovery.began
        if began is None or client.session == PINS or (now >= began + SOUGHT and not self.recovery.absent):
            return False
        if len(self.keys) >= COPIES_MOST or fit_key(key):
            return False
        self.keys.setdefault(key, {})[client] = (gen, claim)
        if self.look_at is None:
            self.look_at = now + LOOK
        return True

    def drop(self, client: Client, key: str) -> None:
        """The client does not want it any more."""
        wants = self.keys.get(key, {})
        if wants.pop(client, None) is not None and not wants:
            del self.keys[key]

    def gone(self, client: Client) -> None:
        """Nor anything else."""
        for key in [key for key, wants in self.keys.items() if client in wants]:
            self.drop(client, key)

    def tick(self, intake: Intake, now: float) -> None:
        """See which are known by now; in the end those that are not are answered."""
        if self.look_at is None or now < self.look_at:
            return
        recovery, began = self.recovery, self.recovery.began
        over = began is None or (now >= began + SOUGHT and not recovery.absent)
        for key, wants in list(self.keys.items()):
            task = self.tables.tasks.get(key)
            claim = next((claim for _, claim in wants.values() if claim is not None), None)
            there = recovery.holds(key, claim) if claim else key in recovery.copies and recovery.late(now)
            if there and (task is None or is_stub(task)):
                task = recovery.data(key, claim or Claimed(ANY))
            unknown = task is None or (task.fn is None and task.state == RELEASED)
            if unknown and not over:
                continue
            del self.keys[key]
            for client, (gen, _) in wants.items():
                if key in client.wants:
                    continue  # it has submitted it meanwhile
                if task is None or unknown:
                    intake.unknown(client, key)
                else:
                    intake.want_known(client, task, gen, blind=True)
        self.look_at = now + LOOK if self.keys else None

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        require(all(self.keys.values()), "sought: an empty table was kept")
        require(not any(client.gone for some in self.keys.values() for client in some), "sought: a client that is gone")
        require(self.look_at is not None or not self.keys, "sought: nobody looks")
