"""What ordinary programs and broken peers send must not end the broker, nor make it spin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cluster_functions as functions
import msgpack
import pytest
import zmq
from cluster_checks import still_works

from zdist import Client
from zdist.protocol.messages import PROTOCOL
from zdist.transport.security import find_token


def fails_at_length() -> None:
    raise ValueError("x" * 200_000)


def test_a_large_error_with_thousands_of_dependents(client: Client) -> None:
    failed = client.submit(fails_at_length, pure=False)
    rest = client.map(functions.add, [failed] * 3000, range(3000), pure=False)
    with pytest.raises(ValueError, match="xxx"):
        client.gather(rest)


def test_a_task_with_thousands_of_small_inputs(client: Client) -> None:
    parts = client.map(functions.inc, range(5000), pure=False)
    totals = [client.submit(sum, parts, i, pure=False) for i in range(8)]
    assert client.gather(totals) == [sum(range(1, 5001)) + i for i in range(8)]


@pytest.mark.parametrize(
    ("what", "args"),
    [("wait_for_workers", []), ("log_subscribe", []), ("scale", [float("inf")]), ("who_has", 5), ("has_what", [["x"]])],
)
def test_nonsense_questions_are_answered(client: Client, what: str, args: object) -> None:
    with pytest.raises(Exception, match=what):
        client._now(client._asking(what, args, 10.0))


def test_a_peer_that_asks_and_vanishes_leaves_no_spinning_broker(client: Client) -> None:
    """Its last packet awaits an acknowledgement that can never be delivered."""
    address = client.address
    hello = [0, "client", find_token(address, None) or str(client._token), 0, 0, {"name": "ghost"}]
    context = zmq.Context()
    for number in range(3):
        sock = context.socket(zmq.DEALER)
        sock.connect(address)
        session = f"c-ghost{number:010d}"
        sock.send(msgpack.packb([PROTOCOL, session, 0, 0, [hello]]))
        assert sock.poll(10_000)
        sock.send(msgpack.packb([PROTOCOL, session, 1, 0, [[9, [["nothing", 1]]]]]))
        sock.close(200)
    context.term()
    still_works(client)


def test_an_open_token_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret\n")
    path.chmod(0o644)
    with pytest.raises(PermissionError, match=f"chmod 600 {path}"):
        find_token("tcp://127.0.0.1:1", path)


def test_another_process_of_the_user_connects_by_address_alone(client: Client) -> None:
    program = f"from zdist import Client\nwith Client({client.address!r}) as c: print(c.submit(abs, -7).result(20))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.stdout.strip() == "7", done.stderr
