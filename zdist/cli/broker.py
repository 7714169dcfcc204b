"""``zdist broker``: the meeting point of clients and workers."""

from __future__ import annotations

import signal

import click

from zdist.cli.options import config_option, log_options, set_up_logging
from zdist.config import load

__all__ = ["command"]


@click.command("broker")
@click.option("--bind", metavar="ADDRESS", help="tcp://HOST:PORT or ipc:///PATH [default: tcp://127.0.0.1:7077].")
@click.option("--insecure", is_flag=True, default=None, help="Allow an address that a network can reach.")
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Where the cluster token lies, or is to be written [default: where this user's workers and clients look].",
)
@config_option
@log_options
def command(
    bind: str | None,
    config: str | None,
    log_format: str | None,
    log_level: str | None,
    insecure: bool | None,
    token_file: str | None,
) -> None:
    """Run the broker, which workers and clients connect to, until SIGTERM or Ctrl-C.

    It prints one line with the address to connect to. The cluster token, which keeps other users of this machine out,
    lies in a file that only this user can read; this user's workers and clients find it by the address.

    \b
    zdist broker                                    at tcp://127.0.0.1:7077
    zdist broker --bind tcp://127.0.0.1:0           at a free port
    zdist broker --bind tcp://0.0.0.0:7077 --insecure --token-file token    on a trusted network
    """
    settings = load(
        config,
        overrides={
            "broker.bind": bind,
            "broker.insecure": insecure,
            "broker.token_file": token_file,
            "logging.format": log_format,
            "logging.level": log_level,
        },
    ).config
    set_up_logging(settings.logging)

    from zdist_broker.server import BrokerServer

    broker = settings.broker
    server = BrokerServer(
        broker.bind,
        bulk_bind=broker.bulk_bind,
        token_file=broker.token_file,
        insecure=broker.insecure,
        advertise=host_of(broker.address),
        inline_result=broker.inline_result,
        allowed_deaths=broker.allowed_deaths,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    click.echo(f"broker at {server.address}")
    server.run(own_process=True)


def host_of(address: str | None) -> str | None:
    """The host of a tcp address, by which the broker is to be reached."""
    if address is None or not address.startswith("tcp://"):
        return None
    return address.removeprefix("tcp://").rpartition(":")[0]
