"""The demo's work: count identifiers in Python files. Runs on workers, and for ``--check`` in one process."""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Index", "count_file", "double", "identifiers", "index_here", "make_numbers", "merge", "python_files"]

#: Folders that hold other people's packages or nothing of interest; the standard library does not end there.
SKIPPED = frozenset({"__pycache__", "site-packages", "dist-packages", ".git", ".venv", ".tox"})


class Index(NamedTuple):
    """What was found: files read, files that are no readable Python, occurrences of each identifier."""

    files: int
    skipped: int
    counts: dict[str, int]

    @property
    def occurrences(self) -> int:
        return sum(self.counts.values())

    def top(self, n: int) -> list[tuple[str, int]]:
        """The most used identifiers; equal counts in alphabetical order."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:n]


def python_files(folder: str | os.PathLike[str] | None) -> list[str]:
    """All Python files under a folder in a fixed order; None stands for the standard library."""
    root = Path(folder) if folder is not None else Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        found += [os.path.join(place, name) for name in sorted(names) if name.endswith(".py")]
    return found


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every identifier that a syntax tree holds, once per place: all its texts but those of constants."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Constant):
            continue
        for name in node._fields:
            value = getattr(node, name, None)
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, str):
                    yield from item.split(".") if item != "*" else ()  # modules have dots
                elif isinstance(item, ast.AST):
                    pending.append(item)


def count_file(path: str) -> Index:
    """Index one file; one that cannot be read or parsed counts as skipped."""
    try:
        source = Path(path).read_bytes()  # bytes: the parser heeds the file's own coding line
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return Index(0, 1, {})
    return Index(1, 0, dict(Counter(identifiers(tree))))


def merge(parts: Iterable[Index]) -> Index:
    """Add up indexes."""
    files = skipped = 0
    counts: Counter[str] = Counter()
    for part in parts:
        files += part.files
        skipped += part.skipped
        counts.update(part.counts)
    return Index(files, skipped, dict(counts))


def index_here(paths: Iterable[str]) -> Index:
    """The same in this process, for comparison."""
    return merge(count_file(path) for path in paths)


def make_numbers(seed: int, nbytes: int) -> array[int]:
    """An array of ``nbytes`` bytes that differ from seed to seed."""
    block = array("q", ((seed << 32) + i for i in range(min(nbytes, 65536) // 8)))
    repeat, rest = divmod(nbytes // 8, len(block))
    return block * repeat + block[:rest]


def double(numbers: array[int]) -> array[int]:
    """A new array with each number doubled."""
    return array("q", (2 * number for number in numbers))
