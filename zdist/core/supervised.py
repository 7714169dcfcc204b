"""What a node knows of each of its workers, and what it has its driver do. PURE."""

from __future__ import annotations

from typing import NamedTuple

from zdist.protocol.messages import Attempt, Key

__all__ = ["EndWorker", "Ended", "Look", "StartWorker", "WorkerInfo"]


class StartWorker(NamedTuple):
    """Command: start a worker process; answered by ``worker_started`` or ``worker_failed``."""

    place: int  # the worker's index; its replacement takes it over
    session: str
    name: str


class EndWorker(NamedTuple):
    """Command: send a signal to a worker; its end is reported by ``worker_exited`` as any other."""

    session: str
    signal: int


class Look(NamedTuple):
    """Command: see what the workers are running; answered by ``seen``."""


class Ended(NamedTuple):
    """Command: the last worker has ended and none will be started; the node's process exits with this code."""

    code: int
    reason: str


class WorkerInfo:
    """A worker that is alive."""

    __slots__ = (
        "ending", "given_up", "idle_looks", "index", "interrupted", "kill_at", "leaving", "name", "pid", "session",
        "started", "why",
    )  # fmt: skip

    def __init__(self, index: int, session: str, name: str, started: float) -> None:
        self.index = index
        self.session = session
        self.name = name
        self.started = started
        self.pid = 0  # until the process is there
        self.leaving = False  # the broker was told; nothing new starts there
        self.ending = False  # by order; its death counts against nobody
        self.kill_at: float | None = None  # when patience with a leaving or ending worker is over
        self.interrupted: dict[tuple[Key, Attempt], float] = {}  # what is not to run longer than until then
        self.why = ""  # it was killed
        self.idle_looks = 0  # how often in a row it ran nothing and used too much memory
        self.given_up: set[tuple[Key, Attempt]] = set()  # what the broker was told of; never iterated
