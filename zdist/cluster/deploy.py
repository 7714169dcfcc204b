"""Clusters described in YAML: brought up in the background, looked at, taken down, by the path of the file.

What is up is written in a state file of the user's private runtime directory; a process counts as ours only while its
start time is the one that was written, so a pid that has been given to another program is never signalled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zdist.cluster.children import broker_command, node_command, readable
from zdist.cluster.local import cpu_count
from zdist.core.naming import resource_text
from zdist.errors import ClusterClosed, ConfigError, ZdistError
from zdist.node.process import child_environment
from zdist.transport.security import find_token, new_token, runtime_dir, sweep_runtime, token_path, write_token

if TYPE_CHECKING:
    from zdist.config.schema import Config, NodeConfig

__all__ = ["Cluster", "Connection", "Process", "connection", "down", "known", "status", "up"]

LOCAL: Final = ("localhost", "127.0.0.1", "::1", "")
PREFIX: Final = "cluster-"
LOG_LINES: Final = 10  # of a process that did not come up


@dataclass
class Process:
    """A background process of a cluster. ``start`` is its start time as the kernel counts it."""

    role: str
    name: str
    pid: int
    start: int
    log: str

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.start


@dataclass
class Cluster:
    """A YAML cluster that is up, or was. ``elsewhere``: commands to run on the other hosts of the file."""

    config: str
    address: str
    token_file: str
    workers: int
    started: float  # seconds since 1970
    processes: list[Process] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Is the broker there?"""
        return any(process.role == "broker" and process.alive for process in self.processes)


@dataclass(frozen=True)
class Connection:
    """What a client of a YAML cluster needs. ``token_file``: None to look for the token by address."""

    address: str
    token_file: str | None
    options: dict[str, Any]  # keywords of Client


def up(path: str | os.PathLike[str], *, overrides: Mapping[str, Any] | None = None, timeout: float = 30.0) -> Cluster:
    """Start the broker and this machine's nodes in the background; return when all their workers have joined.

    Parameters: ``path`` of the YAML file; ``overrides`` by dotted key, as for `zdist.config.load`; ``timeout`` in
    seconds for the whole. Raises ConfigError for a bad file, ZdistError if the cluster is up already or does not come
    up (nothing is left running then; the text has the last lines of the log).
    """
    config = _load(path, overrides)
    directory = _directory(path)
    with _locked(directory):
        known = _read(directory)
        if known is not None and any(process.alive for process in known.processes):
            raise ZdistError(
                f"the cluster of {path} is up at {known.address}; take it down first: zdist cluster down {path}"
            )
        end = time.monotonic() + timeout
        cluster = Cluster(str(Path(path).resolve()), "", "", 0, time.time())
        try:
            _start_broker(cluster, config, directory, end)
            for index, node in enumerate(config.nodes):
                _start_node(cluster, config, node, index, directory)
            _write(directory, cluster)
            _await_workers(cluster, end)
        except BaseException:
            _end(cluster, 5.0)
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return cluster


def status(path: str | os.PathLike[str]) -> Cluster | None:
    """The cluster of a YAML file and its processes, or None if it is not up."""
    return _read(_directory(path))


def known() -> list[Cluster]:
    """All clusters of this user that are up, or were and have not been taken down; oldest first."""
    found = []
    for directory in runtime_dir().glob(PREFIX + "*"):
        with contextlib.suppress(ZdistError):
            cluster = _read(directory)
            if cluster is not None:
                found.append(cluster)
    return sorted(found, key=lambda cluster: cluster.started)


def down(path: str | os.PathLike[str], *, timeout: float = 10.0) -> Cluster | None:
    """End a cluster's processes, nodes before broker, and kill what is there after ``timeout`` seconds.

    Returns what it was, or None if it was not up.
    """
    directory = _directory(path)
    if not directory.is_dir():
        return None
    with _locked(directory):
        cluster = _read(directory)
        if cluster is not None:
            _end(cluster, timeout)
        shutil.rmtree(directory, ignore_errors=True)
    sweep_runtime()
    return cluster


def connection(path: str | os.PathLike[str]) -> Connection:
    """How to reach the cluster that a YAML file describes: the one that is up, else the address in the file.

    Raises ConfigError for a bad file, ClusterClosed if it is not up and the file names no fixed address.
    """
    config = _load(path, None)
    cluster = status(path)
    options = {name: value for name, value in config.client.model_dump().items() if value is not None}
    if cluster is not None and cluster.running:
        return Connection(cluster.address, cluster.token_file, options)
    try:
        address = config.broker.reach()
    except ConfigError:
        raise ClusterClosed(f"the cluster of {path} is not up; start it: zdist cluster up {path}") from None
    return Connection(address, config.broker.token_file, options)


# --- starting -------------------------------------------------------------------------------------


def _start_broker(cluster: Cluster, config: Config, directory: Path, end: float) -> None:
    broker = config.broker
    if broker.token_file and not os.path.exists(broker.token_file):
        write_token(new_token(), Path(broker.token_file))
    command = broker_command(
        broker.bind,
        token_file=broker.token_file or "",
        bulk_bind=broker.bulk_bind or "",
        inline_result=broker.inline_result,
        allowed_deaths=broker.allowed_deaths,
        log_level=config.logging.level,
        log_format=config.logging.format,
    )
    if broker.insecure:
        command.append("--insecure")
    if broker.address and broker.address.startswith("tcp://"):
        command += ["--advertise", broker.address.removeprefix("tcp://").rpartition(":")[0]]
    log = directory / "broker.log"
    process = _spawn(command, log, subprocess.PIPE)
    cluster.processes.append(Process("broker", "broker", process.pid, start_time(process.pid), str(log)))
    assert process.stdout is not None
    with process.stdout as stdout:
        ready = readable(stdout.fileno(), end - time.monotonic())
        line = stdout.readline().decode().split() if ready else []
    if not line:
        why = "ended" if ready else "has not come up in time"
        raise ZdistError(f"the broker of {cluster.config} {why}; {_last_lines(log)}")
    cluster.address = broker.address or line[-1]
    cluster.token_file = broker.token_file or str(token_path(line[-1]))


