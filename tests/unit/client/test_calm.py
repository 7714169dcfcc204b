"""Garbage collection pauses while a large gather is under way, for a moment at most."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zdist import Client
from zdist.client import delivery
from zdist.client.delivery import CALM, MANY, Calm


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    assert gc.isenabled()
    yield
    assert gc.isenabled()


def test_only_for_many_records_and_only_if_nobody_has_switched_it_off_before() -> None:
    few = Calm()
    few.begin(MANY - 1)
    assert gc.isenabled()
    few.end()
    gc.disable()
    try:
        off = Calm()
        off.begin(MANY)
        off.end()
        assert not gc.isenabled()
    finally:
        gc.enable()
    many = Calm()
    many.begin(MANY)
    assert not gc.isenabled()
    many.end()
    assert gc.isenabled()
    many.end()


@pytest.mark.parametrize("deadline", [None, 0.5, 3600.0])
def test_it_is_over_when_the_moment_is(deadline: float | None) -> None:
    begin = time.monotonic()
    calm = Calm()
    calm.begin(MANY)
    signal: Any = object()
    until = None if deadline is None else begin + deadline
    waiting = calm.wait(signal, until)
    first = waiting.send(None)
    assert first[0] is signal and begin < first[1] <= time.monotonic() + CALM
    assert until is None or first[1] <= until
    assert not gc.isenabled()
    assert waiting.send(False) == (signal, until)  # nothing came: the rest of the wait is an ordinary one
    assert gc.isenabled()
    with pytest.raises(StopIteration) as end:
        waiting.send(True)
    assert end.value.value is True


@pytest.mark.parametrize("fails", [False, True])
def test_a_large_gather_ends_it(client: Client, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    seen: list[bool] = []

    def noting(load: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            seen.append(gc.isenabled())
            if fails:
                raise KeyboardInterrupt
            return load(*args)

        return noted

    monkeypatch.setattr(delivery.Delivery, "_load", noting(delivery.Delivery._load))
    futures = client.map(abs, range(MANY), pure=False)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            client.gather(futures)
    else:
        assert client.gather(futures) == list(range(MANY))
    assert seen and not any(seen)
