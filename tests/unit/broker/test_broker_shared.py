"""State that clients share: operations that wait, answers once, copies on nodes, and a broker that takes over."""

from __future__ import annotations

from typing import Any

import pytest
from broker_world import World

from zdist.core.mirror import Copy
from zdist.limits import LEASE_CLIENT, MIRROR_PATIENCE, RECOVERY, SHARED_VALUE
from zdist.protocol.messages import Answer, Ask, Cancel, Mirror, Mirrored, Want


class Shared(World):
    """Clients that operate, and nodes that keep copies and confirm unless told otherwise."""

    def __init__(self, *, nodes: int = 2, clients: int = 2, workers: int = 1, epoch: int = 1) -> None:
        super().__init__(workers=workers, clients=clients)
        self.broker.tables.epoch = epoch
        self.copies = {"n-0": Copy()}
        for number in range(1, nodes):
            self.join(f"n-{number}", "node")
            self.copies[f"n-{number}"] = Copy()
        self.deaf: set[str] = set()  # nodes that take nothing in
        self.req = 0

    def settle(self) -> None:
        """Let the nodes do what they have to."""
        for _ in range(3):
            for session, copy in self.copies.items():
                if session in self.deaf or session not in self.broker.peers:
                    continue
                for message in self.got(session, Mirror):
                    confirmed = copy.take(message)
                    if confirmed is not None:
                        self.send(session, confirmed)
        self.turn()

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.broker.tick(self.now)
        self.settle()

    def op(self, client: str, kind: str, verb: str, *args: Any, heard: tuple[int, ...] = (), **more: Any) -> int:
        """Ask; the number of the operation."""
        number = more.get("req")
        if number is None:
            number = self.req = self.req + 1
        row = (heard, kind, more.get("name", "it" if kind else ""), verb, args, more.get("timeout"))
        self.send(client, Ask(number, "shared", row))
        return number

    def answers(self, client: str) -> dict[int, Any]:
        """What a client has been told since."""
        self.settle()
        return {a.req: a.value if a.ok else ("error", a.value) for a in self.got(client, Answer)}

    def do(self, client: str, kind: str, verb: str, *args: Any, **more: Any) -> Any:
        """An operation that is answered at once; its value."""
        number = self.op(client, kind, verb, *args, **more)
        (answer,) = self.answers(client).items()
        assert answer[0] == number
        return answer[1][1] if answer[1][0] == "ok" else answer[1]

    def successor(self) -> Shared:
        """Another broker at this one's place, to which everybody comes."""
        new = Shared(nodes=len(self.copies), workers=0, epoch=2)
        new.req = self.req
        self.come_back(new)
        return new

    def come_back(self, new: Shared) -> None:
        """The nodes greet another broker."""
        new.copies = self.copies
        new.broker.succeeds(new.now)
        for session, copy in self.copies.items():
            if session not in self.deaf:
                for part in copy.offer():
                    new.send(session, part)


def item(text: str, *keys: str) -> tuple[bytes, tuple[str, ...]]:
    return text.encode(), keys


def test_a_queue_is_first_in_first_out() -> None:
    w = Shared()
    for text in "abc":
        w.do("c-0", "queue", "put", *item(text), 0)
    assert w.do("c-1", "queue", "size") == 3
    assert w.do("c-1", "queue", "get", 1) == (item("a"),)
    assert w.do("c-1", "queue", "get", -1) == (item("b"), item("c"))
    assert w.do("c-1", "queue", "get", -1) == ()


def test_getters_wait_in_the_order_in_which_they_came() -> None:
    w = Shared(clients=3)
    first, second = w.op("c-1", "queue", "get", 1), w.op("c-2", "queue", "get", 1)
    assert w.answers("c-1") == w.answers("c-2") == {}
    w.do("c-0", "queue", "put", *item("a"), 0)
    assert w.answers("c-1") == {first: ("ok", (item("a"),))}
    w.do("c-0", "queue", "put", *item("b"), 0)
    assert w.answers("c-2") == {second: ("ok", (item("b"),))}


