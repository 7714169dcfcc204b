"""Many small results gathered after the fact: ``python tests/benchmarks/small_results.py [--keys N] [--bytes N]``.

The results lie on two workers, finished, none of them here. Printed are keys a second by every path, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Final

from zdist import Client, LocalCluster, wait

WAYS: Final = {"chosen": None, "direct": True, "relay": False}


def make(i: int, nbytes: int) -> bytes:
    """A value of its own for each key."""
    return i.to_bytes(8, "big") + bytes(nbytes - 8)


def measure(client: Client, keys: int, nbytes: int, direct: bool | None) -> float:
    """Keys a second of one gather."""
    futures = client.map(make, range(keys), [nbytes] * keys, pure=False)
    wait(futures)
    begin = time.perf_counter()
    values = client.gather(futures, direct=direct)
    seconds = time.perf_counter() - begin
    assert [int.from_bytes(value[:8], "big") for value in values] == list(range(keys))
    return keys / seconds


def main() -> None:
    """Measure in turns, so that what disturbs the machine disturbs every path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--protocol", default="ipc")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    args = parser.parse_args()
    rates: dict[str, list[float]] = {way: [] for way in args.ways}
    with LocalCluster(2, 1, protocol=args.protocol, inline_result=0) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        for way in args.ways:  # links are learned and code is warm
            measure(client, args.keys, args.bytes, WAYS[way])
        for _ in range(args.rounds):
            for way in args.ways:
                rates[way].append(measure(client, args.keys, args.bytes, WAYS[way]))
    for way, found in rates.items():
        print(f"{way:8} {statistics.median(found):10,.0f} keys/s   best {max(found):10,.0f}")


if __name__ == "__main__":
    main()
