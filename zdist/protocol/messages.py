"""Every message of the protocol, one type each. PURE.

A message is a named tuple, so it is packed as it stands: ``[code, *fields]``. Records inside a message (*rows*) are
plain tuples whose shape is the field's annotation; the codec derives its checks from these annotations.

Vocabulary: a *session* id names a client (``c-…``), worker (``w-…``) or node (``n-…``) for as long as it lives; a *key*
names a task's result or a piece of data; an *attempt* is one start of a task and at the same time the identity of the
blob that it leaves behind (data: see `fields.content_attempt`). A ``Payload`` is opaque to the broker.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from zdist.protocol.actors import ActorCall as ActorCall
from zdist.protocol.actors import ActorGone as ActorGone
from zdist.protocol.actors import ActorReply as ActorReply
from zdist.protocol.direct import Data as Data
from zdist.protocol.direct import DoneEarly as DoneEarly
from zdist.protocol.direct import Get as Get
from zdist.protocol.direct import Lane as Lane
from zdist.protocol.direct import Probe as Probe
from zdist.protocol.direct import ProbeReply as ProbeReply
from zdist.protocol.direct import RunEarly as RunEarly
from zdist.protocol.direct import SubmitEarly as SubmitEarly
from zdist.protocol.direct import Taken as Taken
from zdist.protocol.fields import Attempt as Attempt
from zdist.protocol.fields import Buffer as Buffer
from zdist.protocol.fields import Digest as Digest
from zdist.protocol.fields import Key as Key
from zdist.protocol.fields import Payload as Payload
from zdist.protocol.fields import Session as Session
from zdist.protocol.fields import function_digest as function_digest
from zdist.protocol.fields import payload_size as payload_size
from zdist.protocol.nodes import Adjust as Adjust
from zdist.protocol.nodes import Adjusted as Adjusted
from zdist.protocol.nodes import Alive as Alive
from zdist.protocol.nodes import Dismiss as Dismiss
from zdist.protocol.nodes import Fence as Fence
from zdist.protocol.nodes import Interrupt as Interrupt
from zdist.protocol.nodes import Leaving as Leaving
from zdist.protocol.nodes import Mirror as Mirror
from zdist.protocol.nodes import Mirrored as Mirrored
from zdist.protocol.nodes import NodeEnded as NodeEnded
from zdist.protocol.nodes import Overdue as Overdue
from zdist.protocol.nodes import WorkerDied as WorkerDied
from zdist.protocol.succession import ANY as ANY
from zdist.protocol.succession import ANY_SPEC as ANY_SPEC
from zdist.protocol.succession import SPEC as SPEC
from zdist.protocol.succession import TOLD as TOLD
from zdist.protocol.succession import Adopt as Adopt
from zdist.protocol.succession import Claim as Claim
from zdist.protocol.succession import Unheard as Unheard
from zdist.protocol.succession import Unowned as Unowned

PROTOCOL: Final = 1


class Options(NamedTuple):
    """What a submission asks for beyond its function and arguments; equal options share one placement class."""

    retries: int = 0
    priority: int = 0
    workers: tuple[str, ...] = ()  # worker addresses or names; () for any
    allow_other: bool = False  # the restriction is a preference only
    resources: tuple[tuple[str, float], ...] = ()
    tags: tuple[str, ...] = ()
    forget: bool = False  # fire_and_forget: nobody has to want it
    timeout: float = 0.0  # seconds that a start may run; 0: any time
    actor: bool = False  # the result lives on: it cannot be copied, nor be computed again


# --- session layer: unsequenced, on the control socket -----------------------------------------------


class Hello(NamedTuple):
    """First message of a connection. ``received`` is the last sequence number taken in from the broker."""

    role: str  # "client" | "worker" | "node"
    token: str
    epoch: int  # of the broker that last welcomed this session; 0 at first
    received: int
    info: dict[str, Any]  # worker: see core.worker; node: see core.node; client: name, host; life of its last welcome


class Welcome(NamedTuple):
    """The broker's answer. ``fresh``: the broker knows nothing of this session; it must announce everything again."""

    epoch: int
    received: int
    fresh: bool
    info: dict[str, Any]  # cluster, bulk (address), lease, window_tasks, window_bytes, inline_result; life (its number)


class HelloPlease(NamedTuple):
    """The sender does not know this connection; it has to say hello (again)."""


class Refused(NamedTuple):
    """The hello was not accepted and will not be."""

    code: str  # "token" | "version" | "name" | "gone"
    text: str


class Ping(NamedTuple):
    """Application heartbeat; the broker answers all of them once a second with Pong."""


