"""Real ledgers and a real broker machine, joined by queues; nodes and workers are played by the rig."""

from __future__ import annotations

from collections import deque
from typing import Any

from zdist.core.entry import Entry, Work
from zdist.core.ledger import Ledger
from zdist.core.machine import CONTROL
from zdist.core.store import Pieces
from zdist.protocol import messages as m
from zdist.protocol.fields import DATA, content_attempt
from zdist_broker.machine import BrokerMachine

NODE = "n-0"
LARGE = 100  # bytes of each result
ROUNDS = 50  # of messages to and fro, until nobody has anything to say


def work(name: str, named: bool = False) -> Work:
    blob = b"code " + name.encode()
    return Work(m.function_digest(blob), name, blob, (), named)


PURE = work("pure", named=True)
PLAIN = work("plain")
OTHER = work("other")


def submit(ledger: Ledger, what: Work, key: str, *deps: str) -> Entry:
    (entry,) = ledger.submit(what, [(key, b"", deps)])
    return entry


def want(ledger: Ledger, key: str) -> Entry:
    """Its future came from another client."""
    (entry,) = ledger.want([key])
    return entry


def hold(ledger: Ledger, key: str, data: bytes = b"data") -> Entry:
    """Data that stays with this client, as large arguments do."""
    (entry,) = ledger.hold([(key, Pieces([data]), "bytes")], finished=True)
    return entry


def scatter(ledger: Ledger, key: str, data: bytes = b"data") -> Entry:
    """Data that a worker takes from this client."""
    attempt = content_attempt(repr(data))
    (entry,) = ledger.hold([(key, Pieces([data]), "bytes")], finished=False, attempt=attempt)
    ledger.place([entry], ("w-0",), 1)
    return entry


