"""What large frames are received into stays at hand for a moment, and not longer."""

from __future__ import annotations

from zdist.limits import HEAPS_KEPT
from zdist.transport.memory import HEAP, HEAPS, Heaps


class Frame:
    """Stands for a ZeroMQ frame."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(2 * HEAP))  # two of them never begin in one heap


def test_one_frame_of_each_heap_is_held_and_let_go_in_time() -> None:
    heaps = Heaps()
    assert heaps.due == float("inf")
    first, second = Frame(), Frame()
    heaps.note(first, 10.0)
    assert heaps.due == 10.0 + HEAPS_KEPT
    heaps.note(second, 11.0)
    heaps.note(first, 11.5)
    assert [frame for _, frame in heaps.held.values()] == [first, second]
    heaps.sweep(11.9)
    assert len(heaps.held) == 2
    assert heaps.due == 10.0 + HEAPS_KEPT
    heaps.sweep(heaps.due)
    assert len(heaps.held) == 2 and heaps.due == 11.0 + HEAPS_KEPT  # that heap is still in use
    heaps.sweep(heaps.due)
    assert [frame for _, frame in heaps.held.values()] == [first]
    heaps.sweep(heaps.due)
    assert not heaps.held
    assert heaps.due == float("inf")
    heaps.note(first, 20.0)
    assert [frame for _, frame in heaps.held.values()] == [first]


def test_the_frame_that_came_last_is_the_one_that_is_held() -> None:
    heaps = Heaps()
    first = Frame()
    later = Frame()
    later.buffer = first.buffer
    heaps.note(first, 1.0)
    heaps.note(later, 1.0)
    assert [frame for _, frame in heaps.held.values()] == [later]


def test_nothing_is_held_once_nobody_would_let_go_of_it() -> None:
    heaps = Heaps()
    heaps.join()
    heaps.join()
    heaps.note(Frame(), 1.0)
    heaps.leave()
    assert heaps.held
    heaps.leave()
    assert not heaps.held


def test_what_is_held_is_bounded() -> None:
    heaps = Heaps()
    heaps.held = dict.fromkeys(range(HEAPS), (1.0, None))
    heaps.note(Frame(), 1.0)
    assert len(heaps.held) == HEAPS


def test_a_frame_that_shows_no_address_is_left_alone() -> None:
    heaps = Heaps()
    frame = Frame()
    frame.buffer = frame.buffer.toreadonly()
    heaps.note(frame, 1.0)
    assert not heaps.held and heaps.due == float("inf")
