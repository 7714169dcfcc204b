"""Dask graphs: dicts of tasks that name each other, turned into submissions. Semantics: dask 2021.10."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zdist.client.future import Future

__all__ = ["Graph"]

Submit = Callable[[str, Callable[..., Any], list[Any]], Future]


class Graph:
    """One graph; ``submit(name, function, args)`` is called once for each task that the wanted keys need."""

    def __init__(self, dsk: Mapping[Any, Any], submit: Submit) -> None:
        self.dsk = dsk
        self.submit = submit
        self.made: dict[Any, Any] = {}  # key: future, or literal

    def results(self, keys: Any) -> Any:
        """Futures (or literals) in the shape of ``keys``. Raises KeyError and ValueError."""
        if isinstance(keys, list):
            return [self.results(key) for key in keys]
        if not self._is_key(keys):
            raise KeyError(f"the graph has no key {keys!r}")
        self._make(keys)
        return self.made[keys]

    def _is_key(self, item: Any) -> bool:
        try:
            return item in self.dsk
        except TypeError:  # unhashable
            return False

    def _make(self, key: Any) -> None:
        """Submit a key's task after those it needs, without recursion: graphs may be deep."""
        stack = [(key, False)]
        inside: set[Any] = set()
        while stack:
            key, ready = stack.pop()
            if key in self.made:
                continue
            if not ready:
                if key in inside:
                    raise ValueError(f"the graph has a cycle through {key!r}")
                inside.add(key)
                stack.append((key, True))
                needed = self._needs(self.dsk[key])
                for need in needed:
                    if need in inside and need not in self.made:
                        raise ValueError(f"the graph has a cycle through {need!r}")
                stack += [(need, False) for need in needed if need not in self.made]
            else:
                inside.discard(key)
                self.made[key] = self._value(key, self.dsk[key])

    def _needs(self, expr: Any) -> list[Any]:
        found: dict[Any, None] = {}
        ahead = [expr]
        while ahead:
            item = ahead.pop()
            if is_task(item):
                ahead += item[1:]
            elif isinstance(item, list):
                ahead += item
            elif self._is_key(item):
                found[item] = None
        return list(found)

    def _value(self, key: Any, expr: Any) -> Any:
        name = key if isinstance(key, str) else str(key[0]) if isinstance(key, tuple) and key else "task"
        if is_task(expr):
            args = [self._fill(arg) for arg in expr[1:]]
            if any(_has_task(arg) for arg in expr[1:]):
                return self.submit(name, evaluate, [(expr[0], *args)])
            return self.submit(name, expr[0], args)
        if isinstance(expr, list) and (_has_task(expr) or self._needs(expr)):
            return self.submit(name, evaluate, [self._fill(expr)])
        return self.made[expr] if self._is_key(expr) and expr != key else expr

    def _fill(self, item: Any) -> Any:
        """The expression with futures or literals in place of keys."""
        if is_task(item):
            return (item[0], *[self._fill(arg) for arg in item[1:]])
        if isinstance(item, list):
            return [self._fill(arg) for arg in item]
        return self.made[item] if self._is_key(item) else item


def is_task(item: Any) -> bool:
    """Whether a graph's value is a task: a tuple that begins with a function."""
    return type(item) is tuple and bool(item) and callable(item[0])


def _has_task(item: Any) -> bool:
    return is_task(item) or (isinstance(item, list) and any(_has_task(arg) for arg in item))


def evaluate(expr: Any) -> Any:
    """Run an expression of nested tasks; on the worker, where its futures are values already."""
    if is_task(expr):
        return expr[0](*[evaluate(arg) for arg in expr[1:]])
    if isinstance(expr, list):
        return [evaluate(arg) for arg in expr]
    return expr
