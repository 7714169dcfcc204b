"""Futures inside containers: take them out, and put their values back into containers of the same kind.

``gather`` takes a future; list, tuple, set, frozenset, dict (values), namedtuple and their subclasses that can be
rebuilt, nested to any depth; an iterator; a queue. Everything else is a value and comes back untouched, a string that
happens to equal a key included. Semantics: dask.distributed 2021.10, whose documentation names them all.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Container, Iterator, Sequence
from typing import Any, Final

from zdist.client.future import Future

__all__ = ["Skeleton", "flatten", "rebuild"]

#: What is left of a container when its futures are taken out; opaque, made by flatten for rebuild. Futures are named by
#: their places in the list that flatten returns. Either ("flat", type, places), with None for places that are 0, 1, 2…,
#: or ("tree", program), a program in postfix order for a stack machine: no recursion, so that only memory bounds the
#: depth. Its steps are (LEAF, object), (PLACE, place) and (BUILD, container, number of members, keys of a dict).
Skeleton = tuple[Any, ...]

_LEAF: Final = 0
_PLACE: Final = 1
_BUILD: Final = 2

_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})  # most values; saves four isinstance
_GROUPS: Final = (list, tuple, set, frozenset)
_END: Final = object()
_SKIPPED: Final = object()


def flatten(obj: Any) -> tuple[list[Future], Skeleton]:
    """Take the futures out of a container.

    Returns:
        The futures in the order first seen, and the skeleton for ``rebuild``. Futures of one client that stand for the
        same result are listed once. A key that was cancelled and given again is two results.

    Raises:
        ValueError: a container contains itself.
    """
    kind = type(obj)
    found: dict[Any, Future] = {}  # by entry, which is one for all futures of one result
    if kind in _GROUPS and obj and set(map(type, obj)) == {Future}:
        entries = [future._entry for future in obj]
        if len(set(entries)) == len(entries):
            return list(obj), ("flat", kind, None)
        for entry, future in zip(entries, obj, strict=True):
            found.setdefault(entry, future)
        order = {entry: place for place, entry in enumerate(found)}
        return list(found.values()), ("flat", kind, [order[entry] for entry in entries])
    program = _walk(obj, found)
    return list(found.values()), ("tree", program)


def futures_in(obj: Any) -> list[Future]:
    """The futures in a container, and in the graphs of dask's collections in it, each once."""
    futures, skeleton = flatten(obj)
    if skeleton[0] == "flat" or "dask" not in sys.modules:
        return futures
    stack = [obj]
    while stack:
        item = stack.pop()
        if isinstance(item, _GROUPS):
            stack += item
        elif isinstance(item, dict):
            stack += item.values()
        elif not isinstance(item, type) and (graph := getattr(item, "__dask_graph__", None)) is not None:
            futures += [value for value in dict(graph() or {}).values() if isinstance(value, Future)]
    return flatten(futures)[0]


def _walk(item: Any, found: dict[Any, Future]) -> list[tuple[Any, ...]]:
    """The postfix program of a container; a container without futures is one leaf of it."""
    program: list[tuple[Any, ...]] = []
    path: list[tuple[Any, Iterator[Any], int, int]] = []  # open containers: members left, program and futures before
    inside: set[int] = set()
    places: dict[Any, int] = {}
    count = 0  # futures met, each as often as it was
    while True:
        kind = type(item)
        if kind in _PLAIN:
            program.append((_LEAF, item))
        elif isinstance(item, Future):
            entry = item._entry
            found.setdefault(entry, item)
            program.append((_PLACE, places.setdefault(entry, len(places))))
            count += 1
        elif isinstance(item, (*_GROUPS, dict)):
            if id(item) in inside:
                raise ValueError(f"the {kind.__name__} to gather contains itself")
            inside.add(id(item))
            members = item.values() if isinstance(item, dict) else item
            path.append((item, iter(members), len(program), count))
        else:
            program.append((_LEAF, item))
        while True:
            if not path:
                return program
            container, members_left, start, count_before = path[-1]
            item = next(members_left, _END)
            if item is not _END:
                break
            path.pop()
            inside.discard(id(container))
            if count > count_before or (not path and type(container) in (list, set, dict)):
                keys = tuple(container) if isinstance(container, dict) else None
                program.append((_BUILD, container, len(container), keys))
            else:
                program[start:] = [(_LEAF, container)]


def rebuild(skeleton: Skeleton, values: Sequence[Any], skip: Container[int] = ()) -> Any:
    """Put values where ``flatten`` took futures out.

    The containers that hold futures, and the outermost one, are new; all else is the same object as before. Futures of
    one result stand for one object.

    Parameters:
        values: in the order of the futures that flatten returned; what stands at a place to be skipped is not used.
        skip: places whose futures are left out of the list, tuple, set or dict that they stand in; a bare future or a
            field of a namedtuple becomes None.

    Raises:
        TypeError: a subclass that cannot be made anew from its members, or a set of unhashable values.
    """
    if skeleton[0] == "flat":
        _, kind, places = skeleton
        if places is None:
            parts = [value for i, value in enumerate(values) if i not in skip] if skip else list(values)
        else:
            parts = [values[i] for i in places if i not in skip]
        return parts if kind is list else _group(kind, parts)
    stack: list[Any] = []
    for step in skeleton[1]:
        code = step[0]
        if code == _LEAF:
            stack.append(step[1])
        elif code == _PLACE:
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
    if isinstance(model, tuple) and hasattr(kind, "_fields"):
        return _refill(model, [None if part is _SKIPPED else part for part in parts])
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
    """An object like ``model``, an instance of a subclass, with other members; its attributes are kept.

    Neither ``__new__`` nor ``__init__`` of the subclass is called: nobody knows what arguments they want.
    """
    kind = type(model)
    try:
        if isinstance(model, tuple | frozenset):
            return _remade(model, kind, members)
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


def _remade(model: Any, kind: Any, members: Any) -> Any:
    base: Any = tuple if isinstance(model, tuple) else frozenset
    try:
        new = base.__new__(kind, members)
    except TypeError:  # a struct sequence such as os.stat_result; or members that are not hashable
        return kind(members)
    state = object.__getstate__(model)
    for attributes in state if isinstance(state, tuple) else (state,):
        for name, value in (attributes or {}).items():
            object.__setattr__(new, name, value)
    return new
