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
from zdist.transport.options import add_worker_options
from zdist.transport.security import TokenSource

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """The options; sizes in bytes."""
    out = argparse.ArgumentParser("python -m zdist.node", description="Supervise worker processes on this host.")
    add_worker_options(out)
    out.add_argument("--name", default=socket.gethostname(), help="prefix of the workers' names")
    out.add_argument("--nworkers", type=int, default=os.cpu_count() or 1)
    out.add_argument("--runtime", default=None, metavar="DIR", help="private directory for the slot files")
    out.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run a node until it is told to stop; returns the exit code."""
    args = parser().parse_args(argv)
    log.configure(args.log_format, args.log_level)
    settings = WorkerSettings(
        control=args.control,
        token_file=args.token_file or "",
        threads=args.nthreads,
        data_bind=args.data_bind,
        data_ports=args.data_ports,
        advertise=args.advertise,
        memory_limit=args.memory_limit,
        shared_memory=args.shared_memory,
        tags=tuple(args.tags),
        preload=tuple(args.preload),
        resources=tuple(args.resources),
        insecure=args.insecure,
        log_level=args.log_level,
        log_format=args.log_format,
    )
    try:
        supervisor = Supervisor(
            settings,
            TokenSource(args.control, args.token_file),
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
