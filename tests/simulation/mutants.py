"""What the tests would not notice: alter one guard of the machines at a time, and see whether anything fails.

    python tests/simulation/mutants.py [--sample N] [--seed S] [--schedules K] [--jobs J] [WORD …]

A mutant has one condition negated, or one early ``return``, ``continue`` or ``break`` taken away; words choose modules
by their names. Each is given K schedules of the simulator, and if it keeps all promises, the machines' own tests. It is
caught if one of these fails, or does not come to an end. Prints every survivor with its line, and exits with 1 if fewer
than 95 % are caught, not counting those that `EQUIVALENT` shows to change nothing.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = {"zdist_broker": ROOT / "brokers" / "zdist_broker", "zdist.core": ROOT / "zdist" / "core"}
DRIVERS = {"zdist_broker.__main__", "zdist_broker.server"}
TESTS = [f"tests/unit/{name}" for name in ("broker", "core", "data", "node", "client", "worker")]
WANTED = 0.95
SECONDS_PER_SCHEDULE, SECONDS_FOR_TESTS = 3, 400  # a mutant that takes longer has stopped getting anywhere

#: Mutants that nobody could tell from the original, by their names, and why.
EQUIVALENT = {
    "zdist.core.wants.Wants._pump: without 'return' if lone is not None and (not self.flying) and (len(queue) == 1) "
    "and (queue[0] is lone) and self._go_early(lone)": "the queue is empty then, and the rest of the function idle",
}


class Mutant(NamedTuple):
    module: str
    number: int  # of the guard in its module
    line: int
    where: str  # class and function
    what: str

    @property
    def name(self) -> str:
        return f"{self.module}.{self.where}: {self.what}"


# --- guards -------------------------------------------------------------------------------------------------


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
        line = node.lineno if hasattr(node, "lineno") else _condition(node, field, place).lineno
        names, up = [], node
        while (up := above.get(id(up))) is not None:
            names += [up.name] if isinstance(up, ast.FunctionDef | ast.ClassDef) else []
        result.append(Mutant(module, number, line, ".".join(reversed(names)), what))
    return result


def mutated(source: str, number: int) -> ast.Module:
    """The tree of a module with one guard altered."""
    tree = ast.parse(source)
    node, field, place = guards(tree)[number]
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
    return ast.fix_missing_locations(tree)


# --- one mutant, in a process of its own --------------------------------------------------------------------


class Loader(importlib.machinery.SourceFileLoader):
    number = 0

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(mutated(Path(path).read_text(), self.number), path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, number: int) -> None:
        self.module, self.number = module, number

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
        spec.loader = Loader(fullname, spec.origin)
        spec.loader.number = self.number
        return spec


def live(module: str, number: int, schedules: int) -> int:
    """What this process is for: 1 if a schedule fails, 2 if a test does, 0 if nothing is noticed."""
    sys.path[:0] = [str(ROOT), str(ROOT / "brokers")]
    sys.meta_path.insert(0, Finder(module, number))
    try:
        from zdist.testing.schedule import Schedule

        for seed in range(schedules):
            Schedule(seed).run()
            print(seed, flush=True)
    except BaseException as exc:
        print(f"schedule: {exc!r:.200}")
        return 1
    import pytest
    from hypothesis import Phase, settings

    settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("mutants")
    os.chdir(ROOT)
    return 2 if pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--timeout", "60", "--tb=line", *TESTS]) else 0


# --- all of them --------------------------------------------------------------------------------------------


def judge(mutant: Mutant, schedules: int) -> str:
    """Who catches it: "schedules", "tests", or "" if nobody does; or "time"."""
    command = [sys.executable, __file__, "--live", mutant.module, str(mutant.number), "--schedules", str(schedules)]
    most = SECONDS_PER_SCHEDULE * schedules + SECONDS_FOR_TESTS
    try:
        done = subprocess.run(command, capture_output=True, timeout=most, check=False)
    except subprocess.TimeoutExpired:
        return "time"
    if done.returncode not in (0, 1, 2):
        return "schedules"  # it took the process with it
    return {0: "", 1: "schedules", 2: "tests"}[done.returncode]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="modules whose names have one of these in them; default: all")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--schedules", type=int, default=40, help="for each mutant, before the tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--live", nargs=2, metavar=("MODULE", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.live:
        return live(options.live[0], int(options.live[1]), options.schedules)
    everything: list[Mutant] = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.glob("*.py")):
            module = package if path.stem == "__init__" else f"{package}.{path.stem}"
            if module not in DRIVERS and (not options.words or any(word in module for word in options.words)):
                everything += mutants(module, path)
    chosen = [mutant for mutant in everything if mutant.name not in EQUIVALENT]
    if options.sample:
        chosen = random.Random(options.seed).sample(chosen, min(options.sample, len(chosen)))
    print(f"{len(chosen)} mutants of {len(everything)}, {options.schedules} schedules each, then the tests", flush=True)
    begin, caught, survivors = time.monotonic(), dict.fromkeys(("schedules", "tests", "time"), 0), 0
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = pool.map(lambda mutant: judge(mutant, options.schedules), chosen)
        for mutant, verdict in zip(chosen, verdicts, strict=True):
            if verdict:
                caught[verdict] += 1
            else:
                survivors += 1
                print(f"survives: line {mutant.line} of {mutant.name}", flush=True)
    share = 1 - survivors / max(1, len(chosen))
    told = ", ".join(f"{count} by {who}" for who, count in caught.items())
    print(f"{share:.1%} caught ({told}), {survivors} survive, in {time.monotonic() - begin:.0f} s")
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    raise SystemExit(main())
