"""The processes of a simulated cluster: the real machines, and stand-ins for threads, pickling and supervision.

A task's value is bytes that follow from its key and its dependencies' values, so any result can be checked anywhere.
What a task does is told by its arguments: ``b"raise"`` fails always, ``b"flaky"`` the first time that it runs,
``b"hang"`` never ends, ``b"inline"``, ``b"frozen"`` and ``b"lazy"`` say how its result leaves the worker.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Container
from typing import Any

from zdist.core.endpoint import PeerEndpoint
from zdist.core.ledger import Ledger
from zdist.core.links import Host
from zdist.core.machine import Log
from zdist.core.memory import Spill
from zdist.core.node import Ended, EndWorker, Look, NodeMachine, StartWorker
from zdist.core.slot import Running
from zdist.core.store import part
from zdist.core.task import Input, Task
from zdist.core.transfer import Map
from zdist.core.worker import Exit, Freeze, RunCall, Share, WorkerMachine
from zdist.protocol.fields import serves
from zdist.protocol.messages import Get, Key, Output
from zdist.testing.network import Network, Process
from zdist_broker.endpoint import BrokerEndpoint
from zdist_broker.machine import BrokerMachine, Expel, Shutdown
from zdist_broker.relay import Peek, Relay, Row

__all__ = ["SimBlob", "SimBroker", "SimClient", "SimCluster", "SimMemory", "SimNode", "SimWorker", "value_of"]

TOKEN = "simulated"
SHARED = 64  # bytes from which values go by shared memory
MEMORY = 4000  # bytes that a worker may use for what it holds


def value_of(key: Key, inputs: list[bytes]) -> bytes:
    """The value of a task: depends on all that went into it, and has a length of its own."""
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for data in inputs:
        digest.update(data)
    seed = digest.digest()
    return key.encode() + b"|" + seed * (1 + seed[0] % 12)


class SimBlob:
    """Frozen bytes of a value, in the shape that the store expects; ``memory``: of a host, if they lie there."""

    def __init__(self, data: bytes, memory: SimMemory | None = None, key: Key = "", attempt: int = 0) -> None:
        self.data = data
        self.memory = memory
        self.key = key
        self.attempt = attempt
        self.spilled = False

    @property
    def nbytes(self) -> int:
        return len(self.data)

    @property
    def pieces(self) -> list[bytes]:
        return [self.data]

    @property
    def shared(self) -> bool:
        return self.memory is not None and self.memory.segments.get(self.key) is self

    def slice(self, offset: int, length: int) -> list[bytes]:
        return [self.data[offset : offset + length]]


class SimMemory:
    """What a process has in its host's shared memory. It is often full, and its directory sometimes cannot be read."""

    def __init__(self, cluster: SimCluster, host: str, session: str) -> None:
        self.random = cluster.network.random
        self.host = cluster.memory.setdefault(host, {})
        self.session = session
        self.segments: dict[Key, SimBlob] = {}
        self.host[session] = self.segments

    def write(self, key: Key, attempt: int, data: bytes) -> SimBlob | None:
        """Put bytes there, if there is room."""
        if len(data) < SHARED or self.random.random() < 0.2:
            self.segments.pop(key, None)
            return None
        blob = self.segments[key] = SimBlob(data, self, key, attempt)
        return blob

    def read(self, command: Map) -> tuple[dict[Key, SimBlob], str]:
        """What a Map asks for; bytes and attempt are all that is taken over."""
        there = self.host.get(command.holder)
        if there is None or self.random.random() < 0.03:
            return {}, "no shared memory of its holder here"
        found = {}
        for key, attempt in command.rows:
            blob = there.get(key)
            if blob is not None and serves(blob.attempt, attempt):
                found[key] = SimBlob(blob.data, None, key, blob.attempt)
        return found, ""

    def forget(self, held: Container[Key]) -> None:
        """What the process does not hold any more goes."""
        for key in [key for key in self.segments if key not in held]:
            del self.segments[key]

    def close(self) -> None:
        """The process has ended; a while later somebody has swept up after it."""
        if self.host.get(self.session) is self.segments:
            del self.host[self.session]


def joined(pieces: list[Any]) -> bytes:
    """The bytes of pieces as they come from a fetcher or a payload field."""
    return b"".join(bytes(getattr(piece, "data", piece)) for piece in pieces)


