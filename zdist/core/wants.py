"""The outgoing half of the client ledger: what is wanted, under which generation, in what order. PURE."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from zdist import limits
from zdist.core.entry import CANCELLED, ERROR, FINISHED, PENDING, UNKNOWN, Entry, Row, Work
from zdist.core.lane import Lanes
from zdist.core.machine import CONTROL
from zdist.core.store import Blob
from zdist.errors import KeyConflict
from zdist.protocol import messages as m
from zdist.protocol.messages import Key

__all__ = ["Wants"]

_OVER: Final = (CANCELLED, ERROR)
_LAZILY: Final = (m.SPEC, m.ANY_SPEC)  # claims of entries that the broker does not start


class Wants(Lanes):
    """What the user of the client does, and the order and generations in which the broker is told.

    Each Submit, Want and Hold has a generation of its own; a Release names the generation that it takes back, so it
    never takes back a newer want of the same key, however they pass each other.
    """

    # --- what the client's user does ---------------------------------------------------------------

    def submit(self, work: Work, rows: Iterable[Row], *, own: bool = False) -> list[Entry]:
        """One entry per row, each with a reference for the caller's future; parents must have been submitted before.

        ``own``: a single row, whose key was made for it and is known to nobody else.
        Raises KeyConflict if a key is alive with another function, other arguments or dependencies.
        """
        entries = self.entries
        queue = self.queue
        made: list[Entry] = []
        for row in rows:
            key = row[0]
            entry = entries.get(key)
            if entry is not None and not self._joins(entry, work, row):
                while self.dropped:  # its last future may be gone already
                    self._drain()
                if entries.get(key) is entry:
                    self.dropped.extend(made)
                    other = "data" if entry.work is None else entry.work.name
                    raise KeyConflict(
                        f"key {key!r} is alive for {other!r} and was given again for {work.name!r} or other arguments; "
                        "choose another key or release its futures first"
                    )
                entry = None
            if entry is None:
                entry = entries[key] = Entry(key, work, row)
                if not row[2] or self._pin(entry):
                    queue.append(entry)
            else:
                self._revive(entry)
            entry.refs += 1
            made.append(entry)
        self.lone = made[0] if own else None
        return made

    def join(self, entry: Entry) -> None:
        """One more reference to an entry that is known to be the one meant."""
        self._revive(entry)
        entry.refs += 1

    def _joins(self, entry: Entry, work: Work, row: Row) -> bool:
        """Whether a submission is the one that the entry stands for."""
        if work.named and entry.row is None:  # imported before, and now we learn how it is made
            entry.work, entry.row = work, row
            if self._pin(entry) and (not entry.gen or entry.status == PENDING):  # the broker may not know it either
                entry.was, entry.gen = entry.gen, 0
                self.queue.append(entry)
        known = entry.work
        return known is not None and ((work.named and known.named) or (known.fn == work.fn and entry.row == row))

    def _revive(self, entry: Entry) -> bool:
        """Lineage that no future held is wanted again: the broker has to be told."""
        if entry.gen and not entry.refs and entry.work is not None and entry.status == PENDING:
            self._want([entry])  # the broker may have it as what others were made of only
        if entry.gen or entry.refs or entry.status == ERROR:
            return False
        if entry.status != FINISHED:  # else under a broker that is gone, and the value is here
            entry.status, entry.outcome = PENDING, None
        if entry.work is not None:
            self._want(self._tell([entry], force=True))
        return True

    def want(self, keys: Sequence[Key]) -> list[Entry]:
        """Join keys that exist somewhere in the cluster (imported futures); one reference each."""
        made, new = [], []
        for key in keys:
            entry = self.entries.get(key)
            if entry is None:
                entry = self.entries[key] = Entry(key, None, None)
                new.append(entry)
            elif self._revive(entry) and entry.work is None:
                new.append(entry)
            entry.refs += 1
            made.append(entry)
        self._want(new)
        return made

    def data(self, key: Key, attempt: int) -> Entry | None:
        """A further reference to data that is alive under this key, None if there is none.

        ``attempt`` stands for its content. Raises KeyConflict if the key stands for something else.
        """
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.row is not None:
            other = entry.content != attempt
        else:  # had from another client
            other = entry.status == FINISHED and entry.outcome[1] != attempt
        if other:
            raise KeyConflict(f"key {key!r} is alive for other data or a task; choose another or release its futures")
        if not entry.refs and not entry.gen and self.store.get(key) is None:
            return None  # alive only as what others were made of: nobody has its bytes any more
        entry.refs += 1
        return entry

    def hold(
        self,
        blobs: Iterable[tuple[Key, Blob, str]],
        *,
        finished: bool,
        refs: Sequence[Key] = (),
        attempt: int = 0,
    ) -> list[Entry]:
        """Keep data for the cluster: key, bytes, type name; one reference each. A key that is alive is joined.

        ``finished``: it counts as a result at once (large arguments); else when `place` has copied it to workers.
        ``refs``: keys of futures inside the data, which stay alive as long as it does. ``attempt``: of their content.
        """
        made, new = [], []
        for key, blob, kind in blobs:
            entry = self.entries.get(key)
            fresh = entry is None
            if entry is None:
                entry = self.entries[key] = Entry(key, None, (key, attempt.to_bytes(8), tuple(refs)))
                fresh = self._pin(entry)
            elif (
                entry.work is None
                and entry.status == PENDING
                and self.store.get(key) is None
                and (finished or not (entry.refs or entry.gen))
            ):
                fresh = True
                self.again.pop(key, None)
                self.imports.pop(key, None)
            if fresh:
                self.store.drop(key, 0.0)  # bytes that had this name before
                self.store.put_blob(key, attempt, blob, kind)
                new.append((key, attempt, blob.nbytes, kind))
                entry.status, entry.outcome = PENDING, None
                if finished:
                    entry.status = FINISHED
                    entry.outcome = (key, attempt, blob.nbytes, None, (self.session,), kind)
                    if entry.waiters is not None:
                        self.resolved.append(entry)
            entry.refs += 1
            made.append(entry)
        if new and self.epoch:
            asked = tuple([key for key, *_ in new if self.entries[key].gen])
            if asked:  # that nobody has them may be on its way
                self._fence(asked)
            self._hold(new)
        return made

    def _hold(self, rows: list[tuple[Key, int, int, str]]) -> None:
        for start in range(0, len(rows), limits.PACKET_RECORDS):
            part = tuple(rows[start : start + limits.PACKET_RECORDS])
            self.gen += 1
            for key, *_ in part:
                entry = self.entries[key]
                entry.gen, entry.told, entry.sought = self.gen, self.epoch, 0.0
            self.send(CONTROL, m.Hold(self.gen, part))

    def place(self, entries: Iterable[Entry], workers: tuple[str, ...], copies: int) -> None:
        """Copy held keys to workers; their entries finish when that is done. Finished ones are copied on."""
        keys = tuple([entry.key for entry in entries if entry.status in (PENDING, FINISHED)])
        for key in keys:
            self.placing[key] = (workers, copies)
        if keys and self.epoch and not self.resume_at:  # else when the broker knows of them
            self.send(CONTROL, m.Place(keys, workers, copies))

    def cancel(self, entries: Iterable[Entry], force: bool, reason: str = "") -> None:
        """Cancel keys for this client, or with ``force`` for all clients; their futures are cancelled at once."""
        reason = reason or f"cancelled by client {self.name}"
        keys = []
        for entry in entries:
            if entry.status != CANCELLED:
                newer = self.entries.get(entry.key, entry) is not entry  # and this one the broker has not taken
                # others may want it although the broker has not heard of us yet
                if (entry.gen or entry.told or force) and not newer:
                    keys.append(entry.key)
                self._end(entry, CANCELLED, reason, keep=entry.gen > 0 and not force)  # data: others may want it
        if keys:
            self.send(CONTROL, m.Cancel(tuple(keys), force, reason))
            self._fence(tuple(keys))

    def retry(self, entries: Iterable[Entry]) -> None:
        """Failed keys are computed anew; what failed because of them follows."""
        keys = []
        order: dict[Entry, None] = {}
        stack = list(entries)
        while stack:  # what failed before them comes first
            failed = [parent for parent in stack[-1].parents if parent.status == ERROR and parent not in order]
            stack += failed
            if not failed:
                order[stack.pop()] = None
        for entry in order:
            if entry.status == ERROR:
                if entry.gen:
                    entry.status, entry.outcome = PENDING, None
                    keys.append(entry.key)
                elif self.entries.get(entry.key) is not entry and entry.row is not None and entry.row[2]:
                    continue  # it was not taken, and what it was made of may be gone, or its keys mean other things
                elif entry.work is not None and self.entries.setdefault(entry.key, entry) is entry:
                    entry.status, entry.outcome = PENDING, None
                    self.queue.append(entry)
        if keys:
            self.send(CONTROL, m.Retry(tuple(keys)))

    def forget(self, entries: Iterable[Entry]) -> None:
        """Let these tasks run to their end whether or not anybody keeps their futures (fire_and_forget)."""
        for entry in entries:
            work = entry.work
            if entry.status != PENDING or work is None:
                continue
            options = m.Options(*work.options)._replace(forget=True)
            entry.work = Work(work.fn, work.name, work.blob, tuple(options), work.named)
            entry.refs += 1
            waiter = _Dropper(self.dropped)
            if entry.waiters is None:
                entry.waiters = [waiter]
            else:
                entry.waiters.append(waiter)
            if entry.gen:  # the broker has it without the option: say it again
                self._land(entry)
                entry.was, entry.gen = entry.gen, 0
                self.queue.append(entry)

    # --- submitting --------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Submit what the window allows, at most one message's worth of records a turn."""
        if not self.epoch:
            return
        queue = self.queue
        fences = self.fences
        lone, self.lone = self.lone, None
        if lone is not None and not self.flying and len(queue) == 1 and queue[0] is lone and self._go_early(lone):
            queue.clear()
            return
        groups: list[tuple[Work, list[Entry]]] = []  # runs of entries that share a message
        work: Work | None = None
        tasks = size = 0  # of this turn,
        flying = flying_bytes = 0  # and those of them that the broker works on
        least = 0 if self.flying else 1  # one goes in any case
        most = max(least, min(limits.PACKET_RECORDS, self.window[0] - self.flying))
        room = max(least, min(limits.SUBMIT_BYTES, self.window[1] - self.flying_bytes))
        while queue and tasks < most and size < room:
            entry = queue[0]
            if fences and entry.key in fences:
                break
            queue.popleft()
            if entry.gen or entry.load or entry.status in _OVER or (entry.parents and self._orphaned(entry)):
                continue
            if entry.work is not work:
                work = entry.work
                assert work is not None
                groups.append((work, []))
            groups[-1][1].append(entry)
            if entry.status == PENDING:
                load = 1 + m.payload_size(entry.row[1])  # type: ignore[index]
                tasks += 1
                size += load
                if not self.claims or entry.refs or self.claims.get(entry) not in _LAZILY:
                    entry.load = load
                    flying += 1
                    flying_bytes += load
            else:  # finished under a broker that is gone: its value goes along
                tasks += 1
                size += m.payload_size(entry.outcome[3])
        self.flying += flying
        self.flying_bytes += flying_bytes
        for work, entries in groups:
            self._submit(work, entries)

    def _orphaned(self, entry: Entry) -> bool:
        if entry.status == FINISHED or self.claims.get(entry, m.ANY) >= 0:
            return False  # it had been finished, whatever became of what it was made of
        for parent in entry.parents:
            held = entry in self.claims  # maybe, though what it was made of is gone
            if parent.status == CANCELLED and not (held and parent.outcome.startswith(UNKNOWN)):
                self._end(entry, CANCELLED, f"depends on {parent.key}: {parent.outcome}")
                return True
            if parent.status == ERROR and not parent.gen:  # failed under a broker that is gone
                self._end(entry, ERROR, parent.outcome, known=True)
                return True
        return False

    def _may_submit(self) -> bool:
        if not self.queue or not self.epoch or self.resume_at:
            return False
        if self.flying and (self.flying >= self.window[0] or self.flying_bytes >= self.window[1]):
            return False
        return not self.fences or self.queue[0].key not in self.fences

    def _submit(self, work: Work, entries: list[Entry]) -> None:
        """One Submit for entries of one function, under a generation of its own."""
        self.gen = gen = self.gen + 1
        epoch = self.epoch
        rows: list[Any] = []
        claims: list[tuple[Key, int]] = []
        values: list[Any] = []
        for entry in entries:
            if entry.status == CANCELLED:  # while the others were collected
                self._land(entry)
                continue
            if entry.gen:
                continue  # queued by each of several that depend on it
            entry.gen, entry.told = gen, epoch
            rows.append(self._row(entry) if entry.parents and (self.claims or entry.status == FINISHED) else entry.row)
            if entry.status == FINISHED:  # under a broker that is gone
                values.append(entry.value_row())
            elif self.claims and (claim := self.claims.get(entry)) is not None:
                if claim == m.ANY_SPEC and entry.refs:
                    claim = m.ANY
                if claim != m.SPEC or not entry.refs:
                    claims.append((entry.key, claim))
            if not entry.refs:  # only others depend on it
                self.spent.append(entry)
        if not rows:
            return
        self._define(work)
        if claims or values:
            self.send(CONTROL, m.Claim(tuple(claims), tuple(values)))
        self.send(CONTROL, m.Submit(work.fn, work.named, gen, work.options, tuple(rows)))

    def _row(self, entry: Entry) -> Row:
        """What it was made of may be gone, and its key stand for something else by now: that is named otherwise."""
        key, args, needs = entry.row  # type: ignore[misc]
        other = [part.key for part in entry.parents if self.entries.get(part.key, part) is not part]
        return (key, args, tuple([f"{need[:200]}-before-{self.session}" if need in other else need for need in needs]))

    def _define(self, work: Work) -> None:
        """The broker is to know the function."""
        if work.fn not in self.defined:
            self.defined.add(work.fn)
            self.send(CONTROL, m.Define(work.fn, work.name, work.blob))
        self.works[work.fn] = work


class _Dropper:
    """Waiter that gives up a reference when its entry is settled."""

    __slots__ = ("dropped",)

    def __init__(self, dropped: deque[Entry]) -> None:
        self.dropped = dropped

    def resolved(self, entry: Entry, /) -> None:
        self.dropped.append(entry)
