"""Asking and steering the cluster: workers, where results are, logs, run, cancel, retry, restart, scale."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from zdist import serialize
from zdist.client.base import Base
from zdist.client.containers import flatten, futures_in
from zdist.client.future import Future, raisable
from zdist.client.submitting import names
from zdist.client.waiting import seconds
from zdist.core.entry import PENDING, Reply
from zdist.errors import ClusterClosed, ZdistError
from zdist.limits import OWN_FRAME
from zdist.protocol.messages import Buffer

__all__ = ["Admin"]


class Admin(Base):
    """The part of the client that asks and steers the cluster. Names as in dask.distributed 2021.10.

    All methods return awaitables on an asynchronous client. ZdistError tells what the broker could not do.
    """

    # --- futures -----------------------------------------------------------------------------------

    def cancel(self, futures: Any, asynchronous: bool | None = None, force: bool = False) -> Any:
        """Give computations up; what depends on them is cancelled too.

        A key that other clients want as well goes on for them, unless ``force``.
        """
        return self._sync(self._cancel(futures, force), asynchronous)

    async def _cancel(self, futures: Any, force: bool) -> None:
        driver = self._usable()
        mine = self._own(futures)
        with self._lock:
            self._ledger.cancel([future._entry for future in mine], force)
        driver.wake()

    def retry(self, futures: Any, asynchronous: bool | None = None) -> Any:
        """Compute failed futures again, and what failed before them and because of which they did."""
        return self._sync(self._retry(futures), asynchronous)

    async def _retry(self, futures: Any) -> None:
        driver = self._usable()
        mine = self._own(futures)
        with self._lock:
            self._ledger.retry([future._entry for future in mine])
        driver.wake()

    def futures_of(self, futures: Any) -> list[Future]:
        """The futures in a container, and in the graphs of dask collections that were persisted, each once."""
        return futures_in(futures)

    # --- what there is -----------------------------------------------------------------------------

    def scheduler_info(self, asynchronous: bool | None = None) -> Any:
        """What the broker knows of itself and of the workers: ``["workers"]`` by address."""
        return self._ask("workers", None, asynchronous=asynchronous)

    def nthreads(self, workers: Any = None) -> Any:
        """Threads of each worker, by address."""
        return self._sync(self._about_workers("nthreads", names(workers)))

    def ncores(self, workers: Any = None) -> Any:
        """The same as `nthreads`."""
        return self.nthreads(workers)

    def processing(self, workers: Any = None) -> Any:
        """Keys that each worker has been given and has not finished, by address."""
        return self._sync(self._about_workers("processing", names(workers)))

    async def _about_workers(self, what: str, workers: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = _as_lists(await self._asking(what, None, None))
        if workers:
            known = (await self._asking("workers", None, None))["workers"]
            found = {
                address: value
                for address, value in found.items()
                if address in workers or known.get(address, {}).get("name") in workers
            }
        return found

    def who_has(self, futures: Any = None) -> Any:
        """Addresses of the workers that hold each result, by key; of all keys if none are given."""
        keys = None if futures is None else [future.key for future in flatten(futures)[0]]
        return self._sync(self._lists("who_has", keys))

    def has_what(self, workers: Any = None) -> Any:
        """Keys of the results that each worker holds, by address."""
        return self._sync(self._lists("has_what", list(names(workers)) or None))

    async def _lists(self, what: str, args: Any) -> dict[str, Any]:
        return _as_lists(await self._asking(what, args, None))

    def counts(self) -> Any:
        """Sizes of the broker's tables, by name; all but those of connections are 0 when nothing is wanted."""
        return self._ask("counts")

    def wait_for_workers(self, n_workers: int = 1, timeout: float | str | None = None) -> Any:
        """Wait until at least so many workers are there. Raises TimeoutError after ``timeout`` seconds."""
        if isinstance(n_workers, bool) or not isinstance(n_workers, int) or n_workers < 1:
            raise ValueError(f"n_workers is a number of at least 1, not {n_workers!r}")
        return self._sync(self._wait_for_workers(n_workers, seconds(timeout)))

    async def _wait_for_workers(self, n_workers: int, timeout: float | None) -> None:
        try:
            await self._asking("wait_for_workers", n_workers, timeout)
        except TimeoutError:
            if self._driver is not None and self._driver.away:
                raise
            there = len((await self._asking("nthreads", None, timeout)) or ())
            raise TimeoutError(f"{there} of {n_workers} workers were there within {timeout:g} s") from None

    # --- functions outside of the task system --------------------------------------------------------

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: Any = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: str = "raise",
        asynchronous: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a function on all workers (or those named), at once and whatever they are doing.

        A parameter ``dask_worker`` of the function gets the worker. A coroutine function is run to its end, on an event
        loop of its own. Returns results by worker address.

        Parameters:
            args, kwargs: the function's arguments.
            workers: address or name, or several; default: all.
            wait: False not to wait for the results.
            on_error: "raise" the first error, "return" the exceptions among the results, or "ignore" such workers.
            nanny: accepted; functions run in the workers' processes only.

        Raises TypeError for what is no function, ValueError for another ``on_error``, SerializationError, ZdistError if
        a worker ends meanwhile, and with "raise" what the function raises.
        """
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f"on_error={on_error!r}: run knows 'raise', 'return' and 'ignore'")
        if not callable(function):
            raise TypeError(f"run takes a function first, got {type(function).__name__}")
        return self._sync(self._run(function, args, kwargs, names(workers), wait, on_error), asynchronous)

    async def _run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        workers: tuple[str, ...],
        wait: bool,
        on_error: str,
    ) -> dict[str, Any] | None:
        reply, name = self._call(function, args, kwargs, workers)
        if not wait:
            return None
        return self._results(await self._answer(reply, None, f"run of {name}"), name, on_error)

    def _results(self, answers: dict[str, Any], name: str, on_error: str, value: Any = None) -> dict[str, Any]:
        """What a call has brought from each worker; or ``value``, where it went well."""
        results: dict[str, Any] = {}
        for address, (ok, data, *about) in answers.items():
            if ok:
                what = f"what {name} returned"
                results[address] = value or serialize.loads(_bytes(data), what=what, owner=self)
                continue
            error = _run_error(name, address, data, "".join(about))
            if on_error == "raise":
                raise raisable(error, f"{name} on {address}")
            if on_error == "return":
                results[address] = error
        return results

    def _call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], workers: tuple[str, ...]
    ) -> tuple[Reply, str]:
        """Send a function to workers (all of them if none are named): where the answer will be, and its name."""
        driver = self._usable()
        blob = serialize.dumps_function(function)
        packed, _ = serialize.dumps_args(args, kwargs, None, what=f"arguments of {blob.name}")
        payload = serialize.dumps((blob.digest, blob.data, packed), what="call").tobytes()
        with self._lock:
            reply = self._ledger.call(workers or None, payload if len(payload) < OWN_FRAME else Buffer(payload))
        driver.wake()
        return reply, blob.name

    def run_coroutine(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The same as `run`, which takes coroutine functions too; see there for ``args`` and ``kwargs``.

        As in dask.distributed 2021.10.
        """
        return self.run(function, *args, **kwargs)

    def get_worker_logs(self, n: int | None = None, workers: Any = None, nanny: bool = False) -> Any:
        """The last ``n`` log records of each worker, newest last, as (level, line), by worker address.

        Parameters:
            n: how many; None for all that they keep.
            workers: address or name, or several; default: all.
            nanny: accepted; there is one log of each worker.
        """
        return self.run(_recent_logs, n, workers=workers)

    def forward_logging(self, on: bool = True) -> Any:
        """Show the workers' log records on this process's standard error from now on (or no longer)."""
        return self._ask("log_subscribe", bool(on))

    # --- the cluster as a whole ----------------------------------------------------------------------

    def restart(self, timeout: float | str | None = 30.0) -> Any:
        """Cancel all tasks of all clients and replace every worker process; returns when they are back.

        Raises TimeoutError if they are not within ``timeout`` seconds.
        """
        return self._sync(self._restart(seconds(timeout)))

    async def _restart(self, timeout: float | None) -> None:
        reason = "cluster restarted"
        with self._lock:
            known = list(self._ledger.entries.values())
            # the broker is not told of these any more: they would be the first that its new workers run
            self._ledger.cancel([entry for entry in known if entry.status == PENDING and not entry.gen], False, reason)
        await self._asking("restart", timeout, timeout)
        with self._lock:  # what it was told of by lanes only
            self._ledger.cancel([entry for entry in known if entry.status == PENDING], False, reason)

    def restart_workers(self, workers: Any, timeout: float | str | None = 30.0, raise_for_error: bool = True) -> Any:
        """Replace the processes of some workers, and return when others are there instead.

        Their data is copied elsewhere first, and what they run is started again there; if all are to be replaced, one
        of them goes when others have come. Of the only worker there is, results are computed again. So nothing is lost
        by it. As in later releases of dask.distributed, which lose what such workers hold.

        Parameters:
            workers: address or name, or several.
            timeout: seconds to wait, None for as long as it takes.
            raise_for_error: False not to raise TimeoutError.

        Returns ``{worker: "OK"}``, or "timed out", with the workers as they were given. Raises TimeoutError, and
        ZdistError if there is no such worker, or if it is the only one and holds what could not be computed again.
        """
        chosen = list(names(workers))
        if not chosen:
            raise ValueError("restart_workers needs addresses or names of workers; restart() replaces all of them")
        return self._sync(self._restart_workers(chosen, seconds(timeout), raise_for_error))

    async def _restart_workers(self, workers: list[str], timeout: float | None, strict: bool) -> dict[str, str]:
        patience = None if timeout is None else timeout + 1.0  # the broker's; what it says after ours is not heard
        try:
            await self._asking("restart_workers", (workers, patience), timeout)
        except TimeoutError:
            if strict:
                raise
            return dict.fromkeys(workers, "timed out")
        return dict.fromkeys(workers, "OK")

    def retire_workers(self, workers: Any) -> Any:
        """End workers in good order: they get nothing new, what they run comes to an end, and results and data that
        only they have are copied to others first. Their nodes do not replace them.

        Parameters:
            workers: address or name, or several. Returns ``{address: name}`` of those that have gone, when they have.

        Raises ZdistError if there is no such worker, or data would be lost because none would be left.
        """
        chosen = list(names(workers))
        if not chosen:
            raise ValueError("retire_workers needs addresses or names of workers; scale(n) ends whichever are too many")
        return self._sync(self._lists("retire", chosen))

    def scale(self, n: int) -> Any:
        """Ask the nodes to keep ``n`` workers in all."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"scale takes a number of workers of at least 0, not {n!r}")
        return self._ask("scale", n)

    def shutdown(self) -> Any:
        """End the whole cluster: workers, nodes, broker, and this client."""
        return self._sync(self._shutdown())

    async def _shutdown(self) -> None:
        with contextlib.suppress(ClusterClosed, TimeoutError):  # it may end before its answer is here
            await self._asking("shutdown", None, 10.0)
        await self._closing(1.0)

    async def _closing(self, timeout: float) -> None:
        raise NotImplementedError


def _as_lists(table: dict[str, Any]) -> dict[str, Any]:
    """Lists travel as tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}


def _bytes(data: Any) -> Any:
    return data.data if isinstance(data, Buffer) else data


def _run_error(name: str, address: str, data: Any, about: str) -> BaseException:
    if data is None:
        return ZdistError(f"worker {address} did not answer to the run of {name}: {about or 'it has died'}")
    return serialize.loads_error(_bytes(data), f"{name} failed on worker {address}")


def _recent_logs(n: int | None, dask_worker: Any = None) -> Any:
    """Runs on the worker, which has this module; the client does not."""
    from importlib import import_module

    return import_module("zdist.worker.logs").recent(n, dask_worker=dask_worker)
