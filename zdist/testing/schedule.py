"""One random life of a cluster: clients that work, faults that strike, and the verdict at the end.

A schedule is its seed. Every machine's invariants are checked after every turn; at the end each future must have been
settled with what its key can only mean, and when all is released every table must be empty again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING, Entry
from zdist.errors import InvariantError
from zdist.protocol.messages import Key
from zdist.testing.cluster import SimCluster, SimNode, SimWorker, joined, value_of
from zdist.testing.script import Script, Spec
from zdist.testing.sharing import judge, sound

__all__ = ["Report", "Schedule"]

ORDERS = ("replicate", "rebalance", "retire", "restart_workers")
PATIENCE = 120.0  # virtual seconds after the last fault until all is settled


class Report:
    """What a schedule did."""

    def __init__(self) -> None:
        self.tasks = 0
        self.early = 0  # started by a lane
        self.faults: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()


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
        self.adopted: dict[tuple[str, Key], tuple[Script, Entry]] = {}  # who has asked for a key, and from whom,
        self.taken: set[tuple[str, Key]] = set()  # or has its future from a queue
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
        if not culprit and (kind in (b"raise", b"hang") or (kind == b"flaky" and not retries)):
            culprit = key
        value = None if culprit else value_of(key, [parent.value or b"" for parent in parents])
        spec = self.specs[key] = Spec(key, deps, value, culprit, retries)
        spec.doubtful = any(parent.doubtful for parent in parents) or (kind == b"flaky" and not retries)
        self.report.tasks += 1
        return value or b""

    def mean(self, key: Key, value: bytes) -> None:
        """From now on the name stands for other data, which is refused while the cluster has it for the former."""
        spec = self.specs[key] = Spec(key, (), value, "", 0)
        spec.doubtful = True

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
             self.partition, self.pause, self.kill_broker, self.drain_node, self.scale_node, self.retire,
             self.restart_workers)
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
        nodes = self._staying()
        if len(nodes) > 1:
            self.data_at_risk = True
            self.network.random.choice(nodes).crash()
            self.report.faults["node"] += 1

    def _staying(self) -> list[SimNode]:
        return [node for node in self.cluster.nodes if node.alive and node.machine.stopping is None]

    def drain_node(self) -> None:
        """A node ends in good order: nothing may be lost by that. One node always stays."""
        nodes = self._staying()
        if len(nodes) > 1:
            node = self.network.random.choice(nodes)
            node.machine.drain("drained", 20.0, self.network.now)
            node.soon()
            self.report.faults["drain"] += 1

    def retire(self) -> None:
        """A client has a worker end for good, of a node that keeps another: nothing may be lost by that."""
        workers = [w for w in self.cluster.workers() if len(w.node.children) > 1]
        if workers and not (self.report.faults["retire"] or self.report.faults["scale"]):
            self._order("retire", (self.network.random.choice(workers).machine.name,))
            self.report.faults["retire"] += 1

    def restart_workers(self) -> None:
        """A client has workers replaced, some or all: nothing may be lost by that."""
        names = [worker.machine.name for worker in self.cluster.workers()]
        if names:
            chosen = tuple(dict.fromkeys(self.network.random.choices(names, k=self.network.random.choice((1, 2, 8)))))
            self._order("restart_workers", (chosen, 20.0))
            self.report.faults["restart"] += 1

    def _order(self, what: str, args: Any) -> None:
        client = self.network.random.choice(self._living()).client
        client.ledger.ask(what, args)
        client.soon()

    def scale_node(self) -> None:
        """A node is to keep more workers, or fewer."""
        if self.report.faults["retire"]:
            return
        node = self.network.random.choice([node for node in self.cluster.nodes if node.alive])
        node.machine.scale(self.network.random.randint(1, 3), self.network.now)
        node.soon()
        self.report.faults["scale"] += 1

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
        if isinstance(process, SimWorker):
            for task in process.running:
                if task.limit:  # its time does not stand still
                    self.doubt(task.key)

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
            self._shared()
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

        def orders() -> list[str]:
            asked = [reply.what for s in self._living() for reply in s.client.ledger.replies.values()]
            return [what for what in asked if what in ORDERS]

        if not self.cluster.run(settled, PATIENCE):
            hung = [
                (s.client.name, e) for s in self._living() for e in s.client.ledger.entries.values()
                if e.refs and e.status == PENDING
            ]  # fmt: skip
            raise InvariantError(f"{len(hung)} futures hang, {hung[:3]}")
        if not self.cluster.run(lambda: not orders(), PATIENCE):
            raise InvariantError(f"{len(orders())} orders are not answered, {orders()[:3]}")

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

    def _shared(self) -> None:
        living = self._living()
        if not self.cluster.run(lambda: not any(s.acts.unanswered for s in living), PATIENCE):
            hung = [(s.client.name, s.acts.unanswered) for s in living if s.acts.unanswered]
            raise InvariantError(f"operations on shared state hang: {hung}")
        judge(self)
        for script in living:
            script.acts.close()

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
        elif entry.status == CANCELLED and not self._may_be_cancelled(script, entry, spec):
            raise InvariantError(f"{name} was cancelled: {entry.outcome}")

    def _may_be_cancelled(self, script: Script, entry: Entry, spec: Spec) -> bool:
        if spec.doubtful:
            return True
        foreign = {who for who, lent in self.adopted.items() if not self._still(*lent)}
        late = {key for _, key in foreign}  # it may have gone into the queue before it was known that it is gone
        foreign |= {(who, key) for who, key in self.taken if key in late or not sound(self, alone=True)}
        if entry.work is not None:  # it knows how it is computed
            foreign = foreign - {(script.client.name, entry.key)}
        makers = [s.client.name for s in self.scripts if spec.key.startswith(f"{s.client.name}-")]
        whose = dict.fromkeys((script.client.name, *makers))  # the maker may have made it of what it had from others
        stack, seen = [spec], {spec.key}
        while stack:  # scattered data, or data of a client that was given up, is not computed again
            spec = stack.pop()
            given_up = spec.key.startswith("arg-") and self.report.faults["partition"] + self.report.faults["pause"]
            lost = (self.data_at_risk or self.cluster.undismissed) and spec.key.startswith("data-")
            if given_up or lost or any((who, spec.key) in foreign for who in whose):
                return True
            new = [dep for dep in spec.deps if dep not in seen]
            seen.update(new)
            stack += [self.specs[dep] for dep in new]
        return False

    def _still(self, lender: Script, entry: Entry) -> bool:
        """Whether the client from which a key was had has kept it, finished, and was never taken for gone."""
        if not lender.client.alive or self.report.faults["partition"] + self.report.faults["pause"]:
            return False
        ledger = lender.client.ledger
        return entry in lender.held and ledger.entries.get(entry.key) is entry and entry.status == FINISHED

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
        shared = self.cluster.broker.machine.shared
        if shared.store.items("queue", "it") or shared.pins or shared.waiting:
            found["shared"] = (list(shared.store.items("queue", "it").values())[:3], shared.pins, shared.waiting)
        tables = self.cluster.broker.machine.tables
        if tables.tasks or tables.cached or tables.placing:
            found["broker"] = (list(tables.tasks.values())[:3], list(tables.placing)[:3], tables.cached)
        return found | self.cluster.segments()
