"""Broker, node and workers as threads of one process: for tests, for debugging, where processes are not wanted."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from zdist import context
from zdist.cluster.directory import PrivateDirectory
from zdist.cluster.worker import make_client
from zdist.core.node import Ended, EndWorker, Look, NodeMachine, StartWorker
from zdist.errors import ZdistError
from zdist.transport.driver import Driver
from zdist.transport.host import host_id
from zdist.transport.scratch import LockedFile
from zdist.transport.security import publish_token
from zdist.worker.process import Settings, Worker

if TYPE_CHECKING:
    from zdist.cluster.local import LocalCluster

__all__ = ["ThreadParts"]


class ThreadParts:
    """A broker in a thread, and a node whose workers are objects instead of processes."""

    def __init__(self, cluster: LocalCluster) -> None:
        from zdist_broker.server import BrokerServer

        self.cluster = (cluster.token, cluster.threads_per_worker, cluster.tags, tuple(cluster.resources.items()))
        limit = cluster.shared_memory
        self.shared_memory = None if limit is None else limit // max(1, cluster.n_workers)
        self.tcp = cluster.protocol == "tcp"
        self.directory = PrivateDirectory()
        self.published: LockedFile | None = None
        try:
            bind = "tcp://127.0.0.1:0" if self.tcp else self.directory.ipc("broker")
            self.server = BrokerServer(
                bind,
                token=cluster.token,
                token_file=self.directory.path / "token",
                inline_result=cluster.inline_result,
                first=True,
            )
        except BaseException:
            self.directory.remove()
            raise
        if context.client_factory is None:
            context.client_factory = make_client
        self.address = self.server.address
        if self.tcp:
            self.published = publish_token(cluster.token, self.address)
        self.server.start()
        session = "n-" + os.urandom(8).hex()
        self.machine = NodeMachine(
            session, cluster.name, cluster.n_workers, hostname=socket.gethostname(), host=host_id(), pid=os.getpid()
        )
        self.alive: dict[str, Worker] = {}
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.driver = Driver(
            self.machine,
            session=session,
            token=cluster.token,
            control=self.address,
            name="node",
            execute=self.queue.put,
        )
        self.thread = threading.Thread(target=self._serve, name="zdist-workers", daemon=True)
        self.thread.start()
        with self.driver.lock:
            self.machine.start(time.monotonic())
        self.driver.start()

    # --- what a local cluster asks -----------------------------------------------------------------------

    def scale(self, workers: int) -> None:
        with self.driver.lock:
            self.machine.scale(workers, time.monotonic())
        self.driver.wake()

    def workers(self) -> dict[str, dict[str, Any]]:
        with self.driver.lock:
            return {
                worker.name: {"session": worker.session, "pid": worker.pid, "ending": worker.ending}
                for worker in self.machine.alive.values()
            }

    def failure(self) -> str | None:
        if self.machine.ended:
            return f"its node has ended: {self.machine.stopping}"
        return None

    def close(self, timeout: float) -> None:
        with self.driver.lock:
            self.machine.stop("the cluster closes", time.monotonic())
        self.driver.wake()
        self.thread.join(timeout)
        self.driver.close(1.0)
        self.server.stop(end="the local cluster was closed")
        if self.published is not None:
            self.published.remove()
        self.directory.remove()

    # --- the node's commands, one after the other ----------------------------------------------------------

    def _serve(self) -> None:
        while True:
            command = self.queue.get()
            if isinstance(command, StartWorker):
                self._start_worker(command)
            elif isinstance(command, EndWorker):
                self._end_worker(command.session)
            elif isinstance(command, Look):
                seen = {session: worker.running() for session, worker in list(self.alive.items())}
                self._tell(self.machine.seen, seen, {})
            elif isinstance(command, Ended):
                return
            else:
                raise ZdistError(f"the node does not know the command {command!r}")

    def _start_worker(self, command: StartWorker) -> None:
        token, threads, tags, resources = self.cluster
        settings = Settings(
            control=self.address,
            token=token,
            session=command.session,
            name=command.name,
            node=self.machine.session,
            threads=threads,
            data_bind="" if self.tcp else self.directory.ipc(command.session),
            shared_memory=self.shared_memory,
            tags=tags,
            resources=resources,
        )
        try:
            worker = Worker(settings)
            worker.start()
        except (OSError, ZdistError) as exc:
            self._tell(self.machine.worker_failed, command.session, f"{type(exc).__name__}: {exc}")
            return
        self.alive[command.session] = worker
        threading.Thread(target=self._watch, args=(worker,), name=f"zdist-watch-{worker.name}", daemon=True).start()
        self._tell(self.machine.worker_started, command.session, os.getpid())

    def _end_worker(self, session: str) -> None:
        worker = self.alive.get(session)
        if worker is not None:
            worker.end("ended by its node")

    def _watch(self, worker: Worker) -> None:
        """A worker may also end by itself, for instance when the broker refuses it."""
        worker.ended.wait()
        worker.close()
        del self.alive[worker.session]
        self._tell(self.machine.worker_exited, worker.session, worker.code, [worker.reason], ())

    def _tell(self, method: Any, *args: Any) -> None:
        with self.driver.lock:
            method(*args, time.monotonic())
        self.driver.wake()
