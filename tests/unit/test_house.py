"""The house rules that a machine can check: who imports whom, what is pure, how long files and functions are."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"zdist": ROOT / "zdist", "zdist_broker": ROOT / "brokers" / "zdist_broker"}

# Each package may import those in its row (and itself). Lazy imports, inside functions, may go to the second row too.
LEAVES = {"errors", "limits", "context"}
LOW = LEAVES | {"protocol"}
ALLOWED = {
    "errors": set(),
    "limits": set(),
    "context": {"errors", "limits"},
    "log": {"errors", "limits"},
    "config": {"errors", "limits", "log"},
    "protocol": LEAVES,
    "serialize": LOW,
    "core": LOW,
    "transport": LOW | {"core", "log"},
    "client": LOW | {"core", "transport", "serialize", "log"},
    "worker": LOW | {"core", "transport", "serialize", "log"},
    "node": LOW | {"core", "transport", "log"},
    "cluster": LOW | {"core", "transport", "serialize", "log", "client", "worker", "node"},
    "integrations": LOW | {"log", "client", "cluster"},
    "cli": LOW | {"log", "config", "transport", "client", "worker", "node", "cluster", "integrations", ""},
    "testing": LOW | {"core", "transport", "serialize", "log", "client", "worker", "node", "cluster", "zdist_broker"},
    "": set(),  # zdist/__init__.py
    "__main__": {"cli"},
    "zdist_broker": {"errors", "limits", "protocol", "core", "transport", "config", "log"},
}
ALLOWED_LAZILY = {
    "": {"client", "cluster", "errors", "context", "integrations"},
    "client": {"config", "cluster", "integrations"},  # Client() starts a LocalCluster; Client.from_yaml; dask
    "cluster": {"config", "zdist_broker"},
    "cli": {"zdist_broker"},
}

BANNED_IN_PURE = {
    "asyncio", "cloudpickle", "concurrent", "datetime", "logging", "multiprocessing", "os", "pickle", "random",
    "secrets", "select", "selectors", "socket", "structlog", "subprocess", "tempfile", "threading", "time", "uuid",
    "zmq",
}  # fmt: skip
IMPURE_IN_BROKER = {"__init__", "__main__", "server"}
ONLY_IN = {"pickle": "zdist.serialize", "cloudpickle": "zdist.serialize", "zmq": "zdist.transport"}
HEAVY = ("pydantic", "click", "rich", "yaml", "numpy", "structlog", "zmq", "cloudpickle", "psutil", "joblib", "dask")


class Import(NamedTuple):
    module: str  # that imports
    target: str  # that is imported
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module


def modules() -> list[Module]:
    found = []
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found.append(Module(name, path, ast.parse(path.read_text())))
    return found


MODULES = modules()
NAMES = {module.name for module in MODULES}


def imports(module: Module) -> Iterator[Import]:
    """All imports but those for type checkers alone."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from walk(child, lazy)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module.name, alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(filter(None, (*parents, base)))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(module.name, inner if inner in NAMES else base, node.lineno, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(module.tree, False)


IMPORTS = [found for module in MODULES for found in imports(module)]


def area(name: str) -> str:
    """The part of the house that a module belongs to."""
    parts = name.split(".")
    if parts[0] == "zdist_broker":
        return "zdist_broker"
    return parts[1] if len(parts) > 1 else ""


def is_pure(module: str) -> bool:
    parts = module.split(".")
    if parts[0] == "zdist_broker":
        return len(parts) > 1 and parts[1] not in IMPURE_IN_BROKER
    return area(module) in ("protocol", "core")


def test_every_part_of_the_house_has_its_place() -> None:
    assert len(MODULES) > 30
    assert {area(module.name) for module in MODULES} <= set(ALLOWED)


