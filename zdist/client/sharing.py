"""How a client works on state that the cluster shares: operations that the broker does once, values with futures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from zdist import context, serialize
from zdist.client.base import Base, Wait
from zdist.client.future import origins, pickling_for
from zdist.core.collect import Signal
from zdist.core.entry import PENDING, Reply
from zdist.limits import MAX_KEY, NOTICE, SHARED_VALUE

__all__ = ["Named", "Sharing"]

SUBMITTED_LOOK = 0.005  # seconds between looks whether futures that are to be shared have been submitted

Answer = tuple[str, Any]


class Sharing(Base):
    """The part of the client that operates on shared state."""

    _heard: list[int]  # operations whose answers are here, and of which the broker has not been told that

    def share(
        self, kind: str, name: str, verb: str, args: tuple[Any, ...] = (), notify: Callable[[Reply], None] | None = None
    ) -> int:
        """Begin an operation, which `operate` tells of; its number. ``notify`` is told of the answer, in the driver's
        turn."""
        return self._begin_op(kind, name, verb, args, None, notify)[0]

    def _begin_op(
        self,
        kind: str,
        name: str,
        verb: str,
        args: tuple[Any, ...],
        timeout: float | None,
        notify: Callable[[Reply], None] | None = None,
    ) -> tuple[int, Reply]:
        driver = self._usable()
        with self._lock:
            heard, self._heard = tuple(self._heard), []
            reply = self._ledger.ask("shared", (heard, kind, name, verb, args, timeout))
            number = self._ledger.req
            if notify is not None:
                reply.waiters = [_Told(notify)]
        driver.wake()
        return number, reply

    def cancel_op(self, number: int) -> None:
        """Nobody waits for the operation of this ``number``: undo it if it was done."""
        if self._driver is not None and self._ledger.over is None:
            with self._lock:
                self._ledger.replies.pop(number, None)
            self.share("", "", "cancel", (number,))

    async def operate(
        self, kind: str, name: str, verb: str, args: tuple[Any, ...] = (), timeout: float | None = None
    ) -> Answer:
        """Do an operation on state that clients share: ("ok", value) or ("timeout", why, None if the broker says so).

        Parameters:
            kind, name: what it is of, as "queue" and the queue's name.
            verb, args: what is to be done, see ``zdist_broker.verbs``.
            timeout: seconds to wait until it can be done; the broker counts them, and if it is away this client does.

        Raises ZdistError with what the broker says against it. If the caller is interrupted or runs out of time, what
        it took is there again, and what it put is not, unless somebody has taken it; other changes may be made.
        """
        number, reply = self._begin_op(kind, name, verb, args, timeout)
        patience = None if timeout is None else timeout + NOTICE
        try:
            status, value = await self._answer(reply, patience, f"{kind} {name}".rstrip())
        except TimeoutError:
            self.cancel_op(number)
            return "timeout", f"; the broker at {self.address} does not answer{self.hindrance()}"
        except BaseException:
            if not reply.done or reply.ok:
                self.cancel_op(number)
            raise
        self._heard.append(number)
        return status, value

    # --- values -------------------------------------------------------------------------------------------

    async def frozen(self, value: Any, what: str) -> tuple[bytes, tuple[str, ...], list[Any]]:
        """A value's payload, the keys of the futures in it, and what to keep until the broker has it.

        Raises ValueError for one that is too large, SerializationError.
        """
        with pickling_for(self):
            blob = serialize.dumps(value, what=what)
            kept = [] if origins.foreign is None else self._joined(origins.foreign)
        if blob.nbytes > SHARED_VALUE:
            raise ValueError(
                f"{what} has {blob.nbytes} bytes, and at most {SHARED_VALUE} can be shared: scatter it, and share the "
                "future"
            )
        await self._submitted(blob.refs)
        return blob.tobytes(), blob.refs, [kept, value]

    async def _submitted(self, keys: tuple[str, ...]) -> None:
        """Wait until the broker was told of these keys: those that wait in this client's window may be let go of."""
        entries = self._ledger.entries
        while any(
            (entry := entries.get(key)) is not None and entry.status == PENDING and not entry.gen for key in keys
        ):
            await Wait(Signal(1), time.monotonic() + SUBMITTED_LOOK)

    def thawed(self, rows: tuple[tuple[bytes, tuple[str, ...]], ...], what: str) -> list[Any]:
        """The values of an answer's ``rows``. Their futures are this client's from now on, which the broker is told."""
        values = [serialize.loads(payload, what=what, owner=self) for payload, _ in rows]
        if any(keys for _, keys in rows):
            self.share("", "", "confirm")
        return values


class _Told:
    """Waiter: call a function with the answer."""

    __slots__ = ("notify",)

    def __init__(self, notify: Callable[[Reply], None]) -> None:
        self.notify = notify

    def resolved(self, entry: Any, /) -> None:
        self.notify(entry)


class Named:
    """Something that clients share by its name. Pickled, it is the same thing at the receiver's client.

    Its verbs are awaited on an asynchronous client, and in the coroutines of tasks and actors.

    Parameters: the name (default: a new one), and the client (default: the current one).
    """

    kind: str

    def __init__(self, name: str | None = None, client: Any = None) -> None:
        found = client if client is not None else context.find_client()
        if found is None:
            raise ValueError(f"no client in this process for a {type(self).__name__}: make one with zdist.Client(...)")
        self.client: Any = found
        if name is None:
            name = f"{self.kind}-{self.client._nonce}{next(self.client._counter)}"
        if not isinstance(name, str) or not 0 < len(name) <= MAX_KEY:
            raise ValueError(f"the name of a {type(self).__name__} has 1 to {MAX_KEY} characters, not {name!r:.80}")
        self.name = name

    async def _do(self, verb: str, args: tuple[Any, ...] = (), timeout: float | None = None) -> Any:
        """The value of an operation. Raises TimeoutError."""
        status, value = await self.client.operate(self.kind, self.name, verb, args, timeout)
        if status == "timeout":
            raise TimeoutError(f"{verb} of {self.kind} {self.name}: not within {timeout:g} s{value or ''}")
        return value

    def _awaited(self) -> bool:
        """Whether verbs are awaited; also in a task's coroutine: to block would hold up all others on its loop."""
        if self.client._worker is not None and asyncio._get_running_loop() is not None:
            return True
        return bool(self.client.asynchronous)

    def _sync(self, work: Any) -> Any:
        return self.client._sync(work, self._awaited())

    def __await__(self) -> Any:
        async def itself() -> Any:
            return self

        return itself().__await__()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"
