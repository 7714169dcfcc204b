"""Random clients, workers and nodes against the broker: invariants after each step, baseline at the end."""

from __future__ import annotations

import random
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from broker_world import FN, SLOW, FakeWorker, World
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from zdist.protocol.messages import (
    Cancel,
    Cancelled,
    Define,
    Done,
    Drop,
    Erred,
    Failed,
    Finished,
    Held,
    Hold,
    Killed,
    Lane,
    Lost,
    Message,
    Missing,
    Place,
    Release,
    Retry,
    Returned,
    Seceded,
    Submit,
    SubmitEarly,
    Subscribe,
    Want,
    WhichFunction,
    WorkerDied,
)
from zdist.protocol.messages import Options as Opt

PICK = st.integers(0, 10_000)
CHOICES = (
    (),
    (),
    (),
    tuple(Opt(retries=1)),
    tuple(Opt(priority=5)),
    tuple(Opt(tags=("gpu",))),
    tuple(Opt(resources=(("mem", 2.0),))),
    tuple(Opt(workers=("W-1",), allow_other=True)),
    tuple(Opt(forget=True)),
)


class FakeClient:
    """What a client believes of its keys: pending, or how they ended."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.gen = 0
        self.wants: dict[str, int] = {}
        self.state: dict[str, str] = {}
        self.holds: set[str] = set()
        self.lane: Lane | None = None
        self.next = 0  # attempt to use by the lane

    def take(self, message: Message) -> list[Message]:
        if isinstance(message, Finished | Failed | Killed):
            for row in message.rows:
                self._set(row[0], type(message).__name__)
        elif isinstance(message, Lost):
            for key in message.keys:
                self._set(key, "pending")
        elif isinstance(message, Cancelled):
            for key, reason, gen in message.rows:
                assert reason
                if self.wants.get(key) == gen:
                    del self.wants[key]
                self.state.pop(key, None)
        elif isinstance(message, Drop):
            for key in message.keys:
                self.holds.discard(key)
        elif isinstance(message, Lane):
            if message.session:
                self.next = max(self.next, message.first)
                self.lane = message
            elif self.lane is not None and self.lane.first == message.first:
                self.lane = None
                return [Lane("", message.first, 0)]
        elif isinstance(message, WhichFunction):
            return [Define(message.fn, "again", b"pickled fast" if message.fn == FN else b"pickled slow")]
        return []

    def _set(self, key: str, state: str) -> None:
        if key in self.wants:
            self.state[key] = state

    def want(self, key: str) -> None:
        self.wants[key] = self.gen
        self.state.setdefault(key, "pending")


class BrokerStateful(RuleBasedStateMachine):
    keys = Bundle("keys")

    @initialize()
    def begin(self) -> None:
        self.world = World(workers=0, clients=0)
        self.world.join("n-1", "node")
        self.count = 0
        self.clients: dict[str, FakeClient] = {}
        self.workers: dict[str, FakeWorker] = {}
        for _ in range(2):
            self.new_client()
        for _ in range(3):
            self.new_worker(0)

    # --- peers ----------------------------------------------------------------------------------------

    def new_client(self) -> None:
        session = f"c-{self.count}"
        self.count += 1
        self.clients[session] = FakeClient(session)
        self.world.client(session)

    @rule(kind=PICK)
    def new_worker(self, kind: int) -> None:
        if len(self.workers) >= 6:
            return
        session = f"w-{self.count}"
        self.count += 1
        self.workers[session] = FakeWorker(session)
        tags = ("gpu",) if kind % 2 else ()
        node = f"n-{kind % 2}"
        if node not in self.world.broker.tables.nodes:
            self.world.join(node, "node")
        self.world.worker(session, 1 + kind % 3, tags, {"mem": 3.0} if kind % 3 else {}, node=node)

    def client(self, pick: int) -> FakeClient:
        return list(self.clients.values())[pick % len(self.clients)]

    def fenced(self, pick: int) -> FakeClient:
        """A client about to want something: it has heard what became of its former wants of the same key."""
        self.deliver()
        client = self.client(pick)
        client.gen += 1
        return client

    def busy(self, pick: int) -> tuple[FakeWorker, str] | None:
        """A worker with a task, and the task."""
        busy = [w for w in self.workers.values() if w.tasks]
        if not busy:
            return None
        worker = busy[pick % len(busy)]
        return worker, list(worker.tasks)[pick % len(worker.tasks)]

    def send(self, session: str, message: Message) -> None:
        self.world.send(session, message)

    # --- clients --------------------------------------------------------------------------------------

    @rule(
        target=keys,
        who=PICK,
        n=st.integers(1, 4),
        options=st.sampled_from(CHOICES),
        needs=st.lists(PICK, max_size=3),
        fn=st.sampled_from((FN, SLOW)),
    )
    def submit(self, who: int, n: int, options: tuple[object, ...], needs: list[int], fn: bytes) -> str:
        client = self.fenced(who)
        known = list(client.wants)
        deps = tuple(known[i % len(known)] for i in needs) if known else ()
        keys = [f"t{self.count + i}" for i in range(n)]
        self.count += n
        self.send(client.session, Submit(fn, False, client.gen, options, tuple((key, b"a", deps) for key in keys)))
        for key in keys:
            client.want(key)
        return keys[0]

    @rule(target=keys, who=PICK, way=st.sampled_from(("done first", "early", "late", "lost", "left")))
    def lone(self, who: int, way: str) -> str:
        """A task by a lane, or a lane for the next one. Nothing but the submission may have to be relied on."""
        client = self.fenced(who)
        lane = client.lane
        key = f"t{self.count}"
        self.count += 1
        if lane is None or client.next >= lane.until or lane.session not in self.workers:
            self.send(client.session, Lane("", 0, 0))
            return key
        attempt, client.next = client.next, client.next + 1
        worker = self.workers[lane.session]
        if way == "left":
            client.lane = None
            self.send(client.session, Lane("", lane.first, attempt))
            return key
        if way in ("done first", "early"):
            runs = worker.early(key, attempt)
            if way == "done first" and runs:
                self.send(worker.session, worker.complete(key, b"small"))
        client.want(key)
        self.send(client.session, SubmitEarly(FN, ((client.gen, attempt, key, b"a"),)))
        if way == "late":
            self.deliver()
            if key in self.world.broker.tables.tasks:
                worker.early(key, attempt)
        return key

    @rule(who=PICK, key=keys, named=st.booleans(), forget=st.booleans())
    def submit_again(self, who: int, key: str, named: bool, forget: bool) -> None:
        client = self.fenced(who)
        options = tuple(Opt(forget=True)) if forget else ()
        self.send(client.session, Submit(FN, named, client.gen, options, ((key, b"a", ()),)))
        if self.world.broker.tables.clients[client.session].wants.get(key) == client.gen:  # else it is rejected
            client.want(key)

    @rule(who=PICK, key=keys)
    def join(self, who: int, key: str) -> None:
        client = self.fenced(who)
        client.want(key)
        self.send(client.session, Want(client.gen, (key,)))

    @rule(who=PICK, pick=PICK, late=st.booleans())
    def release(self, who: int, pick: int, late: bool) -> None:
        client = self.client(who)
        if client.wants:
            key = list(client.wants)[pick % len(client.wants)]
            gen = client.wants[key]
            if late:
                self.send(client.session, Release(((key, gen - 1),)))
                return
            del client.wants[key]
            client.state.pop(key, None)
            self.send(client.session, Release(((key, gen),)))

    @rule(who=PICK, key=keys, force=st.booleans())
    def cancel(self, who: int, key: str, force: bool) -> None:
        self.send(self.client(who).session, Cancel((key,), force, ""))

    @rule(who=PICK, key=keys)
    def retry(self, who: int, key: str) -> None:
        self.send(self.client(who).session, Retry((key,)))

    @rule(target=keys, who=PICK, placed=st.booleans(), copies=st.integers(0, 2), n=PICK)
    def scatter(self, who: int, placed: bool, copies: int, n: int) -> str:
        client = self.fenced(who)
        key = f"d{n % 5}"
        self.send(client.session, Hold(client.gen, ((key, 0, 100, "array"),)))
        if self.world.broker.tables.clients[client.session].wants.get(key) != client.gen:
            return key  # rejected: somebody has submitted a task of that name
        client.holds.add(key)
        client.want(key)
        if placed:
            self.send(client.session, Place((key,), (), copies))
        return key

    @rule(who=PICK, key=keys, pick=PICK)
    def client_misses(self, who: int, key: str, pick: int) -> None:
        workers = list(self.workers)
        if workers:
            self.send(self.client(who).session, Missing(((key, (workers[pick % len(workers)],)),)))

    @rule(who=PICK)
    def client_leaves(self, who: int) -> None:
        client = self.client(who)
        del self.clients[client.session]
        self.world.leave(client.session, "lease over")
        self.new_client()

    # --- workers --------------------------------------------------------------------------------------

    @rule(pick=PICK, value=st.sampled_from((b"small", b"longer", None)))
    def complete(self, pick: int, value: bytes | None) -> None:
        if found := self.busy(pick):
            worker, key = found
            self.send(worker.session, worker.complete(key, value))

    @rule(pick=PICK)
    def err(self, pick: int) -> None:
        if found := self.busy(pick):
            worker, key = found
            attempt = worker.tasks[key][0]
            worker.forget(key)
            self.send(worker.session, Erred(((key, attempt, 10, b"error", "it failed"),)))

    @rule(pick=PICK)
    def start(self, pick: int) -> None:
        if found := self.busy(pick):
            found[0].started.add(found[1])

    @rule(pick=PICK)
    def secede(self, pick: int) -> None:
        if found := self.busy(pick):
            worker, key = found
            back = key in worker.seceded
            worker.seceded ^= {key}
            worker.started.add(key)
            self.send(worker.session, Seceded(key, worker.tasks[key][0], back))

    @rule(pick=PICK)
    def worker_misses(self, pick: int) -> None:
        if (found := self.busy(pick)) and (deps := found[0].tasks[found[1]][1]):
            key, _, holders, _ = deps[pick % len(deps)]
            self.send(found[0].session, Missing(((key, holders),)))

    @rule(pick=PICK)
    def fetch(self, pick: int) -> None:
        """A worker has fetched an input of a task and keeps the copy."""
        if (found := self.busy(pick)) and (deps := found[0].tasks[found[1]][1]):
            worker, key = found[0], deps[pick % len(deps)][0]
            task = self.world.broker.tables.tasks.get(key)
            if task is not None and task.holders and key not in worker.held and key not in worker.tasks:
                worker.held[key] = task.attempt
                self.send(worker.session, Held(((key, task.attempt, 10, "int"),)))

    @rule(pick=PICK)
    def replicate(self, pick: int) -> None:
        for worker in list(self.workers.values())[pick % 2 :]:
            for message in worker.copy():
                self.send(worker.session, message)

    @rule(pick=PICK, paused=st.booleans(), threads=st.integers(0, 3))
    def subscribe(self, pick: int, paused: bool, threads: int) -> None:
        if self.workers:
            session = list(self.workers)[pick % len(self.workers)]
            self.send(session, Subscribe(threads, ("gpu",), {"mem": 2.0}, paused))

    @rule(pick=PICK, ordered=st.booleans(), bye=st.booleans())
    def worker_dies(self, pick: int, ordered: bool, bye: bool) -> None:
        if self.workers:
            session = list(self.workers)[pick % len(self.workers)]
            worker = self.workers.pop(session)
            if bye:
                self.world.leave(session)
                return
            running = tuple((key, attempt) for key, (attempt, _) in worker.tasks.items() if key in worker.started)
            node = self.world.broker.tables.workers[session].node
            self.send(node, WorkerDied(session, -11, "crashed", running, ordered))

    @rule()
    def node_lost(self) -> None:
        gone = [w for w in self.workers if self.world.broker.tables.workers[w].node == "n-1"]
        self.world.leave("n-1", "lease over")
        for session in gone:
            del self.workers[session]
        self.world.join("n-1", "node")

    @rule(pick=PICK, key=keys)
    def nonsense(self, pick: int, key: str) -> None:
        """Late and wrong messages change nothing that matters."""
        if self.workers:
            session = list(self.workers)[pick % len(self.workers)]
            self.send(session, Done(((key, 7, -5, -1, b"wrong", "str"), ("no such key", 0, 0, 0, None, ""))))
            self.send(session, Erred((("no such key", 0, 0, b"", ""), (key, 3, 1, b"", ""))))
            self.send(session, Returned(((key, 3),)))
            self.send(session, Seceded(key, 3, False))
            self.send(session, Missing((("no such key", ("w-99",)), (key, ("w-99", session)))))
            self.send(self.client(pick).session, Release((("no such key", 1), (key, 0))))
            self.send(self.client(pick).session, Place(("no such key", key), ("nowhere",), 2))

    # --- time -----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.0, 0.01, 2.0)))
    def turn(self, seconds: float) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        deadline = self.world.broker.deadline()
        if deadline is not None and deadline <= self.world.now:
            self.world.broker.tick(self.world.now)
        self.deliver()

    def deliver(self) -> None:
        self.world.turn()
        inbox, self.world.inbox = self.world.inbox, {}
        for session, messages in inbox.items():
            peer = self.clients.get(session) or self.workers.get(session)
            for message in messages:
                for answer in peer.take(message) if peer else ():
                    self.send(session, answer)

    @precondition(lambda self: self.count > 60)
    @rule()
    def settle(self) -> None:
        """Let everything come to its end."""
        for session in list(self.workers):
            self.send(session, Subscribe(2, ("gpu",), {"mem": 4.0}, False))
        if len(self.workers) < 2:
            self.new_worker(5)
            self.send(list(self.workers)[-1], Subscribe(2, ("gpu",), {"mem": 4.0}, False))
        for _ in range(300):
            self.pass_time(0.01)
            for worker in list(self.workers.values()):
                for message in worker.copy():
                    self.send(worker.session, message)
                for key in list(worker.tasks):
                    self.send(worker.session, worker.complete(key, b"v" if len(key) % 2 else None))
            if not self.world.broker.busy() and not any(w.replicate for w in self.workers.values()):
                self.deliver()
                if not self.world.broker.busy() and not any(w.replicate for w in self.workers.values()):
                    break
        else:
            raise AssertionError(f"it never ends: {self.world.states()}")
        for _ in range(3):  # what clients may have heard by a lane they are told a little later
            self.pass_time(0.01)
        for client in self.clients.values():
            broker_wants = self.world.broker.tables.clients[client.session].wants
            assert client.wants.keys() == broker_wants.keys(), client.wants.keys() ^ broker_wants.keys()
            pending = [key for key, state in client.state.items() if state == "pending" and key not in client.holds]
            assert not pending, f"{client.session} still waits for {pending}: {self.world.states()}"

    def teardown(self) -> None:
        self.count = 1000
        self.settle()
        tables = self.world.broker.tables
        for client in self.clients.values():
            self.send(client.session, Release(tuple(client.wants.items())))
        self.deliver()
        for _ in range(3):  # what may wait a little for company
            self.pass_time(0.01)
        assert not tables.tasks and not tables.cache and not tables.cached and not tables.placing
        for worker in self.workers.values():
            assert not worker.held, f"{worker.session} still holds {worker.held}"
            assert not worker.tasks
        for worker in tables.workers.values():
            assert not worker.assigned and not worker.held and not worker.count and not worker.load
        for client in self.clients.values():
            assert not client.holds, f"{client.session} still holds {client.holds}"
            self.world.leave(client.session)
        assert not tables.functions and not tables.clients


TestBroker = BrokerStateful.TestCase
TestBroker.settings = settings(
    max_examples=40, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def random_life(seed: int, steps: int) -> None:
    """The same rules in a uniform mixture, which reaches deeper than minimal examples do."""
    rng = random.Random(seed)
    life = BrokerStateful()
    life.begin()
    keys = ["none"]

    def pick() -> int:
        return rng.randrange(10_001)

    def flip() -> bool:
        return rng.random() < 0.5

    actions: list[tuple[int, Callable[[], object]]] = [
        (6, lambda: keys.append(life.submit(pick(), rng.randint(1, 4), rng.choice(CHOICES),
                                            [pick() for _ in range(rng.randint(0, 3))], rng.choice((FN, SLOW))))),
        (4, lambda: keys.append(life.lone(pick(), rng.choice(("done first", "early", "late", "lost", "left"))))),
        (2, lambda: life.submit_again(pick(), rng.choice(keys[-30:]), flip(), flip())),
        (2, lambda: life.join(pick(), rng.choice(keys[-30:]))),
        (6, lambda: life.release(pick(), pick(), rng.random() < 0.1)),
        (1, lambda: life.cancel(pick(), rng.choice(keys[-30:]), flip())),
        (1, lambda: life.retry(pick(), rng.choice(keys[-30:]))),
        (2, lambda: keys.append(life.scatter(pick(), flip(), rng.randint(0, 2), pick()))),
        (1, lambda: life.client_misses(pick(), rng.choice(keys[-30:]), pick())),
        (1, lambda: life.client_leaves(pick()) if rng.random() < 0.3 else None),
        (12, lambda: life.complete(pick(), rng.choice((b"small", None)))),
        (2, lambda: life.err(pick())),
        (2, lambda: life.start(pick())),
        (2, lambda: life.secede(pick())),
        (2, lambda: life.worker_misses(pick())),
        (3, lambda: life.fetch(pick())),
        (3, lambda: life.replicate(pick())),
        (1, lambda: life.subscribe(pick(), flip(), rng.randint(0, 3)) if rng.random() < 0.3 else None),
        (1, lambda: life.worker_dies(pick(), flip(), flip())),
        (2, lambda: life.new_worker(pick())),
        (1, lambda: life.node_lost() if rng.random() < 0.2 else None),
        (1, lambda: life.nonsense(pick(), rng.choice(keys[-30:]))),
        (14, lambda: life.turn(rng.choice((0.0, 0.01, 2.0)))),
        (1, lambda: life.settle() if rng.random() < 0.2 else None),
    ]  # fmt: skip
    for _, action in rng.choices(actions, weights=[weight for weight, _ in actions], k=steps):
        action()
    life.teardown()


@pytest.mark.parametrize("seed", range(8))
def test_random_lives(seed: int) -> None:
    random_life(seed, 300)
