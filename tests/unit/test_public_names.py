from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import zdist

HEAVY = ("pydantic", "click", "rich", "psutil", "numpy", "zmq", "yaml", "structlog", "cloudpickle", "asyncio")


def test_import_is_light() -> None:
    program = (
        "import json, sys, time; t = time.process_time(); import zdist; took = time.process_time() - t;"
        f"print(json.dumps([took, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    best, loaded = min(json.loads(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3))
    assert loaded == []
    assert best < 0.08


@pytest.mark.parametrize("name", zdist.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(zdist, name) is not None
    assert name in dir(zdist)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(zdist.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert typed == {name: zdist._HOME[name] for name in zdist.__all__ if name != "__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'zdist' has no attribute 'Cleint'"):
        zdist.Cleint  # noqa: B018
