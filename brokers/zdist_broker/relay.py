"""Data that passes through the broker: requests out to holders, chunks back, under one budget of bytes. PURE.

A request is granted before it goes to its holder: at most ``RELAY_BUDGET`` bytes are asked for and not yet taken, and
the receivers share them by turns, so the broker's memory is bounded whatever the results' sizes. Of the receivers on
one host, ``AT_ONCE`` are served at a time: more of them would not bring in more, and would keep its cores from others.

A receiver that does not take what it got loses its place in the budget after ``TAKE_TIMEOUT``, but gets nothing more
until it takes it. What it was sent may still lie in its connection's queue: it counts up to ``RELAY_CEILING`` until the
receiver takes it, or its connection is found to be gone.

What its holder keeps in the shared memory of the broker's own host is sent from there (`Peek`), without the way through
the holder's socket: half of the work, and none of it the holder's, whose threads may be busy.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from zdist.core.links import MIN_CHUNK
from zdist.core.machine import Machine, require
from zdist.errors import ProtocolError
from zdist.limits import (
    CHUNK,
    GRANT_TIMEOUT,
    MIB,
    QUEUED_REQUESTS,
    RELAY_BUDGET,
    RELAY_CEILING,
    TAKE_TIMEOUT,
    WHOLE,
)
from zdist.protocol.messages import Attempt, Data, Get, HelloPlease, Key, Message, Payload, Taken, payload_size
from zdist_broker.early import Early
from zdist_broker.refusals import Refusals

__all__ = ["Peek", "Relay", "Row"]

Row = tuple[Key, Attempt, int, int, tuple[Payload, ...]]  # of a Data

UNPROVEN: Final = 2 * CHUNK  # bytes under way to a receiver that has not taken anything yet
AT_ONCE: Final = 2  # receivers of one host that are served at a time,
TURN: Final = 32 * MIB  # each, while others wait, until it was given so many bytes,
STILL: Final = 0.1  # or until it has taken nothing for so many seconds
SMALL: Final = MIB // 4  # bytes of a request that waits for no turn


class Peek(NamedTuple):
    """Command: look for what a request names in its holder's shared memory; answered by ``Relay.peeked``."""

    get: Get


class Grant:
    """A request that has been passed on. ``bytes`` is its share of the budget."""

    __slots__ = ("bytes", "holder", "keys", "receiver", "req", "since")

    def __init__(self, receiver: str, get: Get, size: int, now: float) -> None:
        self.receiver = receiver
        self.req = get.req
        self.holder = get.holder
        self.keys = tuple(row[0] for row in get.rows)
        self.bytes = size
        self.since = now


