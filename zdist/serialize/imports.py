"""What can be imported elsewhere, and from where."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

_lock = threading.Lock()


def importable(obj: Any, by_value: Iterable[str] = ()) -> bool:
    """Whether another process finds this very class or function by its module and name."""
    module = getattr(obj, "__module__", None)
    name = getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return False
    if any(module == parent or module.startswith(parent + ".") for parent in by_value):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj


def import_path() -> list[str]:
    """The entries of sys.path that exist, absolute; the empty entry is the working directory."""
    found = (os.path.abspath(entry) for entry in sys.path if isinstance(entry, str))
    return [entry for entry in dict.fromkeys(found) if os.path.exists(entry)]


def extend_path(entries: Iterable[str]) -> None:
    """Append to sys.path what exists here and is not in it yet, so that nothing of this process is shadowed."""
    with _lock:
        present = set(sys.path)
        if "" in present:
            present.add(os.getcwd())
        added = [entry for entry in entries if entry not in present and os.path.exists(entry)]
        if added:
            sys.path.extend(added)
            importlib.invalidate_caches()
