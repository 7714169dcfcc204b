"""What clients ask for: functions, tasks, wants and their end. PURE."""

from __future__ import annotations

from typing import Any

from zdist.limits import FUNCTION_CACHE_BYTES, PRIORITY_MAX
from zdist.protocol.messages import (
    Buffer,
    Cancel,
    Cancelled,
    Define,
    Options,
    Payload,
    Rejected,
    Release,
    Retry,
    Submit,
    Want,
    WhichFunction,
    payload_size,
)
from zdist_broker.lifecycle import Lifecycle
from zdist_broker.placement import Placement
from zdist_broker.state import MEMORY, PINNED, READY, RELEASED, WAITING, Client, Function, Tables, Task, Terms

UNKNOWN = "nobody in the cluster knows this key any more"
_DEFAULTS = Options()


def same_bytes(a: Payload, b: Payload) -> bool:
    """Whether two payloads are equal, however they are kept."""
    left = a.data if isinstance(a, Buffer) else a
    right = b.data if isinstance(b, Buffer) else b
    return left == right


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple | list) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{value!r} is not a list of strings")
    return tuple(value)


def parse_options(fields: tuple[Any, ...]) -> Options:
    """The options of a submission, which come as free-form values.

    Raises:
        ValueError: one of them is ill-typed or out of range; the text says which.
    """
    if not fields:
        return _DEFAULTS
    if len(fields) > len(Options._fields):
        raise ValueError(f"{len(fields)} options where {len(Options._fields)} are known")
    retries, priority, workers, allow_other, resources, tags, forget = Options(*fields)
    if not isinstance(retries, int) or not 0 <= retries < 1 << 31:
        raise ValueError(f"retries={retries!r} is not a number from 0 on")
    if not isinstance(priority, int) or abs(priority) > PRIORITY_MAX:
        raise ValueError(f"priority={priority!r} is not a whole number between -{PRIORITY_MAX} and {PRIORITY_MAX}")
    amounts = []
    for pair in resources:
        name, amount = pair
        if not isinstance(name, str) or not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
            raise ValueError(f"resources: {pair!r} is not a name and an amount")
        amounts.append((name, float(amount)))
    return Options(
        int(retries),
        int(priority),
        _strings(workers),
        bool(allow_other),
        tuple(sorted(amounts)),
        tuple(sorted(_strings(tags))),
        bool(forget),
    )


