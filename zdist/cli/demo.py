"""``zdist demo``: a local cluster at work on real files, and what it found."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from zdist.cli import showcase
from zdist.cli.indexing import Index, index_here, python_files
from zdist.errors import ZdistError

__all__ = ["command"]

TOP: Final = 20
PATHS: Final = {
    "inline": "with the completion",
    "local": "here already",
    "shm": "shared memory",
    "peer": "worker's own socket",
    "relay": "through the broker",
}
NEEDED: Final = (("inline", "local"), ("peer",), ("relay",))  # one of each has to carry something


@click.command("demo")
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False))
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=max(2, os.cpu_count() or 1),
    show_default=True,
    help="Worker processes.",
)
@click.option(
    "--check", is_flag=True, help="Count again in this process alone and compare; exit code 1 if they differ."
)
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def command(folder: str | None, workers: int, check: bool, as_json: bool) -> None:
    """Index the identifiers of all Python files under FOLDER on a local cluster.

    FOLDER defaults to the standard library of the running Python. Then arrays travel by each path.
    """
    files = python_files(folder)
    if not files:
        raise ZdistError(f"no Python files under {folder or 'the standard library'}")
    found = run(files, workers, check)
    found = {"folder": folder or os.path.commonpath([os.path.dirname(path) for path in files]), **found}
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found)
    silent = [paths[0] for paths in NEEDED if not any(path in found["paths"] for path in paths)]
    if silent:
        raise ZdistError(f"nothing came home by: {', '.join(silent)}; is something in the way between these processes?")
    if check and not found["check"]["agrees"]:
        raise ZdistError("the cluster's counts differ from those of a single process; did the files change meanwhile?")


def run(files: list[str], workers: int, check: bool) -> dict[str, Any]:
    """Do all of it and return the figures."""
    from zdist import Client, LocalCluster

    started = time.perf_counter()
    with progress() as bar:
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1) as cluster,
            Client(cluster, gather_paths=("peer", "relay"), set_as_default=False) as sockets,
            Client(cluster) as client,
        ):
            client.wait_for_workers(workers)
            start = time.perf_counter() - started
            done = showcase.index(client, files, bar("indexing", len(files)))
            empty = showcase.empty_tasks(client)
            paths = showcase.use_paths(client, sockets, bar("arrays", showcase.steps()))
        found = {
            "workers": workers,
            "start_seconds": start,
            **figures(done.index),
            "tasks": done.tasks,
            "seconds": done.seconds,
            "tasks_per_second": done.tasks / done.seconds,
            "empty_tasks_per_second": empty,
            "paths": {
                path: {
                    "batches": use.batches,
                    "keys": use.keys,
                    "bytes": use.bytes,
                    "mb_per_second": use.rate,
                    "workers": len(use.workers),
                }
                for path, use in paths.items()
            },
        }
        if check:
            step = bar("checking", len(files))
            started = time.perf_counter()
            alone = index_here(_stepping(files, step))
            found["check"] = {
                "agrees": alone == done.index,
                "seconds": time.perf_counter() - started,
                "files": alone.files,
                "identifiers": alone.occurrences,
                "distinct": len(alone.counts),
            }
    return found


def figures(index: Index) -> dict[str, Any]:
    """An index for people and programs."""
    return {
        "files": index.files,
        "skipped": index.skipped,
        "identifiers": index.occurrences,
        "distinct": len(index.counts),
        "top": [list(row) for row in index.top(TOP)],
    }


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Progress bars on standard error, if that is a terminal; yields a function that opens one and returns its step."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:

        def bar(what: str, total: int) -> Callable[[], None]:
            task = display.add_task(what, total=total)
            return lambda: display.advance(task)

        yield bar


def _stepping(files: list[str], step: Callable[[], None]) -> Iterator[str]:
    for path in files:
        yield path
        step()


def show(found: dict[str, Any]) -> None:
    """Tables for people."""
    console = Console()
    about = Table(title=found["folder"], title_justify="left", show_header=False)
    about.add_row("files", f"{found['files']:,} read, {found['skipped']:,} skipped (not readable as Python)")
    about.add_row("identifiers", f"{found['identifiers']:,} uses of {found['distinct']:,} names")
    about.add_row("workers", f"{found['workers']}, there after {found['start_seconds']:.2f} s")
    about.add_row(
        "indexing", f"{found['tasks']:,} tasks in {found['seconds']:.2f} s, {found['tasks_per_second']:,.0f} tasks/s"
    )
    about.add_row("empty tasks", f"{found['empty_tasks_per_second']:,.0f} tasks/s")
    if "check" in found:
        check = found["check"]
        agreement = "the same counts" if check["agrees"] else "OTHER COUNTS"
        about.add_row("single process", f"{agreement} in {check['seconds']:.2f} s")
    console.print(about)

    names = Table(title=f"the {len(found['top'])} most used", title_justify="left")
    for heading in ("identifier", "uses", "identifier", "uses"):
        names.add_column(heading, justify="right" if heading == "uses" else "left")
    cells = [(name, f"{uses:,}") for name, uses in found["top"]]
    half = (len(cells) + 1) // 2
    for i in range(half):
        names.add_row(*cells[i], *(cells[half + i] if half + i < len(cells) else ("", "")))
    console.print(names)

    paths = Table(title="arrays brought home", title_justify="left")
    for heading in ("path", "batches", "arrays", "bytes", "MB/s", ""):
        paths.add_column(heading, justify="left" if heading in ("path", "") else "right")
    for path, use in found["paths"].items():
        paths.add_row(
            path,
            f"{use['batches']:,}",
            f"{use['keys']:,}",
            f"{use['bytes']:,}",
            f"{use['mb_per_second']:,.0f}",
            PATHS.get(path, ""),
        )
    console.print(paths)
