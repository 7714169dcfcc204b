"""What a process holds and how it answers for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist.core.machine import BULK, Route
from zdist.core.store import BUSY_AFTER, Pieces, Store, pack
from zdist.limits import OWN_FRAME, WHOLE
from zdist.protocol.messages import Buffer, Data, Get

HOP = Route("data", b"hop")


class Fixture:
    def __init__(self) -> None:
        self.out: list[tuple[Route, Data]] = []
        self.freezes: list[tuple[str, int]] = []
        self.logged: list[tuple[str, str]] = []
        self.store = Store(self.send, "t", lambda key, attempt: self.freezes.append((key, attempt)), self.log)

    def send(self, route: Route, message: Any) -> None:
        self.out.append((route, message))

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.logged.append((level, event))

    def get(self, *rows: Any, token: str = "t", route: Route = HOP, now: float = 0.0) -> Data | None:
        before = len(self.out)
        self.store.serve(route, Get(5, token, "w-1", "c-1", rows), now)
        self.store.check()
        return self.out[-1][1] if len(self.out) > before else None


@pytest.fixture
def held() -> Fixture:
    return Fixture()


def test_frozen_is_answered_at_once_where_it_was_asked(held: Fixture) -> None:
    held.store.put_blob("k", 3, b"hello", "str")
    assert held.get(("k", 0, 0)) == Data(5, "c-1", (("k", 3, 5, 0, (b"hello",)),), ())
    held.get(("k", 1, 2), route=BULK, token="")
    assert held.out[1] == (BULK, Data(5, "c-1", (("k", 3, 5, 1, (b"el",)),), ()))
    assert held.out[0][0] == HOP


def test_ranges_past_the_end_are_empty(held: Fixture) -> None:
    held.store.put_blob("k", 3, b"hello", "str")
    assert held.get(("k", 4, 100), ("k", 9, 5)).rows == (("k", 3, 5, 4, (b"o",)), ("k", 3, 5, 9, ()))  # type: ignore[union-attr]
    assert held.get(("k", -4, 100), ("k", 0, -1)).rows == ()  # type: ignore[union-attr]


def test_unknown_is_absent(held: Fixture) -> None:
    assert held.get(("k", 0, 0)) == Data(5, "c-1", (), (("k", "unknown", ""),))


def test_no_more_than_what_may_come_in_one_piece(held: Fixture) -> None:
    for i in range(4):
        held.store.put_blob(f"k{i}", 1, Pieces([bytes(WHOLE // 2 + 1)]), "bytes")
    answer = held.get(*((f"k{i}", 0, 0) for i in range(4)))
    assert answer is not None
    sizes = [(row[0], sum(p.nbytes for p in row[4] if isinstance(p, Buffer))) for row in answer.rows]
    assert sizes == [("k0", WHOLE // 2 + 1), ("k1", WHOLE // 2 - 1)]
    assert answer.absent == ()


def test_live_values_are_frozen_once_and_all_who_wait_are_served(held: Fixture) -> None:
    held.store.put_value("k", 3, object(), 100, "object")
    held.store.put_blob("f", 1, b"f", "bytes")
    assert held.get(("k", 0, 0), ("f", 0, 0)) is None
    assert held.get(("k", 0, 0), route=BULK) is None
    assert held.freezes == [("k", 3)]
    held.store.frozen("k", 3, b"bytes!", 0.1)
    held.store.check()
    assert [route for route, _ in held.out] == [HOP, BULK]
    assert [row[0] for row in held.out[0][1].rows] == ["k", "f"]
    assert held.store.deadline() is None
    assert held.store.total == 7


def test_freezing_inside_the_callback(held: Fixture) -> None:
    held.store.freeze = lambda key, attempt: held.store.frozen(key, attempt, key.encode(), 0.0)
    held.store.put_value("a", 1, 1, 10, "int")
    held.store.put_value("b", 1, 2, 10, "int")
    answer = held.get(("a", 0, 0), ("b", 0, 0))
    assert answer is not None and [row[4] for row in answer.rows] == [(b"a",), (b"b",)]
    assert len(held.out) == 1


def test_unpicklable_says_why_now_and_later(held: Fixture) -> None:
    held.store.put_value("k", 3, object(), 100, "lock")
    held.get(("k", 0, 0))
    held.store.unfreezable("k", 3, "cannot pickle a lock", 0.0)
    assert held.out[0][1].absent == (("k", "unpicklable", "cannot pickle a lock"),)
    assert held.get(("k", 0, 0)).absent == (("k", "unpicklable", "cannot pickle a lock"),)  # type: ignore[union-attr]
    assert held.freezes == [("k", 3)]


def test_long_freezing_is_answered_busy(held: Fixture) -> None:
    held.store.put_value("k", 3, object(), 100, "object")
    held.store.put_blob("f", 1, b"f", "bytes")
    held.get(("k", 0, 0), ("f", 0, 0), now=10.0)
    assert held.store.deadline() == 10.0 + BUSY_AFTER
    held.store.tick(10.0)
    assert not held.out
    held.store.tick(10.0 + BUSY_AFTER)
    held.store.check()
    assert held.out[0][1] == Data(5, "c-1", (("f", 1, 1, 0, (b"f",)),), (("k", "busy", ""),))
    held.store.frozen("k", 3, b"x", 20.0)
    assert len(held.out) == 1


def test_what_an_attempt_is_announced_with_again_counts_until_its_bytes_are_there(held: Fixture) -> None:
    held.store.put_value("k", 3, object(), 100, "object")
    held.store.put_value("k", 3, object(), 200, "object")
    assert held.store.total == 200
    held.store.put_blob("k", 3, b"bytes!", "object")
    held.store.put_value("k", 3, object(), 300, "object")
    assert held.store.total == 6
    held.store.check()


def test_bytes_that_are_there_are_not_lost_to_a_complaint_that_comes_late(held: Fixture) -> None:
    held.store.put_blob("k", 3, b"hello", "str")
    held.store.unfreezable("k", 3, "cannot pickle a lock", 0.0)
    assert held.get(("k", 0, 0)) == Data(5, "c-1", (("k", 3, 5, 0, (b"hello",)),), ())


# --- shared memory --------------------------------------------------------------------------------------


class Segment(Pieces):
    shared = True


class Sharing(Fixture):
    """A store whose owner has shared memory for values of 100 bytes or more."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[tuple[str, int]] = []
        self.store.share = lambda key, attempt: self.shares.append((key, attempt))
        self.store.least = 100

    def ask(self, *keys: str, now: float = 0.0) -> Data | None:
        before = len(self.out)
        self.store.serve(HOP, Get(7, "t", "w-1", "c-1", tuple((key, 0, 1) for key in keys), True), now)
        self.store.check()
        return self.out[-1][1] if len(self.out) > before else None


