"""CPython's own tests of executors, unmodified, on a ZdistExecutor: ``python tests/ecosystem/cpython_executor.py``.

They come from the installed test package (Debian: libpython3.11-testsuite; ``ZDIST_CPYTHON_TESTS`` names its folder if
it lies elsewhere). Prints what passed, what failed, and what was left out and why; exit code 1 if any failed.
"""

from __future__ import annotations

import importlib
import os
import sys
import unittest
from pathlib import Path
from typing import Any

import zdist

HERE = Path(__file__).parent
PLACES = (os.environ.get("ZDIST_CPYTHON_TESTS", ""), f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test")

THREADS = "looks at the pool's threads (_threads)"
PROCESSES = "looks at the pool's processes (_processes)"
CLOSURE = "the task changes a local list or lock of the test, which only a thread of the same process can"
NAMED = "makes a pool of the standard library by its name, whatever the executor type is"
CRASH = "expects BrokenProcessPool: here the worker is replaced, the task runs again, and at last it is KilledWorker"
UNREADABLE = "expects the pool to break (BrokenProcessPool): here this one future has a SerializationError"
PER_CHILD = "max_tasks_per_child is of ProcessPoolExecutor only"

# by the class of CPython's that has the tests; "*" stands for all that are not named
LEFT_OUT: dict[str, dict[str, str]] = {
    "InitializerMixin": {},
    "FailingInitializerMixin": {},
    "ExecutorShutdownTest": {},
    "ThreadPoolShutdownTest": {
        "test_threads_terminate": THREADS,
        "test_context_manager_shutdown": NAMED,
        "test_del_shutdown": NAMED,
        "test_shutdown_no_wait": NAMED,
        "test_thread_names_assigned": NAMED,
        "test_thread_names_default": NAMED,
        "test_cancel_futures_wait_false": NAMED,
    },
    "ProcessPoolShutdownTest": {
        "test_processes_terminate": PROCESSES,
        "test_context_manager_shutdown": NAMED,
        "test_del_shutdown": NAMED,
        "test_shutdown_no_wait": NAMED,
    },
    "WaitTests": {},
    "ThreadPoolWaitTests": {"test_pending_calls_race": CLOSURE},
    "AsCompletedTests": {},
    "ExecutorTest": {},
    "ThreadPoolExecutorTest": {
        "test_map_submits_without_iteration": CLOSURE,
        "test_default_workers": "looks at the default number of threads (_max_workers)",
        "test_saturation": THREADS,
        "test_idle_thread_reuse": THREADS,
        "test_hang_global_shutdown_lock": NAMED,
        "test_executor_map_current_future_cancel": CLOSURE,
    },
    "ProcessPoolExecutorTest": {
        "test_max_workers_too_large": "is for Windows",
        "test_killed_child": PROCESSES,
        "test_traceback": "expects a _RemoteTraceback as the cause: here the exception has its traceback itself",
        "test_ressources_gced_in_workers": "its argument can only be unpickled in a child of multiprocessing",
        "test_saturation": "its semaphore can only be inherited by a child of multiprocessing",
        "test_idle_process_reuse_one": PROCESSES,
        "test_idle_process_reuse_multiple": PROCESSES,
        "test_max_tasks_per_child": PER_CHILD,
        "test_max_tasks_per_child_defaults_to_spawn_context": PER_CHILD,
        "test_max_tasks_early_shutdown": PER_CHILD,
    },
    "ExecutorDeadlockTest": {
        "test_error_at_task_pickle": "expects a PicklingError: here it is a SerializationError that names the argument",
        "test_error_during_result_pickle_on_worker": "expects a PicklingError: here it is a SerializationError",
        "test_exit_at_task_unpickle": UNREADABLE,
        "test_error_at_task_unpickle": UNREADABLE,
        "test_crash_at_task_unpickle": CRASH,
        "test_crash_during_func_exec_on_worker": CRASH,
        "test_crash_during_result_pickle_on_worker": CRASH,
        "test_error_during_result_unpickle_in_result_handler": UNREADABLE,
        "test_exit_during_result_unpickle_in_result_handler": UNREADABLE,
        "test_shutdown_deadlock": CRASH,
        "test_shutdown_deadlock_pickle": "looks at the pool's manager thread (_executor_manager_thread)",
    },
    "FutureTests": {"*": "is about the standard library's Future alone"},
}

cluster: zdist.LocalCluster  # for all tests


class ZdistExecutor(zdist.ZdistExecutor):
    """Made as the tests make executors."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None, **options: Any) -> None:
        super().__init__(cluster, max_workers=max_workers, **options)


class Adapter:
    """What takes the place of CPython's ThreadPoolMixin and ProcessPoolForkMixin."""

    executor_type = ZdistExecutor

    def get_context(self) -> None:
        """Of multiprocessing there is none."""


def find_tests() -> Any:
    """CPython's test module, or why there is none."""
    try:
        import test

        places = [place for place in PLACES if place and os.path.exists(f"{place}/test_concurrent_futures.py")]
        test.__path__ += places
        os.environ["ZDIST_CPYTHON_TESTS"] = os.pathsep.join(places)
        return importlib.import_module("test.test_concurrent_futures")
    except (ImportError, unittest.SkipTest) as exc:
        return f"{type(exc).__name__}: {exc}"


def own_tests(cls: type) -> list[str]:
    return [name for name in vars(cls) if name.startswith("test")]


def build(tests: Any) -> tuple[unittest.TestSuite, list[str]]:
    """The tests to run, and a line for each that is left out."""
    suite = unittest.TestSuite()
    lines = []
    for class_name, reasons in LEFT_OUT.items():
        mixin = getattr(tests, class_name)
        bases = (Adapter, mixin) if issubclass(mixin, tests.ExecutorMixin) else (Adapter, mixin, tests.ExecutorMixin)
        if not issubclass(mixin, unittest.TestCase):
            bases = (*bases, tests.BaseTestCase)
        case = type(f"Zdist{class_name}", bases, {})
        known = own_tests(mixin)
        unknown = set(reasons) - {*known, "*"}
        assert not unknown, f"{class_name} has no {', '.join(sorted(unknown))} in this version of Python"
        for name in known:
            reason = reasons.get(name) or reasons.get("*")
            if reason is None:
                suite.addTest(case(name))
            else:
                lines.append(f"{class_name}.{name}: {reason}")
    named = {name for name, value in vars(tests).items() if isinstance(value, type) and own_tests(value)}
    assert named <= set(LEFT_OUT), f"no word about {', '.join(sorted(named - set(LEFT_OUT)))}"
    return suite, lines


def main() -> int:
    """Run them."""
    global cluster
    tests = find_tests()
    if isinstance(tests, str):
        print(
            f"skipped: CPython's test_concurrent_futures is not installed ({tests}); on Debian: libpython3.11-testsuite"
        )
        return 0
    # the programs that the tests run, and the workers, are to find the test package, too
    importlib.import_module("test.support.script_helper").__dict__["__cached_interp_requires_environment"] = True
    paths = (str(HERE / "site"), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    suite, left_out = build(tests)
    with zdist.LocalCluster(n_workers=2, threads_per_worker=5) as cluster, zdist.Client(cluster) as client:
        client.wait_for_workers(2, timeout=30)
        result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = [*result.failures, *result.errors, *result.unexpectedSuccesses]
    print(f"CPython {sys.version.split()[0]}, {tests.__file__}")
    for line in left_out:
        print(f"left out: {line}")
    for test, reason in result.skipped:
        print(f"skipped by itself: {test}: {reason}")
    passed = result.testsRun - len(failed) - len(result.skipped)
    print(f"{passed} passed, {len(failed)} failed, {len(result.skipped)} skipped, {len(left_out)} left out")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