def test_one_who_wants_several_is_not_overtaken() -> None:
    w = Shared()
    several, one = w.op("c-1", "queue", "get", 2), w.op("c-1", "queue", "get", 1)
    w.do("c-0", "queue", "put", *item("a"), 0)
    assert w.answers("c-1") == {}
    w.do("c-0", "queue", "put", *item("b"), 0)
    w.do("c-0", "queue", "put", *item("c"), 0)
    assert w.answers("c-1") == {several: ("ok", (item("a"), item("b"))), one: ("ok", (item("c"),))}


def test_put_waits_for_room() -> None:
    w = Shared()
    w.do("c-0", "queue", "put", *item("a"), 1)
    second = w.op("c-0", "queue", "put", *item("b"), 1)
    assert w.answers("c-0") == {}
    assert w.do("c-1", "queue", "get", 1) == (item("a"),)
    assert list(w.answers("c-0")) == [second]


def test_time_runs_out_for_who_waits() -> None:
    w = Shared()
    number = w.op("c-0", "queue", "get", 1, timeout=2.0)
    assert w.broker.deadline() == 2.0
    w.tick(1.9)
    assert w.answers("c-0") == {}
    w.tick(0.1)
    assert w.answers("c-0") == {number: ("timeout", None)}
    assert w.do("c-0", "queue", "get", 1, timeout=0.0) == ("timeout", None)
    w.do("c-0", "queue", "put", *item("a"), 0)
    assert w.do("c-1", "queue", "size") == 1  # nobody waits any more


# --- once ---------------------------------------------------------------------------------------------


def test_an_operation_that_is_asked_for_again_is_done_once() -> None:
    w = Shared()
    put = w.op("c-0", "queue", "put", *item("a"), 0)
    w.settle()
    answers = w.answers("c-0")
    w.op("c-0", "queue", "put", *item("a"), 0, req=put)
    assert w.answers("c-0") == answers and list(answers) == [put]
    assert w.do("c-0", "queue", "size") == 1
    got = w.op("c-1", "queue", "get", 1)
    assert w.answers("c-1") == {got: ("ok", (item("a"),))}
    w.op("c-1", "queue", "get", 1, req=got)
    assert w.answers("c-1") == {got: ("ok", (item("a"),))}
    waits = w.op("c-1", "queue", "get", 1, heard=(got,))
    assert not w.broker.shared.store.items("answer", "c-1")  # it was told that the answer is there
    assert w.answers("c-1") == {}
    assert waits


def test_what_nobody_waits_for_any_more_is_undone() -> None:
    w = Shared()
    for text in "ab":
        w.do("c-0", "queue", "put", *item(text), 0)
    got = w.op("c-1", "queue", "get", 1)
    w.op("c-1", "", "cancel", got)
    assert got not in w.answers("c-1")
    assert w.do("c-1", "queue", "get", -1) == (item("a"), item("b"))  # in its old place
    waits = w.op("c-1", "queue", "get", 1)
    w.op("c-1", "", "cancel", waits)
    w.do("c-0", "queue", "put", *item("c"), 0)
    assert waits not in w.answers("c-1")
    assert w.do("c-0", "queue", "size") == 1
    lock = w.op("c-0", "lock", "acquire", 1)
    w.op("c-0", "", "cancel", lock)
    w.answers("c-0")
    assert w.do("c-1", "lock", "acquire", 1) > 0


def test_what_was_put_by_a_client_that_does_not_wait_for_the_answer_is_taken_out_again() -> None:
    w = Shared()
    w.do("c-0", "queue", "put", *item("a"), 2)
    put = w.op("c-0", "queue", "put", *item("b"), 2)
    waits = w.op("c-0", "queue", "put", *item("c"), 2)
    w.op("c-0", "", "cancel", put)
    told = w.answers("c-0")
    assert waits in told and put not in told  # there is room for it now
    assert w.do("c-1", "queue", "get", -1) == (item("a"), item("c"))


def test_what_somebody_has_taken_stays_taken_though_its_put_was_given_up() -> None:
    w = Shared()
    put = w.op("c-0", "queue", "put", *item("a"), 0)
    w.answers("c-0")
    got = w.op("c-1", "queue", "get", 1)
    w.do("c-0", "queue", "put", *item("b"), 0)
    w.op("c-1", "", "cancel", got)
    w.op("c-0", "", "cancel", put)  # it has been out and is back: who knows who has seen it
    w.answers("c-0")
    w.answers("c-1")
    assert w.do("c-1", "queue", "get", -1) == (item("a"), item("b"))


