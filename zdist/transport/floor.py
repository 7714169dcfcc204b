"""Bare ZeroMQ beneath what zdist does: a ROUTER in the middle, two DEALERs that answer, no bookkeeping.

``measure`` starts the processes and takes the figures; `zdist bench` shows them beside those of a cluster. The broker
here only swaps addresses, and the workers unpack and pack, so little that speaks ZeroMQ can be faster.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgpack
import zmq

from zdist.limits import MIB

__all__ = ["Floor", "measure", "version"]

WORKERS: Final = 2
TOGETHER: Final = 100  # tasks in one message, where many are sent
TASKS: Final = 20_000
LONE: Final = 2_000  # tasks one at a time
TRIPS: Final = 500
COUNT: Final = 24  # buffers of
SIZE: Final = 4 * MIB
ROUNDS: Final = 3
PATIENCE: Final = 20_000  # milliseconds without an answer
READY, BIG, COUNTED = b"ready", b"big", b"how many"


class Floor(NamedTuple):
    """Tasks a second, many and one in a message; milliseconds of a round trip; MB (10**6 bytes) a second."""

    batched: float
    single: float
    round_trip: float
    round_trip_p99: float
    direct: float
    relay: float
    memory: float


def version() -> str:
    """Of the ZeroMQ library."""
    return zmq.zmq_version()


# --- the processes -----------------------------------------------------------------------------------------


def _socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[Any]:
    sock: zmq.Socket[Any] = context.socket(kind)
    sock.linger = 0
    sock.set_hwm(0)
    return sock


def _turns(*socks: zmq.Socket[Any]) -> Iterator[zmq.Socket[Any]]:
    """Whichever can be read, until standard input closes."""
    poller = zmq.Poller()
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    for sock in socks:
        poller.register(sock, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if sys.stdin.fileno() in ready:
            return
        yield from ready


def _broker() -> None:
    router = _socket(zmq.Context(), zmq.ROUTER)
    print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    workers: list[bytes] = []
    client, turn = b"", 0
    for _ in _turns(router):
        hop, *frames = router.recv_multipart(copy=False)
        if hop.bytes in workers:
            router.send_multipart([client, *frames], copy=False)
        elif frames[0].bytes == READY:
            workers.append(hop.bytes)
        elif frames[0].bytes == COUNTED:
            router.send_multipart([hop, b"%d" % len(workers)])
        else:
            client, turn = hop.bytes, turn + 1
            router.send_multipart([workers[turn % len(workers)], *frames], copy=False)


def _worker(port: str) -> None:
    context: zmq.Context[Any] = zmq.Context()
    dealer, own = _socket(context, zmq.DEALER), _socket(context, zmq.ROUTER)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    print(own.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    dealer.send(READY)
    data = bytes(SIZE)
    for sock in _turns(dealer, own):
        if sock is own:
            hop, _ = own.recv_multipart()
            own.send_multipart([hop, data], copy=False)
        elif (message := dealer.recv()) == BIG:
            dealer.send(data, copy=False)
        else:
            tasks = msgpack.unpackb(message)
            dealer.send(msgpack.packb([(key, msgpack.packb(msgpack.unpackb(value))) for key, value in tasks]))


# --- the figures -------------------------------------------------------------------------------------------


def measure(step: Callable[[], object] = lambda: None) -> Floor:
    """Take all figures, the best of a few rounds; ``step`` is called after each of six. Raises TimeoutError."""
    with contextlib.ExitStack() as stack:

        def start(*role: str) -> str:
            command = [sys.executable, "-P", "-m", "zdist.transport.floor", *role]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(child.wait)
            assert child.stdin is not None and child.stdout is not None
            stack.callback(child.stdout.close)
            stack.callback(child.stdin.close)
            return child.stdout.readline().strip()

        broker = start("broker")
        peers = [start("worker", broker) for _ in range(WORKERS)]
        context: zmq.Context[Any] = zmq.Context()
        stack.callback(context.destroy, 0)
        socks = [_socket(context, zmq.DEALER) for _ in range(1 + WORKERS)]
        for sock, port in zip(socks, [broker, *peers], strict=True):
            sock.rcvtimeo = PATIENCE
            sock.connect(f"tcp://127.0.0.1:{port}")
        try:
            return _measure(socks[0], socks[1], step)
        except zmq.Again:
            raise TimeoutError(f"bare ZeroMQ on the loopback gave no answer in {PATIENCE / 1000:.0f} s") from None


def _measure(dealer: zmq.Socket[Any], peer: zmq.Socket[Any], step: Callable[[], object]) -> Floor:
    while True:
        dealer.send(COUNTED)
        if int(dealer.recv()) == WORKERS:
            break
    batched = max(_tasks(dealer, TASKS, TOGETHER) for _ in range(ROUNDS))
    step()
    single = max(_tasks(dealer, LONE, 1) for _ in range(ROUNDS))
    step()
    trips = sorted(1000.0 / _tasks(dealer, 1, 1) for _ in range(TRIPS))
    step()
    direct = max(_buffers(peer) for _ in range(ROUNDS))
    step()
    relay = max(_buffers(dealer) for _ in range(ROUNDS))
    step()
    source, target = bytearray(64 * MIB), bytearray(64 * MIB)
    memory = max(_rate(64 * MIB, lambda: target.__setitem__(slice(None), source)) for _ in range(ROUNDS))
    step()
    return Floor(batched, single, statistics.median(trips), trips[TRIPS * 99 // 100], direct, relay, memory)


def _tasks(sock: zmq.Socket[Any], count: int, together: int) -> float:
    """Tasks a second."""
    begun = time.perf_counter()
    for start in range(0, count, together):
        tasks = [(b"key-%08d" % i, msgpack.packb(i)) for i in range(start, min(start + together, count))]
        sock.send(msgpack.packb(tasks))
    got = 0
    while got < count:
        for _, value in msgpack.unpackb(sock.recv()):
            msgpack.unpackb(value)
            got += 1
    return count / (time.perf_counter() - begun)


def _buffers(sock: zmq.Socket[Any]) -> float:
    """MB a second."""

    def fetch() -> None:
        for _ in range(COUNT):
            sock.send(BIG)
        for _ in range(COUNT):
            sock.recv(copy=False)

    return _rate(COUNT * SIZE, fetch)


def _rate(nbytes: int, work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return nbytes / (time.perf_counter() - begun) / 1e6


if __name__ == "__main__":
    if sys.argv[1] == "broker":
        _broker()
    else:
        _worker(sys.argv[2])
