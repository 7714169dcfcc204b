"""Locks and semaphores that clients and tasks share. Semantics: dask.distributed 2021.10.

What a process holds is free again when it has ended, or was cut off for longer than its lease (30 s). It may not know
that yet; so who holds something has a *fencing token*, a number higher than that of any holder before, which a storage
can compare to refuse the late ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zdist.client.sharing import Named
from zdist.client.waiting import seconds

__all__ = ["Lock", "MultiLock", "Semaphore"]


class _Held(Named):
    """What can be acquired and released, and is a context manager."""

    def __init__(self, name: str | None = None, client: Any = None) -> None:
        super().__init__(name, client)
        self._tokens: list[int] = []

    @property
    def token(self) -> int | None:
        """The fencing token of what this object has acquired last and not released; None if there is nothing."""
        return self._tokens[-1] if self._tokens else None

    async def _acquire(self, args: tuple[Any, ...], timeout: float | None) -> bool:
        status, token = await self.client.operate(self.kind, self.name, "acquire", args, timeout)
        if status == "timeout":
            return False
        self._tokens.append(token)
        return True

    def _all(self) -> tuple[Any, ...]:
        """What a context manager acquires, for as long as it takes."""
        raise NotImplementedError

    async def _release(self) -> bool:
        """Whether it was still held. Raises ValueError if this object has acquired nothing."""
        if not self._tokens:
            raise ValueError(f"{self.kind} {self.name} was not acquired by this object")
        return bool(await self._do("release", (self._tokens.pop(),)))

    def __enter__(self) -> Any:
        if self._awaited():
            raise TypeError(
                f"use `async with` for a {type(self).__name__} of an asynchronous client, or in a task's coroutine"
            )
        self._sync(self._acquire(self._all(), None))
        return self

    def __exit__(self, *error: object) -> None:
        self.client._sync(self._release(), False)

    async def __aenter__(self) -> Any:
        await self.client._sync(self._acquire(self._all(), None), True)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client._sync(self._release(), True)


def _patience(blocking: bool, timeout: float | str | None) -> float | None:
    if blocking:
        return seconds(timeout)
    if timeout is not None:
        raise ValueError("a timeout makes no sense for a call that does not block")
    return 0.0


class Lock(_Held):
    """A lock that all clients and tasks of a cluster share; those who wait get it in the order in which they came.

    Use it as a context manager (`async with` on an asynchronous client, and in a task's coroutine), or call `acquire`
    and `release`. As in dask.distributed 2021.10.

    Parameters:
        name: which lock; default: a new one.
        client: default: the current one.

    Raises ValueError for a name that cannot be, or without a client.
    """

    kind = "lock"

    def acquire(self, blocking: bool = True, timeout: float | str | None = None) -> Any:
        """Wait until it is free and take it: True, or False if that was not possible within ``timeout`` seconds.

        ``blocking``: False to take it at once or not at all. Raises ValueError for a timeout with that.
        """
        return self._sync(self._acquire(self._all(), _patience(blocking, timeout)))

    def _all(self) -> tuple[Any, ...]:
        return (1,)

    def release(self) -> Any:
        """Give it back. Raises ValueError if this object does not hold it."""
        return self._sync(self._give_back())

    async def _give_back(self) -> None:
        await self._release()

    def locked(self) -> Any:
        """Whether anybody holds it."""
        return self._sync(self._locked())

    async def _locked(self) -> bool:
        return bool(await self._do("held"))


class Semaphore(_Held):
    """So many leases of something, which all clients and tasks of a cluster share.

    Parameters:
        max_leases: how many may be held at once; the same wherever the name is used.
        name, client: as of `Lock`.

    Raises ValueError for these as `Lock` does, and for less than one lease. As in dask.distributed 2021.10, but a lease
    is its process's: it is not refreshed by hand, and free when that ends.
    """

    kind = "semaphore"

    def __init__(self, max_leases: int = 1, name: str | None = None, client: Any = None) -> None:
        if isinstance(max_leases, bool) or not isinstance(max_leases, int) or max_leases < 1:
            raise ValueError(f"max_leases is a number of at least 1, not {max_leases!r}")
        super().__init__(name, client)
        self.max_leases = max_leases

    def acquire(self, timeout: float | str | None = None) -> Any:
        """Wait until a lease is free and take it: True, or False after ``timeout`` seconds. Raises ZdistError if those
        who hold leases now think that there are more or fewer."""
        return self._sync(self._acquire(self._all(), seconds(timeout)))

    def _all(self) -> tuple[Any, ...]:
        return (self.max_leases,)

    def release(self) -> Any:
        """Give a lease back: whether it was still held. Raises ValueError if this object has none."""
        return self._sync(self._release())

    def get_value(self) -> Any:
        """How many leases are held, by whomever."""
        return self._sync(self._do("held"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Semaphore, (self.max_leases, self.name)


class MultiLock(_Held):
    """Several locks, taken all at once or not at all, so that nobody waits with half of them in hand.

    Parameters:
        names: of the locks, which are apart from those of `Lock`.
        client: default: the current one.

    Raises ValueError for names that cannot be, or without a client. As in dask.distributed 2021.10.
    """

    kind = "multilock"

    def __init__(self, names: Sequence[str] = (), client: Any = None) -> None:
        if isinstance(names, str) or not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"a MultiLock has a list of names, not {names!r:.80}")
        super().__init__("MultiLock", client)
        self.names = list(names)

    def acquire(self, blocking: bool = True, timeout: float | str | None = None, num_locks: int | None = None) -> Any:
        """Wait until all (or any ``num_locks``) of them are free, and take these: True, or False after ``timeout``
        seconds.

        ``blocking``: False to take them at once or not at all. Raises ValueError for a timeout with that, and for
        more locks than there are.
        """
        most = len(set(self.names))
        count = most if num_locks is None else num_locks
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
            raise ValueError(f"num_locks is a number from 1 to {most}, not {num_locks!r}")
        return self._sync(self._acquire((tuple(self.names), count), _patience(blocking, timeout)))

    def _all(self) -> tuple[Any, ...]:
        return tuple(self.names), len(set(self.names))

    def release(self) -> Any:
        """Give back what was acquired. Raises ValueError if this object holds nothing."""
        return self._sync(self._give_back())

    async def _give_back(self) -> None:
        await self._release()

    def locked(self) -> Any:
        """Whether this object holds its locks."""
        return self._sync(self._locked())

    async def _locked(self) -> bool:
        return bool(self._tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return MultiLock, (self.names,)
