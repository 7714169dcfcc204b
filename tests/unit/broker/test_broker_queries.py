"""Questions, orders, calls, output and sessions."""

from __future__ import annotations

from typing import Any

import pytest
from broker_world import World, ask

from zdist.limits import RECOVERY, WAITING_ASKS
from zdist.protocol.messages import (
    Adjust,
    Adjusted,
    Answer,
    Ask,
    Buffer,
    Call,
    Called,
    Hold,
    Output,
    Refused,
    Stop,
    WorkerDied,
)
from zdist_broker.machine import Expel, Shutdown
from zdist_broker.relay import Relay


def test_workers() -> None:
    w = World(workers=1, threads=2)
    w.worker("w-1", tags=("gpu",), resources={"mem": 2.0})
    w.submit("a")
    w.finish("a")
    info = ask(w, "workers")
    assert (info["type"], info["address"]) == ("Broker", "tcp://broker")
    assert list(info["workers"]) == ["tcp://w-0", "tcp://w-1"]
    first, second = info["workers"].values()
    assert (first["name"], first["host"], first["nthreads"], first["status"]) == ("W-0", "h", 2, "running")
    assert first["held"] + second["held"] == 1
    assert (second["tags"], second["resources"]) == (["gpu"], {"mem": 2.0})
    assert ask(w, "nthreads") == {"tcp://w-0": 2, "tcp://w-1": 1}


def test_a_worker_that_takes_no_work_yet_is_not_listed() -> None:
    w = World(workers=0)
    w.join("w-0", "worker", node="n-0", address="tcp://w-0")
    assert ask(w, "workers")["workers"] == {}


def test_who_has_and_has_what_and_processing() -> None:
    w = World(workers=1)
    w.submit("a")
    w.finish("a")
    w.submit("b")
    w.turn()
    assert ask(w, "who_has") == {"a": ["tcp://w-0"], "b": []}
    assert ask(w, "who_has", ("a", "unknown")) == {"a": ["tcp://w-0"], "unknown": []}
    assert ask(w, "has_what") == {"tcp://w-0": ["a"]}
    assert ask(w, "has_what", ("W-0",)) == {"tcp://w-0": ["a"]}
    assert ask(w, "has_what", ("W-7",)) == ("error", "has_what: there is no worker 'W-7'; there are W-0")
    assert ask(w, "processing") == {"tcp://w-0": ["b"]}


def test_nonsense_is_answered_with_an_error() -> None:
    w = World()
    assert ask(w, "meaning") == ("error", "meaning: 'meaning' is not a question that a broker answers")
    for what, args in (("who_has", 5), ("wait_for_workers", "many"), ("scale", None), ("has_what", 3)):
        assert ask(w, what, args)[0] == "error"
    assert ask(w, "fence") is True


def test_counts_return_to_the_baseline() -> None:
    w = World(workers=2)
    w.broker.queries.relay = Relay()
    before = ask(w, "counts")
    gen = w.submit("a", "b")
    w.send("c-0", Hold(w.gen, (("d", 0, 10, "array"),)))
    w.finish("a")
    middle = ask(w, "counts")
    assert (middle["tasks"], middle["data"], middle["held"], middle["assigned"]) == (2, 1, 2, 1)
    assert middle["wants"] == 3 and middle["cached"] == 5
    w.finish("b")
    for key in ("a", "b", "d"):
        w.release(key, gen)
    assert ask(w, "counts") == before


def test_wait_for_workers() -> None:
    w = World(workers=1)
    assert ask(w, "wait_for_workers", 1) == 1
    assert ask(w, "wait_for_workers", (3,)) is None
    w.worker("w-1")
    assert not w.got("c-0", Answer)
    w.worker("w-2")
    assert [a.value for a in w.got("c-0", Answer)] == [3]


def test_bytes_in_the_relay_are_counted_where_there_is_one() -> None:
    w = World()
    assert ask(w, "counts")["relay"] == 0
    w.broker.queries.relay = relay = Relay()
    relay.granted = 7
    assert ask(w, "counts")["relay"] == 7


def test_workers_that_are_there_are_not_waited_for() -> None:
    w = World(workers=1)
    for n in range(WAITING_ASKS + 1):
        w.send("c-0", Ask(n, "wait_for_workers", 1))
    assert all(answer.ok for answer in w.got("c-0", Answer))


