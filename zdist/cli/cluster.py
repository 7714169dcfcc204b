"""``zdist cluster``: clusters described in YAML, in the background."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import click

from zdist.cli.columns import columns
from zdist.errors import ZdistError

if TYPE_CHECKING:
    from zdist.cluster.deploy import Cluster

__all__ = ["command"]

LOOK_TIMEOUT: Final = 3.0  # seconds for a broker to tell about its workers
FILE: Final = click.Path(dir_okay=False)


@click.group("cluster")
def command() -> None:
    """Clusters described in YAML."""


@command.command("up")
@click.argument("file", type=FILE)
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds for all workers to join.")
def up(file: str, timeout: float) -> None:
    """Start the broker and this machine's nodes of FILE in the background; return when all workers have joined."""
    from zdist.cluster import deploy

    cluster = deploy.up(file, timeout=timeout)
    click.echo(f"cluster at {cluster.address} with {cluster.workers} workers")
    for line in cluster.elsewhere:
        click.echo(f"to be started by hand, {line}")


@command.command("status")
@click.argument("file", required=False, type=FILE)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(file: str | None, as_json: bool) -> None:
    """Show the cluster of FILE, or all that are up: processes and workers. Exit code 1 if there is none."""
    found = [describe(cluster) for cluster in _clusters(file)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for about in found:
            show(about)
    if not found:
        raise ZdistError(_none(file))


@command.command("down")
@click.argument("file", required=False, type=FILE)
@click.option(
    "--timeout", type=float, default=10.0, show_default=True, help="Seconds after which processes are killed."
)
def down(file: str | None, timeout: float) -> None:
    """End the cluster of FILE, or all that are up."""
    from zdist.cluster import deploy

    clusters = _clusters(file)
    if not clusters:
        raise ZdistError(_none(file))
    for cluster in clusters:
        deploy.down(cluster.config, timeout=timeout)
        click.echo(f"ended the cluster of {cluster.config}")


def _clusters(file: str | None) -> list[Cluster]:
    from zdist.cluster import deploy

    if file is None:
        return deploy.known()
    cluster = deploy.status(file)
    return [] if cluster is None else [cluster]


def _none(file: str | None) -> str:
    return f"the cluster of {file} is not up" if file else "no cluster is up"


def describe(cluster: Cluster) -> dict[str, Any]:
    """A cluster, its processes, and its workers if the broker answers."""
    return {
        "config": cluster.config,
        "address": cluster.address,
        "running": cluster.running,
        "up_seconds": time.time() - cluster.started,
        "processes": [
            {"role": process.role, "name": process.name, "pid": process.pid, "alive": process.alive, "log": process.log}
            for process in cluster.processes
        ],
        "workers": workers(cluster) if cluster.running else {},
        "elsewhere": cluster.elsewhere,
    }


def workers(cluster: Cluster) -> dict[str, Any]:
    """What the broker tells about its workers, by address; a text under "error" if it does not answer."""
    from zdist import Client
    from zdist.transport.security import find_token

    token = find_token(cluster.address, cluster.token_file or None)
    try:
        with Client(cluster.address, token=token, timeout=LOOK_TIMEOUT, set_as_default=False) as client:
            found: dict[str, Any] = client.scheduler_info()["workers"]
            return found
    except (ZdistError, OSError) as exc:
        return {"error": str(exc)}


def show(about: dict[str, Any]) -> None:
    """Tables for people."""
    state = f"up for {about['up_seconds']:.0f} s" if about["running"] else "NOT RUNNING: its broker has ended"
    click.echo(f"{about['config']}\n{about['address']}  {state}\n")
    rows = [("process", "pid", "state", "log")]
    for process in about["processes"]:
        name = process["role"] if process["role"] == process["name"] else f"{process['role']} {process['name']}"
        rows.append((name, str(process["pid"]), "up" if process["alive"] else "ended", process["log"]))
    table = [("worker", "threads", "running", "held", "address")]
    for address, worker in about["workers"].items():
        if address != "error":
            counts = [str(_count(worker.get(field, 0))) for field in ("nthreads", "processing", "held")]
            table.append((str(worker.get("name", "")), counts[0], counts[1], counts[2], address))
    error = about["workers"].get("error")
    for line in [*columns(rows), "", *(columns(table) if error is None else [f"no news of the workers: {error}"])]:
        click.echo(line)
    for line in about["elsewhere"]:
        click.echo(f"to be started by hand, {line}")


def _count(value: Any) -> int:
    return value if isinstance(value, int) else len(value)
