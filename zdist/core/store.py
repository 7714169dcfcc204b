"""Values and blobs that this process holds, and serving them. PURE.

The contract of Get and Data: each Get is answered by exactly one Data. Its rows answer the Get's rows in their order,
as far as ``limits.WHOLE`` bytes go; a row may be shorter than asked, and rows that no longer fit are left
out: the asker sees both from the numbers and asks again for the rest. Keys that are not held here, have no bytes or
have none yet are in ``absent``. A Get for values that are still live objects waits until they are frozen, but not
longer than ``BUSY_AFTER``. A Get with ``shm`` waits in the same way until what it names lies in shared memory.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, Protocol

from zdist.core.machine import Route
from zdist.errors import InvariantError
from zdist.limits import MAX_REASON, OWN_FRAME, REQUEST_TIMEOUT, SHM_MIN, WHOLE
from zdist.protocol.messages import Buffer, Data, Get, Message, Payload

__all__ = ["FREEZING", "FROZEN", "LIVE", "SHARING", "UNFREEZABLE", "Blob", "Entry", "Pieces", "Store", "Whole"]

BUSY_AFTER: Final = REQUEST_TIMEOUT / 5  # a request that waits for freezing is answered "busy" after this time
REFUSALS: Final = 1024  # hops remembered as refused, so that each is logged once

LIVE: Final = 0  # a value, no bytes yet
FREEZING: Final = 1  # the owner was asked for the bytes
FROZEN: Final = 2  # has a blob
UNFREEZABLE: Final = 3  # cannot be pickled; ``text`` says why
SHARING: Final = 4  # has a blob, and the owner was asked to put it into shared memory

NO_VALUE: Final = object()

Bytes = bytes | bytearray | memoryview


class Blob(Protocol):
    """A value's immutable bytes (zdist.serialize.Blob has this shape).

    ``shared``: others of this host can map them; ``spilled``: they are on disk.
    """

    @property
    def nbytes(self) -> int: ...

    @property
    def shared(self) -> bool: ...

    @property
    def spilled(self) -> bool: ...

    @property
    def pieces(self) -> list[Any]:
        """All of it as buffers to unpickle from; those that are writable are the taker's own."""
        ...

    def slice(self, offset: int, length: int) -> list[Any]:
        """The bytes from ``offset`` on as consecutive buffers, cut along the blob's own seams, not copied."""
        ...


class Pieces:
    """A blob made of consecutive buffers: what arrived from elsewhere, or one small payload."""

    __slots__ = ("nbytes", "pieces")
    shared: ClassVar[bool] = False
    spilled: ClassVar[bool] = False

    def __init__(self, pieces: Iterable[Bytes]) -> None:
        self.pieces = list(pieces)
        self.nbytes = sum(map(len_bytes, self.pieces))

    def slice(self, offset: int, length: int) -> list[Any]:
        """Buffers covering ``length`` bytes from ``offset`` on, as far as there are any."""
        if offset == 0 and length >= self.nbytes:
            return self.pieces
        found: list[Any] = []
        for piece in self.pieces:
            size = len_bytes(piece)
            if offset < size and length > 0:
                whole = offset == 0 and length >= size
                part = piece if whole else memoryview(piece).cast("B")[offset : offset + length]
                found.append(part)
                length -= len_bytes(part)
            offset = max(0, offset - size)
        return found


class Whole:
    """A blob in one bytes object."""

    __slots__ = ("data", "nbytes")
    shared: ClassVar[bool] = False
    spilled: ClassVar[bool] = False

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.nbytes = len(data)

    @property
    def pieces(self) -> list[Any]:
        """The one buffer."""
        return [self.data]

    def slice(self, offset: int, length: int) -> list[Any]:
        """One buffer covering ``length`` bytes from ``offset`` on, as far as there are any."""
        return [self.data if offset == 0 and length >= self.nbytes else memoryview(self.data)[offset : offset + length]]


def len_bytes(data: Bytes) -> int:
    """Bytes in a buffer (``len`` of a memoryview counts items)."""
    return data.nbytes if isinstance(data, memoryview) else len(data)


class Entry:
    """What is held under one key."""

    __slots__ = ("attempt", "blob", "has_value", "key", "nbytes", "state", "text", "type", "value", "waiters")

    def __init__(self, key: str, attempt: int, nbytes: int, type_name: str, value: Any = NO_VALUE) -> None:
        self.key, self.attempt, self.nbytes, self.type = key, attempt, nbytes, type_name
        self.state = LIVE
        self.has_value = value is not NO_VALUE
        self.value = value if self.has_value else None
        self.blob: Any = None
        self.text = ""
        self.waiters: dict[int, _Waiting] | None = None

    def __repr__(self) -> str:
        state = ("live", "freezing", "frozen", "unfreezable", "sharing")[self.state]
        return f"<Entry {self.key} attempt {self.attempt}, {self.nbytes} B {self.type}, {state}>"


