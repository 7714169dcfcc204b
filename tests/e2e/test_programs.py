"""Programs written for dask.distributed, with nothing but their import changed.

`tests/ecosystem/programs_on_both.py` runs them under both imports and compares what they print.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zdist import LocalCluster
from zdist.node.process import child_environment

PROGRAMS = Path(__file__).parent / "programs"
EXPECTED = {
    "actors": "Actor 10\n20\n[0, 1, 2, 3, 4]\nraised: an actor's own\n[2, 3] 25\n1 25\n",
    "as_completed_loop": "(216, 2919) 8\n{0: 0, 1: 1, 2: 4, 3: 9, 4: 16}\n",
    "futures": (
        "99\n{'first': 1, 'rest': [2, (3,)]}\nerror error ZeroDivisionError\nraised: division by zero\n"
        "[1, 2]\n4950 4950\n"
    ),
    "map_reduce": "[('dog', 180), ('fox', 180), ('the', 600)] 18 2880\n",
    "nested_tasks": f"34\n{sorted((i * 7919) % 101 for i in range(60))}\n",
    "parameter_server": "240 True\n[3, 1]\n",
    "published_data": "True 4\n4 19.5\nthere already\nFalse none\n",
    "queues": "[10, 10, 10]\n30 [(0, 0), (1, 1), (2, 4)] (29, 841) 0\n[1, 2, 3]\nnothing more\n",
    "restarts": "7\n{'here'} True\ncancelled True {None}\n6\n",
    "variables": "True True True\n12\n[0, 1, 4, 9, 16] 0\n42\nTrue False True\n",
}
ALONE = "restarts"  # it replaces the workers of all others


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What each program prints, run side by side on one cluster."""
    room = tmp_path_factory.mktemp("programs")

    def run(name: str) -> str:
        text, changed = re.subn(r"^from dask\.distributed import", "from zdist import", source(name), flags=re.M)
        assert changed == 1
        program = room / f"{name}.py"
        program.write_text(text)
        done = subprocess.run(
            [sys.executable, program, cluster.broker_address],
            capture_output=True, text=True, timeout=100, env=child_environment(),
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else done.stderr

    with LocalCluster(n_workers=2, threads_per_worker=2) as cluster, ThreadPoolExecutor(4) as pool:
        names = [name for name in EXPECTED if name != ALONE]
        yield dict(zip(names, pool.map(run, names), strict=True)) | {ALONE: run(ALONE)}


def source(name: str) -> str:
    return (PROGRAMS / f"{name}.py").read_text()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_program_gives_the_same_answers(printed: dict[str, str], name: str) -> None:
    assert printed[name] == EXPECTED[name]


def test_all_programs_are_run() -> None:
    assert sorted(EXPECTED) == sorted(path.stem for path in PROGRAMS.glob("*.py"))
