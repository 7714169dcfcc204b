"""How good is what ``direct=None`` chooses? Measures every topology and size against the two fixed paths.

``python tests/network/table.py [--topology X]... [--size Y]... [--rounds N]``; needs root. Links are warm, runs are
interleaved (more of them where chance decides), times are medians in seconds. A row misses when None takes longer than
1.10 times the better of True and False plus 10 ms; for a new client one probe and one chunk on the slow path are added.
Exits with 1 if a row misses.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from lab import namespaces_refused
from topologies import CUT_AFTER, NEVER, TOPOLOGIES, Stage, stage

from zdist.limits import CHUNK, MIB, PROBE_TIMEOUT

SIZES: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "10,000 x 100 B": ((10_000, 100),),
    "1,000 x 10 kB": ((1_000, 10_000),),
    "48 x 4 MiB": ((48, 4 * MIB),),
    "1 x 512 MiB": ((1, 512 * MIB),),
    "a mix of all": ((10_000, 100), (1_000, 10_000), (48, 4 * MIB), (1, 512 * MIB)),
}
SHORT: Final = dict(zip(("tiny", "small", "medium", "huge", "mix"), SIZES, strict=True))
MODES: Final = (None, True, False)
# What came before leaves memory and connections in its own way, so each comes after each of the others as often.
ORDERS: Final[tuple[tuple[bool | None, ...], ...]] = (
    (None, True, False), (None, False, True), (False, True, None),
    (True, None, False), (True, False, None), (False, None, True),
)  # fmt: skip
FACTOR: Final = 1.10
GRACE: Final = 0.010
PATIENCE: Final = 180.0  # seconds for one gather
LONG: Final = 4.0  # seconds from which a row is measured with fewer rounds
FEW: Final = 3
FRESH: Final = 5  # gathers of a new client
CHANCE: Final = 3  # times as many of all where chance decides how long each takes
HEADS: Final = (
    "topology", "size", "None", "True", "False", "ratio", "allowed", "paths of None", "new client", "allowed", ""
)  # fmt: skip
WIDTHS: Final = (16, 14, 8, 8, 8, 6, 8, 24, 10, 8, 6)


class Row(NamedTuple):
    """One topology and size."""

    topology: str
    size: str
    times: dict[bool | None, float]
    paths: str
    new: float
    probe: float
    nbytes: int

    @property
    def better(self) -> float:
        return min(self.times[True], self.times[False])

    @property
    def allowed(self) -> float:
        return FACTOR * self.better + GRACE

    @property
    def allowed_new(self) -> float:
        """A probe, and a chunk by the worse path, on top."""
        worse = max(self.times[True], self.times[False])
        return self.allowed + self.probe + worse * min(1.0, CHUNK / self.nbytes)

    @property
    def misses(self) -> str:
        found = "MISS" if self.times[None] > self.allowed else ""
        return found + (" NEW" if self.new > self.allowed_new else "")

    def cells(self) -> list[str]:
        times = [f"{self.times[mode]:.4f}" for mode in MODES]
        ratio = f"{self.times[None] / self.better:.2f}"
        rest = [f"{self.allowed:.4f}", self.paths, f"{self.new:.4f}", f"{self.allowed_new:.4f}", self.misses]
        return [self.topology, self.size, *times, ratio, *rest]


def line(cells: Sequence[str]) -> str:
    """One line of the table."""
    return "  ".join(
        cell.ljust(w) if i in (0, 1, 7) else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )


def shares(report: Sequence[Sequence[Any]]) -> str:
    """Which part of the bytes came by which path."""
    total = sum(batch[3] for batch in report) or 1
    paths = dict.fromkeys(batch[0] for batch in report)
    return ", ".join(f"{path} {100 * sum(b[3] for b in report if b[0] == path) / total:.0f} %" for path in paths)


def checked(got: dict[str, Any], count: int, where: str) -> dict[str, Any]:
    """Timing a wrong result is no use."""
    if got["right"] != count:
        raise SystemExit(f"{where}: {got['right']} of {count} values are right")
    return got


def measure(there: Stage, size: str, rounds: int) -> Row:
    """One row. The first gathers warm the links; a path that is to be cut is cut in the first."""
    groups, where = SIZES[size], f"{there.topology.name}, {size}"
    there.patience = PATIENCE
    count = sum(number for number, _ in groups)
    there.connect()
    there.prepare(*groups)
    if there.topology.cut:
        there.rules(NEVER)
        checked(there.fresh(None), count, where)
        there.rules(min(CUT_AFTER, sum(n * size for n, size in groups) // 2))
    for mode in (*MODES, None):
        checked(there.gather(mode), count, where)
    times: dict[bool | None, list[float]] = {mode: [] for mode in MODES}
    paths = ""
    often = 1 if there.topology.certain else CHANCE
    for number in range(rounds * often):
        for mode in ORDERS[number % len(ORDERS)]:
            got = checked(there.gather(mode), count, where)
            times[mode].append(got["seconds"])
            paths = shares(got["report"]) if mode is None else paths
        if number + 1 >= FEW * often and sum(sum(some) for some in times.values()) > LONG * 3 * (number + 1):
            break
    probe = min(PROBE_TIMEOUT, median(there.fresh(True, count=1)["seconds"] for _ in range(FEW)))
    new = median(checked(there.fresh(None), count, where)["seconds"] for _ in range(FRESH * often))
    medians = {mode: median(some) for mode, some in times.items()}
    nbytes = sum(number * size for number, size in groups)
    return Row(there.topology.name, size, medians, paths, new, probe, nbytes)


def main() -> int:
    """Print the table; 1 if a row misses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", action="append", choices=list(TOPOLOGIES), help="default: all")
    parser.add_argument("--size", action="append", choices=list(SHORT), help="default: all")
    parser.add_argument("--rounds", type=int, default=6, help="gathers of each kind; fewer where they take long")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what was set up is taken down
    if why := namespaces_refused():
        print(f"no laboratory here: {why}", file=sys.stderr)
        return 2
    print(line(HEADS), flush=True)
    missed = []
    for name in options.topology or TOPOLOGIES:
        for size in options.size or SHORT:
            with stage(name) as there:
                row = measure(there, SHORT[size], options.rounds)
            print(line(row.cells()), flush=True)
            if row.misses:
                missed.append(f"{name}, {SHORT[size]}: {row.misses}")
    print(f"{len(missed)} rows miss" if missed else "no row misses", *missed, sep="\n  ")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
