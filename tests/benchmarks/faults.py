"""How soon faults are noticed and healed: ``python tests/benchmarks/faults.py [--only ROW]... [--rounds N]``.

``crash``: a worker is killed by a signal; seconds until the broker has removed it, and until the task that ran on it
has begun elsewhere (50 times, 4 minutes). ``node``: a node is killed together with its workers, as a host that is gone;
seconds until the broker has removed it (10 times, 3 minutes). ``broker``: it is killed with 10,000 tasks in flight and
1,000 results held, and started again; seconds from then until the first new completion; nothing is lost, and what was
finished is not computed again (50 times, 15 minutes). ``gil``: a task holds the GIL in C for 30 s; it is started once,
its result arrives, other workers go on. ``memory``: 20 results of 1 GiB on two workers that are limited to 2 GiB each,
gathered one by one; how many GiB the host's memory grew. ``--rounds`` says how many times, for ``memory`` how many
results.

Prints median and worst of each, and whether the worst is within what is allowed, which a machine with other things to
do may miss. Ends with code 1 if one is not, or if anything was lost, wrong or done twice.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil

from zdist import Client, LocalCluster, limits, wait
from zdist.cli.chaos_cluster import Program
from zdist.cli.chaos_works import Tally
from zdist.cluster.children import broker_command, node_command

PATIENCE: Final = 120.0  # seconds for anything that must come
NOTICED: Final = 1.0  # seconds in which a worker's crash is
LOST: Final = limits.LEASE_NODE + 2.0  # and a node's loss
RESUMED: Final = 3.0  # seconds from a broker's start to the first new completion
FLIGHT, HELD, NBYTES = 10_000, 1_000, 20_000
HOLD: Final = 30.0  # seconds with the GIL held
GIB: Final = 1 << 30
LIMIT: Final = 2 * GIB  # of each of two workers
SIGNALS: Final = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
LOGS: Final[dict[str, Any]] = {"log_level": "info", "log_format": "json"}


class Row(NamedTuple):
    """One figure: what was measured, and what is allowed at most."""

    name: str
    values: list[float]
    allowed: float
    unit: str = "s"


class Broken(Exception):
    """Something was lost, wrong or done twice."""


def require(holds: object, text: str) -> None:
    if not holds:
        raise Broken(text)


def until(condition: Callable[[], Any], what: str, pause: float = 0.005) -> float:
    """Wait for it; the moment when it was true. Raises Broken if it does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        require(time.monotonic() < end, f"{what}: not within {PATIENCE:g} s")
        time.sleep(pause)
    return time.monotonic()


# --- processes that can be killed, and started again ---------------------------------------------------------


class Fabric:
    """A broker and nodes as processes of their own, in a folder of their own."""

    def __init__(self, nodes: int, workers: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="zfaults-", dir="/tmp"))
        os.environ["ZDIST_RUNTIME_DIR"] = str(self.folder)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        self.broker = Program("broker", broker_command(self.address, **LOGS), self.folder)
        self.nodes = [
            Program(
                f"node{i}",
                node_command(self.address, name=f"node{i}", workers=workers, threads=1, **LOGS),
                self.folder,
            )
            for i in range(nodes)
        ]

    def __enter__(self) -> Fabric:
        for program in (self.broker, *self.nodes):
            program.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for program in (*self.nodes, self.broker):
            program.kill(signal.SIGTERM)
            program.end(PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)


def workers_of(client: Client) -> dict[str, str]:
    """Their names, by address."""
    return {address: about["name"] for address, about in client.scheduler_info()["workers"].items()}


def removal(client: Client, worker: str) -> float:
    """When the broker has removed it."""
    return until(lambda: worker not in workers_of(client), "a worker is removed", 0.002)


class Held:
    """A task that stays where it was begun first, and what it has noted: process id and monotonic seconds of each
    start."""

    def __init__(self, client: Client, folder: str, worker: str) -> None:
        self.path = Path(folder, "starts")
        self.path.unlink(missing_ok=True)
        self.future = client.submit(stay, str(self.path), workers=[worker], allow_other_workers=True, pure=False)
        until(lambda: self.starts, "a task has begun")

    @property
    def starts(self) -> list[tuple[int, float]]:
        with contextlib.suppress(FileNotFoundError):
            lines = self.path.read_text().split("\n")[:-1]
            return [(int(pid), float(at)) for pid, at in (line.split() for line in lines)]
        return []

    def again(self) -> float:
        """When it has begun again, elsewhere, and ended there."""
        require(self.future.result(PATIENCE) == 2, "a task that was interrupted is started once more")
        (first, _), (second, at) = self.starts
        require(first != second, "it is started elsewhere")
        return at


