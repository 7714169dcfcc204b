"""Which way each batch of keys comes home: the planner, a pure function. PURE.

The model: a link needs its delay (round trip and slowness), then a little for each key and its bytes over its
bandwidth, after what is already queued on it. Peer links work side by side; relay links share the broker. A plan's
cost is the time until the last link is done. A holder's keys all go one way, since it is the same process and the same
cable that serves both: what a split would gain by the model it would not gain in the world. Shared memory is a way for
large values only and needs neither process nor cable, so it is weighed for these on top of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from zdist.core.links import CLOSED, KEY_SECONDS, OPEN, PEER, RELAY, SHM, UNKNOWN, Link, Links

__all__ = ["NONE", "PATHS", "WAIT", "Batch", "plan_cost", "plan_gather"]

PATHS: Final = (SHM, PEER, RELAY)
SAME_HOST: Final = "same host"
WAIT: Final = "wait"  # a verdict is due that may open a path
NONE: Final = "none"  # no way to any holder

Want = tuple[Any, int, Sequence[str]]  # key (or whatever stands for it), bytes, holders
Grouped = dict[tuple[str, ...], tuple[list[Any], list[int]]]  # keys and sizes by holders
Groups = list[tuple[tuple[str, ...], list[Any], list[int]]]


class Batch(NamedTuple):
    """Keys that go one way. ``path``: one of PATHS, "wait" or "none"; ``seconds``: expected until all are here."""

    path: str
    holder: str  # "" for wait and none
    keys: list[Any]
    nbytes: int
    seconds: float
    reason: str


class _Ways:
    """The usable links to one holder under one ``direct``."""

    __slots__ = ("peer", "reason", "relay", "shm", "wait")

    def __init__(self, links: Links, holder: str, direct: bool | None, paths: Sequence[str], fallback: bool) -> None:
        shm = links.shm(holder) if SHM in paths and direct is not False else None
        self.shm = shm if shm is not None and shm.state == OPEN else None
        peer = links.peer(holder) if PEER in paths and direct is not False else None
        relay = links.by_relay(holder) if RELAY in paths else None
        self.reason = "direct=False" if direct is False else _why(peer, holder, paths)
        if direct and not holder.startswith("c-"):  # a client can be reached by relay only
            closed = peer is None or peer.state == CLOSED
            if not (closed and fallback):
                relay = None
        recovering = relay is not None and relay.recovering
        self.relay = relay if relay is not None and relay.state == OPEN else None
        self.peer = peer if peer is not None and peer.state == OPEN else None
        self.wait = recovering or (peer is not None and peer.state == UNKNOWN and self.relay is None)


def _why(peer: Link | None, holder: str, paths: Sequence[str]) -> str:
    """Why not by peer."""
    if PEER not in paths:
        return "gather_paths leaves the peer path out"
    if peer is None:
        return "a client holds it, and has no socket of its own" if holder.startswith("c-") else "no peer address known"
    if peer.state == UNKNOWN:
        return "peer path not probed yet"
    if peer.state == OPEN:
        return "peer path fell behind" if peer.silence else "relay faster"
    return f"peer path {peer.state}: {peer.text}" if peer.text else f"peer path {peer.state}"


class _Load:
    """What a plan puts on one link."""

    __slots__ = ("finish", "keys", "link", "nbytes", "parts")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.parts: list[list[Any]] = []
        self.keys = 0
        self.nbytes = 0
        self.finish = link.delay + (link.inflight + link.backlog) / link.speed

    def add(self, keys: list[Any], nbytes: int) -> None:
        self.parts.append(keys)
        self.keys += len(keys)
        self.nbytes += nbytes
        self.finish += len(keys) * KEY_SECONDS + nbytes / self.link.speed


Plan = dict[Link, _Load]


def plan_gather(
    wants: Iterable[Want],
    links: Links,
    direct: bool | None = None,
    *,
    paths: Sequence[str] = PATHS,
    fallback: bool = True,
) -> list[Batch]:
    """Divide wants into batches, each with a holder and a path, so that the last is expected home soonest.

    Parameters: ``wants`` are (key, bytes, holders) with each key once; ``direct`` as in ``Client.gather`` (None
    chooses, True prefers the peer path and waits for its verdict, False takes the relay; True allows shared memory too,
    since nothing passes the broker); ``paths`` that may be used at all; ``fallback`` whether ``direct=True`` may end on
    the relay where the peer path is closed. Every key is in exactly one batch; those that cannot go now are in one with
    the path "wait" or "none". Never a closed path.
    """
    wants = list(wants)
    ways: dict[str, _Ways] = {}
    groups: Grouped = {}
    large: Grouped = {}  # of these, those that shared memory is for
    host = links.host if SHM in paths and direct is not False else None
    least = float("inf") if host is None else host.least
    for key, nbytes, holders in wants:
        name = holders if type(holders) is tuple else tuple(holders)
        table = groups if nbytes < least else large
        group = table.get(name)
        if group is None:
            table[name] = group = ([], [])
            for holder in name:
                if holder not in ways:
                    ways[holder] = _Ways(links, holder, direct, paths, fallback)
        group[0].append(key)
        group[1].append(nbytes)
    near = {holders: group for holders, group in large.items() if any(ways[holder].shm for holder in holders)}
    if not large:
        return _unshared(groups, ways, links, direct)
    other = plan_gather(wants, links, direct, paths=[path for path in paths if path != SHM], fallback=fallback)
    if not near:
        return other
    shared = _shared(groups, large, near, ways, links, direct)
    if any(batch.path not in PATHS for batch in other) or plan_cost(shared, links) <= plan_cost(other, links):
        return shared
    return other


def _shared(
    groups: Grouped, large: Grouped, near: Grouped, ways: dict[str, _Ways], links: Links, direct: bool | None
) -> list[Batch]:
    """What can go by shared memory goes that way, all else as it would without."""
    parts = [(holders, keys, sizes) for holders, (keys, sizes) in near.items()]
    plan = _assign(parts, {holder: way.shm for holder, way in ways.items()}, SHM, links)
    rest = dict(groups)
    for holders, (keys, sizes) in large.items():
        if holders not in near:
            some = rest.get(holders, ([], []))
            rest[holders] = ([*some[0], *keys], [*some[1], *sizes])
    return [*_batches(plan, ways, links, SAME_HOST), *_unshared(rest, ways, links, direct)]


def _unshared(groups: Grouped, ways: dict[str, _Ways], links: Links, direct: bool | None) -> list[Batch]:
    """The plan without shared memory."""
    if len(groups) == 1:
        for holders, (keys, sizes) in groups.items():
            if len(holders) == 1:
                return [_single(keys, sum(sizes), ways[holders[0]], links, direct)]
    routable, batches = [], []
    for holders, (keys, sizes) in groups.items():
        if any(ways[h].peer or ways[h].relay for h in holders):
            if direct and not any(ways[h].peer for h in holders) and any(ways[h].wait for h in holders):
                batches.append(Batch(WAIT, "", keys, sum(sizes), 0.0, ways[holders[0]].reason))
            else:
                routable.append((holders, keys, sizes))
        else:
            path = WAIT if any(ways[h].wait for h in holders) else NONE
            reason = "; ".join(ways[h].reason for h in holders) or "no holders"
            batches.append(Batch(path, "", keys, sum(sizes), 0.0, reason))
    if routable:
        batches += _best(routable, ways, links, direct)
    return batches


def _single(keys: list[Any], nbytes: int, way: _Ways, links: Links, direct: bool | None) -> Batch:
    """All keys have the same only holder: what `_best` would find, without its tables."""
    peer, relay = way.peer, way.relay
    ahead = len(keys) * KEY_SECONDS
    if relay is not None:
        there = (relay.inflight + relay.backlog + nbytes) / relay.speed + ahead
        seconds = relay.delay + max(there, (links.relay_load + nbytes) / links.relay.speed)
    if peer is not None:
        direct_seconds = peer.delay + (peer.inflight + peer.backlog + nbytes) / peer.speed + ahead
        if relay is None or direct_seconds <= seconds:
            reason = "direct=True" if direct else "peer path open"
            return Batch(PEER, peer.holder, keys, nbytes, direct_seconds, reason)
    if relay is not None:
        return Batch(RELAY, relay.holder, keys, nbytes, seconds, way.reason)
    return Batch(WAIT if way.wait else NONE, "", keys, nbytes, 0.0, way.reason)


def plan_cost(batches: Iterable[Batch], links: Links) -> float:
    """Expected seconds until the last of these batches is home, by the planner's model."""
    plan: Plan = {}
    for batch in batches:
        if batch.path in PATHS:
            link = links.find(batch.path, batch.holder)
            plan.setdefault(link, _Load(link)).add(batch.keys, batch.nbytes)
    return _cost(plan, links)[0]


