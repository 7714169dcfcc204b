"""Messages that clients and workers exchange without the broker, or that it only hands on; and what lanes add. PURE."""

from __future__ import annotations

from typing import NamedTuple

from zdist.protocol.fields import Attempt, Digest, Key, Payload, Session

# --- data: peer sockets, and the bulk socket where the broker relays by ``holder`` and ``receiver`` ----


class Get(NamedTuple):
    """Ask for byte ranges of blobs: key, offset, length (0: to the end); a chunk's worth comes back.

    ``holder`` and ``receiver`` are session ids; over the relay the broker routes by them. ``shm``: the receiver can map
    the holder's shared memory and asks for no bytes, but that the blobs be put there; offset and length are 0 and 1.
    """

    req: int
    token: str
    holder: Session
    receiver: Session
    rows: tuple[tuple[Key, int, int], ...]
    shm: bool = False


class Data(NamedTuple):
    """Byte ranges: key, attempt, total bytes of the blob, offset, consecutive pieces. ``absent``: key, code, text.

    Codes of ``absent``: "unknown" (not held here), "unpicklable" (has no bytes; text says why), "busy", and in the
    answer to a Get with ``shm`` "heap": to be had as bytes only. That answer has no rows, but in ``shared`` the key,
    attempt and bytes of each blob that now lies in the holder's shared memory.
    """

    req: int
    receiver: Session
    rows: tuple[tuple[Key, Attempt, int, int, tuple[Payload, ...]], ...]
    absent: tuple[tuple[Key, str, str], ...]
    shared: tuple[tuple[Key, Attempt, int], ...] = ()


class Taken(NamedTuple):
    """The receiver has this request's data and the relay's grant for it is free again."""

    req: int


class Probe(NamedTuple):
    req: int
    token: str


class ProbeReply(NamedTuple):
    """Who is at this address; "" to those with the wrong token."""

    req: int
    session: Session


# --- lanes: early copies of a lone task and of its result, straight between client and worker ------------


class Lane(NamedTuple):
    """Attempts from ``first`` to before ``until`` are a client's own, to start lone tasks with at one worker.

    Broker to client: ``session`` is the worker; empty: the lane is over, to be acknowledged. Client to broker: asks for
    a lane (``first`` 0), or uses this one no more. Broker to worker: ``session`` is the client; empty: the lane is
    over, and attempts from ``until`` on are nobody's.
    """

    session: Session
    first: Attempt
    until: Attempt


class SubmitEarly(NamedTuple):
    """Tasks that went to a lane's worker: generation, attempt, key, arguments.

    Each has a key of its own, no dependencies and default options, and was sent when the one before it was done.
    """

    fn: Digest
    rows: tuple[tuple[int, Attempt, Key, Payload], ...]


class RunEarly(NamedTuple):
    """The early copy of Run, client to worker.

    ``over``: keys of tasks that went by the same lane before, which the client is through with and the broker will not
    hear of: their results may go, and there is nothing to report.
    """

    token: str
    fn: Digest
    attempt: Attempt
    key: Key
    args: Payload
    over: tuple[Key, ...]


class DoneEarly(NamedTuple):
    """The early copy of Finished, worker to client, for a result whose value is small.

    ``untold``: the worker has not spoken to the broker about this task, of output for instance.
    """

    key: Key
    attempt: Attempt
    nbytes: int
    value: Payload
    type: str
    untold: bool
