"""A fetcher, the stores of its holders, and a network between them that delays, loses and repeats."""

from __future__ import annotations

import heapq
import random
from typing import Any

from zdist.core.fetch import Fetcher
from zdist.core.links import Host, Link
from zdist.core.machine import BULK, Route
from zdist.core.store import Pieces, Store
from zdist.core.transfer import Map
from zdist.limits import TRANSFER_WINDOW
from zdist.protocol.fields import serves
from zdist.protocol.messages import Data, Get, Message, Probe, ProbeReply, Taken

ME = "c-me"
TOKEN = "secret"


class Segment(Pieces):
    """A blob in a holder's shared memory; ``attempt`` as its header says."""

    shared = True

    def __init__(self, pieces: Any, attempt: int) -> None:
        super().__init__(pieces)
        self.attempt = attempt


class Holder:
    """One worker or client that holds things. ``memory``: "open", "closed" (nobody else can map it), "full" or "lost"
    (what is put there cannot be found)."""

    def __init__(self, world: World, session: str) -> None:
        self.world, self.session = world, session
        self.freezes: list[tuple[str, int]] = []
        self.shares: list[tuple[str, int]] = []
        self.memory = "open"
        self.segments: dict[str, Segment] = {}
        self.store = Store(self.send, TOKEN, self.freeze, share=self.share if world.least else None, least=world.least)
        self.peer = "open"  # "open" | "blackhole" | "wrong"
        self.relay = "open"  # "open" | "unreachable" | "blackhole"
        self.alive = True
        self.values: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"tcp://host:{self.session[2:]}"

    def freeze(self, key: str, attempt: int) -> None:
        self.freezes.append((key, attempt))
        self.world.after(self.world.freeze_seconds, lambda: self.thaw(key, attempt))

    def share(self, key: str, attempt: int) -> None:
        self.shares.append((key, attempt))
        self.world.after(self.world.freeze_seconds, lambda: self.move(key, attempt))

    def move(self, key: str, attempt: int) -> None:
        """Put a value into shared memory if it can be pickled and there is room."""
        entry = self.store.get(key)
        if entry is None or (entry.blob is None and self.memory == "full"):
            self.thaw(key, attempt)
        elif self.memory == "full":
            self.store.unshared(key, attempt)
        elif entry.blob is None and self.values[key] == b"":
            self.thaw(key, attempt)
        else:
            pieces = self.world.cut(self.values[key]).pieces if entry.blob is None else entry.blob.pieces
            self.store.frozen(key, attempt, self.put(key, attempt, pieces), self.world.now)

    def put(self, key: str, attempt: int, pieces: Any) -> Segment:
        """A segment, where others find it unless it is lost."""
        segment = Segment(pieces, attempt)
        if self.memory != "lost":
            self.segments[key] = segment
        return segment

    def thaw(self, key: str, attempt: int) -> None:
        value = self.values[key]
        if value == b"":
            self.store.unfreezable(key, attempt, "cannot pickle it", self.world.now)
        else:
            self.store.frozen(key, attempt, self.world.cut(value), self.world.now)

    def send(self, route: Route, message: Message) -> None:
        assert isinstance(message, Data)
        if not self.alive:
            return
        if route.channel == "data":
            self.world.deliver(Route(self.address), message, self.address)
        elif self.relay == "open" and message.receiver == ME:
            self.world.deliver(BULK, message, "relay")