class Pong(NamedTuple):
    pass


class BulkHello(NamedTuple):
    """Binds a bulk connection to the session named in the packet."""

    token: str


# --- client to broker -----------------------------------------------------------------------------


class Define(NamedTuple):
    """A function's pickled bytes under their SHA-256 digest; goes before its first use, also broker to worker."""

    fn: Digest
    name: str
    blob: Payload


class Submit(NamedTuple):
    """Tasks of one function. ``named``: keys are named by content, so equal keys are equal work."""

    fn: Digest
    named: bool
    gen: int
    options: tuple[Any, ...]
    rows: tuple[tuple[Key, Payload, tuple[Key, ...]], ...]  # key, arguments, dependencies


class Want(NamedTuple):
    """Join keys that exist (an imported future)."""

    gen: int
    keys: tuple[Key, ...]


class Release(NamedTuple):
    """No future of this client holds the key any more; counts only for the want of that generation."""

    rows: tuple[tuple[Key, int], ...]


class Cancel(NamedTuple):
    keys: tuple[Key, ...]
    force: bool
    reason: str


class Retry(NamedTuple):
    keys: tuple[Key, ...]


class Hold(NamedTuple):
    """The client itself holds these keys (large arguments, scattered data), snapshotted: key, attempt, bytes, type."""

    gen: int
    rows: tuple[tuple[Key, Attempt, int, str], ...]


class Place(NamedTuple):
    """Copy held keys to workers: each key to ``copies`` of them (0: to all), chosen among ``workers`` (() for any)."""

    keys: tuple[Key, ...]
    workers: tuple[str, ...]
    copies: int


class Ask(NamedTuple):
    """A question about the cluster or an order to it; answered by Answer."""

    req: int
    what: str
    args: Any


class Call(NamedTuple):
    """Run a function on workers, outside the task system; client to broker (Answer), broker to worker (Called)."""

    req: int
    workers: tuple[str, ...] | None  # None: all
    payload: Payload


class Bye(NamedTuple):
    """The sender leaves in good order."""

    reason: str


# --- broker to client -----------------------------------------------------------------------------


class Members(NamedTuple):
    """Workers that later messages refer to: session, data address, name, host id, node session."""

    rows: tuple[tuple[Session, str, str, str, Session], ...]


class Finished(NamedTuple):
    """Results: key, attempt, bytes, value where small, holders, type name."""

    rows: tuple[tuple[Key, Attempt, int, Payload | None, tuple[Session, ...], str], ...]


class Failed(NamedTuple):
    """Tasks that failed for good: key, pickled exception, key of the task that raised it, text."""

    rows: tuple[tuple[Key, Payload, Key, str], ...]


class Killed(NamedTuple):
    """Tasks that did not fail by themselves: key, text, whether they ran out of time (else workers died too often)."""

    rows: tuple[tuple[Key, str, bool], ...]


class Lost(NamedTuple):
    """Results that were finished are gone and are being computed again."""

    keys: tuple[Key, ...]


class Cancelled(NamedTuple):
    rows: tuple[tuple[Key, str, int], ...]  # key, reason, generation of the want that is over (0: whichever it is)


class Rejected(NamedTuple):
    """Submissions that the broker did not take: key, reason."""

    rows: tuple[tuple[Key, str], ...]


class Answer(NamedTuple):
    req: int
    ok: bool
    value: Any  # the answer, or the text of the error


class Output(NamedTuple):
    """What a task printed, warned or logged; worker to broker to the clients that want the key."""

    stream: str  # "out" | "err" | "warn" | "log"
    text: str
    key: Key
    worker: str


# --- broker to worker -----------------------------------------------------------------------------


class Run(NamedTuple):
    """Tasks to run: key, attempt, priority (smaller first), deliver, arguments, dependencies.

    ``deliver``: 1 if a client waits for the value and no other task is known to, so it is frozen at completion; 2 if
    such a client shares the worker's memory, so a large one is frozen there; else 0. A dependency is key, bytes,
    holders, value where small.
    """

    fn: Digest
    rows: tuple[
        tuple[Key, Attempt, int, int, Payload, tuple[tuple[Key, int, tuple[Session, ...], Payload | None], ...]], ...
    ]


class TimeLimit(NamedTuple):
    """Goes before the Run of these attempts: seconds that each may run."""

    rows: tuple[tuple[Key, Attempt, float], ...]


class Drop(NamedTuple):
    """Results or held data that nobody needs any more; also broker to client for what the client holds."""

    keys: tuple[Key, ...]


