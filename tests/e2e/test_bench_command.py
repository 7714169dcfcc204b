"""``zdist bench`` as a person runs it: a cluster of its own or one that is there, a table or JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zdist import LocalCluster
from zdist.cli import bench, works
from zdist.cli.works import WORKS, Clients, Figure
from zdist.errors import ZdistError
from zdist.transport.floor import Floor

ZDIST = [sys.executable, "-P", "-m", "zdist"]
DEADLINE = 100.0
FLOOR = Floor(*map(float, range(1, 8)))


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    monkeypatch.delenv("ZDIST_TOKEN", raising=False)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ZDIST, "bench", *args], capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_a_cluster_of_its_own_beside_bare_zeromq() -> None:
    done = run("--rounds", "1", "--work", "round-trip", "--work", "chain", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["cluster"], found["workers"], found["rounds"]) == ("local", 2, 1)
    assert {figure["unit"] for figure in found["figures"]} == {"ms", "tasks/s"}
    assert [figure["name"] for figure in found["figures"]][2] == "chain of 1,000"
    assert all(figure["value"] > 0 and figure["floor"] > 0 for figure in found["figures"])


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Works of a size that a test can wait for."""
    patch = pytest.MonkeyPatch()
    for name, value in {"TASKS": 500, "LINKS": 50, "LEAVES": 64, "WIDTH": 100, "TRIPS": 100, "CLOSURES": 20}.items():
        patch.setattr(works, name, value)
    patch.setattr(works, "SCATTERED", 1 << 20)
    patch.setattr(works, "ARRAYS", 4)
    patch.setattr(works, "ARGUMENTS", 4)
    yield
    patch.undo()


def test_every_work_on_a_cluster_that_is_there(small: None) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1) as cluster,
        bench.clients(cluster.broker_address, 9, None) as both,
    ):
        both.usual.wait_for_workers(2, timeout=DEADLINE)
        address = cluster.broker_address
        about = bench.describe(both, address)
        figures = [figure for work in WORKS for figure in bench.run(work, both)]
    assert about["workers"] == 2 and about["cluster"] == address
    assert len({figure.name for figure in figures}) == len(figures) == len(WORKS) + 1
    assert all(figure.value > 0 for figure in figures)
    assert {figure.floor for figure in figures} <= set(Floor._fields)


def test_a_wrong_answer_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **options: [7]

    wrong: Any = Wrong()
    with pytest.raises(ZdistError, match="throughput: the cluster's answer is wrong"):
        works.throughput(Clients(wrong, wrong, wrong.wait))


def test_the_table_and_its_numbers() -> None:
    figures = [Figure("chain", 1234.5, "tasks/s", "single"), Figure("round trip", 0.4567, "ms", "round_trip")]
    out = io.StringIO()
    bench.show(figures, FLOOR, {"workers": 2}, Console(file=out, width=100))
    assert [line.split("│")[1:-1] for line in out.getvalue().splitlines() if "chain" in line] == [
        [" chain      ", " 1,234 ", "       2.000 ", " 617.25 ", " tasks/s "]
    ]
    bench.show(figures, None, {}, Console(file=(bare := io.StringIO()), width=100))
    assert "2.000" not in bare.getvalue() and "0.457" in bare.getvalue()
    data = bench.as_data(figures, FLOOR, {}, 1)["figures"]
    assert data[0] == {"name": "chain", "value": 1234.0, "unit": "tasks/s", "floor": 2.0}
    assert bench.as_data(figures, None, {}, 1)["figures"][1]["floor"] is None
    assert [bench.rounded(value) for value in (0.0, 0.00012345, 98765.4)] == [0.0, 0.0001234, 98765.0]


def test_who_asks_for_what_is_not_there() -> None:
    done = run("--work", "nonsense")
    assert done.returncode == 2 and "throughput" in done.stderr
    done = run("nonsense", "--no-floor")
    assert done.returncode == 2 and "nonsense" in done.stderr and "Traceback" not in done.stderr
