"""The ledger against a model broker: any order of calls, news, losses and restarts keeps its promises."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from ledger_model import ModelBroker

from zdist.core.entry import CANCELLED, FINISHED, PENDING, Entry, Work
from zdist.core.ledger import Ledger
from zdist.core.store import Pieces
from zdist.errors import KeyConflict
from zdist.protocol.fields import content_attempt


class Counted:
    """Waiter that must be told once, of an entry that is done."""

    def __init__(self) -> None:
        self.times = 0

    def resolved(self, entry: Entry, /) -> None:
        self.times += 1


class LedgerMachine(RuleBasedStateMachine):
    futures: Bundle[Any] = Bundle("futures")  # entries, each with one reference of ours

    @initialize()
    def start(self) -> None:
        self.ledger = Ledger("c-1", "token", {"name": "test"})
        self.broker = ModelBroker(self.ledger)
        self.works = {
            (fn, named): Work(fn, fn.decode(), b"code", (), named) for fn in (b"f", b"g") for named in (True, False)
        }
        self.waiters: list[tuple[Entry, Counted]] = []
        self.counter = 0

    # --- the user ----------------------------------------------------------------------------------

    @rule(target=futures, fn=st.sampled_from([b"f", b"g"]), parents=st.lists(futures, max_size=3, unique_by=id))
    def submit_unique(self, fn: bytes, parents: list[Entry]) -> Entry:
        self.counter += 1
        deps = tuple(dict.fromkeys(parent.key for parent in parents))
        self.ledger.ask_after = 1  # lone tasks are rarer here than anywhere else
        row = (f"{fn.decode()}-{self.counter}", b"args", deps)
        (entry,) = self.ledger.submit(self.works[fn, True], [row], own=True)
        return entry

    @rule(target=futures, n=st.integers(2, 6), lost=st.sampled_from([False, False, False, True]))
    def loop(self, n: int, lost: bool) -> Any:
        """Submit one, wait for it, again."""
        self.broker.settle()
        made = []
        for _ in range(n):
            made.append(self.submit_unique(b"f", []))
            self.broker.flush()
            if self.broker.early:
                self.broker.run_early(lost)
            else:
                self.broker.settle()
        return multiple(*made)

    @rule(target=futures, key=st.sampled_from("abc"), fn=st.sampled_from([b"f", b"g"]))
    def submit_explicit(self, key: str, fn: bytes) -> Any:
        """A few keys of one's own, used again and again."""
        try:
            (entry,) = self.ledger.submit(self.works[fn, False], [(key, b"args", ())])
        except KeyConflict:
            assert self.ledger.entries[key].work.fn != fn  # type: ignore[union-attr]
            return multiple()
        assert entry.work.fn == fn  # type: ignore[union-attr]
        return entry

    @rule(target=futures, key=st.sampled_from("pq"))
    def submit_pure(self, key: str) -> Entry:
        (entry,) = self.ledger.submit(self.works[b"f", True], [(f"pure-{key}", b"args", ())])
        return entry

    @rule(target=futures)
    def hold(self) -> Entry:
        self.counter += 1
        (entry,) = self.ledger.hold([(f"data-{self.counter}", Pieces([b"bytes"]), "bytes")], finished=True)
        return entry

    @rule(target=futures, key=st.sampled_from("xy"))
    def scatter(self, key: str) -> Any:
        """The same data, again and again."""
        try:
            known = self.ledger.data(key, content_attempt(key))
        except KeyConflict:
            return multiple()
        if known is not None:
            return known
        (entry,) = self.ledger.hold(
            [(key, Pieces([key.encode()]), "bytes")], finished=False, attempt=content_attempt(key)
        )
        self.ledger.place([entry], (), 1)
        return entry

    @rule(target=futures, entry=futures)
    def copy(self, entry: Entry) -> Any:
        if self.ledger.entries.get(entry.key) is not entry:
            return multiple()
        return self.ledger.want([entry.key])[0]

    @rule(entry=consumes(futures))
    def release(self, entry: Entry) -> None:
        self.ledger.dropped.append(entry)

    @rule(entries=st.lists(futures, min_size=1, max_size=2))
    def cancel(self, entries: list[Entry]) -> None:
        self.ledger.cancel(entries, False)
        assert all(entry.status == CANCELLED for entry in entries)

    @rule(entry=futures)
    def retry(self, entry: Entry) -> None:
        self.ledger.retry([entry])

    @rule(entry=futures)
    def wait(self, entry: Entry) -> None:
        if entry.status == PENDING:
            waiter = Counted()
            entry.waiters = [*(entry.waiters or []), waiter]
            self.waiters.append((entry, waiter))

    # --- the cluster -------------------------------------------------------------------------------

    @rule(now=st.sampled_from([0.0, 0.0, 1.0]))
    def flush(self, now: float) -> None:
        self.broker.flush(now)

    @rule(n=st.integers(1, 4))
    def read(self, n: int) -> None:
        for _ in range(n):
            self.broker.read()

    @rule(n=st.integers(1, 4))
    def news(self, n: int) -> None:
        for _ in range(n):
            self.broker.news()

    @rule(data=st.data(), inline=st.booleans())
    def finish(self, data: st.DataObject, inline: bool) -> None:
        ready = [key for key, task in self.broker.tasks.items() if self.broker.can_run(task)]
        if ready:
            self.broker.finish(data.draw(st.sampled_from(ready)), inline)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        ready = [key for key, task in self.broker.tasks.items() if self.broker.can_run(task)]
        ready = [key for key in ready if key not in self.broker.sure]
        if ready:
            self.broker.fail(data.draw(st.sampled_from(ready)))

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if self.broker.tasks:
            self.broker.lose(data.draw(st.sampled_from(list(self.broker.tasks))))

    @rule(lost=st.booleans())
    def run_early(self, lost: bool) -> None:
        self.broker.run_early(lost)

    @rule()
    def close_lane(self) -> None:
        self.broker.close_lane()

    @rule()
    def restart(self) -> None:
        self.broker.restart()

    # --- promises ------------------------------------------------------------------------------------

    @invariant()
    def consistent(self) -> None:
        self.ledger.check()
        assert self.ledger.flying <= self.ledger.window[0]

    @invariant()
    def values_are_of_the_right_function(self) -> None:
        for entry in self.ledger.entries.values():
            if entry.work is not None and entry.status == FINISHED and entry.outcome[3] is not None:
                assert entry.outcome[3] == f"{entry.key}:{entry.work.fn.decode()}".encode()

    @invariant()
    def told_once(self) -> None:
        for entry, waiter in self.waiters:
            assert waiter.times <= 1, entry

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        ledger, broker = self.ledger, self.broker
        broker.settle()
        for entry in ledger.entries.values():
            assert entry.status != PENDING or not entry.refs, f"{entry} hangs"
        for entry, waiter in self.waiters:
            assert waiter.times == 1 or entry.refs <= 0 or entry.status == PENDING, f"{entry} was waited for in vain"
        for entry in list(ledger.entries.values()):
            ledger.dropped.extend([entry] * (entry.refs - ledger.dropped.count(entry)))
        broker.settle()
        assert not ledger.entries and not ledger.queue and not ledger.fences
        assert (ledger.flying, ledger.flying_bytes) == (0, 0)
        assert not broker.tasks and not broker.held, "the broker still thinks something is wanted"
        assert not ledger.store.entries
        ledger.check()


LedgerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedger = LedgerMachine.TestCase
