"""What counts of what workers hold: for those who come late, those who asked first, and those who are about to go."""

from __future__ import annotations

import pytest
from broker_world import World
from test_broker_shared import Shared, item

from zdist.limits import RECOVERY
from zdist.protocol.messages import (
    Alive,
    Answer,
    Call,
    Called,
    Cancelled,
    Claim,
    Drop,
    Finished,
    Held,
    Hold,
    Place,
    Specs,
    Want,
    WorkerDied,
)
from zdist_broker.machine import BrokerMachine
from zdist_broker.recovery import LATE


@pytest.fixture
def w() -> World:
    """A worker and two clients, who knew an earlier broker."""
    w = World(workers=1, clients=2)
    w.broker.succeeds(w.now)
    return w


@pytest.fixture
def new() -> Shared:
    """A broker in the place of one that had a queue with a future of a finished task."""
    old = Shared(workers=1)
    old.submit("k")
    old.turn()
    old.do("c-0", "queue", "put", *item("future", "k"), 0)
    old.finish("k")
    return old.successor()


def tick(w: World, seconds: float) -> None:
    w.now += seconds
    w.broker.tick(w.now)
    w.turn()
    w.broker.check()


def claim(w: World, client: str, key: str, attempt: int) -> None:
    w.send(client, Claim(((key, attempt),)))


def want(w: World, client: str, key: str) -> None:
    w.gen += 1
    w.send(client, Want(w.gen, (key,)))


def finished(w: World, client: str, key: str) -> list[int]:
    """The attempts of a key that a client has been told of."""
    return [row[1] for row in w.rows(client, Finished) if row[0] == key]


# --- which attempt counts ---------------------------------------------------------------------------------


def test_shared_state_takes_no_attempt_before_those_had_the_time_to_come_who_know_which_counts(new: Shared) -> None:
    new.worker("w-0")
    new.send("w-0", Held((("k", 5, 5, "int"),)))  # of another use of the key: its Drop was lost
    new.send("w-0", Held((("d", 9, 5, "int"),)))
    new.tick(RECOVERY)
    claim(new, "c-1", "d", 9)
    new.submit("d", deps=("k",), client="c-1")  # so something stands for k
    new.turn()
    new.worker("w-1")
    new.send("w-1", Held((("k", 7, 5, "int"),)))
    claim(new, "c-0", "k", 7)
    new.submit("k", client="c-0")
    new.turn()
    assert new.now < LATE
    assert finished(new, "c-0", "k") == [7]


@pytest.mark.parametrize("first", ["worker", "client"])
def test_a_claim_to_an_attempt_that_is_over_does_not_keep_who_knows_better_from_the_copy(w: World, first: str) -> None:
    """One client was cut off when the result was lost and computed again; the maker knows of that."""
    held = Held((("k", 9, 5, "int"),))
    if first == "worker":
        w.send("w-0", held)
    claim(w, "c-1", "k", 7)
    want(w, "c-1", "k")
    w.turn()
    if first == "client":
        w.send("w-0", held)
    claim(w, "c-0", "k", 9)
    w.submit("k", deps=("gone",))
    w.turn()
    tick(w, 0.1)
    assert not w.rows("c-0", Cancelled)
    assert finished(w, "c-0", "k") == finished(w, "c-1", "k") == [9]


# --- data that has been replaced --------------------------------------------------------------------------


def replaced(w: World) -> None:
    """A worker was given up with scattered data; its client has let go of that, and used the name for other data."""
    w.send("c-0", Hold(1, (("config", 0, 10, "bytes"),)))
    w.send("w-0", Held((("config", 0, 10, "bytes"),)))
    w.leave("w-0", "silent")
    w.release("config", 1)
    w.turn()
    assert not w.broker.tables.tasks
    w.send("c-0", Hold(2, (("config", 0, 20, "bytes"),)))


def comes_back(w: World) -> None:
    w.worker("w-0")
    w.send("w-0", Held((("config", 0, 10, "bytes"),)))


