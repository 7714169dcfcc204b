"""``zdist cluster up`` and its kin, as functions: background processes, state, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zdist import Client
from zdist.cluster import deploy
from zdist.errors import ZdistError
from zdist.node.process import child_environment


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="zt-", dir="/tmp"))
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path / "run"))
    monkeypatch.delenv("ZDIST_TOKEN", raising=False)
    yield path
    for cluster in deploy.known():
        deploy.down(cluster.config)
    shutil.rmtree(path)


def yaml(folder: Path, bind: str = "tcp://127.0.0.1:0") -> Path:
    path = folder / "cluster.yaml"
    path.write_text(
        f"""
broker: {{bind: "{bind}"}}
nodes:
  - {{name: alpha, nworkers: 1, tags: [first]}}
  - {{name: beta, nworkers: 2, resources: {{gpu: 1, mem: 8589934593}}}}
  - {{name: gamma, host: elsewhere.example, nworkers: 4}}
client: {{name: tester}}
logging: {{level: info, format: json}}
"""
    )
    return path


def test_up_use_status_down(folder: Path) -> None:
    path = yaml(folder)
    cluster = deploy.up(path)
    assert cluster.workers == 3
    assert [(process.role, process.name) for process in cluster.processes] == [
        ("broker", "broker"),
        ("node", "alpha"),
        ("node", "beta"),
    ]
    assert len(cluster.elsewhere) == 1
    assert f"zdist worker {cluster.address} --name gamma --nworkers 4" in cluster.elsewhere[0]

    with Client.from_yaml(path) as client:
        workers = {worker["name"]: worker for worker in client.scheduler_info()["workers"].values()}
        assert sorted(workers) == ["alpha", "beta-0", "beta-1"]
        assert workers["beta-0"]["resources"] == {"gpu": 1.0, "mem": 8589934593.0}
        assert client.submit(sum, [1, 2, 3]).result(20) == 6

    with pytest.raises(ZdistError, match="is up at"):
        deploy.up(path)

    beta = cluster.processes[2]
    os.kill(beta.pid, signal.SIGKILL)
    assert deploy._gone(beta, end=float("inf"))
    seen = deploy.status(path)
    assert seen is not None
    assert [process.alive for process in seen.processes] == [True, True, False]

    assert deploy.down(path) == cluster
    assert not any(process.alive for process in cluster.processes)
    assert deploy.status(path) is None
    assert [file.name for file in (folder / "run").iterdir() if not file.name.startswith("token-")] == []


def test_a_cluster_outlives_the_program_that_brought_it_up(folder: Path) -> None:
    path = yaml(folder)
    code = f"from zdist.cluster import deploy; deploy.up({str(path)!r})"
    subprocess.run([sys.executable, "-c", code], env=child_environment(), check=True, timeout=60)
    cluster = deploy.status(path)
    assert cluster is not None
    assert all(process.alive for process in cluster.processes)
    with Client.from_yaml(path) as client:
        assert client.submit(abs, -3).result(20) == 3
    deploy.down(path)
    assert not any(process.alive for process in cluster.processes)


def test_a_port_in_use_is_told_and_nothing_is_left(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = yaml(folder, f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ZdistError, match=r"the broker of .*cluster\.yaml ended; last lines(.|\n)*in use"):
            deploy.up(path)
    assert deploy.status(path) is None
    assert list((folder / "run").iterdir()) == []