def test_import_direction() -> None:
    offenders = []
    for found in IMPORTS:
        if found.target.split(".")[0] not in SOURCES:
            continue
        own, other = area(found.module), area(found.target)
        allowed = ALLOWED[own] | (ALLOWED_LAZILY.get(own, set()) if found.lazy else set())
        if other != own and other not in allowed:
            offenders.append(str(found))
    assert offenders == []


def test_no_import_cycles_between_modules() -> None:
    graph: dict[str, list[str]] = {name: [] for name in NAMES}
    for found in IMPORTS:
        if not found.lazy and found.target in NAMES and found.target != found.module:
            graph[found.module].append(found.target)
    done: set[str] = set()
    cycles = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            cycles.append(" -> ".join((*above[above.index(name) :], name)))
        elif name not in done:
            for target in graph[name]:
                visit(target, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert cycles == []


def test_pure_modules_import_nothing_that_acts() -> None:
    offenders = [str(f) for f in IMPORTS if is_pure(f.module) and f.target.split(".")[0] in BANNED_IN_PURE]
    assert offenders == []


def test_pickle_and_zeromq_have_one_home_each() -> None:
    offenders = [
        str(found)
        for found in IMPORTS
        if (home := ONLY_IN.get(found.target.split(".")[0])) is not None
        and not (found.module == home or found.module.startswith(home + "."))
    ]
    assert offenders == []


def test_pure_modules_call_nothing_that_varies() -> None:
    """Results that differ from process to process, or input and output."""
    offenders = [
        f"{module.name}:{node.lineno} calls {node.func.id}"
        for module in MODULES
        if is_pure(module.name)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"hash", "input", "open", "print"}
    ]
    assert offenders == []


# --- sets are never iterated in pure modules: their order differs from process to process ------------------


class Sets(NamedTuple):
    """What is known to be a set: attributes anywhere in the file, variables within one function."""

    attributes: set[str]
    variables: set[str]


def is_set(node: ast.expr, known: Sets) -> bool:
    match node:
        case ast.Set() | ast.SetComp() | ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.Name(id=name):
            return name in known.variables
        case ast.Attribute(attr=name):
            return name in known.attributes
        case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() | ast.Sub() | ast.BitXor(), right=right):
            return is_set(left, known) or is_set(right, known)
    return False


def says_set(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation).startswith(("set[", "frozenset["))


def find_sets(scope: ast.AST, known: Sets) -> Sets:
    """Add what is assigned or annotated as a set within ``scope``."""
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=targets, value=value) if is_set(value, known):
                pass
            case ast.AnnAssign(target=target, annotation=annotation) if says_set(annotation):
                targets = [target]
            case ast.arg(arg=name, annotation=annotation) if says_set(annotation):
                targets = [ast.Name(name)]
            case _:
                continue
        for target in targets:
            match target:
                case ast.Name(id=name):
                    known.variables.add(name)
                case ast.Attribute(attr=name):
                    known.attributes.add(name)
    return known


def iterated(tree: ast.AST) -> Iterator[tuple[int, ast.expr]]:
    for node in ast.walk(tree):
        match node:
            case ast.For(iter=source) | ast.AsyncFor(iter=source) | ast.comprehension(iter=source):
                yield source.lineno, source
            case ast.Call(
                func=ast.Name(id="list" | "tuple" | "iter" | "enumerate" | "zip" | "map" | "filter"), args=args
            ):
                for arg in args:
                    yield arg.lineno, arg
            case ast.Call(func=ast.Attribute(value=value, attr="pop"), args=[]):
                yield node.lineno, value
            case ast.Starred(value=value):
                yield value.lineno, value


def set_iterations(tree: ast.Module) -> list[tuple[int, str]]:
    attributes = find_sets(tree, Sets(set(), set())).attributes
    for node in ast.walk(tree):  # an attribute may be declared in its class
        if isinstance(node, ast.ClassDef):
            attributes |= {
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and says_set(item.annotation)
            }
    found = {}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for scope in (*functions, ast.Module(outside, [])):
        known = find_sets(scope, Sets(attributes, set()))
        found |= {(line, ast.unparse(source)): None for line, source in iterated(scope) if is_set(source, known)}
    return list(found)


