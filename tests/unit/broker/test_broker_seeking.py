"""Keys that a successor is asked for before it was told of them."""

from __future__ import annotations

import pytest
from broker_world import World

from zdist.limits import COPIES_KEPT, SOUGHT, SOUGHT_TOLD
from zdist.protocol.messages import (
    ANY_SPEC,
    SPEC,
    Alive,
    Ask,
    Cancel,
    Cancelled,
    Claim,
    Drop,
    Finished,
    Held,
    Hold,
    Lost,
    Rejected,
    Release,
    Specs,
    Subscribe,
    Unheard,
    Unowned,
    Want,
)
from zdist_broker.recovery import LATE
from zdist_broker.seeking import COMES, LACKS, Lacking
from zdist_broker.state import MEMORY


@pytest.fixture
def w() -> World:
    w = World(workers=1, clients=2)
    w.broker.succeeds(w.now)
    return w


def tick(w: World, seconds: float) -> None:
    w.now += seconds
    w.broker.tick(w.now)
    w.turn()


def want(w: World, key: str, client: str = "c-1") -> int:
    w.gen += 1
    w.send(client, Want(w.gen, (key,)))
    w.turn()
    return w.gen


def cancelled(w: World, client: str = "c-1") -> list[str]:
    return [row[0] for row in w.rows(client, Cancelled)]


def finished(w: World, client: str = "c-1") -> list[str]:
    return [row[0] for row in w.rows(client, Finished)]


def test_who_asks_before_the_maker_has_come_back_waits_for_it(w: World) -> None:
    gen = want(w, "a")
    assert not cancelled(w) and w.broker.deadline() is not None
    w.send("c-0", Claim((), (("a", 7, 5, b"value", "int"),)))
    w.submit("a")
    tick(w, 0.1)
    assert finished(w) == ["a"] and w.task("a").who == (w.broker.peers["c-0"], w.broker.peers["c-1"])
    w.send("c-1", Release((("a", gen),)))
    assert w.task("a").who == (w.broker.peers["c-0"],)


def test_many_keys_are_not_looked_at_all_the_time(w: World) -> None:
    want(w, "a")
    due = w.broker.deadline()
    w.submit("a")
    tick(w, 0.001)  # something else was due
    assert not finished(w) and w.broker.deadline() == due


@pytest.mark.parametrize("how", ["release", "leave"])
def test_who_asks_has_it_though_its_maker_lets_go_at_once(w: World, how: str) -> None:
    want(w, "a")
    gen = w.submit("a")
    if how == "release":
        w.send("c-0", Release((("a", gen),)))
    else:
        w.leave("c-0")
    assert w.task("a").who == (w.broker.peers["c-1"],) and not w.broker.intake.sought.keys


def test_a_release_of_an_earlier_want_ends_nothing(w: World) -> None:
    gen = want(w, "a")
    want(w, "a")
    w.send("c-1", Release((("a", gen),)))
    w.submit("a")
    tick(w, 0.1)
    assert len(w.task("a").who) == 2


def test_of_several_claims_each_may_be_the_one_that_holds(w: World) -> None:
    for client, attempt in (("c-0", 6), ("c-1", 7)):
        w.send(client, Claim((("a", attempt),)))
        want(w, "a", client)
    w.send("w-0", Held((("a", 7, 5, "int"),)))
    tick(w, 0.1)
    assert finished(w) == finished(w, "c-0") == ["a"]


def test_it_waits_for_data_that_its_client_announces(w: World) -> None:
    want(w, "x")
    w.gen += 1
    w.send("c-0", Hold(w.gen, (("x", 0, 5, "int"),)))
    tick(w, 0.1)
    assert finished(w) == ["x"]


