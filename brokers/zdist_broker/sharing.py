"""Cells as operations see them: who waits for a change of them is looked at, futures in them stay alive. PURE."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zdist.core.machine import require
from zdist.protocol.messages import ANY, Release, Want
from zdist_broker.cells import Store
from zdist_broker.intake import Intake
from zdist_broker.recovery import Recovery, is_gone
from zdist_broker.state import PINS, Claimed, Client, Tables
from zdist_broker.topics import Topics

if TYPE_CHECKING:
    from zdist_broker.verbs import Op

__all__ = ["ANSWER", "WITH_FUTURES", "State"]

ANSWER: Final = "answer"  # kind of the cells with answers that clients have not confirmed
WITH_FUTURES: Final = (ANSWER, "queue", "variable", "dataset")  # kinds whose values end with the keys of futures


class State:
    """What clients share, and the client that stands for it: it wants what cells hold futures of."""

    def __init__(
        self,
        tables: Tables,
        intake: Intake,
        recovery: Recovery,
        peers: dict[str, Any],
        log: Callable[..., None],
    ) -> None:
        self.tables = tables
        self.intake = intake
        self.recovery = recovery
        self.peers = peers
        self.store = Store(tables, log)
        self.topics = Topics()
        self.waiting: dict[tuple[str, str], dict[tuple[str, int], Op]] = {}  # operations, by place and by who asked
        self.touched: dict[tuple[str, str], None] = {}
        self.pins: dict[str, int] = {}  # keys in cells, how often
        self.loose: dict[str, None] = {}  # of these, those that the broker does not know yet
        self.spare: dict[str, None] = {}  # keys that a cell has lost; another may have got them
        self.pinner: Client | None = None  # wants the others
        intake.shared = self

    def change(self, kind: str, name: str, item: Any, value: Any) -> None:
        """Set a cell (None takes it away); who waits for that is looked at, futures in it stay alive."""
        old = self.store.get(kind, name, item)
        for key in value[-1] if value is not None and kind in WITH_FUTURES else ():
            self.pins[key] = self.pins.get(key, 0) + 1
            if self.pinner is None or key not in self.pinner.wants:
                self.loose[key] = None
                if self._known(key):  # at once, before its client lets go of it
                    self._want(key)
        self.store.set(kind, name, item, value)
        for key in old[-1] if old is not None and kind in WITH_FUTURES else ():
            self.pins[key] -= 1
            if not self.pins[key]:
                self.spare[key] = None
        self.touched[kind, name] = None

    def _known(self, key: str) -> bool:
        task = self.tables.tasks.get(key)
        return task is not None and not is_gone(task)

    def settle(self, key: str) -> None:
        """Somebody is about to let go of the key."""
        if key in self.loose and self._known(key):
            self._want(key)

    def _want(self, key: str) -> None:
        if self.pinner is None:
            self.pinner = Client(PINS, {"name": "shared state", "host": "", "pid": 0, "shm": False}, 0.0)
            self.pinner.crowded = True
            self.tables.clients[PINS] = self.peers[PINS] = self.pinner
        self.pinner.claims = {key: Claimed(ANY)}
        self.intake.want(self.pinner, Want(1, (key,)), 0.0)
        if key in self.pinner.wants:
            self.loose.pop(key, None)

    def _retire(self) -> None:
        assert self.pinner is not None
        self.pinner.gone = True
        del self.tables.clients[PINS], self.peers[PINS]
        self.pinner = None

    def pin(self, now: float) -> None:
        """Want what cells hold futures of, as far as it is known (a submission may come after its future); let go of
        what has not gone from one cell to another."""
        claims = self.recovery.late(now)
        for key in list(self.loose):
            if self._known(key) or (claims and key in self.recovery.copies):
                self._want(key)
        spare, self.spare = self.spare, {}
        for key in spare:
            if not self.pins.get(key, 1):
                del self.pins[key]
                self.loose.pop(key, None)
                if self.pinner is not None and key in self.pinner.wants:
                    self.intake.release(self.pinner, Release(((key, 1),)), now)
        if self.pinner is not None and not self.pinner.wants:
            self._retire()

    def check_state(self) -> None:
        """Raise InvariantError if the books do not agree."""
        self.store.check()
        counted: dict[str, int] = {}
        for (kind, _), items in self.store.cells.items():
            for value in items.values() if kind in WITH_FUTURES else ():
                for key in value[-1]:
                    counted[key] = counted.get(key, 0) + 1
        pins = {key: count for key, count in self.pins.items() if count}
        require(counted == pins, "shared: pins are not those of the cells")
        wanted = self.pinner.wants if self.pinner is not None else {}
        require(all(key in self.pins for key in wanted), "shared: something is wanted for no cell")
        require(not any(key in wanted for key in self.loose), "shared: something is wanted, and is to be wanted")
