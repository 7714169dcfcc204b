"""What large frames are received into stays at hand for a moment, and not longer."""

from __future__ import annotations

from zdist.limits import HEAPS_KEPT
from zdist.transport.memory import HEAP, Heaps


class Frame:
    """Stands for a ZeroMQ frame."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(2 * HEAP))  # two of them never lie in one heap


def test_one_frame_of_each_new_heap_is_held_and_let_go_in_time() -> None:
    heaps = Heaps()
    assert heaps.due == float("inf")
    first, second = Frame(), Frame()
    heaps.note(first, 10.0)
    assert heaps.held is first
    assert heaps.due == 10.0 + HEAPS_KEPT
    heaps.note(second, 11.0)
    heaps.note(first, 11.5)  # a heap that is known is not the newest
    assert heaps.held is second
    assert heaps.due == 10.0 + HEAPS_KEPT  # however much comes, it ends
    heaps.sweep(11.9)
    assert heaps.held is second
    heaps.sweep(heaps.due)
    assert heaps.held is None
    assert heaps.due == float("inf")
    heaps.note(first, 20.0)
    assert heaps.held is first