def _start_node(cluster: Cluster, config: Config, node: NodeConfig, index: int, directory: Path) -> None:
    name = node.name or f"node-{index}"
    workers = cpu_count() if node.nworkers is None else node.nworkers
    if node.host not in LOCAL:
        cluster.elsewhere.append(
            f"on {node.host}: zdist worker {cluster.address} --name {name} "
            f"--nworkers {workers} --nthreads {node.nthreads}"
        )
        return
    cluster.workers += workers
    command = node_command(
        cluster.address,
        name=name,
        workers=workers,
        threads=node.nthreads,
        log_level=config.logging.level,
        log_format=config.logging.format,
        token_file=cluster.token_file,
        advertise=node.advertise or "",
        data_ports="-".join(map(str, node.data_ports or ())),
        memory_limit=str(node.memory_limit or ""),
        shared_memory="" if node.shared_memory is None else str(node.shared_memory),
    )
    for tag in node.tags:
        command += ["--tag", tag]
    for module in node.preload:
        command += ["--preload", module]
    for resource, amount in node.resources.items():
        command += ["--resource", resource_text(resource, amount)]
    if config.broker.insecure:
        command.append("--insecure")
    log = directory / f"{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}-{index}.log"
    process = _spawn(command, log, subprocess.DEVNULL)
    cluster.processes.append(Process("node", name, process.pid, start_time(process.pid), str(log)))


_started: list[subprocess.Popen[bytes]] = []  # so that children of this process are waited for


def _spawn(command: list[str], log: Path, stdout: int) -> subprocess.Popen[bytes]:
    with open(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "ab") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=child_environment(),
            start_new_session=True,
        )
    _started.append(process)
    return process


def _await_workers(cluster: Cluster, end: float) -> None:
    from zdist.client.client import Client

    if not cluster.workers:
        return
    try:
        token = find_token(cluster.address, cluster.token_file)
        with Client(
            cluster.address, token=token, timeout=max(0.1, end - time.monotonic()), set_as_default=False
        ) as client:
            client.wait_for_workers(cluster.workers, timeout=max(0.1, end - time.monotonic()))
    except (OSError, TimeoutError, ZdistError) as exc:
        logs = " ".join(_last_lines(Path(process.log)) for process in cluster.processes)
        raise ZdistError(f"the workers of {cluster.config} did not all come up: {exc}; {logs}") from exc


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        lines = []
    return f"last lines of {log.name}:\n" + "\n".join(lines) if lines else f"{log.name} is empty"


# --- ending -----------------------------------------------------------------------------------------


def _end(cluster: Cluster, timeout: float) -> None:
    """SIGINT to the nodes, which do not drain then, SIGTERM to the broker, SIGKILL to what does not end in time."""
    end = time.monotonic() + timeout
    for role in ("node", "broker"):
        some = [process for process in cluster.processes if process.role == role]
        for process in some:
            _signal(process, signal.SIGINT if role == "node" else signal.SIGTERM)
        for process in some:
            if not _gone(process, end):
                _signal(process, signal.SIGKILL)
                _gone(process, time.monotonic() + 5.0)
    _started[:] = [process for process in _started if process.poll() is None]


def _signal(process: Process, number: int) -> None:
    if process.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _gone(process: Process, end: float) -> bool:
    """Wait until the process has ended; it is seldom our child, so there is nothing to wait on but its absence."""
    while process.alive:
        if time.monotonic() >= end:
            return False
        time.sleep(0.01)
    return True


def start_time(pid: int) -> int:
    """When a process was started, in the kernel's ticks since boot; 0 if there is none, or it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


# --- the state file -----------------------------------------------------------------------------------


def _load(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None) -> Config:
    from zdist.config import load

    return load(path, overrides=overrides).config


def _directory(path: str | os.PathLike[str]) -> Path:
    name = hashlib.blake2b(os.fsencode(Path(path).resolve()), digest_size=8).hexdigest()
    return runtime_dir() / (PREFIX + name)


def _state(directory: Path) -> Path:
    return directory / "state.json"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One ``up`` or ``down`` at a time for a file; the directory is there and is the one that was locked."""
    path = directory / "lock"
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)  # Path.mkdir looks a second time, when a `down` may have removed it
        try:
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # a `down` has just removed the directory
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _inode(path) == os.fstat(lock).st_ino:
                yield
                return
        finally:
            os.close(lock)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _read(directory: Path) -> Cluster | None:
    try:
        values = json.loads(_state(directory).read_text())
        return Cluster(**{**values, "processes": [Process(**process) for process in values["processes"]]})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as exc:
        raise ZdistError(f"{_state(directory)} is no state of a cluster ({exc}); remove it") from None


def _write(directory: Path, cluster: Cluster) -> None:
    temporary = directory / "state.new"
    with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(cluster), file, indent=1)
    os.replace(temporary, _state(directory))
