"""``python -m zdist.node``: a node as `LocalCluster` and ``zdist cluster up`` start it."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from zdist import log
from zdist.errors import ZdistError
from zdist.node.process import WorkerSettings
from zdist.node.supervisor import Supervisor
from zdist.transport.security import find_token

__all__ = ["main"]


def resource(text: str) -> tuple[str, float]:
    """NAME=AMOUNT."""
    name, sep, amount = text.partition("=")
    if not name or not sep:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=AMOUNT")
    try:
        return name, float(amount)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{amount!r} in {text!r} is no number") from None


def parser() -> argparse.ArgumentParser:
    """The options; sizes in bytes."""
    out = argparse.ArgumentParser("python -m zdist.node", description="Supervise worker processes on this host.")
    out.add_argument("--control", required=True, metavar="ADDRESS", help="of the broker")
    out.add_argument("--token-file", default="", help="default: $ZDIST_TOKEN, or found by the broker's address")
    out.add_argument("--name", default=socket.gethostname(), help="prefix of the workers' names")
    out.add_argument("--nworkers", type=int, default=os.cpu_count() or 1)
    out.add_argument("--nthreads", type=int, default=1, help="of each worker")
    out.add_argument("--data-bind", default="", help='of the workers\' data sockets; "ipc:///DIR/" gives each its own')
    out.add_argument("--data-ports", default="", metavar="LO-HI")
    out.add_argument("--advertise", default="", metavar="HOST")
    out.add_argument("--memory-limit", type=int, default=0, metavar="BYTES", help="of each worker")
    out.add_argument("--tag", action="append", default=[], dest="tags")
    out.add_argument("--resource", action="append", default=[], type=resource, dest="resources", metavar="NAME=AMOUNT")
    out.add_argument("--insecure", action="store_true", help="allow data sockets that a network can reach")
    out.add_argument("--runtime", default=None, metavar="DIR", help="private directory for the slot files")
    out.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    out.add_argument("--log-level", default="info", choices=list(log.LEVELS))
    out.add_argument("--log-format", default="auto", choices=log.FORMATS)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run a node until it is told to stop; returns the exit code."""
    args = parser().parse_args(argv)
    log.configure(args.log_format, args.log_level)
    settings = WorkerSettings(
        control=args.control,
        token_file=args.token_file,
        threads=args.nthreads,
        data_bind=args.data_bind,
        data_ports=args.data_ports,
        advertise=args.advertise,
        memory_limit=args.memory_limit,
        tags=tuple(args.tags),
        resources=tuple(args.resources),
        insecure=args.insecure,
        log_level=args.log_level,
        log_format=args.log_format,
    )
    try:
        supervisor = Supervisor(
            settings,
            find_token(args.control, args.token_file or None),
            args.name,
            args.nworkers,
            lifeline=0 if args.lifeline else None,
            answers=1 if args.lifeline else None,
            runtime=args.runtime,
        )
        return supervisor.run()
    except (ZdistError, OSError, ValueError) as exc:
        print(f"zdist node: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