def test_what_a_worker_holds_and_nobody_has_claimed_is_given_to_who_asks(w: World) -> None:
    want(w, "a")
    w.send("w-0", Held((("a", 7, 5, "int"),)))
    tick(w, LATE - 0.1)
    assert not finished(w)  # who has made it may know of a later one
    tick(w, 0.1)
    assert finished(w) == ["a"] and w.task("a").state == MEMORY
    tick(w, COPIES_KEPT)
    assert not w.rows("w-0", Drop)


def test_a_claim_is_kept_for_a_worker_that_comes_late(w: World) -> None:
    w.send("c-1", Claim((("a", 7),)))
    want(w, "a")
    w.send("w-0", Held((("a", 6, 5, "int"),)))
    tick(w, LATE)
    assert not finished(w)  # an earlier attempt is another value
    w.worker("w-1")
    w.send("w-1", Held((("a", 7, 5, "int"),)))
    tick(w, 0.1)
    assert finished(w) == ["a"]


def test_a_key_that_says_what_it_is_may_be_submitted_when_others_have_brought_its_value(w: World) -> None:
    """The one who submits it has never done so before (seed 1102243)."""
    for key, attempt in (("a", 7), ("x", 0)):
        w.send("c-1", Claim((), ((key, attempt, 5, b"value", "int"),)))
        want(w, key)
    w.submit("a", named=True)
    w.submit("a", "x", named=False)
    assert finished(w, "c-0") == ["a", "a"] and w.task("a").fn is not None
    assert [row[0] for row in w.rows("c-0", Rejected)] == ["x"]  # data


def test_several_who_seek_what_turns_out_to_be_made_of_what_is_gone_are_all_told(w: World) -> None:
    w.client("c-2")
    for client in ("c-1", "c-2"):
        want(w, "mid", client)
    w.send("c-0", Claim((("mid", ANY_SPEC),)))  # only what others were made of
    w.submit("mid", deps=("data",))
    tick(w, 0.1)
    assert not cancelled(w)  # its data may yet come
    want(w, "mid", "c-2")
    w.worker("w-9")
    tick(w, SOUGHT)
    assert cancelled(w) == cancelled(w, "c-2") == ["mid"]
    tick(w, 0.1)
    want(w, "mid")
    assert cancelled(w) == ["mid"]


def lineage(w: World, client: str = "c-0") -> int:
    """It brings what others were made of, before what that is made of has come."""
    w.send(client, Claim((("mid", SPEC),)))
    return w.submit("mid", deps=("data",), client=client)


def comes(w: World) -> None:
    """The data that was lacking; and a look."""
    w.gen += 1
    w.send("c-0", Hold(w.gen, (("data", 0, 5, "int"),)))
    tick(w, 0.1)


@pytest.mark.parametrize("first", ["wanted", "told of"])
@pytest.mark.parametrize("how", ["release", "leave", "cancel"])
def test_what_is_known_of_it_is_kept_when_all_who_knew_let_go(w: World, first: str, how: str) -> None:
    w.client("c-2")
    if first == "wanted":
        want(w, "mid")
    gen = lineage(w, "c-2")
    if first == "told of":
        want(w, "mid")
    if how == "release":
        w.send("c-2", Release((("mid", gen),)))
    elif how == "leave":
        w.leave("c-2")
    else:
        w.send("c-2", Cancel(("mid",), False, "for the test"))
    (specs,) = w.got("c-1", Specs)
    assert [row[0] for row in specs.rows] == ["data", "mid"]
    tick(w, 0.1)
    assert not cancelled(w) and not w.where("mid") and not w.task("mid").who
    comes(w)
    tick(w, 0.1)
    assert not w.broker.intake.sought.keys and w.task("mid").who == (w.broker.peers["c-1"],)
    w.finish("mid")
    assert finished(w) == ["mid"]


