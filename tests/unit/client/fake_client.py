"""A client without a cluster, for tests of what is built on top: its futures are finished by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from zdist.client import containers, tasks, waiting
from zdist.client.arrivals import Arrivals
from zdist.errors import CancelledError


class FakeFuture:
    """What Future offers to those who wait and gather."""

    def __init__(self, client: FakeClient, key: str) -> None:
        self.client = client
        self.key = key
        self._entry = client.entries.setdefault(key, object())
        self.status = "pending"
        self.value: Any = None

    def done(self) -> bool:
        return self.status != "pending"

    def cancelled(self) -> bool:
        return self.status == "cancelled"


class FakeClient:
    asynchronous = False
    address = "tcp://fake"

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.watchers: list[tuple[FakeFuture, Callable[[FakeFuture], None]]] = []
        self.forgotten: list[str] = []
        self.blocks = 0
        self.entries: dict[str, object] = {}  # one for all futures of a key

    def hindrance(self) -> str:
        return ""

    def future(self, key: str, value: Any = None, status: str = "pending") -> FakeFuture:
        future = FakeFuture(self, key)
        if status != "pending":
            self.settle(future, value, status)
        return future

    def settle(self, future: FakeFuture, value: Any = None, status: str = "finished") -> None:
        with self.condition:
            future.value, future.status = value, status
            told = [notify for watched, notify in self.watchers if watched is future]
            self.watchers = [pair for pair in self.watchers if pair[0] is not future]
            self.condition.notify_all()
        for notify in told:
            notify(future)

    # --- what the tested code uses ------------------------------------------------------------------

    def watch(self, futures: Iterable[FakeFuture], notify: Callable[[FakeFuture], None]) -> None:
        for future in futures:
            with self.condition:
                done = future.done()
                if not done:
                    self.watchers.append((future, notify))
            if done:
                notify(future)

    def unwatch(self, futures: Iterable[FakeFuture], notify: Callable[[FakeFuture], None]) -> None:
        gone = [(future, notify) for future in futures]
        with self.condition:
            self.watchers = [pair for pair in self.watchers if pair not in gone]

    def block(self, until: Callable[[], bool], timeout: float | None) -> bool:
        self.blocks += 1
        end = None if timeout is None else time.monotonic() + timeout
        while not until():
            if end is not None and time.monotonic() >= end:
                return False
            with self.condition:
                self.condition.wait(0.01)
        return True

    def forget(self, futures: Iterable[FakeFuture]) -> None:
        self.forgotten.extend(future.key for future in futures)

    def gather(self, obj: Any, errors: str = "raise", direct: bool | None = None, asynchronous: bool = False) -> Any:
        if asynchronous:
            return self._gather_async(obj, errors)
        futures, skeleton = containers.flatten(obj)
        self.block(lambda: all(future.done() for future in futures), 10)
        return self._put_together(futures, skeleton, errors)

    def outcomes(self, futures: list[Any], asynchronous: bool) -> Any:
        async def later() -> Any:
            return found

        values = [future.value for future in futures]
        found = values, [None if f.status == "finished" else v for f, v in zip(futures, values, strict=True)]
        return later() if asynchronous else found

    async def _gather_async(self, obj: Any, errors: str) -> Any:
        futures, skeleton = containers.flatten(obj)
        arrivals = Arrivals()
        arrivals.watch(futures)
        await arrivals.wait_async(lambda: not arrivals.pending, time.monotonic() + 10)
        return self._put_together(futures, skeleton, errors)

    def _put_together(self, futures: list[Any], skeleton: Any, errors: str) -> Any:
        failed = [place for place, future in enumerate(futures) if future.status != "finished"]
        if failed and errors == "raise":
            raise futures[failed[0]].value
        return containers.rebuild(skeleton, [f.value for f in futures], failed if errors == "skip" else ())

    def cancel(self, future: FakeFuture) -> None:
        self.settle(future, CancelledError(f"{future.key} was cancelled"), "cancelled")


def use_fakes(monkeypatch: Any) -> FakeClient:
    """Have the modules take FakeFuture for Future."""
    for module in (containers, tasks, waiting):
        monkeypatch.setattr(module, "Future", FakeFuture)
    return FakeClient()
