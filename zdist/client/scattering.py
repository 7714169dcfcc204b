"""scatter: data of this process becomes keys that lie on workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from zdist import serialize
from zdist.client.base import Base, Wait
from zdist.client.future import Future, future_of, origins, pickling_for
from zdist.client.submitting import _check_key, keep, names
from zdist.client.waiting import seconds
from zdist.core.entry import FINISHED, Entry
from zdist.limits import SCATTER_NOTICE
from zdist.protocol.fields import content_attempt

__all__ = ["Scattering"]


class Scattering(Base):
    """The part of the client that hands out data."""

    def scatter(
        self,
        data: Any,
        workers: Any = None,
        broadcast: bool | int = False,
        direct: bool | None = None,
        hash: bool = True,
        timeout: float | str | None = None,
        asynchronous: bool | None = None,
        replicas: int | None = None,
    ) -> Any:
        """Copy data to workers. As in dask.distributed 2021.10.

        Parameters:
            data: a list, tuple, set, frozenset or iterator of objects, a dict of names and objects, or one object. A
                name that is a text becomes the key. The data is taken as it is now; later changes have no effect.
            workers: address or name, or several, of workers that may get it; default: all in turn.
            broadcast: True to copy each object to all of these workers, a number for so many copies.
            direct: accepted; workers pull the data from this client by the broker's relay.
            hash: name objects by content, so that equal data is sent once. False gives each a name of its own.
            timeout: seconds to wait until workers have it (and for a worker to appear); None for as long as it takes,
                with a warning after ``SCATTER_NOTICE`` seconds.
            replicas: the same as a number for ``broadcast``: so many copies (or one on each worker, if there are
                fewer), so that the data outlives all but one of the workers that hold it.

        Returns:
            Futures in a container as ``data`` (a list for an iterator), one future for a single object.

        Raises:
            ValueError: ``broadcast`` or ``replicas`` is no such number.
            KeyConflict: a name stands for other data or a task while its futures live. If those are another client's,
                the future that is returned has this error.
            TimeoutError: no worker has taken it in time.
            SerializationError: an object cannot be pickled.
            CancelledError: the data was lost before it was copied.
        """
        if replicas is not None:
            if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1 or broadcast is not False:
                raise ValueError(f"replicas={replicas!r} is a number of at least 1, given instead of broadcast=")
            broadcast = replicas
        elif not isinstance(broadcast, int) or (broadcast < 1 and broadcast is not False):
            raise ValueError(f"broadcast={broadcast!r} is not True, False, or a number of copies of at least 1")
        return self._sync(self._scatter(data, names(workers), broadcast, hash, seconds(timeout)), asynchronous)

    async def _scatter(
        self, data: Any, workers: tuple[str, ...], broadcast: bool | int, hash: bool, timeout: float | None
    ) -> Any:
        if isinstance(data, dict):
            keys = [name if isinstance(name, str) else None for name in data]
            for key in keys:
                if key is not None:
                    _check_key(key)
            futures = await self._place(list(data.values()), keys, workers, broadcast, hash, timeout)
            return dict(zip(data, futures, strict=True))
        if isinstance(data, list | tuple | set | frozenset | range | Iterator):
            items = list(data)
            futures = await self._place(items, [None] * len(items), workers, broadcast, hash, timeout)
            kind = type(data)
            return kind(futures) if kind in (tuple, set, frozenset) else futures
        return (await self._place([data], [None], workers, broadcast, hash, timeout))[0]

    async def _place(
        self,
        items: list[Any],
        keys: list[str | None],
        workers: tuple[str, ...],
        broadcast: bool | int,
        hash: bool,
        timeout: float | None,
    ) -> list[Future]:
        if not items:
            return []
        driver = self._usable()
        copies = 1 if broadcast is False else 0 if broadcast is True else int(broadcast)
        futures, fresh = self._hold(items, keys, hash)
        entries = [future._entry for future in futures]
        with self._lock:
            todo = entries if broadcast else fresh
            if todo:
                self._ledger.place(dict.fromkeys(todo), workers, copies)
            signal = self._await_entries(dict.fromkeys(entries))
        driver.wake()
        deadline = None if timeout is None else time.monotonic() + timeout
        if deadline is None:
            if await Wait(signal, time.monotonic() + SCATTER_NOTICE):
                return futures
            driver.log.warning(
                "scatter.waiting", reason=self._untaken(signal.left, len(entries), workers, SCATTER_NOTICE)
            )
        if not await Wait(signal, deadline):
            raise TimeoutError(self._untaken(signal.left, len(entries), workers, timeout or 0.0))
        return futures

    def _untaken(self, left: int, count: int, workers: tuple[str, ...], seconds: float) -> str:
        who = f"one of {', '.join(workers)}" if workers else "a worker"
        return (
            f"no worker has taken {left} of {count} scattered objects within {seconds:g} s; is {who} connected to the "
            f"broker at {self.address}?"
        )

    def _hold(self, items: list[Any], keys: list[str | None], hash: bool) -> tuple[list[Future], list[Entry]]:
        """Freeze objects into keys of this client (None: a new one); futures of all, and the entries that are new."""
        futures: list[Future] = []
        fresh: list[Entry] = []
        ledger = self._ledger
        with pickling_for(self):
            for key, item in zip(keys, items, strict=True):
                kind = serialize.type_name(item)
                token = serialize.token(b"zdist.data", (item,), {}) if hash or key is not None else ""
                if key is None:
                    key = f"{kind}-{token or self._nonce + str(next(self._counter))}"
                attempt = content_attempt(token)
                with self._lock:
                    known = ledger.data(key, attempt)
                if known is None:
                    blob = serialize.dumps(item, what="data to scatter", share=True)
                    kept_blob = keep(self, key, blob, attempt)
                    kept = [] if origins.foreign is None else self._joined(origins.foreign)
                    origins.foreign = None
                    with self._lock:
                        entry = ledger.hold([(key, kept_blob, kind)], finished=False, refs=blob.refs, attempt=attempt)[
                            0
                        ]
                    del kept
                    fresh.append(entry)
                else:
                    entry = known
                    if entry.status != FINISHED and key not in ledger.placing:
                        fresh.append(entry)
                futures.append(future_of(entry, self))  # type: ignore[arg-type]
        return futures, fresh
