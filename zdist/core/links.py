"""What is known of each way to each holder: reachable or not, round trip, bandwidth, slowness. PURE.

A link is a pair (holder, path). Nothing is configured: round trip and bandwidth are learned from traffic as
exponentially weighted averages, reachability of a peer path from one probe per worker and from what arrives over it.
All relay links share the broker, whose throughput is one more estimate (``Links.relay``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from zdist.core.machine import BULK, Route
from zdist.limits import (
    CHUNK,
    KIB,
    LINK_WINDOW,
    MIB,
    PROBE_RETRY,
    PROBE_RETRY_MAX,
    REQUEST_TIMEOUT,
    SHM_MIN,
    WHOLE,
)

__all__ = [
    "CLOSED", "OPEN", "PEER", "RELAY", "SHM", "UNKNOWN", "Estimate", "Host", "Link", "Links", "Member",
]  # fmt: skip

SHM: Final = "shm"
PEER: Final = "peer"
RELAY: Final = "relay"
UNKNOWN: Final = "unknown"
OPEN: Final = "open"
CLOSED: Final = "closed"

# What is wrong with a peer path that is closed
SILENT: Final = "silent"  # a probe was not answered in time
STRANGER: Final = "stranger"  # another worker answers at the address
TOKEN: Final = "token"  # what answers there does not accept our token
DEAF: Final = "deaf"  # probes are answered, requests for data are not

KEY_SECONDS: Final = 4e-6  # what one more key costs its holder and us, whatever the path
# Round trip and bytes/s before anything is measured. Of shared memory nothing is: what it costs, the page faults, the
# reader pays later, so what happens on the way says nothing about it.
PRIOR: Final = {SHM: (0.0001, 20e9), PEER: (0.0005, 500e6), RELAY: (0.001, 200e6)}
# Within a host all data goes through its memory, and what is relayed goes twice: if the peer path was slow there,
# something contended with it, and the relay would be slower still.
NEAR: Final = 8e9
SHARED: Final = 1.25  # the relay has to be so much faster: it is everybody's, and what contends for our own CPU and
#  memory moves every estimate by as much
STALE: Final = 300.0  # a bandwidth that was not confirmed for this long is forgotten
FIRST_WINDOW: Final = MIB  # in flight at first on a link of unknown bandwidth, in chunks of a quarter of it
MIN_CHUNK: Final = 64 * KIB
AHEAD_SECONDS: Final = 0.25  # worth of transfer time that a link may have in flight
SAMPLE_BYTES: Final = 256 * KIB  # fewer say nothing about bandwidth
SMALL_SECONDS: Final = 4 * KEY_SECONDS  # what a key takes of the time of a sample of values that are not large
SAMPLE_SECONDS: Final = 0.02  # what queued up while we were busy arrives at once; a sample spans several turns
LEAST_SECONDS: Final = 0.001  # no transfer is taken for shorter than this
UNREACHABLE_PAUSE: Final = 0.1  # before the relay is asked again for a holder that it cannot reach; doubles
UNREACHABLE_PAUSE_MAX: Final = 1.0
UNREACHABLE_GRACE: Final = 5.0  # seconds of that before the owner is told, who asks the broker
FORGIVEN: Final = 30.0  # after which a link that fell silent or behind is as good as any
SILENCE: Final = 0.3  # seconds that a peer path which has fallen behind is expected to stay so: a connection repeats
#  what was lost after 0.2 at the earliest, if nothing else has told it
LOSS: Final = 0.08  # seconds that nothing comes of a path that has fallen behind, from which on it is one that does,
LEAST_PER_LOSS: Final = 32 * MIB  # and the fewest bytes between two times that are believed
MAX_PATIENCE: Final = 60.0


class Member(NamedTuple):
    """A worker as Members rows name it."""

    session: str
    address: str
    name: str
    host: str
    node: str


class Host(NamedTuple):
    """The host whose processes share memory with this one; values of ``least`` bytes or more go that way."""

    id: str
    least: int = SHM_MIN


class Estimate:
    """Round trip, slowness to answer (seconds) and bandwidth (bytes/s) of something that carries data."""

    __slots__ = (
        "bandwidth", "fresh", "lag", "least", "mark", "measured", "pending", "prior", "rough", "rtt", "rtt_known",
        "small", "weight",
    )  # fmt: skip

    def __init__(self, path: str) -> None:
        self.rtt, self.prior = PRIOR[path]
        self.weight = SHARED if path == RELAY else 1.0
        self.rtt_known = False
        self.lag = 0.0  # how much longer than the round trip answers take: a busy holder
        self.bandwidth = 0.0  # 0: not measured
        self.least = 0.0  # bandwidth to count on whatever was measured
        self.measured = 0.0  # when
        self.mark = 0.0  # since when the bytes in ``pending`` have been arriving
        self.pending = 0
        self.small = 0  # keys among them that are not large
        self.rough = True  # bandwidth is measured, if at all, by such keys only
        self.fresh = True  # the first sample after an idle time contains a round trip

    @property
    def speed(self) -> float:
        """Bytes per second to count on, measured or assumed."""
        return max(self.bandwidth or self.prior, self.least) / self.weight

    @property
    def delay(self) -> float:
        """Seconds until the first byte of an answer."""
        return self.rtt + self.lag

    def waited(self, seconds: float) -> None:
        """A first byte took this long: the least is the round trip, the rest is slowness."""
        if not self.rtt_known or seconds < self.rtt:
            self.rtt, self.rtt_known = seconds, True
        else:
            self.rtt += 0.02 * (seconds - self.rtt)
        self.lag += 0.3 * (max(0.0, seconds - self.rtt) - self.lag)

    def started(self, now: float) -> None:
        """A request leaves while nothing was under way."""
        if self.bandwidth and now - self.measured > STALE:
            self.bandwidth, self.rough = 0.0, True
        self.mark, self.pending, self.small, self.fresh = now, 0, 0, True

    def carried(self, nbytes: int, now: float, last: bool, small: int = 0) -> None:
        """Bytes arrived, ``small`` of the keys being so small that they cost time of their own; ``last``: nothing more
        is under way."""
        elapsed = now - self.mark
        if self.fresh and self.bandwidth and not self.pending and not small:
            self.waited(max(1e-6, elapsed - nbytes / self.bandwidth))
        self.pending += nbytes
        self.small += small
        if self.pending < SAMPLE_BYTES or (elapsed < SAMPLE_SECONDS and not last):
            return
        bare = max(elapsed - self.small * SMALL_SECONDS, elapsed / 4)
        if self.fresh:
            self._sample(self.pending / max(bare - min(self.rtt, bare / 2), LEAST_SECONDS))
        elif elapsed >= SAMPLE_SECONDS:
            self._sample(self.pending / bare)
        self.measured, self.mark, self.pending, self.small, self.fresh = now, now, 0, 0, False

    def _sample(self, sample: float) -> None:
        """What a link can do is nearer to its best than to its average, as several share this machine; a large drop
        is the link's own. Large values tell more than others."""
        if self.small and not self.rough:
            return
        if not self.bandwidth or self.rough > bool(self.small):
            self.bandwidth, self.rough = sample, bool(self.small)
        elif self.bandwidth / 4 < sample < self.bandwidth:
            self.bandwidth += 0.1 * (sample - self.bandwidth)
        else:
            self.bandwidth += 0.5 * (sample - self.bandwidth)

    def skip(self, now: float) -> None:
        """Small answers arrived, which say nothing about bandwidth."""
        self.mark, self.pending, self.small, self.fresh = now, 0, 0, False


