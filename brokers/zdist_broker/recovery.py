"""What peers hold from the time of an earlier broker, until clients say again that they want it. PURE.

A broker that takes another's place knows no key. Workers announce what they hold, and clients what they hold for others
only. Clients submit again what they want, and say of what had been finished which attempt it was (`Claim`): if somebody
holds that attempt, it counts, and nothing is computed. Small values that clients have come with the claim. Clients wait
with that until workers have had the time to come back. What nobody has claimed is dropped.
What workers run on is adopted when a client submits it: the attempt goes on as one of this broker's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zdist.core.machine import require
from zdist.limits import COPIES_KEPT, COPIES_MOST, MAX_KEY, RECOVERY
from zdist.protocol.actors import ACTOR
from zdist.protocol.fields import DATA
from zdist.protocol.messages import ANY, ANY_SPEC, SPEC, Adopt, Claim, Drop, Payload, Unowned, payload_size
from zdist_broker.parse import fit_key
from zdist_broker.state import (
    FORGOTTEN,
    LAZY,
    MEMORY,
    READY,
    RELEASED,
    WAITING,
    Claimed,
    Client,
    Function,
    Tables,
    Task,
    Terms,
    Worker,
)

if TYPE_CHECKING:
    from zdist_broker.placement import Placement

__all__ = ["LAZILY", "NOTHING", "Recovery", "is_gone", "is_stub"]

Copies = dict[Worker | Client, tuple[int, int, str]]
LAZILY: Final = (SPEC, ANY_SPEC)
LATE: Final = 2 * RECOVERY  # seconds in which those who know which attempt counts should have claimed it
NOTHING: Final = Claimed()


def is_stub(task: Task) -> bool:
    """Whether nothing is known of the key but that others were made of it."""
    return task.nbytes < 0


def is_gone(task: Task) -> bool:
    """Whether it is only known that others were made of it: nobody has it, or has said how it is computed."""
    return task.fn is None and task.state == RELEASED


class Recovery:
    """Copies of unknown keys, by key and holder: attempt, bytes, type name."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.copies: dict[str, Copies] = {}
        self.rows = 0
        self.runs: dict[str, tuple[Worker, int]] = {}  # of unknown keys: which attempt runs where
        self.going: dict[Task, tuple[Worker, int]] = {}  # the same of those that count, once their tasks are needed
        self.absent: dict[str, float] = {}  # workers that live and are not back: until when they are waited for
        self.until: float | None = None  # when they are dropped; None: no broker was here before this one

    def begin(self, now: float) -> float:
        """Somebody was here before this broker; seconds until all who were should have come back."""
        if self.until is None:
            self.until = now + COPIES_KEPT
        return max(0.0, self.until - COPIES_KEPT + RECOVERY - now)

    @property
    def began(self) -> float | None:
        """When the first came who was here before this broker; None: nobody was."""
        return None if self.until is None else self.until - COPIES_KEPT

    def late(self, now: float) -> bool:
        """Whether what nobody has claimed may be had by who does not know its attempt."""
        return self.until is not None and not self.absent and self.until - COPIES_KEPT + LATE <= now < self.until

    def keep(self, holder: Worker | Client, row: tuple[str, int, int, str], now: float) -> bool:
        """Whether a copy of a key that is in no table may be wanted yet."""
        key, attempt, nbytes, kind = row
        if self.until is None or now >= self.until or self.rows >= COPIES_MOST:
            return False
        if fit_key(key) or min(attempt, nbytes) < 0 or len(kind) > MAX_KEY:
            return False
        copies = self.copies.setdefault(key, {})
        self.rows += holder not in copies
        copies[holder] = (attempt, nbytes, kind)
        return True

    def claims(self, message: Claim) -> dict[str, Claimed]:
        """What is said there, as far as it can be true; a client that comes late may find what others have claimed."""
        claims = {key: Claimed(attempt) for key, attempt in message.rows} if self.until is not None else {}
        for key, attempt, nbytes, value, kind in message.values:
            if not fit_key(key) and min(attempt, nbytes) >= 0 and len(kind) <= MAX_KEY:  # a handle is no actor
                claims[key] = Claimed(attempt, nbytes, value, kind) if kind != ACTOR else Claimed(attempt)
        return claims

    def take(self, key: str, attempt: int | None, spare: Worker | None = None) -> Copies:
        """The copies of this attempt. All others of the key are dropped, but not by ``spare``."""
        copies = self.copies.pop(key, {})
        self.rows -= len(copies)
        if attempt in (ANY, ANY_SPEC):
            attempt = max((copy[0] for copy in copies.values() if 0 < copy[0] < DATA), default=None)
        good = {holder: copy for holder, copy in copies.items() if copy[0] == attempt}
        for holder in copies:
            if holder not in good and holder is not spare:
                self.tables.post(holder, Drop, key)
        return good

    def runs_on(self, worker: Worker, message: Unowned, now: float) -> None:
        """What a worker runs of keys that are in no table; an attempt of one that is known has been given up."""
        if self.until is None or now >= self.until:
            return
        for key, attempt in message.rows[: COPIES_MOST - len(self.runs)]:
            task = self.tables.tasks.get(key)
            if not fit_key(key) and attempt >= 0 and (task is None or is_stub(task)):
                self.runs[key] = (worker, attempt)

    def gone(self, peer: Worker | Client) -> None:
        """The peer is gone, and its copies with it, and what it ran."""
        self.runs = {key: run for key, run in self.runs.items() if run[0] is not peer}
        self.going = {task: run for task, run in self.going.items() if run[0] is not peer}
        for key in [key for key, copies in self.copies.items() if peer in copies]:
            copies = self.copies[key]
            del copies[peer]
            self.rows -= 1
            if not copies:
                del self.copies[key]

    def deadline(self) -> float | None:
        """When `tick` is needed."""
        return self.until if self.copies or self.runs or self.going else None

    def tick(self, now: float) -> None:
        """Nobody has claimed these in time."""
        if self.until is not None and now >= self.until:
            self.runs.clear()
            self.going.clear()
            for key in list(self.copies):
                self.take(key, None)

    # --- what clients say of it -------------------------------------------------------------------------

    def finish(self, task: Task, claim: Claimed) -> bool:
        """A task without data, or data, gets that of the attempt that is claimed; False if nobody has it."""
        copies = self.take(task.key, claim.attempt)
        if claim.value is not None:
            self.tables.keep(task, claim.value, payload_size(claim.value))
        if not copies and task.value is None:
            return False
        if claim.value is not None:
            task.attempt, task.nbytes, task.type = claim.attempt or 0, claim.nbytes, claim.type
        for holder, (found, nbytes, kind) in copies.items():
            task.attempt, task.nbytes, task.type = found, nbytes, kind or task.type
            self.tables.add_holder(task, holder)
        task.state, task.flags = MEMORY, 0
        return True

    def holds(self, key: str, claim: Claimed) -> bool:
        """Whether what is claimed is there."""
        attempt, copies = claim.attempt, self.copies.get(key, {})
        if claim.value is not None:
            return True
        made = attempt in (ANY, ANY_SPEC)  # any that a task has made
        return any(0 < copy[0] < DATA if made else copy[0] == attempt for copy in copies.values())

    @staticmethod
    def outlived(terms: Terms, attempt: int | None) -> bool:
        """Whether it is an actor that had come to be: it is there, or is not to be made again."""
        return terms.actor and attempt is not None and attempt > 0

    def data(self, key: str, claim: Claimed) -> Task | None:
        """A task for data that was scattered, or is known to who has its future from others, if it is there."""
        copies = [copy for copy in self.copies.get(key, {}).values() if claim.attempt in (copy[0], ANY)]
        data = [copy for copy in copies if not 0 < copy[0] < DATA]  # of results the last attempt counts
        if data and claim.attempt == ANY:
            claim = claim._replace(attempt=data[0][0])
        kinds = {copy[2] for copy in data} - {""}
        if data and (len(data) < len(copies) or len({copy[:2] for copy in data}) > 1 or len(kinds) > 1):
            self.take(key, None)  # two things have had this name
        if not self.holds(key, claim):
            return None  # others may know of the attempt that counts
        task = self.tables.tasks.get(key) or self.stub(key)
        if not self.finish(task, claim):
            return None
        self.tables.tasks[key] = task
        return task

    def submitted(self, task: Task, attempt: int | None) -> None:
        """What may run since before this broker: that counts, if any attempt does."""
        run = self.runs.pop(task.key, None)
        if run is not None and attempt in (ANY, ANY_SPEC):
            self.going[task] = run

    def adopt(self, placement: Placement) -> None:
        """What is needed and runs already goes on."""
        for task, (worker, running) in list(self.going.items()):
            if task.state == RELEASED:
                continue  # others were made of it, and may yet turn out to need it
            del self.going[task]
            if task.state == FORGOTTEN:  # it may be submitted once more
                self.runs[task.key] = (worker, running)
            elif task.state <= READY:
                if task.state == READY:
                    placement.dequeue(task, WAITING)
                placement.adopt(task, worker, running)
                self.tables.post(worker, Adopt, (task.key, running))

    @staticmethod
    def stub(key: str) -> Task:
        """A key of which nothing is known: data that is gone, until it is submitted again."""
        task = Task(key, None, b"", (), None, 0, RELEASED, ())
        task.nbytes = -1
        return task

    @staticmethod
    def leads_to(deps: tuple[Task, ...], key: str) -> bool:
        """Whether what a task is to depend on depends on it already: a stub may turn out to be made of its results."""
        stack, seen = list(deps), set(deps)
        while stack:
            task = stack.pop()
            if task.key == key:
                return True
            new = [dep for dep in task.deps if dep not in seen]
            seen.update(new)
            stack += new
        return False

    def spec(
        self, client: Client, fn: Function, key: str, args: Payload, deps: tuple[Task, ...], terms: Terms, gen: int
    ) -> Task:
        """A task that is not started, as it was finished, or only what others were made of."""
        task = self.tables.tasks.setdefault(key, self.stub(key))
        self.explain(task, fn, args, deps, terms)
        task.nbytes, task.type = 0, ACTOR if terms.actor else ""
        task.who, task.flags = client.alone, LAZY
        client.wants[key] = gen
        return task

    def explain(self, task: Task, fn: Function, args: Payload, deps: tuple[Task, ...], terms: Terms) -> None:
        """From now on it is known how the key is computed."""
        tables = self.tables
        tables.order += 1
        task.fn, task.args, task.deps, task.terms = fn, args, deps, terms
        task.priority = (terms.inner if deps else terms.root) + tables.order
        fn.uses += 1
        for dep in deps:
            if dep.dependents is None:
                dep.dependents = {task: None}
            else:
                dep.dependents[task] = None

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        require(self.rows == sum(map(len, self.copies.values())), "recovery: copies are not the sum")
        require(all(self.copies.values()), "recovery: an empty table was kept")
        runs = (*self.runs.values(), *self.going.values())
        require(all(not worker.gone for worker, _ in runs), "recovery: who runs it is gone")
        known = (self.tables.tasks.get(key) for key in self.copies)
        require(all(t is None or is_stub(t) for t in known), "recovery: a copy of a key that is known")