def test_pure_modules_never_iterate_sets() -> None:
    offenders = [
        f"{module.name}:{line} iterates the set {source}"
        for module in MODULES
        if is_pure(module.name)
        for line, source in set_iterations(module.tree)
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "text",
    [
        "for x in {1, 2}: pass",
        "s = set()\nfor x in s: pass",
        "class A:\n  def f(self):\n    self.s: set[int] = set()\n    return [x for x in self.s]",
        "s = {1}\nt = list(s - {2})",
        "s = {1}\ns.pop()",
        "def f(s: set[int]): return (*s,)",
        "class A:\n  s: set[int]\n  def f(self): return list(self.s)",
    ],
)
def test_the_search_for_iterated_sets_finds_them(text: str) -> None:
    assert set_iterations(ast.parse(text))


def test_the_search_for_iterated_sets_leaves_the_rest_alone() -> None:
    text = "s = {1}\nd = {}\nx = 1 in s\nfor y in d: pass\nz = sorted(s)\nw = [].pop()\n"
    text += "def f(s):\n  return list(s)\n"  # another s
    assert not set_iterations(ast.parse(text))


# --- size ---------------------------------------------------------------------------------------------


def test_files_and_functions_stay_short() -> None:
    long_files = [
        f"{module.name}: {lines} lines"
        for module in MODULES
        if (lines := len(module.path.read_text().splitlines())) > 450
    ]
    long_functions = [
        f"{module.name}:{node.lineno} {node.name}: {lines} lines"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > 70
    ]
    assert long_files + long_functions == []


# --- what a program loads -------------------------------------------------------------------------------


def loaded_by(code: str, names: tuple[str, ...]) -> list[str]:
    program = f"import sys\n{code}\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_zdist_is_light() -> None:
    assert loaded_by("import zdist", (*HEAVY, "zdist.client", "zdist.transport")) == []


def test_the_client_needs_no_pydantic_click_or_rich() -> None:
    heavy = ("pydantic", "click", "rich", "yaml", "numpy", "joblib", "dask")
    found = loaded_by("from zdist import Client, LocalCluster", heavy)
    assert found == []


def test_the_broker_never_loads_what_opens_payloads() -> None:
    for code in ("import zdist_broker.__main__", "import zdist.cli.group, zdist.cli.broker, zdist_broker.server"):
        assert loaded_by(code, ("zdist.serialize", "cloudpickle", "zdist.client", "zdist.worker")) == []


def test_every_public_name_can_be_had() -> None:
    import zdist

    missing = [name for name in zdist.__all__ if not hasattr(zdist, name)]
    assert missing == []


# --- what is shipped ------------------------------------------------------------------------------------


def test_one_wheel_with_both_packages_and_no_generic_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["zdist", "brokers/zdist_broker"]
    assert (ROOT / "zdist" / "py.typed").exists()
    assert not (ROOT / "brokers" / "__init__.py").exists()


@pytest.mark.skipif("ZDIST_TEST_INSTALLED" not in os.environ, reason="runs where tox has installed the wheel")
def test_the_installed_wheel_is_what_is_tested() -> None:
    import zdist

    files = importlib.metadata.files("zdist") or []
    tops = {file.parts[0] for file in files if not file.parts[0].startswith(".")}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"zdist", "zdist_broker"}
    assert not Path(zdist.__file__).is_relative_to(SOURCES["zdist"])
    assert any(str(file) == "zdist/py.typed" for file in files)


def test_version_has_one_source_and_a_changelog_entry() -> None:
    import zdist

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["version"] == {"path": "zdist/__init__.py"}
    assert f"## {zdist.__version__}" in (ROOT / "CHANGELOG.md").read_text()
