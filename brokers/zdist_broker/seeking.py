"""Keys that are asked for before anybody has told a successor of them. PURE.

A client that has a future from another may ask for it sooner than that other, or a worker that runs it, has come back.
Its want is kept until the key is known, and all that it may have to be made of again. It is told for how long that has
been in vain, as the broker may not live to say that it is. What workers hold and nobody has claimed by then it gets as
it is, and what they still run when that ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from zdist.core.machine import require
from zdist.limits import RECOVERY, SOUGHT, SOUGHT_TOLD
from zdist.protocol.messages import ANY, Unheard
from zdist_broker.parse import fit_key
from zdist_broker.recovery import Recovery, is_gone, is_stub
from zdist_broker.state import PINS, RELEASED, Claimed, Client, Tables, Task

if TYPE_CHECKING:
    from zdist_broker.intake import Intake
    from zdist_broker.lifecycle import Lifecycle

__all__ = ["Sought"]

LOOK, LOOK_KEY = 0.02, 1e-5  # seconds between looks whether they are known, and more for each key
MOST: Final = 100_000


class Seeker(NamedTuple):
    """Of one client and key: the want's generation, what is claimed of it, when `Unheard` is next said."""

    gen: int
    claim: Claimed | None
    tell_at: float


class Sought:
    """Who wants keys that are in no table: under which generation, and what is claimed of it."""

    def __init__(self, tables: Tables, recovery: Recovery) -> None:
        self.tables = tables
        self.recovery = recovery
        self.keys: dict[str, dict[Client, Seeker]] = {}
        self.look_at: float | None = None
        self.looked = 0  # tasks that the last look went over

    def keep(self, client: Client, key: str, gen: int, claim: Claimed | None, now: float) -> bool:
        """Whether somebody may still tell of the key; then the want waits for that."""
        if client.session == PINS or self._over(now):
            return False
        if len(self.keys) >= MOST or fit_key(key):
            return False
        tell_at = max(now, (self.recovery.began or 0.0) + RECOVERY) + SOUGHT_TOLD
        self.keys.setdefault(key, {})[client] = Seeker(gen, claim, tell_at)
        if self.look_at is None:
            self.look_at = now + LOOK
        return True

    def drop(self, client: Client, key: str, gen: int | None = None) -> None:
        """The client does not want it any more, at least not under this generation."""
        wants = self.keys.get(key, {})
        if client in wants and gen in (None, wants[client].gen):
            del wants[client]
            if not wants:
                del self.keys[key]

    def gone(self, client: Client) -> None:
        """Nor anything else."""
        for key in [key for key, wants in self.keys.items() if client in wants]:
            self.drop(client, key)

    def tick(self, intake: Intake, now: float) -> None:
        """See which are known by now; in the end those that are not are answered."""
        if self.look_at is None or now < self.look_at:
            return
        over = self._over(now)
        self.looked = 0
        for key in list(self.keys):
            if key in self.keys:
                self._take(key, now)
                self.settle(intake, key, over=over and key not in self.recovery.runs)
        if not self.recovery.absent:
            self._tell(now)
        self.look_at = now + LOOK + LOOK_KEY * (len(self.keys) + self.looked) if self.keys else None

    def _tell(self, now: float) -> None:
        """Those who wait hear how long it has been in vain."""
        for key, wants in self.keys.items():
            for client, seeker in wants.items():
                if now >= seeker.tell_at and key not in self.recovery.runs:
                    self.tables.post(client, Unheard, (key, seeker.gen))
                    wants[client] = seeker._replace(tell_at=now + SOUGHT_TOLD)

    def _over(self, now: float) -> bool:
        """Whether those who were here before this broker, if anybody was, have had the time to tell of everything."""
        began = self.recovery.began
        return began is None or (now >= began + SOUGHT and not self.recovery.absent)

    def _take(self, key: str, now: float) -> None:
        """Make data of what workers hold, if one of those who ask knows that it counts, or nobody will."""
        recovery, task = self.recovery, self.tables.tasks.get(key)
        if key in recovery.copies and (task is None or is_stub(task)):
            claims = [seeker.claim for seeker in self.keys[key].values() if seeker.claim is not None]
            there = next((claim for claim in claims if recovery.holds(key, claim)), None)
            if there is not None or (not claims and recovery.late(now)):
                recovery.data(key, there or Claimed(ANY))

    def settle(self, intake: Intake, key: str, *, over: bool = False) -> None:
        """Those who wait have it if it is known by now, or are told what is lacking if the time is over."""
        while wants := self.keys.get(key):
            task = self.tables.tasks.get(key)  # what the one before was told may have been its end
            if not over and not self.here(intake.lifecycle, task):
                return
            client, seeker = wants.popitem()
            if not wants:
                del self.keys[key]
            if task is None or is_gone(task):
                intake.unknown(client, key, seeker.gen)
            elif key not in client.wants:  # else it has submitted it meanwhile
                intake.want_known(client, task, seeker.gen, blind=True)

    def here(self, lifecycle: Lifecycle, task: Task | None) -> bool:
        """Whether it is known, and there, or made of nothing that somebody has yet to tell of."""
        if task is None or is_gone(task):
            return False
        lineage = lifecycle.lineage(task) if task.state == RELEASED else ()
        self.looked += len(lineage)
        return not any(map(is_gone, lineage))

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        require(all(self.keys.values()), "sought: an empty table was kept")
        require(not any(client.gone for some in self.keys.values() for client in some), "sought: a client that is gone")
        require(self.look_at is not None or not self.keys, "sought: nobody looks")
