"""A cluster on this machine: broker and node as child processes, or everything in threads of this process."""

from __future__ import annotations

import math
import os
import warnings
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol

from zdist import limits
from zdist.cluster.children import Child, broker_command, node_command
from zdist.cluster.directory import PrivateDirectory
from zdist.core.naming import resource_text
from zdist.errors import ClusterClosed
from zdist.transport.scratch import LockedFile
from zdist.transport.security import new_token, publish_token, write_token

__all__ = ["LocalCluster", "cpu_count", "default_shape"]

START_TIMEOUT: Final = 30.0  # seconds for the broker to listen; a loaded machine can take a few
# Keywords of dask's LocalCluster and its workers that mean nothing here.
IGNORED: Final = frozenset(
    {
        "blocked_handlers", "dashboard_address", "death_timeout", "diagnostics_port", "env", "host", "interface", "ip",
        "lifetime", "lifetime_restart", "lifetime_stagger", "local_directory", "loop", "nanny", "plugins", "preload",
        "scheduler_kwargs", "scheduler_port", "security", "service_kwargs", "services", "start", "worker_class",
        "worker_dashboard_address", "worker_services",
    }
)  # fmt: skip


class Parts(Protocol):
    """What a running local cluster consists of."""

    address: str

    def scale(self, workers: int) -> None: ...
    def workers(self) -> dict[str, dict[str, Any]]: ...
    def failure(self) -> str | None: ...
    def close(self, timeout: float) -> None: ...


class LocalCluster:
    """Start a broker and workers on this machine.

    The broker and the workers' node are processes in a session of their own: Ctrl-C does not reach them, and they end
    with this process however it ends. No ``if __name__ == "__main__"`` guard is needed. Names and defaults follow
    ``LocalCluster`` of dask.distributed 2021.10.

    Parameters:
        n_workers: worker processes; default as in dask: with few cores one each, else about the root of their number.
        threads_per_worker: threads of each; default: the cores shared out over the workers.
        processes: False runs broker, node and one worker in threads of this process.
        protocol: "ipc", sockets in a private directory, or "tcp" on the loopback.
        name: of the cluster, prefix of its workers' names.
        memory_limit: of each worker, in bytes, as a fraction of the machine's memory or as a text ("4 GiB"); "auto"
            is a fair share, None or 0 no limit.
        shared_memory: bytes, also as a text, that the workers may fill together in the machine's shared memory; 0 for
            no use of it, also by clients made with this cluster; default: half of what is free.
        silence_logs: least level, as in ``logging``, that broker and workers write to standard error; False: "info".
        tags, resources: what the workers offer to tasks that ask for it.
        inline_result: bytes up to which results travel with the news that they are there; 0: none do.
        asynchronous: start with ``await cluster`` or ``async with``; `close` is then to be awaited.
        ignored: what dask's has and means nothing here, such as ``dashboard_address``; anything else is a TypeError.

    Raises ValueError for contradictory arguments, ZdistError if the broker does not start.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool = True,
        protocol: Literal["ipc", "tcp"] | str | None = "ipc",
        name: str | None = None,
        memory_limit: str | float | None = "auto",
        shared_memory: str | int | None = None,
        silence_logs: int | bool | str | None = 30,
        tags: tuple[str, ...] | list[str] = (),
        resources: dict[str, float] | None = None,
        inline_result: int = limits.INLINE_RESULT,
        asynchronous: bool = False,
        **ignored: Any,
    ) -> None:
        refuse_unknown(ignored)
        self.protocol = (protocol or "ipc").removesuffix("://")
        if self.protocol not in ("ipc", "tcp"):
            raise ValueError(f'protocol is "ipc" or "tcp", not {protocol!r}')
        self.processes = processes
        self.asynchronous = asynchronous
        self.name = name or "local"
        self.n_workers, self.threads_per_worker = default_shape(n_workers, threads_per_worker, processes)
        self.memory_limit = memory_bytes(memory_limit, self.n_workers)
        self.shared_memory = None if shared_memory is None else size_bytes(shared_memory)
        self.log_level = level_name(silence_logs)
        self.tags = tuple(tags)
        self.resources = dict(resources or {})
        self.inline_result = inline_result
        self.token = new_token()
        self._parts: Parts | None = None
        self._finalizer: weakref.finalize[..., LocalCluster] | None = None
        if not asynchronous:
            self._start()

    def _start(self) -> None:
        if self._finalizer is not None:
            return
        if self.processes:
            parts: Parts = ProcessParts(self)
        else:
            from zdist.cluster.threads import ThreadParts

            parts = ThreadParts(self)
        self._parts = parts
        self._finalizer = weakref.finalize(self, _end, parts, os.getpid())

    # --- what a client needs ---------------------------------------------------------------------------

    @property
    def broker_address(self) -> str:
        """Where clients connect. Raises ClusterClosed if the cluster has not been started."""
        return self._running().address

    @property
    def scheduler_address(self) -> str:
        """The same under dask's name."""
        return self.broker_address

    @property
    def status(self) -> str:
        """ "created", "running", "failed" or "closed"."""
        if self._finalizer is None:
            return "created"
        if self._parts is None:
            return "closed"
        return "failed" if self._parts.failure() else "running"

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        """The workers' processes as the node sees them: by name, session id, pid, and whether they are ending."""
        return self._running().workers()

    def scale(self, n: int) -> None:
        """Keep ``n`` workers from now on; it is done in the background. Raises ClusterClosed."""
        if not 0 <= n <= limits.MAX_WORKERS:
            raise ValueError(f"a node keeps 0 to {limits.MAX_WORKERS} workers, not {n}")
        self._running().scale(n)
        self.n_workers = n

    def _running(self) -> Parts:
        if self._parts is None:
            verb = "has not been started: await it" if self._finalizer is None else "is closed"
            raise ClusterClosed(f"the local cluster {self.name!r} {verb}")
        failure = self._parts.failure()
        if failure:
            raise ClusterClosed(f"the local cluster {self.name!r} has failed: {failure}")
        return self._parts

    # --- end ---------------------------------------------------------------------------------------

    def close(self, timeout: float | None = None) -> Any:
        """End workers, node and broker, kill what is left after ``timeout`` seconds (default 5), remove the files.

        Idempotent. An asynchronous cluster returns an awaitable.
        """
        if self.asynchronous:
            return in_thread(self._close, timeout)
        self._close(timeout)
        return None

    def _close(self, timeout: float | None) -> None:
        parts, self._parts = self._parts, None
        if parts is not None and self._finalizer is not None and self._finalizer.detach() is not None:
            parts.close(limits.END_GRACE + 2.0 if timeout is None else timeout)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(None)

    async def _started(self) -> LocalCluster:
        await in_thread(self._start)
        return self

    def __await__(self) -> Generator[Any, None, LocalCluster]:
        return self._started().__await__()

    async def __aenter__(self) -> LocalCluster:
        return await self._started()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await in_thread(self._close, None)

    def __repr__(self) -> str:
        where = self._parts.address if self._parts is not None else self.status
        return (
            f"LocalCluster({self.name!r}, {where!r}, workers={self.n_workers}, "
            f"threads={self.n_workers * self.threads_per_worker})"
        )


