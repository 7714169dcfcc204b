"""A driver without sockets, and a broker that answers a client's ledger at once: for tests of the client alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from zdist import serialize
from zdist.core.machine import CONTROL
from zdist.errors import ClusterClosed
from zdist.protocol import messages as m


class FakeBroker:
    """Runs each task when it is submitted, in this thread; functions and arguments travel as they would."""

    def __init__(self, cluster: str = "fake") -> None:
        self.cluster = cluster
        self.manual = False  # keep tasks waiting until `run_all`
        self.waiting: list[tuple[bytes, Any]] = []
        self.functions: dict[bytes, bytes] = {}
        self.values: dict[str, bytes] = {}
        self.failed: dict[str, tuple[bytes, str, str]] = {}
        self.said: list[Any] = []  # every message of the client
        self.news: list[Any] = []
        self.answers: dict[str, Any] = {}  # to Ask; a callable gets the arguments
        self.refusal: m.Refused | None = None
        self.welcomes = True

    def take_in(self, message: Any) -> None:
        self.said.append(message)
        kind = type(message)
        if kind is m.Define:
            self.functions[message.fn] = bytes(getattr(message.blob, "data", message.blob))
        elif kind is m.Submit:
            self.waiting += [(message.fn, row) for row in message.rows]
            if not self.manual:
                self.run_all()
        elif kind is m.Want:
            self.news += [self.about(key) for key in message.keys]
        elif kind is m.Place:
            self.news.append(m.Finished(tuple((key, 0, 1, None, ("w-1",), "x") for key in message.keys)))
        elif kind is m.Ask:
            answer = self.answers.get(message.what)
            if message.what == "fence" or answer is not None:
                answer = answer(message.args) if callable(answer) else answer
                self.news.append(m.Answer(message.req, True, answer))
        elif kind is m.Call:
            self.news.append(m.Answer(message.req, True, self.answers["run"](message.payload)))

    def go(self) -> None:
        """Keep nothing waiting any more."""
        self.manual = False
        self.run_all()

    def run_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for fn, (key, payload, deps) in waiting:
            bad = next((dep for dep in deps if dep in self.failed), None)
            if bad is not None:
                self.failed[key] = self.failed[bad]
            else:
                self.run(fn, key, bytes(getattr(payload, "data", payload)))
            self.news.append(self.about(key))

    def run(self, fn: bytes, key: str, payload: bytes) -> None:
        try:
            function = serialize.loads_function(self.functions[fn], fn)
            args, kwargs = serialize.loads_args(payload, lambda dep: serialize.loads(self.values[dep]))
            self.values[key] = serialize.dumps(function(*args, **kwargs)).tobytes()
        except Exception as exc:
            self.failed[key] = (serialize.dumps_error(exc), key, repr(exc))

    def about(self, key: str) -> Any:
        if key in self.failed:
            return m.Failed(((key, *self.failed[key]),))
        if key in self.values:
            return m.Finished(((key, 1, len(self.values[key]), self.values[key], ("w-1",), "object"),))
        return m.Cancelled(((key, "nobody has it", 0),))


class FakeDriver:
    """Stands in for zdist.transport.driver.Driver. ``broker`` is set by the test, one for all drivers made."""

    broker: FakeBroker
    made: list[FakeDriver]

    away = ""

    def __init__(self, machine: Any, *, session: str, token: Any, control: str, name: str, execute: Any) -> None:
        self.machine = machine
        self.token = token
        self.control = control
        self.execute = execute
        self.lock = threading.RLock()
        self.now = time.monotonic
        self.closed = False
        self.interrupt = False
        type(self).made.append(self)

    def retire(self) -> None:
        pass

    def start(self) -> None:
        broker = self.broker
        if broker.refusal is not None:
            self.machine.refused(broker.refusal.code, broker.refusal.text, 0.0)
        elif broker.welcomes:
            self.machine.welcomed(m.Welcome(1, 0, True, {"cluster": broker.cluster}), 0.0)
        self.turn()

    def turn(self) -> None:
        """One turn: everything that is queued goes to the broker, all its news come back."""
        with self.lock:
            machine, broker = self.machine, self.broker
            machine.turn(time.monotonic())
            for route, messages in machine.take().items():
                assert route == CONTROL
                for message in messages:
                    broker.take_in(message)
            news, broker.news = broker.news, []
            for message in news:
                machine.handle(CONTROL, message, time.monotonic())
            machine.turn(time.monotonic())
            commands, machine.commands[:] = machine.commands[:], []
            for command in commands:
                self.execute(command)
            machine.check()

    def wake(self) -> None:
        pass

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        if self.closed:
            raise ClusterClosed("closed")
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        for _ in range(50):
            self.turn()
            if until():
                return True
        assert timeout is not None, "nothing comes any more, and nobody would ever wake up"
        return False

    def close(self, timeout: float = 1.0) -> None:
        if not self.closed:
            self.turn()
            self.closed = True
