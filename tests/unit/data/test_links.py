"""One link, and the table of links, by themselves."""

from __future__ import annotations

from zdist.core.links import FIRST_WINDOW, FORGIVEN, MIN_CHUNK, PEER, RELAY, Link, Links
from zdist.core.machine import BULK, Route
from zdist.core.probes import Probes
from zdist.core.transfer import UNSIZED, Transfer
from zdist.limits import MIB
from zdist.protocol.messages import ProbeReply

PATH = Route("tcp://one")


def row(session: str, address: str) -> tuple[str, str, str, str, str]:
    return session, address, "one", "host", "n-1"


def test_the_relay_counts_for_slower_than_a_peer_path_of_the_same_speed() -> None:
    """It is everybody's."""
    peer, relay = Link("w-1", PEER, PATH, "one"), Link("w-1", RELAY, BULK, "one")
    peer.bandwidth = relay.bandwidth = 1e8
    assert peer.speed == 1e8 > relay.speed


def test_the_window_of_an_unmeasured_link_grows_with_what_arrives_and_its_chunks_are_a_quarter_of_it() -> None:
    link = Link("w-1", PEER, PATH, "one")
    assert (link.window, link.chunk) == (FIRST_WINDOW, FIRST_WINDOW // 4)
    link.pending = 3 * MIB
    assert (link.window, link.chunk) == (FIRST_WINDOW + 3 * MIB, (FIRST_WINDOW + 3 * MIB) // 4)
    link.strikes = 20
    assert link.window == link.chunk == MIN_CHUNK


def test_the_chunks_of_a_measured_link_are_half_of_its_window() -> None:
    link = Link("w-1", PEER, PATH, "one")
    link.bandwidth = 16e6
    assert link.chunk == link.window // 2


def test_silence_is_forgiven_long_after_and_not_before() -> None:
    link = Link("w-1", RELAY, BULK, "one")
    link.silence, link.closed_until = 5.0, 10.0
    link.forgive(10.0 + FORGIVEN)
    assert link.silence == 5.0
    link.forgive(10.5 + FORGIVEN)
    assert link.silence == 0.0


def test_a_session_keeps_its_address_and_one_without_an_address_has_no_path_of_its_own() -> None:
    links = Links()
    links.learn([row("w-1", "tcp://one"), row("w-2", "")])
    first = links.peer("w-1")
    links.learn([row("w-1", "tcp://two")])
    assert links.peer("w-1") is first and list(links.addresses) == ["tcp://one"]
    assert links.peer("w-2") is None


def test_an_address_is_its_last_owners() -> None:
    links = Links()
    links.learn([row("w-1", "tcp://one"), row("w-2", "tcp://one")])
    links.remove("w-1")
    assert links.addresses == {"tcp://one": links.peer("w-2")}
    links.remove("w-2")
    links.remove("unknown")
    assert not links.addresses and not links.all()


# --- probes, and what is asked for -------------------------------------------------------------------------


def test_the_first_probe_tells_the_round_trip_and_later_ones_do_not() -> None:
    """The first has waited for the connection as well; of later ones nobody knows how busy the holder was."""
    link = Link("w-1", PEER, PATH, "one")
    probes = Probes(lambda *_: None, "token", lambda *_: None)
    for number, (begin, end) in enumerate(((0.0, 0.004), (1.0, 1.4))):
        probes.suspect(link, begin)
        probes.reply(PATH, link, ProbeReply(number + 1, "w-1"), end)
        assert link.rtt == 0.001


def test_of_a_value_of_unknown_size_no_more_is_asked_for_until_its_size_is_known() -> None:
    transfer = Transfer("k", -1, 0, ("w-1",), None, 0, (1,))
    assert transfer.ask(transfer.need()) == (0, UNSIZED) and transfer.need() == 0
    transfer.total = UNSIZED + 7
    assert transfer.need() == 7
    announced = Transfer("k", -1, 100, ("w-1",), None, 0, (1,))
    announced.ask(100)  # in parts: what it may take beyond the announced size is seen from the answer
    assert announced.need() == 0
