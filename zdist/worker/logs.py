"""Log records of a worker: the last ones are kept for `recent`, those of tasks are shown at clients that subscribed."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from zdist import context, limits

__all__ = ["Records", "recent"]


class Records(logging.Handler):
    """Keeps the last ``limits.LOG_LINES`` records as (level, line). ``worker`` is whose they are; with ``all_threads``
    False only records from its tasks count, for a process that is not the worker's alone."""

    def __init__(self, worker: Any, all_threads: bool) -> None:
        super().__init__()
        self.worker = worker
        self.all_threads = all_threads
        self.lines: deque[tuple[str, str]] = deque(maxlen=limits.LOG_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a record."""
        task = context.current.get()
        if task is not None and task.worker is not self.worker:
            task = None
        if task is None and not self.all_threads:
            return
        try:
            line = self.format(record)[: limits.MAX_TEXT]
        except Exception:
            self.handleError(record)
            return
        self.lines.append((record.levelname, line))
        if task is not None:
            task.output("log", line)


def recent(n: int | None = None, *, dask_worker: Any) -> list[tuple[str, str]]:
    """The last ``n`` (None: all kept) log records of a worker, oldest first; made to be run on it by a client."""
    lines = list(dask_worker.records.lines)
    return lines if n is None else lines[max(0, len(lines) - n) :]
