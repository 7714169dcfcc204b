"""The broker's process: two ROUTERs, each with an I/O thread of its own, around the machines."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from zdist import limits
from zdist.errors import InvariantError
from zdist.transport import sockets
from zdist.transport.loop import Loop
from zdist.transport.security import new_token, token_path, write_token
from zdist_broker.endpoint import BrokerEndpoint
from zdist_broker.machine import BrokerMachine, Expel, Shutdown
from zdist_broker.relay import Relay

__all__ = ["BrokerServer"]

IDLE_COLLECT = 5.0  # seconds between garbage collections, made while nothing waits


class BrokerServer:
    """A broker that listens at ``bind``; ``run`` serves until ``stop`` or an order to shut down.

    ``bind``: ``tcp://HOST:PORT`` (port 0: a free one) or ``ipc:///PATH``; ``bulk_bind`` likewise for relayed data, by
    default beside it. ``token_file``: where the cluster token lies or is to be written; by default in the user's
    runtime directory, found there by address. ``inline_result``: bytes up to which results travel with their
    completion, 0 for none. Leases in seconds. Raises AddressRefused for an address that a network can reach unless
    ``insecure``, OSError for a port in use.
    """

    def __init__(
        self,
        bind: str,
        *,
        bulk_bind: str | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        advertise: str | None = None,
        inline_result: int = limits.INLINE_RESULT,
        lease_node: float = limits.LEASE_NODE,
        lease_client: float = limits.LEASE_CLIENT,
    ) -> None:
        self.stopping = False
        epoch = int(time.time())
        # the endpoint needs the bound addresses and the loop needs the endpoint: sockets come first
        context = sockets.context(io_threads=2)
        control = sockets.router(context, affinity=1)
        bulk = sockets.router(context, affinity=2)
        try:
            self.address = sockets.bind(control, bind, insecure=insecure, advertise=advertise)
            self.bulk_address = sockets.bind(
                bulk, bulk_bind or sockets.bulk_address(bind), insecure=insecure, advertise=advertise
            )
        except BaseException:
            context.destroy(0)
            raise
        self.token_file = Path(token_file) if token_file is not None else token_path(self.address)
        self.token = token or self._token()
        self.cluster = f"cluster-{secrets.token_hex(4)}"
        relay = Relay()
        self.machine = BrokerMachine(
            epoch=epoch, cluster=self.cluster, address=self.address, relay=relay, inline_result=inline_result
        )
        self.endpoint = BrokerEndpoint(
            self.machine,
            relay,
            epoch=epoch,
            token=self.token,
            cluster=self.cluster,
            bulk=self.bulk_address,
            lease_node=lease_node,
            lease_client=lease_client,
        )
        self.loop = Loop(self.endpoint, self._execute, name="broker", context=context)
        self.loop.attach("control", control, router=True)
        self.loop.attach("bulk", bulk, router=True)
        self._thread: threading.Thread | None = None

    def _token(self) -> str:
        """The token of an earlier broker at this address, so that its peers find their way back, or a new one."""
        with contextlib.suppress(OSError):
            found = self.token_file.read_text().strip()
            if found:
                return found
        token = new_token()
        write_token(token, self.token_file)
        return token

    def _execute(self, command: Any) -> None:
        kind = type(command)
        if kind is Expel:
            self.endpoint.expel(command.session, command.reason, self.loop.now())
        elif kind is Shutdown:
            self.stopping = True
        else:
            raise InvariantError(f"the broker cannot do {command!r}")

    def run(self, *, own_process: bool = False) -> None:
        """Serve in the calling thread until `stop` is called or a client shuts the cluster down.

        ``own_process`` switches automatic garbage collection off: scanning the records of many live tasks again and
        again would halve the rate; what is cyclic is collected while nothing waits.
        """
        self.loop.log.info("broker.up", address=self.address, bulk=self.bulk_address, cluster=self.cluster)
        if own_process:
            gc.freeze()
            gc.disable()
        collected = time.monotonic()
        try:
            while not self.stopping:
                self.loop.drive(lambda: self.stopping, IDLE_COLLECT)
                if own_process and not self.stopping and time.monotonic() - collected > IDLE_COLLECT:
                    if not self.machine.busy():
                        gc.collect()
                    collected = time.monotonic()
        finally:
            self.loop.log.info("broker.down", address=self.address)
            self.loop.close(0.5)
            for address in (self.address, self.bulk_address):
                sockets.unlink_ipc(address)

    def start(self) -> None:
        """Serve in a thread of this process."""
        self._thread = threading.Thread(target=self.run, name="zdist-broker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End `run`; safe from signal handlers and other threads."""
        self.stopping = True
        self.loop.interrupt()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
