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
@click.option("--nworkers", metavar="N", type=int, help="Worker processes [default: one per core].")
@click.option("--nthreads", metavar="N", type=int, help="Threads of each worker [default: 1].")
@click.option(
    "--name", metavar="NAME", help="Name of the node; its workers are named after it [default: the host's name]."
)
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="What tasks can ask for; may be given again.")
@click.option("--preload", metavar="MODULE", multiple=True, help="Module or .py file that each worker loads first.")
@click.option("--resource", "resources", multiple=True, metavar="NAME=AMOUNT", help="What tasks can claim, per worker.")
@click.option("--memory-limit", metavar="SIZE", help='Of each worker, such as "4GiB" [default: none].')
@click.option("--shared-memory", metavar="SIZE", help='Of all workers, such as "4GiB"; 0: none [default: half].')
@click.option("--data-ports", metavar="LO-HI", help="Ports of the workers' data sockets [default: free ones].")
@click.option("--advertise", metavar="HOST", help="Name or IP under which others reach this node [default: found out].")
@click.option("--insecure", is_flag=True, default=None, help="Allow data sockets that a network can reach.")
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Where the cluster token lies [default: looked for by ADDRESS].",
)
@config_option
@log_options
def command(
    address: str | None,
    nworkers: int | None,
    nthreads: int | None,
    name: str | None,
    tags: tuple[str, ...],
    preload: tuple[str, ...],
    resources: tuple[str, ...],
    memory_limit: str | None,
    shared_memory: str | None,
    data_ports: str | None,
    advertise: str | None,
    insecure: bool | None,
    token_file: str | None,
    config: str | None,
    log_format: str | None,
    log_level: str | None,
) -> None:
    """Start worker processes that take tasks from the broker at ADDRESS, and replace those that die.

    They run until SIGTERM (in good order: what runs may end, and data is copied to other workers) or Ctrl-C (at once),
    and may be started before the broker: they wait for it, also for one that comes back. ADDRESS may come from the
    configuration (broker.address); the default is tcp://127.0.0.1:7077.

    \b
    zdist worker                                          one worker per core, for a broker on this machine
    zdist worker tcp://127.0.0.1:7077 --nworkers 2 --nthreads 4
    zdist worker tcp://10.0.0.5:7077 --insecure --token-file token    another machine's, on a trusted network
    """
    place = choose(load(config), name)
    node = {
        "nworkers": nworkers,
        "nthreads": nthreads,
        "name": name,
        "tags": tags or None,
        "preload": preload or None,
        "resources": amounts(resources),
        "memory_limit": memory_limit,
        "shared_memory": shared_memory,
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
    from zdist.transport.address import check_host
    from zdist.transport.security import TokenSource

    broker = settings.broker
    address = broker.reach()
    check_host(address)
    workers = WorkerSettings(
        control=address,
        token_file=broker.token_file or "",
        threads=node.nthreads,
        data_ports=node.data_ports,
        advertise=node.advertise or "",
        memory_limit=node.memory_limit,
        drain=node.drain,
        shared_memory=node.shared_memory,
        tags=node.tags,
        preload=node.preload,
        resources=tuple(node.resources.items()),
        insecure=broker.insecure,
        log_level=settings.logging.level,
        log_format=settings.logging.format,
    )
    name = node.name or socket.gethostname()
    nworkers = os.cpu_count() or 1 if node.nworkers is None else node.nworkers
    return Supervisor(workers, TokenSource(address, broker.token_file), name, nworkers).run()
