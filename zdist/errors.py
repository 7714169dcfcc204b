"""Every exception that zdist raises on purpose; each says what happened, where, and what to do."""

from __future__ import annotations

import concurrent.futures

__all__ = [
    "ActorLost",
    "AddressRefused",
    "AddressUnavailable",
    "AuthenticationError",
    "BrokerUnreachable",
    "CancelledError",
    "ClusterClosed",
    "ConfigError",
    "InitializerFailed",
    "InvariantError",
    "KeyConflict",
    "KilledWorker",
    "PeerUnreachable",
    "ProtocolError",
    "RemoteError",
    "SecededLimit",
    "SerializationError",
    "TaskTimeout",
    "UnknownKey",
    "VersionMismatch",
    "ZdistError",
]


class ZdistError(Exception):
    """Base of all errors that zdist itself raises.

    They are zdist's own; those that dask.distributed or concurrent.futures have under the same name mean the same.
    """


class CancelledError(ZdistError, concurrent.futures.CancelledError):
    """The future was cancelled; the text says by whom or why (client, lost scattered data, restart)."""


class KilledWorker(ZdistError):
    """A task's workers died more often than allowed; the text says where and how the last one died."""


class ActorLost(ZdistError, ValueError):
    """An actor is no more: its worker died or left, or nobody held it. Its state is gone; the text says why."""


class TaskTimeout(ZdistError, TimeoutError):
    """A task ran for longer than its ``timeout``; its worker was replaced. The text says which, how long and where."""


class InitializerFailed(ZdistError, concurrent.futures.BrokenExecutor):
    """An executor's initializer raised in a worker, and is the cause of this; the executor takes nothing any more."""

    executor = ""  # its id


class SerializationError(ZdistError, TypeError):
    """An object could not be turned into bytes, or bytes into an object; the text names which and where."""


class RemoteError(ZdistError, RuntimeError):
    """A task's exception could not be pickled, and the text carries its type, message and traceback; or it would have
    steered the program that asks for the result (SystemExit, StopIteration, …), and is the cause of this one."""


class KeyConflict(ZdistError, ValueError):
    """A key was given again for another function or other arguments while the first is alive."""


class UnknownKey(ZdistError, KeyError):
    """Nobody in the cluster knows this key any more."""

    def __str__(self) -> str:  # KeyError would show the repr of the text
        return str(self.args[0]) if self.args else ""


class BrokerUnreachable(ZdistError, OSError):
    """No broker answered at the address within the timeout."""


class PeerUnreachable(ZdistError, OSError):
    """A worker's own socket could not be reached and falling back to the relay was not allowed."""


class AddressRefused(ZdistError, ValueError):
    """An address to listen at that is none, or that a network can reach, without leave to use one."""


class AddressUnavailable(ZdistError, OSError):
    """Nothing can listen at an address: its port is in use, or its host is not this machine's."""


class AuthenticationError(ZdistError, PermissionError):
    """The cluster token is missing or wrong."""


class ProtocolError(ZdistError):
    """Bytes on a socket that are no zdist message, or a message that breaks the protocol."""


class VersionMismatch(ProtocolError):
    """The other side speaks another protocol version; the text names both."""


class InvariantError(ZdistError, AssertionError):
    """A state machine found itself in a state that must not exist; always a defect in zdist."""


class SecededLimit(ZdistError, RuntimeError):
    """Too many tasks of one worker have left its thread pool at once (deeply nested gathers)."""


class ConfigError(ZdistError, ValueError):
    """A configuration value is unknown, ill-typed or contradictory; the text names file and key path."""


class ClusterClosed(ZdistError, RuntimeError):
    """The client or cluster was closed before the call could finish."""
