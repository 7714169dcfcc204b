"""What zdist doctor prints, and that it has advice for everything that can be wrong."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from zdist.cli import doctor
from zdist.client import diagnosis
from zdist.client.advice import ADVICE, advice
from zdist.client.diagnosis import BrokerState, Diagnosis, PathState, Problem, WorkerState
from zdist.core import links
from zdist.transport import reach


def printed(found: Diagnosis) -> str:
    out = io.StringIO()
    doctor.show(found, Console(file=out, width=160))
    return out.getvalue()


def worker(name: str, *, peer: PathState, shm: PathState | None = None) -> WorkerState:
    shm = shm or PathState("", text="another host")
    return WorkerState(f"w-{name}", name, f"tcp://{name}:4000", False, shm, peer, PathState("open", rate=2e8))


def healthy() -> Diagnosis:
    peer = PathState("open", round_trip=0.00042, rate=1.5e9)
    return Diagnosis(BrokerState("tcp://b:7077", True, "tcp://b:7078", 0.0003, 8.125e8), [worker("one", peer=peer)])


def test_the_code_for_the_shell() -> None:
    assert healthy().code == 0
    found = healthy()
    found.complain("relay", "relay-closed", "it is")
    assert found.code == 1
    assert Diagnosis(BrokerState("tcp://b:7077")).code == 2


def test_all_is_well() -> None:
    lines = printed(healthy()).splitlines()
    assert lines[0] == "broker at tcp://b:7077: reachable, round trip 0.30 ms, relay 812 MB/s"
    row = [cell.strip() for cell in next(line for line in lines if "tcp://one" in line).strip("│").split("│")]
    assert row == ["one", "tcp://one:4000", "another host", "open", "0.42", "1,500", "200"]
    assert lines[-1] == "All is well."


def test_problems_of_a_kind_are_told_once() -> None:
    found = healthy()
    for number in range(8):
        found.workers.append(worker(f"n{number}", peer=PathState("closed", "peer-dropped", "dropped")))
        found.complain(f"n{number}", "peer-dropped", f"n{number}:4000 does not answer")
    found.complain("relay", "relay-closed", "10.0.0.1:7078 refuses [bold] the connection")
    text = printed(found)
    assert "n0, n1, n2, n3, n4 and 3 more: n0:4000 does not answer" in text
    assert text.count("--data-ports LO-HI") == 1 and "and 7 more of this kind" in text
    assert "relay: 10.0.0.1:7078 refuses [bold] the connection" in text  # no markup
    assert "All is well" not in text and "data goes through the broker" in text


def test_no_broker() -> None:
    found = Diagnosis(
        BrokerState("tcp://b:7077"), [], [Problem("broker", "broker-refused", "b:7077 refuses", "Do it.")]
    )
    assert printed(found).splitlines() == [
        "broker at tcp://b:7077: NOT REACHABLE",
        "broker: b:7077 refuses",
        "  → Do it.",
    ]


def test_data_for_programs() -> None:
    data = doctor.as_data(healthy())
    assert data["broker"] == {
        "address": "tcp://b:7077",
        "reachable": True,
        "relay_address": "tcp://b:7078",
        "round_trip_ms": 0.3,
        "relay_mb_per_second": 812.5,
    }
    (row,) = data["workers"]
    assert row["peer"] == {"state": "open", "fault": "", "why": "", "round_trip_ms": 0.42, "mb_per_second": 1500.0}
    assert row["shm"]["state"] == "unknown" and row["shm"]["why"] == "another host"
    assert (data["ok"], data["code"]) == (True, 0)


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0, "0.00"), (0.00123, "1.23"), (0.0456, "45.6"), (12.3, "12,300")]
)
def test_numbers(value: float | None, text: str) -> None:
    assert doctor.number(value, 1e3) == text


def test_an_address_that_is_none() -> None:
    done = CliRunner().invoke(doctor.command, ["nonsense"])
    assert done.exit_code == 2 and "nonsense" in done.output and "Traceback" not in done.output


def test_there_is_advice_for_every_fault_and_no_more() -> None:
    states = {getattr(reach, name) for name in reach.__all__ if name.isupper()} - {reach.LISTENS}
    assert len(states) == 8
    faults = {f"{who}-{state}" for who in ("broker", "peer") for state in states}
    faults |= {f"peer-{fault}" for fault in (links.SILENT, links.STRANGER, links.TOKEN, links.DEAF)}
    source = Path(diagnosis.__file__).read_text()
    words = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    literal = re.compile(r"(?:broker|peer|relay|token|no)-[a-z]+|version")
    faults |= {word for word in words if isinstance(word, str) and literal.fullmatch(word)}
    faults.add(f"{links.RELAY}-deaf")
    assert faults == set(ADVICE)
    assert all(text.endswith(".") or text.endswith(").") for text in ADVICE.values())
    assert advice("something else") == ""
