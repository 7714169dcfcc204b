"""Process chaos: users at work on a real cluster while its processes are killed, stopped and started again.

Each user does works whose answers are known (`zdist.cli.chaos_works`). In the end every future must have been
resolved once and rightly, the broker's tables must be empty, and no process, segment or file may be left behind.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import psutil

from zdist import limits
from zdist.cli.chaos_works import PATIENCE, Tally, use
from zdist.cluster.children import broker_command, node_command
from zdist.node.process import child_environment, python_command

__all__ = ["FAULTS", "Chaos", "Report"]

START: Final = 30.0  # seconds for the cluster to be there
STOP: Final = 40.0  # and for each process to end when it is told to
SHORT_STOP: Final = (0.2, 5.0)  # seconds for which a process is stopped,
LONG_STOP: Final = limits.LEASE_NODE + 3.0  # and now and then longer than the lease of a node
LONG_SHARE: Final = 0.1
DOWN: Final = (0.0, 3.0)  # seconds until what was killed is started again
DEATHS: Final = 100  # here it is not the tasks that kill workers
SAMPLE: Final = 5.0  # seconds between two looks at the broker
LOGS: Final[dict[str, Any]] = {"log_level": "info", "log_format": "json"}
EMPTY: Final = ("tasks", "data", "held", "wants", "assigned", "placing", "relay")
LETHAL: Final = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM)
PLACES: Final = {"ZDIST_RUNTIME_DIR": "runtime", "ZDIST_SPILL_DIR": "spilled"}
MARKS: Final = "marks"  # of what runs on workers; users that are killed leave them behind


@dataclass
class Report:
    """What was done and found; ``samples`` of the broker: seconds, bytes, file descriptors, threads."""

    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    works: Counter[str] = field(default_factory=Counter)
    futures: int = 0
    lost: int = 0
    longest: float = 0.0
    wrongs: list[str] = field(default_factory=list)
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)

    def add(self, tally: dict[str, Any]) -> None:
        """Take in what a user tells."""
        self.futures += tally["futures"]
        self.works += Counter(tally["works"])
        self.lost += tally["lost"]
        self.longest = max(self.longest, tally["longest"])
        self.wrongs += tally["wrongs"]


class Program:
    """A process of the cluster that can be started again; what it writes goes to a file of its name."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self.command = command
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(),
                start_new_session=True,
            )

    def line(self) -> str:
        """What it has written to standard output: all, or the first line."""
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def end(self, timeout: float) -> bool:
        """Wait for its end; kill it if it does not come in time (False)."""
        if self.process is None:
            return True
        try:
            self.process.wait(timeout)
            return True
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            return False


