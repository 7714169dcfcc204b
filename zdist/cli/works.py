"""What `zdist bench` has a cluster do: each work returns its figures, and is checked."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zdist.errors import ZdistError
from zdist.limits import MIB

if TYPE_CHECKING:
    from zdist.client.client import Client

__all__ = ["WORKS", "Clients", "Figure", "Work"]

TASKS: Final = 10_000
TRIPS: Final = 1_000
LINKS: Final = 1_000
LEAVES: Final = 4_096
WIDTH: Final = 2_000
ARRAYS: Final = 24
ARRAY: Final = 4 * MIB
SCATTERED: Final = 64 * MIB
ARGUMENTS: Final = 32
ARGUMENT: Final = MIB
PAGE: Final = 4096
CLOSURES: Final = 1_000
CLOSURE: Final = MIB


class Clients(NamedTuple):
    """``usual`` leaves the path to gather; ``sockets`` uses none of this host's memory. Anything with the methods used
    here will do (tests/benchmarks has other systems behind them); what one cannot do raises NotImplementedError."""

    usual: Client
    sockets: Client
    wait: Callable[[Any], object]


class Figure(NamedTuple):
    """A measure and its unit; ``floor`` names the field of `zdist.transport.floor.Floor` to compare it with."""

    name: str
    value: float
    unit: str
    floor: str = ""


class Work(NamedTuple):
    """One row or two of the table."""

    name: str
    text: str
    run: Callable[[Clients], list[Figure]]


# --- what runs on workers ------------------------------------------------------------------------------


def increment(number: int) -> int:
    return number + 1


def add(one: int, other: int) -> int:
    return one + other


def add_all(*numbers: int) -> int:
    return sum(numbers)


def same(value: Any) -> Any:
    return value


def make(number: int, nbytes: int) -> Any:
    """An array, where numpy is installed, else bytes."""
    try:
        import numpy as np
    except ImportError:
        return bytearray([number % 256]) * nbytes
    return np.full(nbytes, number % 256, dtype="u1")


def measure(value: Any) -> int:
    """Bytes of an array, each page of which is looked at."""
    pages = value[::PAGE]
    total = pages.sum() if hasattr(pages, "sum") else sum(pages)
    return len(value) if total >= 0 else -1


# --- the works -------------------------------------------------------------------------------------------


def _require(right: bool, what: str) -> None:
    if not right:
        raise ZdistError(f"{what}: the cluster's answer is wrong; this is a defect in zdist")


def throughput(clients: Clients) -> list[Figure]:
    client = clients.usual
    client.gather(client.map(increment, range(200), pure=False))
    begun = time.perf_counter()
    found = client.gather(client.map(increment, range(TASKS), pure=False))
    seconds = time.perf_counter() - begun
    _require(found == list(range(1, TASKS + 1)), "throughput")
    return [Figure("throughput", TASKS / seconds, "tasks/s", "batched")]


def round_trip(clients: Clients) -> list[Figure]:
    client, trips = clients.usual, []
    for number in range(TRIPS + 50):
        begun = time.perf_counter()
        found = client.submit(increment, number, pure=False).result()
        trips.append(1e3 * (time.perf_counter() - begun))
        _require(found == number + 1, "round trip")
    trips = sorted(trips[50:])
    return [
        Figure("round trip, median", statistics.median(trips), "ms", "round_trip"),
        Figure("round trip, 99 of 100", trips[TRIPS * 99 // 100], "ms", "round_trip_p99"),
    ]


def chain(clients: Clients) -> list[Figure]:
    begun = time.perf_counter()
    future = clients.usual.submit(increment, 0, pure=False)
    for _ in range(LINKS - 1):
        future = clients.usual.submit(increment, future, pure=False)
    found = future.result()
    seconds = time.perf_counter() - begun
    _require(found == LINKS, "chain")
    return [Figure(f"chain of {LINKS:,}", LINKS / seconds, "tasks/s", "single")]


def tree(clients: Clients) -> list[Figure]:
    client = clients.usual
    begun = time.perf_counter()
    level = client.map(same, range(LEAVES), pure=False)
    while len(level) > 1:
        level = client.map(add, level[::2], level[1::2], pure=False)
    found = level[0].result()
    seconds = time.perf_counter() - begun
    _require(found == LEAVES * (LEAVES - 1) // 2, "tree")
    return [Figure(f"tree of {LEAVES:,} leaves", (2 * LEAVES - 1) / seconds, "tasks/s", "batched")]


def fan(clients: Clients) -> list[Figure]:
    client = clients.usual
    begun = time.perf_counter()
    root = client.submit(same, 0, pure=False)
    found = client.submit(add_all, *client.map(add, [root] * WIDTH, range(WIDTH), pure=False), pure=False).result()
    seconds = time.perf_counter() - begun
    _require(found == WIDTH * (WIDTH - 1) // 2, "fan")
    return [Figure(f"one, {WIDTH:,}, one", (WIDTH + 2) / seconds, "tasks/s", "batched")]


def scatter(clients: Clients) -> list[Figure]:
    client, best = clients.usual, 0.0
    workers = [info["name"] for info in client.scheduler_info()["workers"].values()]
    for number in range(2):
        value = make(number, SCATTERED)
        begun = time.perf_counter()
        future = client.scatter(value, broadcast=True)
        found = client.gather([client.submit(measure, future, workers=[name], pure=False) for name in workers])
        best = max(best, SCATTERED / (time.perf_counter() - begun) / 1e6)
        _require(found == [SCATTERED] * len(workers), "scatter")
    return [Figure("scatter to every worker", best, "MB/s", "direct")]


def gather(clients: Clients) -> list[Figure]:
    return [_gathered("gather, path left to it", clients, clients.usual, None, "memory")]


def gather_peer(clients: Clients) -> list[Figure]:
    return [_gathered("gather from worker's socket", clients, clients.sockets, True, "direct")]


def gather_relay(clients: Clients) -> list[Figure]:
    return [_gathered("gather through the broker", clients, clients.sockets, False, "relay")]


def _gathered(name: str, clients: Clients, client: Client, direct: bool | None, floor: str) -> Figure:
    best = 0.0
    for _ in range(3):
        futures = client.map(make, range(ARRAYS), [ARRAY] * ARRAYS, pure=False)
        clients.wait(futures)
        begun = time.perf_counter()
        found = [measure(value) for value in client.gather(futures, direct=direct)]
        best = max(best, ARRAYS * ARRAY / (time.perf_counter() - begun) / 1e6)
        _require(found == [ARRAY] * ARRAYS, name)
    return Figure(name, best, "MB/s", floor)


def arguments(clients: Clients) -> list[Figure]:
    client, best = clients.usual, 0.0
    values = [make(number, ARGUMENT) for number in range(ARGUMENTS)]
    for _ in range(2):
        begun = time.perf_counter()
        found = client.gather([client.submit(same, value, pure=False) for value in values])
        best = max(best, 2 * ARGUMENTS * ARGUMENT / (time.perf_counter() - begun) / 1e6)
        _require([int(value[-1]) for value in found] == list(range(ARGUMENTS)), "arguments")
    return [Figure("arguments of 1 MiB and back", best, "MB/s", "relay")]


def closure(clients: Clients) -> list[Figure]:
    ballast = bytes(CLOSURE)

    def heavy(number: int) -> int:
        return number + len(ballast)

    begun = time.perf_counter()
    found = clients.usual.gather(clients.usual.map(heavy, range(CLOSURES), pure=False))
    seconds = time.perf_counter() - begun
    _require(found == list(range(CLOSURE, CLOSURE + CLOSURES)), "closure")
    return [Figure("function with 1 MiB in it", CLOSURES / seconds, "tasks/s", "batched")]


WORKS: Final = (
    Work("throughput", f"{TASKS:,} tasks that do nothing", throughput),
    Work("round-trip", "one task, its result, the next", round_trip),
    Work("chain", "each on the result of the last", chain),
    Work("tree", "sums of two", tree),
    Work("fan", "one task, many on its result, one on all of theirs", fan),
    Work("scatter", f"{SCATTERED // MIB} MiB to every worker, and used there", scatter),
    Work("gather", f"{ARRAYS} arrays of {ARRAY // MIB} MiB, path left to gather", gather),
    Work("gather-peer", "the same from the workers' own sockets", gather_peer),
    Work("gather-relay", "the same through the broker", gather_relay),
    Work("arguments", f"{ARGUMENTS} large arguments, there and back", arguments),
    Work("closure", f"{CLOSURES:,} tasks of one large function", closure),
)
