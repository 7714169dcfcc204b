"""What token holders send wrongly or on purpose: refused with a reason, bounded, and of no effect on others."""

from __future__ import annotations

import math
from typing import Any

import pytest
from broker_world import FN, World

from zdist import limits
from zdist.errors import ProtocolError
from zdist.protocol.codec import decode, encode
from zdist.protocol.messages import (
    Answer,
    Ask,
    Buffer,
    Call,
    Called,
    Cancel,
    Define,
    Done,
    Drop,
    Erred,
    Failed,
    Finished,
    Hold,
    Missing,
    Options,
    Output,
    Packet,
    Place,
    Refused,
    Rejected,
    Run,
    Starved,
    Submit,
    Subscribe,
    Want,
    WhichFunction,
    WorkerDied,
    function_digest,
)

LONG = "k" * (limits.MAX_KEY + 1)
HUGE = "x" * (4 * limits.MAX_TEXT)


# --- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", LONG, HUGE])
def test_a_submission_under_a_text_that_is_no_key_is_rejected_and_the_others_are_taken(key: str) -> None:
    w = World()
    w.send("c-0", Submit(FN, False, 1, (), (("good", b"", ()), (key, b"", ()), (key + "2", b"", ("good",)))))
    rows = w.rows("c-0", Rejected)
    bad = [k for k in (key, key + "2") if not 0 < len(k) <= limits.MAX_KEY]
    assert [row[0] for row in rows] == [k[: limits.MAX_KEY] for k in bad]
    assert all(
        f"1 to {limits.MAX_KEY} characters, this one has {len(k)}" in row[1] for k, row in zip(bad, rows, strict=True)
    )
    assert "good" in w.states() and not any(k in w.states() for k in bad)


@pytest.mark.parametrize("key", ["", LONG])
def test_data_and_wants_under_a_text_that_is_no_key_are_rejected(key: str) -> None:
    w = World()
    w.send("c-0", Hold(1, ((key, 0, 5, "int"), ("good", 0, 5, "int"))))
    w.send("c-0", Want(1, (key,)))
    assert [row[0] for row in w.rows("c-0", Rejected)] == [key[: limits.MAX_KEY]] * 2
    assert list(w.states()) == ["good"]


def test_echoes_of_keys_are_cut() -> None:
    w = World()
    w.send("c-0", Place((HUGE,), (), 1))
    w.send("c-0", Missing(((HUGE, ("w-0",)),)))
    w.send("c-0", Submit(FN, False, 1, (-1,), ((HUGE, b"", ()),)))
    w.send("c-0", Submit(FN, False, 1, (), (("x", b"", (HUGE,)),)))
    rows = w.cancelled("c-0")
    assert len(rows) == 4 and all(len(key) + len(reason) < 3000 for key, reason in rows)
    w.send("w-0", Done(((HUGE, 1, 1, 1, None, "int"),)))
    assert not w.rows("w-0", Drop)


def test_data_of_a_negative_size_is_rejected() -> None:
    w = World()
    w.send("c-0", Hold(1, (("d", 0, -5, "int"),)))
    assert "-5 bytes" in w.rows("c-0", Rejected)[0][1] and not w.states()


# --- texts and sizes ------------------------------------------------------------------------------------


def test_a_completion_with_absurd_values_is_taken_within_bounds() -> None:
    w = World(workers=1)
    w.submit("a", "b")
    w.turn()
    for key, value in (("a", b"v" * (limits.OWN_FRAME + 1)), ("b", b"v")):
        w.where(key)
        w.send("w-0", Done(((key, w.task(key).attempt, -1, -1, value, HUGE),)))
    rows = {row[0]: row for row in w.rows("c-0", Finished)}
    assert rows["a"][2:5] == (0, None, ("w-0",)) and rows["b"][2:5] == (0, b"v", ())
    assert all(len(row[5]) <= limits.MAX_KEY for row in rows.values())


def test_texts_are_cut_on_intake() -> None:
    w = World(workers=2)
    w.submit("e", "d", "c")
    w.send("c-0", Cancel(("c",), False, HUGE))
    worker = w.where("e")
    w.send(worker, Erred((("e", w.task("e").attempt, 1, b"", HUGE),)))
    w.send("c-0", Ask(0, "log_subscribe", True))
    w.send("w-0", Output("log" + HUGE, HUGE, HUGE, HUGE))
    w.send("w-0", Output("log", HUGE, HUGE, HUGE))
    w.send("w-0", Output("out", HUGE, "d", HUGE))
    assert [len(text) for _, _, _, text in w.rows("c-0", Failed)] == [limits.MAX_TEXT]
    assert [len(reason) for _, reason in w.cancelled("c-0")] == [limits.MAX_REASON]
    outputs = w.got("c-0", Output)
    assert len(outputs) == 2
    assert all(
        [len(m.text), len(m.key) <= limits.MAX_KEY, len(m.worker)] == [limits.MAX_TEXT, True, limits.MAX_NAME]
        for m in outputs
    )


