"""The worker's records: commands to its driver, a task's attempt, its function, a dependency not held. PURE."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from zdist.core.store import Entry
from zdist.protocol.messages import Attempt, Digest, Key, Payload

__all__ = [
    "FALLING",
    "GONE",
    "NO_INPUTS",
    "ORPHAN",
    "QUEUED",
    "RISING",
    "RUNNING",
    "WAITING",
    "Exit",
    "Freeze",
    "Function",
    "Input",
    "RunCall",
    "Share",
    "Task",
]

# states of a task; in the worker's table are the first three
WAITING: Final = 0  # for dependencies or its function
QUEUED: Final = 1
RUNNING: Final = 2
ORPHAN: Final = 3  # running for a broker that is no more; unless the next adopts it, its result is announced as Held
GONE: Final = 4  # finished, taken back or aborted; a thread may still run it

# weight of the newest measurement of a function's duration: an interrupted call must not make a short one look long
FALLING: Final = 0.5
RISING: Final = 0.05


class Freeze(NamedTuple):
    """Command: turn a held value into bytes; answered by `frozen` or `unfreezable`."""

    key: Key
    attempt: Attempt


class Share(NamedTuple):
    """Command: put a held value into shared memory; answered by `frozen`, `unshared` or `unfreezable`."""

    key: Key
    attempt: Attempt


class RunCall(NamedTuple):
    """Command: run a function outside the task system; answered by `called`."""

    req: int
    payload: Payload


class Exit(NamedTuple):
    """Command: the worker has no more use; its process ends. ``code`` is the exit code."""

    reason: str
    code: int


class Function:
    """A function by its digest. ``loaded`` is the executor's business."""

    __slots__ = ("asked", "blob", "digest", "loaded", "micros", "name", "nbytes", "users", "waiters")

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.name = ""
        self.blob: Payload | None = None  # until it is loaded
        self.nbytes = 0
        self.loaded: Any = None
        self.micros = -1.0  # measured, moving average; negative while unknown
        self.users = 0  # tasks in the table
        self.asked = False  # the broker was asked for it
        self.waiters: dict[Key, Task] = {}

    @property
    def known(self) -> bool:
        """Have its bytes come?"""
        return self.blob is not None or self.loaded is not None


class Input:
    """A dependency that is not held here: its bytes came along, it is awaited, or it will never come."""

    __slots__ = ("error", "key", "payload", "replica", "users", "value", "value_known", "waiters")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.payload: Payload | None = None
        self.value: Any = None  # of the payload, once unpickled
        self.value_known = False
        self.error = ""
        self.replica = False  # the broker asked for a copy
        self.users = 0  # tasks that name it
        self.waiters: dict[Key, Task] = {}  # those of them that it blocks


class Task:
    """One attempt; the handle that a thread holds while it runs it."""

    __slots__ = (
        "args", "attempt", "blockers", "deliver", "early", "function", "inputs", "key", "limit", "priority", "seceded",
        "state", "untold",
    )  # fmt: skip

    def __init__(
        self, key: Key, attempt: Attempt, priority: int, deliver: int, args: Payload, function: Function
    ) -> None:
        self.key = key
        self.attempt = attempt
        self.priority = priority
        self.deliver = deliver
        self.args = args
        self.function = function
        self.state = QUEUED
        self.limit = 0.0  # seconds that it may run; 0: any time
        self.seceded = False
        self.early: Any = None  # the route of the client that sent it itself, and gets an early copy of the result
        self.untold = True  # the broker has not heard of it from here
        self.blockers = 0  # inputs, and the function, that it waits for
        self.inputs: dict[Key, Entry | Input] = NO_INPUTS  # where to find each dependency

    def __repr__(self) -> str:
        state = ("waiting", "queued", "running", "orphan", "gone")[self.state]
        return f"<Task {self.key} attempt {self.attempt}, {state}>"


NO_INPUTS: Final[dict[Key, Entry | Input]] = {}  # shared by the tasks without dependencies; never written to
