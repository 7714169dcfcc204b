"""Run many schedules: ``python -m zdist.testing.simulate --seeds 2000``; ``--seed N`` replays one."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from zdist.testing.schedule import Schedule

__all__ = ["main"]

Outcome = tuple[int, str, int, int, Counter[str], Counter[str]]


def _one(seed: int) -> Outcome:
    schedule = Schedule(seed)
    try:
        report = schedule.run()
    except Exception:
        return seed, traceback.format_exc(limit=-3), 0, 0, schedule.report.faults, Counter()
    return seed, "", report.tasks, report.early, report.faults, report.outcomes


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if every schedule kept every promise; else 1, with the seeds that did not."""
    parser = argparse.ArgumentParser(prog="python -m zdist.testing.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many schedules")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    if options.seed is not None:
        report = Schedule(options.seed).run()
        told = f"{dict(report.faults)}, {dict(report.outcomes)}"
        print(f"seed {options.seed}: {report.tasks} tasks, {report.early} by lanes, {told}")
        return 0
    begin = time.perf_counter()
    failed: list[int] = []
    kinds = Counter[str]()  # of failures; only the first of a kind is shown whole
    tasks, lone, faults, outcomes = 0, 0, Counter[str](), Counter[str]()
    with ProcessPoolExecutor(options.jobs) as pool:
        for seed, error, count, early, struck, ends in pool.map(
            _one, range(options.start, options.start + options.seeds), chunksize=8
        ):
            tasks += count
            lone += early
            faults += struck
            outcomes += ends
            if error:
                failed.append(seed)
                last = error.strip().splitlines()[-1]
                kind = re.sub(r"\d+|[0-9a-f]{8,}", "#", last)[:60]
                kinds[kind] += 1
                print(f"--- seed {seed}\n{error}" if kinds[kind] == 1 else f"--- seed {seed}: {last[:300]}", flush=True)
    seconds = time.perf_counter() - begin
    print(
        f"{options.seeds} schedules in {seconds:.1f} s: {tasks} tasks, {lone} of them by lanes, "
        f"faults {dict(faults)}, ends {dict(outcomes)}"
    )
    if failed:
        print(f"{len(failed)} broke a promise; replay with --seed N: {failed[:20]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
