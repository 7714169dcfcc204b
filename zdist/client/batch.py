"""Calls that go to the cluster together: one wake of the driver for many, named by what they compute."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

from zdist import serialize
from zdist.client.future import Future, future_of, origins, pickling_for
from zdist.client.submitting import Held, Submitting, payload_of
from zdist.core.entry import Work
from zdist.serialize.imports import importable
from zdist.serialize.values import by_value_modules

__all__ = ["Batch", "Call", "is_global"]

CHUNK: Final = 256  # calls between two wakes of the driver
LABEL: Final = 200  # characters of a label that stand in a key


class Call(NamedTuple):
    """A function and its arguments, which may hold futures anywhere inside. ``label``: what its key begins with.

    ``options``: as `submitting.options_of` makes them. ``title``: the name under which people and the broker, which
    learns how long functions take, know it; "" for the function's own.
    """

    label: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: tuple[Any, ...] = ()
    title: str = ""


class Batch:
    """Context manager: within the block calls are added one by one, and leave while others are still being added.

    A call's key is its label and a digest of function and arguments: equal calls that are alive are one.
    """

    def __init__(self, client: Submitting) -> None:
        self.client = client
        self.count = 0
        self._held = Held(client, content=True)
        self._works: dict[tuple[int, str, tuple[Any, ...]], tuple[Any, Work]] = {}  # with the function: its id stays

    def __enter__(self) -> Self:
        self._driver = self.client._usable()
        with self.client._lock:
            while self.client._ledger.dropped:  # what nobody holds any more is not joined
                self.client._ledger._drain()
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.release()
        self._driver.wake()

    def add(self, call: Call) -> Future:
        """Submit one call. Raises SerializationError, or ValueError for a future of another cluster."""
        client = self.client
        work = self._work(call)
        what = f"arguments of {call.label}"
        with pickling_for(client):
            payload, deps = serialize.dumps_args(call.args, call.kwargs, self._held.find, what=what)
            kept = client._foreign() if origins.foreign is not None else None
        digest = hashlib.blake2b(payload, digest_size=16, key=work.fn).hexdigest()
        row = (f"{call.label[:LABEL]}-{digest}", payload_of(payload), deps)
        with client._lock:
            entry = client._ledger.submit(work, (row,))[0]
        del kept  # pinned
        self.count += 1
        if not self.count % CHUNK:
            self._driver.wake()
        return future_of(entry, client)  # type: ignore[arg-type]

    def _work(self, call: Call) -> Work:
        """What calls of this function share; one object for all of them, so that their rows merge."""
        place = (id(call.func), call.title, call.options)
        known = self._works.get(place)
        if known is None:
            blob = serialize.dumps_function(call.func, call.title)
            work = Work(blob.digest, blob.name, payload_of(blob.data), call.options, True)
            known = self._works[place] = (call.func, work)
        return known[1]


def is_global(func: Any) -> bool:
    """Whether a function or class travels as its name."""
    return importable(func, by_value_modules())
