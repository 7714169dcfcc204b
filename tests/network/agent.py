"""A client on a host of the laboratory: reads what to do as lines of JSON, ``[what, options]``, and answers each with
``[true, value]`` or ``[false, [type, text]]``. Ends when its standard input closes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from zdist import Client, Future, wait
from zdist.cli import chaos_works
from zdist.cli.chaos_works import Tally, use
from zdist.limits import MIB

LARGE: Final = 1 << 16  # values from this size on are arrays
STRIDE: Final = 512  # of the elements that are looked at: one in each page
PATIENCE: Final = 60.0
TABLES: Final = ("tasks", "data", "held", "wants", "assigned", "placing", "relay", "clients", "workers", "nodes")


# --- what runs on workers (pickled by value, as this is __main__ there too) ------------------------------------


def make(i: int, size: int) -> Any:
    """The i-th value of a size: every page and every position says which it is."""
    if size >= LARGE:
        return np.arange(i, i + size // 8, dtype="i8")
    return ((i * 0x9E3779B97F4A7C15) % (1 << 64)).to_bytes(8, "little") * (size // 8) + bytes(size % 8)


def spin(flag: str) -> None:
    """Pure Python, as long as the file is there."""
    open(f"{flag}.{os.getpid()}", "w").close()
    while os.path.exists(flag):
        sum(i * i for i in range(20_000))


def hold(flag: str) -> None:
    """Hold the interpreter's lock in C, 50 ms at a time, as long as the file is there."""
    open(f"{flag}.{os.getpid()}", "w").close()
    libc = ctypes.PyDLL(None)
    while os.path.exists(flag):
        libc.usleep(50_000)


# --- what the users of a network that is cut do ----------------------------------------------------------------


def relayed(client: Client, rng: random.Random, tally: Tally) -> None:
    """Results that come by the broker and in no other way."""
    seeds = [rng.randrange(1 << 30) for _ in range(3)]
    futures = tally.take(client.map(chaos_works.noise, seeds, [MIB] * 3, pure=False))
    found = client.gather(futures, direct=False, timeout=chaos_works.PATIENCE)
    chaos_works.expect(found, [chaos_works.noise(seed, MIB) for seed in seeds], "relayed")


USERS: Final = (
    (chaos_works.chain, chaos_works.tree, chaos_works.stream),
    (chaos_works.nests, chaos_works.squares, chaos_works.failing),
    (chaos_works.arrays,),
    (chaos_works.passed_on, chaos_works.scattered),
    (relayed,),
)


# --- what is asked for -------------------------------------------------------------------------------------------