@pytest.fixture
def near() -> Sharing:
    return Sharing()


BIG = bytes(200)


def test_what_lies_in_shared_memory_is_said_without_its_bytes(near: Sharing) -> None:
    near.store.put_blob("k", 3, Segment([BIG]), "bytes")
    assert near.ask("k", "j") == Data(7, "c-1", (), (("j", "unknown", ""),), (("k", 3, 200),))
    assert near.out[-1][0] == HOP
    assert near.get(("k", 10, 20)).rows == (("k", 3, 200, 10, (bytes(20),)),)  # type: ignore[union-attr]


def test_a_live_value_is_frozen_into_shared_memory_and_need_not_stay(near: Sharing) -> None:
    near.store.put_value("k", 3, BIG, 200, "bytes")
    assert near.ask("k") is None and near.ask("k") is None
    assert near.get(("k", 0, 0)) is None  # somebody from elsewhere waits for the bytes
    assert near.shares == [("k", 3)] and near.freezes == []
    segment = Segment([BIG, b"+"])
    near.store.frozen("k", 3, segment, 0.0, keep=False)
    near.store.check()
    assert [len(data.shared) + len(data.rows) for _, data in near.out] == [1, 1, 1]
    entry = near.store.get("k")
    assert entry is not None and entry.blob is segment and not entry.has_value and entry.value is None
    assert near.store.total == 201


def test_a_blob_moves_and_is_served_meanwhile(near: Sharing) -> None:
    near.store.put_blob("k", 3, Pieces([BIG]), "bytes")
    near.store.set_value("k", 3, "object")
    assert near.ask("k") is None
    assert near.get(("k", 0, 5)) is not None
    segment = Segment([BIG])
    near.store.frozen("k", 3, segment, 0.0)
    near.store.check()
    assert near.out[-1][1].shared == (("k", 3, 200),)
    entry = near.store.get("k")
    assert entry is not None and entry.blob is segment and entry.value == "object"


@pytest.mark.parametrize("how", ["unshared", "heap blob", "unpicklable"])
def test_what_cannot_be_shared_is_said_to_be_so(near: Sharing, how: str) -> None:
    if how == "unshared":
        near.store.put_blob("k", 3, Pieces([BIG]), "bytes")
    else:
        near.store.put_value("k", 3, object(), 200, "object")
    assert near.ask("k") is None
    if how == "unshared":
        near.store.unshared("k", 3)
    elif how == "heap blob":
        near.store.frozen("k", 3, BIG, 0.0)
    else:
        near.store.unfreezable("k", 3, "a lock", 0.0)
    near.store.check()
    code = ("k", "unpicklable", "a lock") if how == "unpicklable" else ("k", "heap", "")
    assert near.out[-1][1] == Data(7, "c-1", (), (code,), ())
    assert near.store.deadline() is None


