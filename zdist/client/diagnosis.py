"""What works between this machine and a cluster, and what to change where it does not: the eyes of ``zdist doctor``.

The client's own machinery is used: its probes give the verdicts on peer paths, its gathers the rates. Why a path is
closed is then looked up with a plain connection. What is scattered for that goes again with the client.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from zdist.client.advice import advice
from zdist.client.client import Client
from zdist.client.future import Future
from zdist.core.gather import PATHS
from zdist.core.links import OPEN, PEER, RELAY, SHM, Link, Member
from zdist.errors import AuthenticationError, BrokerUnreachable, VersionMismatch, ZdistError
from zdist.limits import KIB, MIB, PROBE_TIMEOUT
from zdist.transport.address import broker_address
from zdist.transport.host import host_id
from zdist.transport.reach import LISTENS, Reach, reach
from zdist.transport.security import find_token, is_local

__all__ = ["BrokerState", "Diagnosis", "PathState", "Problem", "WorkerState", "diagnose"]

FENCES: Final = 21  # round trips to the broker that are measured
PROBES: Final = 9  # round trips to a worker
SMALL: Final = 256 * KIB  # carried first; on a slow path that has to do
LARGE: Final = 8 * MIB
QUICK: Final = 0.05  # seconds for the small load, below which the large one is tried
RUNS: Final = 3  # of which the best counts
LOOKS: Final = 32  # plain connections at a time
ROUNDS: Final = 2  # of probes, before a path counts as closed
MEASURING: Final = 6  # timeouts' worth of time for all rates together


@dataclass
class PathState:
    """One way to one worker. ``state``: "open", "closed", "no" (cannot be and need not), "" if it was not looked at."""

    state: str = ""
    fault: str = ""  # which kind of thing is wrong
    text: str = ""  # what is wrong, or why it is not used
    round_trip: float | None = None  # seconds, median
    rate: float | None = None  # bytes per second


@dataclass
class WorkerState:
    """A worker as seen from here."""

    session: str
    name: str
    address: str
    same_host: bool
    shm: PathState = field(default_factory=PathState)
    peer: PathState = field(default_factory=PathState)
    relay: PathState = field(default_factory=PathState)


@dataclass
class BrokerState:
    """The broker as seen from here. ``reachable``: something answers there as a broker, even if it refuses."""

    address: str
    reachable: bool = False
    bulk: str = ""  # the address of its relay
    round_trip: float | None = None  # seconds, median
    rate: float | None = None  # bytes per second by relay, of the fastest worker


@dataclass(frozen=True)
class Problem:
    """What is wrong, where, and what to change. ``fault`` is for programs."""

    where: str
    fault: str
    text: str
    advice: str


@dataclass
class Diagnosis:
    """All that was found."""

    broker: BrokerState
    workers: list[WorkerState] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def code(self) -> int:
        """For the shell: 0 all is well, 1 something is wrong, 2 there is no broker to talk to."""
        return 2 if not self.broker.reachable else 1 if self.problems else 0

    def complain(self, where: str, fault: str, text: str) -> None:
        """Note a problem, with what to do about it."""
        self.problems.append(Problem(where, fault, text, advice(fault)))


def diagnose(
    address: str,
    *,
    token_file: str | None = None,
    timeout: float = 5.0,
    tell: Callable[[str], object] = lambda text: None,
) -> Diagnosis:
    """Look at everything that a client at this machine needs of the cluster.

    Parameters:
        address: the broker's.
        token_file: where the cluster token lies, if not where the user's own broker has put it.
        timeout: seconds for each answer.
        tell: called with what is being done.

    Raises:
        ValueError: the address is none.
    """
    address = broker_address(address)
    found = Diagnosis(BrokerState(address))
    tell(f"connecting to the broker at {address}")
    first = reach(address, timeout)
    if first.state != LISTENS:
        found.complain("broker", f"broker-{first.state}", first.text)
        return found
    client = _connect(found, address, token_file, timeout)
    if client is not None:
        with client:
            try:
                _Examination(client, found, timeout, tell).run()
            except (ZdistError, TimeoutError) as exc:
                found.complain("broker", "broker-lost", str(exc))
    return found


def _connect(found: Diagnosis, address: str, token_file: str | None, timeout: float) -> Client | None:
    """A client, or what keeps it from being one."""
    broker = found.broker
    try:
        client = Client(
            address,
            token_file=token_file,
            timeout=timeout,
            name="zdist doctor",
            gather_paths=PATHS,
            set_as_default=False,
        )
    except BrokerUnreachable:
        text = f"a ZeroMQ socket listens at {address}, but does not answer as a zdist broker within {timeout:g} s"
        found.complain("broker", "broker-stranger", text)
    except AuthenticationError as exc:
        broker.reachable = True
        found.complain("broker", _token_fault(address, token_file), str(exc))
    except VersionMismatch as exc:
        broker.reachable = True
        found.complain("broker", "version", str(exc))
    except ZdistError as exc:
        broker.reachable = True
        found.complain("broker", "broker-refusal", str(exc))
    else:
        broker.reachable = True
        return client
    return None


def _token_fault(address: str, token_file: str | None) -> str:
    try:
        return "token-wrong" if find_token(address, token_file) else "token-missing"
    except AuthenticationError:
        return "token-file"


class _Examination:
    """A client that looks about."""

    def __init__(self, client: Client, found: Diagnosis, timeout: float, tell: Callable[[str], object]) -> None:
        client.direct = None  # whatever the configuration says
        self.client = client
        self.found = found
        self.timeout = timeout
        self.tell = tell
        self.fetcher = client._ledger.fetcher
        self.paths = self.fetcher.paths
        self.driver = client._usable()

    def run(self) -> None:
        """Broker, relay, workers, in this order: each needs those before it."""
        found, broker = self.found, self.found.broker
        broker.round_trip = self._fences()
        broker.bulk = self.driver.peer.bulk
        relay = reach(broker.bulk, self.timeout)
        if relay.state != LISTENS:
            found.complain("relay", "relay-closed", relay.text)
        rows = self.client._ask("members", timeout=self.timeout, asynchronous=False)
        members = sorted((Member(*row) for row in rows), key=lambda member: member.name)
        if not members:
            found.complain("workers", "no-workers", "no worker is connected to this broker")
            return
        with self.client._lock:
            self.fetcher.members(members)
        self.tell(f"probing {len(members)} workers")
        self._probe(members)
        self._look_closer(relay)
        self._measure(relay)
        rates = [worker.relay.rate for worker in found.workers if worker.relay.rate]
        broker.rate = max(rates, default=None)

    def _fences(self) -> float:
        spans = []
        for _ in range(FENCES):
            started = time.perf_counter()
            self.client._ask("fence", timeout=self.timeout, asynchronous=False)
            spans.append(time.perf_counter() - started)
        return statistics.median(spans)

    # --- peer paths ----------------------------------------------------------------------------------

    def _probe(self, members: list[Member]) -> None:
        """A verdict on each worker's own socket, and its round trip."""
        here = host_id()
        links = self.fetcher.links
        for _ in range(ROUNDS):
            self._verdicts(link for member in members if (link := links.peer(member.session)) and link.state != OPEN)
        for member in members:
            worker = WorkerState(member.session, member.name or member.session, member.address, member.host == here)
            self.found.workers.append(worker)
            link = links.peer(member.session)
            if link is None:
                worker.peer = PathState("closed", "peer-none", "it advertises no address")
            elif link.state == OPEN:
                worker.peer = PathState("open", round_trip=self._round_trip(link))
            else:
                worker.peer = PathState("closed", link.fault, link.text)

    def _verdicts(self, links: Iterable[Link]) -> None:
        wanted = list(links)
        with self.client._lock:
            for link in wanted:
                self.fetcher.probes.suspect(link, self.driver.now())
        self.driver.wake()
        self.client.block(lambda: not any(link.probe for link in wanted), PROBE_TIMEOUT * (2 + len(wanted)))

    def _round_trip(self, link: Link) -> float | None:
        spans = []
        for _ in range(PROBES):
            started = time.perf_counter()
            self._verdicts((link,))
            if link.state == OPEN:
                spans.append(time.perf_counter() - started)
        return statistics.median(spans) if spans else None

    def _look_closer(self, relay: Reach) -> None:
        """Why the closed paths are closed."""
        closed = [worker for worker in self.found.workers if worker.peer.state == "closed"]
        if not closed:
            return
        self.tell(f"looking why {len(closed)} peer paths are closed")
        with ThreadPoolExecutor(min(LOOKS, len(closed))) as pool:
            looks = list(pool.map(lambda worker: reach(worker.address, self.timeout), closed))
        for worker, look in zip(closed, looks, strict=True):
            path = worker.peer
            if worker.address and not worker.same_host and is_local(worker.address):
                path.fault = "peer-loopback"
                path.text = f"it advertises {worker.address}, which only processes of its own host can reach"
            elif look.state != LISTENS:
                path.fault, path.text = f"peer-{look.state}", look.text
            else:
                path.fault = f"peer-{path.fault}"
            self.found.complain(worker.name, path.fault, path.text)

    # --- rates ---------------------------------------------------------------------------------------

    def _measure(self, relay: Reach) -> None:
        """How fast each open path is, one after the other: together they would share a cable."""
        end = time.monotonic() + MEASURING * self.timeout
        for worker in self.found.workers:
            if time.monotonic() > end:
                break
            self.tell(f"measuring the paths to {worker.name}")
            worker.relay.state = "open" if relay.state == LISTENS else "closed"
            worker.relay.text = "" if relay.state == LISTENS else relay.text
            for nbytes in (SMALL, LARGE):
                load = self._load(worker, nbytes)
                if load is None:
                    break
                if not worker.shm.state:
                    self._share(worker, load)
                spans = [self._carry(worker, worker.relay, RELAY, load), self._carry(worker, worker.peer, PEER, load)]
                load.release()
                if min((span for span in spans if span is not None), default=QUICK) >= QUICK:
                    break

    def _load(self, worker: WorkerState, nbytes: int) -> Future | None:
        """Something to fetch from this worker alone; None if it does not get there."""
        client = self.client
        try:
            if worker.relay.state == "open":
                load: Future = client.scatter(bytes(nbytes), workers=worker.name, hash=False, timeout=self.timeout)
            else:  # clients have no socket of their own, so the worker has to make it
                load = client.submit(bytes, nbytes, workers=worker.name, pure=False)
                client.block(load.done, self.timeout)
        except (ZdistError, TimeoutError) as exc:
            self._broken(worker, worker.relay, RELAY, str(exc))
            return None
        holders = load._entry.outcome[4] if load.status == "finished" else ()
        here = client._ledger.store
        if holders != (worker.session,) or not client.block(lambda: here.get(load.key) is None, self.timeout):
            return None  # it is busy, or another of the same name and address
        return load

    def _share(self, worker: WorkerState, load: Future) -> None:
        """Whether values come through shared memory; that they do not is nothing that is wrong."""
        worker.shm = PathState("no", text="no: it runs on another host")
        if not worker.same_host:
            return
        link = self.fetcher.links.shm(worker.session)
        if link is None:
            worker.shm.text = "no: switched off here, or /dev/shm is absent"
            return
        self.fetcher.paths = (SHM,)
        try:
            self.client.gather(load, timeout=self.timeout)
        except (ZdistError, TimeoutError):
            worker.shm.text = f"no: {link.text or 'the worker puts nothing there; see its --shared-memory'}"
        else:
            worker.shm = PathState("open")
        finally:
            self.fetcher.paths = self.paths

    def _carry(self, worker: WorkerState, path: PathState, name: str, load: Future) -> float | None:
        """Fetch by one path alone; the least seconds of some runs, None if it did not work."""
        if path.state != "open":
            return None
        client = self.client
        best: float | None = None
        self.fetcher.paths = (name,)
        try:
            for _ in range(RUNS):
                nbytes, seconds = self._carried(name)
                client.gather(load, timeout=self.timeout)
                nbytes, seconds = self._carried(name, nbytes, seconds)
                if seconds > 0 and (best is None or seconds < best):
                    best, path.rate = seconds, nbytes / seconds
                if seconds > QUICK:
                    break
        except (ZdistError, TimeoutError) as exc:
            self._broken(worker, path, name, str(exc))
            return None
        finally:
            self.fetcher.paths = self.paths
        return best

    def _carried(self, path: str, nbytes: int = 0, seconds: float = 0.0) -> tuple[int, float]:
        """Bytes and seconds of a path by the client's own report, less those before."""
        rows = [row for row in self.fetcher.report if row.path == path]
        return sum(row.bytes for row in rows) - nbytes, sum(row.seconds for row in rows) - seconds

    def _broken(self, worker: WorkerState, path: PathState, name: str, text: str) -> None:
        """A path that seemed open carries nothing."""
        path.state, path.fault, path.text, path.rate = "closed", f"{name}-deaf", text, None
        self.found.complain(worker.name, path.fault, text)