def test_restart_cancels_everything_and_answers_when_as_many_are_back() -> None:
    w = World(workers=2, clients=2)
    w.submit("a")
    w.submit("b", deps=("a",), client="c-1")
    w.finish("a")
    assert ask(w, "restart", 30) is None
    assert w.cancelled("c-0") == [("a", "cluster restarted")]
    assert w.cancelled("c-1") == [("b", "cluster restarted")]
    assert w.states() == {}
    ((_, workers, restart),) = w.got("n-0", Adjust)
    assert (workers, restart) == (-1, True)
    for n in (0, 1):
        w.die(f"w-{n}", ordered=True)
        assert not w.got("c-0", Answer)
        w.worker(f"w-1{n}")
    assert [(a.ok, a.value) for a in w.got("c-0", Answer)] == [(True, 2)]


@pytest.mark.parametrize("ordered", ["restart", "restart_workers"])
def test_workers_are_replaced_also_if_their_node_is_slower_to_come_than_they(ordered: str) -> None:
    w = World(workers=1)
    w.worker("w-1", node="n-1")
    assert ask(w, ordered, None if ordered == "restart" else (("W-0", "W-1"), None)) is None
    w.got("n-0", Adjust)
    w.join("n-2", "node", workers=1)
    w.join("n-1", "node", workers=1)
    if ordered == "restart":
        ((_, workers, restart),) = w.got("n-1", Adjust)
        assert (workers, restart) == (-1, True)
        assert w.got("n-0", Adjust) == w.got("n-2", Adjust) == []
    else:
        assert w.got("n-1", Adjust) == []
    w.die("w-1", ordered=True)
    w.worker("w-3", node="n-1")
    w.leave("n-1")
    w.join("n-1", "node", workers=1)
    assert w.got("n-1", Adjust) == []


def test_restart_gives_up_after_its_timeout() -> None:
    w = World(workers=1)
    assert ask(w, "restart", (5,)) is None
    assert w.broker.deadline() == 5
    w.now = 5
    w.broker.tick(w.now)
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and "0 of 1" not in answer.value and "were back in time" in answer.value
    assert w.broker.deadline() is None


def test_a_restart_is_answered_whoever_else_has_ordered_one_and_is_gone() -> None:
    w = World(workers=1, clients=2)
    for client in ("c-0", "c-1"):
        ask(w, "restart", (5,), client=client)
    w.leave("c-0")
    assert [restart.client.session for restart in w.broker.queries.restarts] == ["c-1"]
    w.die("w-0", ordered=True)
    w.worker("w-1")
    assert [answer.ok for answer in w.got("c-1", Answer)] == [True]


def test_orders_about_all_workers_wait_until_those_of_an_earlier_broker_are_back() -> None:
    w = World(workers=0, clients=2)
    w.broker.succeeds(w.now)
    w.send("c-0", Ask(1, "scale", 3))
    w.send("c-0", Ask(2, "retire", ("W-0",)))
    w.send("c-1", Ask(1, "scale", 9))
    assert w.got("c-0", Answer) == [] and w.got("n-0", Adjust) == []
    w.leave("c-1")
    w.join("n-1", "node")
    w.worker("w-0")
    w.now += RECOVERY - 0.1
    w.turn()
    assert w.got("n-0", Adjust) == [] and w.broker.deadline() <= RECOVERY
    w.now += 0.1
    w.turn()
    assert [a.workers for node in ("n-0", "n-1") for a in w.got(node, Adjust)] == [2, 1]
    assert w.broker.tables.workers["w-0"].leaving and not w.broker.queries.early


def test_scale_spreads_over_the_nodes() -> None:
    w = World(workers=0)
    w.join("n-1", "node")
    assert ask(w, "scale", 5) is None
    sent = {node: w.got(node, Adjust)[0] for node in ("n-0", "n-1")}
    assert {node: m.workers for node, m in sent.items()} == {"n-0": 3, "n-1": 2}
    w.send("n-0", Adjusted(sent["n-0"].req, 3))
    w.send("n-0", Adjusted(sent["n-0"].req, 3))
    assert not w.got("c-0", Answer)
    w.leave("n-1")
    (answer,) = w.got("c-0", Answer)
    assert answer.ok and answer.value["N-0"] == 3


def test_shutdown_stops_all_and_ends_the_broker() -> None:
    w = World(clients=2)
    assert ask(w, "shutdown") is True
    for session in ("n-0", "c-0", "c-1"):
        assert [m.reason for m in w.got(session, Stop)] == ["the cluster was shut down by client C-0"]
    assert any(isinstance(c, Shutdown) for c in w.broker.commands)


