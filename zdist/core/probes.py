"""Whether peer paths work: one probe per worker, and the other end of it. PURE."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from zdist.core.links import CLOSED, OPEN, STRANGER, TOKEN, UNKNOWN, Link
from zdist.core.machine import Route
from zdist.limits import PROBE_TIMEOUT
from zdist.protocol.messages import Message, Probe, ProbeReply

if TYPE_CHECKING:
    from zdist.core.worker import WorkerMachine

__all__ = ["Probes", "answer_probe"]

PROBES_AT_ONCE: Final = 32  # each may open a connection


class Probes:
    """Verdicts on peer paths: a probe per worker at the first use, few at once, again after a pause where one failed.

    ``verdict(link, now)`` is called whenever a link has opened or closed.
    """

    def __init__(
        self, send: Callable[[Route, Message], None], token: str, verdict: Callable[[Link, float], None]
    ) -> None:
        self.send, self.token, self.verdict = send, token, verdict
        self.out: dict[int, tuple[Link, float]] = {}  # under way: link, when sent; oldest first
        self.queue: deque[Link] = deque()
        self.serial = 0

    def consider(self, link: Link, now: float) -> None:
        """A link is about to be used: probe it if its state is unknown, or closed for long enough."""
        if not link.probe and (link.state == UNKNOWN or (link.state == CLOSED and now >= link.closed_until)):
            self.suspect(link, now)

    def suspect(self, link: Link, now: float) -> None:
        """Probe a link whatever is believed of it."""
        if link.probe:
            return
        if len(self.out) >= PROBES_AT_ONCE:
            link.probe = -1
            self.queue.append(link)
            return
        self.serial += 1
        link.probe = self.serial
        self.out[self.serial] = (link, now)
        self.send(link.route, Probe(self.serial, self.token))

    def reply(self, route: Route, link: Link | None, message: ProbeReply, now: float) -> None:
        """An answer from an address; ``link`` is the peer link of the session that it names, if there is one."""
        sent = self.out.get(message.req)
        if sent is not None and sent[0].route.channel == route.channel:
            asked, since = self.out.pop(message.req)
            asked.probe = 0
            if asked is not link:
                self._astray(asked, message.session, now)
            elif not asked.rtt_known:  # the first probe also waited for the connection: three round trips more
                asked.waited(max(1e-6, (now - since) / 4))
        if link is not None and link.route.channel == route.channel and link.state != OPEN:
            link.opened()
            self.verdict(link, now)
        self._next(now)

    def _astray(self, link: Link, session: str, now: float) -> None:
        """Somebody else answers: several hosts advertise one address, or it was passed on."""
        address = link.route.channel
        if session:
            link.closed(f"another worker answers at {address} (wrong advertised address?)", now, STRANGER)
        else:
            link.closed(f"what answers at {address} refuses our cluster token (wrong advertised address?)", now, TOKEN)
        self.verdict(link, now)

    def cancel(self, link: Link) -> None:
        """Forget a link."""
        if link.probe > 0:
            del self.out[link.probe]
        elif link.probe:
            self.queue.remove(link)
        link.probe = 0

    def tick(self, now: float) -> None:
        """Close the links whose probes were not answered in time."""
        while self.out:
            req, (link, sent) = next(iter(self.out.items()))
            if sent + PROBE_TIMEOUT > now:
                break
            del self.out[req]
            link.probe = 0
            link.closed(f"no answer from {link.route.channel} within {PROBE_TIMEOUT * 1000:.0f} ms", now)
            self.verdict(link, now)
        self._next(now)

    def _next(self, now: float) -> None:
        while self.queue and len(self.out) < PROBES_AT_ONCE:
            link = self.queue.popleft()
            link.probe = 0
            self.suspect(link, now)

    def deadline(self) -> float | None:
        """When ``tick`` is next needed."""
        for _, sent in self.out.values():
            return sent + PROBE_TIMEOUT
        return None


def answer_probe(machine: WorkerMachine, route: Route, message: Probe, now: float) -> None:
    """The other end of a probe: a worker says who it is."""
    if compare_digest(message.token.encode(), machine.token.encode()):
        machine.send(route, ProbeReply(message.req, machine.session))
    else:
        machine.send(route, ProbeReply(message.req, ""))
        machine.store.refuse(route)
