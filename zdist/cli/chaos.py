"""``zdist chaos``: does anything get lost while processes die?"""

from __future__ import annotations

import json
import random
import signal

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from zdist.cli.chaos_cluster import Chaos, Report
from zdist.errors import ZdistError
from zdist.limits import MIB

__all__ = ["command"]


@click.command("chaos")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="How long.")
@click.option("--seed", type=int, help="Of the works and the order of faults [default: another each time].")
@click.option("--every", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between two faults.")
@click.option(
    "--broker-share",
    type=click.FloatRange(0, 1),
    default=0.15,
    show_default=True,
    help="Part of the faults that befall the broker.",
)
@click.option("--nodes", type=click.IntRange(1), default=2, show_default=True, help="Nodes.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Workers of each node.")
@click.option("--users", type=click.IntRange(1), default=2, show_default=True, help="Clients; one more can be killed.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def command(
    minutes: float,
    seed: int | None,
    every: float,
    broker_share: float,
    nodes: int,
    workers: int,
    users: int,
    as_json: bool,
) -> None:
    """Kill, stop and restart the processes of a local cluster at random while clients use it.

    Every answer is known and checked. The exit code is 1 if a future was lost, resolved twice, wrong or never resolved,
    or if anything is left behind in the end: table rows, processes, shared memory, files.

    \b
    zdist chaos --minutes 30
    zdist chaos --minutes 30 --broker-share 0.5     half of the faults are the broker's
    zdist chaos --minutes 60 --every 60 --json      its samples show the broker's memory over time
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, ends the cluster
    seed = random.randrange(1 << 30) if seed is None else seed
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        Chaos(seed, nodes=nodes, workers=workers, users=users, every=every, broker_share=broker_share) as chaos,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("chaos", total=60 * minutes)

        def tell(report: Report) -> None:
            at = report.samples[-1][0] if report.samples else 0.0
            progress.update(task, completed=at, description=f"{report.faults.total()} faults")

        report = chaos.run(60 * minutes, tell)
        if as_json:
            click.echo(json.dumps({"seed": seed, **vars(report)}, indent=2))
        else:
            show(seed, report)
        if report.wrongs:
            raise ZdistError(f"{len(report.wrongs)} promises were broken; logs are in {chaos.folder}")


def show(seed: int, report: Report) -> None:
    """A table for people."""
    console = Console()
    table = Table(show_header=False)
    table.add_row("seed", str(seed))
    table.add_row("time", f"{report.seconds:.0f} s, the longest work {report.longest:.1f} s")
    table.add_row("faults", ", ".join(f"{count} x {name}" for name, count in sorted(report.faults.items())))
    table.add_row("works", ", ".join(f"{count} x {name}" for name, count in sorted(report.works.items())))
    table.add_row("futures", f"{report.futures:,}")
    table.add_row("scattered data lost, and said so", str(report.lost))
    if report.samples:
        _, rss, files, threads = report.samples[-1]
        table.add_row("broker", f"{rss / MIB:.0f} MiB, {files} file descriptors, {threads} threads")
    for wrong in report.wrongs:
        table.add_row("[red]broken[/red]", wrong)
    console.print(table)