def test_a_call_runs_on_the_chosen_workers_and_collects_what_they_answer() -> None:
    w = World(workers=3)
    w.send("c-0", Call(7, ("W-0", "tcp://w-2"), b"payload"))
    calls = {s: w.got(s, Call) for s in ("w-0", "w-1", "w-2")}
    assert [len(c) for c in calls.values()] == [1, 0, 1]
    req = calls["w-0"][0].req
    assert calls["w-0"][0] == Call(req, None, b"payload")
    w.send("w-0", Called(req, True, Buffer(b"one")))
    w.send("w-0", Called(req, True, b"twice"))
    w.send("w-1", Called(req, True, b"not asked"))
    assert not w.got("c-0", Answer)
    w.send("w-2", Called(req, False, b"error"))
    assert w.got("c-0", Answer) == [Answer(7, True, {"tcp://w-0": [True, b"one"], "tcp://w-2": [False, b"error"]})]


def test_a_call_ends_also_when_a_worker_or_the_caller_is_gone() -> None:
    w = World(workers=2, clients=2)
    w.send("c-0", Call(1, None, b""))
    w.send("c-1", Call(1, None, b""))
    w.leave("c-1")
    w.die("w-0", text="crashed")
    w.send("w-1", Called(w.got("w-1", Call)[0].req, True, b"x"))
    (answer,) = w.got("c-0", Answer)
    assert answer.value["tcp://w-0"] == [False, None, "tcp://w-0 is gone: crashed"]
    assert not w.broker.queries.pending
    w.send("c-0", Call(2, ("W-9",), b""))
    assert w.got("c-0", Answer) == [Answer(2, False, "there is no worker 'W-9'; there are W-1")]
    w.die("w-1")
    w.send("c-0", Call(3, None, b""))
    assert w.got("c-0", Answer) == [Answer(3, True, {})]


def test_output_goes_to_those_who_want_the_key_and_logs_to_those_who_asked() -> None:
    w = World(workers=1, clients=3)
    w.submit("a")
    w.submit("a", client="c-1")
    printed, logged = Output("out", "hello\n", "a", "tcp://w-0"), Output("log", "line", "", "tcp://w-0")
    w.send("w-0", printed)
    w.send("w-0", logged)
    assert [len(w.got(f"c-{n}", Output)) for n in range(3)] == [1, 1, 0]
    assert ask(w, "log_subscribe", True, client="c-2") is True
    w.send("w-0", logged)
    assert w.got("c-2", Output) == [logged]
    assert ask(w, "log_subscribe", (False,), client="c-2") is False


@pytest.mark.parametrize(
    ("role", "info", "text"),
    [
        ("worker", {"address": "x"}, "node"),
        ("worker", {"node": "n-0", "address": 5}, "address"),
        ("king", {}, "'king'"),
    ],
)
def test_a_bad_hello_is_refused(role: str, info: dict[str, Any], text: str) -> None:
    w = World()
    refused = w.broker.joined("x-1", role, info, 0.0)
    assert isinstance(refused, Refused) and text in refused.text
    w.broker.check()


def test_joining_tells_the_cluster_and_the_window() -> None:
    w = World()
    assert w.join("c-9", "client")["cluster"] == "test"
    assert w.join("c-9", "client")["window_tasks"] > 0  # a new life of the same session
    w.broker.heard("c-9", 1.0)
    w.broker.heard("unknown", 1.0)
    w.leave("unknown")


def test_a_session_that_joins_again_has_left_before() -> None:
    w = World(workers=1)
    w.submit("a")
    w.client("c-0")
    assert w.states() == {} and len(w.broker.tables.clients) == 1
    w.submit("b")
    assert w.where("b") == "w-0"
    w.worker("w-0")
    assert w.task("b").worker is None


@pytest.mark.parametrize(("code", "text", "why"), [(3, "", "exit code 3"), (-9, "", "signal 9"), (3, "full", "full")])
def test_a_worker_is_expelled_with_what_it_died_of(code: int, text: str, why: str) -> None:
    w = World(workers=1)
    w.send("n-0", WorkerDied("w-0", code, text, (), False))
    assert Expel("w-0", why) in w.broker.commands


def test_a_worker_may_come_before_its_node() -> None:
    w = World(workers=0)
    w.worker("w-0", node="n-7")
    w.join("n-7", "node")
    w.submit("a")
    assert w.where("a") == "w-0"
    w.die("w-0")
    assert w.states() == {"a": "ready"}


def test_busy() -> None:
    w = World(workers=1)
    assert not w.broker.busy()
    w.submit("a")
    assert w.broker.busy()
    w.finish("a")
    assert not w.broker.busy()
