"""Which way each transfer goes, and when it is to go another way. PURE.

The planner puts each transfer into the queue of a link; requests leave from there as the windows allow. Whatever
changes the picture (a probe's verdict, a link that closes or falls silent, better estimates) plans anew what has not
been asked for yet, so a transfer moves between paths and holders in the middle. A transfer with something left to ask
for is in one place: in a link's queue, parked until a verdict on one of its holders, in ``later``, or nowhere because
its owner is to say where it is (``relocate`` without holders).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import Final

from zdist.core.assembly import Memory, NoMemory
from zdist.core.gather import NONE, WAIT, plan_gather
from zdist.core.links import CLOSED, DEAF, OPEN, PEER, RELAY, SHM, SILENCE, UNKNOWN, Host, Link, Links
from zdist.core.machine import Route
from zdist.core.probes import Probes
from zdist.core.requests import Requests
from zdist.core.transfer import Map, Request, Ticket, Transfer
from zdist.errors import InvariantError
from zdist.protocol.messages import Message

__all__ = ["Steering"]

NEVER: Final = float("inf")
MAX_STRIKES: Final = 6  # timeouts of a link, or requests for a key without result, in a row: the holder is given up
DEAF_STRIKES: Final = 3  # timeouts of a peer path that answers probes, before it counts as closed
REPLAN_SECONDS: Final = 0.05  # what waits in queues is planned anew, so often at most
REPLAN_PER_KEY: Final = 1e-4  # and the less often the more there is
SETTLED: Final = 0.1  # seconds from the end at which nothing changes its way any more: estimates are not that good

LATE: Final = 0.005  # seconds after which a deadline is looked at late
SILENT: Final = "does not answer"  # why a holder is crossed off that may well have the data
UNREACHABLE_PAUSE: Final = 0.5  # seconds before holders that no path leads to are tried again


class Steering:
    """Plans, verdicts and timeouts of transfers; the callers behind them are the Fetcher's."""

    def __init__(
        self,
        send: Callable[[Route, Message], None],
        session: str,
        token: str,
        paths: Sequence[str],
        fallback: bool,
        host: Host | None,
        map: Callable[[Map], None] | None,
    ) -> None:
        self.send, self.session, self.paths, self.fallback = send, session, tuple(paths), fallback
        self.links = Links(host)
        self.probes = Probes(send, token, self.verdict)
        self.memory: Memory = NoMemory()  # for large blobs
        self.requests = Requests(send, session, token, self.links, map)
        self.tickets: dict[int, Ticket] = {}
        self.parked: dict[str, dict[Transfer, None]] = {}  # by holder: waiting for a verdict
        self.later: list[tuple[float, int, Transfer | Link]] = []  # heap: to be looked at again at a time
        self.laters = 0
        self.replan_at = 0.0  # 0: no need
        self.learned = False  # something about the links, since the last plan
        self.gone: dict[str, None] = {}
        self.warnings: list[tuple[int, str, str]] = []

    def authorize(self, token: str) -> None:
        """The token that requests and probes carry from now on."""
        self.probes.token = self.requests.token = token

    def fail(self, transfer: Transfer, code: str, text: str, now: float) -> None:
        """A transfer cannot be had; the Fetcher tells its callers."""
        raise NotImplementedError

    def pump(self, now: float) -> None:
        """Send what may be sent; whatever stays in queues is looked at again."""
        requests = self.requests
        requests.pump(now)
        if not requests.queued or len(self.paths) < 2:
            return
        if requests.discovered:
            requests.discovered = False
            self.replan_at = min(self.replan_at or NEVER, now + REPLAN_SECONDS)
        elif self.learned and not self.replan_at:
            self.learned = False
            waiting = sum(len(group) for link in requests.queued for _, _, group in link.queue)
            self.replan_at = now + max(REPLAN_SECONDS, REPLAN_PER_KEY * waiting)

    # --- planning --------------------------------------------------------------------------------

    def plan(self, transfers: Iterable[Transfer], now: float) -> None:
        """Find a way for transfers; those that are queued, done or have all asked for already are left alone."""
        by_direct: dict[tuple[bool | None, bool], list[Transfer]] = {}
        seen: dict[tuple[str, ...], None] = {}
        for transfer in dict.fromkeys(transfers):
            if transfer.done or transfer.link is not None:
                continue
            if (transfer.next or transfer.total >= 0) and not transfer.need():
                continue
            if self.parked:
                self.shelve(transfer)
            if self.gone:
                for holder in transfer.holders:
                    if holder in self.gone:
                        self.cross(transfer, holder, "gone")
            if not transfer.holders:
                told = "; ".join(f"{holder}: {why}" for holder, why in (transfer.absent or {}).items())
                self.fail(transfer, "missing", told or "no holders", now)
                continue
            seen[transfer.holders] = None
            fits = transfer.whole or not any(holder in self.links.shms for holder in transfer.holders)
            some = by_direct.get((transfer.direct, fits))
            if some is None:
                some = by_direct[transfer.direct, fits] = []
            some.append(transfer)
        if any(direct is not False for direct, _ in by_direct):
            self._look_at(dict.fromkeys(holder for holders in seen for holder in holders), now)
        for (direct, fits), some in by_direct.items():
            wants = [(transfer, transfer.expected(), transfer.holders) for transfer in some]
            paths = self.paths if fits else [path for path in self.paths if path != SHM]
            for batch in plan_gather(wants, self.links, direct, paths=paths, fallback=self.fallback):
                self._take_up(batch.path, batch.holder, batch.keys, batch.reason, now)

    def plan_new(self, transfers: Sequence[Transfer], direct: bool | None, now: float) -> None:
        """The same for those that have just begun, all with one ``direct``: of most there is nothing to look after."""
        holders = dict.fromkeys([transfer.holders for transfer in transfers])
        if self.gone or self.parked or () in holders:
            self.plan(transfers, now)
            return
        if direct is not False:
            self._look_at(dict.fromkeys([holder for some in holders for holder in some]), now)
        wants = [(transfer, transfer.nbytes or 1, transfer.holders) for transfer in transfers]
        for batch in plan_gather(wants, self.links, direct, paths=self.paths, fallback=self.fallback):
            self._take_up(batch.path, batch.holder, batch.keys, batch.reason, now)

    def _look_at(self, holders: Iterable[str], now: float) -> None:
        """Links to these are about to be used: probe those of which nothing is known, try closed ones again."""
        for holder in holders:
            if PEER in self.paths and (link := self.links.peer(holder)) is not None:
                link.forgive(now)
                if link.state != OPEN:
                    self.probes.consider(link, now)
            if (link := self.links.shms.get(holder)) is not None and link.state == CLOSED and now >= link.closed_until:
                link.state = OPEN  # to look costs next to nothing; what became of it is known in this turn
            if (link := self.links.relays.get(holder)) is not None:
                link.forgive(now)

    def _take_up(self, path: str, holder: str, transfers: list[Transfer], reason: str, now: float) -> None:
        """Do with one batch what the plan says."""
        if path == NONE:
            for transfer in transfers:
                if RELAY not in self.paths or (transfer.direct and not self.fallback):
                    self.fail(transfer, "closed", reason, now)
                    continue
                if not transfer.patient:  # the way may be back in a moment
                    transfer.patient = True
                    self.at(now + UNREACHABLE_PAUSE, transfer)
                else:
                    self.fail(transfer, "unreachable", reason, now)
        elif path == WAIT:
            for transfer in transfers:
                for name in transfer.holders:
                    self.parked.setdefault(name, {})[transfer] = None
        else:
            link = self.links.find(path, holder)
            link.reason = reason
            self.requests.enqueue(transfers, link)
            if path == RELAY and transfers[0].direct:
                for transfer in transfers:
                    self._warn(transfer, link, reason)

    def _warn(self, transfer: Transfer, link: Link, reason: str) -> None:
        if self.links.peer(link.holder) is None:
            return  # a client has no socket of its own
        for ticket in transfer.tickets:
            caller = self.tickets[ticket]
            if caller.direct and link.holder not in caller.warned:
                caller.warned[link.holder] = None
                self.warnings.append((ticket, link.name, reason))

    def go_on(self, transfers: Iterable[Transfer], link: Link, now: float) -> None:
        """What is left of transfers goes on where it was, or another way if that is over."""
        moved = []
        for transfer in transfers:
            if transfer.done or transfer.link is not None or not transfer.need():
                continue
            if link.state == OPEN and link.holder in transfer.holders:
                self.shelve(transfer)
                self.requests.enqueue((transfer,), link)
            else:
                moved.append(transfer)
        if moved:
            self.plan(moved, now)

    # --- taking transfers off their way --------------------------------------------------------------

    def shelve(self, transfer: Transfer) -> None:
        """Take a transfer out of the queue and the parking places."""
        self.requests.unqueue(transfer)
        if self.parked:
            for holder in transfer.holders:
                shelf = self.parked.get(holder)
                if shelf is not None:
                    shelf.pop(transfer, None)
                    if not shelf:
                        del self.parked[holder]

    def unpark(self, holder: str) -> list[Transfer]:
        """The transfers that waited for a verdict on this holder, to be planned again."""
        found = list(self.parked.get(holder, ()))
        for transfer in found:
            self.shelve(transfer)
        return found

    def evacuate(self, link: Link) -> list[Transfer]:
        """Take everything off a link that carries nothing any more."""
        moved = self.requests.clear(link)
        for req in list(link.requests):
            request = self.requests.open[req]
            self.requests.give_up(request)
            moved += self.void(request)
        return moved

    def void(self, request: Request) -> list[Transfer]:
        """A request will not be answered (any more): its ranges become gaps. Returns their transfers."""
        left = []
        for transfer, offset, length, epoch in request.rows.values():
            if not transfer.done and epoch == transfer.epoch:
                transfer.active -= 1
                transfer.again(offset, offset + length)
                left.append(transfer)
        request.rows.clear()
        return left

    def cross(self, transfer: Transfer, holder: str, why: str) -> None:
        """Cross a holder off."""
        if transfer.absent is None:
            transfer.absent = {}
        transfer.absent[holder] = why
        transfer.holders = tuple(name for name in transfer.holders if name != holder)

    def lose(self, transfer: Transfer, holder: str, why: str, now: float) -> None:
        """A holder does not have it: the others are asked."""
        if not transfer.done:
            self.shelve(transfer)
            self.cross(transfer, holder, why)
            self.plan([transfer], now)

    def strike(self, transfers: Iterable[Transfer], link: Link, now: float) -> None:
        """Requests for these came to nothing."""
        for transfer in transfers:
            transfer.strikes += 1
            if transfer.strikes >= MAX_STRIKES:
                transfer.strikes = 0
                self.lose(transfer, link.holder, SILENT, now)

    def verdict(self, link: Link, now: float) -> None:
        """A peer path has opened or closed: what can go another way is planned again."""
        moved = self.unpark(link.holder)
        if link.state == OPEN:
            relay = self.links.relays.get(link.holder)
            if relay is not None:
                moved += self.requests.clear(relay)
        else:
            moved += self.evacuate(link)
            self.requests.settle(link, now)
        self.plan(moved, now)

    # --- time ------------------------------------------------------------------------------------

    def at(self, when: float, what: Transfer | Link) -> None:
        """Look at a transfer or link again at a time."""
        self.laters += 1
        heappush(self.later, (when, self.laters, what))

    def tick(self, now: float) -> None:
        """Time passes: timeouts, probes, second thoughts."""
        self.probes.tick(now)
        self.memory.sweep(now)
        while self.later and self.later[0][0] <= now:
            what = heappop(self.later)[2]
            if isinstance(what, Transfer):
                self.plan([what], now)
            elif what.path == PEER:
                if what.silence and what.state == OPEN and now >= what.progress + what.stall:  # still nothing
                    self.probes.suspect(what, now)
            elif what.state == CLOSED and what.closed_until <= now:
                if what.lost:
                    what.misses, what.lost = 0, False
                what.opened()
                self.plan(self.unpark(what.holder), now)
        late = now > self.requests.due + LATE
        for link in list(self.requests.active):
            if link.requests:
                self._overdue(link, now, late)
        if self.replan_at and now >= self.replan_at:
            self.replan_at = 0.0
            if any(link.delay + (link.inflight + link.backlog) / link.speed > SETTLED for link in self.requests.queued):
                moved = [transfer for link in list(self.requests.queued) for transfer in self.requests.clear(link)]
                moved.sort(key=lambda transfer: transfer.priority)
                self.plan(moved, now)
        self.pump(now)
        due = self.requests.next_due()
        self.requests.due = max(due, now) if late else due

    def unshare(self, transfers: Iterable[Transfer], now: float) -> None:
        """These are to be had as bytes only."""
        some = list(transfers)
        for transfer in some:
            transfer.unshared = True
        self.plan(some, now)

    def _overdue(self, link: Link, now: float, late: bool) -> None:
        """Give up requests that had no answer for too long; probe a peer path that has fallen silent. ``late``: we were
        away, and the answers may be waiting for us."""
        if link.path == SHM:
            if now >= link.oldest() + link.patience:
                self.unshare(self.evacuate(link), now)
            return
        since = link.oldest()
        if now < since + self.requests.patience(link):  # the same sums as for the deadline, or ticks would spin
            if not late and now >= since + self.requests.quiet(link):
                self._behind(link, now)
            elif link.path == PEER and now >= since + link.stall:
                self.probes.suspect(link, now)
            return
        link.strikes += 1
        moved = []
        for req in list(link.requests):
            request = self.requests.open[req]
            self.requests.give_up(request)
            left = self.void(request)
            self.strike(left, link, now)
            moved += left
        if link.strikes >= MAX_STRIKES:
            link.strikes = DEAF_STRIKES
            for transfer in dict.fromkeys([*self.requests.clear(link), *moved]):
                self.lose(transfer, link.holder, SILENT, now)
        if link.path == PEER:
            if link.strikes >= DEAF_STRIKES:
                link.closed(f"{link.route.channel} answers probes but sends no data", now, DEAF)
            else:
                link.state = UNKNOWN
            self.verdict(link, now)
        else:
            link.unreachable("the broker has relayed nothing of late", now)
            link.silence = now - since
            self.at(link.closed_until, link)
            moved += self.requests.clear(link)
            self.requests.settle(link, now)
        self.plan(moved, now)

    def _behind(self, link: Link, now: float) -> None:
        """A peer path has fallen behind: what it owes and what waits for it goes by relay until it delivers, if what it
        owes would be sooner that way: meanwhile the relay is all there is. The answer to a probe would wait behind what
        is owed, so one is sent when that should have come."""
        link.fell_behind(now)
        self.requests.behind[link] = self.requests.behind.get(link, 0) + 1
        self.at(now + link.stall, link)
        if self._relayed(link) >= SILENCE + link.inflight / link.speed:
            return
        link.silence = NEVER
        moved = []
        for req in list(link.requests):
            request = self.requests.open[req]
            if all(row[0].direct is None for row in request.rows.values()):
                self.requests.give_up(request)
                moved += self.void(request)
        moved += self.requests.clear(link)
        self.requests.settle(link, now)
        self.plan(moved, now)

    def _relayed(self, link: Link) -> float:
        """Seconds until what a link owes would be here by relay, beside what is under way there."""
        relay, all_ = self.links.by_relay(link.holder), self.links.relay
        own = (relay.inflight + link.inflight) / relay.speed
        return relay.delay + max(own, (self.requests.relayed + link.inflight) / all_.speed)

    def deadline(self) -> float | None:
        """When ``tick`` is next needed; None when nothing is under way."""
        due = self.requests.due if self.requests.active else NEVER
        if self.later and self.later[0][0] < due:
            due = self.later[0][0]
        if self.probes.out:
            probe = self.probes.deadline()
            if probe is not None and probe < due:
                due = probe
        if self.replan_at and self.replan_at < due:
            due = self.replan_at
        if self.memory.due < due:
            due = self.memory.due
        return due if due != NEVER else None

    def check(self) -> None:
        """Raise InvariantError if the state contradicts itself."""
        self.requests.check()
        for holder, shelf in self.parked.items():
            if not shelf:
                raise InvariantError(f"fetch: empty parking place of {holder}")
            for transfer in shelf:
                if transfer.done or transfer.link is not None:
                    raise InvariantError(f"fetch: {transfer!r} is parked and not")
                if holder not in transfer.holders:
                    raise InvariantError(f"fetch: {transfer!r} is parked at {holder}, no holder of it")