class ProcessParts:
    """A broker process and a node process in a private directory."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.directory = PrivateDirectory()
        self.node: Child | None = None
        self.broker: Child | None = None
        self.published: LockedFile | None = None
        try:
            token_file = self.directory.path / "token"
            write_token(cluster.token, token_file)
            ipc = cluster.protocol == "ipc"
            bind = self.directory.ipc("broker") if ipc else "tcp://127.0.0.1:0"
            command = broker_command(
                bind,
                token_file=str(token_file),
                inline_result=cluster.inline_result,
                log_level=cluster.log_level,
                log_format="auto",
            )
            self.broker = Child("the broker", [*command, "--lifeline", "--first"])
            if ipc:  # its address is known beforehand, so both come up at the same time
                self.node = start_node(cluster, bind, self.directory.path, token_file)
            self.address = self.broker.line(START_TIMEOUT).split()[-1]
            if self.node is None:
                self.published = publish_token(cluster.token, self.address)
                self.node = start_node(cluster, self.address, self.directory.path, token_file)
        except BaseException:
            self.close(1.0)
            raise

    def scale(self, workers: int) -> None:
        assert self.node is not None
        self.node.ask(f"scale {workers}")

    def workers(self) -> dict[str, dict[str, Any]]:
        assert self.node is not None
        workers: dict[str, dict[str, Any]] = self.node.ask("workers")["workers"]
        return workers

    def failure(self) -> str | None:
        """Which of its processes has ended although nobody asked it to."""
        for child in (self.broker, self.node):
            if child is not None and not child.alive:
                return f"{child.what} (pid {child.process.pid}) has ended with code {child.process.returncode}"
        return None

    def close(self, timeout: float) -> None:
        """First the node with its workers, so that their goodbyes reach the broker."""
        if self.node is not None:
            self.node.close(timeout)
        if self.broker is not None:
            self.broker.close(min(timeout, 2.0))
        if self.published is not None:
            self.published.remove()
        self.directory.remove()


def start_node(cluster: LocalCluster, control: str, directory: Path, token_file: Path) -> Child:
    command = node_command(
        control,
        name=cluster.name,
        workers=cluster.n_workers,
        threads=cluster.threads_per_worker,
        log_level=cluster.log_level,
        log_format="auto",
        token_file=str(token_file),
        runtime=str(directory),
        data_bind=f"ipc://{directory}/" if cluster.protocol == "ipc" else "tcp://127.0.0.1:0",
        memory_limit=str(cluster.memory_limit or ""),
        shared_memory="" if cluster.shared_memory is None else str(cluster.shared_memory),
    )
    for tag in cluster.tags:
        command += ["--tag", tag]
    for resource, amount in cluster.resources.items():
        command += ["--resource", resource_text(resource, amount)]
    return Child("the node", [*command, "--lifeline"])


async def in_thread(function: Callable[..., None], *args: Any) -> None:
    """Run what blocks beside the event loop; asyncio is loaded only where it is used anyway."""
    import asyncio

    await asyncio.to_thread(function, *args)


def _end(parts: Parts, owner: int) -> None:
    """For a cluster that nobody closed; a forked child must not end its parent's."""
    if os.getpid() == owner:
        parts.close(limits.END_GRACE + 2.0)


