"""A broker for tests of the ledger: keeps what the protocol obliges it to, runs tasks when told to, sends news late."""

from __future__ import annotations

from collections import deque
from typing import Any

from zdist import limits
from zdist.core.ledger import UNKNOWN, Ledger
from zdist.core.machine import CONTROL, Route
from zdist.protocol import messages as m
from zdist.protocol.fields import content_attempt

WORKER = "w-1"
DATA = Route("tcp://one")
BLOCK = 1 << limits.LANE_BITS


class Task:
    def __init__(self, fn: bytes, row: Any) -> None:
        self.fn = fn
        self.row = row
        self.gen = 0  # 0: not wanted
        self.state = "waiting"  # "finished" | "failed"
        self.inline = True
        self.attempt = 0


class ModelBroker:
    """One client's broker. Messages travel by ``up`` and ``down``, first in first out, as slowly as the test likes."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.tasks: dict[str, Task] = {}
        self.held: dict[str, int] = {}  # client-held data: generation
        self.functions: set[bytes] = set()
        self.up: deque[Any] = deque()
        self.down: deque[Any] = deque()
        self.cancelled: set[str] = set()
        self.lane_: m.Lane | None = None
        self.sure: set[str] = set()  # tasks that have ended well, though the broker does not know yet
        self.epoch = 0
        self.attempts = 0
        self.values: set[str] = set()
        self.early: deque[m.RunEarly] = deque()  # early copies under way to the worker
        self.copies = 0  # early copies of results that the ledger was given
        self.blocks = 0
        self.restart()

    def restart(self) -> None:
        """A new broker that knows nothing; the session layer drops what was under way."""
        self.tasks.clear()
        self.held.clear()
        self.functions.clear()
        self.up.clear()
        self.down.clear()
        self.early.clear()
        self.lane_ = None
        self.epoch += 1
        self.ledger.out.pop(CONTROL, None)
        info = {"cluster": "model", "window_tasks": 5, "window_bytes": 1000}
        self.ledger.welcomed(m.Welcome(self.epoch, 0, True, info), 0.0)

    # --- transport ---------------------------------------------------------------------------------

    def flush(self, now: float = 0.0) -> None:
        """What the driver does at the end of a turn."""
        deadline = self.ledger.deadline()
        if deadline is not None and deadline <= 0:
            self.ledger.tick(0.0)
        self.ledger.turn(now)
        out = self.ledger.take()
        self.up.extend(out.pop(CONTROL, []))
        for message in out.pop(DATA, []):
            if isinstance(message, m.Probe):
                self.ledger.handle(DATA, m.ProbeReply(message.req, WORKER), 0.0)
            elif isinstance(message, m.RunEarly):
                self.early.append(message)

    def run_early(self, lost: bool) -> None:
        """The worker gets an early copy, and the client the early copy of its result."""
        if self.early:
            _, fn, attempt, key, _, _ = self.early.popleft()
            if lost or key in self.cancelled or (key in self.tasks and self.tasks[key].state != "waiting"):
                return
            self.sure.add(key)
            entry = self.ledger.entries.get(key)
            pending = entry is not None and entry.status == "pending" and entry.gen and key not in self.ledger.fences
            self.ledger.handle(DATA, m.DoneEarly(key, attempt, 10, f"{key}:{fn.decode()}".encode(), "int", True), 0.0)
            if pending and self.ledger.early is None:
                assert entry is not None
                self.copies += entry.status == "finished"
            self.flush()

    def lane(self, message: m.Lane) -> None:
        lane = self.lane_
        if message.first:
            assert lane is not None and lane.first == message.first, "a lane is given up once"
            self.lane_ = None
        elif lane is None:
            self.blocks += 1
            first = (self.epoch << 40) + self.blocks * BLOCK
            self.lane_ = m.Lane(WORKER, first, first + 3)
            self.down.append(m.Members(((WORKER, DATA.channel, "one", "host", "n-1"),)))
            self.down.append(self.lane_)

    def close_lane(self) -> None:
        """The broker has other use for the worker."""
        if self.lane_ is not None and self.lane_.session:
            self.lane_ = self.lane_._replace(session="")
            self.down.append(m.Lane("", self.lane_.first, 0))

    def submitearly(self, message: m.SubmitEarly) -> None:
        for gen, attempt, key, args in message.rows:
            lane = self.lane_
            assert lane is not None and lane.first <= attempt < lane.until, "the attempt is not the client's"
            assert key not in self.tasks
            if lane.session and attempt + 1 == lane.until and lane.until < lane.first + 9:
                self.lane_ = lane = lane._replace(until=lane.until + 3)
                self.down.append(lane)
            self.submit(m.Submit(message.fn, True, gen, (), ((key, args, ()),)))

    def read(self) -> None:
        """The broker takes in one message."""
        if self.up:
            getattr(self, type(self.up[0]).__name__.lower())(self.up.popleft())

    def news(self) -> None:
        """The client takes in one message."""
        if self.down:
            self.ledger.handle(CONTROL, self.down.popleft(), 0.0)
            self.flush()

    def settle(self) -> None:
        """Until nothing is under way and nothing more can be computed."""
        now = 1.0
        self.flush()
        while True:
            while self.up or self.down or self.ledger.notes or self.ledger.resolved:
                if self.ledger.notes:
                    now = max(now, self.ledger.notes_at)
                self.flush(now)
                self.read()
                self.news()
            if self.ledger.again:  # the time to ask again for unknown keys has come
                now += 10.0
                self.ledger.tick(now)
                self.flush()
                if self.up:
                    continue
            ready = [key for key, task in self.tasks.items() if self.can_run(task)]
            if not ready:
                return
            self.finish(ready[0], inline=True)

    # --- what clients say --------------------------------------------------------------------------

    def define(self, message: m.Define) -> None:
        assert message.fn not in self.functions, "a function is defined once"
        self.functions.add(message.fn)

    def submit(self, message: m.Submit) -> None:
        assert message.fn in self.functions
        assert len({row[0] for row in message.rows}) == len(message.rows)
        for row in message.rows:
            key, _, deps = row
            task = self.tasks.get(key)
            if task is None and key in self.values:
                task = self.tasks[key] = Task(message.fn, row)
                self.attempts += 1
                task.state, task.attempt = "finished", self.attempts
            elif task is None:
                for dep in deps:
                    if dep not in self.tasks and dep not in self.held:
                        assert dep in self.cancelled, f"{dep} was released before {key} was submitted"
                        self.cancelled.add(key)
                        self.down.append(m.Cancelled(((key, f"depends on {dep}, which nobody holds", message.gen),)))
                        break
                else:
                    task = self.tasks[key] = Task(message.fn, row)
                    if any(dep in self.tasks and self.tasks[dep].state == "failed" for dep in deps):
                        task.state = "failed"
            elif (task.fn, task.row) != (message.fn, row):
                assert not message.named
                self.down.append(m.Rejected(((key, "is something else"),)))
                task = None
            if task is not None:
                assert message.gen > task.gen
                task.gen = message.gen
                self.tell(key, task)
        self.values = set()

    def want(self, message: m.Want) -> None:
        for key in message.keys:
            task = self.tasks.get(key)
            if key in self.held:
                self.held[key] = message.gen
                self.down.append(m.Finished(((key, content_attempt(key), 1, None, (WORKER,), "bytes"),)))
            elif task is None:
                self.cancelled.add(key)  # placed under a former broker, of whose workers this one knows nothing
                self.down.append(m.Cancelled(((key, UNKNOWN, message.gen),)))
            else:
                task.gen = message.gen
                self.tell(key, task)

    def hold(self, message: m.Hold) -> None:
        for key, *_ in message.rows:
            self.held[key] = message.gen

    def place(self, message: m.Place) -> None:
        """Done at once: workers have it, and the client does not hold it any more."""
        for key in message.keys:
            if self.held.get(key):
                self.down.append(m.Finished(((key, content_attempt(key), 1, None, (WORKER,), "bytes"),)))
                self.down.append(m.Drop((key,)))

    def claim(self, message: m.Claim) -> None:
        """Nobody holds anything from earlier times, but values come along."""
        self.values = {row[0] for row in message.values}

    def release(self, message: m.Release) -> None:
        for key, gen in message.rows:
            task = self.tasks.get(key)
            if task is not None and task.gen == gen:
                task.gen = 0
            if self.held.get(key) == gen:
                self.held[key] = 0
        self.sweep()

    def cancel(self, message: m.Cancel) -> None:
        for key in message.keys:
            self.cancel_tree(key, message.reason)

    def cancel_tree(self, key: str, reason: str) -> None:
        self.cancelled.add(key)
        task = self.tasks.pop(key, None)
        gen = self.held.pop(key, None) if task is None else task.gen
        if gen is None:
            return
        if task is None:
            self.down.append(m.Drop((key,)))
        if task is None or task.gen:
            self.down.append(m.Cancelled(((key, reason, gen),)))
        for other in [k for k, t in self.tasks.items() if key in t.row[2]]:
            self.cancel_tree(other, reason)

    def retry(self, message: m.Retry) -> None:
        for key in message.keys:
            task = self.tasks.get(key)
            if task is not None and task.state == "failed":
                for dep in task.row[2]:
                    self.retry(m.Retry((dep,)))
                task.state = "waiting"
                if task.gen:
                    self.down.append(m.Lost((key,)))

    def ask(self, message: m.Ask) -> None:
        self.down.append(m.Answer(message.req, True, None))

    def missing(self, message: m.Missing) -> None:
        for key, _ in message.rows:
            self.lose(key)

    # --- what happens in the cluster -----------------------------------------------------------------

    def can_run(self, task: Task) -> bool:
        return task.state == "waiting" and all(
            dep in self.held or self.tasks[dep].state == "finished" for dep in task.row[2]
        )

    def finish(self, key: str, inline: bool) -> None:
        task = self.tasks[key]
        self.attempts += 1
        task.state, task.inline, task.attempt = "finished", inline, self.attempts
        self.tell(key, task)
        self.sweep()

    def fail(self, key: str, origin: str = "") -> None:
        task = self.tasks[key]
        task.state = "failed"
        if task.gen:
            self.down.append(m.Failed(((key, b"pickle", origin or key, "text"),)))
        for other, dependent in list(self.tasks.items()):
            if key in dependent.row[2] and dependent.state != "failed":
                self.fail(other, origin or key)

    def lose(self, key: str) -> None:
        task = self.tasks.get(key)
        if task is not None and task.state == "finished" and not task.inline:
            task.state = "waiting"
            if task.gen:
                self.down.append(m.Lost((key,)))

    def tell(self, key: str, task: Task) -> None:
        if not task.gen:
            return
        if task.state == "finished":
            value = f"{key}:{task.fn.decode()}".encode() if task.inline else None
            holders = () if task.inline else (WORKER,)
            self.down.append(m.Finished(((key, task.attempt, 10, value, holders, "int"),)))
        elif task.state == "failed":
            self.down.append(m.Failed(((key, b"pickle", key, "text"),)))

    def sweep(self) -> None:
        """Forget what nobody wants and no task depends on."""
        while True:
            needed = {dep for task in self.tasks.values() for dep in task.row[2]}
            gone = [key for key, task in self.tasks.items() if not task.gen and key not in needed]
            data = [key for key, gen in self.held.items() if not gen and key not in needed]
            if not gone and not data:
                return
            for key in gone:
                del self.tasks[key]
            for key in data:
                del self.held[key]
                self.down.append(m.Drop((key,)))