def test_it_is_kept_also_if_what_was_made_of_it_is_all_that_kept_it(w: World) -> None:
    w.client("c-2")
    gen = lineage(w, "c-2")
    w.send("c-2", Claim((("end", SPEC),)))
    last = w.submit("end", deps=("mid",), client="c-2")
    w.send("c-2", Release((("mid", gen),)))
    want(w, "mid")
    assert w.got("c-1", Specs)  # nobody else will tell a successor of this broker
    w.send("c-2", Release((("end", last),)))
    comes(w)
    tick(w, 0.1)
    assert w.where("mid") and not cancelled(w)


def test_it_is_kept_though_all_that_lacks_its_data_is_cancelled(w: World) -> None:
    want(w, "mid")
    lineage(w)
    want(w, "mid", "c-0")  # as if it were to be computed now
    assert cancelled(w, "c-0") == ["mid"] and not cancelled(w)
    lineage(w)
    w.send("c-0", Cancel(("data",), False, "for the test"))
    w.client("c-2")
    w.submit("mid", deps=("data",), client="c-2")
    assert cancelled(w, "c-2") == ["mid"] and not cancelled(w)
    comes(w)
    tick(w, 0.1)
    assert w.where("mid")


@pytest.mark.parametrize("how", ["release", "leave", "cancel", "again"])
def test_it_is_forgotten_when_the_last_who_seeks_it_lets_go(w: World, how: str) -> None:
    w.client("c-2")
    gen = lineage(w)
    last, gone = want(w, "mid"), want(w, "mid", "c-2")
    w.send("c-0", Release((("mid", gen),)))
    w.send("c-2", Release((("mid", gone),)))
    assert list(w.broker.tables.tasks) == ["data", "mid"]
    if how == "again":
        w.send("c-1", Release((("mid", last - 1),)))
        again = want(w, "mid")
        w.send("c-1", Release((("mid", last),)))
        assert list(w.broker.tables.tasks) == ["data", "mid"]
        last = again
    if how == "leave":
        w.leave("c-1")
    elif how == "cancel":
        w.send("c-1", Cancel(("mid",), False, "for the test"))
    else:
        w.send("c-1", Release((("mid", last),)))
    assert not w.broker.tables.tasks and not w.broker.intake.sought.keys


def test_it_is_forgotten_when_its_data_does_not_come(w: World) -> None:
    gen = lineage(w)
    last = want(w, "mid")
    w.send("c-0", Release((("mid", gen),)))
    w.worker("w-9")
    tick(w, SOUGHT)
    assert [(key, gen) for key, _, gen in w.rows("c-1", Cancelled)] == [("mid", last)]
    assert not w.broker.tables.tasks and not w.broker.intake.sought.keys


def test_who_submits_it_seeks_it_no_longer(w: World) -> None:
    gen = lineage(w)
    want(w, "mid")
    w.send("c-0", Release((("mid", gen),)))
    w.submit("mid", deps=("data",), client="c-1")  # it is refused, and would leave a want that nobody releases
    assert cancelled(w) == ["mid"] and not w.broker.intake.sought.keys
    last = lineage(w, "c-1")
    comes(w)
    assert w.broker.peers["c-1"].wants == {"mid": last} and not w.broker.intake.sought.keys


def test_who_has_it_under_a_later_want_seeks_it_no_longer(w: World) -> None:
    want(w, "a")
    w.submit("a")
    again = want(w, "a")
    assert not w.broker.intake.sought.keys
    w.send("c-1", Release((("a", again),)))
    tick(w, 0.1)
    assert w.task("a").who == (w.broker.peers["c-0"],)


def test_who_seeks_it_is_told_at_once_that_it_is_cancelled_by_force(w: World) -> None:
    gen = lineage(w)
    last = want(w, "mid")
    w.send("c-0", Cancel(("mid",), True, "for the test"))
    assert w.rows("c-1", Cancelled) == [("mid", "for the test", last)] and not w.broker.tables.tasks
    gen = lineage(w)
    w.send("c-0", Release((("mid", gen),)))
    tick(w, SOUGHT)
    assert not w.broker.tables.tasks and not w.broker.peers["c-1"].wants and not cancelled(w)


