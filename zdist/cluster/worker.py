"""``python -m zdist.cluster.worker``: a worker process as nodes start it, whose tasks can have a client."""

from __future__ import annotations

import sys
from typing import Any

from zdist import context
from zdist.worker.__main__ import main

__all__ = ["make_client"]


def make_client(worker: Any) -> Any:
    """The client that a worker's tasks share; loaded when the first of them asks for it."""
    from zdist.client.tasks import client_for_worker

    return client_for_worker(worker)


if __name__ == "__main__":
    context.client_factory = make_client
    sys.exit(main())
