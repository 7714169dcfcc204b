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
        "--config", metavar="FILE", type=click.Path(dir_okay=False), help="YAML file; other options override it."
    )(command)


def log_options(command: Command) -> Command:
    """``--log-format`` and ``--log-level``."""
    command = click.option(
        "--log-level", type=click.Choice(list(log.LEVELS)), help="Least level that is written [default: info]."
    )(command)
    return click.option(
        "--log-format",
        type=click.Choice(log.FORMATS),
        help="Log records on standard error: console or JSON [default: console on a terminal, else json].",
    )(command)


def set_up_logging(config: LoggingConfig) -> None:
    """Log as the configuration says."""
    log.configure(config.format, config.level)