class SimBroker(Process):
    """The broker with its two sockets, on the first node's host."""

    def __init__(self, cluster: SimCluster, epoch: int) -> None:
        super().__init__(cluster.network, "broker")
        self.memory = SimMemory(cluster, "node-0", "broker")
        relay = Relay(host="node-0", least=SHARED)
        self.machine = BrokerMachine(
            epoch=epoch, cluster="simulated", address="sim://broker", relay=relay, born=self.network.now
        )
        self.endpoint = self.sessions = BrokerEndpoint(
            self.machine, relay, epoch=epoch, token=TOKEN, cluster="simulated", bulk="sim://broker-bulk"
        )

    def execute(self, command: object) -> None:
        if isinstance(command, Expel):
            self.sessions.expel(command.session, command.reason, self.network.now)
        elif isinstance(command, Shutdown):
            self.crash()
        elif isinstance(command, Peek):
            self.sessions.relay.peeked(command.get, self.look(command.get), self.network.now)
        else:
            super().execute(command)

    def look(self, get: Get) -> tuple[Row, ...]:
        """What a Peek asks for, if all of it is there."""
        found, _ = self.memory.read(Map(get.req, get.holder, tuple([(key, -1) for key, _, _ in get.rows])))
        if len(found) < len(get.rows):
            return ()
        rows = []
        for key, offset, length in get.rows:
            blob = found[key]
            rows.append((key, blob.attempt, blob.nbytes, offset, part(blob, offset, length)[1]))
        return tuple(rows)


class SimWorker(Process):
    """A worker whose threads are events in time."""

    def __init__(self, cluster: SimCluster, node: SimNode, session: str, name: str) -> None:
        super().__init__(cluster.network, session)
        self.cluster = cluster
        self.node = node
        self.machine = WorkerMachine(
            session,
            TOKEN,
            name=name,
            node=node.machine.session,
            host=node.machine.host,
            threads=cluster.network.random.randint(1, 2),
            shared=SHARED,
            memory_limit=MEMORY,
        )
        self.machine.memory.usage, self.machine.memory.least = self.used, 1
        self.memory = SimMemory(cluster, node.machine.host, session)
        self.machine.address = f"sim://{session}"
        self.endpoint = PeerEndpoint(self.machine, session, TOKEN)
        self.running: list[Task] = []
        self.until: dict[int, float] = {}  # when the time of an attempt is over
        cluster.listen(self)
        self.soon()

    def resolve(self, channel: str) -> tuple[Process, str] | None:
        return self.cluster.resolve(channel)

    def used(self) -> int:
        """Bytes of memory in use: what is held and not on disk."""
        entries = self.machine.store.entries.values()
        return sum(e.nbytes for e in entries if e.has_value or not (e.blob and e.blob.spilled))

    def after_turn(self) -> None:
        """Threads that are free take work."""
        self.memory.forget(self.machine.store.entries)
        random = self.network.random
        while len(self.running) < self.machine.threads:
            task = self.machine.next_task(self.network.now)
            if task is None:
                break
            self.running.append(task)
            self.cluster.starts[task.key] += 1
            self.cluster.early += task.early is not None
            seconds = random.choice((0.00001, 0.001, 0.05)) * random.random()
            if joined([task.args]) == b"hang":
                seconds = 1e6
            if task.limit:
                self.until[task.attempt] = self.network.now + task.limit
            self.network.after(seconds, lambda task=task, seconds=seconds: self._finish(task, seconds))  # type: ignore[misc]

    def _finish(self, task: Task, seconds: float) -> None:
        if not self.alive:
            return
        if self.paused:
            self.network.after(0.1, lambda: self._finish(task, seconds))
            return
        self.running.remove(task)
        now = self.network.now
        micros = int(seconds * 1e6)
        kind = joined([task.args])
        inputs = self._inputs(task)
        if isinstance(inputs, str):
            self.machine.failed(task, micros, b"input", inputs, now)
        elif kind == b"raise" or (kind == b"flaky" and self.cluster.starts[task.key] == 1):
            self.machine.failed(task, micros, b"raised:" + task.key.encode(), "raised", now)
        else:
            self._result(task, micros, value_of(task.key, inputs), kind, now)
        self.soon()

    def _inputs(self, task: Task) -> list[bytes] | str:
        values = []
        for source in task.inputs.values():
            if isinstance(source, Input):
                if source.payload is None:
                    return source.error
                values.append(joined([source.payload]))
            elif source.has_value:
                values.append(joined([source.value]))
            else:
                values.append(joined(source.blob.slice(0, source.nbytes)))
        return values

    def _result(self, task: Task, micros: int, value: bytes, kind: bytes, now: float) -> None:
        frozen: tuple[bytes | None, Any, str, int, bool] = (value, None, "", len(value), True)
        if kind == b"frozen":
            blob = (self.memory.write(task.key, task.attempt, value) if task.deliver > 1 else None) or SimBlob(value)
            frozen = (None, blob, "", len(value), self.network.random.random() < 0.5)
        elif kind == b"lazy":
            frozen = (None, None, "", 2 * len(value), True)
        self.machine.finished(task, micros, value, "bytes", frozen, now)

    def execute(self, command: object) -> None:
        if isinstance(command, Freeze | Share):
            self.network.after(self.network.random.random() * 0.002, lambda: self._freeze(command))
        elif isinstance(command, Spill):
            self.network.after(self.network.random.random() * 0.01, lambda: self._spill(command))
        elif isinstance(command, Map):
            found, closed = self.memory.read(command)
            self.machine.fetcher.mapped(command.req, found, closed, self.network.now)
        elif isinstance(command, RunCall):
            self.machine.called(command.req, True, b"called")
            self.soon()
        elif isinstance(command, Exit):
            self.end(command.code)
        else:
            super().execute(command)

    def _spill(self, command: Spill) -> None:
        if not self.alive:
            return
        entry = self.machine.store.get(command.key)
        blob = None
        if entry is not None and entry.attempt == command.attempt:
            blob = SimBlob(joined([entry.value] if entry.has_value else entry.blob.pieces))
            blob.spilled = True
            self.cluster.spilled += 1
        self.machine.memory.spilled(command.key, command.attempt, blob, self.network.now)
        self.soon()

    def _freeze(self, command: Freeze | Share) -> None:
        if not self.alive:
            return
        key, attempt = command
        entry = self.machine.store.get(key)
        if entry is not None and entry.attempt == attempt:
            data = joined([entry.value] if entry.has_value else entry.blob.pieces)
            segment = self.memory.write(key, attempt, data) if isinstance(command, Share) else None
            keep = segment is None or self.network.random.random() < 0.5
            self.machine.frozen(key, attempt, segment or SimBlob(data), self.network.now, keep)
        self.soon()

    def end(self, code: int) -> None:
        """The process ends; its node notices a little later, and knows what was running."""
        if not self.alive:
            return
        running = tuple((task.key, task.attempt) for task in self.running)
        self.crash()
        self.network.after(self.network.random.random(), self.memory.close)
        self.cluster.losses += 1
        self.network.after(self.network.random.random() * 0.01, lambda: self.node.child_exited(self, code, running))


