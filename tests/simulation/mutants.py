"""What the tests would not notice: alter one guard of the machines at a time, and see whether anything fails.

    python tests/simulation/mutants.py [WORD …] [--sample N] [--seed S] [--schedules K] [--jobs J] [--tests PATH …]

A mutant has one condition negated, or one early ``return``, ``continue`` or ``break`` taken away; words choose mutants
by their names, as they are printed. First all tests of the machines and K schedules of the simulator are lived as they
are, and it is noted which lines of the machines each comes past. Then each mutant is lived by a fork of this process,
in which the altered function takes the place of the original: by all that comes past the guard, the quickest first,
until something fails. It is caught if something does, or does not come to an end. Prints every survivor with its line,
and exits with 1 if fewer than 95 % are caught, not counting those that `EQUIVALENT` shows to change nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pickle
import random
import resource
import select
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "brokers"), str(Path(__file__).parent)]

import pytest  # noqa: E402
from _pytest.runner import runtestprotocol  # noqa: E402
from guards import Mutant, altered, mutants, parts  # noqa: E402
from hypothesis import Phase, settings  # noqa: E402

PACKAGES = {"zdist_broker": ROOT / "brokers" / "zdist_broker", "zdist.core": ROOT / "zdist" / "core"}
DRIVERS = {"zdist_broker.__main__", "zdist_broker.server"}
TESTS = [f"tests/unit/{name}" for name in ("broker", "core", "data", "node", "client", "worker")]
WANTED = 0.95
SLACK, TIMES = 20, 5  # seconds, and times what it takes otherwise; a mutant that takes longer gets nowhere any more
SURVEY = 3600  # seconds that the first life may take
MEMORY = 6 << 30  # bytes that it may take
SURVIVES, SCHEDULES, BY_TEST, UNALTERED = 0, 1, 2, 3  # exit codes

#: Mutants that nobody could tell from the original, by their names, and why.
EQUIVALENT = {
    "zdist_broker.notices.Notices.turn: without 'return' if not starving and (not self.lacks)": "the rest of the "
    "function goes over the two, and they are empty",
    "zdist_broker.parse.options: without 'return _DEFAULTS' if not fields": "fields that are not there are taken from "
    "the same defaults, which are fit",
    "zdist_broker.placement.Placement._assign_ready: without 'return' if not dirty": "the rest of the function goes "
    "over what is dirty, and that is nothing",
    "zdist.core.wants.Wants._pump: without 'return' if lone is not None and (not self.flying) and (len(queue) == 1) "
    "and (queue[0] is lone) and self._go_early(lone)": "the queue is empty then, and the rest of the function idle",
    "zdist_broker.shared.Shared.cancel: without 'return' if ops.pop((session, req), None) is not None": (
        "an operation waits at one place, and has no answer yet"
    ),
    "zdist_broker.state.Tables.holders: without 'return holder.sessions' if len(holders) == 1": (
        "the rest of the function finds the same for one"
    ),
    "zdist.core.calls.Calls.tick: without 'return' if now < self.next": (
        "nothing is due before that, as `check` requires; only what is due next is found again"
    ),
    "zdist.core.collect.Collections.close: without 'return' if self.open.pop(collection.ticket, None) is None": (
        "what is closed fetches nothing, and does nothing with what it is told"
    ),
    "zdist.core.fetch.Fetcher._accept: without 'return False' if transfer.got == total": (
        "the transfer is done, and nobody looks at its gaps any more"
    ),
    "zdist.core.gather._best: without 'return _batches(plan, ways, links, why)' if cost[0] <= soonest and "
    "all((link.path == PEER for link in plan))": "whatever takes a relay ends later, and is not taken",
    "zdist.core.gather._unshared: without 'return [_single(keys, sum(sizes), ways[holders[0]], links, direct)]' if "
    "len(holders) == 1": "`_best` finds the same, but for rounding",
    "zdist_broker.data.Data.tick: without 'return' if not self.tables.placing or now < self.look_at": "who is silent "
    "is found out sooner, by the same measure",
    "zdist.core.lineage.Lineage._release_spent: without 'return' if not spent and (not self.parting or self.leaving or "
    "self.again_at < float('inf'))": "what is still to be said again keeps its inputs in the rest of the function, too",
    "zdist_broker.endpoint.BrokerEndpoint._accept: without 'return' if fresh is None": "who owes a confirmation is in "
    "`due` already, and what is not fresh goes no further",
    "zdist_broker.intake.Intake._create: without 'return' if not waiting": "all "
    "inputs have arrived then: none is assigned",
    "zdist_broker.intake.Intake.release: without 'continue' if task.state == MEMORY and (not task.dependents) and "
    "(not task.deps)": "`tidy` passes by what has been forgotten",
    "zdist_broker.lanes.Lanes._end: without 'return' if worker.lane is not lane": "the worker is gone then, with its "
    "tasks and what was ahead, and is sent nothing",
    "zdist.core.ledger.Ledger.tick: without 'return' if now < self.again_at": "nothing is due then, and the next time "
    "comes out the same",
    "zdist.core.session.batches: without 'return [messages]' if len(messages) <= MESSAGES "
    "and (not any((isinstance(message, ALONE) for message in messages)))": "the loop puts these into one packet, too",
    "zdist.core.session.parcels: without 'return [(messages[0],)]' if len(messages) == 1": "the rest does the same",
    "zdist.core.store.Pieces.slice: without 'return self.pieces' if offset == 0 and length >= self.nbytes": "the loop "
    "finds all pieces, too, but for empty ones",
    "zdist.core.worker.WorkerMachine.remove: not (len(self.queue) > 2 * len(self.tasks) + 64)": "leftovers go at every "
    "removal then, which only takes time",
}


class Life(NamedTuple):
    """A test or schedule that can be lived: what it takes, and the lines that it comes past."""

    seconds: float
    kind: int  # BY_TEST or SCHEDULES
    number: int  # of the test, or the seed
    lines: frozenset[tuple[str, int]]


# --- what there is to live ----------------------------------------------------------------------------------


class Lines:
    """The lines of the machines that anything in this process comes past."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = set(map(str, paths))
        self.seen: set[tuple[str, int]] = set()

    def __enter__(self) -> Lines:
        threading.settrace(self._call)
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self.paths else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def live(kind: int, number: int, items: list[pytest.Item]) -> bool:
    """Live one test or schedule; whether it is as it should be."""
    if kind == BY_TEST:
        return not any(report.failed for report in runtestprotocol(items[number], log=False))
    from zdist.testing.schedule import Schedule

    try:
        Schedule(number).run()
    except Exception:
        return False
    return True


