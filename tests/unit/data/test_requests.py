"""Queues, windows and requests by themselves: how much is asked for, and what the answers tell."""

from __future__ import annotations

from typing import Any

import pytest

from zdist.core.links import OPEN, PEER, RELAY, Link, Links
from zdist.core.requests import ACTIVE_LINKS, RELAY_WINDOW, Requests
from zdist.core.transfer import Request, Transfer
from zdist.limits import MIB, REQUEST_TIMEOUT


class Bench:
    """The requests of a process, and links to as many holders as a test wants."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.links = Links()
        self.requests = Requests(lambda _, message: self.sent.append(message), "c-me", "secret", self.links, None)

    def link(self, path: str, number: int = 1) -> Link:
        self.links.learn([(f"w-{number}", f"tcp://{number}", "name", "host", "n-1")])
        link = self.links.find(path, f"w-{number}")
        link.state = OPEN
        return link

    def ask(self, link: Link, nbytes: int, now: float = 0.0) -> Transfer:
        """Want a value of that size."""
        transfer = Transfer(f"k{self.requests.serial}", 1, nbytes, (link.holder,), None, 0, (1,))
        self.requests.enqueue([transfer], link)
        self.pump(now)
        return transfer

    def pump(self, now: float = 0.0) -> None:
        self.requests.pump(now)
        self.requests.check()

    def answer(self, link: Link, keys: int, nbytes: int, now: float) -> None:
        """All of a link's oldest request is there."""
        self.requests.answered(self.open(link), keys, nbytes, now)
        self.pump(now)

    def open(self, link: Link) -> Request:
        return self.requests.open[next(iter(link.requests))]


# --- how much is asked for ---------------------------------------------------------------------------------


def test_of_a_value_that_is_partly_here_the_rest_counts_as_backlog() -> None:
    bench = Bench()
    link = bench.link(PEER)
    transfer = Transfer("k", 1, 100, ("w-1",), None, 0, (1,))
    transfer.total, transfer.next = 200, 60
    bench.requests.enqueue([transfer], link)
    assert link.backlog == 140


def test_what_was_asked_for_is_no_backlog_any_more() -> None:
    bench = Bench()
    link = bench.link(PEER)
    transfer = bench.ask(link, 10 * MIB)
    assert 0 < transfer.next < 10 * MIB and link.backlog == 10 * MIB - transfer.next


def test_a_link_that_has_to_wait_for_others_gets_its_turn() -> None:
    bench = Bench()
    links = [bench.link(PEER, number) for number in range(ACTIVE_LINKS + 2)]
    for link in links:
        bench.ask(link, 100)
    assert [link for link in links if not link.requests] == links[ACTIVE_LINKS:]
    bench.answer(links[0], 1, 100, 0.001)
    assert [link for link in links if not link.requests] == [links[0], links[-1]]


@pytest.mark.parametrize("path", [RELAY, PEER])
def test_all_that_is_relayed_shares_a_window_and_peer_paths_do_not(path: str) -> None:
    bench = Bench()
    for number in range(6):
        bench.ask(bench.link(path, number), MIB)
    assert (bench.requests.inflight > RELAY_WINDOW) == (path == PEER)


def test_a_fast_peer_path_brings_values_in_one_piece_that_are_larger_than_the_window_of_the_relay() -> None:
    bench = Bench()
    link = bench.link(PEER)
    link.bandwidth = 1e9
    bench.ask(link, 4 * MIB)
    assert [len(get.rows) for get in bench.sent] == [1] and bench.requests.inflight > 4 * MIB > RELAY_WINDOW


# --- when it has to be looked after ------------------------------------------------------------------------


def test_the_link_that_has_waited_for_longest_says_when_to_look() -> None:
    bench = Bench()
    first, second = bench.link(PEER, 1), bench.link(PEER, 2)
    bench.ask(first, 100, 10.0)
    due = bench.requests.due
    assert due == 10.0 + first.stall
    bench.ask(second, 100, 10.5)
    assert bench.requests.due == due
    for link in (first, second):
        bench.answer(link, 1, 100, 11.0)
    bench.ask(second, 100, 20.0)
    assert bench.requests.due == 20.0 + second.stall  # what was under way before is over


def test_a_slow_relay_is_given_the_time_that_it_takes() -> None:
    bench = Bench()
    link = bench.link(RELAY)
    bench.ask(link, MIB)
    assert bench.requests.patience(link) == link.patience == REQUEST_TIMEOUT
    bench.links.relay.bandwidth = bench.requests.relayed / 10
    assert bench.requests.patience(link) == REQUEST_TIMEOUT + 2 * 10


# --- what answers tell -------------------------------------------------------------------------------------


def test_the_relay_is_measured_from_when_it_begins_to_work() -> None:
    bench = Bench()
    relay = bench.links.relay
    bench.ask(bench.link(RELAY, 1), MIB, 100.0)
    assert relay.mark == 100.0
    bench.ask(bench.link(RELAY, 2), MIB, 101.0)
    assert relay.mark == 100.0


@pytest.mark.parametrize("path, pending", [(RELAY, 0), (PEER, 5)])
def test_small_answers_say_nothing_about_the_bandwidth_of_the_way_that_they_came(path: str, pending: int) -> None:
    bench = Bench()
    link = bench.link(path)
    bench.ask(link, 100)
    bench.links.relay.pending = 5
    bench.answer(link, 1, 100, 0.001)
    assert bench.links.relay.pending == pending


@pytest.mark.parametrize("keys, rough", [(1, False), (100, True)])
def test_values_of_middling_size_tell_the_bandwidth_roughly(keys: int, rough: bool) -> None:
    bench = Bench()
    link = bench.link(PEER)
    bench.ask(link, MIB)
    bench.answer(link, keys, MIB, 0.1)
    assert link.bandwidth and link.rough is rough
