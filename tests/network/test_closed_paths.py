"""A path that is closed costs no waiting; one that is cut costs a moment, and no values."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import pytest
from lab import RemoteError
from topologies import CUT_AFTER, NEVER, RELAY_CUT, Stage

from zdist.limits import PROBE_TIMEOUT

COUNT = 24
MEDIUM = (COUNT, 4 << 20)
FIRST = 0.3  # seconds until a first value, whatever becomes of the peer path
SLACK = 0.25  # for a client's answer to what has been decided


@pytest.fixture(scope="module", params=["blackhole", "one-way", "nat-workers", "wrong-unroutable"])
def silent(request: pytest.FixtureRequest, staged: Callable[..., Stage]) -> Iterator[Stage]:
    stage = staged(request.param)
    stage.prepare((50, 100), (4, 1 << 20))
    yield stage


def test_the_first_value_does_not_wait_for_a_verdict(silent: Stage) -> None:
    found = [silent.fresh(None, first=True) for _ in range(3)]
    assert [got["right"] for got in found] == [54] * 3
    assert statistics.median(got["seconds"] for got in found) < FIRST
    alone = [silent.fresh(None, count=1) for _ in range(3)]
    assert [got["right"] for got in alone] == [1] * 3
    assert statistics.median(got["seconds"] for got in alone) < FIRST


def test_the_verdict_comes_in_time(silent: Stage) -> None:
    found = [silent.fresh(True) for _ in range(3)]
    assert [got["right"] for got in found] == [54] * 3
    assert statistics.median(got["seconds"] for got in found) < PROBE_TIMEOUT + SLACK
    assert all("no answer" in warning and "500 ms" in warning for got in found for warning in got["warnings"])
    assert [len(got["warnings"]) for got in found] == [2] * 3


def test_no_relay_for_those_who_will_have_none(silent: Stage) -> None:
    with pytest.raises(RemoteError, match="PeerUnreachable"):
        silent.fresh(True, fallback="error")


@pytest.fixture(scope="module", params=["cut", "cut-reset"])
def severed(request: pytest.FixtureRequest, staged: Callable[..., Stage]) -> Iterator[Stage]:
    stage = staged(request.param)
    yield stage


@pytest.mark.parametrize("direct", [None, True])
def test_a_peer_path_that_is_cut_in_the_middle(severed: Stage, direct: bool | None) -> None:
    severed.rules(NEVER)
    severed.connect()
    severed.prepare(MEDIUM)
    for mode in (True, False, True):  # every path is known, and the peer path to be good
        assert severed.gather(mode)["right"] == COUNT
    after = CUT_AFTER if direct else 1 << 20  # how much goes which way is gather's choice
    severed.rules(after)
    got = severed.gather(direct)
    assert got["right"] == COUNT
    assert severed.lab.passed("cut") >= after
    assert "relay" in {batch[0] for batch in got["report"]}
    closed = severed.gather(None)
    assert closed["right"] == COUNT
    assert {batch[0] for batch in closed["report"]} == {"relay"}


def test_a_relay_that_is_cut_in_the_middle(staged: Callable[..., Stage]) -> None:
    stage = staged(RELAY_CUT)
    stage.prepare(MEDIUM)
    stage.rules(1 << 20)
    got = stage.fresh(None)  # it begins by relay, as it knows of no other way yet
    assert got["right"] == COUNT
    assert stage.lab.passed("cut") >= 1 << 20
    assert "peer" in {batch[0] for batch in got["report"]}


def test_a_relay_that_is_cut_and_comes_back(staged: Callable[..., Stage]) -> None:
    stage = staged(RELAY_CUT)
    stage.prepare(MEDIUM)
    assert stage.gather(False)["right"] == COUNT
    stage.rules(CUT_AFTER)
    with pytest.raises(RemoteError, match="TimeoutError"):
        stage.gather(False, timeout=1.0)  # no other way is allowed
    assert stage.gather(True)["right"] == COUNT
    stage.rules(NEVER)
    assert stage.gather(False)["right"] == COUNT


def test_dev_shm_that_several_hosts_see(staged: Callable[..., Stage]) -> None:
    stage = staged("open", own_shm=False)
    stage.prepare((50, 100), (8, 4 << 20))
    for options in ({}, {"gather_paths": ("peer", "relay")}):
        stage.connect(**options)
        stage.prepare((50, 100), (8, 4 << 20))
        for direct in (None, True, False):
            got = stage.gather(direct)
            assert got["right"] == 58
            assert {batch[0] for batch in got["report"]} <= {"peer", "relay"}