# --- futures ------------------------------------------------------------------------------------------


def test_a_future_lives_while_it_travels_in_a_queue() -> None:
    w = Shared(workers=1)
    gen = w.submit("task")
    put = w.op("c-0", "queue", "put", *item("future", "task"), 0)
    w.release("task", gen)  # in the same turn
    assert put in w.answers("c-0")
    w.finish("task")
    assert w.states() == {"task": "memory"}
    got = w.op("c-1", "queue", "get", 1)
    w.answers("c-1")
    assert w.states() == {"task": "memory"}  # the receiver has not registered yet
    w.send("c-1", Want(7, ("task",)))
    w.op("c-1", "", "confirm", heard=(got,))
    w.answers("c-1")
    assert w.states() == {"task": "memory"}
    w.release("task", 7, "c-1")
    w.turn()
    assert w.states() == {}
    assert "shared" not in w.broker.tables.clients


def test_a_future_outlives_the_cancellation_of_what_it_is_made_of() -> None:
    w = Shared(workers=1)
    w.submit("x")
    w.submit("y", deps=("x",))
    w.op("c-0", "variable", "set", *item("future", "y"))
    w.send("c-0", Cancel(("x",), False, ""))  # in the same turn
    w.turn()
    assert "y" in w.states()


def test_a_future_whose_submission_comes_after_it_is_kept() -> None:
    w = Shared(workers=1)
    w.do("c-0", "variable", "set", *item("future", "late"))
    gen = w.submit("late")
    w.turn()
    w.release("late", gen)
    w.finish("late")
    assert w.states() == {"late": "memory"}
    w.do("c-0", "variable", "delete")
    w.turn()
    assert w.states() == {}


# --- locks --------------------------------------------------------------------------------------------


def test_a_lock_goes_from_one_to_the_next_with_growing_tokens() -> None:
    w = Shared()
    first = w.do("c-0", "lock", "acquire", 1)
    second = w.op("c-1", "lock", "acquire", 1)
    assert w.answers("c-1") == {}
    assert w.do("c-1", "lock", "release", first + 1) is False  # not a token of anybody
    assert w.do("c-0", "lock", "release", first) is True
    ((number, (status, token)),) = w.answers("c-1").items()
    assert (number, status) == (second, "ok")
    assert token > first


def test_who_has_gone_holds_nothing() -> None:
    w = Shared()
    w.do("c-0", "lock", "acquire", 1)
    w.do("c-0", "multilock", "acquire", ("a", "b"), 2)
    waits = [w.op("c-1", "lock", "acquire", 1), w.op("c-1", "multilock", "acquire", ("b",), 1)]
    w.op("c-0", "queue", "get", 1)
    w.leave("c-0")
    assert list(w.answers("c-1")) == waits
    w.do("c-1", "queue", "put", *item("a"), 0)
    assert w.do("c-1", "queue", "size") == 1


def test_a_semaphore_has_so_many_leases() -> None:
    w = Shared()
    tokens = [w.do("c-0", "semaphore", "acquire", 2) for _ in range(2)]
    assert w.do("c-1", "semaphore", "acquire", 2, timeout=0.0) == ("timeout", None)
    assert w.do("c-1", "semaphore", "acquire", 3)[0] == "error"
    assert w.do("c-1", "semaphore", "held") == 2
    w.do("c-0", "semaphore", "release", tokens[0])
    assert w.do("c-1", "semaphore", "acquire", 2) > tokens[1]


def test_several_locks_are_taken_at_once_and_nobody_is_overtaken() -> None:
    w = Shared(clients=3)
    first = w.do("c-0", "multilock", "acquire", ("a",), 1)
    both = w.op("c-1", "multilock", "acquire", ("a", "b"), 2)
    late = w.op("c-2", "multilock", "acquire", ("b",), 1)
    assert w.answers("c-1") == w.answers("c-2") == {}  # b is free, and kept for who came before
    w.do("c-0", "multilock", "release", first)
    token = w.answers("c-1")[both][1]
    w.do("c-1", "multilock", "release", token)
    assert late in w.answers("c-2")


