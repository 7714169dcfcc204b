"""The invariants of a worker's tables. PURE. Texts are made only for what is broken: checks run after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zdist.core.inputs import Inputs
from zdist.core.task import QUEUED, RUNNING, WAITING, Input, Task
from zdist.errors import InvariantError
from zdist.protocol.messages import Digest, Key

if TYPE_CHECKING:
    from zdist.core.worker import WorkerMachine

__all__ = ["check_worker"]


def check_worker(machine: WorkerMachine) -> None:
    """Raise InvariantError if the tables contradict each other."""
    users: dict[Digest, int] = {}
    queued = 0
    for key, task in machine.tasks.items():
        if key != task.key or task.state not in (WAITING, QUEUED, RUNNING):
            raise InvariantError(f"{task!r} is in the table under {key}")
        blockers = int(key in task.function.waiters)
        for source in task.inputs.values():
            blockers += type(source) is Input and key in source.waiters
        if task.blockers != blockers or (task.state == WAITING) != (blockers > 0):
            raise InvariantError(f"{task!r} counts {task.blockers} blockers and has {blockers}")
        queued += task.state == QUEUED
        users[task.function.digest] = users.get(task.function.digest, 0) + 1
    in_queue = [id(item[2]) for item in machine.queue if item[2].state == QUEUED]
    if len(in_queue) != queued or len(set(in_queue)) != queued:
        raise InvariantError(
            f"{queued} tasks are queued, the queue holds {len(in_queue)}, {len(set(in_queue))} of them once"
        )
    for digest, function in machine.functions.items():
        if function.users != users.get(digest, 0):
            raise InvariantError(f"function {function.name} counts {function.users} users, has {users.get(digest, 0)}")
        if function.known and function.waiters:
            raise InvariantError(f"function {function.name} is known and {list(function.waiters)} wait for it")
    total = sum(function.nbytes for function in machine.functions.values())
    if total != machine.function_bytes:
        raise InvariantError(f"functions have {total} bytes, {machine.function_bytes} are counted")
    if machine.memory.away < 0:
        raise InvariantError("more tasks came back into the pool than have left it")
    check_inputs(machine.inputs, machine.tasks)
    machine.store.check()
    machine.fetcher.check()


def check_inputs(inputs: Inputs, tasks: dict[Key, Task]) -> None:
    """The table of dependencies that are not held, and the tasks, agree."""
    users: dict[int, int] = {}
    for task in tasks.values():
        for key, source in task.inputs.items():
            if type(source) is Input:
                users[id(source)] = users.get(id(source), 0) + 1
                blocks = source.payload is None and not source.error
                if blocks != (task.key in source.waiters):
                    raise InvariantError(f"{task!r} waits for {key} though it need not, or the other way round")
    for key, source in inputs.table.items():
        if source.users != users.get(id(source), 0):
            raise InvariantError(f"input {key} counts {source.users} users and has {users.get(id(source), 0)}")
        if not source.users and not source.replica:
            raise InvariantError(f"nobody needs input {key}")
        if inputs.store.get(key) is not None:
            raise InvariantError(f"input {key} is held, and awaited")
        for task in source.waiters.values():
            if tasks.get(task.key) is not task:
                raise InvariantError(f"input {key} is to be handed to {task!r}, which is in no table")
