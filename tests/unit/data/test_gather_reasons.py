"""Why a batch goes the way it goes, in words for people; ``gather_report`` shows them."""

from __future__ import annotations

import pytest

from zdist.core.gather import plan_gather
from zdist.core.links import DEAF, PEER, RELAY, SHM, Host, Links
from zdist.limits import MIB


def one_worker(state: str = "unknown", host: str = "there") -> Links:
    links = Links(Host("here"))
    links.learn([("w-1", "tcp://one:1", "one", host, "n-1")])
    link = links.peers["w-1"]
    if state == "open":
        link.opened()
    elif state == "closed":
        link.closed("no answer from tcp://one:1 within 500 ms", 0.0, DEAF)
    return links


def workers(count: int, relay: float = 0.0, **peers: float) -> Links:
    """Open peer paths to so many workers; bytes per second of the broker, and of some of these."""
    links = Links(Host("here"))
    links.learn([(f"w-{n}", f"tcp://w-{n}:1", f"w-{n}", "there", "n-1") for n in range(count)])
    for session, link in links.peers.items():
        link.opened()
        link.bandwidth = peers.get(session.replace("-", ""), 0.0)
        links.by_relay(session).bandwidth = 1e9 if relay else 0.0
    links.relay.bandwidth = relay
    return links


@pytest.mark.parametrize(
    ("state", "direct", "paths", "holder", "path", "reason"),
    [
        ("open", None, (SHM, PEER, RELAY), "w-1", PEER, "peer path open"),
        ("open", True, (SHM, PEER, RELAY), "w-1", PEER, "direct=True"),
        ("open", False, (SHM, PEER, RELAY), "w-1", RELAY, "direct=False"),
        ("open", None, (SHM, RELAY), "w-1", RELAY, "gather_paths leaves the peer path out"),
        ("unknown", None, (SHM, PEER, RELAY), "w-1", RELAY, "peer path not probed yet"),
        ("closed", None, (SHM, PEER, RELAY), "w-1", RELAY,
         "peer path closed: no answer from tcp://one:1 within 500 ms"),
        ("open", None, (SHM, PEER, RELAY), "c-1", RELAY, "a client holds it, and has no socket of its own"),
        ("open", None, (SHM, PEER, RELAY), "w-9", RELAY, "no peer address known"),
    ],
)  # fmt: skip
def test_reasons(state: str, direct: bool | None, paths: tuple[str, ...], holder: str, path: str, reason: str) -> None:
    (batch,) = plan_gather([("k", 1000, (holder,))], one_worker(state), direct, paths=paths)
    assert (batch.path, batch.reason) == (path, reason)


@pytest.mark.parametrize(("direct", "reason"), [(None, "peer path open"), (True, "direct=True")])
def test_reasons_where_several_hold_it(direct: bool | None, reason: str) -> None:
    links = workers(2)
    plan = plan_gather([(key, MIB, ("w-0", "w-1")) for key in "ab"], links, direct)
    assert {(batch.path, batch.reason) for batch in plan} == {(PEER, reason)}


def test_the_reason_for_shared_memory() -> None:
    (batch,) = plan_gather([("k", 4 * MIB, ("w-1",))], one_worker("open", host="here"))
    assert (batch.path, batch.reason) == (SHM, "same host")


def test_the_reason_for_a_relay_that_is_faster() -> None:
    links = one_worker("open")
    links.peers["w-1"].bandwidth = 1e5
    links.by_relay("w-1").bandwidth = links.relay.bandwidth = 1e9
    (batch,) = plan_gather([("k", 64 * MIB, ("w-1",))], links)
    assert (batch.path, batch.reason) == (RELAY, "relay faster")


@pytest.mark.parametrize(("address", "host"), [("ipc:///run/one", "there"), ("tcp://127.0.0.1:1", "here")])
def test_within_a_host_a_peer_path_that_was_slow_is_not_left_for_the_relay(address: str, host: str) -> None:
    links = Links(Host("here"))
    links.learn([("w-1", address, "one", host, "n-1")])
    links.peers["w-1"].opened()
    links.peers["w-1"].bandwidth = 1e5
    links.by_relay("w-1").bandwidth = links.relay.bandwidth = 5e9
    (batch,) = plan_gather([("k", 64 * MIB, ("w-1",))], links, paths=(PEER, RELAY))
    assert (batch.path, batch.reason) == (PEER, "peer path open")


def test_no_peer_path_is_so_fast_that_shared_memory_is_left_for_it() -> None:
    links = one_worker("open", host="here")
    links.peers["w-1"].bandwidth = 10e9
    (batch,) = plan_gather([("k", 64 * MIB, ("w-1",))], links)
    assert (batch.path, batch.reason) == (SHM, "same host")


def test_of_several_workers_those_that_are_slow_are_relayed() -> None:
    links = workers(2, relay=1e9, w0=1e5, w1=5e9)
    plan = plan_gather([(f"k{n}", 64 * MIB, (f"w-{n}",)) for n in range(2)], links)
    assert {batch.holder: (batch.path, batch.reason) for batch in plan} == {
        "w-0": (RELAY, "relay faster"),
        "w-1": (PEER, "peer path open"),
    }
    links.peers["w-0"].state = "unknown"
    plan = plan_gather([(f"k{n}", 64 * MIB, (f"w-{n}",)) for n in range(2)], links)
    assert [batch.reason for batch in plan if batch.holder == "w-0"] == ["peer path not probed yet"]


def test_what_is_relayed_takes_as_long_as_the_broker_needs_for_all_of_that() -> None:
    links = workers(3, relay=64 * MIB, w0=64 * MIB)
    links.peers["w-1"].state = links.peers["w-2"].state = "unknown"
    plan = plan_gather([(f"k{n}", 64 * MIB, (f"w-{n}",)) for n in range(3)], links)
    took = {batch.holder: batch.seconds - links.find(batch.path, batch.holder).delay for batch in plan}
    both = 2 * 64 * MIB / links.relay.speed
    assert took == pytest.approx({"w-0": 1.0, "w-1": both, "w-2": both}, rel=1e-3)
    assert [batch.path for batch in plan if batch.holder == "w-0"] == [PEER]


def test_no_more_is_relayed_than_makes_the_whole_soonest() -> None:
    links = workers(4, relay=20e6, w0=10e6, w1=10e6, w2=10e6, w3=10e6)
    sizes = {"w-0": 40_000_000, "w-1": 10_000_000, "w-2": 10_000_000, "w-3": 10_000_000}
    plan = plan_gather([(holder, nbytes, (holder,)) for holder, nbytes in sizes.items()], links)
    assert {batch.holder: batch.path for batch in plan} == {"w-0": RELAY, "w-1": PEER, "w-2": PEER, "w-3": PEER}


def test_holders_may_be_told_in_a_list() -> None:
    plan = plan_gather([(key, MIB, ["w-0"]) for key in "ab"], workers(1))
    assert [(batch.holder, batch.keys) for batch in plan] == [("w-0", ["a", "b"])]
