"""A broker machine with peers that are played by the test: what it sends lies in an inbox per session."""

from __future__ import annotations

from typing import Any, TypeVar

from zdist.limits import LANE_BITS
from zdist.protocol.messages import (
    Abort,
    Answer,
    Ask,
    Cancelled,
    Define,
    Dismiss,
    Done,
    Drop,
    Fence,
    Held,
    Hold,
    Lane,
    Message,
    Place,
    Replicate,
    Returned,
    Run,
    Submit,
    Subscribe,
    TakeBack,
    WorkerDied,
    function_digest,
)
from zdist_broker.machine import BrokerMachine

M = TypeVar("M")
FN = function_digest(b"pickled fast")
SLOW = function_digest(b"pickled slow")


class World:
    """Sends and turns; after each the invariants are checked."""

    def __init__(self, workers: int = 2, threads: int = 1, clients: int = 1) -> None:
        self.broker = BrokerMachine(epoch=1, cluster="test", address="tcp://broker")
        self.now = 0.0
        self.inbox: dict[str, list[Message]] = {}
        self.gen = 0
        self.join("n-0", "node", workers=workers)
        for n in range(clients):
            self.client(f"c-{n}")
        for n in range(workers):
            self.worker(f"w-{n}", threads)

    # --- peers ----------------------------------------------------------------------------------------

    def join(self, session: str, role: str, **info: Any) -> Any:
        result = self.broker.joined(session, role, {"name": session.upper(), "host": "h", "pid": 1, **info}, self.now)
        self.broker.check()
        return result

    def client(self, session: str, **info: Any) -> None:
        self.join(session, "client", **info)
        for digest, name in ((FN, "fast"), (SLOW, "slow")):
            self.send(session, Define(digest, name, b"pickled " + name.encode()))

    def worker(
        self,
        session: str,
        threads: int = 1,
        tags: tuple[str, ...] = (),
        resources: dict[str, float] | None = None,
        node: str = "n-0",
    ) -> None:
        self.join(session, "worker", node=node, address=f"tcp://{session}")
        self.send(session, Subscribe(threads, tags, resources or {}, False))

    def die(self, session: str, *running: str, ordered: bool = False, text: str = "it broke") -> None:
        node = self.broker.tables.workers[session].node
        rows = tuple((key, self.task(key).attempt) for key in running)
        self.send(node, WorkerDied(session, -9, text, rows, ordered))

    def leave(self, session: str, reason: str = "bye") -> None:
        self.broker.left(session, reason, self.now)
        self.broker.check()

    # --- messages -------------------------------------------------------------------------------------

    def send(self, session: str, message: Message) -> None:
        self.broker.handle(session, message, self.now)
        self.broker.check()

    def turn(self) -> None:
        self.broker.turn(self.now)
        self.broker.check()
        for session, messages in self.broker.take().items():
            self.inbox.setdefault(session, []).extend(messages)

    def got(self, session: str, kind: type[M]) -> list[M]:
        """Run a turn and take the session's messages of this type; the others stay."""
        self.turn()
        messages = self.inbox.get(session, [])
        self.inbox[session] = [m for m in messages if type(m) is not kind]
        return [m for m in messages if type(m) is kind]

    def all(self, session: str) -> list[Message]:
        self.turn()
        return self.inbox.pop(session, [])

    def rows(self, session: str, kind: type) -> list[Any]:
        """Rows (or keys) of all the session's messages of this type."""
        return [
            row for message in self.got(session, kind) for row in getattr(message, "rows", getattr(message, "keys", ()))
        ]

    def cancelled(self, session: str) -> list[tuple[str, str]]:
        """Keys that the session is told are over, and why; each time of a want that its books do not have."""
        rows = self.rows(session, Cancelled)
        wants = self.broker.tables.clients[session].wants if session in self.broker.tables.clients else {}
        assert all(wants.get(key) != gen for key, _, gen in rows), rows
        return [(key, reason) for key, reason, _ in rows]

    # --- tasks ----------------------------------------------------------------------------------------

    def task(self, key: str) -> Any:
        return self.broker.tables.tasks[key]

    def submit(
        self,
        *keys: str,
        deps: tuple[str, ...] = (),
        client: str = "c-0",
        fn: bytes = FN,
        options: tuple[Any, ...] = (),
        named: bool = False,
        args: bytes = b"args",
    ) -> int:
        self.gen += 1
        self.send(client, Submit(fn, named, self.gen, options, tuple((key, args, deps) for key in keys)))
        return self.gen

    def runs(self, session: str) -> dict[str, Any]:
        """Rows of Run that a worker has got, by key."""
        return {row[0]: row for row in self.rows(session, Run)}

    def done(self, session: str, *keys: str, value: bytes | None = b"value", micros: int = 10, nbytes: int = 5) -> None:
        rows = tuple((key, self.task(key).attempt, micros, nbytes, value, "int") for key in keys)
        self.send(session, Done(rows))

    def where(self, key: str) -> str:
        """The worker that a task is assigned to."""
        self.turn()
        worker = self.task(key).worker
        return worker.session if worker is not None else ""

    def finish(self, *keys: str, value: bytes | None = b"value", nbytes: int = 5) -> str:
        """Complete assigned tasks where they are; the last one's worker."""
        session = ""
        for key in keys:
            session = self.where(key)
            assert session, f"{key} is not assigned but {self.task(key)}"
            self.done(session, key, value=value, nbytes=nbytes)
        return session

    def learn(self, micros: int = 10, fn: bytes = FN) -> None:
        """Let the broker know how long the function takes, and forget how it learned it."""
        gen = self.submit("learn", fn=fn)
        session = self.where("learn")
        self.done(session, "learn", micros=micros)
        self.release("learn", gen)
        self.turn()
        self.inbox.clear()

    def release(self, key: str, gen: int, client: str = "c-0") -> None:
        from zdist.protocol.messages import Release

        self.send(client, Release(((key, gen),)))

    def states(self) -> dict[str, str]:
        from zdist_broker.state import STATES

        return {key: STATES[task.state] for key, task in self.broker.tables.tasks.items()}