def _best(groups: Groups, ways: dict[str, _Ways], links: Links, direct: bool | None) -> list[Batch]:
    """The cheapest of: all by peer, all by relay, and the best division of the holders between the two."""
    by_peer = {holder: way.peer or way.relay for holder, way in ways.items()}
    plan = _assign(groups, by_peer, PEER, links)
    why = "direct=True" if direct else "peer path open"
    if direct is None and any(way.peer for way in ways.values()) and any(way.relay for way in ways.values()):
        cost = _cost(plan, links)
        soonest = min(way.relay.delay + way.relay.backlog / way.relay.speed for way in ways.values() if way.relay)
        if cost[0] <= soonest and all(link.path == PEER for link in plan):
            return _batches(plan, ways, links, why)  # done before a relay could even begin
        by_relay = {holder: way.relay or way.peer for holder, way in ways.items()}
        for pick, first in ((by_peer, ""), (_divide(plan, ways, links), ""), (by_relay, RELAY)):
            other = _assign(groups, pick, first, links)
            if (seconds := _cost(other, links)) < cost:
                plan, cost = other, seconds
    return _batches(plan, ways, links, why)


def _batches(plan: Plan, ways: dict[str, _Ways], links: Links, why: str) -> list[Batch]:
    """A plan as batches; ``why`` is the reason of those that do not go by relay."""
    total = links.relay_load + sum(load.nbytes for load in plan.values() if load.link.path == RELAY)
    batches = []
    for link, load in plan.items():
        keys = load.parts[0] if len(load.parts) == 1 else [key for part in load.parts for key in part]
        way = ways[link.holder]
        reason = way.reason if link.path == RELAY else why
        seconds = load.finish if link.path != RELAY else _relayed(load, total, links)
        batches.append(Batch(link.path, link.holder, keys, load.nbytes, seconds, reason))
    return batches


