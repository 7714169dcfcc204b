"""The state that clients share, cell by cell, and its copies on nodes. PURE.

A cell has a kind (queue, lock, …), a name, an item within it, and a value. Every turn's changes are one version. Up to
two nodes keep a copy, and clients are told of a change when these have confirmed it. A broker that takes another's
place waits for those copies, and begins with the one of the highest epoch and version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zdist.core.machine import require
from zdist.core.mirror import Cells, Row, apply, messages, weigh, whole
from zdist.limits import MIRROR_PATIENCE, MIRRORS, SHARED_BYTES, SHARED_CELL
from zdist.protocol.messages import Mirror, Mirrored
from zdist_broker.parse import fit_cell
from zdist_broker.state import Node, Tables

__all__ = ["Store"]


CELLS_MOST = SHARED_BYTES // SHARED_CELL
VERSION_MOST = 1 << 62
VERSIONS = 10  # bits for those between two epochs; a broker's epoch is the millisecond of its start


class Replica:
    """A node's copy: the version that it has confirmed, and since when it owes more."""

    __slots__ = ("confirmed", "owes")

    def __init__(self) -> None:
        self.confirmed = 0
        self.owes: float | None = None


class Store:
    """All cells, and who has copies."""

    def __init__(self, tables: Tables, log: Callable[..., None]) -> None:
        self.tables = tables
        self.log = log
        self.cells: Cells = {}
        self.size = 0
        self.version = self.token = 0
        self.rows: list[Row] = []  # changed in this turn
        self.replicas: dict[Node, Replica] = {}
        self.slow: dict[Node, None] = {}  # they did not confirm in time, and may again when they have
        self.offers: dict[Node, tuple[int, int, list[Row], bool]] = {}  # of nodes that knew an earlier broker
        self.copied = False  # one of those was taken over

    # --- cells ------------------------------------------------------------------------------------------

    def items(self, kind: str, name: str) -> dict[Any, Any]:
        """The cells of one thing; not to be changed."""
        return self.cells.get((kind, name), {})

    def get(self, kind: str, name: str, item: Any = "") -> Any:
        return self.items(kind, name).get(item)

    def room(self) -> int:
        """Bytes that values may still take."""
        return SHARED_BYTES - self.size

    def set(self, kind: str, name: str, item: Any, value: Any) -> None:
        """Change a cell; None takes it away."""
        row = (kind, name, item, value)
        old = self.get(kind, name, item)
        self.size += (0 if value is None else SHARED_CELL + weigh(value)) - (
            0 if old is None else SHARED_CELL + weigh(old)
        )
        apply(self.cells, row)
        self.rows.append(row)

    def next_token(self) -> int:
        """A number higher than any before, also of brokers before this one: the version comes to be no less."""
        self.token = max(self.token, self.version, self.tables.epoch << VERSIONS) + 1
        return self.token

    # --- copies -----------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Hand this turn's changes to the copies; have as many copies as there should be."""
        tables = self.tables
        rows, self.rows = self.rows, []
        if rows:
            self.version = max(self.version + 1, self.token, tables.epoch << VERSIONS)
            told = messages(tables.epoch, self.version, rows, first=False)
            for node, replica in self.replicas.items():
                replica.owes = replica.owes or now
                for message in told:
                    tables.tell(node, message)
        if not self.version or len(self.replicas) >= min(MIRRORS, len(tables.nodes)):
            return
        for node in tables.nodes.values():
            if node in self.offers:  # what it has is still to be looked at
                continue
            if len(self.replicas) < MIRRORS and node not in self.replicas and node not in self.slow:
                replica = self.replicas[node] = Replica()
                replica.owes = now
                for message in whole(tables.epoch, self.version, self.cells):
                    tables.tell(node, message)

    def confirmed(self) -> int:
        """The version that all copies have; this one if there is no node to keep one."""
        return min((replica.confirmed for replica in self.replicas.values()), default=self.version)

    def mirrored(self, node: Node, message: Mirrored, now: float) -> None:
        """A node confirms."""
        self.slow.pop(node, None)
        replica = self.replicas.get(node)
        if replica is None or not replica.confirmed <= message.version <= self.version:
            self.tables.ignored += 1
            return
        replica.confirmed = message.version
        replica.owes = now if message.version < self.version else None

    def forget(self, node: Node) -> None:
        """A node is gone."""
        self.replicas.pop(node, None)
        self.slow.pop(node, None)
        self.offers.pop(node, None)

    def deadline(self) -> float | None:
        """When `tick` is next needed."""
        if len(self.replicas) < 2 and len(self.tables.nodes) < 2:
            return None
        owed = [r.owes for r in self.replicas.values() if r.owes is not None]
        return min(owed) + MIRROR_PATIENCE if owed else None

    def tick(self, now: float) -> None:
        """A copy whose node does not answer is given up, if there is another that does or may."""
        for node, replica in list(self.replicas.items()):
            if replica.owes is None or now < replica.owes + MIRROR_PATIENCE:
                continue
            others = [n for n in self.tables.nodes.values() if n is not node and n not in self.slow]
            replica.owes = now
            if others:
                self.log("warning", "mirror.slow", node=node.name, version=self.version)
                del self.replicas[node]
                self.slow[node] = None

    # --- after an earlier broker ------------------------------------------------------------------------

    def offered(self, node: Node, message: Mirror, now: float) -> None:
        """Rows of a node's copy from the time of an earlier broker."""
        rows = [] if message.first or node not in self.offers else self.offers[node][2]
        lost = not message.first and node not in self.offers  # what came before this part
        if lost or len(rows) > CELLS_MOST or not 0 < message.version < VERSION_MOST:
            self.tables.ignored += 1
            return
        rows += [row for row in message.rows if fit_cell(row)]
        self.offers[node] = (message.epoch, message.version, rows, message.last)

    def recover(self, past: Callable[[str, str], bool]) -> list[tuple[str, str]]:
        """Take over the best copy that is here, but for what there is already, or is past. What was taken over."""
        whole_ones = [offer for offer in self.offers.values() if offer[3]]
        if not whole_ones:
            return []  # the rest of others is still to come
        self.offers.clear()
        self.copied = True
        _, version, rows, _ = max(whole_ones, key=lambda offer: offer[:2])
        self.version = max(self.version, version)
        known = dict.fromkeys(self.cells)
        found: dict[tuple[str, str], None] = {}
        for kind, name, item, value in rows:
            if (kind, name) not in known and not past(kind, name):
                found[kind, name] = None
                self.set(kind, name, item, value)
        self.log("info", "mirror.taken_over", version=version, things=len(found))
        return list(found)

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        size = sum(SHARED_CELL + weigh(value) for items in self.cells.values() for value in items.values())
        require(self.size == size, f"shared: {self.size} bytes counted, there are {size}")
        require(all(self.cells.values()), "shared: something empty was kept")
        require(all(not node.gone for node in self.replicas), "shared: a copy on a node that is gone")
        require(len(self.replicas) <= MIRRORS, "shared: too many copies")