def right(value: Any, i: int, size: int) -> bool:
    """Is this the value that `make` made?"""
    if size < LARGE:
        return bool(value == make(i, size))
    if len(value) != size // 8:
        return False
    return bool((value[::STRIDE] == np.arange(i, i + size // 8, STRIDE)).all() and value[-1] == i + size // 8 - 1)


class Actor:
    """The client, and the futures that it has made."""

    def __init__(self) -> None:
        self.client: Client | None = None
        self.users: list[Client] = []
        self.futures: list[Future] = []
        self.expected: list[tuple[int, int]] = []
        self.address: tuple[str, dict[str, Any]] = ("", {})

    def connect(self, address: str, workers: int, **options: Any) -> None:
        """Connect, in place of an earlier client, and wait for so many workers."""
        self.close()
        self.address = (address, options)
        self.client = Client(address, timeout=PATIENCE, set_as_default=False, **options)
        self.client.wait_for_workers(workers, timeout=PATIENCE)

    def prepare(self, groups: Sequence[tuple[int, int]], workers: Sequence[str]) -> int:
        """Have values made, (count, bytes) of each, in turn on these workers, and wait until they are there."""
        assert self.client is not None
        self.futures, self.expected = [], []
        serial = 0
        for count, size in groups:
            rows = [(serial + i, size) for i in range(count)]
            serial += count
            made: list[Any] = [None] * count
            for place, worker in enumerate(workers):
                mine = rows[place :: len(workers)]
                if mine:
                    columns = zip(*mine, strict=True)
                    made[place :: len(workers)] = self.client.map(make, *columns, workers=[worker], pure=False)
            self.futures += made
            self.expected += rows
        wait(self.futures, timeout=PATIENCE)
        return len(self.futures)

    def gather(self, direct: bool | None = None, check: bool = True, timeout: float | None = None) -> dict[str, Any]:
        """Gather all; seconds, and what the report says of it."""
        assert self.client is not None
        return self._gather(self.client, self.futures, direct, check, timeout)

    def fresh(
        self, direct: bool | None = None, first: bool = False, count: int | None = None, check: bool = True,
        **options: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """The same by a client that knows nothing of any path yet; with ``first``, until the first value."""
        address, usual = self.address
        with Client(address, timeout=PATIENCE, set_as_default=False, **{**usual, **options}) as client:
            futures = [Future(future.key, client) for future in self.futures[:count]]
            wait(futures, timeout=PATIENCE)
            if not first:
                return self._gather(client, futures, direct, check, None)
            begun = time.perf_counter()
            values = client.gather(iter(futures), direct=direct)
            value = next(values)
            seconds = time.perf_counter() - begun
            good = right(value, *self.expected[0])
            rest = sum(right(value, *want) for value, want in zip(values, self.expected[1:], strict=False))
            return {"seconds": seconds, "right": good + rest}

    def _gather(
        self, client: Client, futures: list[Future], direct: bool | None, check: bool, timeout: float | None
    ) -> dict[str, Any]:
        before = _carried(client)
        gc.collect()
        gc.disable()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            begun = time.perf_counter()
            try:
                values = client.gather(futures, direct=direct, timeout=timeout)
            finally:
                seconds = time.perf_counter() - begun
                gc.enable()
        found = -1
        if check:
            found = sum(right(value, *want) for value, want in zip(values, self.expected, strict=False))
        return {
            "seconds": seconds,
            "right": found,
            "report": [
                [*way[1:3], keys - before.get(way, (0, 0))[0], nbytes - before.get(way, (0, 0))[1], way[3]]
                for way, (keys, nbytes) in _carried(client).items()
                if nbytes > before.get(way, (0, 0))[1]
            ],
            "warnings": [str(warning.message) for warning in caught],
        }

    def busy(self, kind: str, flag: str, workers: Sequence[str]) -> list[str]:
        """Keep a thread of each of these workers busy as long as the file is there; returns when all are."""
        assert self.client is not None
        open(flag, "w").close()
        task = {"python": spin, "gil": hold}[kind]
        self.tasks = [self.client.submit(task, flag, workers=[worker], pure=False) for worker in workers]
        folder, name = os.path.split(flag)
        until = time.monotonic() + PATIENCE
        while sum(entry.startswith(name + ".") for entry in os.listdir(folder)) < len(workers):
            if time.monotonic() > until:
                raise TimeoutError("the workers have not begun")
            time.sleep(0.01)
        return [future.status for future in self.tasks]

    def idle(self, flag: str) -> list[str]:
        """End that."""
        os.unlink(flag)
        wait(self.tasks, timeout=PATIENCE)
        return [future.status for future in self.tasks]

    def compute(self, workers: Sequence[str]) -> int:
        """Add up on one worker what was made on another: their path, not the client's. Zero if the sum is right."""
        assert self.client is not None
        there, here = workers
        size, i = 1 << 22, 7
        value = self.client.submit(make, i, size, workers=[there], pure=False)
        total = self.client.submit(lambda array: int(array.sum()), value, workers=[here], pure=False)
        n = size // 8
        return int(total.result(PATIENCE)) - n * i - n * (n - 1) // 2

    def begin(self, seed: int, within: float) -> dict[str, int]:
        """Users begin to do works with known answers. The broker's tables before that, but with their clients and those
        that the workers' processes keep once a task has needed one."""
        assert self.client is not None
        self._part()
        chaos_works.PATIENCE = within  # seconds after which a future hangs
        address, options = self.address
        self.users = [Client(address, timeout=PATIENCE, set_as_default=False, **options) for _ in USERS]
        workers = list(self.client.scheduler_info()["workers"])
        asked = [self.client.submit(chaos_works.nested, 1, workers=[worker], pure=False) for worker in workers]
        self.client.gather(asked, timeout=PATIENCE)
        del asked
        tables = self.tables({"tasks": 0, "wants": 0, "held": 0}, PATIENCE)
        self.over = threading.Event()
        self.tallies = [Tally() for _ in USERS]
        self.threads = [
            threading.Thread(target=use, args=(client, seed + i, tally, self.over.is_set, works), daemon=True)
            for i, (client, tally, works) in enumerate(zip(self.users, self.tallies, USERS, strict=True))
        ]
        for thread in self.threads:
            thread.start()
        return tables

    def done(self) -> int:
        """Works that the users have finished so far."""
        return sum(tally.works.total() for tally in self.tallies)

    def end(self) -> dict[str, Any]:
        """The users finish the works that they have begun. Seconds until then, and what became of their futures."""
        begun = time.monotonic()
        self.over.set()
        for thread in self.threads:
            thread.join()
        seconds = time.monotonic() - begun
        told = [tally.as_data() for tally in self.tallies]
        return {
            "seconds": seconds,
            "futures": sum(one["futures"] for one in told),
            "lost": sum(one["lost"] for one in told),
            "longest": max(one["longest"] for one in told),
            "wrongs": [wrong for one in told for wrong in one["wrongs"]],
        }

    def tables(self, wanted: dict[str, int], within: float) -> dict[str, int]:
        """The broker's tables, as soon as these have come to what is wanted, or after so many seconds."""
        assert self.client is not None
        end = time.monotonic() + within
        while True:
            counts = self.client.counts()
            if all(counts[name] == count for name, count in wanted.items()) or time.monotonic() > end:
                return {name: counts[name] for name in TABLES}
            time.sleep(0.05)

    def _part(self) -> None:
        for client in self.users:
            client.close()
        self.users = []

    def close(self) -> None:
        """End the clients."""
        self._part()
        self.futures, self.expected = [], []
        if self.client is not None:
            self.client.close()
            self.client = None


def _carried(client: Client) -> dict[tuple[int, str, str, str], tuple[int, int]]:
    """Keys and bytes of each batch that the report knows; gathers of one future in a row add to the same one."""
    return {(b.gather, b.path, b.worker, b.reason): (b.keys, b.bytes) for b in client.gather_report()}


def main() -> None:
    """Answer until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to the log
    actor = Actor()
    try:
        for line in sys.stdin:
            what, options = json.loads(line)
            try:
                answer = [True, getattr(actor, what)(**options)]
            except Exception as exc:
                answer = [False, [type(exc).__name__, str(exc)]]
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        actor.close()


if __name__ == "__main__":
    main()
