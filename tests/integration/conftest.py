"""Real clusters for the tests of this folder, and a check that each file leaves nothing of them behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_functions as functions
import psutil
import pytest
from cluster_checks import WITHIN, eventually, gone, still_works

from zdist import Client, LocalCluster
from zdist.transport.shm import sweep_all


def processes_marked(mark: str) -> list[psutil.Process]:
    """The processes, whoever their parent now is, that inherited the mark from this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it may end at any moment
            mine = process.pid != os.getpid() and process.environ().get("ZDIST_TEST_MARK") == mark
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def shown(processes: list[psutil.Process]) -> list[tuple[int, list[str]]]:
    rows = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            rows.append((process.pid, process.cmdline()))
    return rows


def shared_memory(place: Path) -> list[str]:
    """What is left in the place of /dev/shm when what was killed has been swept, as the next start would do."""
    sweep_all()
    return [str(path.relative_to(place)) for path in place.rglob("*")]


def own_threads() -> set[str]:
    """Names of the threads, but for the one that pyzmq keeps for the buffers of any context."""
    return {t.name for t in threading.enumerate() if type(t).__module__ != "zmq.utils.garbage"}


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[Path]:
    """A runtime directory and a mark for all that a file's tests start; at its end all of that must be gone."""
    with pytest.MonkeyPatch.context() as patch:
        mark = uuid.uuid4().hex
        runtime = Path(tempfile.mkdtemp(prefix="zd-", dir="/tmp"))
        patch.setenv("ZDIST_TEST_MARK", mark)
        patch.setenv("ZDIST_RUNTIME_DIR", str(runtime))
        patch.delenv("ZDIST_TOKEN", raising=False)
        memory = Path(tempfile.mkdtemp(prefix="zt-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        patch.setenv("ZDIST_SHM_DIR", str(memory))
        threads = own_threads()
        yield runtime
        try:
            gone(lambda: shown(processes_marked(mark)), "processes")
            gone(lambda: own_threads() - threads, "threads")
            gone(lambda: sorted(str(path.relative_to(runtime)) for path in runtime.rglob("*")), "files")
            gone(lambda: shared_memory(memory), "shared memory")
        finally:
            for process in processes_marked(mark):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            shutil.rmtree(runtime, ignore_errors=True)
            shutil.rmtree(memory, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(nothing_left: Path) -> Iterator[LocalCluster]:
    """Two workers of two threads each, for all tests of a file."""
    with LocalCluster(n_workers=2, threads_per_worker=2) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client of the file's cluster. After the test the cluster must still work, and hold nothing of it."""
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=WITHIN)
        yield client
        if client.status == "running":
            still_works(client)
    with Client(cluster, set_as_default=False) as observer:
        eventually(lambda: not any(observer.has_what().values()), "an empty cluster")


@pytest.fixture
def second(cluster: LocalCluster) -> Iterator[Client]:
    """Another client of the same cluster."""
    with Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def start(nothing_left: Path) -> Iterator[Callable[..., LocalCluster]]:
    """Start clusters for one test only."""
    started: list[LocalCluster] = []

    def start(**settings: Any) -> LocalCluster:
        started.append(LocalCluster(**settings))
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


@pytest.fixture
def gate(tmp_path: Path) -> functions.Gate:
    """Something that tasks can wait for."""
    return functions.Gate(str(tmp_path / "gate"))
