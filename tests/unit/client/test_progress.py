from __future__ import annotations

import asyncio
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from fake_client import FakeClient, use_fakes

from zdist.client.progress import progress

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    return use_fakes(monkeypatch)


def futures_of_two_functions(client: FakeClient) -> list[Any]:
    names = [*(f"square-{i:032x}" for i in range(30)), *(f"load-{i:032x}" for i in range(10)), "own-key"]
    return [client.future(name) for name in names]


def test_a_bar_for_each_function(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    futures = futures_of_two_functions(client)
    failed, *good = futures

    def work() -> None:
        client.settle(failed, ValueError(), "error")
        for future in good:
            client.settle(future)

    thread = threading.Thread(target=work)
    thread.start()
    assert progress(futures, notebook=False) is None
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["square", "load", "own-key"]
    assert "30/30" in lines[0] and "1 failed" in lines[0]
    assert "10/10" in lines[1] and "failed" not in lines[1]


def test_one_bar_for_all(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    futures = futures_of_two_functions(client)
    for future in futures:
        client.settle(future)
    progress(*futures[:5], futures[5:], multi=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("tasks") and "41/41" in line


def test_nothing_to_show(client: FakeClient) -> None:
    assert progress([]) is None


def test_on_an_asynchronous_client(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.asynchronous = True
    futures = futures_of_two_functions(client)

    async def main() -> None:
        thread = threading.Thread(target=lambda: [client.settle(future) for future in futures])
        thread.start()
        await progress(futures)
        thread.join()

    asyncio.run(main())
    assert "30/30" in capsys.readouterr().out


class Screen:
    """Stands for IPython.display."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.complete = threading.Event()

    def display(self, obj: str, display_id: bool) -> Screen:
        assert display_id
        self.update(obj)
        return self

    def update(self, obj: str) -> None:
        self.shown.append(obj)
        if "30 / 30" in obj:
            self.complete.set()


def test_in_a_notebook_it_returns_at_once_and_goes_on(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    ipython, shown = ModuleType("IPython"), ModuleType("IPython.display")
    shell = type("ZMQInteractiveShell", (), {})()
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    shown.HTML, shown.display = str, screen.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    futures = [client.future(f"<i>-{i:032x}") for i in range(30)]
    assert progress(futures) is None
    assert "&lt;i&gt;" in screen.shown[0] and "0 / 30" in screen.shown[0]
    for future in futures:
        client.settle(future)
    assert screen.complete.wait(5)
    for thread in threading.enumerate():
        if thread.name == "zdist-progress":
            thread.join(5)
            assert not thread.is_alive()
