"""A broker that knows nothing of this session is told everything again. PURE."""

from __future__ import annotations

from typing import Final

from zdist import limits
from zdist.core.entry import CANCELLED, FINISHED, PENDING, UNHELD, UNKNOWN, Entry
from zdist.core.machine import CONTROL
from zdist.core.wants import Wants
from zdist.protocol import messages as m
from zdist.protocol.messages import Key

__all__ = ["Replay"]

ASK_AGAIN: Final = 0.1  # seconds before a want for an unknown key is repeated; doubles
DOUBLINGS: Final = 5  # so often at most
LONGEST: Final = 60.0  # seconds that a broker may ask for
ENOUGH: Final = (
    limits.SOUGHT - limits.RECOVERY
)  # seconds of being sought by brokers in a row, as one that lives on does


class Replay(Wants):
    """The part of the ledger for brokers that come anew."""

    def _replay(self, now: float, wait: float | None) -> None:
        """Announce everything: data held here at once; imported keys, then specs, parents first, after ``wait``
        seconds, in which workers tell a broker that has taken another's place what they hold; None: it has not."""
        if now >= self.patient_until and not self.queue:
            self._trim_claims()
        for table in (self.defined, self.fences, self.fenced, self.queue, self.again, self.spent):
            table.clear()
        self.parting.clear()
        self.leaving.clear()
        self.again_at = float("inf")
        self._forget_lane()
        self.flying = self.flying_bytes = 0
        self.resume_at = now + min(max(wait or 0.0, 0.0), LONGEST)
        self.patient_until = 0.0 if wait is None else now + limits.SOUGHT
        self.later = self._open()
        self._announce_held()
        self.calls.anew(self.resume_at)
        self._wait_for_workers(now)

    def _open(self) -> list[Entry]:
        """Queue what is to be submitted; keys to be asked for, which others submit or workers hold."""
        known, self.claims = self.claims, {}
        imports, self.imports = self.imports, {}
        for entry in self.entries.values():
            if entry.status == PENDING and entry.work is not None:
                if known.get(entry, 0) > 0:  # and the broker died before it was told, or had done its part
                    self.claims[entry] = known[entry]
                elif entry.told or entry in known:
                    self.claims[entry] = m.ANY if entry.heard or self._unique(entry) else m.TOLD
            entry.gen = entry.load = entry.told = entry.was = 0  # also if it is the same broker, which had given us up
            if entry.status == FINISHED:
                entry.sought = 0.0
            own = entry.work is None and self.store.get(entry.key) is not None
            if entry.status == FINISHED and entry.outcome[3] is None and not own:
                self.claims[entry] = imports[entry.key] = entry.outcome[1]
                entry.status, entry.outcome = PENDING, None
                self.collections.unsettled(entry, 0.0)
        self.imports = {
            entry.key: imports[entry.key]
            for entry in self.entries.values()
            if entry.key in imports and entry.status == PENDING and entry.work is None and not entry.row
        }
        held = [entry for entry in self.entries.values() if entry.refs and entry.status in (PENDING, FINISHED)]
        held.sort(key=lambda entry: entry.status == FINISHED)  # what is here others may ask for, but it can wait
        return self._tell(held)

    def _announce_held(self) -> None:
        held: list[tuple[Key, int, int, str]] = []
        for entry in self.entries.values():
            mine = self.store.get(entry.key) if entry.work is None else None
            if mine is not None:
                held.append((entry.key, mine.attempt, mine.nbytes, mine.type))
                if entry.row is None and entry.status == PENDING:  # let go of here, and had again from others
                    self.imports.pop(entry.key, None)
                    entry.status = FINISHED
                    entry.outcome = (entry.key, mine.attempt, mine.nbytes, None, (self.session,), mine.type)
                    if entry.waiters is not None:
                        self.resolved.append(entry)
        store = self.store.entries
        kept = [(key, e.attempt, e.nbytes, e.type) for key, e in store.items() if key not in self.entries]
        if self.patient_until and kept:  # let go of here, but others may want it
            for start in range(0, len(kept), limits.PACKET_RECORDS):
                self.send(CONTROL, m.Held(tuple(kept[start : start + limits.PACKET_RECORDS])))
        else:
            for key, *_ in kept:
                self.store.drop(key, 0.0)
        if held:
            self._hold(held)

    def _wait_for_workers(self, now: float) -> None:
        """Go on with what waits for them, once they have had their time."""
        if now < self.resume_at:
            return
        self.resume_at = 0.0
        later, self.later = [entry for entry in self.later if self.entries.get(entry.key) is entry], []
        self._want([entry for entry in later if entry.work is None])
        self.queue.extend([entry for entry in later if entry.work is not None])  # by now it is known how
        places: dict[tuple[tuple[str, ...], int], list[Key]] = {}
        for key, place in self.placing.items():
            places.setdefault(place, []).append(key)
        for (workers, copies), keys in places.items():
            self.send(CONTROL, m.Place(tuple(keys), workers, copies))

    def _current(self, key: Key) -> Entry | None:
        """The entry that news of a key is about; None if it is about a want that is over."""
        entry = self.entries.get(key)
        return None if entry is None or not entry.gen or key in self.fences else entry

    def _unheard(self, message: m.Unheard, now: float) -> None:
        """A successor seeks these. In the end it says whether anybody has them; if none lives that long, the time for
        which all have sought them decides."""
        rows = []
        for key, gen in message.rows:
            entry = self._current(key)
            if entry is not None and entry.gen == gen and entry.status == PENDING:
                entry.sought += limits.SOUGHT_TOLD
                if entry.sought >= ENOUGH:
                    rows.append((key, gen))
                    self._end(entry, CANCELLED, UNKNOWN + self._lacking(entry, UNKNOWN))
        if rows:
            self._send_release(rows)

    def _early(self, entry: Entry, reason: str) -> bool:
        """Whether another client may only just be submitting the key, or one that it depends on; or this one is to,
        which has asked for it before it knew how it is computed; or a worker may bring it, as it had been finished."""
        parents = any(parent.status in (PENDING, FINISHED) for parent in entry.parents)
        lacks = reason.endswith(UNHELD) and (parents or self.claims.get(entry, m.SPEC) >= 0)
        return entry.status == PENDING and (lacks or reason == UNKNOWN)

    def _once_more(self, entry: Entry, now: float) -> bool:
        """What was submitted elsewhere may have come here before it reached the broker: try a few times, and as long as
        the broker seeks it."""
        times = self.again.get(entry.key, (0.0, 0))[1]
        when = now + ASK_AGAIN * 2 ** min(times, DOUBLINGS)
        self.again[entry.key] = (when, times + 1)
        self.again_at = min(self.again_at, when)
        self.inputs = None
        if now < self.patient_until:
            entry.sought += ASK_AGAIN * 2 ** min(times - 1, DOUBLINGS) if times else 0.0
            if entry.sought < ENOUGH:
                return True
        elif times < limits.LOST_RETRIES:
            return True
        return self._sought(entry) and not self._in_vain(entry)
