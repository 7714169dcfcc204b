"""The worker: tasks that wait for data or for a thread, running ones, and the results that it holds. PURE.

Threads take work with `next_task` and report with `finished` or `failed`; a `Task` is the handle in between. Reports
of a turn leave together at its end. What an attempt of a former broker leaves behind is announced as a held copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any

from zdist import limits
from zdist.core.actors import call_actor
from zdist.core.fetch import Fetcher
from zdist.core.inputs import Inputs
from zdist.core.lane import lane_told, run_early
from zdist.core.links import Host
from zdist.core.machine import CONTROL, Machine, Route
from zdist.core.memory import Memory
from zdist.core.orphans import Orphans, adopt
from zdist.core.probes import answer_probe
from zdist.core.reports import Reports
from zdist.core.store import Store
from zdist.core.task import (
    FALLING,
    GONE,
    ORPHAN,
    QUEUED,
    RISING,
    RUNNING,
    WAITING,
    Exit,
    Freeze,
    Function,
    RunCall,
    Share,
    Task,
)
from zdist.core.transfer import Map
from zdist.core.worker_check import check_worker
from zdist.errors import ProtocolError
from zdist.protocol import messages as m
from zdist.protocol.fields import DATA
from zdist.protocol.messages import Attempt, Key, Message, Payload, Session, payload_size

__all__ = ["Exit", "Freeze", "RunCall", "Share", "WorkerMachine"]


class WorkerMachine(Machine[Route]):
    """State of one worker.

    Parameters: session id, cluster ``token``, ``name``, ``node`` (session of its node), ``host`` and ``pid``,
    ``threads``, ``memory_limit`` in bytes (0: none), ``tags``, ``resources``, ``shared`` (bytes from which values go
    through the memory of this host, 0: none do). ``address`` is to be set before the first hello.
    """

    role = "worker"

    def __init__(
        self,
        session: Session,
        token: str,
        *,
        name: str,
        node: Session = "",
        host: str = "",
        pid: int = 0,
        threads: int = 1,
        memory_limit: int = 0,
        tags: Sequence[str] = (),
        resources: dict[str, float] | None = None,
        shared: int = 0,
    ) -> None:
        super().__init__()
        self.session = session
        self.token = token
        self.name = name
        self.node = node
        self.host = host
        self.pid = pid
        self.threads = threads
        self.tags = tuple(tags)
        self.resources = dict(resources or {})
        self.address = ""
        self.inline_result = limits.INLINE_RESULT  # bytes up to which results travel with their completion; 0: none do
        self.lease = limits.LEASE_NODE
        self.lease_until = float("-inf")  # nothing starts later than this
        self.tasks: dict[Key, Task] = {}  # waiting, queued and running
        self.queue: list[tuple[int, int, Task]] = []  # heap; may hold tasks that are queued no more
        self.serial = 0
        self.functions: dict[m.Digest, Function] = {}  # least recently used first
        self.function_bytes = 0
        self.store = Store(self.send, token, self._freeze, self.log, self._share if shared else None, shared)
        near = Host(host, shared) if shared else None
        self.fetcher = Fetcher(self.send, session, token, host=near, map=self._map)
        self.inputs = Inputs(session, self.store, self.fetcher, self._release)
        self.reports = Reports()
        self.orphans = Orphans()
        self.memory = Memory(memory_limit, self.store, self._order, lambda: self.orphans.subscribe(self))
        self.limits: dict[Attempt, float] = {}  # seconds, of attempts whose Run is about to come
        self.lanes: dict[int, set[Attempt]] = {}  # lanes that lead here: the attempts that have come by any way
        self.handlers = {
            m.Run: self.run, m.Define: self._define, m.Drop: self._drop, m.TakeBack: self._take_back,
            m.Abort: self._abort, m.Replicate: self.inputs.replicate, m.Locate: self.inputs.locate,
            m.Members: self._members, m.Call: self._call, m.Stop: self._stop, m.Pong: self._pong,
            m.Lane: partial(lane_told, self), m.TimeLimit: self._time_limit, m.Adopt: partial(adopt, self),
            m.ActorCall: partial(call_actor, self, CONTROL), m.Fence: self._fence,
        }  # fmt: skip
        self.peers = {m.RunEarly: run_early, m.ActorCall: call_actor, m.Probe: answer_probe}  # on the data socket

    # --- endpoint ----------------------------------------------------------------------------------

    def hello_info(self) -> dict[str, Any]:
        """Fields of Hello.info for a worker."""
        return {
            "node": self.node, "address": self.address, "name": self.name, "host": self.host, "pid": self.pid,
            "threads": self.threads, "memory_limit": self.memory.limit, "tags": list(self.tags),
            "resources": dict(self.resources),
        }  # fmt: skip

    def authorize(self, token: str) -> None:
        """The cluster token, found late or changed."""
        self.token = self.store.token = token
        self.fetcher.authorize(token)

    def welcomed(self, welcome: m.Welcome, now: float) -> None:
        """Renew the lease; tell a broker that knows nothing of this worker what it offers and holds."""
        self.name = str(welcome.info.get("name") or self.name)  # the broker tells namesakes apart
        self.lease = float(welcome.info.get("lease", limits.LEASE_NODE))
        self.lease_until = now + self.lease
        self.inline_result = int(welcome.info.get("inline_result", limits.INLINE_RESULT))
        if not welcome.fresh:
            return
        if self.given_up:  # what it had here of data counts as lost there, and a name may have been used again
            for key in [key for key, entry in self.store.entries.items() if not 0 < entry.attempt < DATA]:
                self.store.drop(key, now)
        self.orphans.start_anew(self, now)
        self.inputs.held = [(key, entry.attempt, entry.nbytes, entry.type) for key, entry in self.store.entries.items()]

    def refused(self, code: str, text: str, now: float) -> None:
        """The broker will not have this worker."""
        self.log("error", "worker.refused", code=code, text=text)
        self.commands.append(Exit(f"refused by the broker: {text}", 1))

    def handle(self, route: Route, message: Message, now: float) -> None:
        """Take in a message: orders on the control channel, data on all others."""
        kind = type(message)
        if route.channel == "control":
            handler = self.handlers.get(kind)
            if handler is None:
                raise ProtocolError(f"a worker has no use for {kind.__name__} on its control channel")
            handler(message, now)
        elif route.channel == "data" and (answer := self.peers.get(kind)) is not None:
            answer(self, route, message, now)  # type: ignore[operator]
        elif kind is m.Get:
            self.store.serve(route, message, now)  # type: ignore[arg-type]
        elif kind is m.Data or kind is m.ProbeReply:
            self.fetcher.handle(route, message, now)  # type: ignore[arg-type]
        elif kind is not m.Taken:
            raise ProtocolError(f"a worker has no use for {kind.__name__} on its {route.channel} channel")

    def turn(self, now: float) -> None:
        """End of a turn: what was saved up goes out, one message of a kind."""
        inputs = self.inputs
        if now >= self.memory.look_at:
            self.memory.look(now)
        if self.fetcher.arrived or self.fetcher.failed:
            inputs.drain(now)
        self.reports.flush(self.send, now)
        if inputs.held or inputs.missing or inputs.stuck:
            inputs.tell(self.send)

    def deadline(self) -> float | None:
        """When `tick` is next needed."""
        due = self.fetcher.deadline()
        for when in (self.store.deadline(), self.memory.deadline()):
            if when is not None and (due is None or when < due):
                due = when
        if self.reports.settled and (due is None or self.reports.due < due):
            due = self.reports.due
        return due

    def tick(self, now: float) -> None:
        """Time passes for transfers."""
        self.store.tick(now)
        self.fetcher.tick(now)

    # --- tasks come and go ---------------------------------------------------------------------------

    def run(self, message: m.Run, now: float) -> None:
        """Tasks to run."""
        function = self.functions.pop(message.fn, None) or Function(message.fn)
        self.functions[message.fn] = function  # most recently used
        tasks = self.tasks
        queue = self.queue
        lanes = self.lanes
        known = function.known
        for key, attempt, priority, deliver, args, deps in message.rows:
            limit = self.limits.pop(attempt, 0.0) if self.limits else 0.0
            if lanes and (seen := lanes.get(attempt >> limits.LANE_BITS)) is not None:
                if attempt in seen:
                    continue  # its early copy has come
                seen.add(attempt)
            old = tasks.get(key)
            if old is not None:
                if old.attempt >= attempt:
                    continue
                self.remove(old, now)
            task = tasks[key] = Task(key, attempt, priority, deliver, args, function)
            function.users += 1
            task.limit = limit
            if deps:
                task.blockers = 1  # so that nothing releases it half way
                self.inputs.need(task, deps, now)
                task.blockers -= 1
            if not known:
                task.blockers += 1
                function.waiters[key] = task
            if task.blockers:
                task.state = WAITING
            else:
                self.serial += 1
                heappush(queue, (priority, self.serial, task))
        if not function.asked and function.waiters:
            function.asked = True
            self.send(CONTROL, m.WhichFunction(function.digest))

    def _time_limit(self, message: m.TimeLimit, now: float) -> None:
        self.limits |= {attempt: seconds for _key, attempt, seconds in message.rows}

    def _release(self, waiters: dict[Key, Task]) -> None:
        """One thing that these tasks waited for is there."""
        for task in waiters.values():
            task.blockers -= 1
            if not task.blockers:
                task.state = QUEUED
                self.serial += 1
                heappush(self.queue, (task.priority, self.serial, task))
        waiters.clear()

    def remove(self, task: Task, now: float) -> None:
        """The attempt is over, or is not to be; if it runs, nothing is made of its result."""
        del self.tasks[task.key]
        task.function.users -= 1
        if task.state == WAITING:
            task.function.waiters.pop(task.key, None)
        elif task.state == RUNNING:
            self.orphans.aborted[task] = None
            self.orphans.subscribe(self)
        task.state = GONE
        if task.inputs:
            self.inputs.unneed(task, now)
        if len(self.queue) > 2 * len(self.tasks) + 64:  # most of it are leftovers
            self.queue[:] = [item for item in self.queue if item[2].state == QUEUED]
            heapify(self.queue)

    def _take_back(self, message: m.TakeBack, now: float) -> None:
        rows = []
        for key, attempt in message.rows:
            task = self.tasks.get(key)
            if task is not None and task.attempt == attempt and task.state != RUNNING:
                self.remove(task, now)
                rows.append((key, attempt))
        self.send(CONTROL, m.Returned(tuple(rows)))

    def _abort(self, message: m.Abort, now: float) -> None:
        for key, attempt in message.rows:
            task = self.tasks.get(key)
            if task is not None and task.attempt == attempt:
                self.remove(task, now)

    def _define(self, message: m.Define, now: float) -> None:
        function = self.functions.pop(message.fn, None) or Function(message.fn)
        self.functions[message.fn] = function
        function.asked = False
        if not function.known:
            function.name = message.name
            function.blob = message.blob
            function.nbytes = payload_size(message.blob)
            self.function_bytes += function.nbytes
        self._release(function.waiters)
        while len(self.functions) > limits.FUNCTION_CACHE or self.function_bytes > limits.FUNCTION_CACHE_BYTES:
            idle = next((known for known in self.functions.values() if not known.users and known is not function), None)
            if idle is None:
                break
            del self.functions[idle.digest]
            self.function_bytes -= idle.nbytes

    def _drop(self, message: m.Drop, now: float) -> None:
        drop = self.store.drop
        for key in message.keys:
            drop(key, now)
        if self.inputs.held:  # what was about to be told
            self.inputs.held = [row for row in self.inputs.held if row[0] not in message.keys]
        if self.inputs.table:
            self.inputs.unreplicate(message.keys, now)

    def _fence(self, message: m.Fence, now: float) -> None:
        self.send(CONTROL, message)

    # --- the executor's side -----------------------------------------------------------------------------

    def ready(self, now: float) -> bool:
        """May there be something to start? Cheap, needs no lock."""
        return bool(self.queue) and now < self.lease_until and not self.memory.closed

    def next_task(self, now: float) -> Task | None:
        """Take the most urgent task to run it now; none when the broker has been silent for longer than the lease."""
        queue = self.queue
        while queue and now < self.lease_until and not self.memory.closed:
            task = heappop(queue)[2]
            if task.state == QUEUED:
                task.state = RUNNING
                return task
        return None

    def loaded(self, function: Function, call: Any) -> None:
        """A function was unpickled; its bytes are not needed again."""
        function.loaded = call
        function.blob = None

    def finished(
        self,
        task: Task,
        micros: int,
        value: Any,
        type_name: str,
        frozen: tuple[Payload | None, Any, str, int, bool],
        now: float,
    ) -> None:
        """A task has returned ``value``.

        ``frozen`` is what was made of it: its bytes if small enough to travel with the report; else its blob, or None;
        or why it has no bytes; its size; and whether the live object stays beside a blob. Without any of the three the
        value is frozen when it is asked for.
        """
        state = self._over(task, micros, now)
        key = task.key
        store = self.store
        if state != RUNNING and (state == GONE or store.get(key) is not None):
            return
        payload, blob, error, nbytes, keep = frozen
        attempt = task.attempt
        if keep:
            entry = store.put_value(key, attempt, value, nbytes, type_name)
        if blob is not None:
            entry = store.put_blob(key, attempt, blob, type_name)
        elif error:
            store.unfreezable(key, attempt, error, now)
        if key in self.inputs.table:
            self.inputs.stored(entry, now)
        if nbytes >= limits.LARGE_RESULT:
            self.memory.grown(nbytes, now)
        if state == RUNNING:
            row = (key, attempt, micros, nbytes, payload, type_name)
            if task.early is None or payload is None:
                self.reports.done.append(row)
            else:
                self.reports.settle(row, now)
                self.send(task.early, m.DoneEarly(key, attempt, nbytes, payload, type_name, task.untold))
        else:
            self.inputs.held.append((key, attempt, nbytes, type_name))

    def failed(self, task: Task, micros: int, payload: Payload, text: str, now: float) -> None:
        """A task has raised; ``payload`` is the pickled exception, ``text`` what a person reads."""
        if self._over(task, micros, now) == RUNNING:
            self.reports.erred.append((task.key, task.attempt, micros, payload, text[: limits.MAX_TEXT]))

    def _over(self, task: Task, micros: int, now: float) -> int:
        """A task that was started has ended; the state that it was in."""
        function = task.function
        known = function.micros
        weight = FALLING if micros < known else RISING
        function.micros = micros if known < 0 else known + (micros - known) * weight
        state = task.state
        task.state = GONE
        if state == ORPHAN or (state == GONE and task in self.orphans.aborted):
            self.orphans.over(self, task)
        if state == RUNNING:
            del self.tasks[task.key]
            function.users -= 1
            if task.inputs:
                self.inputs.unneed(task, now)
        if task.seceded:
            task.seceded = False
            self.memory.seceded(-1)
        return state

    def seceded(self, task: Task, back: bool) -> bool:
        """A running task leaves the thread pool, or comes back; False if too many are away already."""
        if not back and self.memory.away >= limits.SECEDED_PER_WORKER:
            return False
        task.seceded = not back
        if task.state == ORPHAN or task in self.orphans.aborted:
            self.orphans.subscribe(self)
        self.memory.seceded(-1 if back else 1)
        if task.state == RUNNING:
            task.untold = False
            self.send(CONTROL, m.Seceded(task.key, task.attempt, back))
        return True

    def _order(self, command: Any) -> None:
        self.commands.append(command)

    def _freeze(self, key: Key, attempt: Attempt) -> None:
        self.commands.append(Freeze(key, attempt))

    def _share(self, key: Key, attempt: Attempt) -> None:
        self.commands.append(Share(key, attempt))

    def _map(self, command: Map) -> None:
        self.commands.append(command)

    def frozen(self, key: Key, attempt: Attempt, blob: Any, now: float, keep: bool = True) -> None:
        """Answer to Freeze or Share: the bytes, and whether the live object has to stay beside them."""
        self.store.frozen(key, attempt, blob, now, keep)

    def unfreezable(self, key: Key, attempt: Attempt, text: str, now: float) -> None:
        """Answer to Freeze: the value cannot be pickled."""
        self.store.unfreezable(key, attempt, text, now)

    def called(self, req: int, ok: bool, payload: Payload) -> None:
        """Answer to RunCall."""
        self.send(CONTROL, m.Called(req, ok, payload))

    def output(self, stream: str, text: str, key: Key) -> None:
        """Something that a task printed, warned of or logged."""
        if (task := self.tasks.get(key)) is not None:
            task.untold = False
        self.send(CONTROL, m.Output(stream, text[: limits.MAX_TEXT], key, self.name))

    # --- other messages ----------------------------------------------------------------------------------

    def _members(self, message: m.Members, now: float) -> None:
        self.fetcher.members(message.rows)

    def _call(self, message: m.Call, now: float) -> None:
        self.commands.append(RunCall(message.req, message.payload))

    def _stop(self, message: m.Stop, now: float) -> None:
        self.commands.append(Exit(message.reason, 0))

    def _pong(self, message: m.Pong, now: float) -> None:
        self.lease_until = now + self.lease

    def check(self) -> None:
        """Raise InvariantError if the tables contradict each other."""
        check_worker(self)