# --- copies -------------------------------------------------------------------------------------------


def test_an_answer_waits_until_two_copies_have_the_change() -> None:
    w = Shared(nodes=3)
    w.deaf = {"n-1"}
    put = w.op("c-0", "queue", "put", *item("a"), 0)
    assert w.answers("c-0") == {}
    w.deaf = set()
    assert list(w.answers("c-0")) == [put]
    held = [session for session, copy in w.copies.items() if copy.cells]
    assert held == ["n-0", "n-1"]
    assert all(w.copies[session].cells == w.broker.shared.store.cells for session in held)


def test_a_node_that_does_not_confirm_is_replaced() -> None:
    w = Shared(nodes=3)
    w.do("c-0", "queue", "put", *item("a"), 0)
    w.deaf = {"n-0"}
    put = w.op("c-0", "queue", "put", *item("b"), 0)
    assert w.answers("c-0") == {}
    w.tick(MIRROR_PATIENCE)
    assert list(w.answers("c-0")) == [put]
    assert w.copies["n-2"].cells == w.broker.shared.store.cells


def test_nodes_are_told_nothing_while_nothing_is_shared() -> None:
    w = Shared()
    assert w.got("n-0", Mirror) == w.got("n-1", Mirror) == []


def test_copies_that_are_confirmed_stay_where_they_are() -> None:
    w = Shared(nodes=3)
    w.do("c-0", "queue", "put", *item("a"), 0)
    w.tick(MIRROR_PATIENCE)
    w.tick(MIRROR_PATIENCE)
    assert w.copies["n-0"].cells and w.copies["n-1"].cells and not w.copies["n-2"].cells


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_node_that_does_not_confirm_is_looked_after_if_there_is_another(nodes: int) -> None:
    w = Shared(nodes=nodes)
    w.deaf = {"n-0"}
    put = w.op("c-0", "queue", "put", *item("a"), 0)
    assert w.answers("c-0") == {} and w.broker.deadline() == (None if nodes == 1 else w.now + MIRROR_PATIENCE)
    w.tick(MIRROR_PATIENCE)
    assert list(w.answers("c-0")) == ([] if nodes == 1 else [put])


def test_a_node_that_is_gone_is_replaced() -> None:
    w = Shared(nodes=3)
    w.do("c-0", "queue", "put", *item("a"), 0)
    w.leave("n-1")
    put = w.op("c-0", "queue", "put", *item("b"), 0)
    assert list(w.answers("c-0")) == [put]
    assert w.copies["n-2"].cells == w.broker.shared.store.cells


def test_without_nodes_answers_come_at_once() -> None:
    w = Shared(nodes=1, workers=0)
    w.leave("n-0")
    assert w.do("c-0", "queue", "put", *item("a"), 0) > 0


def test_a_confirmation_that_cannot_be_is_ignored() -> None:
    w = Shared()
    w.deaf = {"n-0"}
    w.op("c-0", "queue", "put", *item("a"), 0)
    w.settle()
    w.send("n-0", Mirrored(1 << 60))
    assert w.answers("c-0") == {}


# --- another broker -----------------------------------------------------------------------------------


def test_a_successor_goes_on_where_its_predecessor_was() -> None:
    w = Shared()
    for text in "abc":
        w.do("c-0", "queue", "put", *item(text), 0)
    token = w.do("c-0", "lock", "acquire", 1)
    got = w.op("c-1", "queue", "get", 1)
    w.settle()  # the answer is lost with the broker
    new = w.successor()
    new.op("c-1", "queue", "get", 1, req=got)
    size = new.op("c-0", "queue", "size")
    assert new.answers("c-0") == new.answers("c-1") == {}  # copies may be on their way
    new.tick(RECOVERY)
    assert new.answers("c-1") == {got: ("ok", (item("a"),))}
    assert new.answers("c-0") == {size: ("ok", 2)}
    waits = new.op("c-1", "lock", "acquire", 1)
    assert new.answers("c-1") == {}
    assert new.do("c-0", "lock", "release", token) is True
    assert new.answers("c-1")[waits][1] > token


