"""Submissions that have large arrays in common: each array is sent once for all of them, and is read-only in the tasks.

For callers that hand out one task after the other and cannot use ``map``, such as the joblib backend.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from zdist import serialize
from zdist.client.future import Future, future_of
from zdist.client.submitting import Held, Submitting, options_of

__all__ = ["ReadOnly", "Sharing", "is_array"]


class ReadOnly:
    """Pickled in place of an array: arrives as that array, not to be written to: all tasks of a worker see it."""

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_only, (self.array,)


def _read_only(array: Any) -> Any:
    array.setflags(write=False)
    return array


def is_array(obj: Any) -> bool:
    """Whether it is a numpy array, and not of a subclass."""
    return type(obj) is getattr(sys.modules.get("numpy"), "ndarray", None)


class Sharing(Held):
    """Submits tasks whose large arrays, the same objects again and again, are frozen at their first use.

    An array that the caller has let go of is let go of here too. Changes made to one between two submissions are not
    seen. Used by one thread at a time.

    Parameters:
        nbytes: arrays from this size on are shared; smaller ones are frozen for each submission, and are its own.
            None: no array is shared.
        options: those of ``Client.submit`` that say how and where tasks run.
    """

    __slots__ = ("nbytes", "options", "shared")

    def __init__(self, client: Submitting, nbytes: int | None, options: dict[str, Any]) -> None:
        super().__init__(client, content=False)
        self.nbytes = nbytes
        self.options = check_options(**options)
        self.shared: dict[int, tuple[weakref.ref[Any], Future]] = {}

    def submit(self, func: Callable[..., Any], *args: Any) -> Future:
        """As ``Client.submit(func, *args, pure=False)``."""
        client = self.client
        client._usable()
        blob = serialize.dumps_function(func)
        work = client._work(blob, self.options, True)
        return client._submit(work, client._own_key(blob), True, args, {}, self)

    def find(self, obj: Any) -> str:
        if self.nbytes is None or not is_array(obj) or obj.nbytes < self.nbytes:
            return super().find(obj)
        name = id(obj)
        known = self.shared.get(name)
        if known is not None and known[0]() is obj:
            return known[1].key

        def gone(ref: weakref.ref[Any]) -> None:
            known = self.shared.get(name)
            if known is not None and known[0] is ref:
                self.shared.pop(name, None)

        future = future_of(self.freeze(ReadOnly(obj)), self.client)  # type: ignore[arg-type]
        self.shared[name] = (weakref.ref(obj, gone), future)
        return future.key

    def release(self) -> None:
        super().release()
        self.known = {}

    def close(self) -> None:
        """Let go of the shared arrays; tasks that were submitted keep what they need."""
        self.shared.clear()


def check_options(
    workers: Any = None,
    resources: Any = None,
    retries: int | None = None,
    priority: int = 0,
    allow_other_workers: bool = False,
    tags: Any = None,
    timeout: float | str | None = None,
) -> tuple[Any, ...]:
    """Options of ``submit`` as rows carry them. Raises ValueError, or TypeError for one that does not exist."""
    return options_of(workers, resources, retries, priority, allow_other_workers, tags, timeout)
