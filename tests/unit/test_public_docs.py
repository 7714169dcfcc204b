"""Every public name says what its parameters are, what it raises, and where its semantics come from."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import zdist

SOURCES = ("dask.distributed", "concurrent.futures", "zdist's own", "builtin")
CONSTANTS = ("ALL_COMPLETED", "FIRST_COMPLETED", "__version__")
NOT_CALLED = ("Actor", "ActorFuture", "DoneAndNotDoneFutures")  # by users: zdist makes them


def public() -> Iterator[tuple[str, Any, type | None]]:
    """Names, what they stand for, and the class that they belong to."""
    for name in zdist.__all__:
        if name in CONSTANTS:
            continue
        thing = getattr(zdist, name)
        yield name, thing, None
        for attribute in dir(thing) if inspect.isclass(thing) else ():
            static = inspect.getattr_static(thing, attribute)
            function = getattr(static, "fget", None) or getattr(static, "__func__", static)
            if not attribute.startswith("_") and getattr(function, "__module__", "").startswith("zdist"):
                yield f"{name}.{attribute}", function, thing


NAMES = {name: (thing, owner) for name, thing, owner in public()}


def texts(name: str) -> str:
    """Its docstring, those that this refers to, and that of its class and the classes which that is made of."""
    thing, owner = NAMES[name]
    own = inspect.getdoc(thing) or ""
    for other in re.findall(r"`([\w.]+)`", own):
        for known in (f"{owner.__name__}.{other}" if owner else other, other):
            if known in NAMES and known != name:
                own += inspect.getdoc(NAMES[known][0]) or ""
    bases = (owner or (thing if inspect.isclass(thing) else object)).__mro__
    return own + "".join(base.__doc__ or "" for base in bases if base.__module__.startswith("zdist"))


def raised(function: Any) -> set[str]:
    """Names of the exceptions that its own lines raise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name) and call.func.id[0].isupper()}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented(name: str) -> None:
    thing, _ = NAMES[name]
    assert inspect.getdoc(thing), "no docstring"
    text = texts(name)
    if name not in NOT_CALLED and not (inspect.isclass(thing) and issubclass(thing, BaseException)):
        parameters = set(inspect.signature(thing).parameters) - {"self", "cls"}
        assert not {p for p in parameters if not re.search(rf"\b{p}\b", text)}, "parameters without a word"
        body = thing.__init__ if inspect.isclass(thing) else thing
        if inspect.isfunction(body):
            assert not {e for e in raised(body) if e not in text}, "raised without a word"
    assert any(source in text for source in SOURCES), f"does not say where its semantics come from: {SOURCES}"
