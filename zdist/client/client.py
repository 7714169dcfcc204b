"""The client: a connection to a broker, and what a program does with it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import os
import secrets
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Final

from zdist import context, limits
from zdist.client.absent import Absent
from zdist.client.actor import Acting
from zdist.client.base import Wait, open_clients
from zdist.client.graphs import Graphs
from zdist.client.inspecting import Inspecting, read_scheduler_file
from zdist.client.plugins import Plugins
from zdist.client.published import Published
from zdist.client.replicating import Replicating
from zdist.client.scattering import Scattering
from zdist.client.settings import configured, paths, refusal
from zdist.client.waiting import seconds
from zdist.core.collect import Signal
from zdist.core.ledger import Ledger, Over
from zdist.core.links import SHM, Host
from zdist.core.transfer import Map
from zdist.errors import BrokerUnreachable
from zdist.protocol.messages import Output
from zdist.serialize.assembly import BlobMemory
from zdist.transport import shm
from zdist.transport.address import broker_address, check_host
from zdist.transport.driver import Driver
from zdist.transport.host import host_id
from zdist.transport.security import TokenSource

__all__ = ["Client"]

CLOSE_TIMEOUT: Final = 2.0


class Client(Graphs, Scattering, Published, Plugins, Acting, Replicating, Inspecting, Absent):
    """Connect to a broker and use its workers. Names and semantics follow ``dask.distributed.Client`` 2021.10.

    README compares the two method by method; what dask's client does not have is zdist's own. A method's parameter
    ``asynchronous`` is True for an awaitable, False to block, None as the client is.

    Parameters:
        address: the broker's address (``tcp://HOST:PORT``, ``ipc:///PATH``), a cluster object, or None: inside a task
            the broker of its worker, else a `LocalCluster` of its own, made with ``cluster_kwargs`` (as in
            ``Client(n_workers=4, threads_per_worker=2)``) and closed with the client.
        asynchronous: methods that wait return awaitables; start it with ``await client`` or ``async with``.
        timeout: seconds to wait for the broker's answer; default ``limits.HANDSHAKE_TIMEOUT``.
        name: shown in logs, and to others whose futures this client cancels.
        direct_to_workers: default of ``gather(direct=)``. Its own default, and that of ``gather_paths``, is what the
            configuration says: ``ZDIST_CLIENT__DIRECT_TO_WORKERS``, or the YAML file of `from_yaml`.
        gather_paths: paths that gather may use, out of "local", "shm", "peer" and "relay"; default: all.
        set_as_default: be the one that futures and `default_client` find.
        token_file: where the cluster token lies, if not where the broker of the same user has put it.
        token: the token itself, or a function that finds it, called before each hello.
        fallback: what ``direct=True`` does where the peer path is closed: "relay" (with one warning) or "error".
        shared_memory: bytes (or "4 GiB") of large arguments and scattered data to be put into shared memory, where
            workers of this host find them; 0: none, and none is read. Default: half of what is free.
        scheduler_file: a file that `write_scheduler_file` has written, instead of ``address``.

    Raises:
        BrokerUnreachable: no broker answered in time; says what to check.
        AuthenticationError: the token is missing or wrong.
        VersionMismatch: the broker speaks another protocol version.
        ValueError: an address or option that cannot be.
    """

    def __init__(
        self,
        address: Any = None,
        *,
        asynchronous: bool = False,
        timeout: float | str | None = None,
        name: str | None = None,
        direct_to_workers: bool | None = None,
        gather_paths: Sequence[str] | None = None,
        set_as_default: bool = True,
        token_file: str | os.PathLike[str] | None = None,
        token: str | Callable[[], str] | None = None,
        fallback: str = "relay",
        shared_memory: str | int | None = None,
        scheduler_file: str | os.PathLike[str] | None = None,
        **cluster_kwargs: Any,
    ) -> None:
        if fallback not in ("relay", "error"):
            raise ValueError(f"fallback={fallback!r}: it is 'relay' or 'error'")
        self.asynchronous = asynchronous
        self.loop: asyncio.AbstractEventLoop | None = None
        self.direct = configured("direct_to_workers") if direct_to_workers is None else direct_to_workers
        self._shared = configured("shared_memory") if shared_memory is None else shared_memory
        self.cluster: Any = None
        self.status = "new"
        self.timeout = limits.HANDSHAKE_TIMEOUT if timeout is None else seconds(timeout) or 0.0
        self._owns_cluster = False
        self._orphan: Driver | None = None  # the parent's, in a forked child
        self._as_default = set_as_default
        self._token = token
        self._token_file = token_file
        nonce = secrets.token_hex(8)
        self.name = name or f"client-{os.getpid()}-{nonce[:4]}"
        usable = paths(configured("gather_paths") if gather_paths is None else gather_paths)
        self._options: dict[str, Any] = {"paths": usable, "fallback": fallback == "relay"}
        self._set_up(self._new_ledger(nonce, ""), nonce)
        if scheduler_file is not None:
            address = read_scheduler_file(scheduler_file, address)
        self.address = self._find(address, cluster_kwargs)
        if not asynchronous:
            self._look_up()
            self._begin()
            self._now(self._handshake())

    # --- starting ----------------------------------------------------------------------------------

    def _new_ledger(self, nonce: str, token: str) -> Ledger:
        near = Host(host_id()) if self._memory is not None else None
        maps = near is not None and SHM in self._options["paths"]
        info = {"name": self.name, "host": host_id(), "pid": os.getpid(), "shm": maps}
        ledger = Ledger(f"c-{nonce}", token, info, **self._options, host=near)
        ledger.fetcher.memory = BlobMemory()
        return ledger

    def _find(self, target: Any, cluster_kwargs: dict[str, Any]) -> str:
        """Where the broker is; starts a cluster if none is given."""
        if target is None:
            task = context.current.get()
            if task is not None and not cluster_kwargs:
                worker = task.worker
                self._token = self._token or (lambda: worker.token)
                return broker_address(task.worker.broker_address)
            from zdist.cluster.local import LocalCluster

            self.cluster = LocalCluster(asynchronous=self.asynchronous, **cluster_kwargs)
            self._owns_cluster = True
        elif cluster_kwargs:
            raise TypeError(
                f"Client() got unexpected keyword arguments {', '.join(sorted(cluster_kwargs))}; keywords of "
                "LocalCluster can only be given without an address"
            )
        elif isinstance(target, str):
            return broker_address(target)
        elif hasattr(target, "broker_address"):
            self.cluster = target
        else:
            hint = f"; for {target} workers write n_workers={target}" if type(target) is int else ""
            raise TypeError(f"Client takes an address or a cluster, not {type(target).__name__}{hint}")
        return "" if self.asynchronous else broker_address(self.cluster.broker_address)

    def _look_up(self) -> None:
        """Tell at once of a host name that cannot be; ZeroMQ would try for ever."""
        try:
            check_host(self.address)
        except BaseException:
            self._give_up()
            raise

    def _begin(self) -> None:
        """Make the driver; raises what is wrong with address or token at once."""
        try:
            if self.cluster is not None:
                self.address = broker_address(self.cluster.broker_address)
                self._token = self._token or self.cluster.token
            token = self._token or TokenSource(self.address, self._token_file)
            self._memory = shm.connect(f"c-{self._nonce}", self._memory_limit())
            self._set_up(self._new_ledger(self._nonce, token() if callable(token) else token), self._nonce)
            self._driver = Driver(
                self._ledger,
                session=self._ledger.session,
                token=token,
                control=self.address,
                name=self.name,
                execute=_Executor(self),
            )
        except BaseException:
            self._give_up()
            raise
        self._driver.imminent = self._ledger.lone_task_is_out
        self._lock = self._driver.lock
        self.status = "connecting"
        open_clients.add(self)
        self._driver.start()

    def _memory_limit(self) -> int | None:
        """Bytes that may be put into shared memory; None for half of what is free."""
        if getattr(self.cluster, "shared_memory", None) == 0:  # switched off for all
            return 0
        if not isinstance(self._shared, str):
            return self._shared
        from zdist.config.schema import parse_size

        return int(parse_size(self._shared))  # type: ignore[call-overload, no-any-return]

    async def _handshake(self) -> None:
        """Wait for the broker's welcome."""
        ready = self._ledger.ready
        driver = self._driver
        assert driver is not None
        try:
            with self._lock:
                signal = Signal(0 if ready.done else 1)
                ready.waiters = [signal]
            await Wait(signal, driver.now() + self.timeout)
            if not ready.done:
                raise BrokerUnreachable(
                    f"no broker answered at {self.address} within {self.timeout:g} s; check that `zdist broker` runs "
                    "there, that host and port are those it printed, and that no firewall is in between"
                )
            if not ready.ok:
                raise refusal(self.address, *ready.value)
        except BaseException:
            self._give_up()
            raise
        self.status = "running"
        if self._as_default:
            context.push_default(self)
            if not self.asynchronous:
                self._tell_dask("serve")
        if "joblib" in sys.modules:
            with contextlib.suppress(ImportError):  # a joblib that is too old, or is being imported
                importlib.import_module("zdist.integrations.joblib")

    def _tell_dask(self, what: str) -> None:
        """A default client is what dask computes with, and one that is closed is no more."""
        if "dask" in sys.modules:
            with contextlib.suppress(ImportError, AttributeError):  # it is being imported
                getattr(importlib.import_module("zdist.integrations.dask"), what)()

    def _give_up(self) -> None:
        driver, self._driver = self._driver, None
        self.status = "closed"
        if driver is not None:
            driver.close(0)
        if self._memory is not None:
            self._memory.close()
        if self._owns_cluster and not self.asynchronous:
            self.cluster.close()

    async def _start(self) -> Client:
        if self.status == "new":
            self.loop = asyncio.get_running_loop()
            if self._owns_cluster:
                await self.cluster
            else:
                await asyncio.to_thread(self._look_up)
            self._begin()
            try:
                await self._later(self._handshake())
            except BaseException:
                if self._owns_cluster:
                    await self.cluster.close()
                raise
        return self

    def __await__(self) -> Generator[Any, None, Client]:
        if not self.asynchronous:
            raise TypeError("only a client made with asynchronous=True can be awaited")
        return self._start().__await__()

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **options: Any) -> Client:
        """A client of the cluster that a YAML file describes (see ``zdist cluster up``); options override the file's.

        Raises ConfigError for a bad file, ClusterClosed if the cluster is not up.
        """
        from zdist.cluster.deploy import connection

        found = connection(path)
        return cls(found.address, **{"token_file": found.token_file, **found.options, **options})

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """The client of the code that runs: in a task its worker's, else the default one.

        Parameters:
            allow_global: accepted for the sake of programs written for dask.distributed; not used.

        Raises ValueError if there is none.
        """
        client = context.find_client()
        if client is None:
            raise ValueError("there is no client in this process: make one with zdist.Client(...) first")
        return client  # type: ignore[no-any-return]

    def as_current(self) -> context.as_current:
        """Context manager: within the block, in this thread or coroutine, this is the default client."""
        return context.as_current(self)

    # --- what the driver asks for --------------------------------------------------------------------

    def _execute(self, command: Any) -> None:
        if isinstance(command, Output):
            self._chore(_Show(command))
        elif isinstance(command, Over):
            if self.status in ("running", "connecting"):
                self.status = "closed"
                context.drop_default(self)
                self._tell_dask("withdraw")
            if self._driver is not None:
                self._driver.retire()
        elif isinstance(command, Map):
            assert self._memory is not None
            found, closed = self._memory.read(command.holder, command.rows)
            self._ledger.fetcher.mapped(command.req, found, closed, Driver.now())
        else:
            raise TypeError(f"unknown command {command!r}")

    # --- ending ------------------------------------------------------------------------------------

    def close(self, timeout: float | str | None = None) -> Any:
        """Say goodbye to the broker: unfinished futures are cancelled, results that nobody else wants are dropped.

        Idempotent. A cluster that this client has started is closed with it. An awaitable on an asynchronous client.
        """
        span = seconds(timeout)
        span = CLOSE_TIMEOUT if span is None else span
        if self.asynchronous:
            return self._closing_later(span)
        self._shut(span)
        if self._owns_cluster and self.cluster is not None:
            self.cluster.close()
        return None

    async def _closing_later(self, timeout: float) -> None:
        for pump in list(self._pumps):
            pump.stop()
        await asyncio.to_thread(self._shut, timeout)
        if self._owns_cluster and self.cluster is not None:
            await self.cluster.close()

    async def _closing(self, timeout: float) -> None:
        """From a waiting coroutine: both kinds of client can do without an event loop here."""
        self._shut(timeout)
        if self._owns_cluster and not self.asynchronous:
            self.cluster.close()

    def _shut(self, timeout: float) -> None:
        context.drop_default(self)
        self._tell_dask("withdraw")
        driver, self._driver = self._driver, None
        open_clients.discard(self)
        if driver is None:
            return
        self.status = "closing"
        pumps = list(self._pumps)
        if not self.asynchronous:
            for pump in pumps:
                pump.stop()
        with self._lock:
            ledger = self._ledger
            ledger.turn(driver.now())  # what was submitted goes out, for those that fire and forget
            ledger.abandon("closed", "client closed")
            ledger.turn(driver.now())
        driver.wake()
        for pump in pumps:
            pump.join(CLOSE_TIMEOUT)
        driver.close(timeout)
        if self._memory is not None:
            self._memory.close()
        self.status = "closed"
        if self._chores is not None:
            self._chores.put(None)

    def __del__(self) -> None:
        try:
            if self._driver is not None:
                self._shut(0.1)
        except Exception:  # half-made, or the interpreter is ending
            pass

    def __enter__(self) -> Client:
        if self.asynchronous:
            raise TypeError("use `async with` for a client made with asynchronous=True")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Client: {self.name} {self.status} at {self.address or 'a cluster not started yet'}>"


class _Executor:
    """What the driver calls for commands; it does not keep a client alive that nobody else holds."""

    __slots__ = ("client",)

    def __init__(self, client: Client) -> None:
        self.client = weakref.ref(client)

    def __call__(self, command: Any) -> None:
        client = self.client()
        if client is not None:
            client._execute(command)


class _Show:
    """Print what a task put out, away from the driver's thread."""

    __slots__ = ("output",)

    def __init__(self, output: Output) -> None:
        self.output = output

    def __call__(self) -> None:
        from zdist.client.tasks import show

        show(self.output.stream, self.output.text, self.output.worker)


def _after_fork() -> None:
    for client in list(open_clients):
        client._orphan = client._driver  # kept: what its end would do is the parent's business
        client._driver = None
        client._lock = threading.RLock()  # a thread of the parent may have held it
        client._chores = None
        client.status = "forked"
    open_clients.clear()


os.register_at_fork(after_in_child=_after_fork)


def _at_exit() -> None:
    for client in list(open_clients):
        client._shut(0.5)


atexit.register(_at_exit)