def stay(path: str) -> int:
    note(path, f"{os.getpid()} {time.monotonic()}")
    if (count := len(Path(path).read_text().splitlines())) == 1:
        time.sleep(600)
    return count


def note(path: str, text: str) -> None:
    """Append a line, in one piece."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


# --- the rows ------------------------------------------------------------------------------------------------


def crash(rounds: int) -> Iterator[Row]:
    """Workers that are killed by signals."""
    removed, begun = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        for number in range(rounds):
            client.wait_for_workers(2, timeout=PATIENCE)
            time.sleep(limits.QUICK_DEATH + 0.1)  # a worker that dies younger may be replaced later
            worker = sorted(workers_of(client))[number % 2]
            held = Held(client, folder, worker)
            killed = time.monotonic()
            os.kill(held.starts[0][0], SIGNALS[number % len(SIGNALS)])
            removed.append(removal(client, worker) - killed)
            begun.append(held.again() - killed)
    yield Row("a worker is killed, until it is removed", removed, NOTICED)
    yield Row("the same, until its task has begun elsewhere", begun, NOTICED)


def node(rounds: int) -> Iterator[Row]:
    """Hosts that are gone: nobody says goodbye."""
    removed, begun = [], []
    with Fabric(nodes=2, workers=1) as fabric, Client(fabric.address, timeout=PATIENCE, set_as_default=False) as client:
        for number in range(rounds):
            until(lambda: client.counts()["nodes"] == 2, "both nodes are there")
            client.wait_for_workers(2, timeout=PATIENCE)
            lost = fabric.nodes[number % 2]
            (worker,) = [address for address, name in workers_of(client).items() if name.startswith(lost.name)]
            held = Held(client, str(fabric.folder), worker)
            assert lost.process is not None
            lost.kill(signal.SIGSTOP)  # so that it does not tell how its workers end
            children = psutil.Process(lost.process.pid).children(recursive=True)
            killed = time.monotonic()
            for process in (*children, lost.process):
                process.kill()
            gone = removal(client, worker)
            removed.append(max(gone, until(lambda: client.counts()["nodes"] == 1, "a node is removed")) - killed)
            begun.append(held.again() - killed)
            lost.end(PATIENCE)
            lost.start()
    yield Row("a node and its workers are gone, until it is removed", removed, LOST)
    yield Row("the same, until a task has begun elsewhere", begun, LOST)


def make(number: int, path: str) -> bytes:
    note(path, str(number))
    return bytes([number % 256]) * NBYTES


def work(number: int) -> int:
    time.sleep(0.002)
    return number


def restart(fabric: Fabric, client: Client, tally: Tally) -> tuple[float, float]:
    """Of the broker, with tasks in flight: seconds from its start to the first new completion, and to the last."""
    futures = tally.take(client.map(work, range(FLIGHT), pure=False))
    until(lambda: sum(future.status == "finished" for future in futures[:200]) >= 50, "some are finished")
    fabric.broker.kill()
    fabric.broker.end(PATIENCE)
    time.sleep(0.3)  # until the client has taken in what was on its way
    pending = [future for future in futures if future.status == "pending"]
    require(len(pending) > FLIGHT / 2, "most were in flight")
    started = time.monotonic()
    fabric.broker.start()
    first = until(lambda: any(future.status != "pending" for future in pending), "one is finished")
    require(client.gather(futures, timeout=PATIENCE) == list(range(FLIGHT)), "all values are right")
    last = time.monotonic()
    tally.settle("in flight")
    require(not tally.wrongs, "; ".join(tally.wrongs))
    return first - started, last - started


def broker(rounds: int) -> Iterator[Row]:
    """A broker that is killed and started again."""
    with Fabric(nodes=1, workers=2) as fabric, Client(fabric.address, timeout=PATIENCE, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        path = str(fabric.folder / "made")
        held = client.map(make, range(HELD), [path] * HELD, pure=False)
        wait(held, timeout=PATIENCE)
        tally = Tally()
        seconds = [restart(fabric, client, tally) for _ in range(rounds)]
        values = client.gather(held, timeout=PATIENCE)
        require(values == [bytes([n % 256]) * NBYTES for n in range(HELD)], "what was held is right")
        require(len(Path(path).read_text().split()) == HELD, "what was held is not computed again")
    yield Row("the broker is killed and started, until a task is finished", [first for first, _ in seconds], RESUMED)
    yield Row("the same, until 10,000 are", [last for _, last in seconds], PATIENCE)


def hold(path: str, seconds: float) -> float:
    """Hold the GIL; the longest pause of another thread of this process meanwhile, in seconds."""
    note(path, str(os.getpid()))
    pauses, over = [0.0], threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not over.wait(0.01):
            pauses.append(time.monotonic() - last)
            last += pauses[-1]

    thread = threading.Thread(target=tick)
    thread.start()
    time.sleep(0.1)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # unlike CDLL, this keeps the lock
    time.sleep(0.1)
    over.set()
    thread.join()
    return max(pauses)


def gil(rounds: int) -> Iterator[Row]:
    """A task that cannot be asked whether it lives."""
    late, others = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=PATIENCE)
        pids = client.run(os.getpid)
        for number in range(rounds):
            path = Path(folder, str(number))
            begun = time.monotonic()
            future = client.submit(hold, str(path), HOLD, pure=False)
            while not future.done():
                at = time.monotonic()
                require(client.gather(client.map(work, range(20), pure=False), timeout=PATIENCE), "others go on")
                others.append(time.monotonic() - at)
            late.append(time.monotonic() - begun - HOLD)
            require(future.result(PATIENCE) > HOLD - 0.1, "the GIL was held")
            require(len(path.read_text().split()) == 1, "it is started once")
            require(client.run(os.getpid) == pids, "its worker is not replaced")
    yield Row(f"the GIL is held for {HOLD:g} s, until the result is there after it", late, 2.0)
    yield Row("the same, 20 tasks of others meanwhile", others, 2.0)


class HostMemory(threading.Thread):
    """The highest that the host's memory rises above what it is now, shared memory included."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = self.used()
        self.growth = 0
        self.over = threading.Event()

    def used(self) -> int:
        """Bytes."""
        kib = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
        return 1024 * (kib["MemTotal"] - kib["MemFree"] - kib["Buffers"] - kib["Cached"] + kib["Shmem"])

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.growth = max(self.growth, self.used() - self.base)