class _Waiting:
    """A request that waits for keys to be frozen, or put into shared memory."""

    __slots__ = ("get", "left", "route", "since")

    def __init__(self, route: Route, get: Get, since: float) -> None:
        self.route, self.get, self.since = route, get, since
        self.left = 0


class Store:
    """What a process holds, by key.

    Owner: route every Get from a "data" hop or from BULK to ``serve``; answer each ``freeze(key, attempt)`` callback by
    ``frozen`` or ``unfreezable`` (may be at once, inside the callback); call ``tick`` when ``deadline`` is due.
    ``log`` is the owner's ``Machine.log``. ``share(key, attempt)``, if there is shared memory, asks for a value of
    ``least`` bytes or more to be put there: answered by ``frozen`` with whatever blob came of it, or ``unshared`` if
    the one that there is has to do.
    """

    def __init__(
        self,
        send: Callable[[Route, Message], None],
        token: str,
        freeze: Callable[[str, int], None],
        log: Callable[..., None] | None = None,
        share: Callable[[str, int], None] | None = None,
        least: int = SHM_MIN,
    ) -> None:
        self.share = share
        self.least = least
        self.send = send
        self.token = token
        self.freeze = freeze
        self.log = log
        self.entries: dict[str, Entry] = {}
        self.total = 0  # bytes of all entries
        self.waiting: dict[int, _Waiting] = {}  # oldest first
        self.serial = 0
        self.refused: dict[bytes, None] = {}

    # --- holding ---------------------------------------------------------------------------------

    def put_value(self, key: str, attempt: int, value: Any, nbytes: int, type_name: str) -> Entry:
        """Keep a live object; its bytes are asked for (freeze) when somebody wants them. Replaces another attempt."""
        entry = self.entries.get(key)
        if entry is None or entry.attempt != attempt:
            return self._replace(entry, Entry(key, attempt, nbytes, type_name, value))
        if entry.blob is None:
            self.total += nbytes - entry.nbytes
            entry.nbytes = nbytes
        entry.value, entry.has_value, entry.type = value, True, type_name or entry.type
        return entry

    def put_blob(self, key: str, attempt: int, blob: Blob | bytes, type_name: str) -> Entry:
        """Keep frozen bytes (fetched replica, scattered data, a result frozen at completion). Keeps a live value that
        the same attempt already has."""
        kept: Blob = Whole(blob) if isinstance(blob, bytes) else blob
        entry = self.entries.get(key)
        if entry is None or entry.attempt != attempt:
            new = Entry(key, attempt, kept.nbytes, type_name)
            new.state, new.blob = FROZEN, kept
            return self._replace(entry, new)
        entry.type = type_name or entry.type
        self._settle(entry, FROZEN, kept, "")
        return entry

    def _replace(self, old: Entry | None, entry: Entry) -> Entry:
        """Another computation of the key: whoever waits for the old one's bytes is answered with what is there now."""
        self.entries[entry.key] = entry
        self.total += entry.nbytes
        if old is not None:
            self.total -= old.nbytes
            self._release(old)
        return entry

    def get(self, key: str) -> Entry | None:
        """The entry, with .has_value/.value, .blob (or None), .attempt, .nbytes, .type."""
        return self.entries.get(key)

    def touch(self, entry: Entry) -> None:
        """It is used: it goes to disk later than others."""
        del self.entries[entry.key]
        self.entries[entry.key] = entry

    def set_value(self, key: str, attempt: int, value: Any) -> None:
        """The live object of a blob (unpickled once); ignored when the entry is gone or of another attempt."""
        entry = self.entries.get(key)
        if entry is not None and entry.attempt == attempt:
            entry.value, entry.has_value = value, True

    def drop(self, key: str, now: float) -> Entry | None:
        """Forget a key; requests that wait for its bytes are told that it is unknown."""
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.total -= entry.nbytes
            if entry.waiters is not None:
                self._release(entry)
        return entry

    # --- serving ---------------------------------------------------------------------------------

    def serve(self, route: Route, message: Get, now: float) -> None:
        """Answer a Get by one Data, at once or when what it asks for is frozen. A wrong token from a data hop is
        ignored and logged, once a hop."""
        if route.channel == "data" and not hmac.compare_digest(message.token.encode(), self.token.encode()):
            self.refuse(route)
            return
        entries = self.entries
        live: dict[str, Entry] = {}
        for row in message.rows:
            entry = entries.get(row[0])
            if entry is not None and entry.nbytes >= self.least:
                self.touch(entry)
            if entry is not None and (self._waits_to_share(entry) if message.shm else entry.state < FROZEN):
                live[row[0]] = entry
        if not live:
            self._answer(route, message)
            return
        self.serial += 1
        self.waiting[self.serial] = waiting = _Waiting(route, message, now)
        waiting.left = len(live)
        ask = [entry for entry in live.values() if entry.state in (LIVE, FROZEN)]
        for entry in live.values():
            if entry.waiters is None:
                entry.waiters = {}
            entry.waiters[self.serial] = waiting
            entry.state = FREEZING if entry.blob is None else SHARING
        order = self.share if message.shm and self.share is not None else self.freeze
        for entry in ask:
            if self.entries.get(entry.key) is entry and entry.state in (FREEZING, SHARING):
                order(entry.key, entry.attempt)

    def _waits_to_share(self, entry: Entry) -> bool:
        """Is there a point in waiting until the value lies in shared memory?"""
        if self.share is None or entry.nbytes < self.least:
            return False
        return entry.state != UNFREEZABLE and (entry.blob is None or not (entry.blob.shared or entry.blob.spilled))

    def frozen(self, key: str, attempt: int, blob: Blob | bytes, now: float, keep: bool = True) -> None:
        """The bytes that ``freeze`` or ``share`` asked for; serves those who waited. Ignored when the entry is gone or
        newer. Not ``keep``: nothing needs the live object beside them."""
        entry = self.entries.get(key)
        if entry is None or entry.attempt != attempt:
            return
        made = Whole(blob) if isinstance(blob, bytes) else blob
        if entry.state == SHARING:
            entry.blob = made
            self.unshared(key, attempt)
        elif entry.blob is None:
            self._settle(entry, FROZEN, made, "")
        if not keep and entry.blob is made:
            entry.has_value = False  # in this order, since threads look at both without a lock
            entry.value = None

    def spilled(self, key: str, attempt: int, blob: Blob) -> None:
        """A value's bytes are on disk: those are kept, and nothing else of it."""
        entry = self.entries.get(key)
        if entry is not None and entry.attempt == attempt and entry.state != SHARING:
            self._settle(entry, FROZEN, blob, "")
            entry.blob = blob
            entry.has_value, entry.value = False, None
            self.touch(entry)  # those that may still go to disk stand first

    def unshared(self, key: str, attempt: int) -> None:
        """The bytes stay where they are; those who waited are told."""
        entry = self.entries.get(key)
        if entry is not None and entry.attempt == attempt and entry.state == SHARING:
            entry.state = FROZEN
            if entry.waiters is not None:
                self._release(entry)

    def unfreezable(self, key: str, attempt: int, text: str, now: float) -> None:
        """The value cannot be pickled; those who waited, and all who ask later, are told why."""
        entry = self.entries.get(key)
        if entry is not None and entry.attempt == attempt:
            self._settle(entry, UNFREEZABLE, None, text[: 4 * MAX_REASON])

    def _settle(self, entry: Entry, state: int, blob: Blob | None, text: str) -> None:
        if entry.blob is not None:
            return
        entry.state, entry.blob, entry.text = state, blob, text
        if blob is not None and blob.nbytes != entry.nbytes:
            self.total += blob.nbytes - entry.nbytes
            entry.nbytes = blob.nbytes
        if entry.waiters is not None:
            self._release(entry)

    def _release(self, entry: Entry) -> None:
        """An entry is settled or gone: requests that waited for nothing else are answered."""
        waiters, entry.waiters = entry.waiters, None
        for serial, waiting in (waiters or {}).items():
            if serial in self.waiting:
                waiting.left -= 1
                if not waiting.left:
                    del self.waiting[serial]
                    self._answer(waiting.route, waiting.get)

    def tick(self, now: float) -> None:
        """Requests that have waited long are answered with what is there, the rest as "busy"."""
        while self.waiting:
            serial, waiting = next(iter(self.waiting.items()))
            if waiting.since + BUSY_AFTER > now:
                return
            del self.waiting[serial]
            for key, _, _ in waiting.get.rows:
                entry = self.entries.get(key)
                if entry is not None and entry.waiters is not None:
                    entry.waiters.pop(serial, None)
            self._answer(waiting.route, waiting.get)

    def deadline(self) -> float | None:
        """When ``tick`` is next needed; None when no request waits."""
        for waiting in self.waiting.values():
            return waiting.since + BUSY_AFTER
        return None

    def _answer(self, route: Route, get: Get) -> None:
        """One Data with what there is of the rows asked for, up to a chunk."""
        rows: list[tuple[str, int, int, int, tuple[Payload, ...]]] = []
        absent: list[tuple[str, str, str]] = []
        if get.shm:
            self._answer_shared(route, get)
            return
        room = WHOLE
        entries = self.entries
        for key, offset, length in get.rows:
            entry = entries.get(key)
            if entry is None:
                absent.append((key, "unknown", ""))
            elif entry.blob is not None:
                if room <= 0 or offset < 0 or length < 0:
                    continue
                total, blob = entry.nbytes, entry.blob
                if total < OWN_FRAME and not offset and (not length or length >= total) and type(blob) is Whole:
                    rows.append((key, entry.attempt, total, 0, (blob.data,)))  # the usual case
                    room -= total
                    continue
                size, pieces = part(blob, offset, min(length or room, room))
                rows.append((key, entry.attempt, total, offset, pieces))
                room -= size
            elif entry.state == UNFREEZABLE:
                absent.append((key, "unpicklable", entry.text))
            else:
                absent.append((key, "busy", ""))
        route = route if route.channel == "data" else Route(route.channel)
        self.send(route, Data(get.req, get.receiver, tuple(rows), tuple(absent)))

    def _answer_shared(self, route: Route, get: Get) -> None:
        """One Data with what of the rows lies in shared memory now."""
        shared: list[tuple[str, int, int]] = []
        absent: list[tuple[str, str, str]] = []
        for key, _, _ in get.rows:
            entry = self.entries.get(key)
            if entry is None:
                absent.append((key, "unknown", ""))
            elif entry.state == UNFREEZABLE:
                absent.append((key, "unpicklable", entry.text))
            elif entry.blob is not None and entry.blob.shared:
                shared.append((key, entry.attempt, entry.nbytes))
            else:
                coming = entry.state in (FREEZING, SHARING) and self._waits_to_share(entry)
                absent.append((key, "busy" if coming else "heap", ""))
        route = route if route.channel == "data" else Route(route.channel)
        self.send(route, Data(get.req, get.receiver, (), tuple(absent), tuple(shared)))

    def refuse(self, route: Route) -> None:
        """A data hop without the token: it gets no answer, and is logged once."""
        if route.hop in self.refused:
            return
        if len(self.refused) >= REFUSALS:
            del self.refused[next(iter(self.refused))]
        self.refused[route.hop] = None
        if self.log is not None:
            self.log("warning", "data.refused", hop=route.hop.hex(), reason="wrong or missing cluster token")

    def check(self) -> None:
        """Raise InvariantError if the state contradicts itself."""
        if self.total != sum(entry.nbytes for entry in self.entries.values()):
            raise InvariantError("store: total is not the sum")
        counts: dict[int, int] = {}
        for entry in self.entries.values():
            if (entry.state in (FROZEN, SHARING)) != (entry.blob is not None):
                raise InvariantError(f"store: {entry!r} and its blob disagree")
            if entry.waiters is not None and entry.state not in (FREEZING, SHARING):
                raise InvariantError(f"store: {entry!r} has waiters")
            for serial in entry.waiters or {}:
                counts[serial] = counts.get(serial, 0) + 1
        for serial, waiting in self.waiting.items():
            if not waiting.left == counts.get(serial, 0) > 0:
                raise InvariantError("store: a request waits for nothing")


def part(blob: Blob, offset: int, length: int) -> tuple[int, tuple[Payload, ...]]:
    """What there is of a range of a blob: its bytes, and the payloads."""
    size = max(0, min(length, blob.nbytes - offset))
    return size, pack(blob.slice(offset, size) if size else ())


def pack(pieces: Iterable[Any]) -> tuple[Payload, ...]:
    """Buffers as payloads: large ones as frames of their own, runs of small ones joined."""
    packed: list[Payload] = []
    small: list[Any] = []
    for piece in pieces:
        if len_bytes(piece) >= OWN_FRAME:
            if small:
                packed.append(b"".join(small))
                small = []
            packed.append(Buffer(piece))
        else:
            small.append(piece)
    if small:
        packed.append(b"".join(small))
    return tuple(packed)
