"""Messages between the broker and nodes, or workers about to lose something, and of what becomes of nodes. PURE."""

from __future__ import annotations

from typing import Any, NamedTuple

from zdist.protocol.fields import Attempt, Key, Session


class WorkerDied(NamedTuple):
    """A worker's process has ended: exit code (negative: signal), what it was running, its last lines."""

    worker: Session
    code: int
    text: str
    running: tuple[tuple[Key, Attempt], ...]
    ordered: bool  # ended on purpose: nothing counts against the tasks


class Interrupt(NamedTuple):
    """Broker to node: these attempts, if a worker runs them, were cancelled by force; it is to be replaced."""

    worker: Session
    rows: tuple[tuple[Key, Attempt], ...]


class Overdue(NamedTuple):
    """Node to broker: these attempts ran out of time, or were interrupted. Their worker is Leaving."""

    worker: Session
    rows: tuple[tuple[Key, Attempt], ...]


class Leaving(NamedTuple):
    """Node to broker: these workers shall end. Their data is copied elsewhere, queued tasks are taken back; for each
    Dismiss comes then, unless its node has no more patience. ``stay``: what still runs there may come to an end.
    ``keeps``: so many others the node has, or starts."""

    workers: tuple[Session, ...]
    stay: bool
    reason: str
    keeps: int


class Fence(NamedTuple):
    """Broker to worker, and back as it is: by then the worker has heard all that came before."""

    number: int


class Dismiss(NamedTuple):
    """Broker to node: these workers may end, nothing is lost with them. ``retire``: they are not replaced."""

    workers: tuple[Session, ...]
    retire: bool


class Adjust(NamedTuple):
    """Broker to node: keep this many workers; ``restart`` ends and replaces all that run."""

    req: int
    workers: int  # -1: as many as now
    restart: bool


class Adjusted(NamedTuple):
    """Node to broker: how many workers it has or starts now; ``req``: of the Adjust that is carried out, or 0."""

    req: int
    workers: int


class Mirror(NamedTuple):
    """Cells of the state that clients share (queues, locks, …): kind, name, item, value (None: gone). Broker to node,
    which keeps a copy; node to a broker that takes another's place. ``first``: they begin a whole copy; ``last``: with
    them it is that of this version, before that they do not count."""

    epoch: int
    version: int
    first: bool
    last: bool
    rows: tuple[tuple[str, str, Any, Any], ...]


class Mirrored(NamedTuple):
    """Node to broker: its copy has this version."""

    version: int


class Alive(NamedTuple):
    """Node to a broker that takes another's place: these workers live, whether or not they have come back to it."""

    workers: tuple[Session, ...]


class NodeEnded(NamedTuple):
    """Worker to broker: the process of its node is gone, and with it all of the node's workers."""
