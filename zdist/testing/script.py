"""What a client of a simulated cluster does: one random action after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zdist.core.entry import CANCELLED, PENDING, Entry, Work
from zdist.protocol.fields import content_attempt
from zdist.protocol.messages import Key, Options, function_digest
from zdist.testing.cluster import SimClient
from zdist.testing.sharing import Acts

if TYPE_CHECKING:
    from zdist.testing.schedule import Schedule

__all__ = ["Script", "Spec"]

KINDS: Final = (b"inline", b"inline", b"frozen", b"lazy", b"flaky")
TIMEOUT: Final = 1.0  # seconds that a timed task may run


class Spec:
    """What a key can only mean: its value, or the key whose failure it inherits, unless somebody cancels."""

    def __init__(self, key: Key, deps: tuple[Key, ...], value: bytes | None, culprit: Key, retries: int) -> None:
        self.key = key
        self.deps = deps
        self.value = value
        self.culprit = culprit
        self.retries = retries
        self.doubtful = False  # it, or something it depends on, was cancelled or lost for good


class Script:
    """One client's actions."""

    def __init__(self, schedule: Schedule, client: SimClient) -> None:
        self.schedule = schedule
        self.client = client
        self.random = schedule.network.random
        self.acts = Acts(self)
        self.held: list[Entry] = []  # one reference each
        self.collections: list[tuple[list[Entry], Any]] = []
        self.serial = 0
        self.work = [self._work(retries) for retries in (0, 1, 2)]
        timed = b"pickled timed"
        self.timed = Work(function_digest(timed), "timed", timed, tuple(Options(timeout=TIMEOUT)), False)
        self.own = Work(function_digest(b"pickled lone"), "lone", b"pickled lone", (), True)

    def _work(self, retries: int) -> Work:
        options = tuple(Options(retries=retries)) if retries else ()
        blob = f"pickled function {retries}".encode()
        return Work(function_digest(blob), "function", blob, options, False)

    def act(self) -> None:
        """One random action; then another one later, until the schedule says that it is enough."""
        if not self.client.alive or self.schedule.finishing:
            return
        actions: list[tuple[float, Callable[[], None]]] = [
            (6, self.submit), (2, self.submit_shared), (3, self.collect), (2, self.release),
            (1, self.cancel), (1, self.scatter), (1, self.adopt), (1, self.hold_argument),
            (0.3, self.submit_timed), (2, self.share), (0.5, self.spread), (1, self.scatter_again),
        ]  # fmt: skip
        if self.random.random() < 0.1:
            return self.lone(self.random.choice((8, 40)), self.client.network.now + 5.0)
        self.random.choices([a for _, a in actions], [w for w, _ in actions])[0]()
        self.client.soon()
        self.client.network.after(self.random.expovariate(1 / 0.08), self.act)

    def share(self) -> None:
        """Something with state that clients share."""
        self.acts.act()

    def _deps(self, pool: list[Key]) -> tuple[Key, ...]:
        count = min(len(pool), self.random.choice((0, 0, 1, 1, 2, 3)))
        return tuple(dict.fromkeys(self.random.choices(pool, k=count)))

    def _alive_keys(self) -> list[Key]:
        entries = self.client.ledger.entries
        return [e.key for e in self.held if entries.get(e.key) is e and e.status != CANCELLED]

    def submit(self) -> None:
        """A few tasks of this client's own, on each other and on what it holds."""
        pool = self._alive_keys()
        retries = self.random.randrange(3)
        rows = []
        for _ in range(self.random.randint(1, 12)):
            self.serial += 1
            key = f"{self.client.name}-{self.serial}"
            kind = b"raise" if self.random.random() < 0.03 else self.random.choice(KINDS)
            deps = self._deps(pool[-20:])
            self.schedule.specify(key, deps, kind, retries)
            rows.append((key, kind, deps))
            pool.append(key)
        self.held += self.client.ledger.submit(self.work[retries], rows)

    def lone(self, count: int, end: float) -> None:
        """One task after the other, each when the one before it is done (mostly): lanes are for these."""
        network, ledger = self.client.network, self.client.ledger
        if not self.client.alive or not count or network.now > end:
            return self.act()
        hasty = self.random.random() < 0.02
        if self.client.paused or (ledger.flying and not hasty):
            return network.after(max(0.001, 0.5 * network.delay), lambda: self.lone(count, end))
        self.serial += 1
        key = f"{self.client.name}-lone-{self.serial}"
        kind = b"raise" if self.random.random() < 0.02 else self.random.choice(KINDS[:4])
        self.schedule.specify(key, (), kind, 0)
        entry = ledger.submit(self.own, [(key, kind, ())], own=True)[0]
        fate = self.random.random()
        if fate < 0.4:
            self.held.append(entry)
        elif fate < 0.95:
            self._let_go(entry)
        else:  # before it is done
            network.after(self.random.random() * 4 * network.delay, lambda: self._give_up(entry))
        self.client.soon()
        network.after(max(0.001, 0.5 * network.delay), lambda: self.lone(count - 1, end))

    def _let_go(self, entry: Entry, pause: float = 0.001) -> None:
        """Release it as soon as it is done."""
        if self.client.alive and entry.status == PENDING:
            self.client.network.after(
                max(0.002, self.client.network.delay, pause), lambda: self._let_go(entry, 1.5 * pause)
            )
        else:
            self._give_up(entry)

    def _give_up(self, entry: Entry) -> None:
        self.client.ledger.dropped.append(entry)
        self.client.soon()

    def submit_shared(self) -> None:
        """Tasks that other clients submit as well: an equal key is equal work."""
        number = self.random.randrange(6)
        deps = () if number < 3 else (f"shared-{number - 3}",)
        key = f"shared-{number}"
        entries = self.client.ledger.entries
        if any(dep not in entries or not entries[dep].refs for dep in deps):
            return
        self.schedule.specify(key, deps, b"inline", 0)
        work = Work(function_digest(b"pickled shared"), "shared", b"pickled shared", (), True)
        self.held += self.client.ledger.submit(work, [(key, b"inline", deps)])

    def submit_timed(self) -> None:
        """A task with a time limit; half of them never end."""
        self.serial += 1
        key = f"{self.client.name}-timed-{self.serial}"
        kind = self.random.choice((b"hang", b"frozen"))
        deps = self._deps(self._alive_keys()[-20:])
        self.schedule.specify(key, deps, kind, 0)
        self.held += self.client.ledger.submit(self.timed, [(key, kind, deps)])

    def collect(self) -> None:
        """Gather some keys, on a path of its own choice."""
        if self.held:
            entries = list(dict.fromkeys(self.random.choices(self.held, k=self.random.randint(1, 8))))
            entries = [entry for entry in entries if self.client.ledger.entries.get(entry.key) is entry]
            direct = self.random.choice((None, None, True, False))
            collection = self.client.ledger.collect(entries, direct, self.client.network.now)
            self.collections.append((entries, collection))
        while len(self.collections) > 3:  # a caller that gives up disturbs nobody
            entries, collection = self.collections.pop(self.random.randrange(len(self.collections)))
            self.client.ledger.collections.close(collection, entries, self.client.network.now)

    def release(self) -> None:
        """Let go of some futures."""
        for _ in range(min(len(self.held), self.random.randint(1, 10))):
            entry = self.held.pop(self.random.randrange(len(self.held)))
            self.client.ledger.dropped.append(entry)

    def cancel(self) -> None:
        """Cancel a key, which takes down whatever depends on it."""
        if self.held and self.random.random() < 0.5:
            entry = self.random.choice(self.held)
            self.schedule.doubt(entry.key)
            self.client.ledger.cancel([entry], self.random.random() < 0.3)

    def scatter(self) -> None:
        """Data of the client's, copied to workers."""
        self.serial += 1
        key = f"data-{self.client.name}-{self.serial}"
        value = self.schedule.specify(key, (), b"inline", 0)
        entries = self.client.ledger.hold([(key, self.client.snapshot(key, value), "bytes")], finished=False)
        self.client.ledger.place(entries, (), self.random.choice((0, 1, 1, 2)))
        self.held += entries

    def scatter_again(self) -> None:
        """Other data of the same size under a name of this client's, as soon as nobody else uses it."""
        key, network = f"named-{self.client.name}", self.client.network
        self.client.ledger.dropped.extend([entry for entry in self.held if entry.key == key])
        self.held = [entry for entry in self.held if entry.key != key]
        self.client.soon()
        network.after(2 * self.random.random() * network.delay, lambda: self._scatter_named(key))

    def _scatter_named(self, key: Key) -> None:
        used = any(key in script.client.ledger.entries for script in self.schedule.scripts)
        if used or not self.client.alive or self.schedule.finishing:
            return
        self.serial += 1
        value, attempt = f"{self.serial:08}".encode() * 10, content_attempt(f"{key} {self.serial}")
        self.schedule.mean(key, value)
        blob = self.client.snapshot(key, value, attempt)
        entries = self.client.ledger.hold([(key, blob, "bytes")], finished=False, attempt=attempt)
        self.client.ledger.place(entries, (), self.random.choice((0, 1, 1, 2)))
        self.held += entries
        self.client.soon()

    def hold_argument(self) -> None:
        """A large argument: data that stays with the client, and a task on it."""
        self.serial += 1
        key = f"arg-{self.client.name}-{self.serial}"
        value = self.schedule.specify(key, (), b"inline", 0)
        self.held += self.client.ledger.hold([(key, self.client.snapshot(key, value), "bytes")], finished=True)
        task = f"on-{key}"
        self.schedule.specify(task, (key,), b"inline", 0)
        self.held += self.client.ledger.submit(self.work[0], [(task, b"inline", (key,))])

    def spread(self) -> None:
        """Order copies of some keys, fewer of them, or an even load."""
        keys = [key for key in self._alive_keys() if not key.startswith("arg-")]  # of these nobody has futures
        if keys and self.random.random() < 0.7:
            chosen = tuple(dict.fromkeys(self.random.choices(keys, k=4)))
            self.client.ledger.ask("replicate", (chosen, self.random.choice((None, 1, 2, 3)), None))
        else:
            self.client.ledger.ask("rebalance", (self.random.choice((None, tuple(keys))), None))

    def adopt(self) -> None:
        """Import a key that another client has: what the broker takes it for, so none that may mean something else."""
        scripts = [script for script in self.schedule.scripts if script is not self and script.client.alive]
        others = [(s, [entry for entry in s.held if not entry.key.startswith("named-")]) for s in scripts]
        others = [(script, held) for script, held in others if held]
        if others:
            lender, held = self.random.choice(others)
            lent = self.random.choice(held)
            if self.client.ledger.entries.get(lent.key) is None:
                self.schedule.adopted[self.client.name, lent.key] = (lender, lent)
            self.held += self.client.ledger.want([lent.key])