class SimNode(Process):
    """A node and the processes that it supervises."""

    def __init__(self, cluster: SimCluster, name: str, workers: int) -> None:
        super().__init__(cluster.network, name)
        self.cluster = cluster
        session = "n-" + hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        self.machine = NodeMachine(session, name, workers, hostname=name, host=name)
        self.endpoint = PeerEndpoint(self.machine, session, TOKEN)
        self.children: dict[str, SimWorker] = {}
        self.machine.start(self.network.now)
        self.soon()

    def resolve(self, channel: str) -> tuple[Process, str] | None:
        return self.cluster.resolve(channel)

    def execute(self, command: object) -> None:
        if isinstance(command, StartWorker):
            self.network.after(self.network.random.random() * 0.05, lambda: self._start(command))
        elif isinstance(command, EndWorker):
            self.network.after(0.001, lambda: self._end(command))
        elif isinstance(command, Look):
            seen = {
                session: [Running(task.key, task.attempt, child.until.get(task.attempt, 0.0)) for task in child.running]
                for session, child in self.children.items()
            }
            self.machine.seen(seen, {}, self.network.now)
        elif isinstance(command, Ended):
            self.crash()
        else:
            super().execute(command)

    def logged(self, record: Log) -> None:
        self.cluster.undismissed += record.event == "worker.not_dismissed"

    def _start(self, command: StartWorker) -> None:
        if self.alive:
            self.children[command.session] = SimWorker(self.cluster, self, command.session, command.name)
            self.machine.worker_started(command.session, 1, self.network.now)
            self.soon()

    def _end(self, command: EndWorker) -> None:
        worker = self.children.get(command.session)
        if worker is not None:
            worker.end(-command.signal)
        else:
            self.network.after(0.05, lambda: self._end(command) if self.alive else None)

    def child_exited(self, worker: SimWorker, code: int, running: tuple[tuple[str, int], ...]) -> None:
        """Supervision: tell the machine."""
        if self.alive and self.children.pop(worker.name, None) is not None:
            self.machine.worker_exited(worker.name, code, [], running, self.network.now)
            self.soon()

    def crash(self) -> None:
        """The node's host is gone, with its workers."""
        super().crash()
        for worker in list(self.children.values()):
            worker.end(-9)


