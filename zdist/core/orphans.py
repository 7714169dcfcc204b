"""Tasks that a worker runs on although nobody has ordered them, or nobody wants them any more. PURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zdist import limits
from zdist.core.machine import CONTROL
from zdist.core.task import GONE, ORPHAN, RUNNING, Task
from zdist.protocol import messages as m

if TYPE_CHECKING:
    from zdist.core.worker import WorkerMachine

__all__ = ["Orphans", "adopt"]


class Orphans:
    """The broker is offered the threads that these leave free, lest it queues tasks behind them."""

    def __init__(self) -> None:
        self.tasks: dict[tuple[m.Key, m.Attempt], Task] = {}  # of a broker that is no more; the next may adopt them
        self.aborted: dict[Task, None] = {}

    def start_anew(self, machine: WorkerMachine, now: float) -> None:
        """Forget what another broker ordered and nobody has started; what runs, runs on."""
        for task in machine.tasks.values():
            if task.state == RUNNING:
                task.state = ORPHAN
                self.tasks[task.key, task.attempt] = task
            else:
                task.state = GONE
            task.function.users = 0
        machine.tasks.clear()
        machine.queue.clear()
        machine.lanes.clear()
        machine.limits.clear()
        machine.inputs.clear(now)
        for digest in [digest for digest, function in machine.functions.items() if not function.known]:
            del machine.functions[digest]
        for function in machine.functions.values():
            function.waiters.clear()
            function.asked = False
        machine.reports.clear()
        self.subscribe(machine)
        rows = list(self.tasks)
        for start in range(0, len(rows), limits.PACKET_RECORDS):
            machine.send(CONTROL, m.Unowned(tuple(rows[start : start + limits.PACKET_RECORDS])))

    def subscribe(self, machine: WorkerMachine) -> None:
        """Tell the broker what this worker offers."""
        taken = sum(not task.seceded for task in (*self.tasks.values(), *self.aborted))
        threads = max(0, machine.threads - taken)
        machine.send(CONTROL, m.Subscribe(threads, machine.tags, machine.resources, machine.memory.paused))

    def over(self, machine: WorkerMachine, task: Task) -> None:
        """The task has ended."""
        if task in self.aborted:
            del self.aborted[task]
        else:
            del self.tasks[task.key, task.attempt]
        if not task.seceded:
            self.subscribe(machine)


def adopt(machine: WorkerMachine, message: m.Adopt, now: float) -> None:
    """What the broker knows of again is reported to it like any task; what has failed meanwhile is given back."""
    returned = []
    for key, attempt in message.rows:
        task = machine.orphans.tasks.pop((key, attempt), None)
        if task is None:
            entry = machine.store.get(key)
            if entry is None or entry.attempt != attempt:
                returned.append((key, attempt))
            continue
        if (old := machine.tasks.get(key)) is not None:
            machine.remove(old, now)
        function = machine.functions.get(task.function.digest)
        if function is None:
            function = machine.functions[task.function.digest] = task.function
            machine.function_bytes += function.nbytes
        function.users += 1
        task.function = function
        task.state, task.early = RUNNING, None
        machine.tasks[key] = task
        if task.seceded:
            machine.send(CONTROL, m.Seceded(key, attempt, False))
    if returned:
        machine.send(CONTROL, m.Returned(tuple(returned)))
    machine.orphans.subscribe(machine)
