"""The client's machine: every key that its futures or their lineage need, and how far the broker is with it. PURE.

What is wanted lives here, with its spec, until nobody needs it: a broker that knows nothing of this session (a fresh
welcome) is told everything again. `zdist.core.entry` has the records, `zdist.core.wants` the outgoing half,
`zdist.core.collect` gathering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from zdist import limits
from zdist.core.collect import Collection
from zdist.core.entry import CANCELLED, DATA_LOST, ERROR, FINISHED, GIVEN_UP, PENDING, UNHELD, UNKNOWN, Entry, Reply
from zdist.core.gather import PATHS
from zdist.core.links import Host
from zdist.core.machine import CONTROL, Route
from zdist.core.replay import Replay
from zdist.errors import InvariantError, ProtocolError
from zdist.protocol import messages as m
from zdist.protocol.messages import Key, Message

__all__ = ["UNKNOWN", "Ledger", "Over"]


class Over(NamedTuple):
    """Command: this session has ended for good. Codes: "stop" (the cluster was shut down) and those of Refused."""

    code: str
    text: str


class Ledger(Replay):
    """A client's state. The owner holds the driver's lock for every call.

    Parameters: the session id, the cluster token (for data requests), what Hello tells about this client (name, host,
    pid), the transfer paths allowed, whether ``direct=True`` may fall back to the relay, and the host whose processes
    it shares memory with, if any.
    """

    role = "client"

    def __init__(
        self,
        session: str,
        token: str,
        info: dict[str, Any],
        *,
        paths: Sequence[str] = PATHS,
        fallback: bool = True,
        host: Host | None = None,
    ) -> None:
        super().__init__(session, token, str(info.get("name", session)), paths, fallback, host)
        self.info = info
        self.cluster = ""
        self.replies: dict[int, Reply] = {}
        self.ready = Reply("welcome", None)  # the first answer to our hello
        self.starved: tuple[tuple[int, str], ...] = ()  # tasks that no worker may take: how many, why
        self.members: dict[str, tuple[str, str, str, str]] = {}  # session: address, name, host, node
        self.handlers: dict[type, Callable[[Any, float], None]] = {
            m.Finished: self._finished,
            m.Failed: self._failed,
            m.Killed: self._killed,
            m.Cancelled: self._cancelled,
            m.Rejected: self._rejected,
            m.Lost: self._lost,
            m.Members: self._members,
            m.Answer: self._answer,
            m.Drop: self._drop,
            m.WhichFunction: self._which_function,
            m.Stop: self._stop,
            m.Output: self._output,
            m.Starved: self._starved,
            m.Lane: self._lane_told,
            m.Specs: self._learn,
            m.Unheard: self._unheard,
            m.ActorReply: partial(self.calls.reply, CONTROL),
            m.ActorGone: self._actor_gone,
        }

    # --- questions, gathering, the end ---------------------------------------------------------------

    def ask(self, what: str, args: Any) -> Reply:
        """Put a question to the broker. Asked again if the broker is replaced before it has answered."""
        reply = Reply(what, args)
        self._question(reply, m.Ask(self.req + 1, what, args))
        return reply

    def call(self, workers: tuple[str, ...] | None, payload: m.Payload) -> Reply:
        """Run a function on workers outside the task system."""
        reply = Reply("run", None)
        self._question(reply, m.Call(self.req + 1, workers, payload))
        return reply

    def _question(self, reply: Reply, message: Message) -> None:
        self.req += 1
        self.replies[self.req] = reply
        if self.over is not None:
            self._reply(self.req, False, self.over[1])
        elif self.epoch:
            self.send(CONTROL, message)
        elif type(message) is m.Call:
            self._reply(self.req, False, "the client is not connected yet")

    def collect(self, entries: list[Entry], direct: bool | None, now: float) -> Collection:
        """Start bringing the values of these (distinct) entries home; ``collections.close`` it in any case."""
        return self.collections.add(entries, direct, now)

    def abandon(self, code: str, text: str) -> None:
        """The session is over: what has no value here is cancelled, questions fail. Idempotent."""
        if self.over is not None:
            return
        self.over = (code, text)
        if not self.ready.done:
            self._settle(self.ready, False, (code, text))
        for entry in list(self.entries.values()):
            if not (entry.value_here() or entry.status in (ERROR, CANCELLED)):
                self._end(entry, CANCELLED, text)
        for req in list(self.replies):
            self._reply(req, False, text)
        self.queue.clear()
        self.commands.append(Over(code, text))

    def _reply(self, req: int, ok: bool, value: Any) -> None:
        reply = self.replies.pop(req, None)
        if reply is not None:
            self._settle(reply, ok, value)

    def _settle(self, reply: Reply, ok: bool, value: Any) -> None:
        reply.done, reply.ok, reply.value = True, ok, value
        self.resolved.append(reply)

    # --- the driver's turn -------------------------------------------------------------------------

    def handle(self, route: Route, message: Message, now: float) -> None:
        """Take in one message. Raises ProtocolError for one that a client does not take."""
        handler = self.handlers.get(type(message))
        if handler is not None and route.channel == "control":  # who answers at a worker's address orders nothing
            handler(message, now)
        elif isinstance(message, m.Data | m.ProbeReply):
            self.fetcher.handle(route, message, now)
        elif isinstance(message, m.DoneEarly):
            self._done_early(route, message, now)
        elif isinstance(message, m.ActorReply):
            self.calls.reply(route, message, now)
        elif isinstance(message, m.Get):
            self.store.serve(route, message, now)
        elif not isinstance(message, m.Pong):
            raise ProtocolError(f"a client does not take {type(message).__name__}")

    def turn(self, now: float) -> None:
        """End of a turn: tell who waits, then send on what was released and what may be submitted."""
        self.clock = now
        fetcher = self.fetcher
        collections = self.collections
        while self.resolved or collections.waiting or fetcher.arrived or fetcher.failed:
            resolved, self.resolved = self.resolved, []
            for entry in resolved:
                if entry.status != PENDING:  # else it was lost again in the same turn
                    waiters, entry.waiters = entry.waiters, None
                    if waiters is not None:
                        for waiter in waiters:
                            waiter.resolved(entry)
            collections.drain()
            if collections.waiting:
                collections.flush(now)
        if collections.abandoned:
            collections.close_abandoned(now)
        if self.dropped and not (self.dropping and self.ahead):
            self._drain()
        if self.resume_at:
            self._wait_for_workers(now)
        if self.queue and not self.resume_at and not (self.ahead and len(self.queue) > limits.PACKET_RECORDS):
            self._pump()
        if not self.queue and (self.spent or self.parting or self.claims) and not self.resume_at:
            self._release_spent(now)
            if now >= self.patient_until and len(self.claims) != self.claimed:
                self._trim_claims()
        if self.calls.due:
            self.calls.turn(now)
        if self.notes:
            self._mind_notes(now)

    def tick(self, now: float) -> None:
        """A deadline has come; mostly it is that there is more to submit, which `turn` does."""
        fetch = self.fetcher.deadline()
        if fetch is not None and fetch <= now:
            self.fetcher.tick(now)
        self.calls.tick(now)
        if now < self.again_at:
            return
        due = [self.entries[key] for key, (when, _) in self.again.items() if when <= now]
        for entry in due:
            self.again[entry.key] = (float("inf"), self.again[entry.key][1])
        self.again_at = min([when for when, _ in self.again.values()], default=float("inf"))
        asked = [entry for entry in due if entry.work is None]
        if not all(entry.refs for entry in asked):  # some only for what is made of them, which may be done
            needed = dict.fromkeys([p for e in self.entries.values() if e.status == PENDING for p in e.parents])
            asked = [entry for entry in asked if entry.refs or entry in needed]
        self._want(asked)
        self.spent += [entry for entry in asked if not entry.refs and entry.gen]
        self._want(self._tell_again([entry for entry in due if entry.work is not None]))

    def deadline(self) -> float | None:
        """When `tick` is next needed; at once while there is more to submit, to let go of or to tell."""
        if self.resolved or (not self.ahead and (self.dropping or (self.queue and self._may_submit()))):
            return 0.0
        first = self.fetcher.deadline()
        second = self.calls.deadline()
        if first is None or (second is not None and second < first):
            first = second
        if self.again and (first is None or self.again_at < first):
            first = self.again_at
        if self.notes and (first is None or self.notes_at < first):
            first = self.notes_at
        if self.resume_at and (first is None or self.resume_at < first):
            first = self.resume_at
        return first

    # --- the session -------------------------------------------------------------------------------

    def hello_info(self) -> dict[str, Any]:
        """What the broker is told of this client."""
        return self.info

    def welcomed(self, welcome: m.Welcome, now: float) -> None:
        """The broker has taken us in; if it knows nothing of this session, tell it everything."""
        info = welcome.info
        self.epoch = welcome.epoch
        self.cluster = str(info.get("cluster", ""))
        self.window = (
            int(info.get("window_tasks", limits.WINDOW_TASKS)),
            int(info.get("window_bytes", limits.WINDOW_BYTES)),
        )
        if welcome.fresh:
            self.starved = ()
            self._replay(now, float(info["recover"]) if "recover" in info else None)
            self._ask_again()
        if not self.ready.done:
            self._settle(self.ready, True, info)

    def _ask_again(self) -> None:
        for req, reply in list(self.replies.items()):
            if reply.what == "run":
                why = GIVEN_UP if self.given_up else "the broker was replaced while this ran"
                self._reply(req, False, f"{why}; nobody knows how far it came")
            else:
                self.send(CONTROL, m.Ask(req, reply.what, reply.args))

    def refused(self, code: str, text: str, now: float) -> None:
        """The broker does not take this session, or no longer."""
        self.abandon(code, text)

    def _stop(self, message: m.Stop, now: float) -> None:
        self.abandon("stop", f"the cluster was shut down: {message.reason}")

    # --- news of keys ------------------------------------------------------------------------------

    def _finished(self, message: m.Finished, now: float) -> None:
        entries = self.entries
        resolved = self.resolved
        fences = self.fences
        for row in message.rows:
            entry = entries.get(row[0])
            if entry is None or not entry.gen or (fences and row[0] in fences):
                continue
            if entry.status == PENDING:
                entry.outcome = row
                entry.status = FINISHED
                if entry.load:
                    self.flying -= 1
                    self.flying_bytes -= entry.load
                    entry.load = 0
                if self.again:
                    self.again.pop(row[0], None)
                if entry.work is None:
                    self.placing.pop(row[0], None)
                    self.imports.pop(row[0], None)
                if entry.waiters is not None:
                    resolved.append(entry)
            elif entry.status == FINISHED:
                self._moved(entry, row, now)

    def _moved(self, entry: Entry, row: Any, now: float) -> None:
        """Told again: a value or other holders, or the same from a new broker. A value that is here stays."""
        if entry.work is None:
            self.placing.pop(entry.key, None)
        if entry.outcome[3] is None:
            entry.outcome = row
            if row[3] is not None:
                self.collections.unsettled(entry, now)
            elif self.fetcher.wants(entry.key):
                self.fetcher.relocate(entry.key, row[4], row[2], now, row[1])

    def _failed(self, message: m.Failed, now: float) -> None:
        for key, payload, origin, text in message.rows:
            self._fail(key, ("failed", payload, origin, text))

    def _killed(self, message: m.Killed, now: float) -> None:
        for key, text, overdue in message.rows:
            self._fail(key, ("timeout" if overdue else "killed", None, key, text))

    def _actor_gone(self, message: m.ActorGone, now: float) -> None:
        for key, text in message.rows:
            self._fail(key, ("actor", None, key, text))

    def _fail(self, key: Key, outcome: tuple[str, Any, Key, str], *, known: bool = True) -> None:
        entry = self._current(key)
        if entry is not None and entry.value_here():  # it is no less finished for that
            entry.gen = entry.gen if known else 0
        elif entry is not None and entry.status in (PENDING, FINISHED):
            self._end(entry, ERROR, outcome, known=known)

    def _rejected(self, message: m.Rejected, now: float) -> None:
        rows = []
        for key, reason in message.rows:
            if (entry := self._current(key)) is not None:
                rows.append((key, entry.gen))  # it may be about an earlier submission, and the broker have this one
            self._fail(key, ("rejected", None, key, reason), known=False)
        if rows:
            self._send_release(rows)

    def _cancelled(self, message: m.Cancelled, now: float) -> None:
        rows = []
        for key, reason, gen in message.rows:
            entry = self._current(key)
            if entry is None or gen not in (0, entry.gen):  # else it is about an earlier want
                continue
            lost = reason.endswith((UNKNOWN, UNHELD)) or reason.startswith(DATA_LOST)
            if (lost and entry.value_here()) or (self._early(entry, reason) and self._once_more(entry, now)):
                self._land(entry)
                if gen:  # else it may have come to know the key since
                    entry.gen = 0
                continue
            if not gen:
                rows.append((key, entry.gen))
            self._end(entry, CANCELLED, reason + self._lacking(entry, reason))
        if rows:
            self._send_release(rows)

    def _lost(self, message: m.Lost, now: float) -> None:
        """Computed again, or known after all: values that are here stay, everything else is pending."""
        for key in message.keys:
            entry = self._current(key)
            if entry is None:
                continue
            entry.sought = 0.0
            if entry.status == ERROR or (entry.status == FINISHED and entry.outcome[3] is None):
                entry.status, entry.outcome = PENDING, None
                self.collections.unsettled(entry, now)

    def _members(self, message: m.Members, now: float) -> None:
        for row in message.rows:
            self.members[row[0]] = row[1:]
        self.fetcher.members(message.rows)

    def _answer(self, message: m.Answer, now: float) -> None:
        if message.req in self.leaving:
            self._leave(message.req)
        elif message.req not in self.fenced:
            self._reply(message.req, message.ok, message.value)
        else:
            for key in self.fenced.pop(message.req):
                if self.fences.get(key) == message.req:
                    del self.fences[key]

    def _drop(self, message: m.Drop, now: float) -> None:
        for key in message.keys:
            entry = self.entries.get(key)
            if entry is not None and entry.gen:
                placed = entry.row is None if entry.status == PENDING else self.session not in entry.outcome[4]
                if not placed:
                    continue  # it was said of an earlier hold of the same key
                if not entry.refs:
                    self.spent.append(entry)  # workers hold it now, so it goes like any other result
            self.store.drop(key, now)

    def _which_function(self, message: m.WhichFunction, now: float) -> None:
        work = self.works.get(message.fn)
        if work is None:
            self.defined.discard(message.fn)  # its futures are gone: the broker, which waits, will refuse this
        name, blob = ("", b"") if work is None else (work.name, work.blob)
        self.send(CONTROL, m.Define(message.fn, name, blob))

    def _starved(self, message: m.Starved, now: float) -> None:
        """Who waits in vain has to know: it is logged, and stands in the text of a TimeoutError."""
        known = [why for _, why in self.starved]
        for tasks, why in message.rows:
            if why not in known:
                self.log("warning", "tasks.waiting", tasks=tasks, reason=why)
        self.starved = message.rows

    def _output(self, message: m.Output, now: float) -> None:
        self.commands.append(message)

    # --- invariants --------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InvariantError if counts, statuses and tables contradict each other."""
        pins: dict[int, int] = {}
        flying = size = 0
        for key, entry in self.entries.items():
            wrong = entry.key != key or self._contradiction(entry)
            if wrong:
                raise InvariantError(f"{entry}: {wrong}")
            flying += entry.load > 0
            size += entry.load
            for parent in entry.parents:
                pins[id(parent)] = pins.get(id(parent), 0) + 1
        for entry in self.entries.values():
            if entry.pins != pins.get(id(entry), 0):
                raise InvariantError(f"{entry}: {pins.get(id(entry), 0)} entries depend on it")
        if (self.flying, self.flying_bytes) != (flying, size):
            raise InvariantError(f"window: {self.flying} tasks, {self.flying_bytes} B; really {flying}, {size} B")
        for key, req in self.fences.items():
            if req not in self.fenced:
                raise InvariantError(f"{key} is fenced for ever")
        if self.freed and not self.notes:
            raise InvariantError(f"{self.freed[:3]} are released and nobody will be told")
        lane = self.lane
        if lane is not None and not lane.first <= lane.next <= lane.until <= lane.end:
            raise InvariantError(f"lane {lane.first}: {lane.next} is next, {lane.until} are allowed")
        self.fetcher.check()
        self.calls.check()

    def _contradiction(self, entry: Entry) -> str:
        pending = entry.status == PENDING
        if entry.refs < 0 or entry.pins < 0:
            return "negative count"
        if not entry.refs and not entry.pins and entry not in self.dropped:
            return "needed by nobody"
        if entry.status == CANCELLED:
            return "cancelled and still joinable"
        if (entry.outcome is None) != pending:
            return f"has the outcome {entry.outcome}"
        if entry.load and not (pending and entry.gen):
            return "counts in the window although nothing is submitted"
        if entry.gen > self.gen:
            return "generation from the future"
        if entry.waiters and not pending and entry not in self.resolved:
            return "somebody waits for it in vain"
        queued = entry in self.queue or entry.key in self.again or entry in self.later
        if entry.work is not None and pending and entry.refs and not entry.gen and not queued:
            return "wanted, and neither submitted nor queued"
        return ""
