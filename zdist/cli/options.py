"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from zdist import log
from zdist.config import LoggingConfig

__all__ = ["config_option", "log_options", "set_up_logging"]

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command) -> Command:
    """``--config FILE``."""
    return click.option(
        "--config",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="YAML file (see conf/); other options override it.",
    )(command)


def log_options(command: Command) -> Command:
    """``--log-format`` and ``--log-level``."""
    command = click.option(
        "--log-level",
        metavar="LEVEL",
        type=click.Choice(list(log.LEVELS)),
        help=f"Least level that is written: {', '.join(log.LEVELS)} [default: info].",
    )(command)
    return click.option(
        "--log-format",
        metavar="FORMAT",
        type=click.Choice(log.FORMATS),
        help="Of log records on standard error: console or json [default: console on a terminal, else json].",
    )(command)


def set_up_logging(config: LoggingConfig) -> None:
    """Log as the configuration says."""
    log.configure(config.format, config.level)
