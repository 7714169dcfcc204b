"""What zdist doctor says of real networks: packets that are dropped, NAT, addresses that are wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from topologies import RELAY_CUT, Stage

Begin = Callable[..., Stage]


def doctor(stage: Stage, *options: str) -> dict[str, Any]:
    """The doctor on the client's host."""
    lab = stage.lab
    command = [sys.executable, "-P", "-m", "zdist", "doctor", lab.address, "--token-file", lab.token_file]
    inside = lab.hosts["client"].inside([*command, "--json", "--timeout", "2", *options], lab.own_shm)
    done = subprocess.run(inside, env=lab.environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == found["code"]
    return found


@pytest.mark.parametrize(
    ("topology", "faults"),
    [
        ("open", {}),
        ("blackhole", {"w1": "peer-dropped", "w2": "peer-dropped"}),
        ("one-way", {"w1": "peer-dropped", "w2": "peer-dropped"}),
        ("refused", {"w1": "peer-refused", "w2": "peer-refused"}),
        ("nat-client", {"w1": "peer-refused", "w2": "peer-refused"}),
        ("nat-workers", {"w1": "peer-dropped", "w2": "peer-dropped"}),
        ("mixed", {"w1": "peer-dropped"}),
        ("wrong-refused", {"w1": "peer-refused", "w2": "peer-refused"}),
        ("wrong-other", {"w1": "peer-stranger"}),
    ],
)
def test_what_is_closed_and_why(staged: Begin, topology: str, faults: dict[str, str]) -> None:
    found = doctor(staged(topology))
    assert {problem["where"]: problem["fault"] for problem in found["problems"]} == faults
    assert found["code"] == (1 if faults else 0)
    assert all("--data-ports" in problem["advice"] for problem in found["problems"])
    assert [worker["name"] for worker in found["workers"]] == ["w1", "w2"]
    for worker in found["workers"]:
        assert worker["peer"]["state"] == ("closed" if worker["name"] in faults else "open")
        assert worker["relay"]["mb_per_second"] > 0
        assert worker["shm"]["state"] == "no" and "another host" in worker["shm"]["why"]


def test_a_relay_that_cannot_be_reached(staged: Begin) -> None:
    stage = staged(RELAY_CUT)
    stage.rules(0)
    found = doctor(stage)
    assert [problem["fault"] for problem in found["problems"]] == ["relay-closed"]
    assert all(worker["peer"]["mb_per_second"] > 0 for worker in found["workers"])


def test_a_broker_behind_a_firewall(staged: Begin) -> None:
    stage = staged("open")
    stage.lab.firewall('iifname "client" oifname "broker" drop')
    found = doctor(stage)
    assert (found["code"], [problem["fault"] for problem in found["problems"]]) == (2, ["broker-dropped"])
    stage.lab.firewall()


def test_slow_links_are_measured_all_the_same(staged: Begin) -> None:
    found = doctor(staged("slow-peer"))
    assert found["code"] == 0
    for worker in found["workers"]:
        assert worker["peer"]["round_trip_ms"] > 10  # 5 ms in each direction
        assert 0.5 < worker["peer"]["mb_per_second"] < 60  # 400 Mbit/s in all; a small load where the machine is busy
        assert worker["relay"]["mb_per_second"] > 0
