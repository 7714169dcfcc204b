"""YAML clusters: what is known of them between commands; no process is started here."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from zdist.cluster import deploy
from zdist.cluster.deploy import Cluster, Process
from zdist.errors import ClusterClosed, ConfigError, ZdistError
from zdist.transport.security import write_token


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    monkeypatch.delenv("ZDIST_TOKEN", raising=False)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text("broker: {bind: 'tcp://127.0.0.1:0'}\nclient: {name: me, timeout: 3}\n")
    return path


def record(file: Path, *processes: Process, started: float = 1.0) -> Cluster:
    """Write the state of a cluster as `up` does."""
    directory = deploy._directory(file)
    cluster = Cluster(str(file), "tcp://127.0.0.1:9", str(directory / "token"), 2, started, list(processes))
    with deploy._locked(directory):
        write_token("secret", directory / "token")
        deploy._write(directory, cluster)
    return cluster


def me(role: str = "broker") -> Process:
    return Process(role, "me", os.getpid(), deploy.start_time(os.getpid()), "log")


def test_a_process_is_ours_only_with_its_start_time() -> None:
    process = me()
    assert process.start > 0
    assert process.alive
    process.start += 1
    assert not process.alive
    assert deploy.start_time(2**22 + 1) == 0


def test_the_state_comes_back_and_is_private(file: Path) -> None:
    cluster = record(file, me(), me("node"))
    assert deploy.status(file) == cluster
    assert cluster.running
    assert stat.S_IMODE(deploy._state(deploy._directory(file)).stat().st_mode) == 0o600


def test_known_clusters_are_told_oldest_first_and_broken_states_left_out(file: Path, tmp_path: Path) -> None:
    other, broken = tmp_path / "other.yaml", tmp_path / "broken.yaml"
    younger, older = record(file, started=2.0), record(other, started=1.0)
    record(broken)
    deploy._state(deploy._directory(broken)).write_text("{}")
    assert deploy.known() == [older, younger]
    with pytest.raises(ZdistError, match="remove it"):
        deploy.status(broken)


def test_a_file_is_known_by_whatever_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = record(file)
    monkeypatch.chdir(file.parent)
    assert deploy.status("cluster.yaml") == deploy.status("./x/../cluster.yaml") == cluster


def test_down_signals_no_process_that_is_not_ours_and_leaves_nothing(file: Path, runtime: Path) -> None:
    stranger = me()
    stranger.start -= 1  # had the pid before us
    cluster = record(file, stranger)
    assert deploy.down(file) == cluster  # a SIGTERM would have ended this test
    assert deploy.status(file) is None
    assert list(runtime.iterdir()) == []
    assert deploy.down(file) is None


def test_a_second_up_is_refused_while_anything_runs(file: Path) -> None:
    record(file, me())
    with pytest.raises(ZdistError, match=r"is up at tcp://127\.0\.0\.1:9"):
        deploy.up(file)


def test_up_wants_a_good_file(tmp_path: Path, runtime: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("broker: {bnd: 1}\n")
    with pytest.raises(ConfigError, match='did you mean "bind"'):
        deploy.up(path)


def test_connection_to_a_cluster_that_is_up(file: Path) -> None:
    record(file, me())
    found = deploy.connection(file)
    assert found.address == "tcp://127.0.0.1:9"
    assert Path(found.token_file or "").read_text().strip() == "secret"
    assert found.options == {"name": "me", "timeout": 3.0}


def test_connection_without_a_cluster(file: Path) -> None:
    with pytest.raises(ClusterClosed, match="zdist cluster up"):
        deploy.connection(file)
    file.write_text("broker: {bind: 'tcp://127.0.0.1:4321'}\n")
    assert deploy.connection(file).address == "tcp://127.0.0.1:4321"


def test_a_lock_on_a_removed_directory_is_taken_anew(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = deploy._directory(file)
    opened, entered = threading.Event(), threading.Event()
    real = deploy.fcntl.flock

    def flock(lock: int, how: int) -> None:
        opened.set()
        real(lock, how)

    def second() -> None:
        with deploy._locked(directory):
            assert directory.is_dir()
            entered.set()

    with deploy._locked(directory):
        monkeypatch.setattr(deploy.fcntl, "flock", flock)
        thread = threading.Thread(target=second)
        thread.start()
        assert opened.wait(10)  # it waits for a lock on a file that now goes
        shutil.rmtree(directory)
    thread.join(10)
    assert entered.is_set()
