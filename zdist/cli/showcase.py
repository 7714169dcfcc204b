"""What the demo does with a cluster; without any output of its own."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from zdist.cli.indexing import Index, count_file, double, make_numbers, merge
from zdist.errors import ZdistError
from zdist.limits import KIB, MIB

if TYPE_CHECKING:
    from zdist.client.client import Client

__all__ = ["Indexed", "PathUse", "empty_tasks", "index", "steps", "use_paths"]

FAN_IN: Final = 8  # indexes that one merge takes
EMPTY_TASKS: Final = 10_000
SMALL: Final = ((64, KIB),)  # arrays of so many bytes: small enough to come with the completion
LARGE: Final = ((16, 256 * KIB), (8, 4 * MIB), (2, 32 * MIB))

Step = Callable[[], object]


@dataclass(slots=True)
class Indexed:
    """The index and what it took."""

    index: Index
    tasks: int
    seconds: float


@dataclass(slots=True)
class PathUse:
    """What one path carried; ``seconds`` of the gathers in which it took part."""

    batches: int = 0
    keys: int = 0
    bytes: int = 0
    seconds: float = 0.0
    workers: set[str] = field(default_factory=set)

    @property
    def rate(self) -> float:
        """MB (10**6 bytes) a second."""
        return self.bytes / self.seconds / 1e6 if self.seconds else 0.0


def index(client: Client, paths: Sequence[str], step: Step) -> Indexed:
    """Index files: one task for each, and a tree of merges over them; ``step`` is called for each file done."""
    from zdist import as_completed

    started = time.perf_counter()
    leaves = client.map(count_file, paths, pure=False)
    level, tasks = list(leaves), len(leaves)
    while len(level) > 1:
        level = [client.submit(merge, level[i : i + FAN_IN], pure=False) for i in range(0, len(level), FAN_IN)]
        tasks += len(level)
    for _ in as_completed(leaves):
        step()
    return Indexed(level[0].result(), tasks, time.perf_counter() - started)


def empty_tasks(client: Client) -> float:
    """Tasks a second when they do nothing."""
    client.gather(client.map(abs, range(200), pure=False))
    started = time.perf_counter()
    client.gather(client.map(abs, range(EMPTY_TASKS), pure=False))
    return EMPTY_TASKS / (time.perf_counter() - started)


def use_paths(client: Client, sockets: Client, step: Step) -> dict[str, PathUse]:
    """Scatter arrays and bring them home by each path; raises ZdistError if one comes back changed.

    Small ones are doubled by tasks, whose results come with their completion. Large ones come as gather chooses, which
    is by shared memory where there is any; then from the workers' own sockets (``direct=True``) and through the broker
    (``direct=False``), with ``sockets``, a client that uses nothing else.
    """
    used: dict[str, PathUse] = {}
    for seed, (count, nbytes) in enumerate(SMALL):
        sent = [make_numbers(seed * 1000 + i, nbytes) for i in range(count)]
        futures = client.map(double, client.scatter(sent), pure=False)
        _compare([double(numbers) for numbers in sent], _gather(client, futures, None, used))
        step()
    for way, (by, direct) in enumerate(((client, None), (sockets, True), (sockets, False))):
        for seed, (count, nbytes) in enumerate(LARGE):
            sent = [make_numbers(seed * 1000 + 100 * way + i, nbytes) for i in range(count)]
            _compare(sent, _gather(by, by.scatter(sent), direct, used))
            step()
    return used


def steps() -> int:
    """How often ``use_paths`` calls ``step``."""
    return len(SMALL) + 3 * len(LARGE)


def _gather(client: Client, futures: Any, direct: bool | None, used: dict[str, PathUse]) -> Any:
    from zdist import wait

    wait(futures)  # so that only the way home is measured,
    client.gather(futures, direct=direct)  # and not what it costs to touch so much memory for the first time
    started = time.perf_counter()
    values = client.gather(futures, direct=direct)
    seconds = time.perf_counter() - started
    paths = set()
    for path, worker, keys, nbytes, *_ in client.gather_report().last:
        use = used.setdefault(path, PathUse())
        use.batches += 1
        use.keys += keys
        use.bytes += nbytes
        use.workers.add(worker)
        paths.add(path)
    for path in paths:
        used[path].seconds += seconds
    return values


def _compare(sent: list[array[int]], received: list[array[int]]) -> None:
    if sent != received:
        raise ZdistError("arrays came back changed; this is a defect in zdist")
