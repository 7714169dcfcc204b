"""Addresses as people write them."""

from __future__ import annotations

import pytest

from zdist.errors import AddressRefused, BrokerUnreachable
from zdist.transport.address import broker_address, check_host
from zdist.transport.security import check_bind


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:7077", "tcp://127.0.0.1:7077"),
        (" tcp://localhost:1 ", "tcp://localhost:1"),
        ("node-1.example.org:7077", "tcp://node-1.example.org:7077"),
        ("tcp://[::1]:7077", "tcp://[::1]:7077"),
        ("tcp://[fe80::1%eth0]:7077", "tcp://[fe80::1%eth0]:7077"),
        ("ipc:///tmp/some where/broker", "ipc:///tmp/some where/broker"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert broker_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["7181", ":7181", "localhost", "tcp://localhost", "tcp://localhost:", "tcp://:7181", "tcp://h:70000", "tcp://h:0",
     "tcp://h:x", "tcp://*:1", "http://h:1", "ipc://", "", " ", "tcp://h:1/", "tcp://h 1:1", "::1:7077", 7181, None],
)  # fmt: skip
def test_malformed_addresses_say_what_an_address_looks_like(text: object) -> None:
    with pytest.raises(
        ValueError, match=r"is no broker address; write tcp://HOST:PORT, for instance tcp://127\.0\.0\.1:7077"
    ):
        broker_address(text)


def test_hosts() -> None:
    check_host("tcp://127.0.0.1:1")
    check_host("tcp://[::1]:1")
    check_host("tcp://localhost:1")
    check_host("ipc:///nowhere/at/all")
    with pytest.raises(BrokerUnreachable, match=r"the host name 'x\.invalid' of tcp://x\.invalid:1 cannot be resolved"):
        check_host("tcp://x.invalid:1")
    with pytest.raises(BrokerUnreachable, match="cannot be resolved"):
        check_host(f"tcp://{'x' * 70}.invalid:1")


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:0", "tcp://[::1]:65535", "tcp://127.0.0.1:*", "ipc:///tmp/a:99999"])
def test_where_to_listen(text: str) -> None:
    check_bind(text, insecure=False)


@pytest.mark.parametrize(
    "text", ["tcp://127.0.0.1:65536", "tcp://127.0.0.1:-1", "tcp://127.0.0.1", "tcp://h:x", "ipc://"]
)
def test_where_nothing_can_listen(text: str) -> None:
    with pytest.raises(AddressRefused, match=r"is no address to listen at; write tcp://HOST:PORT, the port at most"):
        check_bind(text, insecure=True)
