"""Futures inside containers: take them out, and put their values back into containers of the same kind.

``gather`` takes a future; list, tuple, set, frozenset, dict (values), namedtuple and their subclasses that can be
rebuilt, nested to any depth; an iterator; a queue. Everything else is a value and comes back untouched, a string that
happens to equal a key included. Semantics: dask.distributed 2021.10, whose documentation names them all.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Mapping
from typing import Any, Final

from zdist.client.future import Future

__all__ = ["Skeleton", "flatten", "rebuild"]

#: What is left of a container when its futures are taken out; opaque, made by flatten for rebuild. Either
#: ("one", key), ("flat", type, keys), or ("tree", program), a program in postfix order for a stack machine: no
#: recursion, so that depth is bounded by memory alone. Its steps are (LEAF, object), (KEY, key) and
#: (BUILD, container, number of members, keys of a dict).
Skeleton = tuple[Any, ...]

_LEAF: Final = 0
_KEY: Final = 1
_BUILD: Final = 2

_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})  # most values; saves four isinstance
_GROUPS: Final = (list, tuple, set, frozenset)
_END: Final = object()
_SKIPPED: Final = object()


def flatten(obj: Any) -> tuple[list[Future], Skeleton]:
    """Take the futures out of a container.

    Returns:
        The futures in the order first seen, one for each key (of futures that share a key but belong to different
        clients all are listed, for the caller to refuse); and the skeleton for ``rebuild``.

    Raises:
        ValueError: a container contains itself.
    """
    kind = type(obj)
    if kind is Future:
        return [obj], ("one", obj.key)
    if kind in _GROUPS and obj and set(map(type, obj)) == {Future}:
        keys = [future.key for future in obj]
        unique = dict(zip(keys, obj, strict=True))
        futures = list(unique.values()) if len(unique) == len(keys) else _first_of_each(obj)
        return futures, ("flat", kind, keys)
    found: list[Future] = []
    program = _walk(obj, found)
    return _first_of_each(found), ("tree", program)


def _first_of_each(futures: Any) -> list[Future]:
    seen: dict[str, Future] = {}
    foreign = []
    for future in futures:
        first = seen.setdefault(future.key, future)
        if first is not future and first.client is not future.client:
            foreign.append(future)
    return [*seen.values(), *foreign]


def _walk(item: Any, found: list[Future]) -> list[tuple[Any, ...]]:
    """The postfix program of a container; a container without futures is one leaf of it."""
    program: list[tuple[Any, ...]] = []
    path: list[tuple[Any, Iterator[Any], int, int]] = []  # open containers: members left, program and futures before
    inside: set[int] = set()
    while True:
        kind = type(item)
        if kind in _PLAIN:
            program.append((_LEAF, item))
        elif isinstance(item, Future):
            found.append(item)
            program.append((_KEY, item.key))
        elif isinstance(item, (*_GROUPS, dict)):
            if id(item) in inside:
                raise ValueError(f"the {kind.__name__} to gather contains itself")
            inside.add(id(item))
            members = item.values() if isinstance(item, dict) else item
            path.append((item, iter(members), len(program), len(found)))
        else:
            program.append((_LEAF, item))
        while True:
            if not path:
                return program
            container, members_left, start, futures_before = path[-1]
            item = next(members_left, _END)
            if item is not _END:
                break
            path.pop()
            inside.discard(id(container))
            if len(found) > futures_before or (not path and type(container) in (list, set, dict)):
                keys = tuple(container) if isinstance(container, dict) else None
                program.append((_BUILD, container, len(container), keys))
            else:
                program[start:] = [(_LEAF, container)]


def rebuild(skeleton: Skeleton, values: Mapping[str, Any], skip: Container[str] = ()) -> Any:
    """Put values where ``flatten`` took futures out.

    The containers that hold futures, and the outermost one, are new; all else is the same object as before. Futures of
    one key stand for one object.

    Parameters:
        values: by key; every key that is not skipped.
        skip: keys whose futures are left out of the list, tuple, set or dict that they stand in; a bare future or a
            field of a namedtuple becomes None.

    Raises:
        TypeError: a subclass that cannot be made anew from its members, or a set of unhashable values.
    """
    form = skeleton[0]
    if form == "one":
        return None if skeleton[1] in skip else values[skeleton[1]]
    if form == "flat":
        _, kind, keys = skeleton
        parts = [values[key] for key in keys if key not in skip] if skip else [values[key] for key in keys]
        return parts if kind is list else _group(kind, parts)
    stack: list[Any] = []
    for step in skeleton[1]:
        code = step[0]
        if code == _LEAF:
            stack.append(step[1])
        elif code == _KEY:
            stack.append(_SKIPPED if step[1] in skip else values[step[1]])
        else:
            _, container, size, names = step
            cut = len(stack) - size
            parts = stack[cut:]
            del stack[cut:]
            stack.append(_build(container, parts, names))
    return None if stack[0] is _SKIPPED else stack[0]


def _build(model: Any, parts: list[Any], names: tuple[Any, ...] | None) -> Any:
    kind = type(model)
    if names is not None:
        pairs = {name: part for name, part in zip(names, parts, strict=True) if part is not _SKIPPED}
        return pairs if kind is dict else _refill(model, pairs)
    if isinstance(model, tuple) and hasattr(kind, "_make"):
        return kind._make(None if part is _SKIPPED else part for part in parts)
    kept = [part for part in parts if part is not _SKIPPED]
    if kind in _GROUPS:
        return kept if kind is list else _group(kind, kept)
    return _refill(model, kept)


def _group(kind: type, parts: list[Any]) -> Any:
    try:
        return kind(parts)
    except TypeError as exc:
        raise TypeError(
            f"the values gathered do not fit into a {kind.__name__} ({exc}); gather a list instead"
        ) from exc


def _refill(model: Any, members: Any) -> Any:
    """An object like ``model``, an instance of a subclass, with other members; its attributes are kept."""
    kind = type(model)
    try:
        if isinstance(model, tuple | frozenset):
            return kind(members)
        new = copy.copy(model)
        new.clear()
        if isinstance(new, list):
            new.extend(members)
        else:
            new.update(members)
    except Exception as exc:
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(f"cannot make a {name} of its members again ({exc}); gather a list or dict instead") from exc
    return new
