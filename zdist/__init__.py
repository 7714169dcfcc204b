"""zdist: submit, map, scatter and gather over a ZeroMQ message bus.

Names are loaded at their first use, so ``import zdist`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zdist.client.actor import Actor, ActorFuture
    from zdist.client.client import Client
    from zdist.client.coordination import Event, Queue, Variable
    from zdist.client.executor import ZdistExecutor
    from zdist.client.future import Future
    from zdist.client.locks import Lock, MultiLock, Semaphore
    from zdist.client.plugins import WorkerPlugin
    from zdist.client.progress import progress
    from zdist.client.tasks import (
        fire_and_forget,
        futures_of,
        get_client,
        get_worker,
        print,
        rejoin,
        secede,
        warn,
        worker_client,
    )
    from zdist.client.waiting import (
        ALL_COMPLETED,
        FIRST_COMPLETED,
        DoneAndNotDoneFutures,
        as_completed,
        wait,
    )
    from zdist.cluster.local import LocalCluster
    from zdist.context import default_client
    from zdist.errors import (
        ActorLost,
        AddressRefused,
        AuthenticationError,
        BrokerUnreachable,
        CancelledError,
        ClusterClosed,
        ConfigError,
        InitializerFailed,
        KeyConflict,
        KilledWorker,
        PeerUnreachable,
        ProtocolError,
        RemoteError,
        SecededLimit,
        SerializationError,
        TaskTimeout,
        UnknownKey,
        VersionMismatch,
        ZdistError,
    )
    from zdist.integrations.dask import dask_get

__version__ = "0.1.0"

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "Actor",
    "ActorFuture",
    "ActorLost",
    "AddressRefused",
    "AuthenticationError",
    "BrokerUnreachable",
    "CancelledError",
    "Client",
    "ClusterClosed",
    "ConfigError",
    "DoneAndNotDoneFutures",
    "Event",
    "Future",
    "InitializerFailed",
    "KeyConflict",
    "KilledWorker",
    "LocalCluster",
    "Lock",
    "MultiLock",
    "PeerUnreachable",
    "ProtocolError",
    "Queue",
    "RemoteError",
    "SecededLimit",
    "Semaphore",
    "SerializationError",
    "TaskTimeout",
    "UnknownKey",
    "Variable",
    "VersionMismatch",
    "WorkerPlugin",
    "ZdistError",
    "ZdistExecutor",
    "__version__",
    "as_completed",
    "dask_get",
    "default_client",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_worker",
    "print",
    "progress",
    "rejoin",
    "secede",
    "wait",
    "warn",
    "worker_client",
]

_HOMES = {
    "zdist.client.actor": ("Actor", "ActorFuture"),
    "zdist.client.client": ("Client",),
    "zdist.client.coordination": ("Event", "Queue", "Variable"),
    "zdist.client.executor": ("ZdistExecutor",),
    "zdist.client.plugins": ("WorkerPlugin",),
    "zdist.client.future": ("Future",),
    "zdist.client.locks": ("Lock", "MultiLock", "Semaphore"),
    "zdist.client.progress": ("progress",),
    "zdist.client.tasks": (
        "fire_and_forget",
        "futures_of",
        "get_client",
        "get_worker",
        "print",
        "rejoin",
        "secede",
        "warn",
        "worker_client",
    ),
    "zdist.client.waiting": (
        "ALL_COMPLETED",
        "FIRST_COMPLETED",
        "DoneAndNotDoneFutures",
        "as_completed",
        "wait",
    ),
    "zdist.cluster.local": ("LocalCluster",),
    "zdist.context": ("default_client",),
    "zdist.integrations.dask": ("dask_get",),
}
_HOME = dict.fromkeys(__all__, "zdist.errors") | {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'zdist' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
