"""zdist beside its peers: the works of ``zdist bench`` on every system that is installed, in turns, in one run.

``python tests/benchmarks/compare.py [--systems zdist dask …] [--works throughput …] [--rounds N] [--write]``

Every system gets two worker processes with one thread each, on this machine, and a fresh process for each round, so
that what disturbs the machine disturbs all of them. ``pip install zdist[bench]`` installs the peers. With ``--write``
the medians go into RESULTS.md, beside the machine, the date and the versions.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from zdist.cli.works import WORKS, Clients

WORKERS: Final = 2
PATIENCE: Final = 240.0  # seconds for a round of one system
RESULTS: Final = Path(__file__).with_name("RESULTS.md")
WORK: Final = {work.name: work for work in WORKS}


# --- the systems: each yields what a work needs of a client -----------------------------------------------------------


@contextlib.contextmanager
def with_zdist() -> Iterator[Clients]:
    from zdist import Client, LocalCluster, wait

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1) as cluster,
        Client(cluster) as usual,
        Client(cluster, gather_paths=("peer", "relay"), set_as_default=False) as sockets,
    ):
        usual.wait_for_workers(WORKERS)
        yield Clients(usual, sockets, wait)


@contextlib.contextmanager
def with_dask() -> Iterator[Clients]:
    """Scheduler and workers as processes, as in a real cluster: the client's interpreter is its own."""
    from distributed import Client, wait

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).with_name("dask"))]
    scheduler = [*command, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
    worker = [*command, "worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        for arguments in (scheduler, *[worker] * WORKERS):
            process = subprocess.Popen(arguments, **quiet)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        client = stack.enter_context(Client(f"tcp://127.0.0.1:{port}", timeout=60))
        client.wait_for_workers(WORKERS)
        yield Clients(client, client, wait)


class Executor:
    """The calls of a client that the works make, on an executor of concurrent.futures' kind."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor

    def submit(self, fn: Callable[..., Any], *args: Any, pure: bool = False) -> Any:
        if any(hasattr(arg, "result") for arg in args):
            raise NotImplementedError("futures are no arguments")
        return self.executor.submit(fn, *args)

    def map(self, fn: Callable[..., Any], *columns: Sequence[Any], pure: bool = False) -> list[Any]:
        return [self.submit(fn, *row) for row in zip(*columns, strict=True)]

    def gather(self, futures: Any, direct: bool | None = None) -> Any:
        if direct is not None:
            raise NotImplementedError("there is one way home")
        return [future.result() for future in futures]

    def clients(self) -> Clients:
        me: Any = self
        return Clients(me, me, self.wait)

    def wait(self, futures: Any) -> None:
        raise NotImplementedError("results come home by themselves")

    def scheduler_info(self) -> Any:
        raise NotImplementedError("there is no scatter")


@contextlib.contextmanager
def with_processpool() -> Iterator[Clients]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as executor:
        yield Executor(executor).clients()


@contextlib.contextmanager
def with_loky() -> Iterator[Clients]:
    from loky import get_reusable_executor

    executor = get_reusable_executor(WORKERS)
    yield Executor(executor).clients()
    executor.shutdown()


@contextlib.contextmanager
def with_ipyparallel() -> Iterator[Clients]:
    import ipyparallel

    with ipyparallel.Cluster(n=WORKERS, log_level=50) as client:
        yield Executor(client.executor()).clients()


@contextlib.contextmanager
def with_parsl() -> Iterator[Clients]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    os.environ["PATH"] += f"{os.pathsep}{Path(sys.executable).parent}"  # it starts programs of its own by name
    with tempfile.TemporaryDirectory(prefix="parsl-") as room:
        pool = HighThroughputExecutor(
            label="pool",
            max_workers_per_node=WORKERS,
            cores_per_worker=1,
            address="127.0.0.1",
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        with parsl.load(Config(executors=[pool], run_dir=room, initialize_logging=False)):
            yield Executor(Apps(parsl.python_app)).clients()


class Apps:
    """Functions made into apps, each once."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make
        self.apps: dict[Any, Any] = {}

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        if fn not in self.apps:
            self.apps[fn] = self.make(fn)
        return self.apps[fn](*args)


@contextlib.contextmanager
def with_scaler() -> Iterator[Clients]:
    from scaler import Client, SchedulerClusterCombo

    cluster = SchedulerClusterCombo(n_workers=WORKERS)
    try:
        with Client(address=cluster.get_address()) as client:
            yield Executor(client).clients()
    finally:
        cluster.shutdown()


class Ray:
    """The same on ray's functions and references."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.remotes: dict[Any, Any] = {}

    def submit(self, fn: Callable[..., Any], *args: Any, pure: bool = False, workers: Any = None) -> Any:
        if fn not in self.remotes:
            self.remotes[fn] = self.ray.remote(fn)
        return Reference(self.ray, self.remotes[fn].remote(*[getattr(arg, "reference", arg) for arg in args]))

    def map(self, fn: Callable[..., Any], *columns: Sequence[Any], pure: bool = False) -> list[Any]:
        return [self.submit(fn, *row) for row in zip(*columns, strict=True)]

    def gather(self, futures: Any, direct: bool | None = None) -> Any:
        if direct is not None:
            raise NotImplementedError("there is one way home")
        return self.ray.get([future.reference for future in futures])

    def wait(self, futures: Any) -> None:
        self.ray.wait([future.reference for future in futures], num_returns=len(futures), fetch_local=False)

    def scatter(self, value: Any, broadcast: bool = False) -> Any:
        return Reference(self.ray, self.ray.put(value))

    def scheduler_info(self) -> Any:
        return {"workers": {n: {"name": n} for n in range(WORKERS)}}


class Reference:
    """An object reference with a result."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def result(self) -> Any:
        return self.ray.get(self.reference)


@contextlib.contextmanager
def with_ray() -> Iterator[Clients]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        system: Any = Ray(ray)
        yield Clients(system, system, system.wait)
    finally:
        ray.shutdown()


SYSTEMS: Final[dict[str, tuple[str, Callable[[], Any]]]] = {
    "zdist": ("zdist", with_zdist),
    "dask": ("distributed", with_dask),
    "ray": ("ray", with_ray),
    "loky": ("loky", with_loky),
    "processpool": ("", with_processpool),
    "ipyparallel": ("ipyparallel", with_ipyparallel),
    "parsl": ("parsl", with_parsl),
    "scaler": ("opengris-scaler", with_scaler),
}


# --- one system, one round --------------------------------------------------------------------------------------------


def run(name: str, works: Sequence[str]) -> None:
    """Print a line of JSON for each figure, or for why there is none."""
    import gc

    with SYSTEMS[name][1]() as clients:
        for work in works:
            gc.collect()
            try:
                for figure in WORK[work].run(clients):
                    print(json.dumps([work, figure.name, figure.unit, figure.value]), flush=True)
            except NotImplementedError:
                continue
            except Exception as exc:  # that a system cannot do a work is told as well
                print(json.dumps([work, "", "", f"{type(exc).__name__}: {exc}"[:200]]), flush=True)


# --- all of them ------------------------------------------------------------------------------------------------------


def compare(names: Sequence[str], works: Sequence[str], rounds: int) -> dict[str, dict[str, list[Any]]]:
    """Figures by name, then by system; the unit under "". What went wrong in a work stands at all of its figures."""
    figures: dict[str, dict[str, list[Any]]] = {}
    parts: dict[str, list[str]] = {}  # of a work
    failures: dict[str, dict[str, list[str]]] = {}
    for number in range(rounds):
        for name in names:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--run", name, "--works", *works]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
            )
            try:
                out, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                out, _ = process.communicate()
            for line in out.splitlines():
                with contextlib.suppress(ValueError):
                    work, figure, unit, value = json.loads(line)
                    if not figure:
                        failures.setdefault(work, {}).setdefault(name, []).append(value)
                        continue
                    if figure not in figures:
                        figures[figure] = {"": [unit]}
                        parts.setdefault(work, []).append(figure)
                    figures[figure].setdefault(name, []).append(value)
    for work, systems in failures.items():
        for figure in parts.get(work, ()):
            for name, texts in systems.items():
                figures[figure].setdefault(name, []).extend(texts)
    return figures


def table(figures: dict[str, dict[str, list[Any]]], names: Sequence[str]) -> list[str]:
    """Lines of Markdown: medians."""
    lines = [f"| work | {' | '.join(names)} | |", f"|---|{'---:|' * len(names)}---|"]
    for name, row in figures.items():
        cells = [cell(row.get(system, [])) for system in names]
        lines.append(f"| {name} | {' | '.join(cells)} | {row[''][0]} |")
    return lines


def cell(values: Sequence[Any]) -> str:
    """A median, or what went wrong."""
    numbers = [value for value in values if not isinstance(value, str)]
    if not numbers:
        return "failed" if values else "-"
    value = statistics.median(numbers)
    return f"{value:,.0f}" if value >= 100 else f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def installed(names: Sequence[str]) -> dict[str, str]:
    """Versions of those that can be had."""
    found = {}
    for name in names:
        package = SYSTEMS[name][0]
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(package) if package else platform.python_version()
    return found


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--works", nargs="*", choices=list(WORK), default=list(WORK))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.name}")
    parser.add_argument("--run", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.works)
        return
    versions = installed(options.systems)
    for name in set(options.systems) - set(versions):
        print(f"{name} is not installed", file=sys.stderr)
    names = list(versions)
    lines = table(compare(names, options.works, options.rounds), names)
    print(*lines, sep="\n")
    if options.write:
        about = [
            f"# Results of {datetime.date.today().isoformat()}",
            "",
            "`python tests/benchmarks/compare.py --write` makes this page: two worker processes of one thread each and",
            f"one client on one machine, medians of {options.rounds} interleaved rounds, each in a fresh process.",
            "",
            f"Machine: {platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()} "
            f"{platform.release().split('-')[0]}, Python {platform.python_version()}. "
            f"Versions: {', '.join(f'{name} {text}' for name, text in versions.items())}.",
            "",
        ]
        RESULTS.write_text("\n".join([*about, *lines, ""]))


if __name__ == "__main__":
    main()