class Intake:
    """Handlers for the messages by which clients create, join and leave tasks."""

    def __init__(self, tables: Tables, placement: Placement, lifecycle: Lifecycle) -> None:
        self.tables = tables
        self.placement = placement
        self.lifecycle = lifecycle
        self._unused = 0  # bytes of functions without tasks when they were last counted

    # --- functions ----------------------------------------------------------------------------------

    def define(self, client: Client, message: Define, now: float) -> None:
        functions = self.tables.functions
        fn = functions.get(message.fn)
        if fn is None:
            fn = functions[message.fn] = Function(message.fn, message.name, message.blob)
            self._unused += payload_size(message.blob)
            if self._unused > FUNCTION_CACHE_BYTES:
                self._shrink(fn)
        if fn not in client.functions:
            client.functions[fn] = None
            fn.owners += 1

    def _shrink(self, newest: Function) -> None:
        """Drop functions that no task uses, oldest first, down to half of what is allowed."""
        functions = self.tables.functions
        idle = [f for f in functions.values() if not f.uses and f is not newest]
        self._unused = payload_size(newest.blob) + sum(payload_size(f.blob) for f in idle)
        for fn in idle:
            if self._unused <= FUNCTION_CACHE_BYTES // 2:
                break
            self._unused -= payload_size(fn.blob)
            del functions[fn.digest]
            for client in self.tables.clients.values():
                client.functions.pop(fn, None)
            fn.owners = 0

    def disown(self, client: Client) -> None:
        """A client is gone, and with it functions that nobody else uses."""
        for fn in client.functions:
            fn.owners -= 1
            if not fn.owners and not fn.uses:
                self.tables.functions.pop(fn.digest, None)
        client.functions = {}

    # --- submissions --------------------------------------------------------------------------------

    def submit(self, client: Client, message: Submit, now: float) -> None:
        digest, named, gen, options, rows = message
        tables = self.tables
        fn = tables.functions.get(digest)
        try:
            terms = self.placement.terms_for(parse_options(options))
        except (ValueError, TypeError) as error:
            for row in rows:
                tables.post(client, Cancelled, (row[0], f"bad options: {error}"))
            return
        if fn is None:
            client.parked = (digest, [message])
            return tables.tell(client, WhichFunction(digest))
        tasks, wants, alone, forget = tables.tasks, client.wants, client.alone, terms.forget
        root, push, order, before = terms.root, terms.pool.push, tables.order, len(tables.tasks)
        for key, args, needs in rows:
            task = tasks.get(key)
            if task is not None:
                self._join(client, task, fn, named, gen, args, needs, forget)
                continue
            order += 1
            if needs:
                tables.order = order
                self._create(client, fn, key, args, needs, terms, gen)
                continue
            tasks[key] = task = Task(key, fn, args, (), terms, root + order, READY, alone)
            if forget:
                task.flags = PINNED
            wants[key] = gen
            fn.uses += 1
            push(task)
        tables.order = order
        if len(tasks) != before:
            self.placement.dirty[terms.pool] = None

    def _create(
        self, client: Client, fn: Function, key: str, args: Payload, needs: tuple[str, ...], terms: Terms, gen: int
    ) -> None:
        """A new task with dependencies."""
        tables = self.tables
        deps = []
        for name in needs if len(needs) == 1 else dict.fromkeys(needs):
            dep = tables.tasks.get(name)
            if dep is None or (dep.fn is None and dep.state == RELEASED):
                return tables.post(client, Cancelled, (key, f"depends on {name}, which nobody holds"))
            deps.append(dep)
        task = Task(key, fn, args, tuple(deps), terms, terms.inner + tables.order, WAITING, client.alone)
        if terms.forget:
            task.flags = PINNED
        tables.tasks[key] = task
        client.wants[key] = gen
        fn.uses += 1
        waiting, sound = 0, True
        for dep in deps:
            if dep.dependents is None:
                dep.dependents = {task: None}
            else:
                dep.dependents[task] = None
            if dep.state != MEMORY:
                waiting += 1
                sound = sound and dep.state < MEMORY
        if not sound:  # some input has failed, or must be computed again first
            task.state = RELEASED
            return self.lifecycle.revive(task, "its inputs were released")
        for dep in deps:
            dep.users += 1
        task.waiting = waiting
        if not waiting:
            self.placement.enqueue(task)

    def _join(
        self,
        client: Client,
        task: Task,
        fn: Function,
        named: bool,
        gen: int,
        args: Payload,
        needs: tuple[str, ...],
        forget: bool,
    ) -> None:
        """A submission of a key that exists."""
        if task.fn is None:
            reason = "is the key of data that is held already; use another key"
            return self.tables.post(client, Rejected, (task.key, reason))
        if not named and not (
            task.fn is fn
            and same_bytes(task.args, args)
            and [dep.key for dep in task.deps] == list(dict.fromkeys(needs))
        ):
            reason = (
                f"the key is in use for another call, of {task.fn.name}, than this one, of {fn.name}; "
                "give it another key or release the futures of the first"
            )
            return self.tables.post(client, Rejected, (task.key, reason))
        if forget and (task.state < MEMORY or task.state == RELEASED):
            task.flags |= PINNED
        self._want(client, task, gen)

    # --- wants --------------------------------------------------------------------------------------

    def want(self, client: Client, message: Want, now: float) -> None:
        for key in message.keys:
            task = self.tables.tasks.get(key)
            if task is None or (task.fn is None and task.state == RELEASED):
                self.tables.post(client, Cancelled, (key, UNKNOWN))
            else:
                self._want(client, task, message.gen)

    def _want(self, client: Client, task: Task, gen: int) -> None:
        if task.key not in client.wants:
            task.who = (*task.who, client) if task.who else client.alone
        client.wants[task.key] = gen
        if task.state == RELEASED:
            self.lifecycle.revive(task, "its inputs were released")
        else:
            self.lifecycle.announce(client, task)

    def release(self, client: Client, message: Release, now: float) -> None:
        tasks, wants, alone, lifecycle = self.tables.tasks, client.wants, client.alone, self.lifecycle
        for key, gen in message.rows:
            if wants.get(key) != gen:
                self.tables.ignored += 1
                continue
            del wants[key]
            task = tasks[key]
            if task.who is alone:
                task.who = ()
                if task.state == MEMORY and not task.dependents and not task.deps:
                    lifecycle.forget(task)  # what tidy would do
                    continue
            else:
                lifecycle.unwant(client, task)
            if not task.who and not task.users:
                lifecycle.tidy((task,))

    def cancel(self, client: Client, message: Cancel, now: float) -> None:
        """Drop the client's want, or with ``force`` everybody's, of the keys and of what depends on them.

        Dependents of a key that others want too keep it (as in dask.distributed ``cancel``).
        """
        reason = message.reason or f"cancelled by client {client.name}"
        seen: dict[Task, None] = {}
        stack = [t for t in map(self.tables.tasks.get, message.keys) if t is not None]
        while stack:
            task = stack.pop()
            if task in seen:
                continue
            seen[task] = None
            if message.force or not task.who or task.who == client.alone:
                stack += task.dependents or ()
                task.flags &= ~PINNED
            for who in task.who if message.force else client.alone:
                if who.wants.pop(task.key, None) is not None:
                    self.lifecycle.unwant(who, task)
                    self.tables.post(who, Cancelled, (task.key, reason))
        self.lifecycle.tidy(seen)

    def retry(self, client: Client, message: Retry, now: float) -> None:
        self.lifecycle.retry([t for t in map(self.tables.tasks.get, message.keys) if t is not None])

    def leave(self, client: Client) -> None:
        """A client is gone: nothing is wanted for it."""
        loose = []
        for key in client.wants:
            task = self.tables.tasks[key]
            self.lifecycle.unwant(client, task)
            loose.append(task)
        client.wants = {}
        self.lifecycle.tidy(loose)
        self.disown(client)
