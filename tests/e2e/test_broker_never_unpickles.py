"""The broker's process: no pickle machinery of ours in it, and none of its own ever looks a class up."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from canary import MARKS, Canary, CanaryError

from zdist import Client

# The audit hook is in place before anything is imported; what was loaded is written down at the end.
WATCHED = """
import json, sys
found = []
sys.addaudithook(lambda event, args: found.append(repr(args)) if event == "pickle.find_class" else None)
from zdist_broker.__main__ import main
try:
    code = main(["--bind", "tcp://127.0.0.1:0"])
finally:
    with open(sys.argv[1], "w") as file:
        json.dump({"found": found, "modules": sorted(sys.modules)}, file)
sys.exit(code)
"""
DEADLINE = 60.0


def work_with_canaries(client: Client) -> None:
    """Every message field that a user's bytes can travel in carries a canary."""
    size = 100_000  # over every inline limit
    caught = Canary("in a closure")

    def closure(value: Canary) -> Canary:
        assert caught.inside == "in a closure"
        return Canary((value.inside, "result"))

    def fails(value: Canary) -> None:
        raise CanaryError(Canary(value.inside))

    def large(value: Canary) -> Canary:
        return Canary(b"x" * size)

    small = client.map(closure, [Canary(i) for i in range(300)], pure=False)
    assert [c.inside for c in client.gather(small)] == [(i, "result") for i in range(300)]
    nested = client.submit(closure, small[0], pure=False)
    assert nested.result(DEADLINE).inside == ((0, "result"), "result")
    with pytest.raises(CanaryError):
        client.submit(fails, Canary(1), pure=False, retries=1).result(DEADLINE)
    for direct in (True, False):
        kept = client.submit(large, Canary(2), pure=False)
        assert len(client.gather(kept, direct=direct).inside) == size
    scattered = client.scatter(Canary(b"y" * size))
    assert len(client.submit(closure, scattered, pure=False).result(DEADLINE).inside[0]) == size
    assert client.submit(closure, Canary(b"z" * size), pure=False).result(DEADLINE)
    answers = client.run(closure, Canary(3))
    assert [answer.inside for answer in answers.values()] == [(3, "result")] * 2


def test_broker_never_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, marks, facts = tmp_path / "run", tmp_path / "marks", tmp_path / "facts.json"
    runtime.mkdir(mode=0o700)
    marks.touch()
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv(MARKS, str(marks))
    broker = subprocess.Popen([sys.executable, "-c", WATCHED, str(facts)], stdout=subprocess.PIPE, text=True)
    node = None
    try:
        assert broker.stdout is not None and select.select([broker.stdout], [], [], DEADLINE)[0]
        address = broker.stdout.readline().split()[-1]
        node = subprocess.Popen([sys.executable, "-P", "-m", "zdist", "worker", address, "--nworkers", "2"])
        with Client(address, timeout=DEADLINE) as client:
            client.wait_for_workers(2, timeout=DEADLINE)
            work_with_canaries(client)
    finally:
        for process in (node, broker):
            if process is not None:
                process.send_signal(signal.SIGTERM)
                process.wait(DEADLINE)
        assert broker.stdout is not None
        broker.stdout.close()
    told = json.loads(facts.read_text())
    assert told["found"] == []
    loaded = set(told["modules"])
    assert "zdist_broker.machine" in loaded
    assert not {"cloudpickle", "zdist.serialize", "zdist.client", "zdist.worker", "numpy"} & loaded
    sung = {int(line) for line in marks.read_text().split()}
    assert os.getpid() in sung and len(sung) == 3, "the canaries were unpickled by the client and both workers"
    assert broker.pid not in sung
