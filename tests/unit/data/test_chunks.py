"""How large values are cut up: chunks of equal size, each in a packet of its own."""

from __future__ import annotations

from typing import Final

import pytest

from zdist.core.fetch import Fetcher
from zdist.core.links import Link
from zdist.core.session import parcels
from zdist.core.steering import REPLAN_SECONDS
from zdist.limits import CHUNK, KIB, MIB, WHOLE
from zdist.protocol.messages import Buffer, Data, Get, Message, Taken


def fetching() -> tuple[Fetcher, Link, list[Message]]:
    """A fetcher that knows one worker, the open peer link to it, and what it has sent."""
    sent: list[Message] = []
    fetcher = Fetcher(lambda route, message: sent.append(message), "c-1", "token")
    fetcher.members([("w-1", "ipc:///w", "w", "host", "n-1")])
    link = fetcher.links.peers["w-1"]
    link.opened()
    return fetcher, link, sent


def requests_for(nbytes: int, *, path: str = "peer", speed: float = 1e9, broker: float = 1e9) -> list[int]:
    """Lengths of the requests for one value, over a link and a broker of these speeds (bytes a second)."""
    fetcher, peer, sent = fetching()
    link = peer if path == "peer" else fetcher.links.by_relay("w-1")
    link.bandwidth, link.measured = speed, 0.0
    fetcher.links.relay.bandwidth = broker
    fetcher.fetch(1, [("k", 1, nbytes, ("w-1",))], direct=path == "peer", now=0.0)
    lengths = []
    while link.requests:
        for get in [message for message in sent if isinstance(message, Get)]:
            key, offset, length = get.rows[0]
            data = bytes(min(length, nbytes - offset))
            lengths.append(len(data))
            sent.remove(get)
            fetcher.handle(link.route, Data(get.req, "c-1", ((key, 1, nbytes, offset, (Buffer(data),)),), ()), 0.1)
    assert [row[1] for row in fetcher.arrived] == ["k"]
    fetcher.check()
    return lengths


PATHS: Final = ("peer", "relay")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("nbytes", [WHOLE + 200, 2 * WHOLE, 64 * MIB + 1])
def test_a_value_is_asked_for_in_equal_parts(nbytes: int, path: str) -> None:
    lengths = requests_for(nbytes, path=path)
    assert sum(lengths) == nbytes
    assert max(lengths) <= CHUNK
    assert min(lengths) > max(lengths) / 2  # no round trip for a few bytes at the end


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("nbytes", [200, CHUNK + 200, 4 * MIB + 200, WHOLE - 128 * KIB])
def test_over_a_fast_link_a_value_comes_in_one_piece(nbytes: int, path: str) -> None:
    assert requests_for(nbytes, path=path) == [nbytes]


def test_through_a_broker_whose_speed_is_unknown_a_value_comes_in_chunks() -> None:
    lengths = requests_for(4 * MIB, path="relay", broker=0.0)
    assert sum(lengths) == 4 * MIB
    assert max(lengths[:2]) <= CHUNK


def test_a_value_comes_in_chunks_where_it_is_too_large_or_the_link_is_slow() -> None:
    for lengths in (requests_for(WHOLE + MIB), requests_for(4 * MIB, speed=10e6)):
        assert max(lengths) <= CHUNK
        assert len(lengths) > 1


def test_small_values_share_requests_of_a_chunk_even_where_larger_ones_come_whole() -> None:
    fetcher, link, sent = fetching()
    link.bandwidth, link.measured = 1e9, 0.0
    size = CHUNK // 4
    fetcher.fetch(1, [(f"k{n}", 1, size, ("w-1",)) for n in range(9)], direct=True, now=0.0)
    gets = [message for message in sent if isinstance(message, Get)]
    assert [len(get.rows) for get in gets] == [3, 3, 3]  # what is asked for is a little more than what is expected
    fetcher.check()


def test_each_chunk_travels_in_a_packet_of_its_own() -> None:
    data = [Data(n, "c-1", (), ()) for n in range(3)]
    gets = [Get(n, "", "w-1", "c-1", (("k", 0, 1),)) for n in range(2)]
    mixed: list[Message] = [data[0], gets[0], Taken(1), data[1], gets[1], data[2]]
    assert parcels(mixed) == [(gets[0], Taken(1), gets[1]), (data[0],), (data[1],), (data[2],)]
    assert parcels(list(gets)) == [tuple(gets)]
    assert parcels(list(data)) == [(one,) for one in data]


def test_what_waits_is_planned_anew_soon_after_a_link_has_shown_its_speed_however_much_it_is() -> None:
    fetcher, link, sent = fetching()
    size, count = 20_000, 20_000
    fetcher.fetch(1, [(f"k{n}", 1, size, ("w-1",)) for n in range(count)], now=0.0)

    def answer(now: float) -> None:
        gets = [message for message in sent if isinstance(message, Get)]
        sent.clear()
        for get in gets:
            rows = tuple([(key, 1, size, 0, (bytes(size),)) for key, _, _ in get.rows])
            fetcher.handle(link.route, Data(get.req, "c-1", rows, ()), now)
        fetcher.arrived.clear()

    answer(0.03)
    assert link.bandwidth
    assert fetcher.replan_at == pytest.approx(0.03 + REPLAN_SECONDS)
    fetcher.tick(fetcher.replan_at)
    answer(0.13)
    assert fetcher.replan_at > 0.13 + 4 * REPLAN_SECONDS  # from then on it is weighed against what planning takes
    fetcher.check()
