"""joblib's own tests of ``Parallel``, as they are, with zdist as the backend.

``python tests/ecosystem/joblib_backend.py [arguments of pytest]``. The tests are those of the installed joblib, from
its source distribution if the wheel has none. Lists of backends among their parameters become "zdist", and it is the
default backend. Exit code 1 if a test fails.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from zdist import Client

BACKEND_NAMES = {"backend", "parent_backend", "child_backend", "outer_backend", "inner_backend"}

ALL_THREADS = "expects n_jobs=1 of a backend that is not told; for zdist, as for dask, it is all threads of the cluster"
NESTED = "expects threads in tasks; there zdist offers the cluster"
ELSEWHERE = "a process that the test forks or loky starts has no client"
MEMMAP = "expects a numpy.memmap; in zdist's tasks a large array is an array"
PROCESSES = "about processes that the backend starts for a call: pools, initializers, environment, authkey"
OTHERS = "about another backend alone, or about which one is the default"
LEFT_OUT: dict[str, str] = {
    "test_effective_n_jobs_None": ALL_THREADS,
    "test_nested_backend_in_sequential": ALL_THREADS,
    "test_nested_backend_context_manager": NESTED,
    "test_nested_parallelism_limit": NESTED,
    "test_nested_loop[multiprocessing-zdist]": ELSEWHERE,
    "test_nested_loop[loky-zdist]": ELSEWHERE,
    "test_nested_loop[back_compat_backend-zdist]": ELSEWHERE,
    "test_auto_memmap_on_arrays_from_generator": MEMMAP,
    "test_memmapping_leaks": MEMMAP,
    "test_error_capture": PROCESSES,
    "test_dispatch_multiprocessing": PROCESSES,
    "test_initializer_context": PROCESSES,
    "test_initializer_parallel": PROCESSES,
    "test_initializer_reused": PROCESSES,
    "test_initializer_not_reused": PROCESSES,
    "test_threadpool_limitation_in_child_loky": PROCESSES,
    "test_threadpool_limitation_in_child_context": PROCESSES,
    "test_threadpool_limitation_in_child_override": PROCESSES,
    "test_loky_reuse_workers": PROCESSES,
    "test_nested_parallel_warnings": OTHERS,
    "test_backend_hinting_and_constraints": OTHERS,
    "test_warning_about_timeout_not_supported_by_backend": OTHERS,
    "test_nested_loop_with_exception_with_loky": OTHERS,
    "test_parallel_with_interactively_defined_functions_loky": OTHERS,
    "test_parallel_with_interactively_defined_bound_method_loky": OTHERS,
}

#: Programs that the tests start, and that use zdist, find it registered and a client made.
SITE = """
import os, sys
from pathlib import Path
program = sys.orig_argv[-1]
text = Path(program).read_text() if os.path.isfile(program) else program
if '"zdist"' in text:
    import zdist, zdist.integrations.joblib
    keep = zdist.Client(os.environ["ZDIST_TEST_BROKER"])
"""


class Adapter:
    """A pytest plugin; see the module's text."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.changed: set[int] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: Any) -> None:
        for mark in metafunc.definition.iter_markers("parametrize"):
            names, values = mark.args[:2]
            if names in BACKEND_NAMES and isinstance(values, list) and id(values) not in self.changed:
                self.changed.add(id(values))
                values[:] = ["zdist"]

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept = []
        for item in items:
            reason = LEFT_OUT.get(item.name) or LEFT_OUT.get(item.name.partition("[")[0])
            params = getattr(item, "callspec", None) and item.callspec.params  # type: ignore[attr-defined]
            backends = [value for name, value in (params or {}).items() if name in BACKEND_NAMES]
            if backends and "zdist" not in backends:
                reason = OTHERS
            if reason is None:
                kept.append(item)
            else:
                self.left_out[reason] += 1
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
            if report.failed:
                self.failed.append(report.nodeid)


def tests_of_joblib(folder: str) -> Path:
    """The file with the tests of ``Parallel``."""
    found = importlib.util.find_spec("joblib")
    assert found is not None and found.origin is not None
    path = Path(found.origin).parent / "test" / "test_parallel.py"
    if path.exists():
        return path
    version = importlib.metadata.version("joblib")
    get = ["pip", "download", "--no-deps", "--no-binary", "joblib", "--dest", folder, f"joblib=={version}"]
    subprocess.run([sys.executable, "-m", *get], check=True)
    with tarfile.open(next(Path(folder).glob("joblib-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    unpacked = next(Path(folder).glob("joblib-*/"))
    sys.path.insert(0, str(unpacked))  # workers get the path of the client
    return unpacked / "joblib" / "test" / "test_parallel.py"


def main(arguments: list[str]) -> int:
    adapter = Adapter()
    with tempfile.TemporaryDirectory(prefix="zdist-joblib-") as folder:
        path = tests_of_joblib(folder)
        import joblib

        with Client(n_workers=2, threads_per_worker=2) as client:
            Path(folder, "sitecustomize.py").write_text(SITE)
            os.environ["ZDIST_TEST_BROKER"] = client.address
            os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
            joblib.register_parallel_backend("zdist", joblib.parallel.BACKENDS["zdist"], make_default=True)
            options = [
                "-q",
                "-p",
                "no:cacheprovider",
                "-c",
                "/dev/null",
                "--rootdir",
                folder,
                "-W",
                "ignore",
                "--tb=short",
            ]
            code = pytest.main([*options, *arguments, str(path)], plugins=[adapter])
    outcomes = adapter.outcomes
    print(f"passed {outcomes['passed']}, failed {outcomes['failed']}, skipped {outcomes['skipped']}, left out:")
    for reason, count in adapter.left_out.items():
        print(f"  {count:4} {reason}")
    for name in adapter.failed:
        print("failed:", name)
    return 0 if code == 0 and outcomes["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
