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
    links = Links(Host("here"))
    links.learn([(w, f"tcp://{w}:1", w, "there", "n-1") for w in ("w-1", "w-2")])
    for link in links.peers.values():
        link.opened()
    plan = plan_gather([(key, MIB, ("w-1", "w-2")) for key in "ab"], links, direct)
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