# --- defaults ---------------------------------------------------------------------------------------


def cpu_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_shape(workers: int | None, threads: int | None, processes: bool, cores: int = 0) -> tuple[int, int]:
    """Workers and threads of each, from what is given and the number of cores, by dask's rules."""
    cores = cores or cpu_count()
    for name, number in (("n_workers", workers), ("threads_per_worker", threads)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise TypeError(f"{name} is a number, not {number!r}")
    if workers is not None and workers < 0:
        raise ValueError(f"n_workers is at least 0, not {workers}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads_per_worker is at least 1, not {threads}")
    if workers is None:
        if not processes:
            workers = 1
        elif threads is not None:
            workers = max(1, cores // threads)
        elif cores <= 4:
            workers = cores
        else:  # the least divisor that is not under the root: 8 cores are 4 workers of 2 threads
            workers = next(n for n in range(math.isqrt(cores - 1) + 1, cores + 1) if cores % n == 0)
    if threads is None:
        threads = max(1, math.ceil(cores / max(1, workers)))
    return workers, threads


def memory_bytes(limit: str | float | None, workers: int) -> int:
    """Bytes for each worker; 0 for no limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if limit == "auto":
        return total // max(1, workers)
    if isinstance(limit, str):
        return size_bytes(limit)
    if not limit:
        return 0
    if limit < 0:
        raise ValueError(f"memory_limit is a number of bytes, a fraction or a text such as '4 GiB', not {limit!r}")
    return int(limit * total) if isinstance(limit, float) and limit <= 1 else int(limit)


def size_bytes(size: str | int) -> int:
    """Bytes from a number or a text. Raises ValueError."""
    if isinstance(size, str):
        from zdist.config.schema import parse_size

        size = parse_size(size)  # type: ignore[assignment]
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"a size is a number of bytes or a text such as '4 GiB', not {size!r}")
    return size


def level_name(silence: int | bool | str | None) -> str:
    """Our name for the least level that is shown."""
    if silence is False or silence is None:
        return "info"
    if silence is True:
        return "error"
    level = {"critical": 50, "error": 40, "warning": 30, "warn": 30, "info": 20, "debug": 10}.get(
        silence.lower(), 30
    ) if isinstance(silence, str) else silence  # fmt: skip
    return "debug" if level <= 10 else "info" if level <= 20 else "warning" if level <= 30 else "error"


def refuse_unknown(keywords: dict[str, Any]) -> None:
    """Warn of dask's keywords that have no meaning here; raise TypeError for any other."""
    for keyword, value in keywords.items():
        if keyword not in IGNORED:
            raise TypeError(f"LocalCluster() got an unexpected keyword argument {keyword!r}")
        if value is not None and keyword != "dashboard_address":
            warnings.warn(f"LocalCluster ignores {keyword}=, which means nothing to zdist", stacklevel=3)
