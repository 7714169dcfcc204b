"""LocalCluster's arguments and its private directories; nothing is started here."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from zdist.cluster.directory import PrivateDirectory
from zdist.cluster.local import LocalCluster, default_shape, level_name, memory_bytes
from zdist.errors import AddressRefused, ClusterClosed


@pytest.mark.parametrize(
    ("workers", "threads", "processes", "cores", "shape"),
    [
        (None, None, True, 1, (1, 1)),
        (None, None, True, 4, (4, 1)),
        (None, None, True, 8, (4, 2)),
        (None, None, True, 16, (4, 4)),
        (None, None, True, 12, (4, 3)),
        (None, None, True, 7, (7, 1)),
        (None, None, False, 8, (1, 8)),
        (None, 2, True, 8, (4, 2)),
        (None, 16, True, 8, (1, 16)),
        (None, 3, False, 8, (1, 3)),
        (2, None, True, 8, (2, 4)),
        (3, None, True, 8, (3, 3)),
        (0, None, True, 8, (0, 8)),
        (2, 1, True, 8, (2, 1)),
    ],
)
def test_shape(workers: int | None, threads: int | None, processes: bool, cores: int, shape: tuple[int, int]) -> None:
    assert default_shape(workers, threads, processes, cores) == shape


@pytest.mark.parametrize(("workers", "threads"), [(-1, None), (None, 0)])
def test_impossible_shapes(workers: int | None, threads: int | None) -> None:
    with pytest.raises(ValueError, match="at least"):
        default_shape(workers, threads, True, 4)


def test_memory_limits() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes("auto", 2) == total // 2
    assert memory_bytes(0.25, 2) == total // 4
    assert memory_bytes("2 GiB", 2) == 2 << 30
    assert memory_bytes(12345, 2) == 12345
    assert memory_bytes(None, 2) == memory_bytes(0, 2) == 0
    with pytest.raises(ValueError, match="memory_limit"):
        memory_bytes(-1, 2)


@pytest.mark.parametrize(("given", "size"), [(None, None), (0, 0), ("2 GiB", 2 << 30), (5000, 5000)])
def test_shared_memory(given: str | int | None, size: int | None) -> None:
    assert LocalCluster(shared_memory=given, asynchronous=True).shared_memory == size


@pytest.mark.parametrize("given", ["lots", -1, 0.5])
def test_shared_memory_that_cannot_be(given: Any) -> None:
    with pytest.raises(ValueError, match="4 GiB"):
        LocalCluster(shared_memory=given, asynchronous=True)


@pytest.mark.parametrize(
    ("silence", "level"),
    [(30, "warning"), (20, "info"), (10, "debug"), (50, "error"), (False, "info"), (True, "error"), ("ERROR", "error")],
)
def test_log_levels(silence: int | bool | str, level: str) -> None:
    assert level_name(silence) == level


def test_dasks_keywords_are_ignored_with_a_warning_and_others_refused(recwarn: pytest.WarningsRecorder) -> None:
    cluster = LocalCluster(asynchronous=True, dashboard_address=":0", host=None)
    assert not recwarn.list
    assert cluster.status == "created"
    with pytest.warns(UserWarning, match="scheduler_port"):
        LocalCluster(asynchronous=True, scheduler_port=8786)
    with pytest.raises(TypeError, match="n_wrokers"):
        LocalCluster(asynchronous=True, n_wrokers=2)
    with pytest.raises(ValueError, match="inproc"):
        LocalCluster(asynchronous=True, protocol="inproc://")


def test_a_cluster_that_was_not_started_says_so() -> None:
    cluster = LocalCluster(asynchronous=True, name="quiet")
    with pytest.raises(ClusterClosed, match="'quiet' has not been started"):
        cluster.broker_address  # noqa: B018


# --- directories ------------------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    return path


def test_a_directory_is_private_and_goes_with_its_owner(runtime: Path) -> None:
    directory = PrivateDirectory()
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert directory.path.parent == runtime
    directory.remove()
    directory.remove()
    assert list(runtime.iterdir()) == []


def test_a_runtime_directory_too_long_for_sockets_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(runtime / ("x" * 90)))
    with pytest.raises(AddressRefused, match="ZDIST_RUNTIME_DIR"):
        PrivateDirectory()
    assert list((runtime / ("x" * 90)).iterdir()) == []
