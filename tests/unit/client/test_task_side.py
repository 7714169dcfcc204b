from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_client import FakeClient, use_fakes

import zdist
from zdist import context
from zdist.client import tasks
from zdist.errors import CancelledError, SecededLimit

WORKER = SimpleNamespace(name="w0", address="ipc:///w0", broker_address="ipc:///broker", token="t")


class Task:
    key = "task-1"

    def __init__(self, worker: Any = WORKER, room: bool = True) -> None:
        self.worker = worker
        self.room = room
        self.seceded = False
        self.moves: list[str] = []
        self.shown: list[tuple[str, str]] = []

    def secede(self) -> None:
        if not self.room:
            raise SecededLimit("256 tasks have left")
        self.seceded = True
        self.moves.append("secede")

    def rejoin(self) -> None:
        self.seceded = False
        self.moves.append("rejoin")

    def output(self, stream: str, text: str) -> None:
        self.shown.append((stream, text))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    monkeypatch.setattr(context, "_defaults", [])
    monkeypatch.setattr(context, "_clients", {})
    return use_fakes(monkeypatch)


@pytest.fixture
def task(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    monkeypatch.setattr(context, "client_factory", lambda worker: client)
    task = Task()
    token = context.current.set(task)
    yield task
    context.current.reset(token)


def test_the_worker_and_client_of_a_task(task: Task, client: FakeClient) -> None:
    assert tasks.get_worker() is WORKER
    assert tasks.get_client() is client
    assert tasks.get_client("ipc:///broker") is client


def test_who_makes_the_client_waits_for_the_pool_only_when_others_can_have_it(
    task: Task, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads of the pool may be waiting for it."""
    seen: list[Any] = []

    def make(worker: Any) -> FakeClient:
        seen.append(task.seceded)
        return client

    def rejoin() -> None:
        other = threading.Thread(target=lambda: seen.append(context.client_of(WORKER)))
        other.start()
        other.join(5)
        task.seceded = False

    monkeypatch.setattr(context, "client_factory", make)
    monkeypatch.setattr(task, "rejoin", rejoin)
    assert tasks.get_client() is client and seen == [True, client] and not task.seceded
    assert tasks.get_client() is client and seen == [True, client]


def test_one_client_for_all_tasks_of_a_worker(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    started = threading.Barrier(4)
    monkeypatch.setattr(context, "client_factory", lambda worker: made.append(worker) or client)

    def ask() -> None:
        started.wait(5)
        assert context.client_of(WORKER) is client

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert made == [WORKER]


def test_closing_the_client_of_a_worker(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    client.close = lambda: closed.append(1)  # type: ignore[attr-defined]
    monkeypatch.setattr(context, "client_factory", lambda worker: client)
    context.close_client_of(WORKER)
    assert closed == []
    context.client_of(WORKER)
    context.close_client_of(WORKER)
    context.close_client_of(WORKER)
    assert closed == [1]


def test_a_worker_without_a_factory_says_so(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "client_factory", None)
    with pytest.raises(RuntimeError, match="worker w0 offers its tasks no client"):
        context.client_of(WORKER)


@pytest.mark.parametrize("call", [tasks.get_worker, tasks.secede, tasks.rejoin])
def test_outside_a_task(client: FakeClient, call: Any) -> None:
    with pytest.raises(ValueError, match=rf"{call.__name__}\(\) works only inside a task"):
        call()


def test_no_client_to_get(client: FakeClient) -> None:
    with pytest.raises(ValueError, match="no default client in this process and no address was given"):
        tasks.get_client()
    with pytest.raises(ValueError, match="no default client in this process: make one"):
        context.default_client()


def test_the_newest_default_client_counts(client: FakeClient) -> None:
    other = FakeClient()
    context.push_default(client)
    context.push_default(other)
    assert context.default_client() is tasks.get_client() is other
    with context.as_current(client):
        assert context.default_client() is client
    context.drop_default(other)
    assert context.default_client() is client
    context.drop_default(client)
    assert context.find_client() is None


def test_a_default_client_is_not_kept_alive(client: FakeClient) -> None:
    context.push_default(FakeClient())
    assert context.find_client() is None


def test_worker_client_leaves_the_pool_and_comes_back(task: Task, client: FakeClient) -> None:
    with tasks.worker_client() as inside:
        assert inside is client and task.seceded
    with pytest.raises(KeyError), tasks.worker_client():
        raise KeyError
    assert task.moves == ["secede", "rejoin"] * 2
    with tasks.worker_client(separate_thread=False):
        assert not task.seceded


def test_worker_client_in_a_task_that_has_left(task: Task) -> None:
    tasks.secede()
    with tasks.worker_client():
        pass
    assert task.seceded and task.moves == ["secede"]
    tasks.rejoin()
    assert not task.seceded


def test_away_from_the_pool_while_blocked(task: Task) -> None:
    with context.away():
        assert task.seceded
        with context.away():
            assert task.seceded
        assert task.seceded
    assert task.moves == ["secede", "rejoin"]


def test_away_outside_a_task_does_nothing() -> None:
    with context.away():
        assert context.current.get() is None


def test_too_many_have_left(client: FakeClient) -> None:
    token = context.current.set(Task(room=False))
    try:
        with pytest.raises(SecededLimit, match="256 tasks have left"), context.away():
            pytest.fail("entered")
    finally:
        context.current.reset(token)


def test_print_in_a_task(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    zdist.print("a", 1, sep="-", end="!")
    zdist.print("b", file=sys.stderr)
    assert task.shown == [("out", "a-1!"), ("err", "b\n")]
    assert capsys.readouterr() == ("a-1!", "b\n")


def test_print_and_warn_outside_a_task(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    zdist.print("plain")
    assert capsys.readouterr().out == "plain\n"
    with pytest.warns(DeprecationWarning, match="old"):
        zdist.warn("old", DeprecationWarning)


def test_warn_in_a_task(task: Task) -> None:
    class Own(UserWarning):
        pass

    with pytest.warns(UserWarning), pytest.warns(RuntimeWarning):
        zdist.warn("careful: it is hot")
        zdist.warn(RuntimeWarning("as an object"))
        zdist.warn("mine", Own)
    assert task.shown == [
        ("warn", "UserWarning: careful: it is hot"),
        ("warn", "RuntimeWarning: as an object"),
        ("warn", "Own: mine"),
    ]


@pytest.mark.parametrize(
    ("text", "category", "message"),
    [
        ("RuntimeWarning: a: b", RuntimeWarning, "a: b"),
        ("Own: mine", UserWarning, "mine"),
        ("ValueError: no warning", UserWarning, "no warning"),
        ("print: no class", UserWarning, "no class"),
    ],
)
def test_warnings_shown_at_the_client(text: str, category: type[Warning], message: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tasks.show("warn", text)
    assert [(w.category, str(w.message)) for w in seen] == [(category, message)]


def test_text_shown_at_the_client(capsys: pytest.CaptureFixture[str]) -> None:
    tasks.show("out", "to out\n")
    tasks.show("err", "to err\n")
    tasks.show("log", "a record", "w0")
    assert capsys.readouterr() == ("to out\n", "to err\nw0: a record\n")


def test_futures_of(client: FakeClient) -> None:
    a, b = client.future("a"), client.future("b")
    assert tasks.futures_of([a, {"x": (b, a)}, "a"]) == [a, b]
    client.cancel(b)
    with pytest.raises(CancelledError, match="cancelled: b"):
        tasks.futures_of([a, b])


def test_fire_and_forget_goes_to_each_futures_client(client: FakeClient) -> None:
    other = FakeClient()
    tasks.fire_and_forget([client.future("a"), other.future("b"), client.future("c")])
    assert (client.forgotten, other.forgotten) == (["a", "c"], ["b"])
