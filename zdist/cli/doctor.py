"""``zdist doctor``: what works between this machine and a cluster, and what to change."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from zdist.client.diagnosis import Diagnosis, PathState, Problem, WorkerState

__all__ = ["command"]

PIPED: Final = 160  # columns where nobody says how many there are
NAMES: Final = 5  # workers named where several have the same problem


@click.command("doctor")
@click.argument("address")
@click.option("--token-file", metavar="FILE", type=click.Path(dir_okay=False), help="Where the cluster token lies.")
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Seconds to wait for an answer."
)
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def command(address: str, token_file: str | None, timeout: float, as_json: bool) -> None:
    """Tell what works between this machine and the cluster of the broker at ADDRESS.

    Is the broker there, how fast is it, and which ways lead to each worker: shared memory, its own socket (the peer
    path), the broker's relay. Where something is closed it says what fails, and what to change. It leaves nothing
    behind in the cluster, and moves a few MB.

    Exit code 0: all is well; 1: something is wrong; 2: no broker answers.
    """
    from zdist.client.diagnosis import diagnose

    screen = Console(stderr=True)
    try:
        with screen.status("looking") as status:  # silent where standard error is no terminal
            found = diagnose(
                address, token_file=token_file, timeout=timeout, tell=lambda text: status.update(escape(text))
            )
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="ADDRESS") from None
    if as_json:
        click.echo(json.dumps(as_data(found), indent=2))
    else:
        console = Console()
        show(found, console if console.is_terminal else Console(width=PIPED))
    sys.exit(found.code)


# --- for programs ---------------------------------------------------------------------------------------


def as_data(found: Diagnosis) -> dict[str, Any]:
    """All of it; times in ms, rates in MB (10**6 bytes) a second, null for what was not measured."""
    broker = found.broker
    return {
        "ok": not found.code,
        "code": found.code,
        "broker": {
            "address": broker.address,
            "reachable": broker.reachable,
            "relay_address": broker.bulk,
            "round_trip_ms": scaled(broker.round_trip, 1e3),
            "relay_mb_per_second": scaled(broker.rate, 1e-6),
        },
        "workers": [
            {
                "name": worker.name,
                "session": worker.session,
                "address": worker.address,
                "same_host": worker.same_host,
                "shm": path_data(worker.shm),
                "peer": path_data(worker.peer),
                "relay": path_data(worker.relay),
            }
            for worker in found.workers
        ],
        "problems": [asdict(problem) for problem in found.problems],
    }


def path_data(path: PathState) -> dict[str, Any]:
    """One way to a worker."""
    return {
        "state": path.state or "unknown",
        "fault": path.fault,
        "why": path.text,
        "round_trip_ms": scaled(path.round_trip, 1e3),
        "mb_per_second": scaled(path.rate, 1e-6),
    }


def scaled(value: float | None, factor: float) -> float | None:
    """A measure in another unit."""
    return None if value is None else round(value * factor, 3)


# --- for people -----------------------------------------------------------------------------------------


def show(found: Diagnosis, console: Console) -> None:
    """A line on the broker, a table of the workers, and what is wrong."""
    broker = found.broker
    state = "[green]reachable[/]" if broker.reachable else "[red]NOT REACHABLE[/]"
    facts = [f"broker at {escape(broker.address)}: {state}"]
    if broker.round_trip is not None:
        facts.append(f"round trip {number(broker.round_trip, 1e3)} ms")
    if broker.rate is not None:
        facts.append(f"relay {number(broker.rate, 1e-6)} MB/s")
    console.print(", ".join(facts), soft_wrap=True, highlight=False)
    if found.workers:
        console.print(workers_table(found.workers))
    for problems in grouped(found.problems):
        first = problems[0]
        where = first.where if len(problems) == 1 else names([problem.where for problem in problems])
        console.print(f"[red]{escape(where)}[/]: {escape(first.text)}", soft_wrap=True, highlight=False)
        if len(problems) > 1 and len({problem.text for problem in problems}) > 1:
            console.print(f"  and {len(problems) - 1} more of this kind", highlight=False)
        if first.advice:
            console.print(f"  → {escape(first.advice)}", soft_wrap=True, highlight=False)
    if not found.problems:
        console.print("[green]All is well.[/]")
    elif any(problem.fault.startswith("peer-") for problem in found.problems):
        console.print("Where the peer path is closed, data goes through the broker.", soft_wrap=True)


def workers_table(workers: list[WorkerState]) -> Table:
    """A row for each worker."""
    table = Table()
    for heading in ("worker", "address", "shared memory", "peer path", "ms", "MB/s", "relay MB/s"):
        numeric = heading in ("ms", "MB/s", "relay MB/s")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for worker in workers:
        table.add_row(
            escape(worker.name),
            escape(worker.address),
            colored(worker.shm),
            colored(worker.peer),
            number(worker.peer.round_trip, 1e3),
            number(worker.peer.rate, 1e-6),
            number(worker.relay.rate, 1e-6) or colored(worker.relay),
        )
    return table


def colored(path: PathState) -> str:
    """The state of a path, with the reason where that is short."""
    if path.state == "open":
        return "[green]open[/]"
    if path.state == "closed":
        return "[red]closed[/]"
    return escape(path.text) or "-"


def number(value: float | None, factor: float) -> str:
    """Three digits or so; "" for what was not measured."""
    if value is None:
        return ""
    value *= factor
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def grouped(problems: list[Problem]) -> list[list[Problem]]:
    """Problems of one kind together, in the order of the first of each."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.fault, problem.advice), []).append(problem)
    return list(groups.values())


def names(workers: list[str]) -> str:
    """The first few of them."""
    more = f" and {len(workers) - NAMES} more" if len(workers) > NAMES else ""
    return ", ".join(workers[:NAMES]) + more