class Link(Estimate):
    """One path to one holder, and what is under way on it."""

    WINDOW: Final = LINK_WINDOW
    LARGE: Final = 16 * KIB  # bytes a key from which a reply tells the bandwidth,
    MIDDLING: Final = 2 * KIB  # from which it does so roughly, and below which it tells the round trip
    KEY_SECONDS: Final = KEY_SECONDS

    __slots__ = (
        "backlog",
        "carried_bytes",
        "carried_keys",
        "closed_until",
        "fault",
        "holder",
        "inflight",
        "lost",
        "missed",
        "misses",
        "name",
        "path",
        "per_loss",
        "probe",
        "progress",
        "queue",
        "reason",
        "requests",
        "retry",
        "route",
        "silence",
        "since",
        "since_loss",
        "starving",
        "state",
        "strikes",
        "text",
    )  # fmt: skip

    def __init__(self, holder: str, path: str, route: Route, name: str, least: float = 0.0) -> None:
        super().__init__(path)
        self.least = least
        self.holder, self.path, self.route, self.name = holder, path, route, name
        self.state = UNKNOWN if path == PEER else OPEN
        self.text = ""  # why it is closed, for people
        self.fault = ""  # and for programs: SILENT, STRANGER, TOKEN or DEAF
        self.closed_until = 0.0  # when a closed path may be tried again
        self.retry = PROBE_RETRY
        self.probe = 0  # the probe under way
        self.strikes = 0  # timeouts in a row
        self.misses = 0  # answers "unreachable" in a row,
        self.missed = 0.0  # since when
        self.lost = False  # and that for too long
        self.silence = 0.0  # seconds by which answers are late since it fell silent or behind, until one comes
        self.inflight = 0  # bytes asked for and not got
        self.requests: dict[int, float] = {}  # under way: request, when sent
        self.progress = 0.0  # when something last arrived
        self.since_loss = 0  # bytes that have come since it last fell behind
        self.per_loss = 0.0  # bytes between two times, on average; 0: it does not, as far as is known
        self.queue: list[tuple[int, int, deque[Any]]] = []  # heap of what is planned for it and not yet asked for
        self.backlog = 0  # bytes of that
        self.starving = False  # waits for room in the window over all links
        self.since = 0.0  # of the busy period: start, keys, bytes, and why this path
        self.carried_keys = 0
        self.carried_bytes = 0
        self.reason = ""

    @property
    def delay(self) -> float:
        """Seconds until the first byte of an answer."""
        return self.rtt + self.lag + self.silence

    @property
    def speed(self) -> float:
        """Bytes per second to count on, with the time that a path loses each time that it falls behind."""
        speed = max(self.bandwidth or self.prior, self.least) / self.weight
        return 1 / (1 / speed + SILENCE / max(self.per_loss, self.since_loss)) if self.per_loss else speed

    def delivers(self, now: float) -> None:
        """Something has come."""
        if self.silence:
            if self.path == PEER and now - self.closed_until >= LOSS:
                sample = max(self.since_loss, LEAST_PER_LOSS)
                if not self.per_loss:
                    self.per_loss = float("inf")  # once is no rule
                else:
                    self.per_loss = sample if self.per_loss == float("inf") else (self.per_loss + sample) / 2
                self.since_loss = 0
            self.silence = 0.0
        self.progress, self.strikes = now, 0

    def fell_behind(self, now: float) -> None:
        """Nothing has come for far longer than it takes."""
        self.silence, self.closed_until = SILENCE, now

    @property
    def window(self) -> int:
        """Bytes that may be in flight."""
        if not self.bandwidth:  # doubles with each round trip until a sample is there
            return max(MIN_CHUNK, min(LINK_WINDOW, FIRST_WINDOW + self.pending) >> self.strikes)
        ahead = int(self.bandwidth * (AHEAD_SECONDS + self.rtt + self.lag))
        return max(MIN_CHUNK, min(LINK_WINDOW, max(ahead, MIB) >> self.strikes))

    @property
    def chunk(self) -> int:
        """Most bytes to ask for at once: less where a chunk would take long or got lost."""
        return max(MIN_CHUNK, min(CHUNK, self.window // (2 if self.bandwidth else 4)))

    @property
    def whole(self) -> int:
        """Most bytes of a value that is asked for in one piece: on a fast link more than a chunk, since what comes as a
        whole is not copied."""
        return max(self.chunk, min(WHOLE, self.window // 2))

    @property
    def patience(self) -> float:
        """Seconds without progress after which a request counts as lost."""
        expected = 2 * self.inflight / self.bandwidth if self.bandwidth else 0.0
        return min(MAX_PATIENCE, (REQUEST_TIMEOUT + expected) * (1 << min(self.strikes, 2)))

    @property
    def stall(self) -> float:
        """Seconds without progress after which a peer path is probed again."""
        return min(self.patience, 1.0 + self.lag + 2 * self.inflight / (self.bandwidth or 1e6))

    def oldest(self) -> float:
        """Since when the link owes an answer: its last progress or the oldest request; only while requests are out."""
        sent = next(iter(self.requests.values()))
        return sent if sent > self.progress else self.progress

    def opened(self) -> None:
        """It works."""
        self.state, self.text, self.fault, self.retry = OPEN, "", "", PROBE_RETRY

    def closed(self, text: str, now: float, fault: str = SILENT) -> None:
        """The path does not work; it is tried again after a pause that doubles each time."""
        self.state, self.text, self.fault = CLOSED, text, fault
        self.closed_until = now + self.retry
        self.retry = min(self.retry * 2, PROBE_RETRY_MAX)

    def unreachable(self, text: str, now: float) -> None:
        """The relay has no connection to the holder, which may only just have started or be coming back: it is tried
        again for a while."""
        self.state, self.text = CLOSED, text
        if not self.misses or now > self.closed_until + PROBE_RETRY:  # nobody asked in between: a new story
            self.misses, self.missed = 0, now
        pause = min(UNREACHABLE_PAUSE * (1 << min(self.misses, 10)), UNREACHABLE_PAUSE_MAX)
        self.misses += 1
        self.lost = now - self.missed >= UNREACHABLE_GRACE
        self.closed_until = now + (PROBE_RETRY if self.lost else pause)

    def forgive(self, now: float) -> None:
        """What kept it silent may be over: that is not held against it for ever."""
        if (self.silence or self.per_loss) and now > self.closed_until + FORGIVEN:
            self.silence = self.per_loss = 0.0

    @property
    def recovering(self) -> bool:
        """Closed for a moment only: worth waiting for."""
        return self.path == RELAY and self.state == CLOSED and not self.lost

    def __repr__(self) -> str:
        return f"<Link {self.path} {self.name} {self.state}, {len(self.requests)} requests, {self.inflight} B>"


class Links:
    """The links of one process, and the members they lead to. ``host``: None if it shares no memory."""

    def __init__(self, host: Host | None = None) -> None:
        self.host = host
        self.shms: dict[str, Link] = {}
        self.members: dict[str, Member] = {}
        self.relay = Estimate(RELAY)  # the broker as a whole
        self.relay_load = 0  # bytes queued or in flight on all relay links
        self.peers: dict[str, Link] = {}
        self.relays: dict[str, Link] = {}
        self.addresses: dict[str, Link] = {}

    def learn(self, rows: Iterable[tuple[str, str, str, str, str]]) -> None:
        """Take in Members rows."""
        for row in rows:
            member = Member(*row)
            if member.session in self.members or not member.address:
                continue  # a session keeps its address as long as it lives
            self.members[member.session] = member
            near = member.address.startswith("ipc:") or (self.host is not None and member.host == self.host.id)
            link = Link(member.session, PEER, Route(member.address), member.name or member.address, NEAR * near)
            self.peers[member.session] = self.addresses[member.address] = link

    def peer(self, holder: str) -> Link | None:
        """The link to a worker's own socket; None for a client or an unknown worker."""
        return self.peers.get(holder)

    def shm(self, holder: str) -> Link | None:
        """The link through the memory of this host; None for a holder that is known to be elsewhere."""
        link = self.shms.get(holder)
        if link is None and self.host is not None:
            member = self.members.get(holder)
            if member is None or member.host == self.host.id:  # where a client is, only a look can tell
                name = (member.name or member.address) if member else holder
                link = self.shms[holder] = Link(holder, SHM, BULK, name)
        return link

    def by_relay(self, holder: str) -> Link:
        """The link through the broker."""
        link = self.relays.get(holder)
        if link is None:
            member = self.members.get(holder)
            name = (member.name or member.address) if member else holder
            link = self.relays[holder] = Link(holder, RELAY, BULK, name)
        return link

    def find(self, path: str, holder: str) -> Link:
        """The link that a batch of a plan names."""
        if path == RELAY:
            return self.by_relay(holder)
        return (self.peers if path == PEER else self.shms)[holder]

    def all(self) -> list[Link]:
        """Every link, in the order in which they came to be known."""
        return [*self.shms.values(), *self.peers.values(), *self.relays.values()]

    def remove(self, holder: str) -> None:
        """Forget a holder."""
        self.members.pop(holder, None)
        self.shms.pop(holder, None)
        self.relays.pop(holder, None)
        link = self.peers.pop(holder, None)
        if link is not None and self.addresses.get(link.route.channel) is link:
            del self.addresses[link.route.channel]
