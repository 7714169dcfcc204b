"""replicate and rebalance: on how many workers results lie, and on which."""

from __future__ import annotations

from typing import Any

from zdist.client.base import Base
from zdist.client.future import Future
from zdist.client.submitting import names
from zdist.errors import CancelledError, ZdistError

__all__ = ["Replicating"]


class Replicating(Base):
    """The part of the client that spreads copies. Names as in dask.distributed 2021.10."""

    def replicate(
        self,
        futures: Any,
        n: int | None = None,
        workers: Any = None,
        branching_factor: int = 2,
        asynchronous: bool | None = None,
    ) -> Any:
        """Wait for results, and have each on ``n`` workers: copies are made, or those that are too many dropped.

        Scattered data and results of tasks alike. It says nothing of workers that come later: a copy that is lost with
        its worker is not made anew, but the result lives on with the others.

        Parameters:
            futures: a future or a container of futures.
            n: copies of each, at most one for each of these workers; None for all of them.
            workers: address or name, or several, of those that count and may get copies; default: all.
            branching_factor: accepted; how a copy spreads is up to the broker (two at a time from each holder).

        Raises:
            ValueError: ``n`` is not a number of at least 1.
            ZdistError: there is no such worker; or results cannot be copied, since their tasks have failed or their
                values cannot be pickled (what can be copied is).
            CancelledError: a future was cancelled.
        """
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"n={n!r} is not a number of copies of at least 1; release the futures to drop the last")
        return self._sync(self._replicate(futures, n, list(names(workers)) or None), asynchronous)

    async def _replicate(self, futures: Any, n: int | None, workers: list[str] | None) -> None:
        mine = self._own(futures)
        keys = await self._keys(mine)
        if not keys:
            return
        failed = (await self._asking("replicate", (keys, n, workers), None))["failed"]
        if failed:
            key, why = next(iter(failed.items()))
            raise ZdistError(
                f"replicate: {len(failed)} of {len(keys)} results are not where they should be: {key}: {why}"
            )

    def rebalance(self, futures: Any = None, workers: Any = None, asynchronous: bool | None = None) -> Any:
        """Move results from workers that hold more bytes than the mean to those that hold the least.

        A result is copied first, and dropped where it was after that, so none is lost whatever happens meanwhile; what
        a task there is about to use stays as well. Unlike in dask.distributed 2021.10 it is the bytes of results that
        count, not the memory of the processes, and it can be used while tasks run. One call moves up to
        ``limits.MOVES`` results of each worker, the largest first.

        Parameters:
            futures: a future or container of futures that may be moved, and are waited for; None for all that is held.
            workers: address or name, or several, that give and take; default: all.

        Raises:
            ZdistError: there is no such worker.
            CancelledError: a future was cancelled.
        """
        return self._sync(self._rebalance(futures, list(names(workers)) or None), asynchronous)

    async def _rebalance(self, futures: Any, workers: list[str] | None) -> None:
        mine = None if futures is None else self._own(futures)
        keys = None if mine is None else await self._keys(mine)
        if keys is None or keys:
            await self._asking("rebalance", (keys, workers), None)

    async def _keys(self, futures: list[Future]) -> list[str]:
        """The keys of futures, each once, when all are done."""
        await self._done(futures)
        for future in futures:
            if future.cancelled():
                raise CancelledError(f"{future.key}: it was cancelled")
        return list(dict.fromkeys(future.key for future in futures))
