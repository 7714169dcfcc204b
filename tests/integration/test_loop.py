"""The driver on real sockets: who holds them, what wakes whom, what Ctrl-C does."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from zdist.core.machine import Route
from zdist.errors import ClusterClosed, ProtocolError
from zdist.protocol.messages import Message, Packet, Ping, Pong
from zdist.transport import sockets
from zdist.transport.loop import Loop

DEADLINE = 10.0


class Machine:
    def __init__(self) -> None:
        self.out: dict[Route, list[Message]] = {}

    def deadline(self) -> float | None:
        return None


class Stub:
    """Endpoint that queues what it is told and remembers what came; answers Ping with Pong if asked to."""

    def __init__(self, *, answer: bool) -> None:
        self.machine = Machine()
        self.commands: list[Any] = []
        self.answer = answer
        self.came: list[tuple[Route, Message]] = []
        self.garbage: list[ProtocolError] = []
        self.lost: list[Route] = []

    def receive(self, route: Route, packet: Packet, now: float) -> None:
        for message in packet.messages:
            self.came.append((route, message))
            if self.answer:
                self.machine.out.setdefault(route, []).append(Pong())

    def garbled(self, route: Route, error: ProtocolError, now: float) -> None:
        self.garbage.append(error)

    def admits(self, route: Route, frames: int, nbytes: int) -> bool:
        return True

    def undelivered(self, route: Route, now: float) -> None:
        self.lost.append(route)

    def turn(self, now: float) -> None: ...

    def flush(self, now: float) -> list[tuple[Route, Packet]]:
        out, self.machine.out = self.machine.out, {}
        return [(route, Packet("c-1", 0, 0, tuple(messages))) for route, messages in out.items()]

    def deadline(self) -> float:
        return float("inf")

    def say(self) -> None:
        self.machine.out.setdefault(Route("control"), []).append(Ping())


@contextlib.contextmanager
def pair(*, background: bool = True) -> Iterator[tuple[Loop, Stub, Loop, Stub]]:
    """A client loop that is connected to a server loop running in a thread."""
    server_stub, client_stub = Stub(answer=True), Stub(answer=False)
    server = Loop(server_stub, lambda command: None, name="server")
    client = Loop(client_stub, lambda command: None, name="client")
    stop = threading.Event()
    sock = sockets.router(server.context)
    address = sockets.bind(sock, "tcp://127.0.0.1:0", insecure=False)
    server.attach("control", sock, router=True)
    thread = threading.Thread(target=lambda: server.drive(stop.is_set, DEADLINE))
    thread.start()
    client.dial("control", address)
    if background:
        client.start()
    try:
        yield client, client_stub, server, server_stub
    finally:
        client.close()
        stop.set()
        server.interrupt()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        server.close()


def wait(until: Any) -> None:
    end = time.monotonic() + DEADLINE
    event = threading.Event()
    while not until():
        assert time.monotonic() < end, "the event did not come"
        event.wait(0.001)


def test_a_waiting_thread_drives_itself() -> None:
    with pair(background=False) as (client, stub, _, _):
        for number in range(50):
            with client.lock:
                stub.say()
            assert client.drive(lambda number=number: len(stub.came) > number, DEADLINE)


def test_the_background_thread_sends_what_is_queued() -> None:
    with pair() as (client, stub, _, _):
        for number in range(50):
            with client.lock:
                stub.say()
            client.wake()
            wait(lambda number=number: len(stub.came) > number)
        assert [type(message) for _, message in stub.came] == [Pong] * 50


def test_background_and_guest_take_turns() -> None:
    with pair() as (client, stub, _, _):
        for number in range(100):
            with client.lock:
                stub.say()
            client.wake()
            if number % 3:
                assert client.drive(lambda number=number: len(stub.came) > number, DEADLINE)
            else:
                wait(lambda number=number: len(stub.came) > number)


def test_many_guests_at_once_each_see_their_own_event() -> None:
    with pair() as (client, stub, _, _):
        done: list[int] = []

        def guest(number: int) -> None:
            with client.lock:
                stub.say()
            client.wake()
            if client.drive(lambda: len(stub.came) >= 8, DEADLINE):
                done.append(number)

        threads = [threading.Thread(target=guest, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert sorted(done) == list(range(8))


def test_a_guest_that_computes_hands_the_sockets_over() -> None:
    with pair() as (client, stub, _, _):
        with client.lock:
            stub.say()
        assert client.drive(lambda: len(stub.came) == 1, DEADLINE)
        client.hand_over()
        with client.lock:
            stub.say()
        client.wake()
        wait(lambda: len(stub.came) == 2)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core, looking keeps the answer from coming")
def test_what_is_imminent_is_looked_for_without_sleep_while_it_comes_quickly() -> None:
    with pair(background=False) as (client, stub, _, _):
        waits: list[int] = []
        poll = client._poller.poll
        client._poller.poll = lambda timeout: (waits.append(timeout), poll(timeout))[1]  # type: ignore[method-assign]

        def ask() -> None:
            with client.lock:
                stub.say()
            count = len(stub.came)
            assert client.drive(lambda: len(stub.came) > count, DEADLINE)

        ask()
        assert 0 not in waits  # nobody said that it was imminent
        client.imminent = lambda: True
        end = time.monotonic() + DEADLINE
        while 0 not in waits:  # from the first answer on that comes quickly
            assert time.monotonic() < end
            ask()
        assert not client.drive(lambda: False, 0.05)
        waits.clear()
        ask()
        assert 0 not in waits  # the last one was slow in coming


def test_drive_gives_up_after_its_timeout() -> None:
    with pair() as (client, _, _, _):
        start = time.monotonic()
        assert client.drive(lambda: False, 0.05) is False
        assert 0.05 <= time.monotonic() - start < DEADLINE / 2
        assert client.drive(lambda: False, 0) is False


def test_ctrl_c_is_raised_between_turns_and_the_loop_stays_usable() -> None:
    with pair() as (client, stub, _, _):
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.drive(lambda: False, DEADLINE)
        timer.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with client.lock:
            stub.say()
        assert client.drive(lambda: bool(stub.came), DEADLINE)


def test_garbage_is_handed_to_the_endpoint_and_nothing_else_is_disturbed() -> None:
    with pair(background=False) as (client, stub, _, server_stub):
        raw = sockets.dealer(client.context, client._addresses["control"])
        raw.send_multipart([b"garbage", b"more"])
        wait(lambda: len(server_stub.garbage) == 1)
        with client.lock:
            stub.say()
        assert client.drive(lambda: bool(stub.came), DEADLINE)
        raw.close(0)


@pytest.mark.parametrize("address", ["tcp://:::", "nonsense://x", "tcp://host", "ipc://" + "x" * 500])
def test_an_address_that_cannot_be_dialled_ends_nothing(address: str) -> None:
    with pair(background=False) as (client, stub, _, _):
        with client.lock:
            stub.machine.out[Route(address)] = [Ping()]
            stub.say()
        assert client.drive(lambda: bool(stub.came), DEADLINE)
        assert stub.lost == [Route(address)]


def test_a_packet_for_a_connection_that_is_gone_is_reported() -> None:
    with pair() as (_, _, server, server_stub):
        with server.lock:
            server_stub.machine.out[Route("control", b"nobody")] = [Ping()]
        server.wake()
        wait(lambda: bool(server_stub.lost))
        assert server_stub.lost == [Route("control", b"nobody")]


def test_a_defect_ends_the_loop_with_its_reason() -> None:
    with pair() as (client, stub, _, _):

        def broken(now: float) -> None:
            raise RuntimeError("a defect")

        failed = threading.Event()
        client.failed = lambda exc: failed.set()  # type: ignore[method-assign]
        stub.turn = broken  # type: ignore[method-assign]
        client.interrupt()
        assert failed.wait(DEADLINE)
        with pytest.raises(ClusterClosed, match="a defect"):
            client.drive(lambda: False, 1.0)


def test_a_closed_loop_says_so() -> None:
    with pair() as (client, _, _, _):
        client.close()
        client.close()
        with pytest.raises(ClusterClosed, match="client is closed"):
            client.drive(lambda: False, 1.0)


def test_guests_that_wait_do_not_keep_each_other_awake() -> None:
    """Idle threads of a worker all wait in drive(): only an event may turn the loop."""
    with pair(background=False) as (client, stub, _, _):
        turns: list[float] = []
        stub.turn = turns.append  # type: ignore[method-assign]
        stop = threading.Event()
        threads = [threading.Thread(target=client.drive, args=(stop.is_set, DEADLINE)) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait(lambda: client._guests == 2)
        begun = len(turns)
        assert not threading.Event().wait(0.2)
        assert len(turns) - begun <= 4
        stop.set()
        client.interrupt()
        for thread in threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)


def test_a_peer_out_of_reach_does_not_delay_the_end() -> None:
    stub = Stub(answer=False)
    loop = Loop(stub, lambda command: None, name="test")
    stub.machine.out[Route("ipc:///nonexistent/nobody.sock")] = [Ping()]
    loop.drive(lambda: True, 0)
    began = time.monotonic()
    loop.close(5.0)
    assert time.monotonic() - began < 2.5
