"""Works whose answers are known, for `zdist.cli.chaos_cluster`: what each leaves behind is nothing.

``python -m zdist.cli.chaos_works ADDRESS SEED`` is a user in a process of its own, which may be killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from zdist.errors import CancelledError, ZdistError
from zdist.limits import KIB, MIB

if TYPE_CHECKING:
    from zdist.client.client import Client

__all__ = ["WORKS", "Tally", "use", "user"]

PATIENCE: Final = 180.0  # seconds after which a future hangs
TOLD: Final = 20  # wrongs that are kept with their text

Work = Callable[["Client", random.Random, "Tally"], None]


class Tally:
    """What became of the futures of one user."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.futures = 0
        self.calls: dict[int, int] = {}  # of futures that have not been resolved just once yet
        self.works = Counter[str]()
        self.lost = 0  # scattered data that went with its workers, and said so
        self.longest = 0.0  # seconds that a work has taken
        self.wrongs: list[str] = []

    def take(self, futures: Iterable[Any]) -> list[Any]:
        """Count how often each of these futures is resolved."""
        taken = list(futures)
        for future in taken:
            with self.lock:
                self.futures += 1
                number = self.futures
                self.calls[number] = 0
            future.add_done_callback(lambda _, number=number: self._resolved(number))
        return taken

    def _resolved(self, number: int) -> None:
        with self.lock:
            self.calls[number] += 1

    def settle(self, work: str) -> None:
        """All futures of this work have had their results read: each must have been resolved once."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with self.lock:
                if all(self.calls.values()):
                    break
            time.sleep(0.01)
        with self.lock:
            for count, times in sorted(Counter(self.calls.values()).items()):
                if count != 1:
                    self.wrong(f"{work}: {times} futures were resolved {count} times")
            self.calls.clear()

    def wrong(self, text: str) -> None:
        """A promise was broken."""
        if len(self.wrongs) < TOLD:
            self.wrongs.append(text)

    def as_data(self) -> dict[str, Any]:
        """For the other process."""
        return {
            "futures": self.futures,
            "works": dict(self.works),
            "lost": self.lost,
            "longest": self.longest,
            "wrongs": self.wrongs,
        }


def use(client: Client, seed: int, tally: Tally, over: Callable[[], bool], works: Sequence[Work] | None = None) -> None:
    """Do one work after the other, of these or all, until it is over."""
    rng = random.Random(seed)
    while not over():
        work = rng.choice(works or WORKS)
        begun = time.monotonic()
        try:
            work(client, rng, tally)
        except TimeoutError:
            tally.wrong(f"{work.__name__}: a future was not there after {PATIENCE:g} s")
        except Exception as exc:
            tally.wrong(f"{work.__name__}: {type(exc).__name__}: {exc}")
        tally.settle(work.__name__)
        tally.works[work.__name__] += 1
        tally.longest = max(tally.longest, time.monotonic() - begun)


def expect(found: Any, right: Any, what: str) -> None:
    """Raise ZdistError if they differ."""
    if found != right:
        raise ZdistError(f"{what}: {str(found)[:200]} instead of {str(right)[:200]}")


# --- what runs on workers ------------------------------------------------------------------------------


def square(number: int) -> int:
    return number * number


def slowly(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number


def add(*numbers: int) -> int:
    return sum(numbers)


def noise(seed: int, nbytes: int) -> bytes:
    """Bytes that only this seed gives."""
    return random.Random(seed).randbytes(nbytes)


def length(data: bytes, more: int) -> int:
    return len(data) + more


def odd_fails(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number


def nested(numbers: int) -> int:
    from zdist import get_client

    client = get_client()
    return sum(client.gather(client.map(square, range(numbers), pure=False), timeout=PATIENCE))


def mark(path: str) -> None:
    with open(path, "a", encoding="ascii") as file:
        file.write("x")


# --- the works -------------------------------------------------------------------------------------------


def squares(client: Client, rng: random.Random, tally: Tally) -> None:
    count = rng.randrange(20, 400)
    futures = tally.take(client.map(square, range(count), pure=False))
    expect(client.gather(futures, timeout=PATIENCE), [n * n for n in range(count)], "squares")


def shared_names(client: Client, rng: random.Random, tally: Tally) -> None:
    """Other clients ask for the same keys."""
    futures = tally.take(client.map(square, range(100), pure=True))
    expect(client.gather(futures, timeout=PATIENCE), [n * n for n in range(100)], "shared names")


def long_tasks(client: Client, rng: random.Random, tally: Tally) -> None:
    seconds = [rng.uniform(0.1, 1.5) for _ in range(8)]
    futures = tally.take(client.map(slowly, range(8), seconds, pure=False))
    expect(client.gather(futures, timeout=PATIENCE), list(range(8)), "long tasks")


def tree(client: Client, rng: random.Random, tally: Tally) -> None:
    leaves = rng.randrange(2, 128)
    level = tally.take(client.map(square, range(leaves), pure=False))
    while len(level) > 1:
        level = tally.take(client.submit(add, *level[i : i + 4], pure=False) for i in range(0, len(level), 4))
    expect(level[0].result(PATIENCE), sum(n * n for n in range(leaves)), "tree")


def chain(client: Client, rng: random.Random, tally: Tally) -> None:
    future = client.submit(square, 1, pure=False)
    for _ in range(30):
        future = client.submit(add, future, 1, pure=False)
    expect(tally.take([future])[0].result(PATIENCE), 31, "chain")


def arrays(client: Client, rng: random.Random, tally: Tally) -> None:
    """By each path; what is lost in the middle of it is made again."""
    seeds = [rng.randrange(1 << 30) for _ in range(6)]
    sizes = [rng.choice((100, 20 * KIB, 300 * KIB, 3 * MIB)) for _ in seeds]
    futures = tally.take(client.map(noise, seeds, sizes, pure=False))
    direct = rng.choice((None, True, False))
    found = client.gather(futures, direct=direct, timeout=PATIENCE)
    same = [value == noise(seed, nbytes) for value, seed, nbytes in zip(found, seeds, sizes, strict=True)]
    expect(same, [True] * len(seeds), f"arrays by direct={direct}")


def passed_on(client: Client, rng: random.Random, tally: Tally) -> None:
    """Large results as arguments of tasks elsewhere."""
    seeds, nbytes = [rng.randrange(1 << 30) for _ in range(4)], rng.choice((20 * KIB, 2 * MIB))
    made = client.map(noise, seeds, [nbytes] * 4, pure=False)
    futures = tally.take(client.submit(length, data, more, pure=False) for more in range(3) for data in made)
    expect(client.gather(futures, timeout=PATIENCE), [nbytes + m for m in range(3) for _ in made], "passed on")


def scattered(client: Client, rng: random.Random, tally: Tally) -> None:
    """Nobody can compute it again: it is there, or its futures say that it went with its workers."""
    data = rng.randbytes(rng.choice((1000, 500 * KIB)))
    try:
        future = client.scatter(data, hash=False, broadcast=rng.random() < 0.5, timeout=PATIENCE)
        futures = tally.take(client.submit(length, future, more, pure=False) for more in range(6))
        expect(client.gather(futures, timeout=PATIENCE), [len(data) + more for more in range(6)], "scattered")
    except CancelledError as exc:
        if "scattered data" not in str(exc) and "given this client up" not in str(exc):
            raise
        tally.lost += 1


def failing(client: Client, rng: random.Random, tally: Tally) -> None:
    futures = tally.take(client.map(odd_fails, range(20), pure=False))
    found = client.gather(futures, errors="return", timeout=PATIENCE)
    text = [f"ValueError({value})" if isinstance(value, ValueError) else value for value in found]
    expect([str(value) for value in text], [f"ValueError({n})" if n % 2 else str(n) for n in range(20)], "failing")


def nests(client: Client, rng: random.Random, tally: Tally) -> None:
    numbers = rng.randrange(1, 30)
    futures = tally.take(client.map(nested, [numbers] * 4, pure=False))
    expect(client.gather(futures, timeout=PATIENCE), [sum(n * n for n in range(numbers))] * 4, "nests")


def stream(client: Client, rng: random.Random, tally: Tally) -> None:
    """As results come in, more is submitted."""
    from zdist import as_completed

    arrivals = as_completed(tally.take(client.map(square, range(20), pure=False)), timeout=PATIENCE)
    found, more = [], 20
    for future in arrivals:
        found.append(future.result(PATIENCE))
        if more < 60:
            arrivals.add(*tally.take([client.submit(square, more, pure=False)]))
            more += 1
    expect(sorted(found), [n * n for n in range(60)], "stream")


def forgotten(client: Client, rng: random.Random, tally: Tally) -> None:
    """Runs to its end though nobody holds a future of it."""
    from zdist import fire_and_forget

    with tempfile.TemporaryDirectory(prefix="zdist-chaos-", ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, "mark")
        fire_and_forget(client.submit(mark, path, pure=False))
        end = time.monotonic() + PATIENCE
        while not os.path.exists(path) and time.monotonic() < end:
            time.sleep(0.02)
        expect(os.path.exists(path), True, "forgotten: it has run")


WORKS: Final[tuple[Work, ...]] = (
    squares,
    shared_names,
    long_tasks,
    tree,
    chain,
    arrays,
    passed_on,
    scattered,
    failing,
    nests,
    stream,
    forgotten,
)


def user(address: str, seed: int) -> int:
    """Use the cluster until SIGTERM, then print the tally as JSON."""
    from zdist import Client

    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    tally = Tally()
    with Client(address, timeout=PATIENCE, set_as_default=False) as client:
        use(client, seed, tally, over.is_set)
    print(json.dumps(tally.as_data()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(user(sys.argv[1], int(sys.argv[2])))