class TakeBack(NamedTuple):
    """Give back these attempts unless they have started; answered by Returned with those that had not."""

    rows: tuple[tuple[Key, Attempt], ...]


class Abort(NamedTuple):
    """Forget these attempts: queued ones are dropped, the result of a running one is not kept."""

    rows: tuple[tuple[Key, Attempt], ...]


class Replicate(NamedTuple):
    """Fetch a copy: key, attempt, bytes, holders; answered by Held, or Missing."""

    rows: tuple[tuple[Key, Attempt, int, tuple[Session, ...]], ...]


class Locate(NamedTuple):
    """Where a dependency now is; empty holders and no value: it is being computed again, wait."""

    rows: tuple[tuple[Key, int, tuple[Session, ...], Payload | None], ...]


# --- worker to broker -----------------------------------------------------------------------------


class Subscribe(NamedTuple):
    """The worker takes work: threads, tags and resources, all absolute; ``paused`` takes none for now."""

    threads: int
    tags: tuple[str, ...]
    resources: dict[str, float]
    paused: bool


class Done(NamedTuple):
    """Completions: key, attempt, microseconds, bytes, value where small, type name."""

    rows: tuple[tuple[Key, Attempt, int, int, Payload | None, str], ...]


class Erred(NamedTuple):
    """Failures: key, attempt, microseconds, pickled exception, text."""

    rows: tuple[tuple[Key, Attempt, int, Payload, str], ...]


class Held(NamedTuple):
    """Copies that this worker now has: key, attempt, bytes, type name. A client says so to a broker's successor of data
    that it holds for others only."""

    rows: tuple[tuple[Key, Attempt, int, str], ...]


class Missing(NamedTuple):
    """Keys that could not be had from these holders, who answered that they do not have them."""

    rows: tuple[tuple[Key, tuple[Session, ...]], ...]


class NoCopy(NamedTuple):
    """Copies that nobody can have, as their holder cannot pickle the value: key, why."""

    rows: tuple[tuple[Key, str], ...]


class Returned(NamedTuple):
    """Attempts that had not started and will not."""

    rows: tuple[tuple[Key, Attempt], ...]


class Seceded(NamedTuple):
    """A running task has left (or with ``back`` rejoined) the thread pool and does not count against capacity."""

    key: Key
    attempt: Attempt
    back: bool


class WhichFunction(NamedTuple):
    fn: Digest


class Called(NamedTuple):
    req: int
    ok: bool
    payload: Payload


# --- to all -----------------------------------------------------------------------------------------


class Stop(NamedTuple):
    """Broker to node, worker or client: the cluster shuts down."""

    reason: str


class Specs(NamedTuple):
    """Broker to client: how keys that it has from others are computed, since nobody else who knows wants them any more.

    Functions as in Define; rows with parents first: key, function (empty: data), arguments, dependencies, options.
    """

    functions: tuple[tuple[Digest, str, Payload], ...]
    rows: tuple[tuple[Key, bytes, Payload, tuple[Key, ...], tuple[Any, ...]], ...]


class Starved(NamedTuple):
    """Broker to client: tasks that wait because no worker may take them: how many, why. Absolute; () when none do."""

    rows: tuple[tuple[int, str], ...]


Message: TypeAlias = (
    Hello | Welcome | HelloPlease | Refused | Ping | Pong | BulkHello
    | Define | Submit | Want | Release | Cancel | Retry | Hold | Place | Ask | Call | Bye
    | Members | Finished | Failed | Killed | Lost | Cancelled | Rejected | Answer | Output
    | Run | Drop | TakeBack | Abort | Replicate | Locate | Fence
    | Subscribe | Done | Erred | Held | Missing | Returned | Seceded | WhichFunction | Called
    | WorkerDied | Adjust | Adjusted | Stop
    | Get | Data | Taken | Probe | ProbeReply
    | Lane | SubmitEarly | RunEarly | DoneEarly
    | Starved | NodeEnded | Claim
    | TimeLimit | Interrupt | Overdue | Leaving | Dismiss
    | Unowned | Adopt | Mirror | Mirrored | NoCopy
    | ActorCall | ActorReply | ActorGone
    | Specs | Alive | Unheard
)  # fmt: skip

# The position is the code on the wire: append only, never reorder within a protocol version.
TYPES: Final[tuple[type[Message], ...]] = Message.__args__


class Packet(NamedTuple):
    """What one flush sends to one peer: a session's messages. ``seq`` 0 is outside the numbering."""

    session: Session
    seq: int
    ack: int
    messages: tuple[Message, ...]
