"""The records of the client ledger: an entry per key, what rows of one function share, and open questions. PURE."""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeAlias

from zdist.protocol.messages import Key, Payload

__all__ = [
    "CANCELLED",
    "DATA_LOST",
    "ERROR",
    "FINISHED",
    "GIVEN_UP",
    "PENDING",
    "UNHELD",
    "UNKNOWN",
    "Entry",
    "Reply",
    "Row",
    "Waiter",
    "Work",
]

PENDING: Final = "pending"
FINISHED: Final = "finished"
ERROR: Final = "error"
CANCELLED: Final = "cancelled"

UNKNOWN: Final = "nobody in the cluster knows this key any more"
DATA_LOST: Final = "scattered data lost"  # begins the reason of what was data
UNHELD: Final = ", which nobody holds"  # ends the reason of what depends on such a key
GIVEN_UP: Final = "the broker had given this client up and let go of what only this client wanted"

Row: TypeAlias = tuple[Key, Payload, tuple[Key, ...]]  # a row of Submit: key, arguments, dependencies


class Waiter(Protocol):
    """Somebody who wants to be told, once, when an entry or reply is settled."""

    def resolved(self, entry: Any, /) -> None:
        """Called in the driver's turn with the machine's lock held: change own state, never block."""


class Work:
    """What the rows of one function and one set of options have in common."""

    __slots__ = ("__weakref__", "blob", "fn", "name", "named", "options")

    def __init__(self, fn: bytes, name: str, blob: Payload, options: tuple[Any, ...], named: bool) -> None:
        self.fn = fn  # digest of the blob
        self.name = name
        self.blob = blob
        self.options = options  # an Options tuple, or () for all defaults
        self.named = named  # keys are unique to their content: an equal key is equal work


class Entry:
    """What the client knows of one key, for as long as a future or another entry needs it.

    ``outcome`` is, by status: None while pending; the row of Finished; for an error ``(kind, payload, origin, text)``
    with kind "failed", "killed" or "rejected"; the reason's text when cancelled.
    """

    __slots__ = (
        "gen", "heard", "key", "load", "outcome", "parents", "pins", "refs", "row", "sought", "status", "told",
        "waiters", "was", "work",
    )  # fmt: skip

    def __init__(self, key: Key, work: Work | None, row: Row | None) -> None:
        self.key = key
        self.work = work  # None for imported and held keys
        self.row = row
        self.status = PENDING
        self.refs = 0  # futures
        self.pins = 0  # entries whose parent this is
        self.gen = 0  # of the want that the broker has from this client; 0: none
        self.was = 0  # generation of the want that a submission replaces, unless it is refused
        self.heard = False  # it was finished when it was let go of
        self.told = 0  # epoch of the broker that was given this spec
        self.sought = 0.0  # seconds for which brokers in a row have lacked it, or what it is made of
        self.load = 0  # its share of the submission window while the broker works on it
        self.parents: tuple[Entry, ...] = ()
        self.waiters: list[Waiter] | None = None
        self.outcome: Any = None

    @property
    def content(self) -> int | None:
        """Of data that was held here: what stands in place of an attempt; None if it is something else."""
        row = self.row
        return int.from_bytes(row[1]) if self.work is None and row and isinstance(row[1], bytes) else None

    def value_here(self) -> bool:
        """It is finished, and its value came along."""
        return self.status == FINISHED and self.outcome[3] is not None

    def value_row(self) -> tuple[Key, int, int, Payload, str]:
        """That value, for a broker that does not know it: a row of Claim."""
        key, attempt, nbytes, value, _, kind = self.outcome
        return key, attempt, nbytes, value, kind

    def __repr__(self) -> str:
        return f"Entry({self.key!r}, {self.status}, refs={self.refs}, pins={self.pins}, gen={self.gen})"


class Reply:
    """An answer that is awaited: to an Ask, a Call, or to the first hello."""

    __slots__ = ("args", "done", "ok", "value", "waiters", "what")

    status = FINISHED  # it is told about once, like a finished entry

    def __init__(self, what: str, args: Any) -> None:
        self.what = what
        self.args = args
        self.done = False
        self.ok = False
        self.value: Any = None
        self.waiters: list[Waiter] | None = None
