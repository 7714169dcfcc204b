"""Who knows how a key is computed, so that a successor of this broker can be told. PURE.

That is known to the client that has submitted it. Others have its future from a queue, a result or a message, and may
want it for longer. When nobody who knows wants it any more, one of them is told, with all that it is made of; from then
on the task is to that client as if it had submitted it.
"""

from __future__ import annotations

from typing import Any, Final

from zdist.core.machine import require
from zdist.protocol.messages import Options, Payload, Specs, payload_size
from zdist_broker.state import FORGOTTEN, PINS, Client, Function, Tables, Task, Terms

__all__ = ["Heirs"]

SPECS: Final = 100_000  # most that are told at once,
SPEC_BYTES: Final = 64 << 20  # and most bytes of their arguments and functions


class Heirs:
    """Bequeaths the specs of tasks. ``Tables.blind`` has those who want a key, or what they have made of it, and do not
    know how it is computed."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.due: dict[Client, dict[Task, None]] = {}  # what is to be told in this turn

    def asked(self, client: Client, task: Task) -> None:
        """The client wants a key that it has not submitted."""
        if task.fn is not None and client.session != PINS:
            self.tables.blind.setdefault(task, {})[client] = None
            self.left(task)

    def unwant(self, client: Client, task: Task) -> None:
        """The client's want is gone from its books; take it off the task's."""
        task.who = () if task.who is client.alone else tuple([other for other in task.who if other is not client])
        if self.tables.blind:
            self.left(task)

    def left(self, task: Task) -> None:
        """One client less wants this task: does any that knows?"""
        blind = self.tables.blind.get(task)
        if blind is None or any(client.session != PINS and client not in blind for client in task.who):
            return
        seekers = self.tables.sought.get(task.key, ())
        heir = next((one for one in blind if task.dependents or one in task.who or one in seekers), None)
        if heir is not None:
            self._know(heir, task)
            self.due.setdefault(heir, {})[task] = None

    def _know(self, client: Client, task: Task) -> None:
        blind = self.tables.blind[task]
        del blind[client]
        if not blind:
            del self.tables.blind[task]

    def gone(self, client: Client) -> None:
        """It knows and wants nothing any more; what it was to be told others are."""
        for task in [task for task, blind in self.tables.blind.items() if client in blind]:
            self._know(client, task)
        for task in self.due.pop(client, ()):
            self.left(task)

    def turn(self) -> None:
        """Tell them, parents first."""
        due, self.due = self.due, {}
        for heir, tasks in due.items():
            functions: dict[Function, None] = {}
            rows: list[tuple[str, bytes, Payload, tuple[str, ...], tuple[Any, ...]]] = []
            size = 0
            for task in lineage([task for task in tasks if task.state != FORGOTTEN]):
                fn, terms = task.fn, task.terms
                if fn is None or terms is None:
                    rows.append((task.key, b"", b"", (), (task.attempt,) if task.attempt else ()))
                    continue
                functions[fn] = None
                size += payload_size(task.args)
                rows.append((task.key, fn.digest, task.args, tuple([dep.key for dep in task.deps]), options(terms)))
            size += sum(fn.nbytes for fn in functions)
            if rows and len(rows) <= SPECS and size <= SPEC_BYTES:
                known = tuple([(fn.digest, fn.name, fn.blob) for fn in functions])
                self.tables.tell(heir, Specs(known, tuple(rows)))

    def check(self) -> None:
        """Raise InvariantError if the books do not agree."""
        blind = self.tables.blind
        require(all(blind.values()), "heirs: an empty table was kept")
        require(all(self.tables.tasks.get(task.key) is task for task in blind), "heirs: a task that is forgotten")
        require(not any(client.gone for some in blind.values() for client in some), "heirs: a client that is gone")


def options(terms: Terms) -> tuple[Any, ...]:
    """What the tasks were submitted with."""
    priority = -(terms.inner >> 41)
    return tuple(Options(terms.retries, priority, *terms.pool.place, terms.forget, terms.timeout, terms.actor))


def lineage(tasks: list[Task]) -> list[Task]:
    """These and all that they are made of, parents first."""
    order: list[Task] = []
    seen: dict[Task, None] = {}
    stack = [(task, False) for task in reversed(tasks)]
    while stack:
        task, ready = stack.pop()
        if ready:
            order.append(task)
        elif task not in seen:
            seen[task] = None
            stack.append((task, True))
            stack += [(dep, False) for dep in task.deps]
    return order
