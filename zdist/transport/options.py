"""Command-line options that a node's process and its workers' processes share."""

from __future__ import annotations

import argparse

from zdist import log

__all__ = ["add_worker_options", "ports", "resource"]


def ports(text: str) -> tuple[int, int]:
    """LO-HI, or one port."""
    low, _, high = text.partition("-")
    try:
        first, last = int(low), int(high or low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of ports LO-HI") from None
    if not 0 < first <= last < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of ports LO-HI between 1 and 65535")
    return first, last


def resource(text: str) -> tuple[str, float]:
    """NAME=AMOUNT."""
    name, _, amount = text.partition("=")
    try:
        if name:
            return name, float(amount)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no NAME=AMOUNT")


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """What a worker offers and how it is reached; sizes in bytes."""
    add = parser.add_argument
    add("--control", required=True, metavar="ADDRESS", help="of the broker")
    add("--token-file", default=None, help="default: $ZDIST_TOKEN, or found by the broker's address")
    add("--nthreads", type=int, default=1, help="of each worker")
    add("--data-bind", default="", metavar="ADDRESS", help='of data sockets; "ipc:///DIR/" gives each worker its own')
    add("--data-ports", type=ports, default=None, metavar="LO-HI", help="of data sockets")
    add("--advertise", default="", metavar="HOST", help="under which others reach the data sockets")
    add("--memory-limit", type=int, default=0, metavar="BYTES", help="of each worker; 0: none")
    add("--shared-memory", type=int, default=None, metavar="BYTES", help="of all workers; 0: none, default: half")
    add("--tag", action="append", default=[], dest="tags")
    add("--resource", action="append", default=[], type=resource, dest="resources", metavar="NAME=AMOUNT")
    add("--preload", action="append", default=[], metavar="MODULE", help="module or .py file that each worker loads")
    add("--insecure", action="store_true", help="allow data sockets that a network can reach")
    add("--log-level", default="info", choices=list(log.LEVELS))
    add("--log-format", default="auto", choices=log.FORMATS)
