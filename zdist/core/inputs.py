"""What a worker's tasks need and do not find here: fetched, located, and handed over when it comes. PURE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zdist.core.fetch import Fetcher
from zdist.core.links import SHM
from zdist.core.machine import CONTROL, Route
from zdist.core.store import Entry, Pieces, Store
from zdist.core.task import Input, Task
from zdist.limits import MAX_REASON, PACKET_RECORDS, SPILL_MIN
from zdist.protocol.messages import (
    Attempt,
    Held,
    Key,
    Locate,
    Message,
    Missing,
    NoCopy,
    Payload,
    Replicate,
    Session,
)

__all__ = ["Dependency", "Inputs"]

Dependency = tuple[Key, int, tuple[Session, ...], Payload | None]

TICKET: Final = 0  # the fetcher's ticket for all that tasks and replicas need
ANY_ATTEMPT: Final = -1


class Inputs:
    """The table of dependencies that are not held. ``release(tasks)`` is called with tasks that one of them no longer
    blocks. ``held``, ``missing`` and ``stuck`` are what `tell` is to tell the broker."""

    def __init__(
        self, session: Session, store: Store, fetcher: Fetcher, release: Callable[[dict[Key, Task]], None]
    ) -> None:
        self.session = session
        self.store = store
        self.fetcher = fetcher
        self.release = release
        self.table: dict[Key, Input] = {}
        self.held: list[tuple[Key, Attempt, int, str]] = []
        self.missing: dict[Key, tuple[Session, ...]] = {}
        self.stuck: list[tuple[Key, str]] = []  # copies that nobody can have
        self.stale: dict[Key, tuple[int, int]] = {}  # forgotten in this turn: what had come, and failed, by then

    def tell(self, send: Callable[[Route, Message], None]) -> None:
        """Tell the broker what is held now, and what could not be had."""
        for start in range(0, len(self.held), PACKET_RECORDS):
            send(CONTROL, Held(tuple(self.held[start : start + PACKET_RECORDS])))
        if self.missing:
            send(CONTROL, Missing(tuple(self.missing.items())))
        if self.stuck:
            send(CONTROL, NoCopy(tuple(self.stuck)))
        self._forget_news()

    def _forget_news(self) -> None:
        self.held.clear()
        self.missing.clear()
        self.stuck.clear()

    def need(self, task: Task, deps: tuple[Dependency, ...], now: float) -> None:
        """Find a task's dependencies; what is neither here nor came along blocks it."""
        inputs = task.inputs = {}
        for key, nbytes, holders, payload in deps:
            entry = self.store.get(key)
            if entry is not None:
                inputs[key] = entry
                if entry.nbytes >= SPILL_MIN:
                    self.store.touch(entry)
                continue
            source = self.table.get(key)
            if source is None:
                source = self.table[key] = Input(key)
            if key not in inputs:
                inputs[key] = source
                source.users += 1
            if payload is not None:
                self._came(source, payload, now)
            elif source.payload is None and not source.error and task.key not in source.waiters:
                task.blockers += 1
                source.waiters[task.key] = task
                self._fetch(key, ANY_ATTEMPT, nbytes, holders, task.priority, now)

    def unneed(self, task: Task, now: float) -> None:
        """The task is over, or is not to be."""
        for source in task.inputs.values():
            if type(source) is Input:
                source.users -= 1
                source.waiters.pop(task.key, None)
                self._unneeded(source, now)

    def _unneeded(self, source: Input, now: float) -> None:
        """Forget an input that no task names any more, unless a copy was asked for."""
        if not source.users and not source.replica and self.table.get(source.key) is source:
            del self.table[source.key]
            if self.fetcher.wants(source.key):
                self.fetcher.drop(TICKET, (source.key,), now)
            else:  # it may be needed again in this turn, and be other data by then
                self.stale[source.key] = len(self.fetcher.arrived), len(self.fetcher.failed)

    def _fetch(
        self, key: Key, attempt: Attempt, nbytes: int, holders: tuple[Session, ...], priority: int, now: float
    ) -> None:
        """Ask for a key, or tell a transfer under way where it is; without holders wait for a Locate."""
        others = holders
        if self.session in holders:  # the broker is wrong about this worker
            others = tuple(holder for holder in holders if holder != self.session)
            self.missing[key] = (self.session,)
        if self.fetcher.wants(key):
            if others:
                self.fetcher.relocate(key, others, nbytes, now, attempt)
        elif others:
            self.fetcher.fetch(TICKET, ((key, attempt, nbytes, others),), now=now, priority=priority)

    def _came(self, source: Input, payload: Payload, now: float) -> None:
        """The bytes of a dependency came with a message."""
        if source.payload is None:
            source.payload = payload
            source.error = ""
            if not source.replica and self.fetcher.wants(source.key):
                self.fetcher.drop(TICKET, (source.key,), now)
            self.release(source.waiters)

    def stored(self, entry: Entry, now: float) -> None:
        """The key is held now; call it for each key that comes to be held, if the table names it."""
        source = self.table.pop(entry.key, None)
        if source is not None:
            if self.fetcher.wants(entry.key):  # computed here meanwhile
                self.fetcher.drop(TICKET, (entry.key,), now)
            source.replica = False
            for task in source.waiters.values():
                task.inputs[entry.key] = entry
                source.users -= 1
            self.release(source.waiters)

    def drain(self, now: float) -> None:
        """Take over what the fetcher has brought, and what it could not have."""
        fetcher, stale = self.fetcher, self.stale
        arrived, failed = fetcher.arrived[:], fetcher.failed[:]
        self.stale = {}
        fetcher.arrived.clear()
        fetcher.failed.clear()
        fetcher.warnings.clear()
        for place, (_tickets, key, attempt, data, nbytes, path) in enumerate(arrived):
            if key not in self.table or (key in stale and place < stale[key][0]):
                continue  # computed here in the same turn, or forgotten
            entry = self.store.get(key) or self.store.put_blob(key, attempt, data if path == SHM else Pieces(data), "")
            self.held.append((key, entry.attempt, nbytes, entry.type))
            self.stored(entry, now)
        for place, (_tickets, key, code, text, holders) in enumerate(failed):
            source = self.table.get(key)
            if source is None or (source.payload is not None and not source.replica):
                continue
            if key in stale and place < stale[key][1]:
                continue
            if code == "unpicklable":
                if source.replica:
                    self.stuck.append((key, text[:MAX_REASON]))
                source.replica = False
                source.error = text
                self.release(source.waiters)
                self._unneeded(source, now)
            else:
                self.missing[key] = holders
                self._no_copy(source, now)

    def replicate(self, message: Replicate, now: float) -> None:
        """Fetch copies for the broker's sake."""
        for key, attempt, nbytes, holders in message.rows:
            entry = self.store.get(key)
            if entry is not None:
                self.held.append((key, entry.attempt, entry.nbytes, entry.type))
                continue
            source = self.table.get(key)
            if source is None:
                source = self.table[key] = Input(key)
            source.replica = True
            self._fetch(key, attempt, nbytes, holders, 0, now)
            if not self.fetcher.wants(key):
                self.missing.setdefault(key, ())
                self._no_copy(source, now)

    def _no_copy(self, source: Input, now: float) -> None:
        """A copy is not asked for any more. After Missing the broker gives a new order if need be."""
        if source.replica:
            source.replica = False
            self._unneeded(source, now)

    def locate(self, message: Locate, now: float) -> None:
        """The broker knows more of where something is."""
        for key, nbytes, holders, payload in message.rows:
            source = self.table.get(key)
            if source is None or (source.payload is not None and not source.replica):
                continue
            if payload is not None:
                self._came(source, payload, now)
            if holders:
                priority = min((task.priority for task in source.waiters.values()), default=0)
                if source.waiters or source.replica:
                    self._fetch(key, ANY_ATTEMPT, nbytes, holders, priority, now)
            else:
                self.fetcher.relocate(key, (), nbytes, now)
                if source.replica:  # the data may be lost for good, and who ordered the copy may have forgotten it
                    self.missing.setdefault(key, ())
                    self._no_copy(source, now)

    def unreplicate(self, keys: tuple[Key, ...], now: float) -> None:
        """Copies are no longer asked for."""
        for key in keys:
            source = self.table.get(key)
            if source is not None:
                self._no_copy(source, now)

    def clear(self, now: float) -> None:
        """Forget all: the orders came from a broker that is no more."""
        self.table.clear()
        self._forget_news()
        self.fetcher.abandon(TICKET, now)