class World:
    """``loss`` and ``repeat`` are probabilities per message, ``delay`` the most seconds a message takes; with ``least``
    values of that size or more can go by the memory of the host."""

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        repeat: float = 0.0,
        delay: float = 0.01,
        least: int = 0,
        **fetcher: Any,
    ):
        self.least = least
        self.maps: list[Map] = []  # commands of the fetcher that are not done
        self.mapped: list[Map] = []  # that are
        if least:
            fetcher |= {"host": Host("host", least), "map": self.maps.append}
        self.random = random.Random(seed)
        self.loss, self.repeat, self.delay = loss, repeat, delay
        self.freeze_seconds = 0.001
        self.now = 100.0
        self.serial = 0
        self.events: list[tuple[float, int, Any]] = []
        self.last: dict[str, float] = {}
        self.fetcher = Fetcher(self.sent, ME, TOKEN, **fetcher)
        self.holders: dict[str, Holder] = {}
        self.log: list[tuple[Route, Message]] = []
        self.taken: list[int] = []
        self.arrived: dict[tuple[int, str], bytes] = {}
        self.paths: dict[tuple[int, str], str] = {}
        self.failed: dict[tuple[int, str], tuple[str, str, tuple[str, ...]]] = {}
        self.speed: dict[str, float] = {}  # bytes per second by channel

    # --- building --------------------------------------------------------------------------------

    def add(self, session: str, *, member: bool = True, host: str = "host") -> Holder:
        holder = self.holders[session] = Holder(self, session)
        if member:
            self.fetcher.members([(session, holder.address, session + "-name", host, "n-1")])
        return holder

    def look(self) -> None:
        """Do what a driver does with the fetcher's commands."""
        while self.maps:
            command = self.maps.pop(0)
            self.mapped.append(command)
            holder = self.holders.get(command.holder)
            if holder is None or holder.memory == "closed":
                self.fetcher.mapped(command.req, {}, "no shared memory here", self.now)
                continue
            there = {key: holder.segments.get(key) for key, _ in command.rows}
            found = {
                key: there[key] for key, attempt in command.rows if there[key] and serves(there[key].attempt, attempt)
            }
            self.fetcher.mapped(command.req, found, "", self.now)

    def cut(self, value: bytes) -> Pieces:
        """The bytes as a blob of random pieces."""
        pieces, start = [], 0
        while start < len(value):
            size = self.random.choice((1, 100, 5_000, 70_000, 3_000_000))
            piece: Any = value[start : start + size]
            pieces.append(memoryview(piece) if self.random.random() < 0.5 else piece)
            start += size
        return Pieces(pieces)

    # --- the network -----------------------------------------------------------------------------

    def after(self, seconds: float, action: Any) -> None:
        self.serial += 1
        heapq.heappush(self.events, (self.now + seconds, self.serial, action))

    def transfer(self, channel: str, message: Message, action: Any) -> None:
        """FIFO per channel and direction; a lossy channel forgets single messages."""
        if self.random.random() < self.loss:
            return
        for _ in range(2 if self.random.random() < self.repeat else 1):
            start = max(self.now, self.last.get(channel, 0.0))
            size = sum(
                p.nbytes if hasattr(p, "nbytes") else len(p)
                for row in (message.rows if isinstance(message, Data) else ())
                for p in row[4]
            )
            when = start + (
                size / self.speed[channel.partition(" ")[0]] if channel.partition(" ")[0] in self.speed else 0
            )
            self.last[channel] = when
            self.after(when - self.now + self.random.random() * self.delay, action)

    def sent(self, route: Route, message: Message) -> None:
        """What the fetcher sends."""
        self.log.append((route, message))
        if isinstance(message, Taken):
            self.taken.append(message.req)
        elif route == BULK:
            assert isinstance(message, Get)
            assert message.token == ""
            holder = self.holders.get(message.holder)
            if holder is None or holder.relay == "unreachable" or not holder.alive:
                rows = tuple((row[0], "unreachable", "") for row in message.rows)
                self.deliver(BULK, Data(message.req, ME, (), rows), "relay")
            elif holder.relay == "open":
                self.transfer("relay out", message, lambda: self.serve(holder, BULK, message))
        else:
            holder = next(h for h in self.holders.values() if h.address == route.channel)
            if holder.peer == "blackhole" or not holder.alive:
                return
            if isinstance(message, Get):
                self.transfer(route.channel + " out", message, lambda: self.serve(holder, Route("data", b"h"), message))
            else:
                assert isinstance(message, Probe)
                name = "w-other" if holder.peer == "wrong" else holder.session
                reply = ProbeReply(message.req, name)
                self.transfer(route.channel + " out", message, lambda: self.deliver(route, reply, holder.address))

    def serve(self, holder: Holder, route: Route, message: Get) -> None:
        if holder.alive:
            holder.store.serve(route, message, self.now)
            holder.store.check()

    def deliver(self, route: Route, message: Message, channel: str) -> None:
        self.transfer(channel, message, lambda: self.fetcher.handle(route, message, self.now))  # type: ignore[arg-type]

    # --- running ---------------------------------------------------------------------------------

    def drain(self) -> None:
        f = self.fetcher
        for tickets, key, _, found, nbytes, path in f.arrived:
            data = b"".join(bytes(p) for p in (found.pieces if path == "shm" else found))
            assert len(data) == nbytes
            for ticket in tickets:
                assert (ticket, key) not in self.arrived and (ticket, key) not in self.failed
                self.arrived[ticket, key] = data
                self.paths[ticket, key] = path
        for tickets, key, code, text, tried in f.failed:
            for ticket in tickets:
                assert (ticket, key) not in self.arrived and (ticket, key) not in self.failed
                self.failed[ticket, key] = (code, text, tried)
        f.arrived.clear()
        f.failed.clear()

    def check(self) -> None:
        self.look()
        self.fetcher.check()
        assert 0 <= self.fetcher.requests.inflight <= TRANSFER_WINDOW
        for link in self.fetcher.links.all():
            assert 0 <= link.inflight <= Link.WINDOW
        self.drain()

    def step(self) -> bool:
        """One event or deadline, whichever is first; False when nothing will ever happen any more."""
        due = [self.events[0][0]] if self.events else []
        for machine in (self.fetcher, *(h.store for h in self.holders.values())):
            when = machine.deadline()
            if when is not None:
                due.append(when)
        if not due:
            return False
        self.now = max(self.now, min(due))
        if self.events and self.events[0][0] <= self.now:
            heapq.heappop(self.events)[2]()
        else:
            self.fetcher.tick(self.now)
            for holder in self.holders.values():
                holder.store.tick(self.now)
        self.check()
        return True

    def run(self, steps: int = 20_000, until: Any = None) -> None:
        for _ in range(steps):
            if until is not None and until():
                return
            if not self.step():
                self.check()
                return
        raise AssertionError(f"still busy after {steps} steps at {self.now}")

    def gets(self, channel: str | None = None) -> list[Get]:
        return [m for route, m in self.log if isinstance(m, Get) and channel in (None, route.channel)]
