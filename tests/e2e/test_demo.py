"""The demo: its counting, and the whole command on real files."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from zdist.cli.indexing import Index, count_file, identifiers, index_here, make_numbers, merge, python_files
from zdist.cli.showcase import PathUse

SOURCE = '''
import os.path as osp, sys
from a.b import c as d, e
@deco
class K(Base, metaclass=M):
    """text is no identifier: nothing"""
    attr: int = 1
    def f(self, x, *args, key=None, **kw):
        global g
        try:
            return self.x.y(z, key=x)
        except Error as err:
            raise
async def co(): pass
'''
NAMES = """a b c d e os path osp sys deco K Base metaclass M attr int f self x args key kw g y z Error err co"""


def test_identifiers_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    index = count_file(str(path))
    assert (index.files, index.skipped) == (1, 0)
    assert set(index.counts) == set(NAMES.split())
    assert index.counts["x"] == 3  # the parameter, the attribute, the argument
    assert index.counts["key"] == 2
    assert index.counts["self"] == 2


def test_modules_of_from_imports_are_not_lost() -> None:
    assert sorted(identifiers(ast.parse("from a.b import *\nfrom . import c"))) == ["a", "b", "c"]
    assert sorted(identifiers(ast.parse("match p:\n  case {'k': q, **r}: n = 's' 't'"))) == ["n", "p", "q", "r"]


@pytest.mark.parametrize("content", [b"def (", b"\xff\xfe\x00 nonsense", b"x = 1\0", b"# coding: no-such-codec\n"])
def test_files_that_are_no_python_are_skipped(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(content)
    assert count_file(str(path)) == Index(0, 1, {})


def test_a_file_that_is_not_there_is_skipped(tmp_path: Path) -> None:
    assert count_file(str(tmp_path / "none.py")) == Index(0, 1, {})


def test_merging_adds_up_and_ties_are_in_alphabetical_order() -> None:
    index = merge([Index(1, 0, {"b": 1, "a": 1}), Index(0, 1, {}), Index(1, 0, {"c": 1, "b": 1, "a": 1})])
    assert index == Index(2, 1, {"a": 2, "b": 2, "c": 1})
    assert index.top(2) == [("a", 2), ("b", 2)]
    assert index.occurrences == 5
    assert merge([]) == Index(0, 0, {})


def test_files_are_found_in_a_fixed_order_without_other_peoples_packages(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "c.txt", "sub/d.py", "site-packages/e.py", "__pycache__/f.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert python_files(tmp_path) == [str(tmp_path / name) for name in ("a.py", "b.py", "sub/d.py")]
    assert len(python_files(None)) > 500


@pytest.mark.parametrize("nbytes", [8, 1024, 65536, 65544, 1 << 20])
def test_arrays_have_the_size_that_was_asked_for_and_differ(nbytes: int) -> None:
    numbers = make_numbers(1, nbytes)
    assert len(numbers) * numbers.itemsize == nbytes
    assert numbers != make_numbers(2, nbytes)


def test_rate_of_a_path() -> None:
    assert PathUse(bytes=3_000_000, seconds=2.0).rate == 1.5
    assert PathUse().rate == 0.0


# --- the command --------------------------------------------------------------------------------------


def demo(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "zdist", "demo", *args],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of this very package, a nested one, and two that cannot be read as Python."""
    import zdist

    for number, path in enumerate(sorted(Path(zdist.__file__).parent.rglob("*.py"))[:40]):
        (tmp_path / f"file{number}.py").write_bytes(path.read_bytes())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.py").write_text(SOURCE)
    (tmp_path / "sub" / "bad.py").write_text("def (")
    (tmp_path / "sub" / "binary.py").write_bytes(b"\xff\xfe\0")
    return tmp_path


def test_demo_agrees_with_a_single_process_and_uses_every_path(folder: Path) -> None:
    done = demo(str(folder), "--check", "--json", "--workers", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    alone = index_here(python_files(folder))
    assert (found["files"], found["skipped"]) == (alone.files, 2)
    assert (found["identifiers"], found["distinct"]) == (alone.occurrences, len(alone.counts))
    assert found["top"] == [list(row) for row in alone.top(20)]
    assert found["check"]["agrees"] is True
    assert found["workers"] == 2
    assert found["tasks"] > alone.files  # the merges count as well
    assert found["tasks_per_second"] > 0
    for path in ("inline", "peer", "relay"):
        assert found["paths"][path]["batches"] >= 1
        assert found["paths"][path]["bytes"] > 0
        assert found["paths"][path]["mb_per_second"] > 0
    assert sum(use["keys"] for path, use in found["paths"].items() if path != "inline") == 3 * 26
    assert set(found["paths"]) <= {"inline", "local", "shm", "peer", "relay"}


def test_demo_shows_tables(folder: Path) -> None:
    done = demo(str(folder), "--workers", "2")
    assert done.returncode == 0, done.stderr
    for word in ("identifiers", "tasks/s", "inline", "peer", "relay", "MB/s", "batches", "self"):
        assert word in done.stdout


def test_demo_of_a_folder_without_python(tmp_path: Path) -> None:
    done = demo(str(tmp_path))
    assert done.returncode == 1
    assert f"no Python files under {tmp_path}" in done.stderr
    missing = demo(str(tmp_path / "none"))
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
