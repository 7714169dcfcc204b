"""Dask graphs: dicts of tasks that name each other, turned into calls. Semantics: dask 2021.10.

Here are graphs of tuples, for which dask need not be there; `zdist.integrations.dask` adds those of its newer releases.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from zdist.client.batch import Batch, Call, is_global
from zdist.client.future import Future
from zdist.client.program import Builder, Program, apply, identity, make_list, sorted_keys

__all__ = ["Graph", "text"]

OWN_FUNCTIONS: Final = 128  # of one graph: closures, partials, programs and so on that are functions of zdist
OWN_NAMES: Final = 64  # of one graph: names by which those that stand for several are known


class Graph:
    """One graph. ``options``: of its tasks, see `Call`."""

    def __init__(self, dsk: Mapping[Any, Any], options: tuple[Any, ...] = ()) -> None:
        self.dsk = dsk
        self.options = options
        self.made: dict[Any, Any] = {}  # key: future, or a literal; only while somebody still needs it
        self.programs: dict[tuple[Any, ...], Program] = {}
        self._own: dict[int, Callable[..., Any]] = {}
        self._names: set[str] = set()
        self._needed: dict[Any, list[Any]] = {}

    def results(self, keys: Any, batch: Batch) -> Any:
        """Submit what the wanted keys need; futures in the shape of ``keys``, a key or a list (of lists) of keys.

        All others are let go of as soon as what depends on them is submitted. Raises KeyError and ValueError.
        """
        wanted = dict.fromkeys(self._flat(keys))
        order = self.arrange(wanted)
        self.left = Counter(need for key in order for need in self.needs(key))
        made, left = self.made, self.left
        for key in order:
            step = self.step(key)
            if key in wanted and not isinstance(step, Call | Future):
                step = self.call(key, identity, [step], {}, text(key))
            made[key] = batch.add(step) if isinstance(step, Call) else step
            for need in self.needs(key):
                left[need] -= 1
                if not left[need] and need not in wanted:
                    del made[need]
        return self._shaped(keys)

    def is_plain(self) -> bool:
        """Whether all of it is tuples and literals, which can be run without dask, and dask is not used."""
        return isinstance(self.dsk, dict) and "dask" not in sys.modules

    def _flat(self, keys: Any) -> list[Any]:
        if isinstance(keys, list):
            return [key for part in keys for key in self._flat(part)]
        if not self._is_key(keys):
            raise KeyError(f"the graph has no key {keys!r}")
        return [keys]

    def _shaped(self, keys: Any) -> Any:
        return [self._shaped(key) for key in keys] if isinstance(keys, list) else self.made[keys]

    def _is_key(self, item: Any) -> bool:
        try:
            return item in self.dsk
        except TypeError:  # unhashable
            return False

    def arrange(self, wanted: Iterable[Any]) -> list[Any]:
        """The keys that are needed, in the order in which they are submitted: each after those that it needs."""
        return sorted_keys(wanted, self.dsk, self.needs)

    def call(self, key: Any, func: Callable[..., Any], args: Iterable[Any], kwargs: dict[str, Any], name: str) -> Call:
        """The call for a key. ``name``: how a function that stands for several is known.

        What cannot be imported is a function of its own as long as there are few of them, since those that many tasks
        share are to be pickled once; then it is an argument like others, since workers keep a limited number.
        """
        if not is_global(func):
            if id(func) in self._own or len(self._own) < OWN_FUNCTIONS:
                self._own[id(func)] = func
            else:
                func, args = apply, (func, *args)
        elif func is not identity:
            name = ""
        if name and name not in self._names:
            if len(self._names) < OWN_NAMES:
                self._names.add(name)
            else:
                name = ""
        return Call(text(key), func, tuple(args), kwargs, self.options_for(key), name)

    # --- tasks that are tuples -----------------------------------------------------------------------

    def options_for(self, key: Any) -> tuple[Any, ...]:
        """The options of a key's task."""
        return self.options

    def needs(self, key: Any) -> Collection[Any]:
        """The keys that a key's task needs, each once."""
        known = self._needed.get(key)
        if known is None:
            found: dict[Any, None] = {}
            ahead = [self.dsk[key]]
            while ahead:
                item = ahead.pop()
                if is_task(item):
                    ahead += item[1:]
                elif isinstance(item, list):
                    ahead += item
                elif self._is_key(item):
                    found[item] = None
            known = self._needed[key] = list(found)
        return known

    def step(self, key: Any) -> Any:
        """What a key stands for once those that it needs are made: a call, a future or a literal."""
        expr = self.dsk[key]
        if is_task(expr) and not any(_has_task(arg) for arg in expr[1:]):
            return self.call(key, expr[0], [self._fill(arg) for arg in expr[1:]], {}, "")
        if _has_task(expr):
            builder = Builder()
            self._build(builder, expr)
            return self.call(key, builder.finish(self.programs), builder.inputs, {}, text(key))
        value = self._fill(expr)
        return self.call(key, identity, [value], {}, text(key)) if isinstance(expr, list) and self.needs(key) else value

    def _fill(self, item: Any) -> Any:
        """An expression without tasks, with futures or literals in place of keys."""
        if isinstance(item, list):
            return [self._fill(arg) for arg in item]
        return self.made[item] if self._is_key(item) else item

    def _build(self, builder: Builder, item: Any) -> int:
        if is_task(item):
            return builder.call(item[0], [self._build(builder, arg) for arg in item[1:]])
        if _has_task(item):
            return builder.call(make_list, [self._build(builder, arg) for arg in item])
        return builder.input(self._fill(item))


def text(key: Any) -> str:
    """How a key of a graph reads in keys of zdist and in messages."""
    return key if isinstance(key, str) else str(key)


def is_task(item: Any) -> bool:
    """Whether a graph's value is a task: a tuple that begins with a function."""
    return type(item) is tuple and bool(item) and callable(item[0])


def _has_task(item: Any) -> bool:
    return is_task(item) or (isinstance(item, list) and any(_has_task(arg) for arg in item))