def survey(share: list[tuple[int, int]], items: list[pytest.Item], paths: list[Path]) -> list[Life]:
    """Live these, and note what each takes and comes past. What fails although nothing is altered says nothing."""
    found = []
    for kind, number in share:
        begin = time.monotonic()
        if not live(kind, number, items):
            continue
        seconds = time.monotonic() - begin
        with Lines(paths) as lines:
            live(kind, number, items)
        found.append(Life(seconds, kind, number, frozenset(lines.seen)))
    return found


# --- forks --------------------------------------------------------------------------------------------------


def forked(works: Iterable[tuple[Any, float, Callable[[], int]]], jobs: int) -> Iterator[tuple[Any, int | None]]:
    """Do each work (name, most seconds, function) in a fork of its own, ``jobs`` at once; names and exit codes as they
    come, None for one that took too long."""
    rest = iter(works)
    poll = select.poll()
    flying: dict[int, tuple[Any, int, float]] = {}  # by pidfd: name, pid, until when
    while True:
        for name, seconds, work in rest:
            pid = os.fork()
            if not pid:
                _be_child(work)
            fd = os.pidfd_open(pid)
            poll.register(fd, select.POLLIN)
            flying[fd] = (name, pid, time.monotonic() + seconds)
            if len(flying) >= jobs:
                break
        if not flying:
            return
        poll.poll(max(0.0, min(until for _, _, until in flying.values()) - time.monotonic()) * 1000)
        for fd, (name, pid, until) in list(flying.items()):
            late = time.monotonic() >= until
            if late:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if ended:
                poll.unregister(fd)
                os.close(fd)
                del flying[fd]
                yield name, None if late else os.waitstatus_to_exitcode(status)


def _be_child(work: Callable[[], int]) -> None:
    code = 255
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        code = work()
    finally:
        os._exit(code)


# --- mutants ------------------------------------------------------------------------------------------------


def functions(paths: Iterable[Path]) -> dict[tuple[str, str, int], list[FunctionType]]:
    """The functions that live in this process, by file, name and first line."""
    known = set(map(str, paths))
    found: dict[tuple[str, str, int], list[FunctionType]] = {}
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename in known:
            found.setdefault(place(function.__code__), []).append(function)
    return found


