"""The functions of tasks: each is defined once, and kept while a client or a task needs it. PURE."""

from __future__ import annotations

from typing import Final

from zdist.limits import CLIENT_FUNCTION_BYTES, FUNCTION_CACHE_BYTES, FUNCTIONS_DEFINED, MAX_KEY
from zdist.protocol.messages import Buffer, Define, Payload, function_digest, payload_size
from zdist_broker.state import Client, Function, Tables

__all__ = ["DIGEST", "Functions", "same_bytes"]

DIGEST: Final = 32  # bytes
_REFUSED: Final = 64  # functions remembered as refused, per client


def same_bytes(a: Payload, b: Payload) -> bool:
    """Whether two payloads are equal, however they are kept."""
    left = a.data if isinstance(a, Buffer) else a
    right = b.data if isinstance(b, Buffer) else b
    return left == right


class Functions:
    """Handler for the message that defines functions, and who owns them."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._unused = 0  # bytes of functions without tasks when they were last counted

    def define(self, client: Client, message: Define, now: float) -> None:
        functions = self.tables.functions
        fn = functions.get(message.fn)
        reason = self._unfit(client, message, fn)
        if reason:  # its submissions are rejected with this reason
            if len(client.refused) >= _REFUSED:
                del client.refused[next(iter(client.refused))]
            client.refused[message.fn[:DIGEST]] = reason
            return
        client.refused.pop(message.fn, None)
        if fn is None:
            fn = functions[message.fn] = Function(message.fn, message.name[:MAX_KEY], message.blob)
            self._unused += fn.nbytes
            if self._unused > FUNCTION_CACHE_BYTES:
                self._shrink(fn)
        if fn not in client.functions:
            client.functions[fn] = None
            client.function_bytes += fn.nbytes
            fn.owners += 1

    def _unfit(self, client: Client, message: Define, known: Function | None) -> str:
        """Why this definition is not taken. A digest that others rely on names these bytes and no others."""
        name = message.name[:80]
        if known is not None:
            if not same_bytes(known.blob, message.blob):
                return f"the bytes of function {name} are not those that its digest names"
            if known in client.functions:
                return ""
        elif len(message.fn) != DIGEST or function_digest(message.blob) != message.fn:
            return f"the bytes of function {name} are not those that its digest names"
        size = payload_size(message.blob)
        if len(client.functions) >= client.trim_at or client.function_bytes + size > CLIENT_FUNCTION_BYTES:
            self._trim(client)
            if client.function_bytes + size > CLIENT_FUNCTION_BYTES:
                return (
                    f"function {name} has {size} bytes, {client.function_bytes} bytes of functions are in use, and "
                    f"{CLIENT_FUNCTION_BYTES} bytes are allowed; scatter the data that they refer to"
                )
        return ""

    def _trim(self, client: Client) -> None:
        """Take functions without tasks off a client's books, so that their number stays bounded."""
        for fn in [fn for fn in client.functions if not fn.uses]:
            self._disown(client, fn)
        client.trim_at = max(FUNCTIONS_DEFINED, 2 * len(client.functions))

    def _disown(self, client: Client, fn: Function) -> None:
        del client.functions[fn]
        client.function_bytes -= fn.nbytes
        fn.owners -= 1
        if not fn.owners and not fn.uses:
            self.tables.functions.pop(fn.digest, None)

    def _shrink(self, newest: Function) -> None:
        """Drop functions that no task uses, oldest first, down to half of what is allowed."""
        functions = self.tables.functions
        idle = [f for f in functions.values() if not f.uses and f is not newest]
        self._unused = newest.nbytes + sum(f.nbytes for f in idle)
        for fn in idle:
            if self._unused <= FUNCTION_CACHE_BYTES // 2:
                break
            self._unused -= fn.nbytes
            for client in self.tables.clients.values():
                if fn in client.functions:
                    self._disown(client, fn)

    def disown(self, client: Client) -> None:
        """A client is gone, and with it functions that nobody else uses."""
        for fn in list(client.functions):
            self._disown(client, fn)
