"""Which keys the client needs, directly or as lineage of others, and letting go of those it does not. PURE."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from zdist import limits
from zdist.core.calls import Call, Calls
from zdist.core.collect import Collections
from zdist.core.entry import CANCELLED, ERROR, FINISHED, GIVEN_UP, PENDING, UNHELD, UNKNOWN, Entry, Reply, Work
from zdist.core.fetch import Fetcher
from zdist.core.links import Host
from zdist.core.machine import CONTROL, Machine, Route
from zdist.core.store import Store
from zdist.core.transfer import Map
from zdist.protocol import messages as m
from zdist.protocol.messages import Key

__all__ = ["Lineage"]


class Lineage(Machine[Route]):
    """Entries by key, tied to their parents: an entry stays as long as a future or another entry needs it.

    A spec that only other entries need is released at the broker, which keeps what it must; here it is kept for a
    broker that knows nothing.
    """

    def __init__(
        self, session: str, token: str, name: str, paths: Sequence[str], fallback: bool, host: Host | None
    ) -> None:
        super().__init__()
        self.session = session
        self.name = name
        self.entries: dict[Key, Entry] = {}
        self.dropped: deque[Entry] = deque()  # by futures that are gone; may be appended to from anywhere
        self.dropping = False  # there were more than one turn takes
        self.queue: deque[Entry] = deque()  # not submitted yet, parents first
        self.claims: dict[Entry, int] = {}  # what is said of these to the next broker: see m.Claim
        self.claimed = 0  # so many were left when they were last looked through
        self.imports: dict[Key, int] = {}  # imported and finished under an earlier broker: the attempt
        self.later: list[Entry] = []  # to be asked for when workers have come to the new one
        self.resume_at = 0.0  # when that is, and when what is queued goes on; 0: nothing waits
        self.patient_until = 0.0  # until then somebody may come back who knows a key
        self.spent: list[Entry] = []  # to be released when all that depends on them has been submitted,
        self.parting: list[Entry] = []  # some only when the broker has taken that in as well,
        self.leaving: dict[int, list[Entry]] = {}  # which it is asked
        self.cancelled: dict[Key, str] = {}  # the last ones, and why; for those that are made of them later
        self.resolved: list[Entry | Reply | Call] = []  # settled in this turn
        self.gen = 0
        self.epoch = 0
        self.over: tuple[str, str] | None = None  # why this session has ended: code, text
        self.window = (limits.WINDOW_TASKS, limits.WINDOW_BYTES)
        self.flying = 0  # submitted and unsettled
        self.flying_bytes = 0
        self.defined: set[bytes] = set()  # functions that this epoch's broker has been given
        self.works: weakref.WeakValueDictionary[bytes, Work] = weakref.WeakValueDictionary()
        self.req = 0
        self.fences: dict[Key, int] = {}  # keys not to be submitted again until this question is answered
        self.unfenced: list[Key] = []  # to be fenced behind the next Release
        self.fenced: dict[int, tuple[Key, ...]] = {}
        self.placing: dict[Key, tuple[tuple[str, ...], int]] = {}  # workers, copies
        self.again: dict[Key, tuple[float, int]] = {}  # what the broker lacks: when to ask or submit again, times done
        self.again_at = float("inf")  # when the first of them is due
        self.inputs: dict[Entry, bool] | None = None  # what those are made of, until one is refused or said again
        self.store = Store(self.send, token, _nothing_to_freeze, self.log)
        self.fetcher = Fetcher(self.send, session, token, paths=paths, fallback=fallback, host=host, map=self._map)
        self.collections = Collections(self.fetcher, self.store, self._missing)
        self.calls = Calls(
            self.send, session, token, self.fetcher,
            lambda call: self.resolved.append(call), lambda keys: self.want(keys), self.dropped.extend,
        )  # fmt: skip

    def authorize(self, token: str) -> None:
        """The cluster token, found late or changed."""
        self.store.token = self.calls.token = token
        self.fetcher.authorize(token)

    def want(self, keys: Sequence[Key]) -> list[Entry]:
        """Join keys that exist; one reference each."""
        raise NotImplementedError

    def _map(self, command: Map) -> None:
        self.commands.append(command)

    # --- parents -----------------------------------------------------------------------------------

    def _pin(self, entry: Entry, learned: bool = False) -> bool:
        """Tie an entry to its parents. False: it has ended already, because one of them did."""
        assert entry.row is not None
        parents = []
        for key in entry.row[2]:
            parent = self.entries.get(key)
            if parent is None:
                why = f": {self.cancelled[key]}" if key in self.cancelled else UNHELD
                self._end(entry, CANCELLED, f"depends on {key}{why}")
                return False
            if parent.status == ERROR and not parent.gen and not learned:  # failed under a broker that is gone
                self._end(entry, ERROR, parent.outcome, known=True)  # stays, for what will depend on it in turn
                return False
            parents.append(parent)
        entry.parents = tuple(parents)
        for parent in parents:
            parent.pins += 1
        return True

    def _tell(self, entries: Iterable[Entry], force: bool = False) -> list[Entry]:
        """Queue these and their lineage for a broker that was not told of them; keys that it is to be asked for.

        ``force``: those given in any case.
        """
        wanted = []
        for entry in self._untold(entries, force):
            if entry.work is not None:
                self.queue.append(entry)
                if not entry.refs:
                    self.claims[entry] = m.SPEC if self.claims.get(entry, m.SPEC) in (m.SPEC, m.TOLD) else m.ANY_SPEC
            elif self.store.get(entry.key) is None:
                wanted.append(entry)
        return wanted

    def _tell_again(self, entries: list[Entry]) -> list[Entry]:
        """The same for some that the broker lacks, and with them maybe what they are made of."""
        self.inputs = None
        stack = list(entries)
        while stack:
            for parent in stack.pop().parents:
                lacks = parent.value_here() or (parent.status == PENDING and parent.work is not None)
                if parent.told and not parent.gen and lacks:
                    parent.told = 0
                    stack.append(parent)
        return self._tell(entries, force=True)

    def _untold(self, entries: Iterable[Entry], force: bool = False) -> list[Entry]:
        """These and the lineage that they need, parents first, as far as this broker was not told of them.

        ``force``: those given in any case.
        """
        order: list[Entry] = []
        seen: dict[int, None] = {}
        stack = [(entry, False) for entry in entries][::-1]
        given = len(stack) if force else 0
        while stack:
            entry, ready = stack.pop()
            if ready:
                order.append(entry)
            elif id(entry) not in seen and (len(stack) < given or entry.told != self.epoch):
                seen[id(entry)] = None
                stack.append((entry, True))
                stack += [(parent, False) for parent in entry.parents if parent.status not in (ERROR, CANCELLED)]
        return order

    def _learn(self, message: m.Specs, now: float) -> None:
        """How keys that others have submitted are computed: from now on they are to us as if we had."""
        functions = {fn: (name, blob) for fn, name, blob in message.functions}
        works: dict[tuple[bytes, tuple[Any, ...]], Work] = {}
        made = []
        for key, fn, args, deps, options in message.rows:
            entry = self.entries.get(key)
            if entry is None:
                entry = self.entries[key] = Entry(key, None, None)
                entry.told = self.epoch
                made.append(entry)
                if not fn:
                    self.imports[key] = options[0] if options else 0
            if fn in functions and entry.work is None and entry.row is None:
                entry.work = works.setdefault((fn, options), Work(fn, *functions[fn], options, True))
                entry.row = (key, args, deps)
                self.imports.pop(key, None)
                self._pin(entry, learned=True)
        for entry in reversed(made):
            if not entry.pins and not entry.refs and self.entries.get(entry.key) is entry:  # let go of meanwhile
                self._unwanted(entry, [])

    # --- letting go --------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Futures are gone: release what no other future holds. A million of them takes many turns, no faster than the
        broker does its part, lest later tasks wait behind all of that."""
        dropped = self.dropped
        entries = self.entries
        rows: list[tuple[Key, int]] = []
        count = len(dropped)
        self.dropping = count > limits.PACKET_RECORDS
        for _ in range(limits.PACKET_RECORDS if self.dropping else count):
            entry = dropped.popleft()
            entry.refs -= 1
            if entry.refs:
                continue
            if entry.pins or entry.parents or entry.load or entry.work is None or not self._unique(entry):
                self._unwanted(entry, rows)
            else:  # the same, for the most common case
                key = entry.key
                if entry.gen or entry.was:
                    rows.append((key, entry.gen or entry.was))
                    entry.gen = entry.was = 0
                if entries.get(key) is entry:
                    del entries[key]
                    if self.again:
                        self.again.pop(key, None)
                entry.status = CANCELLED
        if rows:
            self._send_release(rows)

    def _release_spent(self, now: float) -> None:
        """What only submitted tasks depend on: the broker keeps it as long as they need it.

        A task that is made of something else as well, which the broker does not know yet, is submitted once more. Data,
        which nobody can compute again, stays until then; at a successor so does what may be finished.
        """
        spent, self.spent = self.spent, []
        lazily = (m.SPEC, m.ANY_SPEC)
        self._want([entry for entry in spent if entry.refs and entry.gen and self.claims.get(entry) in lazily])
        if not spent and (not self.parting or self.leaving or self.again_at < float("inf")):
            return
        stays = now < self.patient_until
        inputs = self._inputs()
        self._let_go([entry for entry in spent if not stays and entry.work is not None and entry not in inputs])
        self.parting += [entry for entry in spent if stays or entry.work is None or entry in inputs]
        if self.parting and not self.leaving:
            parting = dict.fromkeys(self.parting)
            self.parting = [entry for entry in parting if inputs.get(entry)]
            if len(self.parting) < len(parting):
                self.req += 1
                self.leaving[self.req] = [entry for entry in parting if not inputs.get(entry)]
                self.send(CONTROL, m.Ask(self.req, "fence", None))

    def _trim_claims(self) -> None:
        """Nothing is claimed for longer than a successor is patient, but what had been finished and is refused."""
        self.claims = {e: claim for e, claim in self.claims.items() if claim >= 0 and e.key in self.again}
        self.claimed = len(self.claims)

    def _inputs(self) -> dict[Entry, bool]:
        """What refused tasks are made of, as far back as no future is held: whether one is still to be said again."""
        if self.inputs is None or not self.again:
            inputs = self.inputs = {}
            stack = [(p, at < float("inf")) for key, (at, _) in self.again.items() for p in self.entries[key].parents]
            while stack:
                entry, unsaid = stack.pop()
                if entry not in inputs or (unsaid and not inputs[entry]):
                    inputs[entry] = unsaid
                    if not entry.refs:
                        stack += [(parent, unsaid) for parent in entry.parents]
        return self.inputs

    def _leave(self, req: int) -> None:
        """The broker has taken in, or refused, what depended on these when it was asked."""
        newer = dict.fromkeys((*self.spent, *self.parting))  # have been needed again
        entries = [entry for entry in self.leaving.pop(req) if entry not in newer]
        inputs = self._inputs()
        self.parting += [entry for entry in entries if self.queue or inputs.get(entry)]
        self._let_go([entry for entry in entries if not (self.queue or inputs.get(entry))])

    def _let_go(self, entries: list[Entry]) -> None:
        rows: list[tuple[Key, int]] = []
        for entry in entries:
            if entry.gen and not entry.refs and entry.status != CANCELLED:
                self._release(entry, rows)
                if entry.status == FINISHED:
                    entry.status, entry.outcome, entry.heard = PENDING, None, True
        if rows:
            self._send_release(rows)

    def _unwanted(self, entry: Entry, rows: list[tuple[Key, int]]) -> None:
        """No future holds it. Specs stay while others depend on them, and so does data that this client holds."""
        if entry.pins:
            if entry.gen and (entry.work is not None or self.store.get(entry.key) is None):
                self.spent.append(entry)
            return
        stack = [entry]
        while stack:
            entry = stack.pop()
            if self.entries.get(entry.key) is entry:
                del self.entries[entry.key]
                self.again.pop(entry.key, None)
                if entry.work is None:
                    self.placing.pop(entry.key, None)
                    self.imports.pop(entry.key, None)
                    if not entry.gen and entry.row is not None:  # the broker never heard of it
                        self.store.drop(entry.key, 0.0)
            if entry.gen or entry.was:
                self._release(entry, rows)
            self._land(entry)  # it may be among those that are just being submitted
            entry.status = CANCELLED  # for the queue and whoever still looks at it
            for parent in entry.parents:
                parent.pins -= 1
                if not parent.pins and not parent.refs:
                    stack.append(parent)
            entry.parents = ()

    def _send_release(self, rows: list[tuple[Key, int]]) -> None:
        self.send(CONTROL, m.Release(tuple(rows)))
        if self.unfenced:
            keys, self.unfenced = tuple(self.unfenced), []
            self._fence(keys)

    def _release(self, entry: Entry, rows: list[tuple[Key, int]]) -> None:
        rows.append((entry.key, entry.gen or entry.was))
        entry.gen = entry.was = 0
        self._land(entry)
        if entry.work is not None and not self._unique(entry):
            self.unfenced.append(entry.key)
        if entry.work is None and entry.status == PENDING:
            self.unfenced.append(entry.key)  # an answer to the want may be on its way, that it is unknown, or placed

    def _unique(self, entry: Entry) -> bool:
        """Whether nothing else ever had this key: it says what is computed, or was made by this client."""
        return (entry.work is not None and entry.work.named) or self.session[2:] in entry.key

    def _land(self, entry: Entry) -> None:
        """It no longer counts in the submission window."""
        if entry.load:
            self.flying -= 1
            self.flying_bytes -= entry.load
            entry.load = 0

    def _end(self, entry: Entry, status: str, outcome: Any, *, known: bool = False, keep: bool = False) -> None:
        """The entry has failed or is cancelled. ``known``: it stays joinable, as the broker still knows it."""
        fetched = entry.status == FINISHED
        self._land(entry)
        entry.status, entry.outcome = status, outcome
        if entry.waiters is not None:
            self.resolved.append(entry)
        if fetched:
            self.collections.unsettled(entry, 0.0)
        if self.calls.targets:
            self.calls.ended(entry.key, status, outcome)
        if known:
            return
        if status == CANCELLED:
            if len(self.cancelled) >= limits.CANCELLED_KEPT:
                del self.cancelled[next(iter(self.cancelled))]
            self.cancelled[entry.key] = outcome
        rows: list[tuple[Key, int]] = [(entry.key, entry.was)] if entry.was else []
        entry.gen = entry.was = 0
        if self.entries.get(entry.key) is entry:
            del self.entries[entry.key]
            self.again.pop(entry.key, None)
            if entry.work is None:
                self.placing.pop(entry.key, None)
                self.imports.pop(entry.key, None)
                if not keep:
                    self.store.drop(entry.key, 0.0)
        parents, entry.parents = entry.parents, ()
        for parent in parents:
            parent.pins -= 1
            if not parent.pins and not parent.refs:
                self._unwanted(parent, rows)
        if rows:
            self._send_release(rows)

    @staticmethod
    def _sought(entry: Entry) -> bool:
        """Whether it is made of something of others that the broker was asked for and has not denied yet."""
        return any(part.status == PENDING and part.work is None and part.gen for part in _parts(entry))

    @staticmethod
    def _in_vain(entry: Entry) -> bool:
        """Whether something that it is made of was sought, and given up."""
        return any(part.status == CANCELLED and part.outcome.startswith(UNKNOWN) for part in _parts(entry))

    def _lacking(self, entry: Entry, reason: str) -> str:
        """What this client knows, and the broker does not, of a key that nobody has: added to the reason."""
        if not reason.endswith((UNKNOWN, UNHELD)):
            return ""
        mine = [lacking for lacking in (entry, *entry.parents) if lacking.work is None and lacking.row is not None]
        lost = any(data is entry or data.key[:80] in reason for data in mine)
        return (": scattered data lost" if lost else "") + (f": {GIVEN_UP}" if self.given_up else "")

    def _missing(self, entry: Entry, holders: tuple[str, ...]) -> None:
        """It cannot be had from where it was said to be: it is pending until the broker knows better."""
        entry.status, entry.outcome = PENDING, None
        if entry.gen:
            self.send(CONTROL, m.Missing(((entry.key, holders),)))

    def _want(self, entries: list[Entry]) -> None:
        if self.resume_at:
            self.later += entries
        elif entries and self.epoch:
            self.gen += 1
            for entry in entries:
                entry.gen, entry.told = self.gen, self.epoch
            claims = [(e.key, e.content) for e in entries if e.content is not None and self.store.get(e.key) is None]
            if self.imports:  # who has made them may want them no more
                claims += [(e.key, self.imports[e.key]) for e in entries if e.key in self.imports]
            values = [entry.value_row() for entry in entries if entry.work is None and entry.value_here()]
            if claims or values:
                self.send(CONTROL, m.Claim(tuple(claims), tuple(values)))
            self.send(CONTROL, m.Want(self.gen, tuple([entry.key for entry in entries])))

    def _fence(self, keys: tuple[Key, ...]) -> None:
        """What the broker says of these keys until it answers is about wants that are over."""
        self.req += 1
        self.fenced[self.req] = keys
        for key in keys:
            self.fences[key] = self.req
        self.send(CONTROL, m.Ask(self.req, "fence", None))


def _parts(entry: Entry) -> Iterator[Entry]:
    """What it is made of, seen through what is pending."""
    stack, seen = list(entry.parents), dict.fromkeys(entry.parents)
    while stack:
        part = stack.pop()
        yield part
        if part.status == PENDING:
            new = [other for other in part.parents if other not in seen]
            seen.update(dict.fromkeys(new))
            stack += new


def _nothing_to_freeze(key: Key, attempt: int) -> None:
    """A client's store holds bytes only."""
