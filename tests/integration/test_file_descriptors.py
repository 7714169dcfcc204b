"""A broker that runs out of file descriptors refuses new connections, serves those that are there, and says so."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator

import cluster_functions as functions
import psutil
import pytest
import zmq
from cluster_checks import WITHIN, eventually

from zdist import AuthenticationError, Client, LocalCluster
from zdist.transport import listeners, sockets
from zdist.transport.listeners import Listeners


class Crowd:
    """Connections that say nothing."""

    def __init__(self, family: int, address: str | tuple[str, int]) -> None:
        self.family, self.address = family, address
        self.sockets: list[socket.socket] = []

    def refused(self) -> bool:
        """Connect once more; whether that was refused."""
        sock = socket.socket(self.family, socket.SOCK_STREAM)
        # of a socket with Python's timeout, connecting would not wait while others wait in front of it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(WITHIN), 0))
        try:
            sock.connect(self.address)
        except OSError as exc:
            sock.close()
            if exc.errno not in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET):
                raise
            return True
        self.sockets.append(sock)
        return False

    def leave(self) -> None:
        while self.sockets:
            self.sockets.pop().close()


@pytest.fixture
def crowd() -> Iterator[Callable[[str], Crowd]]:
    made: list[Crowd] = []

    def gather(address: str) -> Crowd:
        scheme, _, rest = address.partition("://")
        if scheme == "ipc":
            made.append(Crowd(socket.AF_UNIX, rest))
        else:
            host, _, port = rest.rpartition(":")
            made.append(Crowd(socket.AF_INET, (host, int(port))))
        return made[-1]

    yield gather
    for one in made:
        one.leave()


def settle(client: Client) -> None:
    """Have the broker write a record: it loads what that takes a second after its start. That needs files, and the
    better part of a processor."""
    with pytest.raises(AuthenticationError):
        Client(client.address, token="wrong", timeout=WITHIN, set_as_default=False)


@pytest.mark.parametrize("protocol", ["tcp", "ipc"])
def test_a_broker_without_descriptors_serves_those_that_are_there(
    start: Callable[..., LocalCluster], crowd: Callable[[str], Crowd], protocol: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = start(n_workers=1, threads_per_worker=1, protocol=protocol)
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WITHIN)
        settle(client)
        (broker,) = [p for p in psutil.Process().children() if "zdist_broker" in p.cmdline()]
        limit = broker.num_fds() + 40
        broker.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
        strangers = crowd(client.address)
        eventually(strangers.refused, "a refusal")
        assert client.gather(client.map(functions.inc, range(100), pure=False)) == list(range(1, 101))
        assert broker.num_fds() <= limit
        busy = sum(broker.cpu_times()[:2])
        for number in range(200):
            assert client.submit(functions.inc, number, pure=False).result(WITHIN) == number + 1
        assert sum(broker.cpu_times()[:2]) - busy < 0.5  # it does not try to accept again and again
        strangers.leave()

        def welcomed() -> bool:
            with contextlib.suppress(OSError), Client(client.address, timeout=2.0, set_as_default=False) as other:
                return other.submit(functions.inc, 1, pure=False).result(WITHIN) == 2
            return False

        if protocol == "tcp":
            eventually(welcomed, "that it listens again")
        else:  # its token is in no file that is found by the address
            eventually(lambda: not crowd(client.address).refused(), "that it listens again")
    said = capfd.readouterr().err
    assert "listener.closed" in said
    assert f"{limit}" in said and "ulimit" in said


class Log:
    def __init__(self) -> None:
        self.events: list[str] = []

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(event)

    info = error = warning


def test_where_it_listened_may_be_taken_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again until it is free."""
    free = 0
    monkeypatch.setattr(listeners, "files", lambda: (100, free))
    log, context = Log(), zmq.Context()
    door = Listeners(log, zmq.Poller())
    assert door.due == float("inf")
    with sockets.router(context) as sock, sockets.router(context) as other:
        address = sockets.bind(sock, "tcp://127.0.0.1:0", insecure=False)
        door.add(sock)
        door.look(1.0)
        assert log.events == ["listener.closed"]

        def taken() -> bool:
            with contextlib.suppress(zmq.ZMQError):  # the thread that listens closes it soon
                other.bind(address)
                return True
            return False

        eventually(taken, "the end of listening")
        door.look(1.5)  # not yet
        free = listeners.SPARE_FILES
        door.look(3.0)  # too few
        assert log.events == ["listener.closed"]
        free *= 2
        door.look(5.0)
        assert log.events == ["listener.closed", "listener.unavailable"]
        other.unbind(address)
        now = iter(range(7, 10**6))
        eventually(lambda: door.look(next(now)) or not door.closed, "listening again")
        assert log.events[-1] == "listener.open"
        door.shut()
    context.term()


@pytest.mark.parametrize("counted", [True, False])
def test_files_are_counted(monkeypatch: pytest.MonkeyPatch, counted: bool) -> None:
    monkeypatch.setattr(listeners, "COUNTED", counted and listeners.COUNTED)
    limit, free = listeners.files()
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    taken = len(os.listdir("/dev/fd")) - 1  # listing them takes one
    assert limit - free in (taken, taken + 1)
    with open(os.devnull, "rb"):
        assert listeners.files() == (limit, free - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        assert listeners.files() == (taken, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def test_a_burst_of_connections_does_not_end_the_broker(
    start: Callable[..., LocalCluster], crowd: Callable[[str], Crowd]
) -> None:
    """They come as fast as they can, past a broker that looks once a second; ZeroMQ would abort it over ipc."""
    cluster = start(n_workers=1, threads_per_worker=1, protocol="ipc")
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WITHIN)
        settle(client)
        (broker,) = [p for p in psutil.Process().children() if "zdist_broker" in p.cmdline()]
        broker.rlimit(psutil.RLIMIT_NOFILE, (2048, 2048))
        strangers = crowd(client.address)
        while not strangers.refused():
            assert len(strangers.sockets) < 4096
        assert client.gather(client.map(functions.inc, range(100), pure=False)) == list(range(1, 101))
        assert broker.is_running()
