"""What clients do with the state that they share: each operation once, waiting until it can be done. PURE.

An operation is named by its client's session and request. One that changes something leaves its answer in a cell until
the client has confirmed it, so that it is not done again when a broker's successor is asked again. Answers go out when
the copies on nodes have what was changed. `zdist_broker.verbs` has the operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zdist.core.machine import require
from zdist.limits import LEASE_CLIENT, MAX_KEY, RECOVERY
from zdist.protocol.messages import Answer, Mirror, Mirrored
from zdist_broker import parse
from zdist_broker.intake import Intake
from zdist_broker.queries import Queries, Request
from zdist_broker.recovery import LATE, Recovery
from zdist_broker.sharing import ANSWER, WITH_FUTURES, State
from zdist_broker.state import Client, Node, Peer, Tables
from zdist_broker.verbs import HOLDERS, VERBS, WAIT, Op, undo

__all__ = ["Shared"]


def _parsed(args: Any) -> tuple[Any, ...]:
    if not isinstance(args, tuple) or len(args) != 6:
        raise ValueError("it takes confirmed, kind, name, verb, arguments and seconds")
    confirmed, kind, name, verb, rest, seconds = args
    if not isinstance(confirmed, tuple) or not isinstance(rest, tuple):
        raise ValueError("confirmed and arguments are lists")
    for number in confirmed:
        parse.whole("confirmed", number, 0, 1 << 62)
    timeout = None if seconds is None else parse.amount("seconds", seconds)
    known = VERBS.get((parse.text("kind", kind), parse.text("verb", verb)))
    if known is None:
        raise ValueError(f"{kind!r} cannot {verb!r}")
    return confirmed, kind, parse.text("name", name, MAX_KEY), verb, known, known.parse(rest), timeout


class Shared(State):
    """Operations that wait, and answers that wait for copies."""

    def __init__(
        self,
        tables: Tables,
        intake: Intake,
        recovery: Recovery,
        peers: dict[str, Any],
        queries: Queries,
        log: Callable[..., None],
        born: float | None,
    ) -> None:
        super().__init__(tables, intake, recovery, peers, log)
        self.born = born  # when a broker began that may have another's place; those who knew that one may come late
        self.later = queries  # what a handler returns whose answer comes later
        self.answers: list[tuple[int, Client, int, Any]] = []  # version that copies must have, who is told what
        self.early: dict[tuple[str, int], tuple[Client, Any]] = {}  # asked before the copies can have come
        self.open_at: float | None = None  # when these are looked at
        self.opened = False  # they have been
        self.orphans_at: float | None = None  # when sessions that have not come back are over
        self.claim_at: float | None = None  # when futures in cells claim what an earlier broker's workers hold
        self.late_at: float | None = None  # when the first of those that wait has waited too long, or earlier
        self.taken_over: Callable[[], None] = lambda: None  # to be called when an earlier broker's state is here
        queries.asks["shared"] = (_parsed, self._ask)

    # --- operations -------------------------------------------------------------------------------------

    def _ask(self, client: Client, req: int, args: tuple[Any, ...], now: float) -> Any:
        self._open(now)
        if self.open_at is not None:
            client.asking += 1
            self.early[client.session, req] = (client, args)
            return self.later
        confirmed, kind, name, verb, known, rest, timeout = args
        for number in confirmed:
            self._settled(client.session, number)
        if verb == "cancel":
            self.cancel(client, rest)
        kept = self.store.get(ANSWER, client.session, req)
        if kept is not None:
            self._answer(client, req, kept[3])
        else:
            until = None if timeout is None else now + timeout
            self._try(Op(client, req, kind, name, verb, known, rest, until), now)
        return self.later

    def _try(self, op: Op, now: float) -> None:
        """Do it now, or when what it waits for has happened."""
        if self._done(op):
            self._wake()
        elif op.until is not None and op.until <= now:
            self._answer(op.client, op.req, ("timeout", None))
        else:
            op.client.asking += 1
            self.waiting.setdefault(op.place, {})[op.client.session, op.req] = op
            if op.until is not None and (self.late_at is None or op.until < self.late_at):
                self.late_at = op.until

    def _done(self, op: Op) -> bool:
        """Whether it could be done; then its answer is on its way."""
        before = len(self.store.rows)
        try:
            value = op.known.do(self, op)
        except Request as error:
            self.tables.tell(op.client, Answer(op.req, False, str(error)))
            return True
        if value is WAIT:
            return False
        answer = ("ok", value)
        keys = tuple(key for _, keys in value for key in keys) if op.known.carries else ()
        if keys or len(self.store.rows) > before:
            self.change(ANSWER, op.client.session, op.req, (op.kind, op.name, op.verb, answer, keys))
        self._answer(op.client, op.req, answer)
        return True

    def _answer(self, client: Client, req: int, value: Any) -> None:
        """Tell a client, at the end of the turn or when copies have what it is told of."""
        self.answers.append((self.store.version + bool(self.store.rows), client, req, value))

    def _settled(self, session: str, req: int) -> None:
        """The client has this answer."""
        if self.store.get(ANSWER, session, req) is not None:
            self.change(ANSWER, session, req, None)

    def cancel(self, client: Client, req: int) -> None:
        """The client has given up: what it asked for is not done, or undone."""
        session = client.session
        for place, ops in self.waiting.items():
            if ops.pop((session, req), None) is not None:
                client.asking -= 1
                self.touched[place] = None
                return
        kept = self.store.get(ANSWER, session, req)
        if kept is not None:
            kind, name, verb, answer, _ = kept
            self.answers = [row for row in self.answers if row[1:3] != (client, req)]
            undo(self, kind, name, verb, answer[1])
            self.change(ANSWER, session, req, None)

    def _wake(self) -> None:
        """Do what has become possible, in the order in which it was asked for."""
        while self.touched:
            touched, self.touched = self.touched, {}
            for kind, name in touched:
                for place in ((kind, name), (kind, "")):
                    self._wake_at(place)

    def _wake_at(self, place: tuple[str, str]) -> None:
        ops = self.waiting.get(place)
        if ops is None:
            return
        stuck: dict[str, None] = {}
        for op in list(ops.values()):
            if op.verb in stuck:
                continue
            if self._done(op):
                del ops[op.client.session, op.req]
                op.client.asking -= 1
            elif place[1]:
                stuck[op.verb] = None  # those behind it want the same
        if not ops:
            del self.waiting[place]

    # --- comings and goings -----------------------------------------------------------------------------

    def mirror(self, node: Node, message: Mirror, now: float) -> None:
        """A node's copy from the time of an earlier broker."""
        if self.store.copied:  # this broker has begun with another copy, and gone on since
            self.tables.ignored += 1
            return
        self.store.offered(node, message, now)
        if self.open_at is None:
            self.open_at = now + (0.0 if self.opened and not self.store.version else RECOVERY)

    def mirrored(self, node: Node, message: Mirrored, now: float) -> None:
        """A node confirms a version."""
        self.store.mirrored(node, message, now)

    def _open(self, now: float) -> None:
        """After an earlier broker: until its nodes have had the time to come, nothing is answered."""
        began = self.born if self.recovery.began is None else self.recovery.began
        if began is not None and not self.opened and self.open_at is None:
            self.open_at = began + RECOVERY

    def left(self, peer: Peer) -> None:
        """A session is over: it waits for nothing and holds no lock."""
        if isinstance(peer, Node):
            self.store.forget(peer)
        elif isinstance(peer, Client):
            for key in [key for key in self.early if key[0] == peer.session]:
                del self.early[key]
            for place, ops in list(self.waiting.items()):
                for key in [key for key in ops if key[0] == peer.session]:
                    del ops[key]
                    self.touched[place] = None
                if not ops:
                    del self.waiting[place]
            self.answers = [row for row in self.answers if row[1] is not peer]
            self._over({peer.session: None})

    def _over(self, sessions: dict[str, None]) -> None:
        """These will not come back."""
        for session in sessions:
            for req in list(self.store.items(ANSWER, session)):
                self.change(ANSWER, session, req, None)
        for kind, name in [place for place in self.store.cells if place[0] in HOLDERS]:
            for item, value in list(self.store.items(kind, name).items()):
                if value[0] in sessions:
                    self.change(kind, name, item, None)
        self._wake()

    # --- time -------------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Hand changes to the copies, and answers to those whose changes these have."""
        if self.touched:
            self._wake()
        if self.loose or self.spare:
            self.pin(now)
        self.store.turn(now)
        if self.answers:
            confirmed = self.store.confirmed()
            ready = [row for row in self.answers if row[0] <= confirmed]
            if ready:
                self.answers = [row for row in self.answers if row[0] > confirmed]
                for _, client, req, value in ready:
                    self.tables.tell(client, Answer(req, True, value))

    def deadline(self) -> float | None:
        """When `tick` is next needed."""
        times = (self.open_at, self.orphans_at, self.claim_at, self.late_at, self.store.deadline())
        return min((when for when in times if when is not None), default=None)

    def tick(self, now: float) -> None:
        """Time is over for some that wait."""
        self.store.tick(now)
        if self.open_at is not None and not self.opened and self.recovery.began is not None:
            self.open_at = max(self.open_at, self.recovery.began + RECOVERY)  # the first who knew has come since
        if self.open_at is not None and now >= self.open_at:
            self._take_over(now)
        if self.orphans_at is not None and now >= self.orphans_at:
            self.orphans_at = None
            self._over(self._absent())
        if self.claim_at is not None and now >= self.claim_at:
            self.claim_at = None  # the turn that follows does it
        if self.late_at is not None and now >= self.late_at:
            self._late(now)

    def _late(self, now: float) -> None:
        for place, ops in list(self.waiting.items()):
            late = [key for key, op in ops.items() if op.until is not None and op.until <= now]
            for key in late:
                op = ops.pop(key)
                op.client.asking -= 1
                self._answer(op.client, op.req, ("timeout", None))
                self.touched[place] = None
            if not ops:
                del self.waiting[place]
        times = [op.until for ops in self.waiting.values() for op in ops.values() if op.until is not None]
        self.late_at = min(times, default=None)

    def _take_over(self, now: float) -> None:
        # who is here has asked again by now, and is answered
        asked = dict.fromkeys(self.peers) if self.opened else {}
        self.open_at, self.opened, self.orphans_at = None, True, now + LEASE_CLIENT
        if self.recovery.began is not None:
            self.claim_at = self.recovery.began + LATE
        for kind, name in self.store.recover(lambda kind, name: kind == ANSWER and name in asked):
            self.touched[kind, name] = None
            for value in self.store.items(kind, name).values() if kind in WITH_FUTURES else ():
                for key in value[-1]:
                    self.pins[key] = self.pins.get(key, 0) + 1
                    self.loose[key] = None
        self.taken_over()
        early, self.early = self.early, {}
        for (_, req), (client, args) in early.items():
            client.asking -= 1
            self._ask(client, req, args, now)

    def _absent(self) -> dict[str, None]:
        found = {name: None for kind, name in self.store.cells if kind == ANSWER and name not in self.peers}
        for kind, name in self.store.cells:
            if kind in HOLDERS:
                sessions = [value[0] for value in self.store.items(kind, name).values()]
                found |= {session: None for session in sessions if session not in self.peers}
        return found

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        self.check_state()
        require(all(self.waiting.values()), "shared: an empty table was kept")
        require(self.open_at is not None or not self.early, "shared: what was asked early is never looked at")
