"""Classes and functions of the tests of actors, in a module of their own so that workers load nothing else."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from typing import Any

from zdist import as_completed, get_client, get_worker


class Counter:
    kind = "counter"
    mark = ""

    def __init__(self, start: int = 0, mark: str = "") -> None:
        if start < 0:
            raise ValueError("negative")
        self.n = start
        self.seen: list[Any] = []
        self.mark = mark
        self._hidden = 1

    def __del__(self) -> None:
        if self.mark:
            with open(self.mark, "w"):
                pass

    @property
    def double(self) -> int:
        return 2 * self.n

    @property
    def broken(self) -> int:
        raise KeyError("no such thing")

    @staticmethod
    def plus(a: int, b: int = 1) -> int:
        return a + b

    @classmethod
    def process(cls) -> tuple[str, int]:
        return cls.kind, os.getpid()

    @functools.singledispatchmethod
    def take(self, item: Any) -> int:
        return self.add()

    @take.register
    def _(self, item: int) -> int:
        return self.add(item)

    def add(self, by: int = 1) -> int:
        self.n += by
        return self.n

    add_ten = functools.partialmethod(add, 10)

    def note(self, item: Any) -> int:
        self.seen.append(item)
        return len(self.seen)

    def notes(self) -> list[Any]:
        return self.seen

    def fail(self, text: str) -> None:
        raise ZeroDivisionError(text)

    def stop(self) -> None:
        raise SystemExit(3)

    def pid(self) -> int:
        return os.getpid()

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wait_at(self, gate: Any) -> Any:
        return gate.pass_through("actor")

    def hold(self, value: Any) -> None:
        self.held = value

    def large(self, nbytes: int) -> bytes:
        return b"x" * nbytes

    def unpicklable(self) -> Any:
        return threading.Lock()

    def context(self) -> tuple[str, int]:
        future = get_client().submit(pow, 2, 10, pure=False)
        return get_worker().name, future.result()

    def call(self, other: Any) -> int:
        return other.add().result()

    def start(self, x: int) -> Any:
        return get_client().submit(pow, x, 2, pure=False)

    def result_of(self, future: Any) -> Any:
        return future.result()


class Owner:
    """The only one that holds another actor."""

    def __init__(self, owned: Any) -> None:
        self.owned = owned

    def add(self) -> int:
        return self.owned.add().result()


class Meeting:
    """Its async methods wait for one another, on one thread."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.order: list[str] = []

    async def wait(self) -> list[str]:
        self.order.append("wait")
        await self.event.wait()
        self.order.append("woken")
        return self.order

    async def wake(self) -> None:
        self.order.append("wake")
        self.event.set()

    def seen(self) -> list[str]:
        return self.order

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError("later")

    async def ask(self, other: Any) -> Any:
        return await other.add(), await get_client().submit(pow, 2, 3, pure=False)


def use(actor: Any, times: int) -> list[int]:
    return [future.result() for future in [actor.add() for _ in range(times)]]


def pass_on(actor: Any) -> Any:
    return {"actor": [actor]}


def start_one(start: int) -> Any:
    return get_client().submit(Counter, start, actor=True).result()


async def later(x: int) -> int:
    await asyncio.sleep(0.001)
    return x + 1


async def fail_later() -> None:
    await asyncio.sleep(0.001)
    raise ZeroDivisionError("in a coroutine")


async def asks_for_more(x: int) -> Any:
    """Waits for tasks which need the thread that it runs on."""
    client = get_client()
    here = get_worker().name
    parts = [client.submit(later, x + i, workers=[here], pure=False) for i in range(3)]
    found = [here, *await asyncio.gather(*parts)]
    found += [await future async for future in as_completed([client.submit(later, x, workers=[here], pure=False)])]
    return found
