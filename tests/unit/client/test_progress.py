"""What progress and gather(progress=) draw, where, and when not."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from types import ModuleType
from typing import Any

import pytest
from fake_driver import FakeBroker, FakeDriver

from zdist.client import progress as module
from zdist.client.client import Client
from zdist.client.progress import BARS, Tally, progress
from zdist.client.screens import Row, amount, in_notebook
from zdist.core.collect import Collection
from zdist.errors import ClusterClosed

pytestmark = pytest.mark.timeout(30)


def square(x: int) -> int:
    return x * x


def fail_at_three(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


class Tty(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Tty:
    """For ``redirect_stderr``: between fixture and test pytest puts its own standard error in place."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Tty()


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw at every look instead of ten times a second."""
    monkeypatch.setattr(module, "REFRESH", 0.0)
    yield


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


# --- progress(futures) ----------------------------------------------------------------------------------


def test_a_bar_for_each_function(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    futures = client.map(square, range(30)), client.map(fail_at_three, range(10)), client.submit(square, 1, key="own")
    assert progress(futures, notebook=False) is None
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split()[0] for line in lines] == ["square", "fail_at_three", "own"]
    assert "30/30" in lines[0] and "failed" not in lines[0]
    assert "10/10" in lines[1] and "1 failed" in lines[1]


def test_one_bar_for_all(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    futures = client.map(square, range(1500))
    progress(futures[:5], *futures[5:], multi=False, notebook=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tasks") and "1,500/1,500" in line


def test_functions_beyond_the_first_share_a_bar(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    futures = [client.submit(square, i, key=f"key{i}") for i in range(BARS + 30)]
    progress(futures, notebook=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == BARS + 1
    assert lines[-1].startswith("others") and "30/30" in lines[-1]


def test_nothing_to_show(client: Client) -> None:
    assert progress([]) is None


def test_silent_where_nobody_looks(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    futures = client.map(square, range(3))
    assert progress(futures) is None
    assert all(future.done() for future in futures)
    assert capsys.readouterr() == ("", "")


def test_bars_move_in_a_terminal(client: Client, broker: FakeBroker, tty: Tty, slowly: None) -> None:
    broker.manual = True
    futures = client.map(square, range(4), key=[f"square-{i:032}" for i in range(4)])
    seen = []
    release = FakeDriver.made[0].turn

    def turn() -> None:
        release()
        seen.append(plain(tty.getvalue()).count("0/4"))
        if seen[-1] > 2:
            broker.go()

    FakeDriver.made[0].turn = turn  # type: ignore[method-assign]
    with redirect_stderr(tty):
        progress(futures)
    assert "4/4" in plain(tty.getvalue())
    assert plain(tty.getvalue()).rstrip(" ").endswith("\n")  # what follows begins a line of its own


@pytest.mark.parametrize("notebook", [False, True])
def test_what_ends_while_it_is_drawn_is_drawn_at_its_end(
    client: Client, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, slowly: None, notebook: bool
) -> None:
    drawn: list[int] = []
    complete = threading.Event()

    class Screen(contextlib.nullcontext[None]):
        def draw(self, rows: list[Row]) -> None:
            drawn.append(rows[0].done)
            broker.go()
            FakeDriver.made[0].turn()
            if rows[0].done == 4:
                complete.set()

    monkeypatch.setattr(module, "terminal", lambda *args, **kwargs: Screen())
    monkeypatch.setattr(module, "Notebook", Screen)
    broker.manual = True
    progress(client.map(square, range(4)), notebook=notebook)
    assert complete.wait(10 if notebook else 0) and drawn[0] == 0


def test_an_interrupt_ends_the_bars_and_leaves_no_trace(client: Client, broker: FakeBroker, tty: Tty) -> None:
    broker.manual = True
    futures = client.map(square, range(4))
    FakeDriver.made[0].interrupt = True
    with redirect_stderr(tty), pytest.raises(KeyboardInterrupt):
        progress(futures)
    assert "\x1b[?25h" in tty.getvalue()[-20:]  # the cursor is back
    assert not any(future._entry.waiters for future in futures)
    broker.go()
    assert client.gather(futures) == [0, 1, 4, 9]


def test_futures_of_two_clients(client: Client, connect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    other = connect()
    futures = client.map(square, range(3)), other.map(square, range(4))
    FakeDriver.made[1].turn()  # a real one has a thread that does so
    progress(*futures, notebook=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "7/7" in line


def test_futures_of_a_client_that_is_closed_meanwhile_are_done(client: Client, broker: FakeBroker) -> None:
    broker.manual = True
    tally = Tally(client.map(square, range(5)), multi=False)
    assert tally.rows() == [Row("tasks", 0, 5, 0)]
    client.close()
    assert tally.pending() is None and tally.rows() == [Row("tasks", 5, 5, 5)]
    with pytest.raises(ClusterClosed):
        client.submit(square, 1)


async def test_on_an_asynchronous_client(connect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    async with connect(asynchronous=True) as client:
        futures = client.map(square, range(30))
        shown = asyncio.ensure_future(progress(futures, notebook=False))
        while not shown.done():
            FakeDriver.made[-1].turn()
            await asyncio.sleep(0)
        await shown
    assert "30/30" in capsys.readouterr().err


def test_a_look_costs_the_same_for_a_hundred_thousand_futures(client: Client, broker: FakeBroker) -> None:
    """Counted, not timed: between two looks no future is touched."""
    broker.manual = True
    futures = client.map(square, range(100_000))
    tally = Tally(futures, multi=True)
    lines = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += 1
        return trace

    sys.settrace(trace)
    try:
        assert tally.pending() is not None
        assert tally.rows() == [Row("square", 0, 100_000, 0)]
    finally:
        sys.settrace(None)
    assert 0 < lines < 100
    tally.forget()


# --- in a notebook --------------------------------------------------------------------------------------


class Display:
    """Stands for IPython.display: keeps what each display shows, by the order of their first appearance."""

    def __init__(self) -> None:
        self.cells: list[list[Any]] = []
        self.complete = threading.Event()
        self.full = "30/30"

    def display(self, obj: Any, display_id: bool) -> Any:
        assert display_id
        cell: list[Any] = [obj]
        self.cells.append(cell)
        display = self

        class Handle:
            def update(self, obj: Any) -> None:
                cell.append(obj)
                if display.full in obj._repr_html_():
                    display.complete.set()

        return Handle()

    def html(self, cell: int = 0) -> list[str]:
        return [obj._repr_html_() for obj in self.cells[cell]]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Display:
    """The kernel of a notebook, as far as anybody can tell."""
    screen = Display()
    ipython, shown = ModuleType("IPython"), ModuleType("IPython.display")
    shell = type("ZMQInteractiveShell", (), {"kernel": object()})()
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    shown.display = screen.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return screen


def test_in_a_notebook_it_returns_at_once_and_goes_on(client: Client, broker: FakeBroker, notebook: Display) -> None:
    broker.manual = True
    futures = [client.submit(square, i, key=f"<i>-{i:032x}") for i in range(30)]
    assert progress(futures) is None
    assert "&lt;i&gt;" in notebook.html()[0] and "0/30" in notebook.html()[0]
    assert repr(notebook.cells[0][0]) == "<i> 0/30"  # where nobody can show HTML
    broker.go()
    FakeDriver.made[0].turn()
    assert notebook.complete.wait(5)
    assert len(notebook.cells) == 1  # updated in place
    for thread in threading.enumerate():
        if thread.name == "zdist-progress":
            thread.join(5)
            assert not thread.is_alive()


def test_a_terminal_with_ipython_is_no_notebook(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    progress(client.map(square, range(3)))
    assert capsys.readouterr() == ("", "")
    ipython.get_ipython = lambda: None  # type: ignore[attr-defined]
    assert not in_notebook()


def test_a_gather_in_a_notebook_is_drawn_in_place(client: Client, notebook: Display, slowly: None) -> None:
    notebook.full = "20/20"
    assert client.gather(client.map(square, range(20)), progress=True) == [i * i for i in range(20)]
    assert len(notebook.cells) == 1 and notebook.complete.is_set()


# --- gather(progress=) ----------------------------------------------------------------------------------


def test_a_gather_draws_one_bar(client: Client, tty: Tty) -> None:
    with redirect_stderr(tty):
        found = client.gather({"a": client.map(square, range(20))}, progress=True)
    assert found == {"a": [i * i for i in range(20)]}
    lines = plain(tty.getvalue()).splitlines()
    assert lines[-1].startswith("gather") and "20/20" in lines[-1]


def test_a_gather_is_silent_where_nobody_looks_unless_asked(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    futures = client.map(square, range(5))
    assert client.gather(futures, progress=True) == [0, 1, 4, 9, 16]
    assert capsys.readouterr() == ("", "")
    assert client.gather(futures[2], progress="always") == 4
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("gather") and "1/1" in err


def test_errors_end_the_bar(client: Client, tty: Tty) -> None:
    futures = client.map(fail_at_three, range(5))
    with redirect_stderr(tty), pytest.raises(ValueError, match="three"):
        client.gather(futures, progress=True)
    assert "\x1b[?25h" in tty.getvalue()[-20:]
    with redirect_stderr(tty):
        assert client.gather(futures, errors="skip", progress=True) == [0, 1, 2, 4]
    assert "1 failed" in plain(tty.getvalue())


def test_a_timeout_and_an_interrupt_end_the_bar(client: Client, broker: FakeBroker, tty: Tty) -> None:
    broker.manual = True
    futures = client.map(square, range(5))
    started = time.monotonic()
    with redirect_stderr(tty), pytest.raises(TimeoutError):
        client.gather(futures, progress=True, timeout=0.25)
    assert time.monotonic() - started >= 0.25
    FakeDriver.made[0].interrupt = True
    with redirect_stderr(tty), pytest.raises(KeyboardInterrupt):
        client.gather(futures, progress=True)
    assert "\x1b[?25h" in tty.getvalue()[-20:]
    assert not client._ledger.collections.open and not any(future._entry.waiters for future in futures)


async def test_a_gather_on_an_asynchronous_client(connect: Any, tty: Tty) -> None:
    with redirect_stderr(tty):
        client = await connect(asynchronous=True)
        gathering = asyncio.ensure_future(client.gather(client.map(square, range(20)), progress=True))
        while not gathering.done():
            FakeDriver.made[-1].turn()
            await asyncio.sleep(0)
        assert await gathering == [i * i for i in range(20)]
    await client.close()
    assert "20/20" in plain(tty.getvalue())


def test_progress_of_a_stream_or_in_an_unknown_way_is_an_error(client: Client) -> None:
    with pytest.raises(ValueError, match="comes back at once"):
        client.gather(iter([]), progress=True)
    with pytest.raises(ValueError, match="'always'"):
        client.gather([], progress="loudly")


class FakeEntry:
    def __init__(self, nbytes: int) -> None:
        self.outcome = ("k", 1, nbytes, None, (), "t")


def test_bytes_count_once_all_sizes_are_known(client: Client) -> None:
    meter = module.Meter(client, client.map(square, range(4)))
    collection = Collection(1, None, lambda *_: None)
    collection.left, collection.nbytes = 3, 100
    collection.fetching = {"a": FakeEntry(200)}  # type: ignore[dict-item]
    assert meter.row(collection) == Row("gather", 1, 4, 0, 100, 0)  # two are still being computed
    assert meter.row(collection).fraction == 0.25
    collection.left = 2
    collection.fetching = {"a": FakeEntry(200), "b": FakeEntry(700)}  # type: ignore[dict-item]
    assert meter.row(collection) == Row("gather", 2, 4, 0, 100, 1000)
    assert meter.row(collection).fraction == 0.1
    del collection.fetching["a"]
    collection.left, collection.nbytes = 1, 300
    assert meter.row(collection) == Row("gather", 3, 4, 0, 300, 1000)
    client.gather(meter.futures)
    assert meter.end() == Row("gather", 4, 4, 0, 1000, 1000)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (100_000, "100 kB"), (999_600, "1.0 MB"),
     (5_400_000_000, "5.4 GB")],
)  # fmt: skip
def test_amounts_for_people(nbytes: int, text: str) -> None:
    assert amount(nbytes) == text