def _assign(groups: Groups, pick: dict[str, Link | None], first: str, links: Links) -> Plan:
    """Put each group on the links picked for its holders, if it can on those of the path ``first``; between several
    links, each key goes where it is done first."""
    plan: Plan = {}
    for holders, keys, sizes in groups:
        candidates = [link for holder in holders if (link := pick[holder]) is not None]
        if first and len(candidates) > 1:
            candidates = [link for link in candidates if link.path == first] or candidates
        loads = []
        for link in candidates:
            load = plan.get(link)
            if load is None:
                load = plan[link] = _Load(link)
            loads.append(load)
        if len(loads) == 1:
            loads[0].add(keys, sum(sizes))
            continue
        _spread(loads, keys, sizes, links)
    return {link: load for link, load in plan.items() if load.keys}


def _spread(loads: list[_Load], keys: list[Any], sizes: list[int], links: Links) -> None:
    """Divide keys between links, each to the one that would finish it first."""
    finish = [load.finish for load in loads]
    broker = links.relay.speed
    per_byte = [1 / (load.link.speed if load.link.path != RELAY else min(load.link.speed, broker)) for load in loads]
    taken: list[tuple[list[Any], list[int]]] = [([], []) for _ in loads]
    choices = range(1, len(loads))
    for key, nbytes in zip(keys, sizes, strict=True):
        best, soonest = 0, finish[0] + nbytes * per_byte[0]
        for i in choices:
            if (seconds := finish[i] + nbytes * per_byte[i]) < soonest:
                best, soonest = i, seconds
        finish[best] = soonest + KEY_SECONDS
        taken[best][0].append(key)
        taken[best][1].append(nbytes)
    for load, (some, bytes_) in zip(loads, taken, strict=True):
        if some:
            load.add(some, sum(bytes_))


def _divide(plan: Plan, ways: dict[str, _Ways], links: Links) -> dict[str, Link | None]:
    """Move holders from peer to relay, slowest first, as many as make the whole soonest."""
    loads = [load for link, load in plan.items() if link.path == PEER and ways[link.holder].relay is not None]
    loads.sort(key=lambda load: -load.finish)
    relayed = [load for link, load in plan.items() if link.path == RELAY]
    total = links.relay_load + sum(load.nbytes for load in relayed)
    slowest = max((load.finish for load in relayed), default=0.0)
    delay = max((load.link.delay for load in relayed), default=0.0)
    best, moves = float("inf"), 0
    for moved, load in enumerate([*loads, None]):
        shared = delay + total / links.relay.speed if moved or relayed else 0.0
        cost = max(load.finish if load is not None else 0.0, slowest, shared)
        if cost < best:
            best, moves = cost, moved
        if load is not None and (link := ways[load.link.holder].relay) is not None:
            there = _Load(link)
            there.finish += load.keys * KEY_SECONDS + load.nbytes / link.speed
            total += load.nbytes
            slowest = max(slowest, there.finish)
            delay = max(delay, link.delay)
    away = {load.link.holder for load in loads[:moves]}
    return {h: way.relay if h in away else way.peer or way.relay for h, way in ways.items()}


def _relayed(load: _Load, total: int, links: Links) -> float:
    """When a relay link is done: by its own speed, and by the broker's, which carries ``total`` bytes."""
    return max(load.finish, load.link.delay + total / links.relay.speed)


def _cost(plan: Plan, links: Links) -> tuple[float, float]:
    """Seconds until the last link is done; among plans that are equal in that, the sum over all links decides."""
    total = links.relay_load + sum(load.nbytes for link, load in plan.items() if link.path == RELAY)
    ends = [load.finish if link.path != RELAY else _relayed(load, total, links) for link, load in plan.items()]
    return max(ends, default=0.0), sum(ends)
