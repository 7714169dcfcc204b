"""The command group; a command's module is loaded when the command is used or listed."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from zdist import __version__
from zdist.errors import ZdistError

__all__ = ["cli"]

COMMANDS: Final = {
    "bench": "zdist.cli.bench",
    "broker": "zdist.cli.broker",
    "chaos": "zdist.cli.chaos",
    "cluster": "zdist.cli.cluster",
    "config": "zdist.cli.config",
    "demo": "zdist.cli.demo",
    "doctor": "zdist.cli.doctor",
    "top": "zdist.cli.top",
    "worker": "zdist.cli.worker",
}


class Commands(click.Group):
    """Loads commands lazily, and shows what went wrong instead of a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = COMMANDS.get(cmd_name)
        if home is None:
            return None
        command: click.Command = import_module(home).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads
        except (ZdistError, OSError) as exc:
            raise click.ClickException(str(exc) or type(exc).__name__) from exc


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="zdist")
def cli() -> None:
    """Run Python functions on many processes and bring the results home, over ZeroMQ."""
