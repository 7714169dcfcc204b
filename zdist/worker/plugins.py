"""What a worker keeps besides its tasks: plugins, and the files that were uploaded to it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from zdist.errors import ZdistError
from zdist.transport.scratch import Scratch

__all__ = ["Plugins", "add", "remove", "upload"]

_log = logging.getLogger("zdist.worker")


class Plugins:
    """The plugins of one worker, by name. Each may have ``setup(worker)``, ``teardown(worker)`` and
    ``transition(key, start, finish)``, as in dask.distributed 2021.10."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.lock = threading.Lock()
        self.plugins: dict[str, tuple[str, Any]] = {}  # with what names the content
        self.watching: tuple[Any, ...] = ()  # those that are told of transitions
        self.files: Scratch | None = None

    def add(self, name: str, version: str, plugin: Any) -> None:
        """Set a plugin up, once; one of the same name but another version is torn down first. Raises what it raises."""
        with self.lock:
            old = self.plugins.get(name)
            if old is not None and old[0] == version:
                return
            if old is not None:
                self._tear_down(name)
            self.plugins[name] = (version, plugin)
            try:
                setup = getattr(plugin, "setup", None)
                if setup is not None:
                    setup(worker=self.worker)
            except BaseException:
                _log.exception("plugin %s could not be set up", name)
                del self.plugins[name]
                raise
            self._watch()

    def preload(self, name: str) -> None:
        """Load a module, or a ``.py`` file; its ``zdist_setup(worker)`` (or ``dask_setup``) is called now, its
        ``zdist_teardown`` when the worker ends. Raises ZdistError, which says what has failed."""
        try:
            if name.endswith(".py"):
                path = Path(name).resolve()
                sys.path.insert(0, str(path.parent))
                name = path.stem
            module = importlib.import_module(name)
            self.add(f"preload {name}", "", _Preloaded(module))
        except BaseException as exc:
            raise ZdistError(f"preload of {name} failed: {type(exc).__name__}: {exc}") from exc

    def remove(self, name: str) -> None:
        """Tear a plugin down. Raises KeyError if there is none of this name."""
        with self.lock:
            if name not in self.plugins:
                raise KeyError(f"this worker has no plugin {name!r}")
            self._tear_down(name)
            self._watch()

    def _tear_down(self, name: str) -> None:
        _, plugin = self.plugins.pop(name)
        teardown = getattr(plugin, "teardown", None)
        try:
            if teardown is not None:
                teardown(worker=self.worker)
        except Exception:
            _log.exception("plugin %s could not be torn down", name)

    def _watch(self) -> None:
        plugins = [plugin for _, plugin in self.plugins.values()]
        self.watching = tuple(plugin for plugin in plugins if callable(getattr(plugin, "transition", None)))

    def transition(self, key: str, start: str, finish: str) -> None:
        """Tell those who want to know that a task has gone from one state to another."""
        for plugin in self.watching:
            try:
                plugin.transition(key, start, finish)
            except Exception:
                _log.exception("a plugin failed when %s went from %s to %s", key, start, finish)

    def close(self) -> None:
        """The worker ends."""
        with self.lock:
            for name in reversed(list(self.plugins)):
                self._tear_down(name)
            self.watching = ()
            if self.files is not None:
                with contextlib.suppress(ValueError):
                    sys.path.remove(str(self.files.path))
                self.files.remove()
                self.files = None

    def upload(self, name: str, data: bytes) -> None:
        """Put a file where it can be imported; a module is loaded (again), an archive is searched for modules."""
        with self.lock:
            if self.files is None:
                self.files = Scratch(Path(tempfile.gettempdir()), "zdist-files-")
                sys.path.insert(0, str(self.files.path))
            path = self.files.path / name
            same = path.exists() and path.read_bytes() == data
            path.write_bytes(data)
            importlib.invalidate_caches()
            if path.suffix == ".py":
                # Compiled code is known by size and second of its source: it may be that of the file before.
                Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)
                self._load(path.stem, same)
            elif path.suffix in (".zip", ".egg") and str(path) not in sys.path:
                sys.path.insert(0, str(path))

    @staticmethod
    def _load(module: str, same: bool) -> None:
        loaded = sys.modules.get(module)
        if loaded is None:
            importlib.import_module(module)
        elif not same:
            importlib.reload(loaded)


class _Preloaded:
    """A module as a plugin."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def _call(self, what: str, worker: Any) -> None:
        for prefix in ("zdist", "dask"):
            function = getattr(self.module, f"{prefix}_{what}", None)
            if function is not None:
                function(worker)
                return

    def setup(self, worker: Any) -> None:
        self._call("setup", worker)

    def teardown(self, worker: Any) -> None:
        self._call("teardown", worker)


def add(name: str, version: str, plugin: Any, dask_worker: Any = None) -> None:
    """What a client has workers run for `register_worker_plugin`."""
    dask_worker.plugins.add(name, version, plugin)


def remove(name: str, dask_worker: Any = None) -> None:
    """For `unregister_worker_plugin`."""
    dask_worker.plugins.remove(name)


def upload(name: str, data: bytes, dask_worker: Any = None) -> None:
    """For `upload_file`."""
    dask_worker.plugins.upload(name, data)