def test_what_a_death_says_to_many_is_short() -> None:
    w = World(workers=1)
    gen = w.submit("a")
    w.send("c-0", Hold(gen, (("d", 0, 5, "int"),)))
    w.finish("a", value=None)
    w.send("n-0", WorkerDied("w-0", 1, HUGE, (), False))
    logged = [c.fields["reason"] for c in w.broker.commands if getattr(c, "event", "") == "worker.left"]
    assert [len(text) for text in logged] == [limits.MAX_REASON]


# --- functions -------------------------------------------------------------------------------------------


def test_a_definition_under_a_wrong_digest_is_refused_and_its_submissions_learn_why() -> None:
    w = World(clients=2)
    blob, evil = b"the real one", b"something else"
    digest = function_digest(blob)
    w.send("c-1", Define(digest, "real", evil))
    assert digest not in w.broker.tables.functions
    w.send("c-1", Submit(digest, False, 1, (), (("x", b"", ()),)))
    assert w.rows("c-1", Rejected) == [("x", "the bytes of function real are not those that its digest names")]
    w.send("c-0", Submit(digest, False, 1, (), (("y", b"", ()),)))
    assert w.got("c-0", WhichFunction) == [WhichFunction(digest)]
    w.send("c-0", Define(digest, "real", blob))
    assert w.broker.tables.functions[digest].blob == blob
    assert w.states() == {"y": "ready"} or "y" in w.states()
    w.send("c-1", Define(digest, "real", evil))  # changes nothing
    w.send("c-1", Submit(digest, False, 2, (), (("z", b"", ()),)))
    assert "z" in w.states() and w.broker.tables.functions[digest].blob == blob


def test_who_is_asked_for_a_function_and_sends_a_wrong_one_is_told() -> None:
    w = World()
    digest = function_digest(b"real")
    w.send("c-0", Submit(digest, False, 1, (), (("x", b"", ()),)))
    assert w.got("c-0", WhichFunction)
    w.send("c-0", Define(digest, "f", b"false"))
    assert [row[0] for row in w.rows("c-0", Rejected)] == ["x"]
    w.send("c-0", Submit(b"short", False, 1, (), (("s", b"", ()),)))
    assert [row[0] for row in w.rows("c-0", Rejected)] == ["s"] and not w.got("c-0", WhichFunction)


def test_functions_without_tasks_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.functions.FUNCTIONS_DEFINED", 20)
    monkeypatch.setattr("zdist_broker.state.FUNCTIONS_DEFINED", 20)
    w = World()
    used = function_digest(b"f0")
    for n in range(200):
        w.send("c-0", Define(function_digest(b"f%d" % n), f"f{n}", b"f%d" % n))
        if not n:
            w.send("c-0", Submit(used, False, 1, (), (("x", b"", ()),)))
    assert len(w.broker.tables.functions) <= 40 and used in w.broker.tables.functions


def test_functions_in_use_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.functions.CLIENT_FUNCTION_BYTES", 10_000)
    w = World(workers=0)
    blobs = [bytes([n]) * 3000 for n in range(5)]
    for n, blob in enumerate(blobs):
        w.send("c-0", Define(function_digest(blob), f"f{n}", blob))
        w.send("c-0", Submit(function_digest(blob), False, n, (), ((f"x{n}", b"", ()),)))
    rejected = w.rows("c-0", Rejected)
    assert [row[0] for row in rejected] == ["x3", "x4"] and "10000 bytes are allowed" in rejected[0][1]
    w.release("x0", 0)
    w.send("c-0", Define(function_digest(blobs[4]), "f4", blobs[4]))
    w.send("c-0", Submit(function_digest(blobs[4]), False, 9, (), (("x4", b"", ()),)))
    assert "x4" in w.states()


# --- hellos, subscriptions, options -----------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
MANY = tuple(f"t{n}" for n in range(limits.MAX_NAMES + 1))


