"""The processes of a simulated cluster: the real machines, and stand-ins for threads, pickling and supervision.

A task's value is bytes that follow from its key and its dependencies' values, so any result can be checked anywhere.
What a task does is told by its arguments: ``b"raise"`` fails always, ``b"flaky"`` the first time that it runs,
``b"inline"``, ``b"frozen"`` and ``b"lazy"`` say how its result leaves the worker.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from zdist.core.endpoint import PeerEndpoint
from zdist.core.ledger import Ledger
from zdist.core.node import Ended, EndWorker, NodeMachine, StartWorker
from zdist.core.task import Input, Task
from zdist.core.worker import Exit, Freeze, RunCall, WorkerMachine
from zdist.protocol.messages import Key, Output
from zdist.testing.network import Network, Process
from zdist_broker.endpoint import BrokerEndpoint
from zdist_broker.machine import BrokerMachine, Expel, Shutdown
from zdist_broker.relay import Relay

__all__ = ["SimBlob", "SimBroker", "SimClient", "SimCluster", "SimNode", "SimWorker", "value_of"]

TOKEN = "simulated"


def value_of(key: Key, inputs: list[bytes]) -> bytes:
    """The value of a task: depends on all that went into it, and has a length of its own."""
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for data in inputs:
        digest.update(data)
    seed = digest.digest()
    return key.encode() + b"|" + seed * (1 + seed[0] % 12)


class SimBlob:
    """Frozen bytes of a value, in the shape that the store expects."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def slice(self, offset: int, length: int) -> list[bytes]:
        return [self.data[offset : offset + length]]


def joined(pieces: list[Any]) -> bytes:
    """The bytes of pieces as they come from a fetcher or a payload field."""
    return b"".join(bytes(getattr(piece, "data", piece)) for piece in pieces)


class SimBroker(Process):
    """The broker with its two sockets."""

    def __init__(self, network: Network, epoch: int) -> None:
        super().__init__(network, "broker")
        relay = Relay()
        self.machine = BrokerMachine(epoch=epoch, cluster="simulated", address="sim://broker", relay=relay)
        self.endpoint = self.sessions = BrokerEndpoint(
            self.machine, relay, epoch=epoch, token=TOKEN, cluster="simulated", bulk="sim://broker-bulk"
        )

    def execute(self, command: object) -> None:
        if isinstance(command, Expel):
            self.sessions.expel(command.session, command.reason, self.network.now)
        elif isinstance(command, Shutdown):
            self.crash()
        else:
            super().execute(command)


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
        )
        self.machine.address = f"sim://{session}"
        self.endpoint = PeerEndpoint(self.machine, session, TOKEN)
        self.running: list[Task] = []
        cluster.listen(self)
        self.soon()

    def resolve(self, channel: str) -> tuple[Process, str] | None:
        return self.cluster.resolve(channel)

    def after_turn(self) -> None:
        """Threads that are free take work."""
        random = self.network.random
        while len(self.running) < self.machine.threads:
            task = self.machine.next_task(self.network.now)
            if task is None:
                break
            self.running.append(task)
            self.cluster.starts[task.key] += 1
            seconds = random.choice((0.00001, 0.001, 0.05)) * random.random()
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
            frozen = (None, SimBlob(value), "", len(value), self.network.random.random() < 0.5)
        elif kind == b"lazy":
            frozen = (None, None, "", 2 * len(value), True)
        self.machine.finished(task, micros, value, "bytes", frozen, now)

    def execute(self, command: object) -> None:
        if isinstance(command, Freeze):
            self.network.after(self.network.random.random() * 0.002, lambda: self._freeze(command))
        elif isinstance(command, RunCall):
            self.machine.called(command.req, True, b"called")
            self.soon()
        elif isinstance(command, Exit):
            self.end(command.code)
        else:
            super().execute(command)

    def _freeze(self, command: Freeze) -> None:
        if self.alive:
            entry = self.machine.store.get(command.key)
            if entry is not None and entry.has_value:
                self.machine.frozen(command.key, command.attempt, SimBlob(joined([entry.value])), self.network.now)
            self.soon()

    def end(self, code: int) -> None:
        """The process ends; its node notices a little later, and knows what was running."""
        if not self.alive:
            return
        running = tuple((task.key, task.attempt) for task in self.running)
        self.crash()
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
        elif isinstance(command, Ended):
            self.crash()
        else:
            super().execute(command)

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

    def __init__(self, cluster: SimCluster, name: str) -> None:
        super().__init__(cluster.network, name)
        self.cluster = cluster
        session = "c-" + hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        self.ledger = Ledger(session, TOKEN, {"name": name, "host": name, "pid": 1})
        self.endpoint = PeerEndpoint(self.ledger, session, TOKEN)
        self.soon()

    def resolve(self, channel: str) -> tuple[Process, str] | None:
        return self.cluster.resolve(channel)

    def execute(self, command: object) -> None:
        if not isinstance(command, Output):
            self.cluster.ended.append((self.name, command))


class SimCluster:
    """A broker, nodes with workers, and clients, on one network."""

    def __init__(self, seed: int, *, nodes: int = 2, workers: int = 2, clients: int = 2) -> None:
        self.network = Network(seed)
        self.starts: Counter[Key] = Counter()
        self.losses = 0  # workers that ended, however
        self.ended: list[tuple[str, object]] = []
        self.addresses: dict[str, tuple[Process, str]] = {}
        self.broker = SimBroker(self.network, epoch=1)
        self.nodes = [SimNode(self, f"node-{index}", workers) for index in range(nodes)]
        self.clients = [SimClient(self, f"client-{index}") for index in range(clients)]

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

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Let virtual time pass until ``until()`` or for ``limit`` seconds."""
        return self.network.run(until, limit)
