"""Tasks that a worker runs on for a broker that is no more. PURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zdist.core.machine import CONTROL
from zdist.core.task import GONE, ORPHAN, RUNNING, Task
from zdist.protocol import messages as m

if TYPE_CHECKING:
    from zdist.core.worker import WorkerMachine

__all__ = ["Orphans"]


class Orphans:
    """Those that have a thread: the next broker is offered the others only, lest it queues tasks behind these."""

    def __init__(self) -> None:
        self.tasks: dict[Task, None] = {}

    def start_anew(self, machine: WorkerMachine, now: float) -> None:
        """Forget what another broker ordered and nobody has started; what runs, runs on."""
        for task in machine.tasks.values():
            if task.state == RUNNING:
                task.state = ORPHAN
                if not task.seceded:
                    self.tasks[task] = None
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

    def subscribe(self, machine: WorkerMachine) -> None:
        """Tell the broker what this worker offers."""
        threads = max(0, machine.threads - len(self.tasks))
        machine.send(CONTROL, m.Subscribe(threads, machine.tags, machine.resources, machine.memory.paused))

    def over(self, machine: WorkerMachine, task: Task) -> None:
        """The task has ended, or has left its thread."""
        if task in self.tasks:
            del self.tasks[task]
            self.subscribe(machine)