@pytest.mark.parametrize(
    ("role", "info", "words"),
    [
        ("client", {"name": 5}, "name: 5"),
        ("client", {"host": HUGE}, "host: 'xxx"),
        ("client", {"pid": -1}, "pid=-1"),
        ("client", {"pid": 1 << 63}, "pid="),
        ("node", {"name": ("a",)}, "name: a tuple of 1"),
        ("worker", {"node": "n-0"}, "address is missing"),
        ("worker", {"node": 5, "address": "x"}, "node: 5"),
        ("worker", {"node": "n-0", "address": HUGE}, "address"),
        ("worker", {"node": "n-0", "address": "x", "memory_limit": "much"}, "memory_limit='much'"),
        ("worker", {"node": "n-0", "address": "x", "tags": MANY}, "tags: a tuple of 4097"),
        ("worker", {"node": "n-0", "address": "x", "tags": (1,)}, "tags: 1"),
        ("worker", {"node": "n-0", "address": "x", "resources": {"mem": NAN}}, "'mem': nan"),
        ("worker", {"node": "n-0", "address": "x", "resources": 7}, "resources: 7"),
    ],
)
def test_a_hello_whose_info_is_malformed_is_refused_and_leaves_nothing(
    role: str, info: dict[str, Any], words: str
) -> None:
    w = World(workers=0)
    before = dict(w.broker.peers)
    session = {"client": "c-9", "worker": "w-9", "node": "n-9"}[role]
    answer = w.broker.joined(session, role, info, 0.0)
    assert isinstance(answer, Refused) and answer.code == "info" and words in answer.text and len(answer.text) < 500
    assert w.broker.peers == before
    w.broker.check()


def test_what_the_broker_does_not_know_in_a_hello_is_left_alone() -> None:
    w = World()
    assert isinstance(w.broker.joined("c-9", "client", {"name": "x", "later": {"a": ((1,),)}, "host": None}, 0.0), dict)


@pytest.mark.parametrize(
    "message",
    [
        Subscribe(limits.MAX_THREADS + 1, (), {}, False),
        Subscribe(1, ("t" * 300,), {}, False),
        Subscribe(1, MANY, {}, False),
        Subscribe(1, (), {"mem": NAN}, False),
        Subscribe(1, (), {"mem": INF}, False),
        Subscribe(1, (), {"mem": -1.0}, False),
        Subscribe(1, (), {HUGE: 1.0}, False),
    ],
)
def test_an_absurd_subscription_changes_nothing(message: Subscribe) -> None:
    w = World(workers=1, threads=2)
    with pytest.raises(ProtocolError, match="subscription that cannot be taken"):
        w.broker.handle("w-0", message, 0.0)
    w.broker.check()
    assert w.broker.tables.workers["w-0"].threads == 2


def test_values_of_a_table_are_checked_by_the_codec() -> None:
    packet = Packet("w-1", 1, 0, (Subscribe(1, (), {"mem": "much"}, False),))  # type: ignore[dict-item]
    with pytest.raises(ProtocolError, match="malformed Subscribe"):
        decode([bytes(frame) for frame in encode(packet)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(retries=True), "retries=True"),
        (Options(priority=1 << 21), "priority=2097152"),
        (Options(workers=MANY), "workers: a tuple of 4097"),
        (Options(workers=("w" * 300,)), "workers: 'ww"),
        (Options(tags=({},)), "tags: a dict of 0"),  # type: ignore[arg-type]
        (Options(resources=(("a", NAN),)), "'a': nan"),
        (Options(resources=(("a",),)), "not a name and an amount"),  # type: ignore[arg-type]
        (Options(resources=5), "resources: 5"),  # type: ignore[arg-type]
        (Options(resources=tuple((f"r{n}", 1.0) for n in range(5000))), "resources: 5000 of them"),
    ],
)
def test_absurd_options_are_named_in_the_reason(options: Options, words: str) -> None:
    w = World()
    w.submit("x", options=tuple(options))
    ((_, reason),) = w.cancelled("c-0")
    assert words in reason and len(reason) < 300 and not w.states()


# --- questions --------------------------------------------------------------------------------------------


def deep(levels: int) -> Any:
    value: Any = ()
    for _ in range(levels):
        value = (value,)
    return value


