"""Strangers and token holders with raw sockets against a real broker: others are served, and memory stays bounded."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cluster_functions as functions
import numpy as np
import pytest
import zmq
from cluster_checks import eventually, still_works

from zdist import Client, LocalCluster, limits
from zdist.core.session import base_of
from zdist.protocol.codec import decode, encode
from zdist.protocol.messages import (
    Ask,
    BulkHello,
    Define,
    Get,
    Hello,
    Message,
    Packet,
    Ping,
    Probe,
    Refused,
    Rejected,
    Submit,
    Welcome,
    function_digest,
)
from zdist_broker.server import BrokerServer


class Raw:
    """A DEALER that speaks for a session, or for nobody."""

    def __init__(self, context: zmq.Context[Any], address: str, session: str, token: str = "") -> None:
        self.session = session
        self.token = token
        self.seq = 0
        self.sock = context.socket(zmq.DEALER)
        self.sock.linger = 0
        self.sock.rcvhwm = 1
        self.sock.setsockopt(zmq.RCVBUF, 4096)
        self.sock.connect(address)

    def loose(self, *messages: Message, session: str = "") -> None:
        self.sock.send_multipart([bytes(f) for f in encode(Packet(session or self.session, 0, 0, messages))])

    def say(self, *messages: Message) -> None:
        self.seq += 1
        self.sock.send_multipart([bytes(f) for f in encode(Packet(self.session, self.seq, 0, messages))])

    def hello(self, session: str = "") -> None:
        self.loose(Hello("client", self.token, 0, 0, {"name": "raw"}), session=session)

    def hear(self, kind: type[Message]) -> Any:
        """The next message of a type; others are passed over."""
        while self.sock.poll(10_000):
            for message in decode(self.sock.recv_multipart()).messages:
                if type(message) is Welcome:
                    self.seq = base_of(message.epoch, message.info["life"])
                if type(message) is kind:
                    return message
        raise AssertionError(f"no {kind.__name__} came")


@pytest.fixture
def raw() -> Iterator[Callable[..., Raw]]:
    context: zmq.Context[Any] = zmq.Context()
    made: list[Raw] = []

    def make(address: str, session: str, token: str = "") -> Raw:
        made.append(Raw(context, address, session, token))
        return made[-1]

    yield make
    for peer in made:
        peer.sock.close(0)
    context.term()


@pytest.fixture
def lone_broker(nothing_left: object) -> Iterator[BrokerServer]:
    server = BrokerServer("tcp://127.0.0.1:0", token="lone")
    server.start()
    yield server
    server.stop()


def test_strangers_with_large_packets_are_garbage_and_nobody_else_notices(
    client: Client, raw: Callable[..., Raw]
) -> None:
    packet = [bytes(limits.STRANGER_HEADER + 1)]
    multipart = [b"x"] * 50
    worker = next(iter(client.scheduler_info()["workers"]))
    for address in (client.address, worker):
        for frames in (packet, multipart, [os.urandom(100)], [b"\x91" * 60_000]):
            stranger = raw(address, "c-stranger")
            for _ in range(5):
                stranger.sock.send_multipart(frames)
    still_works(client)
    answered = raw(client.address, "c-stranger-2")
    answered.sock.send_multipart(multipart)
    answered.loose(Ping())
    assert answered.sock.poll(10_000)  # "hello?": the broker listens on


def test_a_frame_too_large_for_a_worker_s_socket_closes_its_connection_only(
    client: Client, raw: Callable[..., Raw]
) -> None:
    worker = next(iter(client.scheduler_info()["workers"]))
    token = str(client._token)
    for _ in range(3):
        stranger = raw(worker, "c-stranger", token)
        stranger.sock.send(bytes(limits.MAX_REQUEST + 1))
    probe = raw(worker, "c-stranger", token)
    probe.loose(Probe(1, token))
    assert probe.sock.poll(10_000)
    arrays = client.map(functions.filled, range(4), [100_000] * 4, pure=False)
    assert [int(a[0]) for a in client.gather(arrays, direct=True)] == list(range(4))


def test_a_connection_that_speaks_for_two_sessions_is_refused(client: Client, raw: Callable[..., Raw]) -> None:
    peer = raw(client.address, "c-first", str(client._token))
    peer.hello()
    assert peer.hear(Welcome).fresh
    peer.hello("c-second")
    refused = peer.hear(Refused)
    assert refused.code == "name" and "c-first" in refused.text


def test_a_poisoned_definition_reaches_nobody(client: Client, raw: Callable[..., Raw]) -> None:
    from zdist.serialize import dumps_function

    blob = dumps_function(functions.inc)
    peer = raw(client.address, "c-poison", str(client._token))
    peer.hello()
    peer.hear(Welcome)
    peer.say(Define(blob.digest, "inc", b"something else"))
    peer.say(Submit(blob.digest, False, 1, (), (("poisoned", b"", ()),)))
    (row,) = peer.hear(Rejected).rows
    assert row[0] == "poisoned" and "not those that its digest names" in row[1]
    assert client.submit(functions.inc, 1, pure=False).result(timeout=20) == 2


def test_a_token_holder_that_reads_nothing_is_given_up(
    lone_broker: BrokerServer, raw: Callable[..., Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zdist.limits.KEPT_BYTES", 3_000_000)
    monkeypatch.setattr("zdist.limits.CROWDED_BYTES", 1_000_000)
    endpoint = lone_broker.endpoint
    other = raw(lone_broker.address, "c-other", "lone")
    other.hello()
    other.hear(Welcome)
    greedy = raw(lone_broker.address, "c-greedy", "lone")
    greedy.hello()
    eventually(lambda: "c-greedy" in endpoint.peers, "the session")
    greedy.seq = endpoint.peers["c-greedy"].session.base  # its welcome is not read
    keys = tuple(f"key-{n}" for n in range(2000))
    for n in range(100):
        greedy.say(Ask(n, "who_has", keys))
    eventually(lambda: "c-greedy" not in endpoint.peers and endpoint.shunned, "an end of patience")  # by another thread
    assert set(endpoint.peers) == {"c-other"} and len(endpoint.shunned) == 1
    other.say(Ask(1, "fence", None))
    eventually(lambda: other.sock.poll(0), "service for others")


def test_requests_that_nobody_reads_the_answers_of_leave_the_relay_to_others(
    start: Callable[..., LocalCluster], raw: Callable[..., Raw]
) -> None:
    with Client(start(n_workers=1, protocol="tcp"), set_as_default=False) as client:
        client.wait_for_workers(1)
        token = str(client._token)
        peer = raw(client.address, "c-greedy", token)
        peer.hello()
        bulk = raw(peer.hear(Welcome).info["bulk"], "c-greedy", token)
        bulk.loose(BulkHello(token))
        rows = tuple(("k" * 1000 + str(n), 0, 1) for n in range(limits.CHUNK_ROWS))
        stop = threading.Event()

        def flood() -> None:
            for n in range(100_000):
                if stop.is_set():
                    return
                try:
                    message = Get(n, "", "w-nobody", "c-greedy", rows)
                    bulk.sock.send(encode(Packet("c-greedy", 0, 0, (message,) * 8))[0], zmq.NOBLOCK)
                except zmq.Again:
                    stop.wait(0.01)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            arrays = client.map(np.ones, [200_000] * 8, pure=False)
            assert [a.sum() for a in client.gather(arrays, direct=False, timeout=60)] == [200_000] * 8
        finally:
            stop.set()
            thread.join()


def test_the_digest_of_a_function_is_what_the_client_says_it_is() -> None:
    from zdist.serialize import dumps_function

    blob = dumps_function(functions.inc)
    assert function_digest(blob.data) == blob.digest
