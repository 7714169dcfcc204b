"""What tasks cost as the work grows: ``python tests/benchmarks/scale.py [million] [peers] [idle]``.

``million``: the rate of one map of 1,000,000 tasks beside that of 10,000, and what broker and client keep for each of
1,000,000 tasks that wait for a worker. ``peers``: tasks a second of one broker with 2 workers and 1 client, and with
1,000 of each, which speak the protocol and do nothing else; and how long it takes until each client has had a result.
``idle``: what a cluster of 8 workers takes of a core while nobody asks for anything.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import os
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import psutil
import zmq

from zdist import Client, LocalCluster, limits
from zdist.core.endpoint import PeerEndpoint
from zdist.core.machine import CONTROL, Machine, Route
from zdist.protocol import messages as m
from zdist.protocol.codec import decode, encode

MILLION: Final = 1_000_000
FEW: Final = 10_000
PEERS: Final = 1_000
TASKS: Final = 50_000  # of all clients together
CODE: Final = b"nobody unpickles this"
FN: Final = m.function_digest(CODE)


def same(x: Any) -> Any:
    """A task that does nothing."""
    return x


def resident(process: psutil.Process) -> int:
    """Bytes."""
    return int(process.memory_info().rss)


def broker_of(cluster: LocalCluster) -> psutil.Process:
    """The process that runs the broker of a local cluster."""
    for child in psutil.Process().children(recursive=True):
        if "zdist_broker" in " ".join(child.cmdline()):
            return child
    raise RuntimeError(f"{cluster} has no broker process here")


# --- a million tasks --------------------------------------------------------------------------------------


def million() -> dict[str, float]:
    """Rates of one map, medians where it is short; bytes for each unfinished task."""
    figures: dict[str, float] = {}
    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:  # first: memory is not given back
        broker, me = broker_of(cluster), psutil.Process()
        before = resident(broker), resident(me)
        futures = client.map(same, range(MILLION), pure=False)
        while client._ledger.queue or client._driver.endpoint.session.unacked:  # type: ignore[union-attr]
            time.sleep(0.2)
        figures["broker, bytes a task"] = (resident(broker) - before[0]) / MILLION
        figures["client, bytes a future"] = (resident(me) - before[1]) / MILLION
        del futures
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)

        def rate(count: int) -> float:
            begin = time.perf_counter()
            results = client.gather(client.map(same, range(count), pure=False))
            seconds = time.perf_counter() - begin
            assert results[-1] == count - 1
            return count / seconds

        rate(FEW)
        figures["10,000 tasks, tasks/s"] = statistics.median(rate(FEW) for _ in range(9))
        figures["1,000,000 tasks, tasks/s"] = rate(MILLION)
    return figures


# --- peers that speak the protocol only -------------------------------------------------------------------


class Stub(Machine[Route]):
    """What an endpoint needs of a machine."""

    role = ""

    def __init__(self) -> None:
        super().__init__()
        self.welcome = False

    def hello_info(self) -> dict[str, Any]:
        return {"name": "", "host": "stub", "pid": os.getpid(), "node": "", "address": "tcp://127.0.0.1:1"}

    def authorize(self, token: str) -> None:
        pass

    def welcomed(self, welcome: m.Welcome, now: float) -> None:
        self.welcome = True

    def refused(self, code: str, text: str, now: float) -> None:
        raise RuntimeError(f"{code}: {text}")

    def turn(self, now: float) -> None:
        pass

    def tick(self, now: float) -> None:
        pass

    def deadline(self) -> float | None:
        return None

    def handle(self, route: Route, message: m.Message, now: float) -> None:
        pass


class StubWorker(Stub):
    """One thread; every task is done at once, in no time."""

    role = "worker"

    def welcomed(self, welcome: m.Welcome, now: float) -> None:
        super().welcomed(welcome, now)
        self.send(CONTROL, m.Subscribe(1, (), {}, False))

    def handle(self, route: Route, message: m.Message, now: float) -> None:
        if isinstance(message, m.Run):
            self.send(CONTROL, m.Done(tuple([(row[0], row[1], 10, 5, b"value", "int") for row in message.rows])))


class StubClient(Stub):
    """Submits so many tasks and lets go of each when it is finished."""

    role = "client"

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.submitted = self.finished = 0
        self.gens: dict[str, int] = {}

    def begin(self, count: int) -> None:
        """Have so many tasks done."""
        self.finished = 0
        self.send(CONTROL, m.Define(FN, "stub", CODE))
        for start in range(0, count, limits.PACKET_RECORDS):
            gen = self.submitted = self.submitted + 1
            many = range(start, min(count, start + limits.PACKET_RECORDS))
            keys = [f"stub-{self.number:04x}-{gen:08x}-{n:016x}" for n in many]
            self.gens.update(dict.fromkeys(keys, gen))
            self.send(CONTROL, m.Submit(FN, False, gen, (), tuple([(key, b"args", ()) for key in keys])))

    def handle(self, route: Route, message: m.Message, now: float) -> None:
        if isinstance(message, m.Finished):
            self.finished += len(message.rows)
            self.send(CONTROL, m.Release(tuple([(row[0], self.gens.pop(row[0])) for row in message.rows])))


class Crowd:
    """Many peers in one thread: a socket and an endpoint for each. What a look at them costs does not grow with those
    that have nothing to do, and garbage is not collected, or it would be the crowd that is measured."""

    def __init__(self, address: str, token: str) -> None:
        self.address, self.token = address, token
        self.context = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 1 << 14)
        self.poller = select.epoll()
        self.sockets: dict[int, Any] = {}
        self.peers: dict[Any, PeerEndpoint] = {}
        self.timers: list[tuple[float, int, Any]] = []

    def add(self, machine: Any, session: str) -> None:
        sock = self.context.socket(zmq.DEALER)
        sock.set(zmq.LINGER, 0)
        sock.set(zmq.SNDHWM, 0)
        sock.set(zmq.RCVHWM, 0)
        sock.connect(self.address)
        self.sockets[sock.fd] = sock
        self.poller.register(sock.fd, select.EPOLLIN)
        self.peers[sock] = endpoint = PeerEndpoint(machine, session, self.token, address=self.address)
        self.turn(sock, time.monotonic())
        heapq.heappush(self.timers, (endpoint.deadline(), id(sock), sock))

    def turn(self, sock: Any, now: float) -> None:
        endpoint = self.peers[sock]
        while True:
            endpoint.turn(now)
            endpoint.commands.clear()
            for route, packet in endpoint.flush(now):
                if route == CONTROL:
                    sock.send_multipart(encode(packet))
            if not sock.get(zmq.EVENTS) & zmq.POLLIN:  # the descriptor tells of what comes after this look only
                return
            while sock.get(zmq.EVENTS) & zmq.POLLIN:
                endpoint.receive(CONTROL, decode(sock.recv_multipart()), now)

    def until(self, condition: Any, seconds: float) -> float:
        """Let them live until the condition holds; how long that took, in seconds."""
        begin = time.monotonic()
        while not condition():
            now = time.monotonic()
            if now - begin > seconds:
                raise TimeoutError(f"not within {seconds:g} s")
            while self.timers[0][0] <= now:
                _, number, sock = heapq.heappop(self.timers)
                self.turn(sock, now)
                heapq.heappush(self.timers, (self.peers[sock].deadline(), number, sock))
            for descriptor, _ in self.poller.poll(0.02):
                self.turn(self.sockets[descriptor], now)
        return time.monotonic() - begin

    def kick(self) -> None:
        """Send what was begun from outside."""
        for sock, endpoint in self.peers.items():
            if endpoint.machine.out:
                self.turn(sock, time.monotonic())


def crowd(address: str, token: str, count: int, rounds: int) -> None:
    """So many workers and clients; prints seconds until all had a result, and tasks a second, as JSON."""
    gc.disable()
    peers = Crowd(address, token)
    workers = [StubWorker() for _ in range(max(count, 2))]
    clients = [StubClient(n) for n in range(count)]
    begin = time.monotonic()
    for n, worker in enumerate(workers):
        peers.add(worker, f"w-{os.getpid():x}-{n}")
    for n, client in enumerate(clients):
        peers.add(client, f"c-{os.getpid():x}-{n}")
    peers.until(lambda: all(peer.welcome for peer in (*workers, *clients)), 120)
    for client in clients:
        client.begin(1)
    peers.kick()
    peers.until(lambda: all(client.finished for client in clients), 120)
    first = time.monotonic() - begin
    rates = []
    share = TASKS // count
    for _ in range(rounds):
        for client in clients:
            client.begin(share)
        begin = time.monotonic()
        peers.kick()
        peers.until(lambda: sum([client.finished for client in clients]) == share * count, 300)
        rates.append(share * count / (time.monotonic() - begin))
    print(json.dumps({"first": first, "rate": statistics.median(rates)}), flush=True)
    peers.context.destroy(0)


def peers() -> dict[str, float]:
    """The same work by few and by many peers; of the broker also what a task takes of its processor."""
    figures: dict[str, float] = {}
    for count in (1, PEERS):
        with LocalCluster(n_workers=0) as cluster:
            broker = broker_of(cluster)
            command = [sys.executable, __file__, "--crowd", str(count), cluster.broker_address, cluster.token]
            out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds = sum(broker.cpu_times()[:2])
        few = f"{max(count, 2):,} workers, {count:,} clients"
        figures[f"{few}, tasks/s"] = out["rate"]
        figures[f"{few}, s until each had a result"] = out["first"]
        figures[f"{few}, s of the broker's processor"] = seconds
    return figures


# --- nothing to do -----------------------------------------------------------------------------------------


def idle(seconds: float = 20.0) -> dict[str, float]:
    """Processor time of all of its processes together, in hundredths of a core."""
    with LocalCluster(n_workers=8, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(8)
        client.gather(client.map(same, range(100)))
        time.sleep(5)
        processes = psutil.Process().children(recursive=True)

        def used() -> float:
            """Seconds; the kernel's nanoseconds, as its ticks are as long as all of this takes in a second."""
            threads = [f"/proc/{process.pid}/task/{thread.id}" for process in processes for thread in process.threads()]
            return sum(int(Path(thread, "schedstat").read_text().split()[0]) for thread in threads) / 1e9

        before = used()
        time.sleep(seconds)
        return {"8 workers, node and broker, % of a core": 100 * (used() - before) / seconds}


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["million", "peers", "idle", []], default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crowd", nargs=3, metavar=("COUNT", "ADDRESS", "TOKEN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.crowd:
        crowd(args.crowd[1], args.crowd[2], int(args.crowd[0]), args.rounds)
        return
    for what in args.what or ("million", "peers", "idle"):
        for name, figure in {"million": million, "peers": peers, "idle": idle}[what]().items():
            print(f"{name:55} {figure:12,.2f}", flush=True)


if __name__ == "__main__":
    main()