@pytest.mark.parametrize(
    ("what", "args"),
    [
        ("restart", NAN), ("restart", INF), ("restart", -1), ("restart", "soon"), ("restart", (1, 2)),
        ("restart", True),
        ("scale", -1), ("scale", 1 << 60), ("scale", 1.5), ("scale", True), ("scale", (5, 5)),
        ("wait_for_workers", -1), ("wait_for_workers", None), ("wait_for_workers", 1 << 62),
        ("who_has", "abc"), ("who_has", (5,)), ("who_has", (HUGE,)), ("who_has", deep(50)), ("who_has", {"a": 1}),
        ("has_what", "W-0"), ("has_what", ((("W-0",),),)), ("has_what", MANY),
        ("log_subscribe", 1), ("log_subscribe", ()), ("log_subscribe", deep(60)),
        ("workers", 5), ("counts", "x"), ("fence", deep(9)), ("nthreads", (None,)), ("shutdown", {"now": True}),
        ("replicate", None), ("replicate", ("x", 1, None)), ("replicate", (("x",), 1 << 40, None)),
        ("replicate", deep(9)),
        ("rebalance", ()), ("rebalance", (5, None)), ("rebalance", (None, {"W-0": 1})), ("rebalance", (None, MANY)),
        ("restart_workers", ("W-0",)), ("restart_workers", (("W-0",), NAN)), ("restart_workers", (("W-9",), 1.0)),
        ("status", deep(9)), ("worker", ("W-0",)), ("worker", "W-9"), ("running", "x"), ("running", (HUGE,)),
        ("nbytes", None), ("nbytes", (None, 1)), ("nbytes", ("x", True)), ("spec", None), ("spec", "unknown"),
        ("logs", -1), ("logs", 1 << 40), ("versions", None), ("versions", tuple(f"p{n}" for n in range(65))),
        (HUGE, None), ("", None), ("__class__", None),
    ],
)  # fmt: skip
def test_a_wrong_question_is_answered_with_what_is_wrong_and_nothing_happens(what: str, args: Any) -> None:
    w = World()
    w.submit("x")
    w.turn()
    w.inbox.clear()
    w.send("c-0", Ask(7, what, args))
    messages = w.all("c-0")
    assert [type(m) for m in messages] == [Answer]
    (answer,) = messages
    assert isinstance(answer, Answer) and (answer.req, answer.ok) == (7, False)
    assert answer.value.startswith((what[:80], f"{what[:80]!r}")) and len(answer.value) <= limits.MAX_KEY
    assert w.states() == {"x": "assigned"} and not any(w.inbox.values())
    deadline = w.broker.deadline()
    assert deadline is None or math.isfinite(deadline)


def test_questions_that_wait_are_bounded_per_client() -> None:
    w = World(workers=1, clients=2)
    for n in range(limits.WAITING_ASKS + 10):
        w.send("c-0", Ask(n, "wait_for_workers", 50))
    refused = w.got("c-0", Answer)
    assert (
        len(refused) == 10 and not any(a.ok for a in refused) and "wait for their answers already" in refused[0].value
    )
    w.send("c-0", Call(999, None, b""))
    assert not w.got("c-0", Answer)[0].ok
    w.send("c-1", Ask(1, "wait_for_workers", 1))
    assert w.got("c-1", Answer)[0].ok
    assert len(w.broker.queries.waiting) == limits.WAITING_ASKS
    w.leave("c-0")
    assert not w.broker.queries.waiting