def place(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def alter(mutant: Mutant, alive: dict[tuple[str, str, int], list[FunctionType]]) -> bool:
    """Put the altered function in the place of the original, wherever that is used."""
    changed = False
    for code in parts(altered(mutant)):
        for function in alive.get(place(code), ()):
            if function.__code__ != code:
                function.__code__ = code
                changed = True
    return changed


def judge(
    mutant: Mutant, lives: list[Life], items: list[pytest.Item], alive: dict[tuple[str, str, int], list[FunctionType]]
) -> int:
    """Live a mutant, until something fails; an exit code."""
    if not alter(mutant, alive):
        return UNALTERED
    for life in lives:
        if not live(life.kind, life.number, items):
            return life.kind
    return SURVIVES


class Court:
    """All of it, in the place where pytest would run the tests that it has collected."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.good = False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of the loop over all tests."""
        everything: list[Mutant] = []
        for package, folder in PACKAGES.items():
            for path in sorted(folder.glob("*.py")):
                module = package if path.stem == "__init__" else f"{package}.{path.stem}"
                if module not in DRIVERS:
                    importlib.import_module(module)
                    everything += mutants(module, path)
        words = self.options.words
        chosen = [mutant for mutant in everything if not words or any(word in mutant.name for word in words)]
        chosen = [mutant for mutant in chosen if mutant.name not in EQUIVALENT]
        if self.options.sample:
            chosen = random.Random(self.options.seed).sample(chosen, min(self.options.sample, len(chosen)))
        self.good = self._judge(chosen, session.items)
        return True

    def _survey(self, items: list[pytest.Item], paths: list[Path]) -> list[Life]:
        both = [(BY_TEST, number) for number in range(len(items))]
        both += [(SCHEDULES, seed) for seed in range(self.options.schedules)]
        random.Random(0).shuffle(both)
        found: list[Life] = []
        with tempfile.TemporaryDirectory() as folder:

            def work(part: int) -> int:
                lives = survey(both[part :: self.options.jobs], items, paths)
                Path(folder, str(part)).write_bytes(pickle.dumps(lives))
                return 0

            tasks = [(part, SURVEY, lambda part=part: work(part)) for part in range(self.options.jobs)]
            for part, code in forked(tasks, self.options.jobs):
                if code != 0:
                    raise pytest.UsageError(f"the survey ended with {code}: run the tests and the simulator")
                found += pickle.loads(Path(folder, str(part)).read_bytes())
        return sorted(found)

    def _judge(self, chosen: list[Mutant], items: list[pytest.Item]) -> bool:
        begin = time.monotonic()
        paths = sorted({mutant.path for mutant in chosen})
        print(f"{len(chosen)} mutants; {len(items)} tests, {self.options.schedules} schedules", flush=True)
        lives = self._survey(items, paths)
        left = len(items) + self.options.schedules - len(lives)
        print(f"lived once in {time.monotonic() - begin:.0f} s; {left} fail unaltered and are left out", flush=True)
        alive = functions(paths)

        def works() -> Iterator[tuple[Mutant, float, Callable[[], int]]]:
            for mutant in chosen:
                own = {(str(mutant.path), line) for line in mutant.lines}
                those = [life for life in lives if own & life.lines]
                most = SLACK + TIMES * sum(life.seconds for life in those)
                yield mutant, most, lambda mutant=mutant, those=those: judge(mutant, those, items, alive)

        names = {None: "time", SCHEDULES: "schedules", BY_TEST: "tests"}
        caught: Counter[str] = Counter()
        survivors = 0
        for mutant, code in forked(works(), self.options.jobs):
            if code in (SURVIVES, UNALTERED):
                survivors += 1
                verb = "survives" if code == SURVIVES else "cannot be altered while it runs"
                print(f"{verb}: line {mutant.line} of {mutant.name}", flush=True)
            else:
                caught[names.get(code, "a crash")] += 1
        share = 1 - survivors / max(1, len(chosen))
        told = ", ".join(f"{count} by {who}" for who, count in caught.items())
        print(f"{share:.1%} caught ({told}), {survivors} survive, in {time.monotonic() - begin:.0f} s")
        return share >= WANTED


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if enough mutants are caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="mutants whose names have one of these in them; default: all")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--schedules", type=int, default=200, help="that are lived")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="that are lived; default: all of the machines'")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    court = Court(parser.parse_args(argv))
    settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None, derandomize=True)
    settings.load_profile("mutants")
    os.chdir(ROOT)
    pytest.main(
        ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "-W", "ignore", *court.options.tests],
        plugins=[court],
    )
    return 0 if court.good else 1


if __name__ == "__main__":
    raise SystemExit(main())
