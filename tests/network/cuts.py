"""What becomes of futures when a link between two roles is cut, and heals?

``python tests/network/cuts.py [--pair X]... [--way X]... [--seconds N]... [--seed N]``; needs root, about 15 minutes.
Each row is a network of its own, in which users do works whose answers are known (chains, trees, failures, large
results by every path, scattered data, tasks in tasks) while what one of two roles sends to the other is dropped, or
what both do: for 5 s, and for longer than the lease of any of the two. A row is violated when a future was resolved
wrongly, not once or never; when a work took longer than the cut can hold it up, and a quarter of a minute; when the
broker's tables do not come to what they were before; or when anything was left behind. Exits with 1 then.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from lab import namespaces_refused
from topologies import Stage, stage

from zdist.limits import COPIES_KEPT, LEASE_CLIENT, LEASE_NODE

PAIRS: Final = {
    "client-broker": ("client", "broker"),
    "node-broker": ("w1", "broker"),
    "client-worker": ("client", "w1"),
    "worker-worker": ("w1", "w2"),
}
WAYS: Final = ("forth", "back", "both")  # what the first sends to the second is dropped, what it is sent, all
SHORT: Final = 5.0
BEYOND: Final = 12.0  # seconds by which a long cut is longer than a lease; TCP itself tries again ever more slowly then
BEFORE: Final = 2.0  # seconds for which the users are at work before the cut
LATE: Final = 15.0  # seconds that a work may take beyond what a cut holds it up,
HUNG: Final = 60.0  # and from the heal until a future hangs
DROPPED: Final = ("quota cut { over 1 bytes }",)  # tells whether the cut has dropped anything
HEADS: Final = ("link", "way", "cut s", "futures", "wrong", "hung", "lost", "works", "heal s", "longest s", "")
WIDTHS: Final = (13, 5, 6, 8, 6, 5, 5, 6, 7, 10, 1)


class Cell(NamedTuple):
    """A cut of one link."""

    pair: str
    way: str
    seconds: float

    def rules(self) -> list[str]:
        """Of the router, while it is cut."""
        one, other = PAIRS[self.pair]
        ways = {"forth": [(one, other)], "back": [(other, one)], "both": [(one, other), (other, one)]}[self.way]
        return [f'iifname "{sender}" oifname "{receiver}" quota name "cut" drop' for sender, receiver in ways]

    def holds_up(self) -> float:
        """Seconds that a work may have to wait: a client without its broker until that is back, a worker's tasks until
        it is given up. Data goes by other ways."""
        return {"client-broker": self.seconds, "node-broker": min(self.seconds, LEASE_NODE)}.get(self.pair, 0.0)


class Row(NamedTuple):
    """What became of it."""

    cell: Cell
    futures: int
    wrong: int
    hung: int
    lost: int  # works whose scattered data went with its only worker, and that were told so
    works: int  # that were finished during the cut
    healed: float  # seconds from the heal until all that had begun was done
    longest: float  # seconds that one work took
    violations: list[str]

    def cells(self) -> list[str]:
        return [
            self.cell.pair, self.cell.way, f"{self.cell.seconds:g}", str(self.futures), str(self.wrong), str(self.hung),
            str(self.lost), str(self.works), f"{self.healed:.1f}", f"{self.longest:.1f}",
            "VIOLATED" if self.violations else "",
        ]  # fmt: skip


def long(pair: str) -> float:
    """Longer than the lease of any of the two."""
    return BEYOND + (LEASE_CLIENT if "client" in PAIRS[pair] else LEASE_NODE)


def line(cells: Sequence[str]) -> str:
    """One line of the table."""
    return "  ".join(
        cell.ljust(width) if i < 2 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    ).rstrip()


def cut(there: Stage, cell: Cell, seed: int, before: float = BEFORE) -> Row:
    """Let users work on a network that is set up, and cut the link meanwhile."""
    empty = there.agent.ask("begin", seed=seed, within=cell.seconds + HUNG)
    time.sleep(before)
    there.lab.firewall(*cell.rules(), objects=DROPPED)
    done = there.agent.ask("done")
    time.sleep(cell.seconds)
    works = there.agent.ask("done") - done
    dropped = there.lab.passed("cut") > 0
    there.lab.firewall()
    told = there.agent.ask("end", patience=2 * (cell.seconds + HUNG))
    # what clients that were given up had asked for goes with their lease, and copies that nobody claims after a while
    after = there.agent.ask("tables", patience=120.0, wanted=empty, within=LEASE_CLIENT + COPIES_KEPT + 10)
    wrongs = told["wrongs"]
    hung = sum("was not there after" in wrong or "resolved 0 times" in wrong for wrong in wrongs)
    violations = list(wrongs)
    if not dropped or told["longest"] < cell.holds_up() / 2:
        violations.append(f"nobody felt the cut: packets dropped: {dropped}, longest work {told['longest']:.1f} s")
    if told["longest"] > cell.holds_up() + LATE:
        violations.append(f"a work took {told['longest']:.1f} s")
    if after != empty:
        violations.append(f"tables: {after} instead of {empty}")
    return Row(
        cell,
        told["futures"],
        len(wrongs) - hung,
        hung,
        told["lost"],
        works,
        told["seconds"],
        told["longest"],
        violations,
    )


def main() -> int:
    """Print the table; 1 if a row is violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", action="append", choices=list(PAIRS), help="default: all")
    parser.add_argument("--way", action="append", choices=WAYS, help="default: all")
    parser.add_argument("--seconds", action="append", type=float, help="default: 5, and longer than the lease")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what was set up is taken down
    if why := namespaces_refused():
        print(f"no laboratory here: {why}", file=sys.stderr)
        return 2
    print(line(HEADS), flush=True)
    violated = 0
    for pair in options.pair or PAIRS:
        for seconds in options.seconds or (SHORT, long(pair)):
            for way in options.way or WAYS:
                left: list[str] = []
                with stage("open", left=left) as there:
                    row = cut(there, Cell(pair, way, seconds), options.seed)
                row.violations.extend(f"left behind: {what}" for what in left)
                print(line(row.cells()), *row.violations, sep="\n    ", flush=True)
                violated += bool(row.violations)
    print(f"{violated} rows are violated" if violated else "no row is violated")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
