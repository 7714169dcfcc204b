"""Queues, variables and events that clients and tasks share. Semantics: dask.distributed 2021.10."""

from __future__ import annotations

from typing import Any

from zdist.client.sharing import Named
from zdist.client.waiting import seconds

__all__ = ["Event", "Queue", "Variable"]


class Queue(Named):
    """A queue that all clients and tasks of a cluster share, first in, first out.

    Values are small (1 MiB pickled): share futures of large ones. Futures in a queue stay alive while they are in it.
    What was put is taken exactly once, also if the broker is killed and started again meanwhile. As in dask.distributed
    2021.10; values need not be futures or msgpack data.

    Parameters:
        name: which queue; default: a new one.
        client: default: the current one.
        maxsize: how many items ``put`` of this object, also where it is pickled to, lets it have; 0: any number. It is
            not the queue's: who opens it by its name says it again.

    Raises ValueError for a name or size that cannot be, or without a client.
    """

    kind = "queue"

    def __init__(self, name: str | None = None, client: Any = None, maxsize: int = 0) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int) or maxsize < 0:
            raise ValueError(f"maxsize={maxsize!r} is not a number of items of at least 0 (0: any number)")
        super().__init__(name, client)
        self.maxsize = maxsize

    def put(self, value: Any, timeout: float | str | None = None) -> Any:
        """Put a value at the end; waits while the queue is full. Raises TimeoutError after ``timeout`` seconds,
        SerializationError, and ValueError for a value that is too large."""
        return self._sync(self._put(value, seconds(timeout)))

    async def _put(self, value: Any, timeout: float | None) -> None:
        payload, keys, kept = await self.client.frozen(value, f"a value for queue {self.name}")
        await self._do("put", (payload, keys, self.maxsize), timeout)
        del kept

    def get(self, timeout: float | str | None = None, batch: bool | int = False) -> Any:
        """Take the first value; waits while there is none. Raises TimeoutError after ``timeout`` seconds.

        ``batch``: a number for a list of so many, True for a list of all that there are now. Raises ValueError for
        another.
        """
        if not isinstance(batch, int) or batch < 0:
            raise ValueError(f"batch={batch!r} is not a number of items of at least 0, nor True for all that there are")
        return self._sync(self._get(seconds(timeout), batch))

    async def _get(self, timeout: float | None, batch: bool | int) -> Any:
        count = -1 if batch is True else 1 if batch is False else batch
        found = await self._do("get", (count,), timeout)
        values = self.client.thawed(found, f"a value from queue {self.name}")
        return values[0] if batch is False else values

    def qsize(self) -> Any:
        """How many values are in it."""
        return self._sync(self._do("size"))

    def close(self) -> Any:
        """Throw away what is in it. The name can be used again."""
        return self._sync(self._do("close"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Queue, (self.name, None, self.maxsize)


class Variable(Named):
    """A value that all clients and tasks of a cluster share; a future in it stays alive.

    As in dask.distributed 2021.10; values need not be futures or msgpack data, and have 1 MiB at most.

    Parameters:
        name: which variable; default: a new one.
        client: default: the current one.

    Raises ValueError for a name that cannot be, or without a client.
    """

    kind = "variable"

    def set(self, value: Any, timeout: float | str | None = None) -> Any:
        """Give it a value, in place of the one that it has. Raises TimeoutError after ``timeout`` seconds,
        SerializationError, and ValueError for a value that is too large."""
        return self._sync(self._set(value, seconds(timeout)))

    async def _set(self, value: Any, timeout: float | None) -> None:
        payload, keys, kept = await self.client.frozen(value, f"the value of variable {self.name}")
        await self._do("set", (payload, keys), timeout)
        del kept

    def get(self, timeout: float | str | None = None) -> Any:
        """Its value; waits until it has one. Raises TimeoutError after ``timeout`` seconds."""
        return self._sync(self._get(seconds(timeout)))

    async def _get(self, timeout: float | None) -> Any:
        found = await self._do("get", (), timeout)
        return self.client.thawed(found, f"the value of variable {self.name}")[0]

    def delete(self) -> Any:
        """Take its value away."""
        return self._sync(self._do("delete"))


class Event(Named):
    """A flag that clients and tasks can wait for. As ``threading.Event``, and in dask.distributed 2021.10.

    Parameters:
        name: which event; default: a new one.
        client: default: the current one.

    Raises ValueError for a name that cannot be, or without a client.
    """

    kind = "event"

    def wait(self, timeout: float | str | None = None) -> Any:
        """Wait until it is set: True, or False after ``timeout`` seconds."""
        return self._sync(self._wait(seconds(timeout)))

    async def _wait(self, timeout: float | None) -> bool:
        status, _ = await self.client.operate(self.kind, self.name, "wait", (), timeout)
        return bool(status == "ok")

    def set(self) -> Any:
        """Set it: all who wait go on."""
        return self._sync(self._do("set"))

    def clear(self) -> Any:
        """Take the flag down: ``wait`` waits again."""
        return self._sync(self._do("clear"))

    def is_set(self) -> Any:
        """Whether it is set."""
        return self._sync(self._do("is_set"))
