"""A client over a fake driver, for tests without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_driver import FakeBroker, FakeDriver

from zdist import context
from zdist.client import client as module
from zdist.client.client import Client

ADDRESS = "tcp://127.0.0.1:7777"


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    """The broker that the next clients reach."""
    broker = FakeBroker()
    monkeypatch.setattr(FakeDriver, "broker", broker, raising=False)
    monkeypatch.setattr(FakeDriver, "made", [], raising=False)
    monkeypatch.setattr(module, "Driver", FakeDriver)
    monkeypatch.setattr(module, "TokenSource", lambda address, token_file: lambda: "secret")
    return broker


@pytest.fixture
def connect(broker: FakeBroker) -> Iterator[Callable[..., Client]]:
    """Make clients; they are closed after the test."""
    made: list[Client] = []

    def connect(**options: Any) -> Client:
        made.append(Client(ADDRESS, **options))
        return made[-1]

    yield connect
    for client in made:
        if not client.asynchronous:
            client.close()
    assert context.find_client() is None


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    return connect()


@pytest.fixture
def run_async(connect: Callable[..., Client]) -> Callable[[Callable[[Client], Any]], None]:
    """Run a coroutine with an asynchronous client whose driver takes a turn whenever the loop is idle."""

    async def whole(body: Callable[[Client], Any]) -> None:
        async with connect(asynchronous=True) as client:

            async def turns() -> None:
                while True:
                    FakeDriver.made[0].turn()
                    await asyncio.sleep(0)

            turning = asyncio.create_task(turns())
            try:
                async with asyncio.timeout(20):
                    await body(client)
            finally:
                turning.cancel()

    return lambda body: asyncio.run(whole(body))
