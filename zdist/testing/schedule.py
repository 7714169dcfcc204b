"""One random life of a cluster: clients that work, faults that strike, and the verdict at the end.

A schedule is its seed. Every machine's invariants are checked after every turn; at the end each future must have been
settled with what its key can only mean, and when all is released every table must be empty again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING, Entry, Work
from zdist.errors import InvariantError
from zdist.protocol.messages import Key, Options, function_digest
from zdist.testing.cluster import SimClient, SimCluster, joined, value_of

__all__ = ["Report", "Schedule"]

KINDS = (b"inline", b"inline", b"frozen", b"lazy", b"flaky")
PATIENCE = 120.0  # virtual seconds after the last fault until all is settled


class Report:
    """What a schedule did."""

    def __init__(self) -> None:
        self.tasks = 0
        self.early = 0  # started by a lane
        self.faults: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()


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
        self.held: list[Entry] = []  # one reference each
        self.collections: list[tuple[list[Entry], Any]] = []
        self.serial = 0
        self.work = [self._work(retries) for retries in (0, 1, 2)]
        self.own = Work(function_digest(b"pickled lone"), "lone", b"pickled lone", (), True)

    def _work(self, retries: int) -> Work:
        options = tuple(Options(retries=retries)) if retries else ()
        blob = f"pickled function {retries}".encode()
        return Work(function_digest(blob), "function", blob, options, False)

    def act(self) -> None:
        """One random action; then another one later, until the schedule says that it is enough."""
        if not self.client.alive or self.schedule.finishing:
            return
        actions: list[tuple[int, Callable[[], None]]] = [
            (6, self.submit), (2, self.submit_shared), (3, self.collect), (2, self.release),
            (1, self.cancel), (1, self.scatter), (1, self.adopt), (1, self.hold_argument),
        ]  # fmt: skip
        if self.random.random() < 0.1:
            return self.lone(self.random.choice((8, 40)), self.client.network.now + 5.0)
        self.random.choices([a for _, a in actions], [w for w, _ in actions])[0]()
        self.client.soon()
        self.client.network.after(self.random.expovariate(1 / 0.08), self.act)

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

    def _let_go(self, entry: Entry) -> None:
        """Release it as soon as it is done."""
        if self.client.alive and entry.status == PENDING:
            self.client.network.after(max(0.002, self.client.network.delay), lambda: self._let_go(entry))
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
        if any(self.client.ledger.entries.get(dep) is None for dep in deps):
            return
        self.schedule.specify(key, deps, b"inline", 0)
        work = Work(function_digest(b"pickled shared"), "shared", b"pickled shared", (), True)
        self.held += self.client.ledger.submit(work, [(key, b"inline", deps)])

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

    def hold_argument(self) -> None:
        """A large argument: data that stays with the client, and a task on it."""
        self.serial += 1
        key = f"arg-{self.client.name}-{self.serial}"
        value = self.schedule.specify(key, (), b"inline", 0)
        self.held += self.client.ledger.hold([(key, self.client.snapshot(key, value), "bytes")], finished=True)
        task = f"on-{key}"
        self.schedule.specify(task, (key,), b"inline", 0)
        self.held += self.client.ledger.submit(self.work[0], [(task, b"inline", (key,))])

    def adopt(self) -> None:
        """Import a key that another client has."""
        others = [s for s in self.schedule.scripts if s is not self and s.client.alive and s.held]
        if others:
            key = self.random.choice(self.random.choice(others).held).key
            entry = self.client.ledger.entries.get(key)
            if entry is None:
                self.schedule.adopted.add((self.client.name, key))
            self.held += self.client.ledger.want([key])


class Schedule:
    """A cluster, its scripts and its faults, all from one seed.

    ``tasks``: how many at least; ``faults``: how many; raises InvariantError, naming the seed, if a promise is broken.
    """

    def __init__(self, seed: int, *, tasks: int = 50, faults: int = 3) -> None:
        self.seed = seed
        self.minimum = tasks
        self.fault_count = faults
        self.cluster = SimCluster(seed)
        self.network = self.cluster.network
        self.network.delay = self.network.random.choice((0.0002, 0.002, 0.05))
        self.specs: dict[Key, Spec] = {}
        self.adopted: set[tuple[str, Key]] = set()
        self.finishing = False
        self.report = Report()
        self.scripts = [Script(self, client) for client in self.cluster.clients]
        self.crashed_clients: set[str] = set()
        self.data_at_risk = False

    # --- what keys mean ------------------------------------------------------------------------------

    def specify(self, key: Key, deps: tuple[Key, ...], kind: bytes, retries: int) -> bytes:
        """Note a key's meaning; its value, b"" if it fails."""
        if key in self.specs:
            return self.specs[key].value or b""
        parents = [self.specs[dep] for dep in deps]
        culprit = next((parent.culprit for parent in parents if parent.value is None), "")
        if not culprit and (kind == b"raise" or (kind == b"flaky" and not retries)):
            culprit = key
        value = None if culprit else value_of(key, [parent.value or b"" for parent in parents])
        spec = self.specs[key] = Spec(key, deps, value, culprit, retries)
        spec.doubtful = any(parent.doubtful for parent in parents) or (kind == b"flaky" and not retries)
        self.report.tasks += 1
        return value or b""

    def doubt(self, key: Key) -> None:
        """The key and all that depend on it may now be cancelled."""
        self.specs[key].doubtful = True
        for spec in self.specs.values():  # in order of their making, so parents come first
            if any(self.specs[dep].doubtful for dep in spec.deps):
                spec.doubtful = True

    # --- faults --------------------------------------------------------------------------------------

    def strike(self) -> None:
        """One random fault."""
        random = self.network.random
        fault = random.choice(
            (self.break_link, self.break_link, self.kill_worker, self.kill_worker, self.kill_node, self.kill_client,
             self.partition, self.pause, self.kill_broker)
        )  # fmt: skip
        fault()

    def break_link(self) -> None:
        """A connection breaks and loses what it will."""
        for link in self.network.random.choices(self.network.links, k=3) if self.network.links else ():
            link.close()
            link.dialler.dial(link.channel)
        self.report.faults["break"] += 1

    def kill_worker(self) -> None:
        """A worker process dies; its node sees it."""
        workers = self.cluster.workers()
        if workers:
            self.data_at_risk = True
            self.network.random.choice(workers).end(-9)
            self.report.faults["worker"] += 1

    def kill_node(self) -> None:
        """A host is gone; only its lease tells. One node always stays."""
        nodes = [node for node in self.cluster.nodes if node.alive]
        if len(nodes) > 1:
            self.data_at_risk = True
            self.network.random.choice(nodes).crash()
            self.report.faults["node"] += 1

    def kill_client(self) -> None:
        """A client is gone, with all that only it held. One client always stays."""
        clients = [script.client for script in self.scripts if script.client.alive]
        if len(clients) > 1:
            client = self.network.random.choice(clients)
            client.crash()
            self.crashed_clients.add(client.name)
            for key in list(self.specs):
                if key.startswith((f"data-{client.name}-", f"arg-{client.name}-")):
                    self.doubt(key)
            self.report.faults["client"] += 1

    def kill_broker(self) -> None:
        """The broker is killed; after a while another one takes its place, and knows nothing."""
        if self.cluster.broker.alive:
            self.cluster.replace_broker(self.network.random.choice((0.01, 0.5, 4.0)))
            self.report.faults["broker"] += 1

    def partition(self) -> None:
        """A node or client is cut off, sometimes for longer than its lease."""
        random = self.network.random
        names = [node.name for node in self.cluster.nodes] + [client.name for client in self.cluster.clients]
        name = random.choice(names)
        members = {name, *(worker.name for worker in self.cluster.workers() if worker.node.name == name)}
        if random.random() < 0.5 and len(members) > 1:
            members = {random.choice(sorted(members - {name}))}
        self.data_at_risk = True
        self.network.partition(members)
        self.network.after(random.choice((0.5, 3.0, 15.0)), self.network.heal)
        self.report.faults["partition"] += 1

    def pause(self) -> None:
        """A process stands still for a while."""
        random = self.network.random
        processes = [*self.cluster.nodes, *self.cluster.workers(), *self.cluster.clients]
        process = random.choice([p for p in processes if p.alive])
        process.paused = True
        self.data_at_risk = True

        def go_on() -> None:
            process.paused = False
            process.soon()

        self.network.after(random.choice((0.2, 2.0, 15.0)), go_on)
        self.report.faults["pause"] += 1

    # --- the whole life ------------------------------------------------------------------------------

    def run(self) -> Report:
        """Live it to the end; the report, or InvariantError that names the seed."""
        try:
            self._live()
            self._settle()
            self._verdict()
            self._empty()
        except InvariantError as exc:
            raise InvariantError(f"seed {self.seed}: {exc}") from exc
        return self.report

    def _live(self) -> None:
        random = self.network.random
        for script in self.scripts:
            self.network.after(random.random() * 0.1, script.act)
        for _ in range(self.fault_count):
            self.network.after(random.random() * 2.0, self.strike)
        self.network.run(lambda: False, 2.5)
        self.network.run(lambda: self.report.tasks >= self.minimum, 60.0)
        self.finishing = True
        self.report.early = self.cluster.early
        self.network.run(lambda: False, 16.0)  # the last partition heals, the last pause ends

    def _living(self) -> list[Script]:
        return [script for script in self.scripts if script.client.alive]

    def _settle(self) -> None:
        def settled() -> bool:
            return all(e.status != PENDING for s in self._living() for e in s.client.ledger.entries.values() if e.refs)

        if not self.cluster.run(settled, PATIENCE):
            hung = [
                (s.client.name, e) for s in self._living() for e in s.client.ledger.entries.values()
                if e.refs and e.status == PENDING
            ]  # fmt: skip
            raise InvariantError(f"{len(hung)} futures hang, {hung[:3]}")

    def _verdict(self) -> None:
        for script in self._living():
            ledger = script.client.ledger
            entries = list(dict.fromkeys(script.held))
            for old_entries, old in script.collections:
                ledger.collections.close(old, old_entries, self.network.now)
            collection = ledger.collect(entries, self.network.random.choice((None, True, False)), self.network.now)
            script.client.soon()
            if not self.cluster.run(lambda collection=collection: collection.left <= 0, PATIENCE):  # type: ignore[misc]
                hung = list(collection.fetching.values())
                raise InvariantError(f"gather of {script.client.name} hangs, fetching {hung[:3]}")
            values = {entry.key: joined(pieces) for entry, pieces in collection.arrived}
            for entry in entries:
                self._judge(script, entry, values.get(entry.key), collection.broken.get(entry.key))
            ledger.collections.close(collection, entries, self.network.now)
        for key, count in self.cluster.starts.items():
            spec = self.specs[key]
            budget = 1 + spec.retries + self.cluster.losses + 4 * self.report.faults.total()
            if count > budget:
                raise InvariantError(f"{key} was started {count} times, {budget} are allowed")

    def _judge(self, script: Script, entry: Entry, value: bytes | None, broken: tuple[str, str] | None) -> None:
        spec = self.specs[entry.key]
        name = f"{entry.key} at {script.client.name}"
        self.report.outcomes[entry.status] += 1
        if entry.status == FINISHED:
            if value is None and entry.outcome[3] is not None:
                value = joined([entry.outcome[3]])
            if value is None:
                raise InvariantError(f"{name} is finished and has no value: {broken}")
            if spec.value is not None and value != spec.value:
                raise InvariantError(f"{name} has a wrong value: {value!r}, not {spec.value!r}")
            if spec.value is None and not spec.doubtful:
                raise InvariantError(f"{name} is finished, though {spec.culprit} fails")
        elif entry.status == ERROR:
            if spec.value is not None and not spec.doubtful:
                raise InvariantError(f"{name} failed: {entry.outcome}")
        elif entry.status == CANCELLED and not self._may_be_cancelled(script, spec):
            raise InvariantError(f"{name} was cancelled: {entry.outcome}")

    def _may_be_cancelled(self, script: Script, spec: Spec) -> bool:
        if spec.doubtful or (script.client.name, spec.key) in self.adopted:
            return True
        stack, seen = [spec], {spec.key}
        while stack:  # scattered data, or data of a client that was given up, is not computed again
            spec = stack.pop()
            given_up = spec.key.startswith("arg-") and self.report.faults["partition"] + self.report.faults["pause"]
            lost = self.data_at_risk and spec.key.startswith("data-")
            if given_up or lost or (script.client.name, spec.key) in self.adopted:
                return True
            new = [dep for dep in spec.deps if dep not in seen]
            seen.update(new)
            stack += [self.specs[dep] for dep in new]
        return False

    def _empty(self) -> None:
        """Everybody lets go of everything: nothing may be left anywhere."""
        for script in self._living():
            script.client.ledger.dropped.extend(script.held)
            script.held.clear()
            script.client.soon()

        def empty() -> bool:
            return not self._leftovers()

        if not self.cluster.run(empty, PATIENCE):
            raise InvariantError(f"left behind: {self._leftovers()}")

    def _leftovers(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for script in self._living():
            if script.client.ledger.entries or script.client.ledger.store.entries:
                ledger = script.client.ledger
                found[script.client.name] = (list(ledger.entries.values())[:3], list(ledger.store.entries)[:3])
        for worker in self.cluster.workers():
            machine = worker.machine
            if machine.store.entries or machine.tasks or machine.inputs.table or worker.running:
                found[worker.name] = (
                    list(machine.store.entries)[:3],
                    list(machine.tasks)[:3],
                    list(machine.inputs.table)[:3],
                )
        tables = self.cluster.broker.machine.tables
        if tables.tasks or tables.cached or tables.placing:
            found["broker"] = (list(tables.tasks.values())[:3], list(tables.placing)[:3], tables.cached)
        return found | self.cluster.segments()
