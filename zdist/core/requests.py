"""Requests under way: what is queued for each link, how much may be asked for, and what has been. PURE.

Windows bound the bytes asked for and not yet got: over all links, over the relay, and per link by its measured
bandwidth. A request reserves what it asks for until it is answered, given up, or its link is closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Final

from zdist.core.carried import Report
from zdist.core.links import AHEAD_SECONDS, CLOSED, MAX_PATIENCE, OPEN, PEER, RELAY, SHM, Link, Links
from zdist.core.machine import BULK, Route
from zdist.core.transfer import Map, Request, Transfer
from zdist.errors import InvariantError
from zdist.limits import CHUNK, CHUNK_ROWS, REQUEST_TIMEOUT, TRANSFER_WINDOW
from zdist.protocol.messages import Get, Message, Taken

__all__ = ["Requests"]

ACTIVE_LINKS: Final = 64  # links with a request under way; the others wait their turn
RELAY_WINDOW: Final = CHUNK  # in flight through a broker whose throughput is unknown or small
STALE: Final = 1024  # requests given up whose answers are still recognised
QUIET: Final = 0.02  # seconds without progress in which a peer path has not yet fallen behind,
QUIET_TIMES: Final = 4  # nor in so many times what an answer takes
SLOW: Final = 50e6  # bytes per second to expect at least of a path that is not measured


class Requests:
    """Queues, windows and requests of all links. ``map`` takes the commands for shared memory."""

    def __init__(
        self,
        send: Callable[[Route, Message], None],
        session: str,
        token: str,
        links: Links,
        map: Callable[[Map], None] | None,
    ) -> None:
        self.send, self.session, self.token, self.links, self.map = send, session, token, links, map
        self.looking: dict[int, None] = {}  # requests whose Map is not answered
        self.open: dict[int, Request] = {}
        self.stale: dict[int, Link] = {}  # given up
        self.inflight = 0
        self.relayed = 0  # of these, bytes by relay
        self.active: dict[Link, None] = {}  # links with requests
        self.queued: dict[Link, None] = {}  # links with queues
        self.ready: dict[Link, None] = {}  # links to look at in the next pump
        self.starving: dict[bool, list[tuple[int, int, Link]]] = {True: [], False: []}  # by relay or not
        self.discovered = False  # the speed of a link that was unknown
        self.serial = 0
        self.behind: dict[Link, int] = {}  # how often in a row it has fallen behind
        self.due = float("inf")  # when the owner has to look after a link
        self.report = Report()

    # --- queues ----------------------------------------------------------------------------------

    def enqueue(self, transfers: Iterable[Transfer], link: Link) -> None:
        """Plan what is left of transfers for a link."""
        serial, total, priority = self.serial, 0, None
        group: deque[Transfer] = deque()  # those of one priority share a place: a heap of thousands takes its time
        for transfer in transfers:
            if transfer.priority != priority:
                priority, group, serial = transfer.priority, deque(), serial + 1
                heappush(link.queue, (priority, serial, group))
            transfer.link, transfer.spot = link, serial
            fresh = not transfer.next and transfer.total < 0  # the usual case
            transfer.queued = size = (transfer.nbytes or 1) if fresh else transfer.expected()
            total += size
            group.append(transfer)
        self.serial = serial
        link.backlog += total
        if link.path == RELAY:
            self.links.relay_load += total
        self.queued[link] = self.ready[link] = None

    def unqueue(self, transfer: Transfer) -> None:
        """Take a transfer off its link's queue; what is under way stays so."""
        link = transfer.link
        if link is not None:
            link.backlog -= transfer.queued
            if link.path == RELAY:
                self.links.relay_load -= transfer.queued
            transfer.link, transfer.queued, transfer.spot = None, 0, 0

    def clear(self, link: Link) -> list[Transfer]:
        """Empty a link's queue: the transfers in it, in order."""
        queue, link.queue = sorted(link.queue, key=lambda item: item[:2]), []
        self.queued.pop(link, None)
        found = []
        for _, spot, group in queue:
            for transfer in group:
                if transfer.spot == spot:
                    self.unqueue(transfer)
                    found.append(transfer)
        return found

    # --- asking ----------------------------------------------------------------------------------

    def pump(self, now: float) -> None:
        """Ask for as much as the windows allow."""
        while self.ready:
            link = next(iter(self.ready))
            del self.ready[link]
            while link.queue and self._ask(link, now):
                pass
        for hungry in self.starving.values():
            while hungry:
                link = heappop(hungry)[2]
                link.starving = False
                asked = False
                while link.queue and self._ask(link, now):
                    asked = True
                if not asked and link.starving:
                    break

    def _ask(self, link: Link, now: float) -> bool:
        """Send one request; False when there is nothing to ask for or no room."""
        if link.path == SHM:
            return self._look(link, now)
        chunk, whole = link.chunk, min(link.whole, self._window(link))
        shared = self._room(link)
        budget = full = min(whole, link.window - link.inflight, shared)
        least = full - chunk  # left over by a request of one chunk, if it is not for a single larger value
        request = Request(self.serial + 1, link, now, link.route)
        rows, queue = request.rows, link.queue
        asked: list[tuple[str, int, int]] = []
        backlog = 0
        while queue and len(asked) < CHUNK_ROWS:
            priority, spot, group = queue[0]
            if not group:
                heappop(queue)
                continue
            transfer = group[0]
            if transfer.spot != spot:
                group.popleft()
                continue
            piece = need = transfer.need()
            plain = not transfer.gaps
            if need > chunk and not (need <= whole and transfer.whole):
                piece = -(-need // -(-need // chunk))  # in equal parts: no small rest at the end
            if piece > budget or (asked and budget - piece < least):
                if not asked and piece > shared and not link.starving:
                    link.starving = True
                    heappush(self.starving[link.path == RELAY], (priority, spot, link))
                break
            key = transfer.key
            if key in rows:
                break
            if piece:
                offset, length = transfer.ask(piece)
                budget -= length
                transfer.active += 1
                rows[key] = (transfer, offset, length, transfer.epoch)
                asked.append((key, offset, length))
            if piece == need and (plain or not transfer.need()):  # nothing left of it to ask for
                group.popleft()
                backlog += transfer.queued
                transfer.link, transfer.queued, transfer.spot = None, 0, 0
            else:
                taken = length if length < transfer.queued else transfer.queued
                transfer.queued -= taken
                backlog += taken
        link.backlog -= backlog
        if link.path == RELAY:
            self.links.relay_load -= backlog
        if not queue:
            self.queued.pop(link, None)
        if not asked:
            return False
        request.nbytes = full - budget
        self._send(request, tuple(asked))
        return True

    def _room(self, link: Link) -> int:
        """Bytes that all links together, or all relay links, may still ask for."""
        if link.state == CLOSED or (not link.requests and len(self.active) >= ACTIVE_LINKS):
            return 0
        room = TRANSFER_WINDOW - self.inflight
        return min(room, self._window(link) - self.relayed) if link.path == RELAY else room

    def _window(self, link: Link) -> int:
        """Bytes that may be in flight on all links together, or on all relay links."""
        if link.path != RELAY:
            return TRANSFER_WINDOW
        speed = self.links.relay.bandwidth
        return max(RELAY_WINDOW, int(speed * AHEAD_SECONDS)) if speed else RELAY_WINDOW

    def _send(self, request: Request, rows: tuple[tuple[str, int, int], ...]) -> None:
        self._begin(request)
        link = request.link
        token = "" if link.path == RELAY else self.token
        self.send(link.route, Get(request.req, token, link.holder, self.session, rows))

    def _look(self, link: Link, now: float) -> bool:
        """Have the driver look for all that is queued in the holder's shared memory. Nothing is reserved for it."""
        request, queue = Request(self.serial + 1, link, now, None), link.queue
        while queue and len(request.rows) < CHUNK_ROWS:
            _, spot, group = queue[0]
            if not group:
                heappop(queue)
                continue
            transfer = group[0]
            if transfer.spot == spot:
                if transfer.key in request.rows:
                    break
                self.unqueue(transfer)
                transfer.active += 1
                request.rows[transfer.key] = (transfer, 0, transfer.take(), transfer.epoch)
            group.popleft()
        if not queue:
            self.queued.pop(link, None)
        if not request.rows:
            return False
        self._begin(request)
        self.look(request)
        return True

    def look(self, request: Request) -> None:
        """Have the driver map what a request still lacks."""
        assert self.map is not None
        self.looking[request.req] = None
        rows = tuple([(key, row[0].attempt) for key, row in request.rows.items()])
        self.map(Map(request.req, request.link.holder, rows))

    def share(self, request: Request, now: float) -> None:
        """Ask the holder to put what a request still lacks into shared memory. That takes no bytes, so any way will do:
        its own socket if that is known to be open, else the relay."""
        peer = self.links.peer(request.link.holder)
        request.route, request.sent = (peer.route if peer is not None and peer.state == OPEN else BULK), now
        request.link.requests[request.req] = now
        self.due = min(self.due, now + request.link.stall)
        token = "" if request.route == BULK else self.token
        rows = tuple([(key, 0, 1) for key in request.rows])
        self.send(request.route, Get(request.req, token, request.link.holder, self.session, rows, True))

    def _begin(self, request: Request) -> None:
        link, now = request.link, request.sent
        self.serial = request.req
        self.open[request.req] = request
        if not link.requests:
            link.started(now)
            self.active[link] = None
            if not link.carried_keys and not link.carried_bytes:
                link.since = now
        link.requests[request.req] = now
        link.inflight += request.nbytes
        self.inflight += request.nbytes
        if link.path == RELAY:
            if not self.relayed:
                self.links.relay.started(now)
            self.relayed += request.nbytes
            self.links.relay_load += request.nbytes
        due = now + min(link.stall, self.quiet(link))
        if len(self.active) == 1 and len(link.requests) == 1:
            self.due = due  # whatever it was is over
        else:
            self.due = min(self.due, due)

    # --- ending ----------------------------------------------------------------------------------

    def answered(self, request: Request, keys: int, nbytes: int, now: float) -> None:
        """A request has its Data: free its room and learn from it."""
        link = request.link
        alone = len(link.requests) == 1
        self.release(request)
        link.delivers(now)
        link.since_loss += nbytes
        self.behind.pop(link, None)
        link.carried_bytes += nbytes
        if nbytes >= keys * Link.MIDDLING and nbytes:
            small = keys if nbytes < keys * Link.LARGE else 0
            unknown = not link.bandwidth
            link.carried(nbytes, now, not link.requests, small)
            if link.path == RELAY:
                self.links.relay.carried(nbytes, now, not self.relayed, small)
            if unknown and link.bandwidth:
                self.discovered = True
        else:
            link.skip(now)
            if link.path == RELAY:
                self.links.relay.skip(now)
            if alone:
                link.waited(max(1e-6, now - request.sent - keys * Link.KEY_SECONDS))

    def release(self, request: Request) -> None:
        """A request is over: its room is free."""
        link = request.link
        del self.open[request.req]
        del link.requests[request.req]
        self.looking.pop(request.req, None)
        link.inflight -= request.nbytes
        self.inflight -= request.nbytes
        if link.path == RELAY:
            self.relayed -= request.nbytes
            self.links.relay_load -= request.nbytes
        if not link.requests:
            del self.active[link]
        if link.queue:
            self.ready[link] = None

    def give_up(self, request: Request) -> None:
        """No answer is waited for any more; the relay is told, so that it frees its grant."""
        self.release(request)
        if request.link.path != SHM:
            if len(self.stale) >= STALE:
                del self.stale[next(iter(self.stale))]
            self.stale[request.req] = request.link
        if request.route == BULK:
            self.send(BULK, Taken(request.req))

    def settle(self, link: Link, now: float) -> None:
        """A link that has nothing under way or queued ends its batch: it goes into the report."""
        if link.requests or link.backlog or not link.carried_bytes:
            return
        seconds = max(0.0, now - link.since)
        self.report.add(link.path, link.name, link.carried_keys, link.carried_bytes, seconds, link.reason)
        link.carried_keys = link.carried_bytes = 0

    def patience(self, link: Link) -> float:
        """Seconds without progress after which a link's requests count as lost. The relay serves many at once, and is
        waited for as long as a peer path would be where that is open."""
        if link.path != RELAY:
            return link.patience
        shared = 2 * self.relayed / speed if (speed := self.links.relay.bandwidth) else 0.0
        peer = self.links.peers.get(link.holder)
        if peer is not None and peer.state == OPEN:
            return min(MAX_PATIENCE, (0.5 + max(link.stall, 1.0 + shared)) * (1 << min(link.strikes, 2)))
        return max(link.patience, min(MAX_PATIENCE, REQUEST_TIMEOUT + shared))

    def quiet(self, link: Link) -> float:
        """Seconds without progress after which a peer path has fallen behind, and the relay is asked as well: a lost
        packet costs a connection ten times that. A holder that is slow to answer is so by either way."""
        relay = self.links.relays.get(link.holder)
        if link.path != PEER or link.least or link.silence or relay is None or relay.state != OPEN or relay.silence:
            return float("inf")
        delay = link.delay + relay.lag + link.inflight / (link.bandwidth or SLOW)
        return max(QUIET, QUIET_TIMES * delay) * (1 << min(self.behind.get(link, 0), 10))

    def limit(self, link: Link) -> float:
        """Seconds without progress after which a link with requests has to be looked at."""
        return min(self.quiet(link), self.patience(link) if link.path != PEER or link.probe else link.stall)

    def next_due(self) -> float:
        """When a link with requests has to be looked at."""
        return min([link.oldest() + self.limit(link) for link in self.active], default=float("inf"))

    def check(self) -> None:
        """Raise InvariantError if the books do not balance."""
        if not 0 <= self.inflight <= TRANSFER_WINDOW:
            raise InvariantError(f"fetch: {self.inflight} B in flight over all links")
        if self.inflight != sum(r.nbytes for r in self.open.values()):
            raise InvariantError("fetch: bytes in flight are not the sum")
        relayed = sum(r.nbytes for r in self.open.values() if r.link.path == RELAY)
        if self.relayed != relayed:
            raise InvariantError("fetch: bytes in flight by relay are not the sum")
        for link in self.links.all():
            mine = [r for r in self.open.values() if r.link is link]
            if [r.req for r in mine] != list(link.requests):
                raise InvariantError(f"fetch: requests of {link!r} differ")
            if link.inflight != sum(r.nbytes for r in mine):
                raise InvariantError(f"fetch: bytes in flight of {link!r} differ")
            queued = [t for _, spot, group in link.queue for t in group if t.spot == spot]
            if any(t.link is not link for t in queued):
                raise InvariantError(f"fetch: {link!r} queues another link's transfer")
            if link.backlog != sum(t.queued for t in queued):
                raise InvariantError(f"fetch: backlog of {link!r} is not the sum")
            if (link in self.active) != bool(mine):
                raise InvariantError(f"fetch: {link!r} is active without requests, or the reverse")
            if queued and link not in self.queued:
                raise InvariantError(f"fetch: the queue of {link!r} is forgotten")
        load = sum(link.inflight + link.backlog for link in self.links.relays.values())
        if self.links.relay_load != load:
            raise InvariantError("fetch: the relay's load is not the sum")
