"""Functions that a client runs on a worker outside the task system.

The payload is the stream of ``(digest, function's bytes, arguments' bytes)`` as `dumps_function` and `dumps_args` make
them. The answer is the stream of the result, or the bytes of the exception.
"""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

from zdist import context, limits
from zdist.errors import SerializationError
from zdist.protocol.messages import Buffer, Payload
from zdist.serialize import dumps, dumps_error, loads, loads_args, loads_function
from zdist.worker.actors import run_coroutine

__all__ = ["run_call"]


def run_call(payload: bytes | bytearray | memoryview, worker: Any) -> tuple[bool, Payload]:
    """Run it; whether it returned, and the answer. A parameter named ``dask_worker`` gets the worker, as in dask.

    A coroutine is run to its end on an event loop of its own.
    """
    token = context.current.set(_Running(worker))
    try:
        digest, data, packed = loads(payload, what="call")
        function = loads_function(data, digest)
        args, kwargs = loads_args(packed, _no_references)
        if _takes_worker(function):
            kwargs.setdefault("dask_worker", worker)
        value = function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = run_coroutine(value)
        blob = dumps(value, what="result of the call")
    except BaseException as exc:  # also SystemExit: a call must not end the worker
        exc.__traceback__ = exc.__traceback__ and exc.__traceback__.tb_next
        return False, dumps_error(exc)
    finally:
        context.current.reset(token)
    stream = blob.tobytes()
    return True, stream if len(stream) < limits.OWN_FRAME else Buffer(stream)


class _Running:
    """What such a function finds as its task (`zdist.context.TaskContext`), one outside of the pool, without a key."""

    key = ""
    seceded = True

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def secede(self) -> None:
        """It holds no thread of the pool."""

    def rejoin(self) -> None:
        """It takes none."""

    def output(self, stream: str, text: str) -> None:
        """No client wants a key of it: the text stays with the worker."""


def _takes_worker(function: Any) -> bool:
    try:
        return "dask_worker" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin that does not tell
        return False


def _no_references(key: str) -> NoReturn:
    raise SerializationError(f"a future ({key}) cannot be an argument of a call: gather it first")
