"""Calls that a client makes to actors: numbered, sent by the way that is open, and asked after until settled. PURE.

`zdist.protocol.actors` says what the numbers mean, `zdist.core.actors` is the other end. A call is over when its reply
comes, or when its actor is: that the client hears by the actor's key, which every handle wants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zdist import limits
from zdist.core.entry import FINISHED, PENDING, Entry
from zdist.core.fetch import Fetcher
from zdist.core.links import OPEN, PEER
from zdist.core.machine import CONTROL, Route
from zdist.errors import InvariantError
from zdist.protocol.actors import GONE, POLL, UNSEEN, WORKING, ActorCall, ActorReply, Seed
from zdist.protocol.messages import Attempt, Buffer, Key, Message, Payload, Session, payload_size

__all__ = ["Call", "Calls"]

NEVER: Final = float("inf")


class Call:
    """One call. A waiter can be told of it as of an entry."""

    __slots__ = (
        "after",
        "args",
        "code",
        "drop",
        "keeps",
        "name",
        "number",
        "refs",
        "status",
        "target",
        "value",
        "waiters",
        "what",
    )

    def __init__(self, target: Target, number: int, what: str, name: str, args: Payload) -> None:
        self.target = target
        self.number = number
        self.after = target.last
        self.what = what
        self.name = name
        self.args = args
        self.status = PENDING
        self.code = ""  # RETURNED or RAISED with the payload, GONE with the text; else the status of the actor's key
        self.value: Any = None  # with its outcome
        self.waiters: list[Any] | None = None
        self.keeps: Any = None
        self.refs: list[Entry] = []  # of what is in the value: joined at once, as the worker lets go of it then
        self.drop: Callable[[list[Entry]], None] | None = None

    def __del__(self) -> None:
        if self.refs and self.drop is not None:
            self.drop(self.refs)

    def __repr__(self) -> str:
        return f"<Call {self.number} of {self.name} of actor {self.target.key}, {self.status}>"


class Target:
    """An actor with calls that are not settled, or whose replies its worker is still to be told of."""

    __slots__ = (
        "address",
        "attempt",
        "bytes",
        "calls",
        "joining",
        "key",
        "last",
        "pause",
        "poll_at",
        "queue",
        "tell_at",
        "worker",
    )

    def __init__(self, seed: Seed) -> None:
        self.key: Key = seed.key
        self.attempt: Attempt = seed.attempt
        self.worker: Session = seed.member[0]
        self.address = seed.member[1]
        self.last = 0  # number of the last call
        self.queue: deque[Call] = deque()  # not sent
        self.calls: dict[int, Call] = {}  # sent and not settled, in order
        self.bytes = 0  # of their arguments
        self.joining: dict[int, tuple[Entry, ...]] = {}  # of calls that are settled: what their replies name
        self.poll_at = NEVER  # when it is asked what has become of them
        self.pause = limits.ACTOR_PATIENCE
        self.tell_at = NEVER  # when the worker is told that replies have come

    @property
    def settled(self) -> int:
        """All calls up to this number are, and what their replies name is known to be held here."""
        for number, entries in list(self.joining.items()):
            if all(entry.status != PENDING for entry in entries):
                del self.joining[number]
        first = next(iter(self.calls), self.queue[0].number if self.queue else self.last + 1)
        return min(first, *self.joining) - 1 if self.joining else first - 1


class Calls:
    """All calls of a client. ``settle`` is called with each that is over."""

    def __init__(
        self,
        send: Callable[[Route, Message], None],
        session: Session,
        token: str,
        fetcher: Fetcher,
        settle: Callable[[Call], None],
        join: Callable[[tuple[Key, ...]], list[Entry]],
        drop: Callable[[list[Entry]], None],
    ) -> None:
        self.send, self.session, self.token, self.fetcher, self.settle = send, session, token, fetcher, settle
        self.join, self.drop = join, drop
        self.number = 0
        self.targets: dict[Key, Target] = {}
        self.open: dict[int, Call] = {}
        self.due: dict[Target, None] = {}  # have calls to send
        self.next = NEVER  # no later than this something is to be asked or told

    # --- what the client's user does ---------------------------------------------------------------

    def make(self, seed: Seed, what: str, name: str, args: Payload, keeps: Any) -> Call:
        """Make a call. Of the actor's key the caller holds an entry that has not ended; what it ``keeps`` alive,
        as the call needs it, goes with the call's end."""
        target = self.targets.get(seed.key)
        if target is not None and target.attempt != seed.attempt:
            self._over(target, GONE, "its key was made anew, and stands for another actor now")
            target = None
        if target is None:
            target = self.targets[seed.key] = Target(seed)
            self.fetcher.members([seed.member])
        self.number += 1
        call = self.open[self.number] = Call(target, self.number, what, name, args)
        call.keeps = keeps
        target.last = self.number
        target.queue.append(call)
        self.due[target] = None
        return call

    def ended(self, key: Key, status: str, outcome: Any) -> None:
        """The key of an actor has failed or is cancelled."""
        if (target := self.targets.get(key)) is not None:
            self._over(target, status, outcome)

    def _over(self, target: Target, code: str, value: Any) -> None:
        del self.targets[target.key]
        self.due.pop(target, None)
        for call in (*target.calls.values(), *target.queue):
            self._settle(call, code, value)
        target.calls.clear()
        target.queue.clear()

    def _settle(self, call: Call, code: str, value: Any) -> None:
        del self.open[call.number]
        call.status, call.code, call.value, call.args, call.keeps = FINISHED, code, value, b"", None
        self.settle(call)

    # --- what comes --------------------------------------------------------------------------------

    def reply(self, route: Route, message: ActorReply, now: float) -> None:
        """Something has become of a call. Late and foreign replies change nothing."""
        _, number, code, value, refs = message
        call = self.open.get(number)
        if call is None or route.channel not in (CONTROL.channel, call.target.address):
            return
        target = call.target
        if code == WORKING:
            return  # the next question is due later than this one was
        if code == UNSEEN:
            if number in target.calls:
                self._send(target, [call], CONTROL)
                if PEER in self.fetcher.paths and (link := self.fetcher.links.peer(target.worker)) is not None:
                    self.fetcher.probes.suspect(link, now)
            return
        if number not in target.calls:
            return  # it has not been sent
        if code == GONE:
            self._over(target, GONE, _text(value))
            return
        del target.calls[number]
        target.bytes -= payload_size(call.args)
        if refs:
            call.refs, call.drop = self.join(refs), self.drop
            target.joining[number] = tuple(call.refs)
        self._settle(call, code, value)
        if target.queue:
            self.due[target] = None
        self._heard(target, now)

    def _heard(self, target: Target, now: float) -> None:
        """The actor's worker lives: what is still out has more time."""
        target.pause = limits.ACTOR_PATIENCE
        target.poll_at = now + target.pause if target.calls else NEVER
        if target.tell_at == NEVER:
            target.tell_at = now + limits.ACTOR_ACK
        self.next = min(self.next, target.poll_at, target.tell_at)

    def anew(self, at: float) -> None:
        """Another broker, or one that has given this session up: what went through it may be lost on its way."""
        for target in self.targets.values():
            if target.calls:
                target.pause = limits.ACTOR_PATIENCE
                target.poll_at = at
                self.next = min(self.next, at)

    # --- what goes ---------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Send what the windows allow."""
        due, self.due = self.due, {}
        for target in due:
            way = self._way(target, now)
            batch: list[Call] = []
            size = 0
            while target.queue and len(target.calls) < limits.ACTOR_WINDOW:
                call = target.queue[0]
                nbytes = payload_size(call.args)
                if target.calls and target.bytes + nbytes > limits.ACTOR_WINDOW_BYTES:
                    break
                large = type(call.args) is Buffer
                if batch and (len(batch) == limits.ACTOR_ROWS or size + nbytes > limits.ACTOR_BYTES or large):
                    self._send(target, batch, way)
                    batch, size = [], 0
                target.queue.popleft()
                target.calls[call.number] = call
                target.bytes += nbytes
                if large:  # data sockets take no frames beside the header
                    self._send(target, [call], CONTROL)
                else:
                    batch.append(call)
                    size += nbytes
            if batch:
                self._send(target, batch, way)
            if target.poll_at == NEVER and target.calls:
                target.poll_at = now + target.pause
                self.next = min(self.next, target.poll_at)

    def _way(self, target: Target, now: float) -> Route:
        """The worker's own socket where that is open, else through the broker."""
        link = self.fetcher.links.peer(target.worker) if PEER in self.fetcher.paths else None
        if link is None:
            return CONTROL
        self.fetcher.probes.consider(link, now)
        return link.route if link.state == OPEN else CONTROL

    def _send(self, target: Target, calls: list[Call], way: Route) -> None:
        rows = tuple([(call.number, call.after, call.what, call.name, call.args) for call in calls])
        self._say(target, rows, way)

    def _say(self, target: Target, rows: tuple[Any, ...], way: Route) -> None:
        token = "" if way == CONTROL else self.token
        key, attempt = target.key, target.attempt
        self.send(way, ActorCall(token, target.worker, self.session, key, attempt, target.settled, rows))
        if not target.joining:
            target.tell_at = NEVER

    def tick(self, now: float) -> None:
        """Ask what has become of calls, through the broker, whatever became of the way they went; tell workers which
        replies have come."""
        if now < self.next:
            return
        self.next = NEVER
        for target in list(self.targets.values()):
            if target.poll_at <= now:
                self._poll(target, now)
            elif target.tell_at <= now:
                self._say(target, (), self._way(target, now))
                if target.joining:
                    target.tell_at = now + limits.ACTOR_PATIENCE
                elif not target.calls and not target.queue:
                    del self.targets[target.key]
            self.next = min(self.next, target.poll_at, target.tell_at)

    def _poll(self, target: Target, now: float) -> None:
        numbers = list(target.calls)[: limits.ACTOR_ROWS]
        self._say(target, tuple([(number, 0, POLL, "", b"") for number in numbers]), CONTROL)
        target.pause = min(2 * target.pause, limits.ACTOR_PATIENCE_MAX)
        target.poll_at = now + target.pause

    def deadline(self) -> float | None:
        """When `tick` is next needed."""
        return None if self.next == NEVER else self.next

    def check(self) -> None:
        """Raise InvariantError if the tables contradict each other."""
        found = 0
        for key, target in self.targets.items():
            found += len(target.calls) + len(target.queue)
            if target.key != key or list(target.calls) != sorted(target.calls):
                raise InvariantError(f"calls: the actor under {key} is out of order")
            if target.calls and target.poll_at == NEVER:
                raise InvariantError(f"calls: nobody asks after those to {key}")
            if not (target.calls or target.queue) and target.tell_at == NEVER:
                raise InvariantError(f"calls: {key} is listed for nothing")
            if min(target.poll_at, target.tell_at) < self.next:
                raise InvariantError(f"calls: {key} is due before the next look")
        if found != len(self.open):
            raise InvariantError(f"calls: {found} are with their actors, {len(self.open)} are open")


def _text(value: Payload) -> str:
    data = value.data if isinstance(value, Buffer) else value
    return bytes(data).decode(errors="replace")[: limits.MAX_TEXT]
