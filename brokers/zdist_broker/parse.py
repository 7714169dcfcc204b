"""Free-form values from peers, taken apart by type and by size. PURE.

The codec checks what a message's annotations say; what they leave open (the info of a hello, options, the arguments of
questions) is parsed here before anything of it is kept. Each function raises ValueError with a text that names the
value and shows no more than its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zdist.limits import ASK_ENTRIES, CHUNK_ROWS, MAX_KEY, MAX_NAME, MAX_NAMES, MAX_TEXT, MAX_THREADS, PRIORITY_MAX
from zdist.protocol.messages import Data, Get, Options, Subscribe

__all__ = [
    "amount", "fit_cell", "fit_data", "fit_get", "fit_key", "hello_info", "keys", "names", "options", "shown",
    "subscription", "text", "whole",
]  # fmt: skip

_DEFAULTS = Options()
_NOTHING: dict[str, float] = {}


def shown(value: Any) -> str:
    """A value as errors show it, however large it is."""
    if isinstance(value, str | bytes):
        return repr(value[:40]) + ("…" if len(value) > 40 else "")
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | dict) else type(value).__name__


def fit_key(key: str) -> str:
    """Why this text cannot be a key; empty if it can."""
    if 0 < len(key) <= MAX_KEY:
        return ""
    return f"a key has 1 to {MAX_KEY} characters, this one has {len(key)}"


def text(what: str, value: Any, most: int = MAX_NAME) -> str:
    if type(value) is not str or len(value) > most:
        raise ValueError(f"{what}: {shown(value)} is no text of at most {most} characters")
    return value


def whole(what: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what}={shown(value)} is not a number from {least} to {most}")
    return value


def amount(what: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise ValueError(f"{what}: {shown(value)} is no finite number from 0 on")
    return float(value)


def names(what: str, value: Any) -> tuple[str, ...]:
    """Names of workers or tags, each once, in their order."""
    if not isinstance(value, tuple | list) or len(value) > MAX_NAMES:
        raise ValueError(f"{what}: {shown(value)} is not a list of strings, at most {MAX_NAMES}")
    return tuple(dict.fromkeys(text(what, name) for name in value))


def keys(what: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple | list) or len(value) > ASK_ENTRIES:
        raise ValueError(f"{what}: {shown(value)} is not a list of keys, at most {ASK_ENTRIES}")
    return tuple(dict.fromkeys(text(what, key, MAX_KEY) for key in value))


def _resources(pairs: Iterable[Any], count: int) -> dict[str, float]:
    if count > MAX_NAMES:
        raise ValueError(f"resources: {count} of them, at most {MAX_NAMES} are possible")
    found = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"resources: {shown(pair)} is not a name and an amount")
        name = text("resources", pair[0])
        found[name] = amount(f"resources: {shown(name)}", pair[1])
    return found


def options(fields: tuple[Any, ...]) -> Options:
    """The options of a submission."""
    if not fields:
        return _DEFAULTS
    if len(fields) > len(Options._fields):
        raise ValueError(f"{len(fields)} options where {len(Options._fields)} are known")
    retries, priority, workers, allow_other, resources, tags, forget, timeout, actor = Options(*fields)
    if not isinstance(resources, tuple | list):
        raise ValueError(f"resources: {shown(resources)} is not a list of names and amounts")
    return Options(
        whole("retries", retries, 0, (1 << 31) - 1),
        whole("priority", priority, -PRIORITY_MAX, PRIORITY_MAX),
        names("workers", workers),
        bool(allow_other),
        tuple(sorted(_resources(resources, len(resources)).items())),
        tuple(sorted(names("tags", tags))),
        bool(forget),
        amount("timeout", timeout),
        bool(actor),
    )


def hello_info(role: str, info: dict[str, Any]) -> dict[str, Any]:
    """What the broker keeps of a hello's info; what it does not know is left out, so that peers may tell more."""
    kept: dict[str, Any] = {name: text(name, info.get(name) or "") for name in ("name", "host")}
    kept["pid"] = whole("pid", info.get("pid") or 0, 0, 1 << 62)
    kept["shm"] = info.get("shm") is True
    if role == "worker":
        for name in ("node", "address"):
            if name not in info:
                raise ValueError(f"{name} is missing")
            kept[name] = text(name, info[name])
        kept["memory_limit"] = whole("memory_limit", info.get("memory_limit") or 0, 0, 1 << 62)
        names("tags", info.get("tags", ()))  # it will subscribe with them
        offered = info.get("resources", _NOTHING)
        if not isinstance(offered, dict):
            raise ValueError(f"resources: {shown(offered)} is not a table of names and amounts")
        _resources(offered.items(), len(offered))
    elif role == "node":
        kept["workers"] = whole("workers", info.get("workers") or 0, 0, 1 << 62)
    return kept


def subscription(message: Subscribe) -> Subscribe:
    """A worker's offer with its names and amounts checked; fewer threads than none are none."""
    return Subscribe(
        whole("threads", max(message.threads, 0), 0, MAX_THREADS),
        names("tags", message.tags),
        _resources(message.resources.items(), len(message.resources)),
        message.paused,
    )


def fit_cell(row: tuple[str, str, Any, Any]) -> bool:
    """Whether a cell of shared state, as a node offers it, is one that a broker may have made."""
    kind, name, item, value = row
    if len(kind) > MAX_NAME or len(name) > MAX_KEY:
        return False
    if kind == "event":
        return item == "" and value is True
    if kind == "metadata":
        return type(item) is str and type(value) is bytes
    if kind == "plugin":
        return type(item) is int and type(value) is bytes and (item >= 0 or (len(value) < 8 and value.isdigit()))
    if type(value) is not tuple or type(item) not in (int, str):
        return False
    kinds = [type(part) for part in value]
    if kind in ("lock", "semaphore", "multilock"):
        return type(item) is int and kinds == [str, int, int]
    if kind in ("queue", "variable", "dataset"):
        fit = kinds == [bytes, tuple] and type(item) is (int if kind == "queue" else str)
    else:
        fit = kind == "answer" and type(item) is int and kinds == [str, str, str, tuple, tuple] and len(value[3]) == 2
    return fit and all(type(key) is str for key in value[-1])


def fit_get(message: Get) -> bool:
    """Whether a request is one that a receiver would make."""
    rows = message.rows
    return len(rows) <= CHUNK_ROWS and all(len(row[0]) <= MAX_KEY for row in rows)


def fit_data(message: Data) -> bool:
    """Whether an answer is one to such a request; how many bytes it carries is the relay's concern."""
    if len(message.rows) > CHUNK_ROWS or len(message.absent) > CHUNK_ROWS:
        return False
    return all(len(row[0]) <= MAX_KEY for row in message.rows) and all(
        len(key) <= MAX_KEY and len(code) <= MAX_KEY and len(text) <= MAX_TEXT for key, code, text in message.absent
    )