def test_a_question_that_was_answered_makes_room_for_another() -> None:
    w = World(workers=0)
    for turn in range(3):
        for n in range(limits.WAITING_ASKS // 2):
            w.send("c-0", Ask(n, "wait_for_workers", 1))
            w.send("c-0", Call(n, None, b""))  # nobody is there: answered at once
        w.worker(f"w-{turn}")
        w.send("c-0", Ask(5000, "scale", 1))
        w.send("c-0", Ask(5001, "restart", 1))
        w.now += 2
        w.broker.tick(w.now)
        w.turn()
        w.leave("n-0")
        w.turn()
        assert w.broker.tables.clients["c-0"].asking == 0
        w.join("n-0", "node")


def test_an_answer_that_would_be_enormous_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.queries.ASK_ENTRIES", 10)
    w = World(workers=1)
    w.submit(*(f"k{n}" for n in range(11)))
    w.turn()
    for what in ("who_has", "processing"):
        w.send("c-0", Ask(1, what, None))
    answers = w.got("c-0", Answer)
    assert "more than 10 entries" in answers[0].value


def test_calls_are_bounded_in_bytes_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.queries.CALL_BYTES", 100)
    monkeypatch.setattr("zdist_broker.queries.ANSWER_BYTES", 150)
    w = World(workers=3)
    w.send("c-0", Call(1, None, bytes(101)))
    (answer,) = w.got("c-0", Answer)
    assert not answer.ok and "101 bytes, at most 100" in answer.value and not w.got("w-0", Call)
    w.send("c-0", Call(2, MANY, b""))
    assert not w.got("c-0", Answer)[0].ok
    w.send("c-0", Call(3, None, b""))
    req = w.got("w-0", Call)[0].req
    for worker, size in (("w-0", 100), ("w-1", 80), ("w-2", 40)):
        w.send(worker, Called(req, True, bytes(size)))
    (answer,) = w.got("c-0", Answer)
    results = list(answer.value.values())
    assert [r[0] for r in results] == [True, False, True] and "its answer has 80 bytes" in results[1][2]


# --- cost ----------------------------------------------------------------------------------------------------


def test_placements_that_are_asked_for_again_and_again_do_not_grow() -> None:
    w = World(workers=1)
    w.send("c-0", Hold(1, (("d", 0, 5, "int"),)))
    for n in range(200):
        w.send("c-0", Place(("d",), tuple(f"nowhere-{n}-{i}" for i in range(100)), 1 << 60))
    assert len(w.broker.tables.placing["d"].allowed) <= limits.MAX_NAMES


def test_many_classes_are_not_looked_through_for_each_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World(workers=2)
    pruned = []
    prune = w.broker.placement._prune
    monkeypatch.setattr(w.broker.placement, "_prune", lambda: (pruned.append(len(w.broker.tables.tasks)), prune()))
    for n in range(2000):
        options = tuple(Options(tags=(f"tag-{n}",)))
        w.broker.handle("c-0", Submit(FN, False, 1, options, ((f"k{n}", b"", ()),)), 0.0)
        if n % 50 == 0:
            w.broker.turn(0.0)
    w.broker.check()
    assert sum(pruned) < 20 * 2000, "tasks looked at for all classes together"


def test_classes_without_tasks_are_forgotten_in_time() -> None:
    w = World(workers=2)
    for n in range(1000):
        w.broker.handle("c-0", Submit(FN, False, n, tuple(Options(tags=(f"tag-{n}",))), ((f"k{n}", b"", ()),)), 0.0)
    for n in range(1000):
        w.release(f"k{n}", n) if n % 100 == 0 else w.broker.handle("c-0", Cancel((f"k{n}",), False, ""), 0.0)
    for n in range(100):
        gen = w.submit(f"lone-{n}")
        w.finish(f"lone-{n}")
        w.release(f"lone-{n}", gen)
    assert len(w.broker.placement.pools) <= 65


@pytest.mark.parametrize("value", [b"v" * 6000, Buffer(b"v" * 6000)])
def test_values_of_inputs_are_bounded_in_what_one_worker_is_sent_at_once(
    monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.setattr("zdist_broker.placement.INLINED_BYTES", 20_000)
    w = World(workers=2)
    w.submit("a")
    holder = w.finish("a", value=value, nbytes=6000)
    other = "w-1" if holder == "w-0" else "w-0"
    w.send(holder, Subscribe(0, (), {}, True))
    w.send(other, Subscribe(20, (), {}, False))
    w.submit(*(f"t{n}" for n in range(20)), deps=("a",))
    w.turn()
    values = [dep[3] for row in w.rows(other, Run) for dep in row[5]]
    assert len(values) == 20 and sum(value is not None for value in values) == 4


def test_small_errors_of_many_tasks_travel_together() -> None:
    w = World(workers=1)
    w.submit("root")
    w.submit(*(f"t{n}" for n in range(500)), deps=("root",))
    w.where("root")
    w.send("w-0", Erred((("root", w.task("root").attempt, 1, b"error", "it failed"),)))
    failed = w.got("c-0", Failed)
    assert sum(len(m.rows) for m in failed) == 501 and len(failed) < 5
    big = [m for m in failed if len(m.rows) > 1 and sum(len(row[1]) for row in m.rows) > limits.FAILED_BYTES]  # type: ignore[arg-type]
    assert not big


def test_a_thousand_classes_without_a_worker_are_not_all_talked_about() -> None:
    w = World(workers=1)
    for n in range(1000):
        w.broker.handle("c-0", Submit(FN, False, n, tuple(Options(tags=(f"tag-{n}",))), ((f"k{n}", b"", ()),)), 0.0)
    said = 0
    for _ in range(10):
        w.turn()
        w.now += limits.NOTICE
        said += sum(len(m.rows) for m in w.got("c-0", Starved))
    assert len(w.broker.notices.lacks) <= limits.POOLS_KEPT and 0 < said < 2000
    told = [c for c in w.broker.commands if getattr(c, "event", "") == "no-worker"]
    assert len(told) <= limits.POOLS_KEPT