def test_the_newest_copy_counts() -> None:
    w = Shared()
    w.do("c-0", "variable", "set", *item("old"))
    w.deaf = {"n-0"}
    w.op("c-0", "variable", "set", *item("new"))
    w.settle()
    w.deaf = set()
    w.copies["n-0"], stale = w.copies["n-0"], w.copies["n-0"]
    assert stale.version < w.copies["n-1"].version
    new = w.successor()
    new.tick(RECOVERY)
    assert new.do("c-1", "variable", "get") == (item("new"),)


def test_a_copy_of_which_parts_are_missing_does_not_count() -> None:
    copy = Copy()
    assert copy.take(Mirror(1, 5, True, True, (("queue", "it", 0, item("a")),))) == Mirrored(5)
    assert copy.take(Mirror(1, 6, False, False, (("queue", "it", 0, None),))) is None
    assert copy.cells == {("queue", "it"): {0: item("a")}}
    (offer,) = copy.offer()
    assert (offer.version, offer.rows) == (5, (("queue", "it", 0, item("a")),))


@pytest.mark.parametrize(("version", "counts"), [(1, True), (0, False), (-1, False), (1 << 62, False)])
def test_a_copy_of_a_version_that_cannot_be_does_not_count(version: int, counts: bool) -> None:
    w = Shared()
    w.do("c-0", "variable", "set", *item("a"))
    w.deaf = {"n-0", "n-1"}
    new = w.successor()
    new.send("n-0", w.copies["n-0"].offer()[0]._replace(version=version))
    new.tick(RECOVERY)
    assert new.do("c-1", "variable", "get", timeout=0.0) == ((item("a"),) if counts else ("timeout", None))


def test_sessions_that_do_not_come_back_hold_nothing() -> None:
    w = Shared()
    w.do("c-0", "lock", "acquire", 1)
    new = w.successor()
    new.tick(RECOVERY)
    new.leave("c-0")
    new.join("c-9", "client")
    assert new.do("c-9", "lock", "acquire", 1) > 0

    new = w.successor()
    new.broker.left("c-0", "never came", new.now)
    new.broker.shared.early.clear()
    new.tick(RECOVERY)
    waits = new.op("c-1", "lock", "acquire", 1)
    assert new.answers("c-1") == {}
    new.tick(LEASE_CLIENT)
    assert waits in new.answers("c-1")


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        None, (), ((), "queue", "it", "put", (), None), ((), "queue", "it", "get", ("x",), None),
        ((), "queue", "it", "dance", (), None), ((), "nothing", "it", "get", (), None),
        (("x",), "queue", "it", "size", (), None), ((), "queue", "x" * 10_000, "size", (), None),
        ((), "queue", "it", "get", (1,), -1.0), ((), "queue", "it", "put", (b"x" * (SHARED_VALUE + 1), (), 0), None),
        ((), "queue", "it", "put", ("text", (), 0), None), ((), "multilock", "it", "acquire", (("a",), 2), None),
        ((), "metadata", "it", "set", (((1, 2, 3),), ()), None), ((), "", "", "cancel", (), None),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(row: Any) -> None:
    w = Shared()
    w.send("c-0", Ask(1, "shared", row))
    ((_, (status, text)),) = w.answers("c-0").items()
    assert status == "error"
    assert len(text) < 1000
    assert not w.broker.shared.store.cells


def test_events_of_a_topic() -> None:
    w = Shared()
    position = w.do("c-1", "topic", "position", name="t")
    waits = w.op("c-1", "topic", "next", *position, name="t")
    w.do("c-0", "topic", "log", 1.5, b"one", name="t")
    w.do("c-0", "topic", "log", 1.5, b"other", name="u")
    ((number, (_, (epoch, last, events))),) = w.answers("c-1").items()
    assert (number, epoch, [event[1:] for event in events]) == (waits, 1, [(1.5, b"one")])
    assert w.do("c-1", "topic", "next", epoch, last, name="t", timeout=0.0) == ("timeout", None)
    assert w.do("c-1", "topic", "next", 99, 1000, name="t")[2] == events  # of another broker's numbering: all are new
