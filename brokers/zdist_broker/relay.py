"""Data that passes through the broker: requests out to holders, chunks back, under one budget of bytes. PURE.

A request is granted before it goes to its holder: at most ``RELAY_BUDGET`` bytes are asked for and not yet taken, and
the receivers share them by turns, so the broker's memory is bounded whatever the results' sizes. A receiver that does
not take what it got loses its place in the budget after ``GRANT_TIMEOUT``, but gets nothing more until it takes it.
What it was sent may still lie in its connection's queue: it counts up to ``RELAY_CEILING`` until the receiver takes it,
or its connection is found to be gone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from zdist.core.machine import Machine, require
from zdist.errors import ProtocolError
from zdist.limits import ATTACH_WAIT, CHUNK, GRANT_TIMEOUT, QUEUED_REQUESTS, RELAY_BUDGET, RELAY_CEILING
from zdist.protocol.messages import Data, Get, HelloPlease, Message, Taken, payload_size

__all__ = ["Relay"]


class Grant:
    """A request that has been passed on. ``bytes`` is its share of the budget, ``answered`` whether data came."""

    __slots__ = ("answered", "bytes", "holder", "keys", "receiver", "req", "since")

    def __init__(self, receiver: str, get: Get, size: int, now: float) -> None:
        self.receiver = receiver
        self.req = get.req
        self.holder = get.holder
        self.keys = tuple(row[0] for row in get.rows)
        self.bytes = size
        self.since = now
        self.answered = False


class Relay(Machine[str]):
    """The broker's bulk side; destinations are session ids of peers with a bulk connection.

    ``alive`` tells whether a session exists, connected or not: one that is over holds nothing any more.
    """

    def __init__(self, alive: Callable[[str], bool] = lambda session: True) -> None:
        super().__init__()
        self.alive = alive
        self.connected: dict[str, None] = {}
        self.grants: OrderedDict[tuple[str, int], Grant] = OrderedDict()  # least recent progress first
        self.granted = 0  # bytes of all grants
        self.used: dict[str, int] = {}  # the same by receiver
        self.debts: dict[tuple[str, int], int] = {}  # answered, never taken, reclaimed: bytes
        self.owed = 0  # bytes of all debts
        self.debtors: dict[str, int] = {}  # how many debts by receiver
        self.ask_at = float("inf")  # when debtors are asked next whether they are there
        self.queues: OrderedDict[str, deque[Get]] = OrderedDict()  # by receiver, whose turn it is first
        self.early: dict[str, list[tuple[Get, float]]] = {}  # by holder that has no bulk connection yet
        self.ignored = 0

    # --- sessions -------------------------------------------------------------------------------------

    def joined(self, session: str, now: float) -> None:
        """The session has a bulk connection (again)."""
        self.connected[session] = None
        for get, _ in self.early.pop(session, ()):
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
        self.queues.pop(session, None)
        for holder, early in list(self.early.items()):
            self._keep_early(holder, [entry for entry in early if entry[0].receiver != session])
        for get, _ in self.early.pop(session, ()):
            self._refuse(get.receiver, get.req, [row[0] for row in get.rows], "unreachable", reason)
        for receiver, queue in list(self.queues.items()):
            for get in queue:
                if get.holder == session:
                    self._refuse(receiver, get.req, [row[0] for row in get.rows], "unreachable", reason)
            self._keep_queue(receiver, [get for get in queue if get.holder != session])
        for name, grant in list(self.grants.items()):
            if grant.receiver == session:
                self._free(name)
            elif grant.holder == session and not grant.answered:
                self._free(name)
                self._refuse(grant.receiver, grant.req, grant.keys, "unreachable", reason)
        if session in self.debtors:
            for name in [name for name in self.debts if name[0] == session]:
                self._settle(name)
        self._grant(now)

    def _keep_early(self, holder: str, early: list[tuple[Get, float]]) -> None:
        if early:
            self.early[holder] = early
        else:
            self.early.pop(holder, None)

    def _keep_queue(self, receiver: str, queue: list[Get]) -> None:
        if queue:
            self.queues[receiver] = deque(queue)
        else:
            self.queues.pop(receiver, None)

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
            self._taken(session, message)
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
            self._defer(get, now)

    def _queue(self, get: Get) -> None:
        name = (get.receiver, get.req)
        queue = self.queues.get(get.receiver, ())
        twice = name in self.grants or name in self.debts or any(other.req == get.req for other in queue)
        if twice or len(queue) >= QUEUED_REQUESTS:
            self.ignored += 1
        else:
            self.queues.setdefault(get.receiver, deque()).append(get)

    def _defer(self, get: Get, now: float) -> None:
        """Keep a request whose holder has no bulk connection: mostly it is about to have one."""
        early = self.early.setdefault(get.holder, [])
        if len(early) < QUEUED_REQUESTS:
            early.append((get, now + ATTACH_WAIT))
        else:
            self.ignored += 1

    def _data(self, session: str, data: Data, now: float) -> None:
        name = (data.receiver, data.req)
        grant = self.grants.get(name)
        if grant is None or grant.answered or grant.holder != session:
            self.ignored += 1
            return
        size = sum(payload_size(piece) for row in data.rows for piece in row[4])
        if size > grant.bytes:
            self.log("warning", "relay.oversize", holder=session, bytes=size, granted=grant.bytes)
            self._free(name)
            self._refuse(grant.receiver, grant.req, grant.keys, "busy", "its holder sent more than was asked for")
            return
        self.send(data.receiver, data)
        if not size:
            self._free(name)
            return
        self._count(grant, size - grant.bytes)
        grant.answered = True
        grant.since = now
        self.grants.move_to_end(name)

    def _taken(self, session: str, taken: Taken) -> None:
        """The receiver has its data, or wants it no more; what still comes for the request is dropped."""
        name = (session, taken.req)
        if name in self.grants:
            self._free(name)
        elif name in self.debts:
            self._settle(name)
        else:
            queue = self.queues.get(session, ())
            self._keep_queue(session, [get for get in queue if get.req != taken.req])
            for holder, early in list(self.early.items()):
                keep = [e for e in early if e[0].receiver != session or e[0].req != taken.req]
                self._keep_early(holder, keep)

    # --- the budget -----------------------------------------------------------------------------------

    def _count(self, grant: Grant, change: int) -> None:
        grant.bytes += change
        self.granted += change
        used = self.used.get(grant.receiver, 0) + change
        if used:
            self.used[grant.receiver] = used
        else:
            self.used.pop(grant.receiver, None)

    def _free(self, name: tuple[str, int]) -> None:
        grant = self.grants.pop(name)
        self._count(grant, -grant.bytes)

    def _owe(self, grant: Grant, now: float) -> None:
        """The receiver has not taken its data in time."""
        name = (grant.receiver, grant.req)
        self.debts[name] = grant.bytes
        self.owed += grant.bytes
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
        """Pass on requests, one from each receiver in turn, while the budget lasts."""
        blocked = 0
        budget = min(RELAY_BUDGET, RELAY_CEILING - self.owed)
        while self.queues and blocked < len(self.queues):
            receiver, queue = next(iter(self.queues.items()))
            get = queue[0]
            size = min(sum(row[2] or CHUNK for row in get.rows), CHUNK)
            others = len(self.used) - (receiver in self.used)
            share = max(RELAY_BUDGET // (2 + 2 * others), CHUNK)
            if receiver in self.debtors or self.used.get(receiver, 0) + size > share:
                self.queues.move_to_end(receiver)
                blocked += 1
                continue
            if self.granted + size > budget:
                return
            queue.popleft()
            if queue:
                self.queues.move_to_end(receiver)
            else:
                del self.queues[receiver]
            blocked = 0
            if get.holder not in self.connected:
                self._defer(get, now)
                continue
            grant = self.grants[(receiver, get.req)] = Grant(receiver, get, 0, now)
            self._count(grant, size)
            self.send(get.holder, get)

    def _refuse(self, receiver: str, req: int, keys: Iterable[str], code: str, text: str) -> None:
        self.send(receiver, Data(req, receiver, (), tuple((key, code, text) for key in keys)))

    # --- time -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Reclaim grants without progress and answer for holders that did not come."""
        while self.grants:
            name, grant = next(iter(self.grants.items()))
            if grant.since + GRANT_TIMEOUT > now:
                break
            if grant.answered:
                if grant.receiver not in self.debtors:
                    self.log("warning", "relay.stalled", receiver=grant.receiver)
                self._owe(grant, now)
                self._free(name)
            else:
                self._free(name)
                self._refuse(grant.receiver, grant.req, grant.keys, "busy", "its holder did not answer in time")
        if now >= self.ask_at:
            self.ask_at = now + GRANT_TIMEOUT
            for session in self.debtors:  # answered by one that lives; a connection that is gone takes nothing
                self.send(session, HelloPlease())
        for holder, early in list(self.early.items()):
            for get, due in early:
                if due <= now:
                    keys = [row[0] for row in get.rows]
                    self._refuse(get.receiver, get.req, keys, "unreachable", "its holder has no bulk connection")
            self._keep_early(holder, [entry for entry in early if entry[1] > now])
        self._grant(now)

    def deadline(self) -> float | None:
        """When ``tick`` is next needed."""
        times = [due for early in self.early.values() for _, due in early]
        if self.grants:
            times.append(next(iter(self.grants.values())).since + GRANT_TIMEOUT)
        if self.debts:
            times.append(self.ask_at)
        return min(times, default=None)

    # --- invariants -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        require(self.granted == sum(g.bytes for g in self.grants.values()), "relay: granted bytes are not the sum")
        require(all(g.bytes > 0 for g in self.grants.values()), "relay: an empty or negative grant")
        require(self.granted <= RELAY_BUDGET, "relay: over budget")
        require(self.granted + self.owed <= RELAY_CEILING, "relay: over the ceiling")
        require(self.owed == sum(self.debts.values()), "relay: owed bytes are not the sum")
        require((self.ask_at < float("inf")) == bool(self.debts), "relay: debtors are not asked")
        by: dict[str, int] = {}
        for (receiver, req), grant in self.grants.items():
            require(grant.receiver == receiver and grant.req == req, "relay: a grant under another's name")
            by[receiver] = by.get(receiver, 0) + grant.bytes
        require(by == self.used, "relay: bytes by receiver are not the sum")
        owed: dict[str, int] = {}
        for receiver, _ in self.debts:
            owed[receiver] = owed.get(receiver, 0) + 1
        require(owed == self.debtors, "relay: debts are not the sum")
        require(all(self.queues.values()), "relay: an empty queue was kept")
        require(all(self.early.values()), "relay: an empty list of early requests was kept")
        times = [g.since for g in self.grants.values()]
        require(times == sorted(times), "relay: grants are out of order")