def test_shared_state_that_refers_to_it_takes_it_from_nobody(w: World) -> None:
    w.now = 2.0
    tick(w, 0.0)
    want(w, "mid")
    gen = lineage(w)
    w.broker.shared.opened = True
    w.send("c-0", Ask(90, "shared", ((), "variable", "v", "set", (b"future", ("mid",)), None)))
    w.send("c-0", Release((("mid", gen),)))
    tick(w, 0.1)
    assert not cancelled(w) and w.task("mid").fn is not None


def test_who_has_submitted_what_lacks_something_does_not_seek_it(w: World) -> None:
    w.send("c-0", Claim((("mid", SPEC),)))
    w.submit("mid", deps=("data",))
    want(w, "mid", "c-0")  # it is told, and says again what it is made of
    assert cancelled(w, "c-0") == ["mid"] and not w.broker.tables.tasks


def test_what_would_be_made_of_what_runs_is_waited_for(w: World) -> None:
    w.send("w-0", Unowned((("k", 7),)))
    w.send("c-0", Claim((("mid", SPEC),)))
    w.submit("mid", deps=("k",))
    want(w, "mid")
    want(w, "k")
    tick(w, LATE)
    tick(w, SOUGHT)
    assert not cancelled(w) and not w.rows("c-1", Unheard)
    w.send("w-0", Held((("k", 7, 5, "int"),)))
    tick(w, 0.1)
    tick(w, 0.1)
    assert w.where("mid")


def test_what_somebody_tries_to_submit_is_waited_for_as_long_as_copies_are_kept(w: World) -> None:
    want(w, "a")
    w.submit("a", deps=("k",))
    assert cancelled(w, "c-0") == ["a"]
    tick(w, LATE)
    tick(w, SOUGHT)
    assert not cancelled(w) and not w.rows("c-1", Unheard)
    tick(w, COPIES_KEPT)
    assert cancelled(w) == ["a"]


def test_a_look_goes_over_each_task_once(w: World) -> None:
    chain = [f"m{number}" for number in range(50)]
    for number, key in enumerate(chain):
        w.send("c-0", Claim(((key, SPEC),)))
        w.submit(key, deps=(chain[number - 1] if number else "data",))
    lacking = Lacking(w.broker.recovery)
    assert [lacking(key, w.task(key)) for key in chain] == [LACKS] * 50
    assert len(lacking.tasks) == 51
    w.send("w-0", Unowned((("data", 7),)))
    assert Lacking(w.broker.recovery)("m49", w.task("m49")) == COMES
    assert lacking("new", None) == LACKS and Lacking(w.broker.recovery, {"new"})("new", None) == COMES


def test_who_was_refused_is_told_that_it_is_taken_and_nobody_else(w: World) -> None:
    w.submit("a", "b", deps=("k",), client="c-1")
    assert cancelled(w) == ["a", "b"]
    w.submit("k")
    assert w.where("k") and not w.rows("c-0", Lost)
    w.submit("a", "c", deps=("k",), client="c-1")
    assert w.rows("c-1", Lost) == ["a"]


def test_what_is_there_is_had_though_its_input_is_gone(w: World) -> None:
    w.send("c-0", Claim((("mid", 7),)))
    w.send("w-0", Held((("mid", 7, 5, "int"),)))
    w.submit("mid", deps=("data",))
    want(w, "mid")
    assert finished(w) == ["mid"] and not w.broker.intake.sought.keys


def test_who_seeks_what_runs_is_told_that_it_is_known(w: World) -> None:
    want(w, "a")
    w.submit("a")
    want(w, "a", "c-0")
    tick(w, 0.1)
    assert w.rows("c-1", Lost) == ["a"] and w.rows("c-0", Lost) == ["a"] and w.where("a")


