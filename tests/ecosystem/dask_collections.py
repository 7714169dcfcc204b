"""dask's own tests of its collections, as they are in the installed package, with zdist as the scheduler.

    python tests/ecosystem/dask_collections.py [WORD …]

Runs each module twice: on dask's threaded scheduler, and on one cluster of two workers; words choose modules. Prints
what passed, failed and was skipped (or expected to fail), and exits with 1 if a test that passes on threads fails on
zdist, unless `ALLOWED` says why it may. Needs dask[array,dataframe] and pytest.

This file is the pytest plugin as well. Whatever scheduler a test asks for by name ("sync" is what dask's ``assert_eq``
asks for), or gets by default, is the one that is tried.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

#: Test modules of arrays and dataframes: what passes on threads passes on zdist.
MODULES = (
    "array/tests/test_slicing.py",
    "array/tests/test_overlap.py",
    "array/tests/test_atop.py",
    "array/tests/test_random.py",
    "array/tests/test_reshape.py",
    "array/tests/test_gufunc.py",
    "array/tests/test_stats.py",
    "array/tests/test_masked.py",
    "dataframe/tests/test_categorical.py",
    "dataframe/tests/test_indexing.py",
    "dataframe/tests/test_reshape.py",
    "dataframe/dask_expr/tests/test_merge.py",
    "dataframe/dask_expr/tests/test_shuffle.py",
    "dataframe/dask_expr/tests/test_groupby.py",
)

#: Further modules: those of their tests fail that only threads of the test's own process can pass (`ALLOWED`).
FURTHER = (
    "tests/test_delayed.py",
    "bag/tests/test_bag.py",
    "array/tests/test_ufunc.py",
    "array/tests/test_array_core.py",
)

IDENTITY = "compares by identity, or functions, with what went through another process"
LOCAL = "looks at what tasks change in the test's own process"
LOCK = "has a thread lock in its graph, which cannot be pickled"

#: Tests of those that may fail on zdist although they pass on threads, and why.
ALLOWED = {
    "tests/test_delayed.py::test_traverse_false": IDENTITY,
    "tests/test_delayed.py::test_callable_obj": IDENTITY,
    "bag/tests/test_bag.py::test_bag_with_single_callable": IDENTITY,
    "bag/tests/test_bag.py::test_repartition_partition_size_complex_dtypes": (
        "compares lists of arrays with ==, which works only while both sides are the same objects"
    ),
    "bag/tests/test_bag.py::test_take_npartitions_warn": "the warning is given in the worker's process",
    "bag/tests/test_bag.py::test_to_delayed_optimize_graph": LOCAL,
    "bag/tests/test_bag.py::test_reductions_are_lazy": "has a generator in its graph, which cannot be pickled",
    "array/tests/test_ufunc.py::test_frompyfunc": "has a ufunc of numpy.frompyfunc, which cannot be pickled",
    "array/tests/test_array_core.py::test_store_delayed_target": LOCAL,
    "array/tests/test_array_core.py::test_store": LOCAL,
    "array/tests/test_array_core.py::test_store_regions": LOCAL,
    "array/tests/test_array_core.py::test_store_compute_false": LOCAL,
    "array/tests/test_array_core.py::test_store_locks_failure_lock_released": LOCK,
    "array/tests/test_array_core.py::test_store_locks_one_lock_two_stores": LOCK,
    "array/tests/test_array_core.py::test_store_locks_dont_assume_threadsafe": LOCK,
    "array/tests/test_array_core.py::test_store_locks_no_lock": LOCK,
    "array/tests/test_array_core.py::test_store_locks_count_calls": LOCK,
    "array/tests/test_array_core.py::test_from_array_with_lock": LOCAL,
    "array/tests/test_array_core.py::test_from_array_getitem": LOCAL,
    "array/tests/test_array_core.py::test_memmap": "stores into a memory mapping, which pickles as a copy of its array",
    "array/tests/test_array_core.py::test_store_sources_unoptimized_nocompute": LOCAL,
}

SCHEDULER, ADDRESS, REPORT = "ZDIST_ECOSYSTEM_SCHEDULER", "ZDIST_ECOSYSTEM_ADDRESS", "ZDIST_ECOSYSTEM_REPORT"
TEST_TIMEOUT, MODULE_TIMEOUT = 600, 3600  # seconds

# --- the plugin ---------------------------------------------------------------------------------------------

_outcomes: dict[str, str] = {}
_client: Any = None


def pytest_configure() -> None:
    global _client
    import dask
    import dask.base
    import dask.threaded

    if os.environ[SCHEDULER] == "zdist":
        import zdist

        _client = zdist.Client(os.environ[ADDRESS])
        get: Any = zdist.dask_get(_client)
    else:
        get = dask.threaded.get
    dask.config.set(scheduler=get)
    for name in ("sync", "synchronous", "single-threaded", "threads", "threading"):
        dask.base.named_schedulers[name] = get


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        known = _outcomes.get(report.nodeid)
        _outcomes[report.nodeid] = "failed" if "failed" in (known, report.outcome) else report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ[REPORT]).write_text(json.dumps(_outcomes))


def pytest_unconfigure() -> None:
    if _client is not None:
        _client.close()


# --- the program --------------------------------------------------------------------------------------------


def run(module: Path, scheduler: str, address: str) -> dict[str, str]:
    """Outcomes of a module's tests, by name."""
    with tempfile.TemporaryDirectory(prefix="zdist-ecosystem-") as folder:
        ini, report = Path(folder, "pytest.ini"), Path(folder, "report.json")
        ini.write_text("[pytest]\nxfail_strict = true\n")
        here = str(Path(__file__).parent)
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, SCHEDULER: scheduler, ADDRESS: address, REPORT: str(report)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", Path(__file__).stem, "-p", "no:cacheprovider", "-c"]
        command += [str(ini), "--rootdir", str(module.parents[0]), "--tb=short", "-W", "ignore", "-rf", str(module)]
        if importlib.util.find_spec("pytest_timeout"):
            command += ["--timeout", str(TEST_TIMEOUT)]
        log = Path(os.environ.get("ZDIST_ECOSYSTEM_LOGS", folder), f"{module.stem}-{scheduler}.log")
        with log.open("wb") as output:
            done = subprocess.run(
                command, env=environment, cwd=folder, stdout=output, stderr=output, timeout=MODULE_TIMEOUT, check=False
            )
        if not report.exists():
            raise SystemExit(f"{module} on {scheduler}: pytest ended with {done.returncode}\n{log.read_text()[-3000:]}")
        return {node.partition("::")[2]: outcome for node, outcome in json.loads(report.read_text()).items()}


