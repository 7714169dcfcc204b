"""Plugins, callbacks and uploaded files, on workers that are there and on those that come later."""

from __future__ import annotations

import os
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_checks import WITHIN, eventually

from zdist import Client, LocalCluster, ZdistError, get_worker
from zdist.worker.process import Settings, Worker


class Marks:
    """Leaves its name on the worker, takes it away again, and counts what it is told of."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.seen: list[tuple[str, str, str]] = []

    def setup(self, worker: Any) -> None:
        worker.marks = {*getattr(worker, "marks", ()), self.mark}
        worker.seen = self.seen

    def teardown(self, worker: Any) -> None:
        worker.marks = worker.marks - {self.mark}

    def transition(self, key: str, start: str, finish: str) -> None:
        self.seen.append((key, start, finish))


class Broken:
    def setup(self, worker: Any) -> None:
        raise RuntimeError("no such device")


def marks(_: Any = None) -> Any:
    return sorted(getattr(get_worker(), "marks", ()))


def marks_of(dask_worker: Any) -> Any:
    return sorted(getattr(dask_worker, "marks", ()))


def greet(_: Any = None) -> Any:
    import greeting  # type: ignore[import-not-found]

    return greeting.text


def seen(dask_worker: Any) -> Any:
    return list(dask_worker.seen)


def fail(_: Any = None) -> None:
    raise ValueError("on purpose")


def test_workers_that_come_later_have_what_was_registered(start: Callable[..., LocalCluster], tmp_path: Path) -> None:
    cluster = start(n_workers=1, threads_per_worker=1)
    module = tmp_path / "greeting.py"
    module.write_text("text = 'hello'")
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WITHIN)
        (answer,) = client.register_worker_plugin(Marks("plugin"), name="marks").values()
        assert answer == {"status": "OK"}
        client.upload_file(module)
        client.register_worker_callbacks(lambda dask_worker: setattr(dask_worker, "called", True))
        assert client.submit(marks, pure=False).result(WITHIN) == ["plugin"]
        assert client.submit(greet, pure=False).result(WITHIN) == "hello"
        (worker,) = client.scheduler_info()["workers"].values()
        os.kill(worker["pid"], signal.SIGKILL)
        assert client.submit(marks, pure=False).result(WITHIN) == ["plugin"]  # its successor, at its first task
        assert client.submit(greet, pure=False).result(WITHIN) == "hello"
        assert all(client.run(lambda dask_worker: dask_worker.called).values())
        module.write_text("text = 'hello again'")
        client.upload_file(module)
        assert client.submit(greet, pure=False).result(WITHIN) == "hello again"
        client.unregister_worker_plugin("marks")
        assert list(client.run(marks_of).values()) == [[]]
        with pytest.raises(KeyError, match="marks"):
            client.unregister_worker_plugin("marks")


def test_a_plugin_is_set_up_once_replaced_and_told_of_tasks(client: Client) -> None:
    client.register_plugin(Marks("old"), name="one")
    client.register_plugin(Marks("old"), name="one")
    client.register_plugin(Marks("new"), name="one")
    assert all(found == ["new"] for found in client.run(marks_of).values())
    good, bad = client.submit(marks, pure=False), client.submit(fail, pure=False)
    assert good.result(WITHIN) == ["new"]
    assert isinstance(bad.exception(WITHIN), ValueError)

    def told() -> Any:
        return {tuple(row) for rows in client.run(seen).values() for row in rows}

    expected = {
        (good.key, "ready", "executing"), (good.key, "executing", "memory"),
        (bad.key, "ready", "executing"), (bad.key, "executing", "error"),
    }  # fmt: skip
    eventually(lambda: told() >= expected, "transitions")
    client.unregister_worker_plugin("one")


def test_what_a_plugin_raises(client: Client) -> None:
    with pytest.raises(RuntimeError, match="no such device"):
        client.register_plugin(Broken(), name="broken")
    client.unregister_worker_plugin("broken")


def test_a_changed_module_is_in_force_at_once(
    start: Callable[..., LocalCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # compiled code is kept
    path = tmp_path / "changing.py"

    def number() -> Any:
        import changing  # type: ignore[import-not-found]

        return changing.number

    with Client(start(n_workers=1, threads_per_worker=1), set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WITHIN)
        for text in ("number = x", "number = 1", "number = 2", "number = 3"):  # of one size, in one second
            path.write_text(text)
            if text == "number = x":
                with pytest.raises(NameError):
                    client.upload_file(path)
            else:
                client.upload_file(path)
                assert client.submit(number, pure=False).result(WITHIN) == int(text[-1])


def test_archives_and_large_files(client: Client, tmp_path: Path) -> None:
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("zipped_greeting.py", "text = 'from a zip'")
        packed.writestr("ballast", os.urandom(3 << 20))
    client.upload_file(archive)
    assert "zipped_greeting" not in sys.modules

    def text() -> str:
        import zipped_greeting  # type: ignore[import-not-found]

        return str(zipped_greeting.text)

    assert client.submit(text, pure=False).result(WITHIN) == "from a zip"
    with pytest.raises(OSError, match="nothing-here"):
        client.upload_file(tmp_path / "nothing-here.py")


def test_a_preloaded_file_is_set_up_before_any_task(tmp_path: Path) -> None:
    module = tmp_path / "preloaded_here.py"
    module.write_text("def zdist_setup(worker):\n    worker.marks = {'preloaded'}\n")
    worker = Worker(Settings(control="tcp://127.0.0.1:9", token="t"))
    try:
        worker.plugins.preload(str(module))
        assert marks_of(worker) == ["preloaded"]
        with pytest.raises(ZdistError, match=r"preload of nothing_of_this_name failed: ModuleNotFoundError"):
            worker.plugins.preload("nothing_of_this_name")
    finally:
        worker.close()
        sys.path.remove(str(tmp_path))
        sys.modules.pop("preloaded_here", None)
