"""Straight-line programs: what a task of several calls computes, apart from the values that it works on.

Tasks of a dask graph may hold others, written into their arguments or fused into one. Their functions and how they hang
together are the same for many keys, so that is pickled once and sent once, as any function is; what differs are inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

__all__ = [
    "Builder",
    "Program",
    "apply",
    "identity",
    "make_dict",
    "make_list",
    "make_set",
    "make_tuple",
    "run_node",
    "sorted_keys",
]


class Step(NamedTuple):
    """One call. A place is the number of an input, or from -1 downwards that of a step further ahead."""

    func: Callable[..., Any]
    args: tuple[int, ...]
    kwargs: tuple[tuple[str, int], ...]
    last: tuple[int, ...] = ()  # steps whose results are not used any more


class Program:
    """A function of inputs: runs its steps and returns what the last one does."""

    __slots__ = ("steps",)

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps = steps

    def __call__(self, *inputs: Any) -> Any:
        made: list[Any] = []
        for func, args, kwargs, last in self.steps:
            values = [inputs[place] if place >= 0 else made[~place] for place in args]
            named = {name: inputs[place] if place >= 0 else made[~place] for name, place in kwargs}
            for place in last:
                made[place] = None
            made.append(func(*values, **named))
            del values, named
        return made[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.steps,)


class Builder:
    """Collects the steps of one program and its inputs."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.steps: list[Step] = []

    def input(self, value: Any) -> int:
        """The place of a further input."""
        self.inputs.append(value)
        return len(self.inputs) - 1

    def call(self, func: Callable[..., Any], args: Iterable[int], kwargs: Mapping[str, int] | None = None) -> int:
        """The place of what a further call returns."""
        self.steps.append(Step(func, tuple(args), tuple((kwargs or {}).items())))
        return -len(self.steps)

    def finish(self, known: dict[tuple[Any, ...], Program]) -> Program:
        """The program: one that is known and does the same, or a new one."""
        sign = tuple([(id(step.func), step.args, step.kwargs) for step in self.steps])
        program = known.get(sign)
        if program is None:
            used: dict[int, int] = {}
            for number, step in enumerate(self.steps):
                for place in (*step.args, *[place for _, place in step.kwargs]):
                    if place < 0:
                        used[~place] = number
            program = known[sign] = Program(
                tuple(
                    step._replace(last=tuple([made for made, user in used.items() if user == number]))
                    for number, step in enumerate(self.steps)
                )
            )
        return program


def sorted_keys(wanted: Iterable[Any], graph: Any, needs: Callable[[Any], Collection[Any]]) -> list[Any]:
    """The keys of a graph that are needed, each after those that it needs. Without recursion: graphs may be deep.

    Raises ValueError for a cycle, KeyError for a key that is needed and not there.
    """
    found: dict[Any, None] = {}
    inside: set[Any] = set()
    stack = [(key, False) for key in wanted]
    while stack:
        key, ready = stack.pop()
        if ready:
            inside.discard(key)
            found[key] = None
        elif key not in found:
            inside.add(key)
            stack.append((key, True))
            for need in needs(key):
                if need in inside:
                    raise ValueError(f"the graph has a cycle through {need!r}")
                if need not in found:
                    if need not in graph:
                        raise KeyError(f"{key!r} needs {need!r}, which the graph does not have")
                    stack.append((need, False))
    return list(found)


# --- what steps and tasks may call ------------------------------------------------------------------------


def apply(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function that came as an argument."""
    return func(*args, **kwargs)


def run_node(node: Any, values: dict[Any, Any]) -> Any:
    """Run a node of a graph as dask does."""
    return node(values)


def identity(value: Any) -> Any:
    """What makes a result of a literal."""
    return value


def make_list(*items: Any) -> list[Any]:
    """A list."""
    return list(items)


def make_tuple(*items: Any) -> tuple[Any, ...]:
    """A tuple."""
    return items


def make_set(*items: Any) -> set[Any]:
    """A set."""
    return set(items)


def make_dict(*items: Any) -> dict[Any, Any]:
    """A dict of keys and values in turn."""
    return dict(zip(items[::2], items[1::2], strict=True))
