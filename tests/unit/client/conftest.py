"""A client over a fake driver, for tests without sockets."""

from __future__ import annotations

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
