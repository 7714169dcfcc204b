"""The guards of a module, one altered at a time: conditions that are negated, early exits that are taken away."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

__all__ = ["Mutant", "altered", "mutants", "parts"]


class Mutant(NamedTuple):
    """A guard and what becomes of it. ``lines`` are its own, by which one sees who comes past it."""

    module: str
    path: Path
    number: int  # of the guard in its module
    line: int
    lines: range
    where: str  # class and function
    what: str

    @property
    def name(self) -> str:
        return f"{self.module}.{self.where}: {self.what}"


def _tail(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements after which a block is over."""
    if body:
        last = body[-1]
        yield last
        for field in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(last, ast.If | ast.With | ast.Try):
                inner = getattr(last, field, [])
                yield from _tail(inner[-1].body if inner and isinstance(inner[-1], ast.ExceptHandler) else inner)


def guards(tree: ast.Module) -> list[tuple[ast.AST, str, int | None]]:
    """What can be altered: the node, the field that holds a condition ("" for an exit), and its place in a list."""
    idle = set()  # exits that lead where going on leads
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            idle |= {id(end) for end in _tail(node.body) if isinstance(end, ast.Return) and _nothing(end.value)}
            idle.add(id(node.body[-1]))
        if isinstance(node, ast.For | ast.While):
            idle |= {id(end) for end in _tail(node.body) if isinstance(end, ast.Continue)}
    found: list[tuple[ast.AST, str, int | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Constant):
            if ast.unparse(node.test) != "TYPE_CHECKING":
                found.append((node, "test", None))
        elif isinstance(node, ast.comprehension):
            found += [(node, "ifs", i) for i in range(len(node.ifs))]
        elif isinstance(node, ast.Return | ast.Continue | ast.Break) and id(node) not in idle:
            found.append((node, "", None))
    return found


def _nothing(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _condition(node: Any, field: str, place: int | None) -> ast.expr:
    found: Any = getattr(node, field)
    return found if place is None else found[place]


def mutants(module: str, path: Path) -> list[Mutant]:
    """All that can be made of a module."""
    result = []
    tree = ast.parse(path.read_text())
    above = {id(child): parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for number, (node, field, place) in enumerate(guards(tree)):
        if field:
            what = f"not ({ast.unparse(_condition(node, field, place))})"
        else:
            parent = above[id(node)]
            reason = f" if {ast.unparse(parent.test)}" if isinstance(parent, ast.If) else ""
            what = f"without {ast.unparse(node)!r}{reason}"
        at: Any = _condition(node, field, place) if field else node
        names, up = [], node
        while (up := above.get(id(up))) is not None:
            names += [up.name] if isinstance(up, ast.FunctionDef | ast.ClassDef) else []
        lines = range(at.lineno, at.end_lineno + 1)
        result.append(Mutant(module, path, number, at.lineno, lines, ".".join(reversed(names)), what))
    return result


def altered(mutant: Mutant) -> CodeType:
    """A module with one guard altered, compiled."""
    tree = ast.parse(mutant.path.read_text())
    node, field, place = guards(tree)[mutant.number]
    if field:
        old = _condition(node, field, place)
        new = ast.copy_location(ast.UnaryOp(ast.Not(), old), old)
        if place is None:
            setattr(node, field, new)
        else:
            getattr(node, field)[place] = new
    else:
        for parent in ast.walk(tree):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(parent, name, None)
                if isinstance(block, list) and node in block:
                    block[block.index(node)] = ast.copy_location(ast.Pass(), node)
    return compile(ast.fix_missing_locations(tree), str(mutant.path), "exec")


def parts(code: CodeType) -> Iterator[CodeType]:
    """A piece of code, and those within it: classes and functions."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from parts(inner)