def test_data_that_has_been_replaced_is_not_had_from_a_worker_that_was_away() -> None:
    w = World(workers=1)
    replaced(w)
    comes_back(w)
    w.turn()
    assert [holder.session for holder in w.task("config").holders] == ["c-0"]


def test_an_old_copy_is_not_taken_for_the_one_that_was_ordered() -> None:
    w = World(workers=1)
    replaced(w)
    w.send("c-0", Place(("config",), (), 1))
    w.all("c-0")
    comes_back(w)
    assert not w.rows("c-0", Drop)


# --- futures in queues --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["leaves", "lets go"])
def test_a_future_in_a_queue_outlives_a_maker_that_goes_as_soon_as_it_has_come_back(new: Shared, end: str) -> None:
    new.worker("w-0")
    new.send("w-0", Held((("k", 7, 5, "int"),)))
    new.tick(RECOVERY)
    claim(new, "c-0", "k", 7)
    gen = new.submit("k")
    if end == "leaves":
        new.leave("c-0")
    else:
        new.release("k", gen)
    assert not new.rows("w-0", Drop)
    new.tick(LATE)
    assert new.states() == {"k": "memory"}


def test_a_future_in_a_queue_outlives_a_maker_that_leaves_while_its_claim_waits_for_a_worker(new: Shared) -> None:
    new.worker("w-0")
    new.send("n-0", Alive(("w-0", "w-1")))
    new.send("w-0", Held((("k", 7, 5, "int"),)))
    new.tick(RECOVERY)
    claim(new, "c-0", "k", 7)
    new.submit("k")
    new.tick(0.5)
    new.leave("c-0")
    assert not new.rows("w-0", Drop)
    new.tick(LATE)
    new.send("n-0", WorkerDied("w-1", -9, "", (), False))
    new.tick(0.1)
    assert new.states() == {"k": "memory"}


# --- those who have futures from others ---------------------------------------------------------------------


@pytest.mark.parametrize("first", ["maker", "other"])
def test_who_asked_before_the_maker_came_back_inherits_as_well(w: World, first: str) -> None:
    w.send("w-0", Held((("k", 7, 5, "int"),)))

    def other_comes() -> None:
        claim(w, "c-1", "k", 7)
        want(w, "c-1", "k")
        w.turn()

    if first == "other":
        other_comes()
    claim(w, "c-0", "k", 7)
    gen = w.submit("k")
    if first == "maker":
        other_comes()
    tick(w, 0.1)
    w.release("k", gen)
    assert [row[0] for specs in w.got("c-1", Specs) for row in specs.rows] == ["k"]


@pytest.mark.parametrize("seconds", [12.0, 20.0])
def test_a_client_that_comes_within_its_lease_gets_what_a_worker_still_holds(seconds: float) -> None:
    """Its maker has let go of it, and it has not heard that it is finished."""
    w = World(workers=1)
    w.broker.succeeds(w.now)
    w.send("w-0", Held((("k", 7, 5, "int"),)))
    tick(w, seconds)
    w.client("c-1")
    want(w, "c-1", "k")
    w.turn()
    tick(w, 0.1)
    assert not w.rows("c-1", Cancelled)
    assert finished(w, "c-1", "k") == [7]


# --- calls ----------------------------------------------------------------------------------------------------


def test_an_answer_to_a_call_of_an_earlier_broker_is_not_taken_for_one_to_this_broker() -> None:
    w = World(workers=1)
    w.send("c-0", Call(1, None, b"slow"))
    (slow,) = w.got("w-0", Call)  # which it runs on
    w.broker = BrokerMachine(epoch=2, cluster="test", address="tcp://broker")
    w.join("n-0", "node")
    w.client("c-0")
    w.worker("w-0")
    w.send("c-0", Call(2, None, b"other"))
    (other,) = w.got("w-0", Call)
    w.send("w-0", Called(slow.req, True, b"of slow"))
    assert not w.got("c-0", Answer)
    w.send("w-0", Called(other.req, True, b"of other"))
    (answer,) = w.got("c-0", Answer)
    assert answer.value == {"tcp://w-0": [True, b"of other"]}
