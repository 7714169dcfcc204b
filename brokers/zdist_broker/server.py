"""The broker's process: two ROUTERs, with I/O threads of their own, around the machines."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from zdist import limits, log
from zdist.errors import InvariantError
from zdist.log import Logger
from zdist.transport import sockets
from zdist.transport.host import host_id
from zdist.transport.loop import Loop
from zdist.transport.scratch import LockedFile
from zdist.transport.security import new_token, publish_token, token_path, write_token
from zdist.transport.versions import versions
from zdist_broker.endpoint import BrokerEndpoint
from zdist_broker.machine import BrokerMachine, Expel, Shutdown
from zdist_broker.near import look
from zdist_broker.relay import Peek, Relay

__all__ = ["BrokerServer"]

SETTLED = 1.0  # seconds after its start, and so often again, it looks whether it has time for what can wait
SETTLED_AT_LAST = 10.0  # then it takes the time: while descriptors are left to load it
IDLE_COLLECT = 5.0  # seconds between garbage collections, made while nothing waits


class Kept(Logger):
    """A logger whose records from level "info" on are also kept, as (level, line), for those who ask the broker."""

    __slots__ = ("records",)

    def __init__(self, fields: dict[str, Any], records: deque[tuple[str, str]]) -> None:
        super().__init__(fields)
        self.records = records

    def log(self, level: str, event: str, /, **fields: Any) -> None:
        """Write and keep a record."""
        if level != "debug":
            shown = "".join(f" {name}={value}" for name, value in fields.items())
            self.records.append((level.upper(), f"{time.strftime('%F %T')} {event}{shown}"[: limits.MAX_REASON]))
        super().log(level, event, **fields)


class BrokerServer:
    """A broker that listens at ``bind``; ``run`` serves until ``stop`` or an order to shut down.

    ``bind``: ``tcp://HOST:PORT`` (port 0: a free one) or ``ipc:///PATH``; ``bulk_bind`` likewise for relayed data, by
    default beside it. ``token_file``: where the cluster token lies or is to be written; by default in the user's
    runtime directory, found there by address while the broker lives. ``inline_result``: bytes up to which results
    travel with their completion, 0 for none. ``allowed_deaths``: workers that may die under a task before it fails.
    ``first``: no broker was at this address before. Else those that were connected to it have the time to come before
    anything is said of what clients share. Leases in seconds. Raises AddressRefused for an address that a network can
    reach unless ``insecure``, AddressUnavailable for a port in use.
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
        allowed_deaths: int = limits.ALLOWED_DEATHS,
        lease_node: float = limits.LEASE_NODE,
        lease_client: float = limits.LEASE_CLIENT,
        first: bool = False,
    ) -> None:
        self.stopping = False
        self.ended = ""  # why the cluster is over, if it is
        self.free_port = bind.endswith((":0", ":*"))
        self.published: LockedFile | None = None
        epoch = int(time.time() * 1000)  # a successor may come within the same second
        # the endpoint needs the bound addresses and the loop needs the endpoint: sockets come first
        context = sockets.context(io_threads=3)
        control = sockets.router(context, affinity=1)
        bulk = sockets.router(context, affinity=2 + 4, largest=limits.MAX_BULK, inbox=4 * limits.BULK_MESSAGES)
        try:
            self.address = sockets.bind(control, bind, insecure=insecure, advertise=advertise, option="--bind")
            self.bulk_address = sockets.bind(
                bulk,
                bulk_bind or sockets.bulk_address(bind),
                insecure=insecure,
                advertise=advertise,
                option="broker.bulk_bind in the configuration",
            )
            self.token = token or self._token(Path(token_file) if token_file is not None else None)
        except BaseException:
            context.destroy(0)
            raise
        self.cluster = cluster_id(self.address)
        relay = Relay(host=host_id())
        self.machine = BrokerMachine(
            epoch=epoch,
            cluster=self.cluster,
            address=self.address,
            relay=relay,
            inline_result=inline_result,
            allowed_deaths=allowed_deaths,
            born=None if first or self.free_port else time.monotonic(),
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
        looks = self.machine.looks
        looks.began, looks.versions = self.loop.now(), versions
        self.loop.log = Kept(self.loop.log.fields, looks.records)
        self.loop.attach("control", control, router=True)
        self.loop.attach("bulk", bulk, router=True)
        self._thread: threading.Thread | None = None

    def _token(self, file: Path | None) -> str:
        """The token of an earlier broker at this address, so that its peers find their way back, or a new one."""
        token = ""
        with contextlib.suppress(OSError):
            token = (file or token_path(self.address)).read_text().strip()
        fresh = not token
        token = token or new_token()
        if file is None:
            self.published = publish_token(token, self.address)
        elif fresh:
            write_token(token, file)
        return token

    def _execute(self, command: Any) -> None:
        kind = type(command)
        if kind is Peek:
            self.endpoint.relay.peeked(command.get, look(command.get), self.loop.now())
        elif kind is Expel:
            self.endpoint.expel(command.session, command.reason, self.loop.now())
        elif kind is Shutdown:
            self.ended = command.reason
            self.stopping = True
        else:
            raise InvariantError(f"the broker cannot do {command!r}")

    def _settle(self) -> None:
        """Load what log records need as soon as nothing waits, beside the loop: it takes a good part of a second, in
        which a burst of connections may use up all descriptors."""
        until = time.monotonic() + SETTLED_AT_LAST
        self.loop.drive(lambda: self.stopping, SETTLED)
        while not self.stopping and self.machine.busy() and time.monotonic() < until:
            self.loop.drive(lambda: self.stopping, SETTLED)
        threading.Thread(target=_prepare_log, name="zdist-broker-log", daemon=True).start()

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
            if own_process:
                self._settle()
            while not self.stopping:
                self.loop.drive(lambda: self.stopping, IDLE_COLLECT)
                if self.published is not None:
                    self.published.touch()
                if own_process and not self.stopping and time.monotonic() - collected > IDLE_COLLECT:
                    if not self.machine.busy():
                        gc.collect()
                    collected = time.monotonic()
        finally:
            self.loop.log.info("broker.down", address=self.address)
            if not self.ended:
                with self.loop.lock:
                    self.endpoint.farewell(f"the broker at {self.address} was stopped")
            self.loop.close(0.5)
            for address in (self.address, self.bulk_address):
                sockets.unlink_ipc(address)
            if self.published is not None:
                if self.free_port:
                    self.published.remove()  # no other broker comes to this address
                self.published.release()

    def start(self) -> None:
        """Serve in a thread of this process."""
        self._thread = threading.Thread(target=self.run, name="zdist-broker", daemon=True)
        self._thread.start()

    def stop(self, *, end: str = "") -> None:
        """End `run`; peers go on looking for a broker at this address. Safe from signal handlers.

        ``end``: why this is the end of the whole cluster, of which nodes and clients are told instead; not safe there.
        """
        if end:
            with self.loop.lock:
                self.machine.shut_down(end)
            self.loop.wake()
        else:
            self.stopping = True
            self.loop.interrupt()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)


def cluster_id(address: str) -> str:
    """Name the cluster, the same for a broker that takes another's place: futures may be pickled in its state."""
    place = f"{host_id()} {address}"
    return f"cluster-{hashlib.blake2b(place.encode(), digest_size=4).hexdigest()}"


def _prepare_log() -> None:
    with contextlib.suppress(OSError):  # no file can be opened: the first record tries again
        log.prepare()
