"""A driver without sockets: orders are put in by the test, what the worker says is collected."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from zdist.core.machine import CONTROL
from zdist.core.worker import Freeze, RunCall, Share, WorkerMachine
from zdist.errors import ClusterClosed
from zdist.protocol import messages as m
from zdist.serialize import dumps_args, dumps_function
from zdist.worker.executor import Executor
from zdist.worker.slots import Slots

DEADLINE = 20.0


class FakeDriver:
    """Hands messages to the machine and takes what it sends; ``drive`` lets one thread at a time turn the loop."""

    def __init__(self, machine: WorkerMachine) -> None:
        self.machine = machine
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.now = time.monotonic
        self.said: list[m.Message] = []
        self.executor: Executor | None = None
        self.driven_by: set[str] = set()
        self.hand_overs = 0
        self.drivers = 0  # threads in `drive`
        self.closed = False

    def turn(self) -> None:
        with self.lock:
            self.machine.turn(self.now())
            commands, self.machine.commands = self.machine.commands, []
            for command in commands:
                assert self.executor is not None
                if type(command) in (Freeze, Share):
                    self.executor.freeze(command)
                elif type(command) is RunCall:
                    self.executor.call(command)
            for messages in self.machine.take().values():
                self.said += messages
            self.machine.check()
            self.changed.notify_all()

    def wake(self) -> None:
        self.turn()

    def hand_over(self) -> None:
        self.hand_overs += 1
        self.turn()

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        self.driven_by.add(threading.current_thread().name)
        with self.lock:
            if not self.drivers:  # as with Loop: who comes while another drives only waits
                self.turn()
            self.drivers += 1
            self.changed.notify_all()
            try:
                while timeout is None and not until():
                    if self.closed:
                        raise ClusterClosed("closed")
                    self.changed.wait()
                return until()
            finally:
                self.drivers -= 1

    def receive(self, *messages: m.Message) -> None:
        with self.lock:
            for message in messages:
                self.machine.handle(CONTROL, message, self.now())
            self.turn()

    def wait(self, kind: type, count: int = 1) -> list[Any]:
        """The rows (or for messages without rows, themselves) of this kind, once there are ``count`` of them."""
        until = time.monotonic() + DEADLINE
        with self.lock:
            while True:
                found: list[Any] = []
                for message in self.said:
                    if type(message) is kind:
                        found += getattr(message, "rows", [message])
                if len(found) >= count:
                    return found
                assert self.changed.wait(until - time.monotonic()), f"{len(found)} of {count} {kind}: {self.said}"

    def wait_for(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + DEADLINE
        with self.lock:
            while not condition():
                assert self.changed.wait(until - time.monotonic()), "it did not come true"


class Pool:
    """An executor over a fake driver, as tests use it; also the worker that its tasks see."""

    name = "one"
    address = "tcp://127.0.0.1:1234"
    broker_address = "tcp://127.0.0.1:1"
    token = "secret"
    session = "w-1"

    def __init__(self, threads: int = 1, slot: str | None = None, memory: Any = None) -> None:
        self.memory = memory
        shared = 1000 if memory is not None else 0
        self.machine = WorkerMachine(self.session, self.token, name=self.name, threads=threads, shared=shared)
        self.machine.welcomed(m.Welcome(1, 0, True, {"lease": 1e9}), time.monotonic())
        self.driver = FakeDriver(self.machine)
        self.executor = self.driver.executor = Executor(self.machine, self.driver, self, threads, Slots(slot, threads))

    def end(self, reason: str, code: int) -> None:
        self.ended = (reason, code)

    def __enter__(self) -> Pool:
        self.executor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.executor.stop(DEADLINE)
        assert not self.executor.alive

    def submit(self, key: str, function: Callable[..., Any], *args: Any, deps: Any = (), **options: Any) -> None:
        """Order a task. ``deps`` as in Run; arguments that stand for keys are ``Ref`` objects."""
        blob = dumps_function(function)
        row = (
            key,
            options.get("attempt", 1),
            options.get("priority", 0),
            options.get("deliver", True),
            dumps_args(args, {}, None)[0],
            tuple(deps),
        )
        self.driver.receive(m.Define(blob.digest, blob.name, blob.data), m.Run(blob.digest, (row,)))

    def done(self, count: int = 1) -> dict[str, Any]:
        """Rows of Done by key."""
        return {row[0]: row for row in self.driver.wait(m.Done, count)}
