"""Fetching blobs from those that hold them, by the best path: the callers, and what comes back. PURE.

A *transfer* is one key on its way; callers stand behind it with *tickets*. `Steering` decides which way it goes,
`Requests` how much is under way. Paths are names: another one is another kind of link and another answer to a Get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from zdist.core.carried import Report
from zdist.core.gather import PATHS
from zdist.core.links import CLOSED, OPEN, RELAY, SHM, Host, Link
from zdist.core.machine import BULK, Route
from zdist.core.sharing import BUSY_PAUSE, Sharing
from zdist.core.steering import SILENT
from zdist.core.transfer import Map, Request, Ticket, Transfer, unwrap
from zdist.errors import InvariantError
from zdist.protocol.fields import DATA, serves
from zdist.protocol.messages import Data, Message, Payload, ProbeReply, Taken, payload_size

__all__ = ["Fetcher"]

GONE: Final = 4096  # sessions remembered as gone

Arrived = tuple[tuple[int, ...], str, int, Any, int, str]
Failure = tuple[tuple[int, ...], str, str, str, tuple[str, ...]]


class Fetcher(Sharing):
    """Requests, windows, timeouts and paths of everything that one client or worker fetches.

    Owner: construct with its own ``self.send``; route Data and ProbeReply to ``handle``; call ``tick`` when
    ``deadline`` is due; after each call take and clear:

    * ``arrived``: (tickets, key, attempt, data, bytes, path). Data is a list of consecutive buffers of the blob; with
      the path "shm" it is the blob that the driver has made.
    * ``failed``: (tickets, key, code, text, holders). Codes: "missing" (every holder said that it does not have
      it), "unreachable" (some did not answer: ask the broker where it is now), "unpicklable" (text says why), "closed"
      (the paths allowed are closed). The holders are those that said no. A failed key is over.
    * ``warnings``: (ticket, worker, reason): ``direct=True`` went by relay; once per ticket and worker.

    ``report`` keeps the last batches (path, worker, keys, bytes, seconds, reason).
    """

    def __init__(
        self,
        send: Callable[[Route, Message], None],
        session: str,
        token: str,
        *,
        paths: Sequence[str] = PATHS,
        fallback: bool = True,
        host: Host | None = None,
        map: Callable[[Map], None] | None = None,
    ) -> None:
        super().__init__(send, session, token, paths, fallback, host, map)
        self.tables: dict[bool | None, dict[str, Transfer]] = {None: {}, True: {}, False: {}}
        self.arrived: list[Arrived] = []
        self.failed: list[Failure] = []

    @property
    def report(self) -> Report:
        """What came home last, and which way."""
        return self.requests.report

    # --- what the owner says ---------------------------------------------------------------------

    def members(self, rows: Iterable[tuple[str, str, str, str, str]]) -> None:
        """Learn workers from Members rows: session, data address, name, host, node."""
        rows = list(rows)
        for row in rows:
            self.gone.pop(row[0], None)
        self.links.learn(rows)

    def forget(self, session: str, now: float) -> None:
        """A worker is gone for good: what was asked of it is asked of other holders, or fails as missing."""
        while len(self.gone) >= GONE:
            del self.gone[next(iter(self.gone))]
        self.gone[session] = None
        moved = self.unpark(session)
        for link in (self.links.shms.get(session), self.links.peers.get(session), self.links.relays.get(session)):
            if link is not None:
                moved += self.evacuate(link)
                self.requests.settle(link, now)
                self.requests.behind.pop(link, None)
                self.probes.cancel(link)
                link.silence = 0.0  # nobody is to probe it
        self.links.remove(session)
        self.plan(moved, now)
        self.pump(now)

    def fetch(
        self,
        ticket: int,
        rows: Iterable[tuple[str, int, int, Sequence[str]]],
        *,
        direct: bool | None = None,
        now: float,
        priority: int = 0,
    ) -> None:
        """Want keys: key, attempt (-1: any), bytes (a hint; 0: unknown), holders (sessions).

        May be called again for the same ticket to add keys; ``direct`` is the ticket's, from its first call until its
        last key is done. Keys that others fetch in a compatible way are not fetched twice. Smaller priority first.
        """
        caller = self.tickets.get(ticket)
        if caller is None:
            caller = self.tickets[ticket] = Ticket(direct)
        new = self._join(ticket, caller, rows, priority)
        self.plan_new(new, caller.direct, now)
        if not caller.keys:
            self.tickets.pop(ticket, None)
        self.pump(now)

    def _join(
        self, ticket: int, caller: Ticket, rows: Iterable[tuple[str, int, int, Sequence[str]]], priority: int
    ) -> list[Transfer]:
        """Put a ticket behind transfers; those that are new."""
        direct, keys, alone = caller.direct, caller.keys, (ticket,)
        table = self.tables[direct]
        others = [other for other in self.tables.values() if other and other is not table] if direct is None else []
        new = []
        for key, attempt, nbytes, holders in rows:
            if key in keys:
                continue
            transfer = table.get(key)
            for other in others:
                transfer = transfer or other.get(key)
            if transfer is None:
                at = holders if type(holders) is tuple else tuple(holders)
                keys[key] = table[key] = transfer = Transfer(key, attempt, nbytes, at, direct, priority, alone)
                new.append(transfer)
                continue
            if priority < transfer.priority:
                transfer.priority = priority
                if (link := transfer.link) is not None:
                    self.requests.unqueue(transfer)
                    self.requests.enqueue((transfer,), link)
            transfer.tickets += alone
            keys[key] = transfer
        return new

    def abandon(self, ticket: int, now: float) -> None:
        """The caller no longer wants anything under this ticket; transfers that others want as well go on."""
        caller = self.tickets.get(ticket)
        if caller is not None:
            self.drop(ticket, list(caller.keys), now)

    def drop(self, ticket: int, keys: Iterable[str], now: float) -> None:
        """The same for some keys of a ticket."""
        caller = self.tickets.get(ticket)
        if caller is None:
            return
        ended = False
        for key in keys:
            transfer = caller.keys.pop(key, None)
            if transfer is not None:
                transfer.tickets = tuple([other for other in transfer.tickets if other != ticket])
                if not transfer.tickets:
                    self._end(transfer)
                    ended = True
        if not caller.keys:
            del self.tickets[ticket]
        if ended:
            self.give_up_shared()
            for request in list(self.requests.open.values()):
                if request.link.path == RELAY and all(row[0].done for row in request.rows.values()):
                    self.requests.give_up(request)
                    self.requests.settle(request.link, now)
            self.requests.ready.update(self.requests.queued)  # what is left of their queues is stale
            self.pump(now)

    def relocate(self, key: str, holders: Sequence[str], nbytes: int, now: float, attempt: int = -1) -> None:
        """Where a key that is being fetched now is (Locate, Finished). No holders: it waits for the next call.
        Nothing happens for a key that is not being fetched."""
        moved = []
        for table in self.tables.values():
            transfer = table.get(key)
            if transfer is None:
                continue
            self.shelve(transfer)
            transfer.holders, transfer.absent, transfer.strikes = tuple(holders), None, 0
            transfer.unshared = False
            if transfer.total < 0 and nbytes:
                transfer.nbytes = nbytes
            if transfer.attempt < 0:
                transfer.attempt = attempt
            elif attempt > transfer.attempt or (attempt != transfer.attempt and attempt >= DATA):
                transfer.restart(attempt)
            if holders:
                moved.append(transfer)
        self.plan(moved, now)
        self.pump(now)

    def wants(self, key: str) -> bool:
        """Whether the key is being fetched for anybody."""
        return any(key in table for table in self.tables.values())

    # --- answers ---------------------------------------------------------------------------------

    def handle(self, route: Route, message: Data | ProbeReply, now: float) -> None:
        """Take in an answer; late, duplicate and foreign ones change nothing."""
        if isinstance(message, Data):
            self._data(route, message, now)
        else:
            link = self.links.peers.get(message.session)
            self.probes.reply(route, link, message, now)
            if link is not None and link.route.channel == route.channel:
                link.silence = 0.0
        self.pump(now)

    def _data(self, route: Route, message: Data, now: float) -> None:
        if route.channel == BULK.channel:
            self.send(BULK, Taken(message.req))
        elif (peer := self.links.addresses.get(route.channel)) is not None and peer.state == CLOSED:
            self.probes.suspect(peer, now)  # it lives after all
        request = self.requests.open.get(message.req)
        if request is None:
            late = self.requests.stale.get(message.req)
            if late is not None and late.route.channel == route.channel:
                self._late(late, message, now)
            return
        if request.route is None or request.route.channel != route.channel:
            return
        if request.link.path == SHM:
            self.shared(request, message, now)
            return
        self.learned = True
        link, rows = request.link, request.rows
        again: list[Transfer] = []
        nbytes, whole, before = 0, 0, link.carried_keys
        for key, attempt, total, offset, pieces in message.rows:
            row = rows.pop(key, None)
            if row is not None:
                size = 0
                for piece in pieces:
                    size += len(piece) if type(piece) is bytes else payload_size(piece)
                nbytes += size
                transfer = row[0]
                if transfer.done or row[3] != transfer.epoch:
                    continue
                transfer.active -= 1
                if size == total and attempt == transfer.attempt and not offset and not transfer.got and size <= row[2]:
                    whole += 1  # the usual case: the whole blob at once
                    data = [piece if type(piece) is bytes else unwrap(piece) for piece in pieces]
                    self.finish(transfer, data, total, link.path)
                elif self._accept(transfer, row[1], row[2], link, attempt, total, offset, size, pieces, now):
                    again.append(transfer)
        link.carried_keys += whole
        self.requests.answered(request, max(1, link.carried_keys - before), nbytes, now)
        if message.absent:
            self._absent(request, message.absent, again, now)
        else:
            link.misses = 0
        left = self.void(request)
        if not message.rows and not message.absent:
            self.strike(left, link, now)
        self.go_on([*again, *left], link, now)
        self.requests.settle(link, now)

    def _late(self, link: Link, message: Data, now: float) -> None:
        """The answer to a request that was given up: the link lives, and whole blobs are still welcome."""
        del self.requests.stale[message.req]
        link.delivers(now)
        for key, attempt, total, offset, pieces in message.rows:
            transfer = self.tables[None].get(key)
            if transfer is None or transfer.attempt not in (-1, attempt) or transfer.got:
                continue
            if not offset and sum(map(payload_size, pieces)) == total:
                transfer.attempt = attempt
                self.finish(transfer, [unwrap(piece) for piece in pieces], total, link.path)

    def _accept(
        self, transfer: Transfer, asked: int, length: int, link: Link,
        attempt: int, total: int, offset: int, size: int, pieces: tuple[Payload, ...], now: float,
    ) -> bool:  # fmt: skip
        """Take in one row. True when something of the transfer has to be asked for again."""
        if attempt != transfer.attempt:
            if transfer.attempt < 0:
                transfer.attempt = attempt
            elif serves(attempt, transfer.attempt):
                transfer.restart(attempt)
                if asked:
                    return True
                transfer.next = length
            else:  # what this holder has is of an earlier computation, or other data of that name
                transfer.again(asked, asked + length)
                self.lose(transfer, link.holder, "has an earlier computation or other data of that name only", now)
                return False
        end = offset + size if size else 0  # a range past the end is empty: what was known of the size was too large
        if offset != asked or size > length or total < end or transfer.total not in (-1, total):
            transfer.again(asked, asked + length)
            self.lose(transfer, link.holder, f"sent {size} B at {offset} of {total}, asked was {asked}", now)
            return False
        if size == total and not transfer.got:
            link.carried_keys += 1
            self.finish(transfer, [unwrap(piece) for piece in pieces], total, link.path)
            return False
        if transfer.total < 0:
            transfer.total = total
            if transfer.gaps:
                transfer.gaps = [(start, min(end, total)) for start, end in transfer.gaps if start < total]
        if size:
            if transfer.parts is None:
                transfer.parts = self.memory.assembly(total)
            transfer.parts.write(offset, [unwrap(piece) for piece in pieces])
            transfer.got += size
            transfer.strikes = 0
        if transfer.got == total:
            link.carried_keys += 1
            self.finish(transfer, transfer.pieces(), total, link.path)
            return False
        transfer.again(asked + size, asked + length)
        if not size and asked < total:
            self.strike([transfer], link, now)
        return not transfer.done

    def _absent(
        self, request: Request, absent: tuple[tuple[str, str, str], ...], again: list[Transfer], now: float
    ) -> None:
        """Keys that the holder, or the relay on its behalf, could not serve."""
        link = request.link
        if not any(code == "unreachable" for _, code, _ in absent):
            link.misses = 0
        elif link.path == RELAY and link.state == OPEN:
            link.unreachable(f"the broker has no connection to {link.name}", now)
            self.at(link.closed_until, link)
            again += self.requests.clear(link)
        for key, code, text in absent:
            row = request.rows.pop(key, None)
            if row is None:
                continue
            transfer, offset, length, epoch = row
            if transfer.done or epoch != transfer.epoch:
                continue
            transfer.active -= 1
            transfer.again(offset, offset + length)
            if code == "unpicklable":
                self.fail(transfer, code, text, now)
            elif code == "busy":
                self.at(now + BUSY_PAUSE, transfer)
            elif code == "unreachable":
                again.append(transfer)
            else:
                self.lose(transfer, link.holder, text or code, now)

    # --- endings ---------------------------------------------------------------------------------

    def finish(self, transfer: Transfer, data: Any, nbytes: int, path: str) -> None:
        """It is all here."""
        tickets, key = transfer.tickets, transfer.key
        self._end(transfer)
        self.arrived.append((tickets, key, transfer.attempt, data, nbytes, path))
        for ticket in tickets:
            keys = self.tickets[ticket].keys
            del keys[key]
            if not keys:
                del self.tickets[ticket]

    def _end(self, transfer: Transfer) -> None:
        transfer.done = True
        if transfer.link is not None or self.parked:
            self.shelve(transfer)
        del self.tables[transfer.direct][transfer.key]

    def fail(self, transfer: Transfer, code: str, text: str, now: float) -> None:
        """It cannot be had. Callers that leave the path to us are not bound by the ``direct`` of one they joined."""
        tickets = transfer.tickets
        free = [t for t in tickets if self.tickets[t].direct is None] if code == "closed" and transfer.direct else []
        bound = tuple(t for t in tickets if t not in free)
        self._end(transfer)
        key = transfer.key
        for ticket in tickets:
            del self.tickets[ticket].keys[key]
        if bound:
            absent = transfer.absent or {}
            denied = tuple(name for name, why in absent.items() if why is not SILENT)
            if code == "missing" and len(denied) < len(absent):
                code = "unreachable"
            self.failed.append((bound, key, code, text, denied))
        row = (key, transfer.attempt, transfer.nbytes, transfer.holders)
        for ticket in free:
            self.plan(self._join(ticket, self.tickets[ticket], (row,), transfer.priority), now)
        for ticket in tickets:
            if ticket in self.tickets and not self.tickets[ticket].keys:
                del self.tickets[ticket]

    def deadline(self) -> float | None:
        """When ``tick`` is next needed; at once while the owner has not taken what came, or the driver has to look."""
        if self.arrived or self.failed or self.requests.looking:
            return 0.0
        return super().deadline()

    def check(self) -> None:
        """Raise InvariantError if the state contradicts itself."""
        super().check()
        under: dict[Transfer, int] = {}
        for request in self.requests.open.values():
            for transfer, _, _, epoch in request.rows.values():
                if epoch == transfer.epoch and not transfer.done:
                    under[transfer] = under.get(transfer, 0) + 1
        later = dict.fromkeys(what for _, _, what in self.later)
        for direct, table in self.tables.items():
            for key, transfer in table.items():
                if transfer.done or transfer.key != key:
                    raise InvariantError(f"fetch: {transfer!r} is over and still listed")
                if transfer.direct is not direct or not transfer.tickets:
                    raise InvariantError(f"fetch: nobody wants {transfer!r}")
                if transfer.active != under.get(transfer, 0):
                    raise InvariantError(f"fetch: ranges under way of {transfer!r} differ")
                placed = transfer.link is not None or transfer in later or bool(transfer.active)
                placed = placed or any(transfer in self.parked.get(holder, ()) for holder in transfer.holders)
                if transfer.holders and not placed:
                    raise InvariantError(f"fetch: {transfer!r} is forgotten")
                for ticket in transfer.tickets:
                    if self.tickets[ticket].keys.get(key) is not transfer:
                        raise InvariantError(f"fetch: ticket {ticket} lost {key}")
        for number, ticket_ in self.tickets.items():
            if not ticket_.keys:
                raise InvariantError(f"fetch: ticket {number} wants nothing")
