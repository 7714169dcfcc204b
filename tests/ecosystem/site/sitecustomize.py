"""For the processes that the tests of a peer start: its test package can be found, and our executor by its name.

CPython's tests of what happens when the interpreter ends import the executor from ``concurrent.futures`` and look at
what tasks print, so there it is one with a worker in threads of the same process.
"""

import concurrent.futures
import os

import test

test.__path__ += [path for path in os.environ.get("ZDIST_CPYTHON_TESTS", "").split(os.pathsep) if path]


def executor(max_workers=None):
    from zdist import LocalCluster, ZdistExecutor

    cluster = LocalCluster(processes=False, threads_per_worker=max_workers)
    return ZdistExecutor(cluster, max_workers=max_workers)


def find(name, elsewhere=concurrent.futures.__getattr__):
    return executor if name == "ZdistExecutor" else elsewhere(name)


concurrent.futures.__getattr__ = find
