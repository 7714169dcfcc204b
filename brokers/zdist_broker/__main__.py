"""``python -m zdist_broker``: the broker as a child process of a local cluster; people use ``zdist broker``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

from zdist import limits
from zdist.errors import ZdistError
from zdist.log import configure
from zdist_broker.server import BrokerServer


def main(argv: list[str] | None = None) -> int:
    """Run a broker until SIGTERM, SIGINT, or the end of stdin if ``--lifeline`` is given."""
    parser = argparse.ArgumentParser(prog="python -m zdist_broker")
    parser.add_argument("--bind", default="tcp://127.0.0.1:0")
    parser.add_argument("--bulk-bind")
    parser.add_argument("--token-file")
    parser.add_argument("--advertise")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--inline-result", type=int, default=limits.INLINE_RESULT, metavar="BYTES")
    parser.add_argument("--allowed-deaths", type=int, default=limits.ALLOWED_DEATHS, metavar="N")
    parser.add_argument("--lifeline", action="store_true", help="end when stdin closes")
    parser.add_argument("--first", action="store_true", help="no broker was at this address before")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format")
    options = parser.parse_args(argv)
    configure(level=options.log_level, format=options.log_format)
    try:
        server = BrokerServer(
            options.bind,
            bulk_bind=options.bulk_bind,
            token_file=options.token_file,
            insecure=options.insecure,
            advertise=options.advertise,
            inline_result=options.inline_result,
            allowed_deaths=options.allowed_deaths,
            first=options.first,
        )
    except (ZdistError, OSError) as exc:
        print(f"zdist broker: {exc}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    if options.lifeline:
        threading.Thread(target=_watch_stdin, args=(server,), daemon=True).start()
    print(f"broker at {server.address}", flush=True)
    server.run(own_process=True)
    return 0


def _watch_stdin(server: BrokerServer) -> None:
    while os.read(0, 4096):
        pass
    server.stop(end="the program that started it has closed it or ended")


if __name__ == "__main__":
    sys.exit(main())