class Chaos:
    """A cluster on the loopback of this machine, its users, and what befalls them.

    Args:
        seed: of the works and of the order of faults; when they strike is up to the machine.
        nodes, workers: nodes, and workers of each.
        users: clients in threads of this process; one more is in a process of its own.
        every: seconds between two faults.
        broker_share: part of the faults that befall the broker, 0 to 1.
    """

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 2,
        workers: int = 2,
        users: int = 2,
        every: float = 2.0,
        broker_share: float = 0.15,
    ) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.users = users
        self.every = every
        self.broker_share = broker_share
        self.report = Report()
        self.folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
        self.memory = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.environment = {
            **{name: str(self.folder / at) for name, at in PLACES.items()},
            "ZDIST_SHM_DIR": str(self.memory),
        }
        self.environment["TMPDIR"] = str(self.folder / MARKS)
        for place in (*PLACES.values(), MARKS):
            (self.folder / place).mkdir(mode=0o700)
        self.before = {name: os.environ.get(name) for name in (*self.environment, "ZDIST_TOKEN")}
        self.later: list[tuple[float, int, Callable[[], object]]] = []  # when, and what is to be done then
        self.order = 0
        self.nodes: list[Program] = []
        self.shape = (nodes, workers)

    # --- beginning and end ---------------------------------------------------------------------------

    def __enter__(self) -> Chaos:
        os.environ.update(self.environment)
        os.environ.pop("ZDIST_TOKEN", None)
        try:
            self.broker = Program(
                "broker",
                broker_command("tcp://127.0.0.1:0", allowed_deaths=DEATHS, **LOGS),
                self.folder,
            )
            self.broker.start()
            self.address = self.broker.line().split()[-1]
            self.broker.command = broker_command(self.address, allowed_deaths=DEATHS, **LOGS)
            for i in range(self.shape[0]):
                command = node_command(
                    self.address,
                    name=f"node{i}",
                    workers=self.shape[1],
                    threads=1,
                    data_bind="tcp://127.0.0.1:0",
                    log_level="info",
                    log_format="json",
                )
                self.nodes.append(Program(f"node{i}", command, self.folder))
                self.nodes[-1].start()
            self.user = Program(
                "user", [*python_command("zdist.cli.chaos_works"), self.address, str(self.seed)], self.folder
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self.memory, ignore_errors=True)
        if kind in (None, KeyboardInterrupt) and not self.report.wrongs:  # else the logs there tell what happened
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, seconds: float, tell: Callable[[Report], object] = lambda report: None) -> Report:
        """Let users work for so long under faults, then look what is left; ``tell`` is called after each fault."""
        from zdist import Client

        report = self.report
        over = threading.Event()
        tallies = [Tally() for _ in range(self.users)]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(self.address, timeout=START, set_as_default=False)) for _ in tallies]
            clients[0].wait_for_workers(self.shape[0] * self.shape[1], timeout=START)
            self.user.start()
            threads = [
                threading.Thread(target=use, args=(client, self.seed * 1000 + i, tally, over.is_set), daemon=True)
                for i, (client, tally) in enumerate(zip(clients, tallies, strict=True))
            ]
            for thread in threads:
                thread.start()
            begun = time.monotonic()
            self._strike(begun, seconds, tell)
            over.set()
            self._calm()
            end = time.monotonic() + 2 * PATIENCE
            for thread, tally in zip(threads, tallies, strict=True):
                thread.join(max(0.0, end - time.monotonic()))
                if thread.is_alive():
                    tally.wrong("a user's thread does not come to its end")
                report.add(tally.as_data())
            self._end_user()
            report.seconds = time.monotonic() - begun
            self._look_at_tables(clients[0])
        self._stop()
        return report

    def _end_user(self) -> None:
        self.user.kill(signal.SIGTERM)
        found = self.user.line() if self.user.end(2 * PATIENCE) else ""
        assert self.user.process is not None
        if found:
            self.report.add(json.loads(found))
        elif self.user.process.returncode != -signal.SIGTERM:  # of that it dies only before it has begun
            self.report.wrongs.append("the user in a process of its own has not come to its end")

    def _look_at_tables(self, client: Any) -> None:
        """All that users held is released, also by those that were killed: their lease must be over."""
        end = time.monotonic() + limits.LEASE_CLIENT + limits.COPIES_KEPT + 10
        left: dict[str, int] = {}
        while time.monotonic() < end:
            counts = client.counts()
            left = {name: counts[name] for name in EMPTY if counts[name]}
            if not left:
                return
            time.sleep(0.2)
        self.report.wrongs.append(f"left in the broker's tables: {left}")

    def _stop(self) -> None:
        for program in (*self.nodes, self.broker):
            program.kill(signal.SIGTERM)
            if not program.end(STOP):
                self.report.wrongs.append(f"{program.name} has not ended within {STOP:g} s after SIGTERM")
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                self.report.wrongs.append(f"left behind: process {process.pid} {' '.join(process.cmdline())[:200]}")
        for place in (self.memory, *(self.folder / place for place in PLACES.values())):
            files = [path for path in place.rglob("*") if not path.is_dir()]
            left = [path for path in files if not path.name.startswith("token-")]  # a broker's may come again
            if left:
                self.report.wrongs.append(f"left behind: {len(left)} files, such as {left[0]}")

    def _processes(self) -> Iterator[psutil.Process]:
        """Those that live in this cluster's directories, but for this one."""
        mine = str(self.folder / "runtime")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("ZDIST_RUNTIME_DIR") == mine:
                    yield process

    # --- faults --------------------------------------------------------------------------------------

    def _strike(self, begun: float, seconds: float, tell: Callable[[Report], object]) -> None:
        fault, sample = begun + self.every, begun
        while (now := time.monotonic()) < begun + seconds:
            if now >= fault:
                fault += self.every
                self._fault()
            if now >= sample:
                sample += SAMPLE
                self._sample(now - begun)
                tell(self.report)
            while self.later and self.later[0][0] <= now:
                heapq.heappop(self.later)[2]()
            due = min(fault, sample, begun + seconds, self.later[0][0] if self.later else fault)
            time.sleep(max(0.0, due - time.monotonic()))

    def _calm(self) -> None:
        """What was stopped goes on, and what was killed comes back."""
        while self.later:
            heapq.heappop(self.later)[2]()

    def _after(self, seconds: float, action: Callable[[], object]) -> None:
        self.order += 1
        heapq.heappush(self.later, (time.monotonic() + seconds, self.order, action))

    def _fault(self) -> None:
        broker = self.rng.random() < self.broker_share
        names = [name for name in FAULTS if name.startswith("broker") == broker]
        name = self.rng.choices(names, [FAULTS[name][0] for name in names])[0]
        FAULTS[name][1](self)
        self.report.faults[name] += 1

    def _sample(self, at: float) -> None:
        with contextlib.suppress(psutil.Error):
            assert self.broker.process is not None
            about = psutil.Process(self.broker.process.pid)
            self.report.samples.append((at, about.memory_info().rss, about.num_fds(), about.num_threads()))

    def _kill(self, program: Program) -> None:
        program.kill()
        program.end(STOP)
        self._after(self.rng.uniform(*DOWN), program.start)

    def _pause(self, kill: Callable[[int], object]) -> None:
        long = self.rng.random() < LONG_SHARE
        kill(signal.SIGSTOP)
        self._after(LONG_STOP if long else self.rng.uniform(*SHORT_STOP), lambda: kill(signal.SIGCONT))

    def _worker(self) -> Callable[[int], object]:
        """Sends signals to some worker."""
        node = self.rng.choice(self.nodes).process
        assert node is not None
        with contextlib.suppress(psutil.Error):
            found = sorted(psutil.Process(node.pid).children(), key=lambda worker: worker.pid)
            if found:
                worker = self.rng.choice(found)

                def send(number: int) -> None:
                    with contextlib.suppress(psutil.Error):
                        worker.send_signal(number)

                return send
        return lambda number: None

    def kill_worker(self) -> None:
        """By a signal that ends it."""
        self._worker()(self.rng.choice(LETHAL))

    def stop_worker(self) -> None:
        self._pause(self._worker())

    def kill_node(self) -> None:
        self._kill(self.rng.choice(self.nodes))

    def stop_node(self) -> None:
        self._pause(self.rng.choice(self.nodes).kill)

    def kill_user(self) -> None:
        self._kill(self.user)

    def stop_user(self) -> None:
        self._pause(self.user.kill)

    def kill_broker(self) -> None:
        self._kill(self.broker)

    def stop_broker(self) -> None:
        self._pause(self.broker.kill)


FAULTS: Final[dict[str, tuple[int, Callable[[Chaos], None]]]] = {  # with their weights
    "worker killed": (4, Chaos.kill_worker),
    "worker stopped": (3, Chaos.stop_worker),
    "node killed": (2, Chaos.kill_node),
    "node stopped": (2, Chaos.stop_node),
    "user killed": (1, Chaos.kill_user),
    "user stopped": (1, Chaos.stop_user),
    "broker killed": (2, Chaos.kill_broker),
    "broker stopped": (1, Chaos.stop_broker),
}
