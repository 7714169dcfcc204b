"""What relaying costs the broker: ``python tests/benchmarks/relay_memory.py [--gib N] [--readers N]``.

Results of 64 MiB are relayed to readers that take what comes, that are stopped in the middle, and that take nothing,
one and ten of each, in processes of their own. Printed are the growth of the broker's resident memory at its highest
point, and how long a small task of another client takes meanwhile (median), against an idle cluster. Ends with code 1
if the memory grows by more than 128 MiB, or a small task takes more than twice as long.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from relay_readers import BrokerMemory, RawReader, Reader, block, broker_pid, relay_all

from zdist import Client, LocalCluster, wait
from zdist.limits import MIB

COUNT, NBYTES = 8, 64 * MIB
BOUND = 128 * MIB


class Small(threading.Thread):
    """A client in a process's thread of its own that submits one small task after the other."""

    def __init__(self, client: Client) -> None:
        super().__init__(daemon=True)
        self.client, self.seconds, self.over = client, list[float](), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.002):
            begin = time.perf_counter()
            self.client.submit(abs, -1, pure=False).result()
            self.seconds.append(time.perf_counter() - begin)

    def median(self) -> float:
        """End; the median of what it measured."""
        self.over.set()
        self.join()
        return statistics.median(self.seconds)


def idle(client: Client) -> float:
    """Median of a small task while nothing else happens."""
    small = Small(client)
    small.start()
    time.sleep(1.5)
    return small.median()


class Bench:
    """A cluster with results on its workers, a reader, and a client for small tasks."""

    def __init__(self, cluster: LocalCluster, reader: Client, other: Client, total: int) -> None:
        self.cluster, self.reader, self.other = cluster, reader, other
        self.rounds = max(1, total // (COUNT * NBYTES))
        self.blocks = reader.map(block, range(COUNT), [NBYTES] * COUNT, pure=False)
        wait(self.blocks)
        self.memory = BrokerMemory(broker_pid())
        self.raw: list[RawReader] = []
        self.bad = False

    def saturate(self, readers: int) -> None:
        """Relay everything to ``readers`` client processes at once, share and share alike."""
        rounds = -(-self.rounds // readers)
        keys = [future.key for future in self.blocks]
        with ExitStack() as stack:
            started = [stack.enter_context(Reader(self.cluster, keys, rounds)) for _ in range(readers)]
            for reader in started:
                reader.ready()
            before = idle(self.other)

            def read() -> int:
                for reader in started:
                    reader.go()
                return sum(len(reader.go_on()) for reader in started)

            self._measure(f"{readers} saturating", before, read)

    def beside(self, name: str) -> None:
        """Relay everything to one client, while others behave as they do."""

        def read() -> int:
            for _ in range(self.rounds):
                relay_all(self.reader, self.blocks, NBYTES)
                for raw in self.raw:
                    raw.ping()
            return self.rounds * COUNT

        self._measure(f"1 beside {name}", idle(self.other), read)
        self.raw.clear()

    def _measure(self, name: str, before: float, read: Callable[[], int]) -> None:
        small = Small(self.other)
        small.start()
        begin = time.perf_counter()
        values = read()
        seconds = time.perf_counter() - begin
        during = small.median()
        print(
            f"{name:34} {values * NBYTES / seconds / 1e6:6.0f} MB/s   broker +{self.memory.growth / MIB:4.0f} MiB   "
            f"small task {before * 1e3:5.2f} ms idle, {during * 1e3:5.2f} ms meanwhile ({during / before:.2f})",
            flush=True,
        )
        self.bad = self.bad or self.memory.growth > BOUND or during > 2 * before


def main() -> int:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--readers", type=int, default=10)
    parser.add_argument("--protocol", default="ipc")
    args = parser.parse_args()
    total, many = int(args.gib * 1024) * MIB, args.readers
    with (
        LocalCluster(2, 2, protocol=args.protocol) as cluster,
        Client(cluster) as reader,
        Client(cluster, set_as_default=False) as other,
    ):
        bench = Bench(cluster, reader, other, total)
        keys = [future.key for future in bench.blocks]
        for number in (1, many):
            bench.saturate(number)
        for number in (1, many):
            with ExitStack() as stack:
                for stopped in [stack.enter_context(Reader(cluster, keys)) for _ in range(number)]:
                    stopped.stop_after_the_first()
                bench.beside(f"{number} stopped half way")
        for number in (1, many):
            with ExitStack() as stack:
                for raw in [stack.enter_context(RawReader(cluster)) for _ in range(number)]:
                    raw.ask(bench.blocks, NBYTES)
                    bench.raw.append(raw)
                bench.beside(f"{number} that take nothing")
        del bench.blocks
    return int(bench.bad)


if __name__ == "__main__":
    sys.exit(main())