def test_small_values_and_stores_without_shared_memory_answer_at_once(near: Sharing, held: Fixture) -> None:
    near.store.put_value("k", 3, 1, 99, "int")
    assert near.ask("k") == Data(7, "c-1", (), (("k", "heap", ""),), ())
    held.store.put_value("k", 3, 1, 200, "int")
    held.store.serve(HOP, Get(7, "t", "w-1", "c-1", (("k", 0, 1),), True), 0.0)
    assert held.out[-1][1].absent == (("k", "heap", ""),)
    assert near.shares == held.freezes == []


def test_long_sharing_is_answered_busy(near: Sharing) -> None:
    near.store.put_blob("k", 3, Pieces([BIG]), "bytes")
    near.store.put_blob("s", 1, Segment([BIG]), "bytes")
    near.ask("k", "s")
    near.store.tick(BUSY_AFTER)
    near.store.check()
    assert near.out[-1][1] == Data(7, "c-1", (), (("k", "busy", ""),), (("s", 1, 200),))
    near.store.unshared("k", 3)
    near.store.check()
    assert len(near.out) == 1


@pytest.mark.parametrize("how", ["drop", "replace"])
def test_what_goes_while_it_is_moved_is_answered(near: Sharing, how: str) -> None:
    near.store.put_blob("k", 3, Pieces([BIG]), "bytes")
    near.ask("k")
    if how == "drop":
        near.store.drop("k", 0.0)
    else:
        near.store.put_blob("k", 4, Segment([BIG]), "bytes")
    near.store.check()
    data = near.out[-1][1]
    assert data.absent == ((("k", "unknown", ""),) if how == "drop" else ()) and len(data.shared) == (how == "replace")
    near.store.frozen("k", 3, Segment([BIG]), 0.0)
    near.store.unshared("k", 3)
    near.store.check()
    assert len(near.out) == 1


@pytest.mark.parametrize("how", ["drop", "replace"])
def test_what_goes_while_it_is_waited_for_is_answered(held: Fixture, how: str) -> None:
    held.store.put_value("k", 3, object(), 100, "object")
    held.get(("k", 0, 0))
    if how == "drop":
        assert held.store.drop("k", 0.0) is not None
        assert held.out[0][1].absent == (("k", "unknown", ""),)
        assert held.store.total == 0
    else:
        held.store.put_blob("k", 4, b"new", "bytes")
        assert held.out[0][1].rows == (("k", 4, 3, 0, (b"new",)),)
    held.store.check()
    held.store.frozen("k", 3, b"old", 0.0)
    assert len(held.out) == 1
    assert held.store.drop("nothing", 0.0) is None


def test_another_attempt_replaces_the_same_one_completes(held: Fixture) -> None:
    entry = held.store.put_blob("k", 1, b"123", "bytes")
    held.store.set_value("k", 1, "value")
    assert held.store.put_blob("k", 1, b"123", "bytes") is entry and entry.has_value
    held.store.set_value("k", 2, "stale")
    assert entry.value == "value"
    other = held.store.put_value("k", 2, "other", 50, "str")
    assert other is not entry and other.blob is None and held.store.get("k") is other
    assert held.store.total == 50
    held.store.check()


def test_wrong_token_is_ignored_and_logged_once_a_hop(held: Fixture) -> None:
    held.store.put_blob("k", 1, b"123", "bytes")
    for _ in range(3):
        assert held.get(("k", 0, 0), token="wrong") is None
    assert held.get(("k", 0, 0), token="", route=Route("data", b"other")) is None
    assert held.logged == [("warning", "data.refused")] * 2
    assert held.get(("k", 0, 0), token="", route=BULK) is not None


def test_small_pieces_are_joined_large_ones_get_a_frame() -> None:
    large = bytes(OWN_FRAME)
    packed = pack([b"a", memoryview(b"b"), large, b"c", b"d"])
    assert packed[0] == b"ab" and packed[2] == b"cd"
    assert isinstance(packed[1], Buffer) and packed[1].data is large
    assert pack([]) == ()


pieces = st.lists(st.binary(max_size=20), max_size=8)


@settings(max_examples=200, deadline=None)
@given(pieces, st.integers(0, 170), st.integers(0, 170), st.booleans())
def test_slices_are_the_bytes(parts: list[bytes], offset: int, length: int, views: bool) -> None:
    blob = Pieces([memoryview(part) for part in parts] if views else parts)
    whole = b"".join(parts)
    assert blob.nbytes == len(whole)
    assert b"".join(blob.slice(offset, length)) == whole[offset : offset + length] or length == 0


@settings(max_examples=100, deadline=None)
@given(pieces, st.integers(1, 7))
def test_any_ranges_add_up_to_the_whole(parts: list[bytes], step: int) -> None:
    held = Fixture()
    held.store.put_blob("k", 1, Pieces(parts), "bytes")
    got, total, offset = b"", 1, 0
    while offset < total:
        answer = held.get(("k", offset, step))
        assert answer is not None
        ((_, _, total, start, found),) = answer.rows
        assert start == offset
        got += b"".join(p.data if isinstance(p, Buffer) else p for p in found)
        offset += step
    assert got == b"".join(parts)
