"""What the scripts of a simulation do with shared state, and what must be true of it in the end.

Every item that was put (and confirmed) into the queue is taken once or still there, a future in it is alive; nobody
gets the lock that another has. Where copies may have been lost with their nodes, or come too late for a new broker,
less is judged.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from zdist.core.entry import CANCELLED, Entry, Reply
from zdist.errors import InvariantError

if TYPE_CHECKING:
    from zdist.testing.schedule import Schedule
    from zdist.testing.script import Script

__all__ = ["Acts", "judge"]

FUTURE: Final = "future "  # how items begin that name a future's key


class _Op:
    """Waiter: one operation."""

    def __init__(self, acts: Acts, verb: str, item: str) -> None:
        self.acts = acts
        self.verb = verb
        self.item = item
        self.number = 0
        self.kept: list[Entry] = []  # futures in the item: whoever puts them keeps them until they are in the queue

    def resolved(self, reply: Reply, /) -> None:
        self.acts.answered(self, reply)


class Acts:
    """One client's part."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.heard: list[int] = []
        self.serial = 0
        self.asked: dict[str, None] = {}  # items put,
        self.confirmed: dict[str, None] = {}  # those of which the broker said so,
        self.got: list[str] = []
        self.unanswered: Counter[str] = Counter()  # operations, by verb
        self.token: int | None = None  # of the lock
        self.locking = False

    def act(self) -> None:
        """One operation."""
        random = self.script.random
        choice = random.randrange(6)
        if choice < 2:
            self._put()
        elif choice < 4:
            self._ask("queue", "get", (1,), timeout=random.choice((0.0, 0.5, 5.0)))
        elif self.token is not None:
            token, self.token = self.token, None
            self._ask("lock", "release", (token,))
        elif not self.locking:
            self.locking = True
            self._ask("lock", "acquire", (1,), timeout=random.choice((0.0, 5.0)))

    def _put(self) -> None:
        self.serial += 1
        keys: tuple[str, ...] = ()
        item = f"{self.script.client.name}-{self.serial}"
        entries = self.script.client.ledger.entries
        live = [e for e in self.script.held[-10:] if entries.get(e.key) is e and e.gen and e.status != CANCELLED]
        live = [e for e in live if not e.key.startswith("named-")]  # these are to be let go of soon
        if live and self.script.random.random() < 0.5:
            keys = (self.script.random.choice(live).key,)
            item += f" {FUTURE}{keys[0]}"
        self.asked[item] = None
        op = self._ask("queue", "put", (item.encode(), keys, 0), item)
        op.kept = self.script.client.ledger.want(keys)

    def _ask(self, kind: str, verb: str, args: tuple[Any, ...], item: str = "", timeout: float | None = None) -> _Op:
        heard, self.heard = tuple(self.heard), []
        ledger = self.script.client.ledger
        reply = ledger.ask("shared", (heard, kind, "it", verb, args, timeout))
        op = _Op(self, verb, item)
        op.number = ledger.req
        reply.waiters = [op]
        self.unanswered[verb] += 1
        self.script.client.soon()
        return op

    def answered(self, op: _Op, reply: Reply) -> None:
        """The broker's answer."""
        self.unanswered = self.unanswered - Counter([op.verb])
        self.script.client.ledger.dropped.extend(op.kept)
        if not reply.ok:
            raise InvariantError(f"{op.verb} {op.item}: {reply.value}")
        status, found = reply.value
        if op.verb == "put":
            self.confirmed[op.item] = None
        elif op.verb == "get" and status == "ok":
            item = found[0][0].decode()
            self.got.append(item)
            _, future, key = item.partition(FUTURE)
            if future:
                self._import(key)
            self.heard.append(op.number)
        elif op.verb == "acquire":
            self.locking = False
            if status == "ok":
                self._acquired(found)
        if self.heard:
            self._ask("queue", "size", ())

    def _import(self, key: str) -> None:
        script, schedule = self.script, self.script.schedule
        if key not in script.client.ledger.entries:
            schedule.taken.add((script.client.name, key))
        script.held += script.client.ledger.want([key])

    def _acquired(self, token: int) -> None:
        self.token = token
        for script in self.script.schedule.scripts:
            other = script.acts
            if other is not self and other.token is not None and script.client.alive and sound(self.script.schedule):
                raise InvariantError(f"{self.script.client.name} has lock {token}, {script.client.name} {other.token}")

    def close(self) -> None:
        """Leave nothing in the queue."""
        self._ask("queue", "close", ())


def sound(schedule: Schedule, *, alone: bool = False) -> bool:
    """Whether no copy can have been lost, or late, when a broker took another's place.

    ``alone``: what is known to no client but those who have its future from shared state was safe, too.
    """
    faults = schedule.report.faults
    apart = faults["node"] + faults["drain"] + faults["partition"] + faults["pause"]
    return not faults["broker"] if alone else not (faults["broker"] and apart)


def judge(schedule: Schedule) -> None:
    """Raise InvariantError if something was taken twice, or is lost."""
    acts = [script.acts for script in schedule.scripts]
    got = [item for one in acts for item in one.got]
    left = [value[0].decode() for value in schedule.cluster.broker.machine.shared.store.items("queue", "it").values()]
    found = dict.fromkeys([*got, *left])
    asked = dict.fromkeys(item for one in acts for item in one.asked)
    if any(item not in asked for item in found):
        raise InvariantError(f"an item that nobody put: {[item for item in found if item not in asked]}")
    if not sound(schedule):
        return
    if len(found) != len(got) + len(left):
        raise InvariantError(f"an item was taken twice: {sorted(got)}, left {sorted(left)}")
    lost = [item for one in acts for item in one.confirmed if item not in found]
    dead = sum(script.acts.unanswered["get"] for script in schedule.scripts if not script.client.alive)
    if len(lost) > dead:
        raise InvariantError(f"items were lost: {lost}, and those who died waited for {dead}")