class Rig:
    """Messages travel when told to: clients to broker by ``up`` and ``serve``, the other way by ``down``.

    Workers act at once. A result is large unless there is a value for its key in ``values``; tasks whose keys are in
    ``failing`` fail, and those in ``slow`` go on until ``finish``.
    """

    def __init__(self, clients: int = 1, workers: int = 2) -> None:
        self.now = 0.0
        self.epoch = 0
        self.ledgers = {session: self._ledger(session) for session in (f"c-{number}" for number in range(clients))}
        self.stores: dict[str, dict[str, int]] = {f"w-{number}": {} for number in range(workers)}  # attempts by key
        self.running: dict[str, tuple[str, int]] = {}  # worker and attempt of each slow task
        self.slow: set[str] = set()
        self.values: dict[str, bytes] = {}
        self.failing: dict[str, str] = {}
        self.to_broker: deque[tuple[str, m.Message]] = deque()
        self.to_clients: deque[tuple[str, m.Message]] = deque()
        self._begin(known=False)

    @staticmethod
    def _ledger(session: str) -> Ledger:
        return Ledger(session, "token", {"name": session, "host": "h", "pid": 1})

    # --- who is there ---------------------------------------------------------------------------------

    def succeed(self) -> None:
        """The broker is killed and another takes its place, to which all come at once."""
        self._begin(known=True)

    def _begin(self, known: bool) -> None:
        self.epoch += 1
        self.broker = BrokerMachine(epoch=self.epoch, cluster="test", address="tcp://broker")
        self.to_broker.clear()
        self.to_clients.clear()
        for ledger in self.ledgers.values():
            ledger.out.pop(CONTROL, None)
        self._join(NODE, "node", known)
        for session in self.stores:
            self.come_worker(session, known)
        for session in self.ledgers:
            self.come(session, known)
        self.settle()

    def _join(self, session: str, role: str, known: bool, **more: Any) -> dict[str, Any]:
        info = self.broker.joined(session, role, {"name": session, "host": "h", "pid": 1, **more}, self.now)
        assert isinstance(info, dict), info
        return {**info, "recover": self.broker.succeeds(self.now)} if known else info

    def come(self, session: str, known: bool = True) -> None:
        """A client is welcomed; ``known``: an earlier broker had welcomed it."""
        info = self._join(session, "client", known)
        self.ledgers[session].welcomed(m.Welcome(self.epoch, 0, True, info), self.now)

    def come_worker(self, session: str, known: bool = True) -> None:
        """A worker comes, with what it holds."""
        self._join(session, "worker", known, node=NODE, address=f"tcp://{session}")
        self.broker.handle(session, m.Subscribe(4, (), {}, False), self.now)
        rows = [
            (key, attempt, LARGE, "int") if 0 < attempt < DATA else (key, attempt, 4, "bytes")
            for key, attempt in self.stores[session].items()
        ]
        if rows:
            self.broker.handle(session, m.Held(tuple(rows)), self.now)

    def newcomer(self, session: str) -> Ledger:
        ledger = self.ledgers[session] = self._ledger(session)
        self.come(session, known=False)
        return ledger

    def kill(self, worker: str) -> None:
        del self.stores[worker]
        self.broker.handle(NODE, m.WorkerDied(worker, -9, "killed", (), False), self.now)
        self.settle()

    def holders(self, key: str) -> list[str]:
        """Who has it, as the broker believes."""
        return [holder.session for holder in self.broker.tables.tasks[key].holders]

    def evict(self, key: str) -> None:
        """The broker has no room for a small value any more; workers have it."""
        task = self.broker.tables.tasks[key]
        assert task.value is not None and task.holders
        self.broker.tables.discard(task)

    # --- messages -------------------------------------------------------------------------------------

    def up(self) -> None:
        """Clients' turns: what they say is on its way."""
        for session, ledger in self.ledgers.items():
            deadline = ledger.deadline()
            if deadline is not None and deadline <= self.now:
                ledger.tick(self.now)
            ledger.turn(self.now)
            ledger.check()
            self.to_broker.extend((session, message) for message in ledger.take().pop(CONTROL, []))

    def serve(self) -> None:
        """The broker takes in what has come, workers act, and what clients are told is on its way."""
        while self.to_broker:
            self.broker.handle(*self.to_broker.popleft(), self.now)
        deadline = self.broker.deadline()
        if deadline is not None and deadline <= self.now:
            self.broker.tick(self.now)
        told = True
        while told:
            told = False
            self.broker.turn(self.now)
            self.broker.check()
            for session, messages in self.broker.take().items():
                if session in self.ledgers:
                    self.to_clients.extend((session, message) for message in messages)
                elif session in self.stores:
                    for message in messages:
                        told |= self._act(session, message)

    def down(self) -> None:
        """What the broker said arrives."""
        while self.to_clients:
            session, message = self.to_clients.popleft()
            if session in self.ledgers:
                self.ledgers[session].handle(CONTROL, message, self.now)

    def settle(self) -> None:
        for _ in range(ROUNDS):
            self.up()
            self.serve()
            if not self.to_clients:
                return
            self.down()
        raise AssertionError("it does not come to rest")

    def wait(self, seconds: float, step: float = 0.25) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += step
            self.settle()

    # --- workers --------------------------------------------------------------------------------------

    def _act(self, worker: str, message: m.Message) -> bool:
        """Whether the broker has been told something that it may act on."""
        match message:
            case m.Run(rows=rows):
                for key, attempt, _, _, _, deps in rows:
                    for dep, _, holders, value in deps:
                        places = holders or (worker,)  # what is being made there goes before
                        here = value is not None or any(self._has(holder, dep) for holder in places)
                        assert here or dep in self.running, f"{key} needs {dep}, which {holders} should have"
                    if key in self.slow or any(dep[0] in self.running for dep in deps):
                        self.running[key] = (worker, attempt)
                    else:
                        self._done(worker, key, attempt)
                return True
            case m.Drop(keys=keys):
                for key in keys:
                    self.stores[worker].pop(key, None)
            case m.Fence():
                self.broker.handle(worker, message, self.now)
                return True
            case m.Replicate(rows=rows):
                return sum(self._copy(worker, *row) for row in rows) > 0
        return False

    def _has(self, holder: str, key: str) -> bool:
        ledger = self.ledgers.get(holder)
        return key in self.stores.get(holder, {}) or (ledger is not None and ledger.store.get(key) is not None)

    def _copy(self, worker: str, key: str, attempt: int, nbytes: int, holders: tuple[str, ...]) -> bool:
        if not any(self._has(holder, key) for holder in holders):
            self.broker.handle(worker, m.Missing(((key, tuple(holders)),)), self.now)
            return False
        self.stores[worker][key] = attempt
        self.broker.handle(worker, m.Held(((key, attempt, nbytes, "int"),)), self.now)
        return True

    def _done(self, worker: str, key: str, attempt: int) -> None:
        if key in self.failing:
            failed = m.Erred(((key, attempt, 10, b"error", self.failing[key]),))
            self.broker.handle(worker, failed, self.now)
            return
        self.stores[worker][key] = attempt
        self.broker.handle(worker, m.Done(((key, attempt, 10, LARGE, self.values.get(key), "int"),)), self.now)

    def finish(self, key: str) -> None:
        """A slow task ends, and clients' news of it is on its way."""
        self.slow.discard(key)
        worker, attempt = self.running.pop(key)
        self._done(worker, key, attempt)
        self.serve()