def reason(test: str) -> str:
    """Why a test may fail, "" if it may not."""
    return ALLOWED.get(test.partition("[")[0], "")


def main(words: list[str]) -> int:
    import dask

    from zdist import LocalCluster

    root = Path(dask.__file__).parent
    chosen = [name for name in MODULES + FURTHER if not words or any(word in name for word in words)]
    print(f"dask {dask.__version__}; passed / failed / skipped (or expected to fail)\n")
    print(f"{'module':<46}{'threads':>18}{'zdist':>18}{'seconds':>14}")
    totals: dict[str, Counter[str]] = {"threads": Counter(), "zdist": Counter()}
    worse: list[str] = []
    excused: list[str] = []
    with LocalCluster(n_workers=2, threads_per_worker=2) as cluster:
        for name in chosen:
            cells, seconds, found = [], [], {}
            for scheduler, total in totals.items():
                start = time.monotonic()
                found[scheduler] = run(root / name, scheduler, cluster.broker_address)
                seconds.append(time.monotonic() - start)
                counts = Counter(found[scheduler].values())
                total.update(counts)
                cells.append(_cell(counts))
            print(f"{name:<46}{cells[0]:>18}{cells[1]:>18}{seconds[0]:>8.0f}{seconds[1]:>6.0f}", flush=True)
            for test, outcome in found["threads"].items():
                if outcome == "passed" and found["zdist"].get(test) != "passed":
                    (excused if reason(f"{name}::{test}") else worse).append(f"{name}::{test}")
    print(f"{'all':<46}{_cell(totals['threads']):>18}{_cell(totals['zdist']):>18}\n")
    for test in excused:
        print(f"allowed: {test}: {reason(test)}")
    for test in worse:
        print(f"FAILED on zdist: {test}")
    print(f"{len(worse)} tests pass on threads and fail on zdist, {len(excused)} more are allowed to")
    return 1 if worse else 0


def _cell(counts: Counter[str]) -> str:
    return f"{counts['passed']} / {counts['failed']} / {counts['skipped']}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
