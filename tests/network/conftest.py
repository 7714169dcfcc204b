"""The laboratory for the tests of this folder, and a check that each file leaves nothing of it behind."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from lab import namespaces_refused
from topologies import Stage, Topology, stage

HERE = Path(__file__).parent
WITHIN = 20.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.network)


@pytest.fixture(scope="session", autouse=True)
def laboratory() -> None:
    """Where namespaces can be expected and cannot be had, the tests fail; elsewhere they are skipped."""
    if why := namespaces_refused():
        if os.geteuid() == 0 or os.environ.get("CI"):
            pytest.fail(f"no network namespaces here: {why}", pytrace=False)
        pytest.skip(f"network namespaces need root: {why}")


def processes_marked(mark: str) -> list[psutil.Process]:
    """The processes, whoever their parent now is, that inherited the mark from this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("ZDIST_TEST_MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def gone(remains: Callable[[], object], what: str) -> None:
    pause = threading.Event()
    for _ in range(int(WITHIN / 0.02)):
        if not (left := remains()):
            return
        pause.wait(0.02)
    raise AssertionError(f"left behind: {what}: {left}")


@pytest.fixture(scope="module", autouse=True)
def nothing_left(laboratory: None) -> Iterator[list[str]]:
    """What a file's laboratories leave behind; at its end that must be nothing. A namespace ends with its last
    process, as nothing else holds one."""
    with pytest.MonkeyPatch.context() as patch:
        mark = uuid.uuid4().hex
        patch.setenv("ZDIST_TEST_MARK", mark)
        left: list[str] = []
        yield left
        try:
            gone(lambda: [(p.pid, p.cmdline()) for p in processes_marked(mark)], "processes")
            assert list(Path("/tmp").glob(f"zlab-{mark[:8]}-*")) == []
            assert left == []
        finally:
            for process in processes_marked(mark):
                process.kill()


@pytest.fixture(scope="module")
def staged(nothing_left: list[str]) -> Iterator[Callable[..., Stage]]:
    """Set topologies up; the one before ends."""
    with ExitStack() as last:

        def begin(topology: Topology | str, own_shm: bool = True) -> Stage:
            last.close()
            return last.enter_context(stage(topology, own_shm, nothing_left))

        yield begin
