"""What all workers are to have, also those that come later: plugins and files. Names as in dask.distributed 2021.10."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zdist import serialize
from zdist.client.sharing import Sharing
from zdist.limits import CALL_BYTES, OWN_FRAME, SHARED_VALUE
from zdist.protocol.messages import Buffer

__all__ = ["Plugins", "WorkerPlugin"]

WHOLE = -1  # the part that says how many there are


class WorkerPlugin:
    """What runs on workers beside tasks; for `Client.register_worker_plugin`, which takes other classes, too.

    As in dask.distributed 2021.10: a method ``transition(key, start, finish, **kwargs)``, if there is one, is told of
    every task there, with states "ready", "executing", "memory" and "error".
    """

    def setup(self, worker: Any) -> None:
        """The plugin has come to a ``worker``, before its first task if the worker is new."""

    def teardown(self, worker: Any) -> None:
        """The ``worker`` ends, or the plugin is unregistered or replaced."""


class Plugins(Sharing):
    """The part of the client that sets workers up."""

    def register_worker_plugin(self, plugin: Any, name: str | None = None, nanny: bool = False) -> Any:
        """Have a plugin set up on all workers, now and when new ones come, before they take work.

        A plugin may have ``setup(worker)``, ``teardown(worker)`` and ``transition(key, start, finish)``, where the
        states are "ready", "executing", "memory" and "error". As in dask.distributed 2021.10.

        Parameters:
            name: default: the plugin's attribute ``name``, else one made of its class and content. Another plugin of
                the same name takes its place.
            nanny: accepted; plugins live in the workers' processes.

        Returns ``{address: {"status": "OK"}}``. Raises what ``setup`` raises on a worker that is there; workers that
        come later log that and go on.
        """
        return self._sync(self._register(plugin, name))

    register_plugin = register_worker_plugin

    async def _register(self, plugin: Any, name: str | None) -> dict[str, Any]:
        digest = hashlib.blake2b(serialize.dumps(plugin, what="plugin").tobytes(), digest_size=8).hexdigest()
        name = name or getattr(plugin, "name", None) or f"{type(plugin).__name__}-{digest}"
        return await self._everywhere(str(name), _add, str(name), digest, plugin)

    def unregister_worker_plugin(self, name: str, nanny: bool = False) -> Any:
        """Tear a plugin down on all workers. Raises KeyError if there is none of that name. ``nanny`` is accepted."""
        return self._sync(self._unregister(name))

    async def _unregister(self, name: str) -> dict[str, Any]:
        if not (await self.operate("plugin", name, "delete"))[1]:
            raise KeyError(f"no plugin {name!r} is registered")
        answers = await self._run(_remove, (name,), {}, (), True, "ignore")  # type: ignore[attr-defined]
        return {address: {"status": "OK"} for address in answers}

    def register_worker_callbacks(self, setup: Callable[..., Any]) -> Any:
        """Run ``setup`` on all workers, now and when new ones come; its parameter ``dask_worker`` gets the worker.

        Raises what it raises on a worker that is there.
        """
        return self._sync(self._callbacks(setup))

    async def _callbacks(self, setup: Callable[..., Any]) -> dict[str, Any]:
        blob = serialize.dumps_function(setup)
        return await self._everywhere(f"callback-{blob.name}-{blob.digest.hex()[:16]}", setup)

    def upload_file(self, filename: str | os.PathLike[str], load: bool = True) -> Any:
        """Send a file to all workers, now and when new ones come, where tasks can import it.

        A ``.py`` is imported, again if it was; modules are found in a ``.zip`` or ``.egg``; other files lie beside
        them, in a directory of ``sys.path``. It goes when the worker ends. As in dask.distributed 2021.10.

        Parameters:
            filename: its path here; workers know the file by its last part.
            load: accepted; modules are always imported.

        Raises OSError, ValueError for a file of more than 64 MiB (scatter data instead), and what the import raises.
        """
        return self._sync(self._upload(Path(filename)))

    async def _upload(self, path: Path) -> dict[str, Any]:
        return await self._everywhere(f"file-{path.name}", _upload, path.name, path.read_bytes())

    async def _everywhere(self, name: str, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Leave a call with the broker for workers to come, and have those that are there do it."""
        driver = self._usable()
        blob = serialize.dumps_function(function)
        packed, _ = serialize.dumps_args(args, {}, None, what=f"arguments of {blob.name}")
        payload = serialize.dumps((blob.digest, blob.data, packed), what="call").tobytes()
        if len(payload) > CALL_BYTES:
            raise ValueError(
                f"{name} has {len(payload)} bytes, and at most {CALL_BYTES} can be sent; scatter large data"
            )
        count = -(-len(payload) // SHARED_VALUE)
        for number in range(count):
            part = payload[number * SHARED_VALUE : (number + 1) * SHARED_VALUE]
            await self.operate("plugin", name, "part", (number, part))
        await self.operate("plugin", name, "whole", (count,))
        with self._lock:
            reply = self._ledger.call(None, payload if len(payload) < OWN_FRAME else Buffer(payload))
        driver.wake()
        answers = await self._answer(reply, None, name)
        return self._results(answers, blob.name, "raise", {"status": "OK"})  # type: ignore[attr-defined,no-any-return]


def _worker_module() -> Any:
    """Runs on the worker, which has this module; the client does not."""
    from importlib import import_module

    return import_module("zdist.worker.plugins")


def _add(name: str, version: str, plugin: Any, dask_worker: Any = None) -> None:
    _worker_module().add(name, version, plugin, dask_worker)


def _remove(name: str, dask_worker: Any = None) -> None:
    _worker_module().remove(name, dask_worker)


def _upload(name: str, data: bytes, dask_worker: Any = None) -> None:
    _worker_module().upload(name, data, dask_worker)