def fill(number: int) -> Any:
    return np.full(GIB, number, dtype=np.uint8)


def memory(results: int) -> Iterator[Row]:
    """More results than memory: they go to disk, and nobody is killed."""
    host = HostMemory()
    host.start()
    begun = time.monotonic()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=LIMIT) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=PATIENCE)
        pids = client.run(os.getpid)
        futures = client.map(fill, range(results), pure=False)
        for number, future in enumerate(futures):
            value = future.result(10 * PATIENCE)
            require(value.nbytes == GIB and (value[:: 1 << 12] == number).all(), f"result {number} is right")
            del value
        require(client.run(os.getpid) == pids, "no worker was killed")
        seconds = time.monotonic() - begun
        host.over.set()
    yield Row(
        f"{results} results of 1 GiB, growth of the host's memory", [host.growth / GIB], 2 * LIMIT / GIB + 1, "GiB"
    )
    yield Row(f"{results} results of 1 GiB, made and gathered", [seconds], 10 * PATIENCE)


ROWS: Final[dict[str, tuple[int, Callable[[int], Iterator[Row]]]]] = {
    "crash": (50, crash),
    "node": (10, node),
    "broker": (50, broker),
    "gil": (1, gil),
    "memory": (20, memory),
}


def main() -> int:
    """Print a line for each figure; 1 if one of them falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(ROWS), help="default: all")
    parser.add_argument("--rounds", type=int, help="default: 50 crash, 10 node, 50 broker, 1 gil, 20 memory")
    options = parser.parse_args()
    print(f"{'':62} {'times':>5} {'median':>8} {'worst':>8} {'allowed':>8}", flush=True)
    short = 0
    for name in options.only or ROWS:
        usual, measure = ROWS[name]
        try:
            for row in measure(options.rounds or usual):
                worst = max(row.values)
                verdict = "holds" if worst <= row.allowed else "FALLS SHORT"
                short += worst > row.allowed
                figures = f"{statistics.median(row.values):8.3f} {worst:8.3f} {row.allowed:8g} {row.unit}"
                print(f"{row.name:62} {len(row.values):5} {figures}  {verdict}", flush=True)
        except Broken as exc:
            short += 1
            print(f"{name}: BROKEN: {exc}", flush=True)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
