"""A closer look: bytes of results, stacks of running tasks, versions, logs of the broker, tasks run again here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from zdist import serialize
from zdist.client.admin import Admin
from zdist.client.containers import flatten
from zdist.client.future import Future
from zdist.core.entry import ERROR
from zdist.protocol.messages import Buffer
from zdist.transport.versions import versions

__all__ = ["Inspecting", "looks_into", "read_scheduler_file"]

#: What has to be the same where functions and values are pickled and unpickled, and what the broker has to share.
PICKLED: Final = ("python", "zdist", "cloudpickle", "numpy", "pandas", "dask")
SPOKEN: Final = ("zdist",)


class Inspecting(Admin):
    """The part of the client that looks closer. Names as in dask.distributed 2021.10."""

    # --- what there is ---------------------------------------------------------------------------------

    def nbytes(self, keys: Iterable[str] | None = None, summary: bool = True) -> Any:
        """Bytes of results and data in the cluster, each counted once however many copies there are.

        These are the bytes of the pickled value where it has been pickled, and an estimate of them before.

        Parameters:
            keys: keys, or futures; None for all.
            summary: True to add up what functions have made, by their names; False for a number for each key.
        """
        chosen = None if keys is None else [getattr(key, "key", key) for key in _several(keys)]
        return self._ask("nbytes", (chosen, bool(summary)))

    def call_stack(self, futures: Any = None, keys: Sequence[str] | None = None) -> Any:
        """Where running tasks are, as ``{worker address: {key: (lines, …)}}``, the innermost call last.

        Parameters:
            futures, keys: those of interest; for one that waits, the tasks that it waits for. Neither: all that run.

        Workers without such a task are left out. One whose task holds the GIL in C answers when that lets go.
        """
        wanted = None if futures is None and keys is None else list(_several(keys or ()))
        if futures is not None and wanted is not None:
            wanted += [future.key for future in flatten(futures)[0]]
        return self._sync(self._call_stack(wanted))

    async def _call_stack(self, keys: list[str] | None) -> dict[str, Any]:
        where = await self._asking("running", keys, None)
        stacks: dict[str, Any] = {}
        if where:
            asked = None if keys is None else [key for some in where.values() for key in some]
            found = await self._run(looks_into, ("call_stacks", asked), {}, tuple(where), True, "ignore")
            stacks = {address: running for address, running in (found or {}).items() if running}
        return stacks

    def get_scheduler_logs(self, n: int | None = None) -> Any:
        """The last ``n`` log records of the broker, newest last, as (level, line). It keeps ``limits.LOG_LINES``."""
        return self._ask("logs", n)

    def get_versions(self, check: bool = False, packages: Sequence[str] = ()) -> Any:
        """Versions as ``{"scheduler": …, "workers": {address: …}, "client": …}``, each with "host" and "packages".

        Parameters:
            check: True to raise an error where versions differ that matter: those of Python (but for the last number),
                zdist, cloudpickle, numpy, pandas, dask and the ``packages`` between client and workers, and zdist's
                at the broker, which unpickles nothing.
            packages: names of further distributions (as pip has them) or modules.

        Raises:
            ValueError: with ``check``: a table of what differs.
        """
        extra = [packages] if isinstance(packages, str) else [p if isinstance(p, str) else p[0] for p in packages]
        return self._sync(self._get_versions(check, extra))

    async def _get_versions(self, check: bool, packages: list[str]) -> dict[str, Any]:
        broker = await self._asking("versions", packages, None)
        workers = await self._run(looks_into, ("versions_here", packages), {}, (), True, "raise")
        found = {"scheduler": broker, "workers": workers or {}, "client": versions(packages)}
        if check and (table := differences(found, packages)):
            raise ValueError(f"versions differ:\n{table}")
        return found

    # --- tasks run again here ----------------------------------------------------------------------------

    def recreate_error_locally(self, future: Any) -> Any:
        """Run here, in this thread, the task because of which a future failed: its error comes up under a debugger.

        Parameters:
            future: a future, or a container of futures of which the first that failed counts; they are waited for.

        Its function and arguments come from this client or the broker, its inputs are gathered, and computed again if
        need be. Returns what the task returns, if it does not fail here. Raises ValueError if none has failed. As in
        dask.distributed 2021.10; on an asynchronous client it is awaited, and the task runs on its event loop.
        """
        return self._replayed(self._error_of, future)

    def recreate_task_locally(self, future: Any) -> Any:
        """Run here, in this thread, the task of a future, whether it has failed or not; see `recreate_error_locally`.

        Parameters: a future or a key. Raises ValueError for data, which no task has made.
        """
        return self._replayed(self._task_of, future)

    def _replayed(self, find: Callable[[Any], Coroutine[Any, Any, str]], future: Any) -> Any:
        if self.asynchronous:

            async def later() -> Any:
                return (await self._later(self._call_of(find, future)))()

            return later()
        call: Any = self._sync(self._call_of(find, future))
        return call()  # with none of the client's frames but this around it

    async def _error_of(self, future: Any) -> str:
        futures = self._own(future)
        await self._done(futures)
        for each in futures:
            status, outcome = each._entry.status, each._entry.outcome
            if status == ERROR:
                return str(outcome[2])
        raise ValueError(f"none of these {len(futures)} futures has failed")

    async def _task_of(self, future: Any) -> str:
        if isinstance(future, str):
            return future
        (mine,) = self._own(future)
        await self._done([mine])
        return mine.key

    async def _call_of(self, find: Callable[[Any], Coroutine[Any, Any, str]], future: Any) -> Callable[[], Any]:
        key = await find(future)
        with self._lock:
            entry = self._ledger.entries.get(key)
            work, row = (None, None) if entry is None else (entry.work, entry.row)
        if work is not None and row is not None:
            found: Any = work.fn, work.name, work.blob, row[1], row[2]
        else:
            found = await self._asking("spec", key, None)
        if found is None:
            raise ValueError(f"{key} is data, which no task has made")
        digest, name, blob, args, deps = found
        inputs = [Future(dep, self) for dep in deps]  # type: ignore[arg-type]
        values = await self._gather(inputs, "raise", None, None)
        function = serialize.loads_function(_plain(blob), digest)
        known = dict(zip(deps, values, strict=True))
        positional, named = serialize.loads_args(
            _plain(args), known.__getitem__, what=f"arguments of {name}", owner=self
        )
        return lambda: function(*positional, **named)

    async def _gather(self, futures: Any, errors: str, direct: bool | None, timeout: float | None) -> Any:
        raise NotImplementedError

    # --- finding the broker, and where code runs ---------------------------------------------------------------

    def write_scheduler_file(self, scheduler_file: str | os.PathLike[str]) -> None:
        """Write a JSON file from which ``Client(scheduler_file=)`` knows where the broker is.

        It has the broker's address and the cluster's name, never the token: others find that as they would without it.
        The file is replaced as a whole. Raises OSError.
        """
        self._usable()
        path = Path(scheduler_file)
        text = json.dumps({"type": "Broker", "address": self.address, "id": self.cluster_id}, indent=2)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(text + "\n")
            beside.replace(path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()

    def start(self, **kwargs: Any) -> Any:
        """Connect an asynchronous client, as awaiting it does; a synchronous one is connected when it is made.

        ``kwargs`` are accepted for the sake of programs written for dask.distributed; not used.
        """
        return self._start() if self.asynchronous else None

    async def _start(self) -> Any:
        raise NotImplementedError

    def sync(self, func: Callable[..., Any], *args: Any, asynchronous: bool | None = None, **kwargs: Any) -> Any:
        """Call a coroutine function, ``func(*args, **kwargs)``, and run it to its end; on an asynchronous client,
        return the coroutine.

        The client has no event loop of its own, unlike in dask.distributed 2021.10: it gets one for this call. Raises
        RuntimeError on the thread of a running loop.
        """
        if self.asynchronous if asynchronous is None else asynchronous:
            return func(*args, **kwargs)
        return asyncio.run(func(*args, **kwargs))


def looks_into(what: str, *args: Any, dask_worker: Any = None) -> Any:
    """Runs on the worker, which has this module; the client does not."""
    return getattr(import_module("zdist.worker.looking"), what)(*args, dask_worker=dask_worker)


def read_scheduler_file(path: str | os.PathLike[str], address: Any) -> str:
    """The broker's address from a file of `Inspecting.write_scheduler_file`. Raises OSError, ValueError."""
    if address is not None:
        raise ValueError("give the broker's address or a scheduler_file, not both")
    try:
        found = json.loads(Path(path).read_text())["address"]
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"{os.fspath(path)} is no file that write_scheduler_file has written: {exc!r}") from None
    if not isinstance(found, str):
        raise ValueError(f"{os.fspath(path)}: its address is no text")
    return found


def differences(found: dict[str, Any], packages: Sequence[str]) -> str:
    """A table of the versions that differ and should not; empty if none do."""
    rows = [("package", "client", "broker", "workers")]
    for name in dict.fromkeys((*PICKLED, *packages)):
        client = _shown(name, found["client"])
        broker = _shown(name, found["scheduler"])
        workers = sorted({_shown(name, worker) for worker in found["workers"].values()})
        if any(version != client for version in workers) or (name in SPOKEN and broker != client):
            rows.append((name, client, broker if name in SPOKEN else f"({broker})", ", ".join(workers)))
    if len(rows) == 1:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _shown(name: str, of: dict[str, Any]) -> str:
    version = of.get("packages", {}).get(name) or "none"
    return version.rpartition(".")[0] if name == "python" and version.count(".") > 1 else version


def _several(keys: Any) -> Any:
    """Keys, from one or several."""
    return [keys] if isinstance(keys, str | Future) else keys


def _plain(payload: Any) -> Any:
    return payload.data if isinstance(payload, Buffer) else payload
