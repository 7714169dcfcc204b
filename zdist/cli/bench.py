"""``zdist bench``: how fast a cluster is, beside what bare ZeroMQ does on this machine in the same minute."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import sys
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from zdist.cli.works import WORKS, Clients, Figure, Work

if TYPE_CHECKING:
    from zdist.transport.floor import Floor

__all__ = ["command"]

PIPED: Final = 120  # columns where nobody says how many there are
FLOOR_STEPS: Final = 6
NAMES: Final = [work.name for work in WORKS]


@click.command("bench")
@click.argument("address", required=False)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Of the local cluster.")
@click.option("--token-file", metavar="FILE", type=click.Path(dir_okay=False), help="Where the cluster token lies.")
@click.option(
    "--work", "chosen", multiple=True, type=click.Choice(NAMES), help="Only this; may be given more than once."
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Medians of so many.")
@click.option("--floor/--no-floor", "with_floor", default=True, show_default=True, help="Measure bare ZeroMQ as well.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def command(
    address: str | None,
    workers: int,
    token_file: str | None,
    chosen: tuple[str, ...],
    rounds: int,
    with_floor: bool,
    as_json: bool,
) -> None:
    """Measure the cluster of the broker at ADDRESS, or a local one made for it.

    Beside each figure stands the floor: the nearest thing that bare ZeroMQ sockets do on this machine, on the loopback
    and without any bookkeeping, measured in the same minute. Figures change with whatever else the machines do.
    """
    works = [work for work in WORKS if not chosen or work.name in chosen]
    with progress() as bar:
        floor = None
        if with_floor:
            from zdist.transport.floor import measure

            task = bar.add_task("bare ZeroMQ", total=FLOOR_STEPS)
            floor = measure(lambda: bar.advance(task))
        task = bar.add_task("connecting", total=rounds * len(works))
        with clients(address, workers, token_file) as both:
            about = describe(both, address)
            figures: dict[str, list[Figure]] = {}
            for _ in range(rounds):
                for work in works:
                    bar.update(task, description=f"{work.name}: {work.text}")
                    for figure in run(work, both):
                        figures.setdefault(figure.name, []).append(figure)
                    bar.advance(task)
    medians = [found[0]._replace(value=median(figure.value for figure in found)) for found in figures.values()]
    if as_json:
        click.echo(json.dumps(as_data(medians, floor, about, rounds), indent=2))
    else:
        console = Console()
        show(medians, floor, about, console if console.is_terminal else Console(width=PIPED))


def run(work: Work, both: Clients) -> list[Figure]:
    """The figures of one work; garbage of the last one is not collected in the middle of it."""
    import gc

    gc.collect()
    return work.run(both)


@contextlib.contextmanager
def clients(address: str | None, workers: int, token_file: str | None) -> Iterator[Clients]:
    """Two clients of one cluster."""
    from zdist import Client, LocalCluster, wait

    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"set_as_default": False}
        if token_file is not None:
            options["token_file"] = token_file
        target: Any = address or stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1))
        try:
            usual = stack.enter_context(Client(target, **options))
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="ADDRESS") from None
        sockets = stack.enter_context(Client(target, gather_paths=("peer", "relay"), **options))
        usual.wait_for_workers(workers if address is None else 1, timeout=30)
        yield Clients(usual, sockets, wait)


def describe(both: Clients, address: str | None) -> dict[str, Any]:
    """What was measured, and where."""
    import msgpack

    from zdist import __version__
    from zdist.transport.floor import version

    return {
        "cluster": address or "local",
        "workers": len(both.usual.scheduler_info()["workers"]),
        "zdist": __version__,
        "python": platform.python_version(),
        "zeromq": version(),
        "msgpack": ".".join(map(str, msgpack.version)),
        "machine": f"{platform.machine()}, {cores()} cores",
    }


def cores() -> int:
    """Cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0))


def as_data(figures: list[Figure], floor: Floor | None, about: dict[str, Any], rounds: int) -> dict[str, Any]:
    """All of it; ``floor`` is in the unit of the figure, null where it was not measured."""
    return {
        **about,
        "rounds": rounds,
        "figures": [
            {
                "name": figure.name,
                "value": rounded(figure.value),
                "unit": figure.unit,
                "floor": None if floor is None else rounded(getattr(floor, figure.floor)),
            }
            for figure in figures
        ],
    }


def rounded(value: float) -> float:
    """Four digits."""
    return round(value, max(0, 3 - math.floor(math.log10(abs(value))))) if value else 0.0


def show(figures: list[Figure], floor: Floor | None, about: dict[str, Any], console: Console) -> None:
    """A row for each figure."""
    table = Table(caption=", ".join(f"{name} {value}" for name, value in about.items()), caption_justify="left")
    table.add_column("work")
    for heading in ("zdist", "bare ZeroMQ", "of it"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for figure in figures:
        under = None if floor is None else getattr(floor, figure.floor)
        share = "" if under is None else f"{figure.value / under:.2f}"
        table.add_row(figure.name, number(figure.value), "" if under is None else number(under), share, figure.unit)
    console.print(table)


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def progress() -> Progress:
    """Bars on standard error, if that is a terminal."""
    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*parts, console=console, transient=True, disable=not console.is_terminal or not sys.stderr)
