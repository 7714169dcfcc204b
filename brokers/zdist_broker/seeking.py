"""Keys that are asked for before anybody has told a successor of them. PURE.

A client that has a future from another may ask for it sooner than that other, or a worker that runs it, has come back.
Its want is kept until the key is known, and all that it may have to be made of again; until then it keeps the spec, if
there is one. It is told for how long that has been in vain, as the broker may not live to say that it is. What workers
hold and nobody has claimed by then it gets as it is, and what they still run when that ends.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Final, NamedTuple

from zdist.core.machine import require
from zdist.limits import RECOVERY, SOUGHT, SOUGHT_TOLD
from zdist.protocol.messages import ANY, Cancelled, Unheard
from zdist_broker.parse import fit_key
from zdist_broker.recovery import Recovery, is_gone, is_stub
from zdist_broker.state import PINS, RELEASED, Claimed, Client, Tables, Task

if TYPE_CHECKING:
    from zdist_broker.intake import Intake
    from zdist_broker.lifecycle import Lifecycle

__all__ = ["Lacking", "Sought"]

LOOK, LOOK_KEY, LOOK_TASK = 0.02, 1e-5, 2e-6  # seconds between looks, and more for each key and task
MOST: Final = 100_000
COMES, LACKS = 1, 2


class Seeker(NamedTuple):
    """Of one client and key: the want's generation, what is claimed of it, when `Unheard` is next said."""

    gen: int
    claim: Claimed | None
    tell_at: float


class Lacking:
    """Whether keys can be had: there, or made of nothing that somebody has yet to tell of. Each task is looked at once.

    0; COMES: not yet, but somebody runs or tries to submit all that is lacking; LACKS.
    """

    def __init__(self, recovery: Recovery, tried: Set[str] = frozenset()) -> None:
        self.comes = (recovery.runs.keys(), tried)
        self.tasks: dict[Task, int] = {}

    def __call__(self, key: str, task: Task | None) -> int:
        if task is None:
            return self._unknown(key)
        if task.state != RELEASED:
            return 0
        known, stack = self.tasks, [task]
        while stack:
            part = stack[-1]
            released = [dep for dep in part.deps if dep.state == RELEASED]
            new = [dep for dep in released if dep not in known]
            if new and part not in known:
                stack += new
                continue
            gone = self._unknown(part.key) if is_gone(part) else 0
            known[part] = max([gone, *[known[dep] for dep in released]])
            stack.pop()
        return known[task]

    def _unknown(self, key: str) -> int:
        return COMES if any(key in some for some in self.comes) else LACKS


class Sought:
    """Who wants keys that are in no table: under which generation, and what is claimed of it."""

    def __init__(self, tables: Tables, recovery: Recovery, lifecycle: Lifecycle) -> None:
        self.tables = tables
        self.recovery = recovery
        self.lifecycle = lifecycle
        self.keys: dict[str, dict[Client, Seeker]] = tables.sought
        self.look_at: float | None = None

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
                if (task := self._task(key)) is not None:
                    self.lifecycle.tidy((task,))

    def end(self, key: str, reason: str) -> None:
        """Nobody gets it."""
        for client, seeker in self.keys.pop(key, {}).items():
            self.tables.post(client, Cancelled, (key, reason, seeker.gen))

    def gone(self, client: Client) -> None:
        """Nor anything else."""
        for key in [key for key, wants in self.keys.items() if client in wants]:
            self.drop(client, key)

    def tick(self, intake: Intake, now: float) -> None:
        """See which are known by now; in the end those that are not are answered."""
        if self.look_at is None or now < self.look_at:
            return
        over, lacking = self._over(now), Lacking(self.recovery, self._tried(now))
        for key in list(self.keys):
            if key in self.keys:
                self._take(key, now)
                self._settle(intake, key, lacking, over)
        if not self.recovery.absent:
            self._tell(lacking, now)
        pause = LOOK + LOOK_KEY * len(self.keys) + LOOK_TASK * len(lacking.tasks)
        self.look_at = now + pause if self.keys else None

    def _tell(self, lacking: Lacking, now: float) -> None:
        """Those who wait hear how long it has been in vain."""
        for key, wants in self.keys.items():
            if any(now >= seeker.tell_at for seeker in wants.values()) and lacking(key, self._task(key)) == LACKS:
                for client, seeker in wants.items():
                    if now >= seeker.tell_at:
                        self.tables.post(client, Unheard, (key, seeker.gen))
                        wants[client] = seeker._replace(tell_at=now + SOUGHT_TOLD)

    def _over(self, now: float) -> bool:
        """Whether those who were here before this broker, if anybody was, have had the time to tell of everything."""
        began = self.recovery.began
        return began is None or (now >= began + SOUGHT and not self.recovery.absent)

    def _tried(self, now: float) -> Set[str]:
        """Keys that clients could not submit yet, for want of others, and may try again."""
        until = self.recovery.until
        some = [client.untaken for client in self.tables.clients.values() if client.untaken]
        if until is None or now >= until or not some:
            return frozenset()
        return {key for untaken in some for key, rejected in untaken.items() if not rejected}

    def _task(self, key: str) -> Task | None:
        return self.tables.tasks.get(key)

    def _take(self, key: str, now: float) -> None:
        """Make data of what workers hold, if one of those who ask knows that it counts, or nobody will."""
        recovery, task = self.recovery, self._task(key)
        if key in recovery.copies and (task is None or is_stub(task)):
            claims = [seeker.claim for seeker in self.keys[key].values() if seeker.claim is not None]
            there = next((claim for claim in claims if recovery.holds(key, claim)), None)
            if there is not None or (not claims and recovery.late(now)):
                recovery.data(key, there or Claimed(ANY))

    def settle(self, intake: Intake, key: str) -> None:
        """Those who wait have it if it can be had by now, before one who wants it lets go; or hear how it is made."""
        if key in self.keys:
            self._settle(intake, key, Lacking(self.recovery), False)
            if (task := self._task(key)) is not None:
                for client in self.keys.get(key, ()):
                    intake.heirs.asked(client, task)

    def _settle(self, intake: Intake, key: str, lacking: Lacking, over: bool) -> None:
        """``over``: those who wait in vain are told what is lacking."""
        while wants := self.keys.get(key):
            task = self._task(key)  # what the one before was told may have been its end
            lacks = lacking(key, task)
            if lacks and not (over and lacks == LACKS):
                return
            client, seeker = wants.popitem()
            if not wants:
                del self.keys[key]
            if task is None or is_gone(task):
                intake.unknown(client, key, seeker.gen)
            elif key not in client.wants:  # else it has submitted it meanwhile
                intake.want_known(client, task, seeker.gen, blind=True)

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        require(all(self.keys.values()), "sought: an empty table was kept")
        require(not any(client.gone for some in self.keys.values() for client in some), "sought: a client that is gone")
        require(self.look_at is not None or not self.keys, "sought: nobody looks")
