"""Objects that stand for a key, and in whose name a thread unpickles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

references: dict[type, Callable[[Any], str]] = {}


def register_reference(cls: type, get_key: Callable[[Any], str]) -> None:
    """Let objects of exactly this class stand for a key (a subclass registers itself).

    ``dumps_args`` makes them dependencies of the task, ``token`` counts their key, ``dumps`` reports them as ``refs``.
    """
    references[cls] = get_key


class _Local(threading.local):
    owner: Any = None


local = _Local()


def owner() -> Any:
    """The ``owner`` that was given to the innermost loads of this thread, or None.

    A future's rebuild function asks this for the client that it is to belong to.
    """
    return local.owner
