"""What a client learns by looking into a worker: where its threads are, and what it has and has had to do.

Made to be run on the worker by a client (`Client.run`), outside the task system.
"""

from __future__ import annotations

import sys
import time
import traceback
from types import FrameType
from typing import Any

from zdist.transport.versions import versions

__all__ = ["call_stacks", "measure", "versions_here"]


def call_stacks(keys: list[str] | None, dask_worker: Any) -> dict[str, tuple[str, ...]]:
    """The lines of each running task's stack, innermost last, by key; of these keys, or of all that run (None)."""
    frames = sys._current_frames()
    wanted = None if keys is None else frozenset(keys)
    stacks = {}
    for thread, runner in list(dask_worker.executor.alive.items()):
        task, frame = runner.task, frames.get(thread.ident or 0)
        if task is not None and frame is not None and (wanted is None or task.key in wanted):
            stacks[task.key] = tuple(traceback.format_list(_own(frame))) or (
                f"  in {task.function.name}, without Python\n",
            )
    return stacks


def _own(frame: FrameType) -> traceback.StackSummary:
    """A stack without what the worker has put around the task."""
    frames = list(traceback.walk_stack(frame))
    inside = [n for n, (each, _) in enumerate(frames) if each.f_globals.get("__name__") == "zdist.worker.executor"]
    frames = frames[: inside[0]] if inside else frames
    return traceback.StackSummary.extract(iter(frames[::-1]), lookup_lines=True)


def measure(dask_worker: Any) -> dict[str, Any]:
    """Figures of a worker: bytes of memory, of values held and of those on disk; keys held; seconds of processor time;
    bytes that it has fetched, by path; and the keys that it runs."""
    machine = dask_worker.machine
    with dask_worker.driver.lock:
        entries = list(machine.store.entries.values())
        stored = machine.store.total
        fetched = dict(machine.fetcher.report.totals)
    return {
        "time": time.monotonic(),
        "memory": dask_worker.memory_in_use(),
        "stored": stored,
        "spilled": sum(entry.nbytes for entry in entries if entry.blob is not None and entry.blob.spilled),
        "keys": len(entries),
        "cpu": time.process_time(),
        "fetched": fetched,
        "running": [running.key for running in dask_worker.running()],
    }


def versions_here(packages: list[str], dask_worker: Any) -> dict[str, Any]:
    """See `zdist.transport.versions`."""
    return versions(packages)