class SimClient(Process):
    """A client; a script calls its ledger and then ``soon``."""

    def __init__(self, cluster: SimCluster, name: str, host: str) -> None:
        super().__init__(cluster.network, name)
        self.cluster = cluster
        session = f"c-{name}"  # which is in all keys that it makes
        info = {"name": name, "host": host, "pid": 1, "shm": True}
        self.ledger = Ledger(session, TOKEN, info, host=Host(host, SHARED))
        self.memory = SimMemory(cluster, host, session)
        self.endpoint = PeerEndpoint(self.ledger, session, TOKEN)
        self.soon()

    def resolve(self, channel: str) -> tuple[Process, str] | None:
        return self.cluster.resolve(channel)

    def snapshot(self, key: Key, data: bytes, attempt: int = 0) -> SimBlob:
        """What is to be held: in shared memory, if there is room."""
        return self.memory.write(key, attempt, data) or SimBlob(data)

    def after_turn(self) -> None:
        self.memory.forget(self.ledger.store.entries)

    def crash(self) -> None:
        super().crash()
        self.network.after(self.network.random.random(), self.memory.close)

    def execute(self, command: object) -> None:
        if isinstance(command, Map):
            found, closed = self.memory.read(command)
            self.ledger.fetcher.mapped(command.req, found, closed, self.network.now)
        elif not isinstance(command, Output):
            self.cluster.ended.append((self.name, command))


class SimCluster:
    """A broker, nodes with workers, and clients, on one network."""

    def __init__(self, seed: int, *, nodes: int = 2, workers: int = 2, clients: int = 2) -> None:
        self.network = Network(seed)
        self.starts: Counter[Key] = Counter()
        self.early = 0  # of them those that a lane's copy of the order brought about
        self.spilled = 0  # values that went to disk
        self.losses = 0  # workers that ended, however
        self.undismissed = 0  # of them those that had to end before their data was elsewhere
        self.ended: list[tuple[str, object]] = []
        self.memory: dict[str, dict[str, dict[Key, SimBlob]]] = {}  # by host and session
        self.addresses: dict[str, tuple[Process, str]] = {}
        self.broker = SimBroker(self, epoch=1)
        self.nodes = [SimNode(self, f"node-{index}", workers) for index in range(nodes)]
        self.clients = [SimClient(self, f"client-{index}", f"node-{index}") for index in range(clients)]

    def replace_broker(self, seconds: float) -> None:
        """Kill the broker; its successor comes after so many seconds."""
        epoch = self.broker.sessions.epoch + 1
        self.broker.crash()

        def come() -> None:
            self.broker = SimBroker(self, epoch)

        self.network.after(seconds, come)

    def listen(self, worker: SimWorker) -> None:
        """A worker's data socket can be dialled."""
        self.addresses[worker.machine.address] = (worker, "data")

    def resolve(self, channel: str) -> tuple[Process, str] | None:
        """Who listens: the broker for control and bulk, a worker for its address."""
        if channel in ("control", "bulk"):
            return self.broker, channel
        return self.addresses.get(channel)

    def workers(self) -> list[SimWorker]:
        """The workers that are alive."""
        return [worker for node in self.nodes for worker in node.children.values() if worker.alive]

    def segments(self) -> dict[str, list[Key]]:
        """Keys in shared memory, by the session that has put them there."""
        sessions = {session: list(keys) for host in self.memory.values() for session, keys in host.items() if keys}
        return {f"memory of {session}": keys for session, keys in sessions.items()}

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Let virtual time pass until ``until()`` or for ``limit`` seconds."""
        return self.network.run(until, limit)