def test_what_a_worker_still_runs_is_waited_for(w: World) -> None:
    w.send("w-0", Unowned((("a", 7),)))
    want(w, "a")
    tick(w, LATE)
    tick(w, SOUGHT)
    assert not w.rows("c-1", Unheard) and not cancelled(w)
    w.send("w-0", Held((("a", 7, 5, "int"),)))
    tick(w, 0.1)
    assert finished(w) == ["a"]


def test_but_not_for_ever(w: World) -> None:
    w.send("w-0", Unowned((("a", 7),)))
    want(w, "a")
    tick(w, COPIES_KEPT)
    tick(w, 0.1)
    assert cancelled(w) == ["a"]


def test_who_waits_is_told_so_every_second(w: World) -> None:
    w.send("n-0", Alive(("w-9",)))
    gen = want(w, "a")
    tick(w, LATE)
    assert not w.rows("c-1", Unheard)  # a worker that lives may have it
    w.worker("w-9")
    w.send("w-9", Subscribe(1, (), {}, False))
    tick(w, 0.5)
    assert w.rows("c-1", Unheard) == [("a", gen)]
    tick(w, SOUGHT_TOLD - 0.1)
    want(w, "b", "c-0")
    assert not w.rows("c-1", Unheard)
    tick(w, 0.1)
    assert w.rows("c-1", Unheard) == [("a", gen)] and not w.rows("c-0", Unheard)
    tick(w, SOUGHT_TOLD)
    assert [key for key, _ in w.rows("c-0", Unheard)] == ["b"]


def test_nobody_waits_for_ever(w: World) -> None:
    want(w, "a")
    tick(w, SOUGHT - 0.1)
    assert not cancelled(w)
    tick(w, 0.1)
    assert cancelled(w) == ["a"] and w.broker.intake.sought.look_at is None
    want(w, "b")
    assert cancelled(w) == ["b"]


def test_a_key_that_cannot_be_is_refused_at_once(w: World) -> None:
    want(w, "")
    assert not w.broker.intake.sought.keys


@pytest.mark.parametrize("how", ["release", "cancel", "leave"])
def test_who_has_let_go_of_it_gets_nothing(w: World, how: str) -> None:
    gen = want(w, "a")
    if how == "release":
        w.send("c-1", Release((("a", gen),)))
    elif how == "cancel":
        w.send("c-1", Cancel(("a",), False, "for the test"))
    else:
        w.leave("c-1")
    assert not w.broker.intake.sought.keys
    w.submit("a")
    tick(w, 0.1)
    assert w.task("a").who == (w.broker.peers["c-0"],)


def test_who_has_learned_how_it_is_computed_wants_it_once(w: World) -> None:
    want(w, "a")
    gen = w.submit("a", client="c-1")
    tick(w, 0.1)
    assert w.broker.peers["c-1"].wants == {"a": gen}


def test_a_broker_that_is_nobodys_successor_knows_all_there_is() -> None:
    w = World(workers=1, clients=2)
    want(w, "a")
    assert cancelled(w) == ["a"]


def test_what_the_value_that_is_brought_along_cannot_be_kept_is_not_computed_for_its_owner(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for it, and the client has it: it is computed only when another asks."""
    monkeypatch.setattr("zdist_broker.state.BROKER_CACHE", 4)
    w.send("c-0", Claim((), (("a", 7, 5, b"value", "int"),)))
    w.submit("a")
    assert not w.runs("w-0")
    want(w, "a")
    assert list(w.runs("w-0")) == ["a"]


def test_nor_if_another_has_submitted_it_as_part_of_what_is_finished(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdist_broker.state.BROKER_CACHE", 4)
    w.send("c-1", Claim((("a", SPEC),)))
    w.submit("a", client="c-1")
    w.send("c-0", Claim((), (("a", 7, 5, b"value", "int"),)))
    w.submit("a")
    assert not w.runs("w-0") and w.task("a").who