class Relay(Machine[str]):
    """The broker's bulk side; destinations are session ids of peers with a bulk connection.

    ``alive`` tells whether a session exists, connected or not: one that is over holds nothing any more. ``host``: the
    broker's own, "" for one that looks into no shared memory; ``least``: bytes of a range from which that is done.
    """

    def __init__(
        self, alive: Callable[[str], bool] = lambda session: True, host: str = "", least: int = MIN_CHUNK
    ) -> None:
        super().__init__()
        self.alive = alive
        self.host = host
        self.least = least
        self.connected: dict[str, str] = {}  # the session's host
        self.grants: OrderedDict[tuple[str, int], Grant] = OrderedDict()  # passed on, not answered; oldest first
        self.sent: OrderedDict[tuple[str, int], Grant] = OrderedDict()  # answered, not taken; longest unmoved first
        self.proven: dict[str, None] = {}  # receivers that take what they get; the others are given little
        self.took: dict[str, float] = {}  # when a receiver with grants last took something, or got the first of them
        self.turns: dict[str, int] = {}  # receivers that are served: bytes that they were given in their present turns
        self.look_at = float("inf")  # when to look who of the served stands still, while others wait
        self.granted = 0  # bytes of all grants
        self.used: dict[str, int] = {}  # the same by receiver
        self.debts: dict[tuple[str, int], int] = {}  # answered, never taken, reclaimed: bytes
        self.owed = 0  # bytes of all debts
        self.debtors: dict[str, int] = {}  # how many debts by receiver
        self.ask_at = float("inf")  # when debtors are asked next whether they are there
        self.queues: OrderedDict[str, OrderedDict[int, Get]] = OrderedDict()  # by receiver, whose turn it is first
        self.early = Early()
        self.refusals = Refusals()
        self.ignored = 0
        self.carried = 0  # bytes that were passed on since the beginning

    # --- sessions -------------------------------------------------------------------------------------

    def joined(self, session: str, now: float, host: str = "") -> None:
        """The session has a bulk connection (again)."""
        self.connected[session] = host or session
        for get in self.early.take(session):
            self._queue(get)
        self._grant(now)

    def detached(self, session: str, now: float) -> None:
        """The session's bulk connection broke, and what was on its way over it is lost."""
        self._end(session, "its holder's connection broke", now)

    def gone(self, session: str, now: float) -> None:
        """The session is over."""
        self._end(session, "its holder has left", now)

    def _end(self, session: str, reason: str, now: float) -> None:
        self.connected.pop(session, None)
        self.proven.pop(session, None)
        self.queues.pop(session, None)
        self.refusals.forget(session)
        self.early.forget(session)
        for get in self.early.take(session):
            self._refuse(get.receiver, get.req, [row[0] for row in get.rows], "unreachable", reason)
        for receiver, queue in list(self.queues.items()):
            for get in [get for get in queue.values() if get.holder == session]:
                self._refuse(receiver, get.req, [row[0] for row in get.rows], "unreachable", reason)
                self._unqueue(receiver, get.req)
        for name, grant in list(self.grants.items()):
            if grant.receiver == session:
                self._free(name)
            elif grant.holder == session:
                self._free(name)
                self._refuse(grant.receiver, grant.req, grant.keys, "unreachable", reason)
        for name in [name for name in self.sent if name[0] == session]:
            self._free(name)
        if session in self.debtors:
            for name in [name for name in self.debts if name[0] == session]:
                self._settle(name)
        self._grant(now)

    def _unqueue(self, receiver: str, req: int) -> None:
        queue = self.queues.get(receiver)
        if queue is not None and queue.pop(req, None) is not None and not queue:
            del self.queues[receiver]

    # --- messages -------------------------------------------------------------------------------------

    def handle(self, session: str, message: Message, now: float) -> None:
        """Take in a message from a bulk connection.

        Raises:
            ProtocolError: a message that does not go over the relay.
        """
        if isinstance(message, Get):
            self._get(session, message, now)
        elif isinstance(message, Data):
            self._data(session, message, now)
        elif isinstance(message, Taken):
            self._taken(session, message, now)
        else:
            raise ProtocolError(f"{type(message).__name__} from {session} is not for the relay")
        self._grant(now)

    def _get(self, session: str, get: Get, now: float) -> None:
        if not get.rows or any(row[2] < 0 for row in get.rows):
            self.ignored += 1
            return
        if get.receiver != session:  # nobody asks in another's name
            get = get._replace(receiver=session)
        if get.holder in self.connected:
            self._queue(get)
        elif not self.alive(get.holder):
            self._refuse(session, get.req, [row[0] for row in get.rows], "unknown", "its holder is gone")
        else:
            self.ignored += not self.early.add(get, now)

    def _queue(self, get: Get) -> None:
        name = (get.receiver, get.req)
        queue = self.queues.get(get.receiver, ())
        known = name in self.grants or name in self.sent or name in self.debts
        if known or get.req in queue or len(queue) >= QUEUED_REQUESTS:
            self.ignored += 1
        else:
            self.queues.setdefault(get.receiver, OrderedDict())[get.req] = get

    def _data(self, session: str, data: Data, now: float) -> None:
        name = (data.receiver, data.req)
        grant = self.grants.get(name)
        if grant is None or grant.holder != session:
            self.ignored += 1
            return
        size = sum(payload_size(piece) for row in data.rows for piece in row[4])
        if size > grant.bytes:
            self.log("warning", "relay.oversize", holder=session, bytes=size, granted=grant.bytes)
            self._free(name)
            self._refuse(grant.receiver, grant.req, grant.keys, "busy", "its holder sent more than was asked for")
            return
        if not size:
            self._free(name)
            if self._may_refuse(data.receiver, data.req, len(data.rows) + len(data.absent)):
                self.send(data.receiver, data)
            return
        self.send(data.receiver, data)
        self.carried += size
        self._count(grant, size - grant.bytes)
        grant.since = now
        del self.grants[name]
        self.sent[name] = grant

    def _taken(self, session: str, taken: Taken, now: float) -> None:
        """The receiver has its data, or wants it no more; what still comes for the request is dropped."""
        name = (session, taken.req)
        if name in self.grants:
            self._free(name)
        elif name in self.sent:
            self.took[session] = now
            self.proven[session] = None
            self._free(name)
        elif name in self.debts:
            self._settle(name)
        elif self.refusals.confirmed(session, taken.req):
            pass
        elif taken.req in self.queues.get(session, ()):
            self._unqueue(session, taken.req)
        else:
            self.early.withdraw(session, taken.req)

    def peeked(self, get: Get, rows: tuple[Row, ...], now: float) -> None:
        """The driver's answer to a Peek: what there is of all rows; none, and the holder is asked."""
        if (get.receiver, get.req) not in self.grants:
            return  # it was given up in the same turn
        if rows:
            self._data(get.holder, Data(get.req, get.receiver, rows, ()), now)
            self._grant(now)
        else:
            self.send(get.holder, get)

    # --- the budget -----------------------------------------------------------------------------------

    def _count(self, grant: Grant, change: int) -> None:
        grant.bytes += change
        self.granted += change
        used = self.used.get(grant.receiver, 0) + change
        if used:
            self.used[grant.receiver] = used
        else:
            self.used.pop(grant.receiver, None)
            self.took.pop(grant.receiver, None)
            self.turns.pop(grant.receiver, None)

    def _free(self, name: tuple[str, int]) -> None:
        grant = self.grants.pop(name, None) or self.sent.pop(name)
        self._count(grant, -grant.bytes)

    def _owe(self, grant: Grant, now: float) -> None:
        """The receiver has not taken its data in time."""
        name = (grant.receiver, grant.req)
        self.debts[name] = grant.bytes
        self.owed += grant.bytes
        self.proven.pop(grant.receiver, None)
        self.debtors[grant.receiver] = self.debtors.get(grant.receiver, 0) + 1
        self.ask_at = min(self.ask_at, now + GRANT_TIMEOUT)

    def _settle(self, name: tuple[str, int]) -> None:
        """It has been taken after all, or its way is gone."""
        session = name[0]
        self.owed -= self.debts.pop(name)
        self.debtors[session] -= 1
        if not self.debtors[session]:
            del self.debtors[session]
        if not self.debts:
            self.ask_at = float("inf")

    def _grant(self, now: float) -> None:
        """Pass on requests while the budget lasts, one of each receiver that is served, again and again."""
        self.look_at = float("inf")
        while self.queues and self._round(now):
            pass

    def _round(self, now: float) -> bool:
        """Whether anything was passed on."""
        budget = min(RELAY_BUDGET, RELAY_CEILING - self.owed)
        moving = Counter(self.connected.get(r) for r in self.turns if self.took[r] + STILL > now)
        some = False
        for receiver in list(self.queues):
            get = next(iter(self.queues[receiver].values()))
            size = min(sum(row[2] or WHOLE for row in get.rows), WHOLE)
            if receiver in self.debtors or (size > SMALL and not self._served(receiver, moving, now)):
                continue
            others = len(self.used) - (receiver in self.used)
            share = budget // (2 + 2 * others) if receiver in self.proven else UNPROVEN
            used = self.used.get(receiver, 0)
            if used and used + size > share:
                continue
            if self.granted + size > budget:
                return False
            self._pass_on(receiver, get, size, now)
            some = True
        return some

    def _served(self, receiver: str, moving: Counter[str | None], now: float) -> bool:
        """Whether it is this receiver's turn. Who stands still does not count, so that nobody waits for it."""
        host = self.connected.get(receiver)
        if receiver not in self.turns:
            if moving[host] >= AT_ONCE:
                self.look_at = now + STILL
                return False
            moving[host] += 1
        elif self.turns[receiver] >= TURN:
            if any(r not in self.turns and self.connected.get(r) == host for r in self.queues):
                self.queues.move_to_end(receiver)  # until it has taken what it was given
                return False
            self.turns[receiver] = 0
        return True

    def _pass_on(self, receiver: str, get: Get, size: int, now: float) -> None:
        self._unqueue(receiver, get.req)
        grant = self.grants[(receiver, get.req)] = Grant(receiver, get, 0, now)
        self.took.setdefault(receiver, now)
        if size > SMALL:
            self.turns[receiver] = self.turns.get(receiver, 0) + size
        self._count(grant, size)
        near = self.host and self.connected[get.holder] == self.host
        if near and not get.shm and all(row[2] >= self.least for row in get.rows):
            self.commands.append(Peek(get))
        else:
            self.send(get.holder, get)
        if receiver in self.queues:
            self.queues.move_to_end(receiver)  # whoever is next has the first choice of what the budget leaves

    def _refuse(self, receiver: str, req: int, keys: Iterable[str], code: str, text: str) -> None:
        rows = tuple((key, code, text) for key in keys)
        if self._may_refuse(receiver, req, len(rows)):
            self.send(receiver, Data(req, receiver, (), rows))

    def _may_refuse(self, receiver: str, req: int, keys: int) -> bool:
        may = receiver not in self.connected or self.refusals.add(receiver, req, keys)
        self.ignored += not may
        return may

    # --- time -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Reclaim grants without progress and answer for holders that did not come."""
        while self.grants:
            name, grant = next(iter(self.grants.items()))
            if grant.since + GRANT_TIMEOUT > now:
                break
            self._free(name)
            self._refuse(grant.receiver, grant.req, grant.keys, "busy", "its holder did not answer in time")
        for name, grant in list(self.sent.items()):
            if grant.since + TAKE_TIMEOUT > now:
                break
            if self.took.get(grant.receiver, 0.0) + TAKE_TIMEOUT > now:  # it takes other things first
                grant.since = now
                self.sent.move_to_end(name)
                continue
            if grant.receiver not in self.debtors:
                self.log("warning", "relay.stalled", receiver=grant.receiver)
            self._owe(grant, now)
            self._free(name)
        if now >= self.ask_at:
            self.ask_at = now + GRANT_TIMEOUT
            for session in self.debtors:  # answered by one that lives; a connection that is gone takes nothing
                self.send(session, HelloPlease())
        for get in self.early.expire(now):
            keys = [row[0] for row in get.rows]
            self._refuse(get.receiver, get.req, keys, "unreachable", "its holder has no bulk connection")
        self._grant(now)

    def deadline(self) -> float | None:
        """When ``tick`` is next needed."""
        times = [when for when in (self.early.deadline(), self.look_at) if when < float("inf")]
        if self.grants:
            times.append(next(iter(self.grants.values())).since + GRANT_TIMEOUT)
        if self.sent:
            times.append(next(iter(self.sent.values())).since + TAKE_TIMEOUT)
        if self.debts:
            times.append(self.ask_at)
        return min(times, default=None)

    # --- invariants -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        grants = [*self.grants.items(), *self.sent.items()]
        require(self.granted == sum(g.bytes for _, g in grants), "relay: granted bytes are not the sum")
        require(all(g.bytes > 0 for _, g in grants), "relay: an empty or negative grant")
        require(self.granted <= RELAY_BUDGET, "relay: over budget")
        require(self.granted + self.owed <= RELAY_CEILING, "relay: over the ceiling")
        require(self.owed == sum(self.debts.values()), "relay: owed bytes are not the sum")
        require((self.ask_at < float("inf")) == bool(self.debts), "relay: debtors are not asked")
        by: dict[str, int] = {}
        for (receiver, req), grant in grants:
            require(grant.receiver == receiver and grant.req == req, "relay: a grant under another's name")
            by[receiver] = by.get(receiver, 0) + grant.bytes
        require(by == self.used, "relay: bytes by receiver are not the sum")
        owed: dict[str, int] = {}
        for receiver, _ in self.debts:
            owed[receiver] = owed.get(receiver, 0) + 1
        require(owed == self.debtors, "relay: debts are not the sum")
        require(all(self.queues.values()), "relay: an empty queue was kept")
        holders = {get.holder for queue in self.queues.values() for get in queue.values()}
        require(holders <= self.connected.keys(), "relay: a request waits for a holder that is not connected")
        self.early.check()
        self.refusals.check()
        require(self.took.keys() == self.used.keys(), "relay: does not know when a receiver took something")
        require(self.turns.keys() <= self.used.keys(), "relay: a turn of a receiver that is not served")
        for table in (self.grants, self.sent):
            times = [g.since for g in table.values()]
            require(times == sorted(times), "relay: grants are out of order")