def ask(w: World, what: str, args: Any = None, client: str = "c-0") -> Any:
    """The answer to a question; None if it is not answered at once."""
    w.gen += 1
    w.send(client, Ask(w.gen, what, args))
    answers = w.got(client, Answer)
    if not answers:
        return None
    (answer,) = answers
    assert answer.req == w.gen
    return answer.value if answer.ok else ("error", answer.value)


class FakeWorker:
    """A worker as the protocol asks it to be, with the test deciding when its tasks end."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.tasks: dict[str, tuple[int, tuple[Any, ...]]] = {}  # key: attempt, dependencies
        self.started: set[str] = set()
        self.seceded: set[str] = set()
        self.held: dict[str, int] = {}
        self.functions: set[bytes] = set()
        self.lanes: dict[int, set[int]] = {}  # lanes that lead here: the attempts that have come
        self.replicate: list[tuple[str, int, int, tuple[str, ...]]] = []

    def take(self, message: Message) -> list[Message]:
        """Take in a message; what the worker answers at once."""
        if isinstance(message, Define):
            self.functions.add(message.fn)
        elif isinstance(message, Run):
            assert message.fn in self.functions, "Run before Define"
            for key, attempt, _, _, _, deps in message.rows:
                seen = self.lanes.get(attempt >> LANE_BITS, set())
                if attempt in seen:
                    continue
                seen.add(attempt)
                assert key not in self.tasks, f"{key} was given twice"
                assert key not in self.held, f"{key} is to run where its result still lies"
                self.tasks[key] = (attempt, deps)
        elif isinstance(message, Drop):
            for key in message.keys:
                self.held.pop(key, None)
        elif isinstance(message, Abort):
            for key, attempt in message.rows:
                if self.tasks.get(key, (None,))[0] == attempt:
                    self.forget(key)
        elif isinstance(message, TakeBack):
            back = [
                (key, attempt)
                for key, attempt in message.rows
                if self.tasks.get(key, (None,))[0] == attempt and key not in self.started
            ]
            for key, _ in back:
                self.forget(key)
            return [Returned(tuple(back))]
        elif isinstance(message, Fence):
            return [message]
        elif isinstance(message, Lane):
            number = message.first >> LANE_BITS
            if message.session:
                self.lanes[number] = set()
            else:
                del self.lanes[number]
                for key, (attempt, _) in list(self.tasks.items()):
                    if attempt >> LANE_BITS == number and attempt >= message.until:
                        self.forget(key)
        elif type(message).__name__ == "Replicate":
            self.replicate += message.rows  # type: ignore[union-attr]
        return []

    def early(self, key: str, attempt: int) -> bool:
        """A client's own copy of an order; whether it starts anything."""
        seen = self.lanes.get(attempt >> LANE_BITS)
        if seen is None or attempt in seen:
            return False
        seen.add(attempt)
        self.tasks[key] = (attempt, ())
        self.started.add(key)
        return True

    def forget(self, key: str) -> None:
        del self.tasks[key]
        self.started.discard(key)
        self.seceded.discard(key)

    def complete(self, key: str, value: bytes | None) -> Done:
        attempt, _ = self.tasks[key]
        self.forget(key)
        self.held[key] = attempt
        return Done(((key, attempt, 10, len(value or b"x" * 1000), value, "int"),))

    def copy(self) -> list[Message]:
        """Fetch what it was asked to replicate."""
        rows = []
        for key, attempt, nbytes, _ in self.replicate:
            if key not in self.held:
                self.held[key] = attempt
                rows.append((key, attempt, nbytes, "array"))
        self.replicate = []
        return [Held(tuple(rows))] if rows else []


def elapse(w: World, seconds: float) -> None:
    """So many seconds pass, a look every 50 ms."""
    end = w.now + seconds
    while w.now < end:
        w.now = min(end, w.now + 0.05)
        w.broker.tick(w.now)
        w.turn()
        w.broker.check()


def scattered(w: World, session: str) -> None:
    """A worker has the only copy of data, as its client has let go of it."""
    w.send("c-0", Hold(1, (("data", 0, 5, "bytes"),)))
    w.send("c-0", Place(("data",), (), 1))
    assert w.rows(session, Replicate)
    w.send(session, Held((("data", 0, 5, "bytes"),)))
    assert [holder.session for holder in w.task("data").holders] == [session]


def is_dismissed(w: World, worker: str = "w-0") -> bool:
    """Whether its node was told to end it."""
    return any(worker in message.workers for message in w.got("n-0", Dismiss))
