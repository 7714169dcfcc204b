"""``zdist worker``: a node with its workers."""

from __future__ import annotations

import os
import socket
import sys

import click

from zdist.cli.options import config_option, log_options, set_up_logging
from zdist.config import Config, NodeConfig, Settings, load
from zdist.errors import ConfigError

__all__ = ["command"]


@click.command("worker")
@click.argument("address", required=False)
@click.option("--nworkers", type=int, help="Worker processes [default: one per core].")
@click.option("--nthreads", type=int, help="Threads of each worker [default: 1].")
@click.option("--name", help="Name of the node; its workers are named after it [default: the host's name].")
@click.option("--tag", "tags", multiple=True, help="A label that tasks can ask for; may be given again.")
@click.option("--resource", "resources", multiple=True, metavar="NAME=AMOUNT", help="What tasks can claim, per worker.")
@click.option("--memory-limit", metavar="SIZE", help='Of each worker, such as "4GiB" [default: none].')
@click.option("--data-ports", metavar="LO-HI", help="Ports of the workers' data sockets [default: free ones].")
@click.option("--advertise", metavar="HOST", help="Host under which others reach this node.")
@click.option("--insecure", is_flag=True, default=None, help="Allow data sockets that a network can reach.")
@click.option("--token-file", metavar="FILE", type=click.Path(dir_okay=False), help="Where the cluster token lies.")
@config_option
@log_options
def command(
    address: str | None,
    nworkers: int | None,
    nthreads: int | None,
    name: str | None,
    tags: tuple[str, ...],
    resources: tuple[str, ...],
    memory_limit: str | None,
    data_ports: str | None,
    advertise: str | None,
    insecure: bool | None,
    token_file: str | None,
    config: str | None,
    log_format: str | None,
    log_level: str | None,
) -> None:
    """Serve the broker at ADDRESS with the workers of one node, until SIGTERM or Ctrl-C.

    ADDRESS may also come from the configuration (broker.address); the default is tcp://127.0.0.1:7077. A worker that
    dies is replaced.
    """
    place = choose(load(config), name)
    node = {
        "nworkers": nworkers,
        "nthreads": nthreads,
        "name": name,
        "tags": tags or None,
        "resources": amounts(resources),
        "memory_limit": memory_limit,
        "data_ports": data_ports,
        "advertise": advertise,
    }
    settings = load(
        config,
        overrides={
            "broker.address": address,
            "broker.insecure": insecure,
            "broker.token_file": token_file,
            "logging.format": log_format,
            "logging.level": log_level,
            **{f"nodes.{place}.{key}": value for key, value in node.items()},
        },
    ).config
    set_up_logging(settings.logging)
    sys.exit(serve(settings, settings.nodes[place] if settings.nodes else NodeConfig()))


def choose(settings: Settings, name: str | None) -> int:
    """Index of the node that is meant: that of the name, the only one, or the one whose host this is."""
    nodes = settings.config.nodes
    named = [i for i, node in enumerate(nodes) if node.name == name and name is not None]
    if named or len(nodes) < 2:
        return named[0] if named else 0
    here = {socket.gethostname(), socket.getfqdn()}
    mine = [i for i, node in enumerate(nodes) if node.host in here]
    if name is None and len(mine) == 1:
        return mine[0]
    names = ", ".join(node.name or f"(unnamed, {node.host})" for node in nodes)
    wrong = "say with --name which" if name is None else f"none of them is named {name!r}"
    raise ConfigError(f"the configuration describes {len(nodes)} nodes ({names}); {wrong}")


def amounts(resources: tuple[str, ...]) -> dict[str, float] | None:
    """NAME=AMOUNT options as a mapping, None if there are none."""
    found: dict[str, float] = {}
    for text in resources:
        name, _, amount = text.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not NAME=AMOUNT", param_hint="--resource") from None
    return found or None


def serve(settings: Config, node: NodeConfig) -> int:
    """Run the node until it is told to stop; returns the exit code."""
    from zdist.node.process import WorkerSettings
    from zdist.node.supervisor import Supervisor
    from zdist.transport.security import find_token

    broker = settings.broker
    address = broker.reach()
    workers = WorkerSettings(
        control=address,
        token_file=broker.token_file or "",
        threads=node.nthreads,
        data_ports="-".join(map(str, node.data_ports)) if node.data_ports else "",
        advertise=node.advertise or "",
        memory_limit=node.memory_limit,
        tags=node.tags,
        resources=tuple(node.resources.items()),
        insecure=broker.insecure,
        log_level=settings.logging.level,
        log_format=settings.logging.format,
    )
    name = node.name or socket.gethostname()
    nworkers = os.cpu_count() or 1 if node.nworkers is None else node.nworkers
    return Supervisor(workers, find_token(address, broker.token_file), name, nworkers).run()
