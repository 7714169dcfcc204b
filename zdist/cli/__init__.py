"""The ``zdist`` command."""

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script; click is loaded here and not with the package."""
    from zdist.cli.group import cli

    cli(prog_name="zdist")
