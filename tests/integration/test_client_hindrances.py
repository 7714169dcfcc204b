"""What a program is told when its results do not come: nobody to do the work, nobody there, a wrong address."""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections.abc import Callable, Iterator

import cluster_functions as functions
import pytest
from cluster_checks import WITHIN

from zdist import Client, LocalCluster, as_completed, log, wait
from zdist.errors import BrokerUnreachable, CancelledError


@pytest.fixture
def shown() -> Iterator[io.StringIO]:
    """What is logged."""
    stream = io.StringIO()
    before = log.settings()
    log.configure("console", "warning", stream=stream)
    yield stream
    log.configure(*before)


@pytest.fixture
def idle(start: Callable[..., LocalCluster]) -> Iterator[Client]:
    """A client of a cluster without workers."""
    with Client(start(n_workers=0), set_as_default=False) as client:
        yield client


NONE = "1 task waits: there are no workers; start some: zdist worker ipc://"


def test_without_workers_every_way_to_wait_says_so(idle: Client, shown: io.StringIO) -> None:
    future = idle.submit(functions.inc, 1)
    with pytest.raises(TimeoutError, match=NONE):
        future.result(4.0)
    with pytest.raises(TimeoutError, match=NONE):
        idle.gather([future], timeout=0.1)
    with pytest.raises(TimeoutError, match=NONE):
        wait([future], timeout=0.1)
    with pytest.raises(TimeoutError, match=NONE):
        next(as_completed([future], timeout=0.1))
    assert shown.getvalue().count("tasks.waiting") == 1


def test_a_gather_without_a_timeout_waits_on_and_has_said_why(idle: Client, shown: io.StringIO) -> None:
    future = idle.submit(functions.inc, 1)
    end = time.monotonic() + WITHIN
    assert idle.block(lambda: "there are no workers" in shown.getvalue(), WITHIN)
    assert time.monotonic() < end
    idle.scale(1)
    assert idle.gather(future) == 2
    assert idle.hindrance() == ""


def test_a_restriction_that_no_worker_meets_is_named(client: Client, shown: io.StringIO) -> None:
    future = client.submit(functions.inc, 1, resources={"gpu": 2})
    with pytest.raises(TimeoutError, match=r"no worker has the resources gpu=2; there are local-0, local-1"):
        future.result(4.0)
    future.cancel()


# --- nobody there, nowhere -------------------------------------------------------------------------------


def test_nobody_there() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
    with pytest.raises(BrokerUnreachable, match=rf"no broker answered at {address} within 0.3 s; check that"):
        Client(address, timeout=0.3)


HOST = "no-such-host.invalid"
UNRESOLVED = rf"the host name '{HOST}' of tcp://{HOST}:7077 cannot be resolved"


def test_a_host_that_cannot_be_resolved_is_told_at_once() -> None:
    with pytest.raises(BrokerUnreachable, match=UNRESOLVED):
        Client(f"tcp://{HOST}:7077", timeout=WITHIN)


def test_the_same_with_an_asynchronous_client() -> None:
    async def main() -> None:
        await Client(f"tcp://{HOST}:7077", timeout=WITHIN, asynchronous=True)

    with pytest.raises(BrokerUnreachable, match=UNRESOLVED):
        asyncio.run(main())


@pytest.mark.parametrize(
    "address",
    ["7181", ":7181", "localhost", "tcp://localhost", "tcp://localhost:", "tcp://:7181", "tcp://h:70000", "tcp://h:0",
     "tcp://h:x", "http://h:1", "ipc://", "", "tcp://h:1/", "tcp://h 1:1"],
)  # fmt: skip
def test_malformed_addresses_say_what_an_address_looks_like(address: str) -> None:
    with pytest.raises(ValueError, match=r"tcp://HOST:PORT.*tcp://127\.0\.0\.1:7077.*ipc:///PATH"):
        Client(address)


def test_an_address_may_lack_its_scheme(start: Callable[..., LocalCluster]) -> None:
    cluster = start(n_workers=0, protocol="tcp")
    with Client(cluster.broker_address.removeprefix("tcp://"), set_as_default=False) as client:
        assert client.address == cluster.broker_address


# --- cancelled parents ----------------------------------------------------------------------------------


def test_a_child_of_a_cancelled_parent_says_who_cancelled_it(client: Client) -> None:
    parent = client.submit(functions.inc, 1, key="parent-of-the-cancelled", workers=["nowhere"])
    child = client.submit(functions.inc, parent, key="child-of-the-cancelled")
    client.cancel(parent)
    late = client.submit(functions.inc, parent, key="late-child")
    for future in (child, late):
        with pytest.raises(CancelledError, match=rf"parent-of-the-cancelled.*cancelled by client {client.name}"):
            future.result(WITHIN)
