"""The broker's records and tables: tasks, functions, peers, and what is to be told to whom. PURE.

A task record is all that the broker knows of a key, be it computed or held data (``fn`` is None). Records refer to one
another directly; keys are looked up once, when a message comes in.

States: WAITING for inputs, READY in a queue, ASSIGNED to a worker, MEMORY (a result exists), FAILED for good, RELEASED
(the spec is kept because a dependent may have to be computed again, the data is gone), FORGOTTEN (not in the table
any more). The first three are *active*: every active task is needed by a client or by another active task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from zdist.limits import (
    AHEAD_MICROS,
    ALLOWED_DEATHS,
    BROKER_CACHE,
    FUNCTIONS_DEFINED,
    HOLDERS_TOLD,
    INLINE_RESULT,
    MESSAGE_ROWS,
    MIN_MICROS,
)
from zdist.protocol.messages import ActorGone, Drop, Failed, Finished, Killed, Members, Options, Payload, payload_size
from zdist_broker.pool import Pool
from zdist_broker.rows import failures, parts
from zdist_broker.tally import Tally

if TYPE_CHECKING:
    from zdist_broker.lanes import Lane

WAITING: Final = 0
READY: Final = 1
ASSIGNED: Final = 2
MEMORY: Final = 3
FAILED: Final = 4
RELEASED: Final = 5
FORGOTTEN: Final = 6
STATES: Final = ("waiting", "ready", "assigned", "memory", "failed", "released", "forgotten")

PINS: Final = "shared"  # the session of who wants what shared state refers to; no peer's begins like that
PINNED: Final = 1  # fire and forget: needed until it is done, though nobody wants it
SECEDED: Final = 2  # has left its worker's thread pool
LAZY: Final = 8  # released although a client wants it: submitted again only because others were made of it
EARLY: Final = 4  # assigned by its client, by a lane: neither Run nor Finished has been sent, and may not have to be

# (how, pickled exception, key of the task that raised, text)
Failure: TypeAlias = tuple[int, Payload, str, str]
RAISED: Final = 0
KILLED: Final = 1  # its workers died too often
OVERDUE: Final = 2  # it ran out of time
LOST: Final = 3  # it was an actor, or needs one, whose worker is gone


class Trouble:
    """What went wrong with a task so far; most tasks never have one."""

    __slots__ = ("deaths", "errors", "failure", "recomputes", "stuck")

    def __init__(self) -> None:
        self.errors = 0
        self.deaths = 0
        self.recomputes = 0
        self.failure: Failure = (RAISED, b"", "", "")
        self.stuck: tuple[int, str] = (-1, "")  # the attempt whose result cannot be copied, and why


class Function:
    """A pickled function, its users, and how long it takes."""

    __slots__ = ("blob", "cost", "digest", "measured", "micros", "name", "nbytes", "owners", "uses", "workers")

    def __init__(self, digest: bytes, name: str, blob: Payload) -> None:
        self.digest = digest
        self.name = name
        self.blob = blob
        self.nbytes = payload_size(blob)
        self.uses = 0  # tasks in the table
        self.owners = 0  # connected clients that defined it and may submit it again without defining it
        self.workers: set[str] = set()  # sessions that it was sent to; never iterated
        self.measured = False
        self.micros = 0
        self.cost = AHEAD_MICROS  # microseconds charged to a worker: nothing is queued behind an unknown one

    def learn(self, micros: int) -> None:
        """Take in the mean duration of some completions. Falls faster than it rises: first calls load modules."""
        if self.measured:
            change = micros - self.micros
            self.micros += change >> 2 if change < 0 else change >> 3
        else:
            self.measured = True
            self.micros = micros
        self.cost = min(max(self.micros, MIN_MICROS), AHEAD_MICROS)


class Terms:
    """Tasks submitted with equal options share one of these."""

    __slots__ = ("actor", "forget", "inner", "pool", "retries", "root", "timeout")

    def __init__(self, options: Options, pool: Pool) -> None:
        self.pool = pool
        self.retries = options.retries
        self.forget = options.forget
        self.timeout = options.timeout
        self.actor = options.actor
        self.inner = -2 * options.priority << 40  # priority is this plus the order of arrival
        self.root = (1 - 2 * options.priority) << 40  # tasks without dependencies come after those with


class Task:
    """A key: its spec, its state, and who has to do with it."""

    __slots__ = (
        "args", "attempt", "cost", "dependents", "deps", "flags", "fn", "holders", "key", "nbytes", "priority", "state",
        "terms", "trouble", "type", "users", "value", "waiting", "who", "worker",
    )  # fmt: skip

    def __init__(
        self,
        key: str,
        fn: Function | None,
        args: Payload,
        deps: tuple[Task, ...],
        terms: Terms | None,
        priority: int,
        state: int,
        who: tuple[Client, ...],
    ) -> None:
        self.key = key
        self.fn = fn
        self.args = args
        self.deps = deps
        self.terms = terms
        self.priority = priority
        self.state = state
        self.who = who  # clients that want it; their wants have the generation
        self.flags = 0
        self.waiting = 0  # while active: dependencies that are not in memory
        self.users = 0  # dependents that are active
        self.dependents: dict[Task, None] | None = None  # all that are in the table
        self.attempt = 0  # the current or last one; of data its content, or 0
        self.worker: Worker | None = None
        self.cost = 0  # what the assignment added to the worker's load
        self.holders: tuple[Worker | Client, ...] = ()
        self.nbytes = 0
        self.value: Payload | None = None
        self.type = ""
        self.trouble: Trouble | None = None

    @property
    def stuck(self) -> str:
        """Why its result cannot be copied to other workers; "" if nothing is known against it."""
        return self.trouble.stuck[1] if self.trouble is not None and self.trouble.stuck[0] == self.attempt else ""

    @property
    def lives(self) -> bool:
        """Is it an actor that has come to be? One that is lost, or was released, is not made again."""
        return self.terms is not None and self.terms.actor and self.type != ""

    def __repr__(self) -> str:
        return f"<{self.key} {STATES[self.state]}>"


class Peer:
    """A session and the rows that are to be sent to it at the end of the turn, in order."""

    __slots__ = (
        "gone", "handlers", "host", "kind", "known", "name", "parked", "pending", "pid", "rows", "seen", "session"
    )  # fmt: skip

    def __init__(self, session: str, info: dict[str, Any], now: float) -> None:
        self.session = session
        self.name = str(info.get("name") or session)
        self.host = str(info.get("host") or "")
        self.pid: int = info["pid"]
        self.seen = now
        self.gone = False
        self.known: set[str] = set()  # workers that it was told of; never iterated
        self.parked: tuple[bytes, list[Any]] | None = None  # messages that wait for a function to be defined again
        self.kind: type | None = None  # of the last message in pending, if more rows may be added to it
        self.rows: list[Any] = []
        self.pending: list[tuple[type | None, Any]] = []
        self.handlers: Mapping[type, Callable[..., None]] = {}

    def __repr__(self) -> str:
        return f"<{self.session} {self.name}>"


class Claimed(NamedTuple):
    """What a client says of a key that an earlier broker knew: see `Claim`."""

    attempt: int | None = None
    nbytes: int = 0
    value: Payload | None = None
    type: str = ""


class Client(Peer):
    """A client: what it wants (key to generation), what it holds itself, and the functions it defined."""

    __slots__ = (
        "alone", "asking", "claims", "crowded", "function_bytes", "functions", "held", "lane", "logs", "near",
        "refused", "sessions", "trim_at", "untaken", "wants",
    )  # fmt: skip

    def __init__(self, session: str, info: dict[str, Any], now: float) -> None:
        super().__init__(session, info, now)
        self.alone: tuple[Client, ...] = (self,)  # shared by all tasks that only this client wants
        self.sessions = (session,)
        self.wants: dict[str, int] = {}
        self.held: dict[str, Task] = {}
        self.functions: dict[Function, None] = {}
        self.function_bytes = 0
        self.trim_at = FUNCTIONS_DEFINED  # so many functions are defined when those without tasks are forgotten
        self.refused: dict[bytes, str] = {}  # functions whose definitions were not taken, and why
        self.claims: dict[str, Claimed] = {}  # what it says of the keys of its next Submit or Want
        self.untaken: dict[str, bool] = {}  # keys that were refused, and whether they stand for something else
        self.asking = 0  # questions and calls that wait for their answers
        self.crowded = False  # much of what it was sent is not acknowledged: values stay where they are
        self.logs = False
        self.lane: Lane | None = None
        self.near = self.host if info.get("shm") is True else None  # the host whose shared memory it maps


class Worker(Peer):
    """A worker: what it can take, what it was given, what it holds."""

    __slots__ = (
        "address", "alone", "asked_back", "assigned", "budget", "completed", "count", "fence", "free", "full", "held",
        "inlined", "lane", "late", "leaving", "load", "memory_limit", "node", "paused", "pools", "resources", "row",
        "runs", "sessions", "subscribed", "tags", "threads", "victim", "withdrawn",
    )  # fmt: skip

    def __init__(self, session: str, info: dict[str, Any], now: float) -> None:
        super().__init__(session, info, now)
        self.address = str(info["address"])
        self.node = str(info["node"])
        self.memory_limit: int = info["memory_limit"]
        self.alone: tuple[Worker, ...] = (self,)  # shared by all results that only this worker holds
        self.sessions = (session,)
        self.row = (session, self.address, self.name, self.host, self.node)
        self.subscribed = False
        self.paused = self.full = False  # full: it has said so, as its memory is
        self.completed = 0
        self.leaving = False  # in good order: paused until it goes
        self.threads = 0
        self.budget = 0  # microseconds of work that it may have outstanding beyond one task per thread
        self.tags: tuple[str, ...] = ()
        self.resources: dict[str, float] = {}
        self.free: dict[str, float] = {}  # of resources
        self.assigned: dict[str, Task] = {}
        self.count = 0  # assigned tasks that count against its capacity
        self.load = 0  # their cost in microseconds
        self.held: dict[str, Task] = {}
        self.pools: dict[Pool, None] = {}
        self.runs: dict[Function, list[Any]] = {}  # rows of this turn
        self.inlined = 0  # bytes of dependencies' values in what it was sent this turn
        self.asked_back: float | None = None  # when a TakeBack was sent that has brought nothing back yet
        self.victim = False  # something was taken back and it has completed nothing since
        self.lane: Lane | None = None
        self.late: list[str] | None = None  # Drop rows that wait for company; None: without a lane none do
        self.fence = 0  # the last that it was sent
        self.withdrawn: dict[str, int] = {}  # copies that it may have told of before it heard not to: until which fence

    @property
    def status(self) -> str:
        """In a word, for those who look."""
        return "leaving" if self.leaving else "paused" if self.paused else "running"


class Node(Peer):
    """A node process; its workers are those that name it."""

    __slots__ = ("keeps",)

    def __init__(self, session: str, info: dict[str, Any], now: float) -> None:
        super().__init__(session, info, now)
        self.keeps: int = info["workers"]  # workers that it has or starts, besides those that leave for good


class Placing:
    """Data on its way to workers."""

    __slots__ = ("allowed", "copies", "handed", "silent", "targets", "task")

    def __init__(self, task: Task, allowed: frozenset[str], copies: int) -> None:
        self.task = task
        self.allowed = allowed  # names or addresses; empty: all
        self.copies = copies  # 0: on all that are allowed
        self.handed = False  # by its client, which then keeps none (scatter; arguments it keeps)
        self.targets: dict[Worker, None] = {}  # asked to fetch it
        self.silent = 0  # of these have said nothing of late: others are asked as well


class Tables:
    """All records of one broker, and the rows to send."""

    def __init__(self, epoch: int, inline_result: int = INLINE_RESULT, allowed_deaths: int = ALLOWED_DEATHS) -> None:
        self.epoch = epoch
        self.inline_result = inline_result
        self.allowed_deaths = allowed_deaths
        self.tasks: dict[str, Task] = {}
        self.functions: dict[bytes, Function] = {}
        self.clients: dict[str, Client] = {}
        self.workers: dict[str, Worker] = {}
        self.nodes: dict[str, Node] = {}
        self.placing: dict[str, Placing] = {}
        self.blind: dict[Task, dict[Client, None]] = {}  # see `heirs`
        self.sought: dict[str, dict[Client, Any]] = {}  # see `seeking`
        self.cache: dict[Task, None] = {}  # tasks whose value is kept, oldest first
        self.cached = 0  # bytes of those values
        self.attempt = (epoch & 0x7FFFFF) << 40
        self.order = 0
        self.tally = Tally()
        self.ignored = 0  # rows that came too late or made no sense
        self.posted: list[Peer] = []
        self.lates: list[Worker] = []  # those with rows in ``late``

    # --- telling ------------------------------------------------------------------------------------

    def post(self, peer: Peer, kind: type, row: Any) -> None:
        """Add a row to what the peer is told; adjacent rows of a kind become one message."""
        if peer.kind is not kind:
            if not peer.pending:
                self._begin(peer)
            peer.kind = kind
            peer.rows = []
            peer.pending.append((kind, peer.rows))
        peer.rows.append(row)

    def tell(self, peer: Peer, message: Any) -> None:
        """Add a whole message."""
        if not peer.pending:
            self._begin(peer)
        peer.kind = None
        peer.pending.append((None, message))

    def _begin(self, peer: Peer) -> None:
        """Something is to be sent: what waited for that goes first, so that a Drop is never overtaken by a new Run."""
        self.posted.append(peer)
        if isinstance(peer, Worker) and peer.late:
            peer.pending.append((Drop, peer.late))
            peer.late = []

    def drop(self, holder: Worker | Client, key: str) -> None:
        """Nobody needs the key that this peer holds; for the worker of a lane that can wait a little."""
        if isinstance(holder, Client) or holder.late is None or holder.pending:
            return self.post(holder, Drop, key)
        if not holder.late:
            self.lates.append(holder)
        holder.late.append(key)

    def drop_late(self) -> None:
        """Now they have waited long enough."""
        for worker in self.lates:
            if worker.late and not worker.pending:
                self._begin(worker)
        self.lates = []

    def flush(self, send: Callable[[str, Any], None]) -> None:
        """Hand over everything that was posted."""
        posted, self.posted = self.posted, []
        for peer in posted:
            pending, peer.pending, peer.kind = peer.pending, [], None
            if peer.gone:
                continue
            for kind, rows in pending:
                if kind is None:
                    send(peer.session, rows)
                else:
                    rare = kind is Failed or kind is Killed or kind is ActorGone
                    for part in failures(rows) if rare else parts(rows, MESSAGE_ROWS):
                        send(peer.session, kind(tuple(part)))

    def holders(self, task: Task, peer: Peer) -> tuple[str, ...]:
        """Sessions that hold the task's data, a few at most, after telling the peer who they are.

        Clients are named only where no worker has it: from them data comes by relay alone.
        """
        holders = task.holders
        if len(holders) == 1:
            holder = holders[0]
            if isinstance(holder, Worker) and holder.session not in peer.known:
                peer.known.add(holder.session)
                self.post(peer, Members, holder.row)
            return holder.sessions
        workers = [h for h in holders if isinstance(h, Worker)]
        if not workers:
            return tuple(h.session for h in holders[:HOLDERS_TOLD])
        if len(workers) > HOLDERS_TOLD:  # another few for each peer, so that not all ask the same
            start = self.attempt % len(workers)
            workers = (workers[start:] + workers[:start])[:HOLDERS_TOLD]
        for worker in workers:
            if worker.session not in peer.known:
                peer.known.add(worker.session)
                self.post(peer, Members, worker.row)
        return tuple(w.session for w in workers)

    def finished(self, client: Client, task: Task) -> None:
        """Tell a client that the task is in memory, and where."""
        value = task.value if not (client.crowded and task.holders) else None
        where = () if value is not None else self.holders(task, client)
        self.post(client, Finished, (task.key, task.attempt, task.nbytes, value, where, task.type))

    # --- copies -------------------------------------------------------------------------------------

    def keep(self, task: Task, value: Payload, size: int) -> None:
        """Keep a small value at hand, at the cost of the oldest ones."""
        if size > self.inline_result:
            return
        if self.cached + size > BROKER_CACHE:
            self._evict(BROKER_CACHE // 8)
            if self.cached + size > BROKER_CACHE:
                return
        task.value = value
        self.cache[task] = None
        self.cached += size

    def _evict(self, wanted: int) -> None:
        goal = self.cached - wanted
        gone = []
        for task in self.cache:
            if task.holders:  # else it would be the only copy
                gone.append(task)
                self.cached -= payload_size(task.value or b"")
                task.value = None
                if self.cached <= goal:
                    break
        for task in gone:
            del self.cache[task]

    def discard(self, task: Task) -> None:
        """Let go of the value kept at hand."""
        if task.value is not None:
            self.cached -= payload_size(task.value)
            task.value = None
            del self.cache[task]

    def add_holder(self, task: Task, holder: Worker | Client) -> None:
        task.holders = (*task.holders, holder) if task.holders else holder.alone
        holder.held[task.key] = task

    def remove_holder(self, task: Task, holder: Worker | Client, *, tell: bool) -> None:
        task.holders = tuple(h for h in task.holders if h is not holder)
        del holder.held[task.key]
        if tell:
            self.post(holder, Drop, task.key)
