"""One blob on its way here, whatever ranges come by whatever path, and the requests that fetch it. PURE."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from zdist.core.assembly import Assembly
from zdist.core.links import Link
from zdist.core.machine import Route
from zdist.limits import KIB
from zdist.protocol.messages import Attempt, Buffer, Key, Payload, Session

__all__ = ["Map", "Request", "Ticket", "Transfer"]

UNSIZED: Final = 64 * KIB  # asked for at first when nobody knows the size
SLACK: Final = 512  # asked for beyond an announced size: envelope and pickle


class Transfer:
    """A key that is being fetched. Its blob's ranges are asked for from the front; a range that is lost comes back as a
    gap, which anybody who holds the same attempt can fill."""

    __slots__ = (
        "absent", "active", "attempt", "direct", "done", "epoch", "gaps", "got", "holders", "key", "link", "nbytes",
        "next", "parts", "patient", "priority", "queued", "spot", "strikes", "tickets", "total", "unshared",
    )  # fmt: skip

    def __init__(
        self,
        key: str,
        attempt: int,
        nbytes: int,
        holders: tuple[str, ...],
        direct: bool | None,
        priority: int,
        tickets: tuple[int, ...],
    ) -> None:
        self.key, self.attempt, self.direct, self.priority = key, attempt, direct, priority
        self.nbytes = nbytes  # a hint, 0: unknown
        self.total = -1  # what the first answer says
        self.holders = holders
        self.absent: dict[str, str] | None = None  # holders that do not have it, and what they said
        self.tickets = tickets
        self.next = 0  # nothing from here on was asked for yet
        self.gaps: list[tuple[int, int]] | None = None  # start and end of what has to be asked for again
        self.parts: Assembly | None = None  # what has come, if it takes more than one range
        self.got = 0
        self.active = 0  # ranges under way
        self.epoch = 0  # grows when it starts over; answers to earlier questions are void
        self.strikes = 0  # requests without any result in a row
        self.link: Link | None = None  # where it is queued,
        self.queued = 0  # with so many bytes in the link's backlog,
        self.spot = 0  # at this place of the queue
        self.patient = False  # no path led to any holder, and it has waited for a moment since
        self.unshared = False  # its holders have it as bytes only
        self.done = False

    def expected(self) -> int:
        """Bytes still to be asked for, as far as is known."""
        size = self.total if self.total >= 0 else self.nbytes or 1
        rest = size - self.next if size > self.next else 0
        if self.gaps:
            rest += sum(end - start for start, end in self.gaps)
        return rest

    def need(self) -> int:
        """Bytes to ask for next in one go; 0 when everything that is known of has been asked for."""
        if self.gaps:
            start, end = self.gaps[-1]
            return end - start
        if self.total >= 0:
            return self.total - self.next if self.next < self.total else 0
        # sizes announced before freezing are estimates: a little more than that spares a second round trip
        nbytes, asked = self.nbytes, self.next
        if asked and asked >= nbytes:
            return 0
        extra = nbytes >> 3
        return nbytes + (extra if extra < UNSIZED else UNSIZED) + SLACK - asked if nbytes > 0 else UNSIZED

    def ask(self, most: int) -> tuple[int, int]:
        """Take the next range of at most ``most`` bytes, which ``need`` has told: offset and length."""
        if self.gaps:
            start, end = self.gaps.pop()
            size = min(end - start, most)
            if start + size < end:
                self.gaps.append((start + size, end))
            return start, size
        size = most
        start = self.next
        self.next += size
        return start, size

    @property
    def whole(self) -> bool:
        """Can all of it still be had in one go? Nothing of it is here or under way."""
        return not (self.unshared or self.got or self.active)

    def take(self) -> int:
        """Take all of it at once; only while it is ``whole``. Returns the length of the range."""
        self.gaps, self.next = None, 0
        self.next = length = self.need()
        return length

    def again(self, start: int, end: int) -> None:
        """A range has to be asked for again."""
        if self.total >= 0:
            end = min(end, self.total)
        if self.gaps is None:
            self.gaps = []
        if start < end:
            self.gaps.append((start, end))

    def restart(self, attempt: int) -> None:
        """The key was computed anew: what came of the earlier blob is worthless."""
        self.attempt, self.total, self.next, self.got = attempt, -1, 0, 0
        self.gaps, self.parts = None, None
        self.active = 0
        self.epoch += 1
        self.unshared = False

    def pieces(self) -> list[Any]:
        """The whole blob as consecutive buffers."""
        return self.parts.pieces() if self.parts is not None else []

    def __repr__(self) -> str:
        return f"<Transfer {self.key} {self.got} of {self.total} B from {len(self.holders)}>"


def unwrap(piece: Payload) -> bytes | bytearray | memoryview:
    """The buffer of a payload."""
    return piece.data if isinstance(piece, Buffer) else piece


Row: TypeAlias = tuple[Transfer, int, int, int]  # transfer, offset, length, the transfer's epoch


class Map(NamedTuple):
    """Command: map blobs that a holder of this host keeps in shared memory; answered by ``Fetcher.mapped``.

    Attempt -1: any; of a newer computation will do too.
    """

    req: int
    holder: Session
    rows: tuple[tuple[Key, Attempt], ...]


class Request:
    """A Get under way, or a Map. ``route``: where the Get went. ``shared``: the holder says that it lies there."""

    __slots__ = ("link", "nbytes", "req", "route", "rows", "sent", "shared")

    def __init__(self, req: int, link: Link, now: float, route: Route | None) -> None:
        self.req, self.link, self.sent, self.route = req, link, now, route
        self.shared = False
        self.rows: dict[str, Row] = {}
        self.nbytes = 0


class Ticket:
    """What one caller wants, and how."""

    __slots__ = ("direct", "keys", "warned")

    def __init__(self, direct: bool | None) -> None:
        self.direct = direct
        self.keys: dict[str, Transfer] = {}
        self.warned: dict[str, None] = {}  # workers that went by relay in spite of direct=True
