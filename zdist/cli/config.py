"""``zdist config show``: what is in force, and where each value came from."""

from __future__ import annotations

import json

import click

from zdist.cli.columns import columns
from zdist.cli.options import config_option
from zdist.config import load

__all__ = ["command"]


@click.group("config")
def command() -> None:
    """Look at the configuration."""


@command.command("show")
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(file: str | None, config: str | None, as_json: bool) -> None:
    """Show every value in force and its origin: default, FILE:line, environment variable."""
    if file and config:
        raise click.UsageError("give the file once")
    settings = load(file or config)
    if as_json:
        rows = {key: {"value": value, "origin": origin} for key, value, origin in settings.rows()}
        click.echo(json.dumps(rows, indent=2))
        return
    for line in columns((key, _text(value), origin) for key, value, origin in settings.rows()):
        click.echo(line)


def _text(value: object) -> str:
    if value is None:
        return "unset"
    return json.dumps(value, ensure_ascii=False)
