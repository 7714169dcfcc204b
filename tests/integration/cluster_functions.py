"""What the tests run on workers, in a module of its own so that workers load nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any


class Gate:
    """Tasks wait at it until the test opens it; tells how many have arrived."""

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> None:
        Path(self.path).touch()

    def arrived(self) -> int:
        return len(list(Path(self.path).parent.glob(f"{Path(self.path).name}-*")))

    def pass_through(self, name: Any = 0, within: float = 60.0) -> Any:
        Path(f"{self.path}-{name}-{os.getpid()}-{threading.get_ident()}").touch()
        end = time.monotonic() + within
        while not os.path.exists(self.path):
            if time.monotonic() > end:
                raise TimeoutError(f"nobody opened {self.path}")
            time.sleep(0.002)
        return name


def inc(x: Any) -> Any:
    return x + 1


def add(x: Any, y: Any) -> Any:
    return x + y


def total(*xs: Any, **named: Any) -> Any:
    return sum(xs) + sum(named.values())


def same(x: Any) -> Any:
    return x


def describe(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs


def fail(x: Any, text: str = "on purpose") -> Any:
    raise ValueError(f"{text} {x}")


def fail_if_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def wait_at(gate: Gate, name: Any = 0) -> Any:
    return gate.pass_through(name)


def pid_at(gate: Gate, name: Any = 0) -> int:
    gate.pass_through(name)
    return os.getpid()


def log_line(path: str, text: Any) -> int:
    """Append a line and return how many there are now."""
    with open(path, "a") as file:
        file.write(f"{text}\n")
    return len(Path(path).read_text().splitlines())


def fail_until(path: str, times: int) -> int:
    """Fail the first ``times`` times."""
    count = log_line(path, "try")
    if count <= times:
        raise RuntimeError(f"attempt {count} fails")
    return count


def fail_while_absent(path: str) -> str:
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    return "there"


def zeros(nbytes: int) -> Any:
    import numpy

    return numpy.zeros(nbytes, dtype="u1")


def filled(value: int, nbytes: int) -> Any:
    import numpy

    return numpy.full(nbytes // 8, value, dtype="i8")


def die(how: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), how)
    time.sleep(60)


def slow_inc(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x + 1


def worker_address(_: Any = None) -> str:
    import zdist

    return zdist.get_worker().address


def worker_pid() -> int:
    return os.getpid()


def interval(path: str, seconds: float) -> tuple[str, float, float]:
    """Where and when this ran."""
    start = time.monotonic()
    time.sleep(seconds)
    return worker_address(), start, time.monotonic()


def one_is_changed(array: Any) -> int:
    """Writes to its argument."""
    array[0] += 1
    return int(array[0])


def hold_the_lock(seconds: float, path: str) -> None:
    """Sleep in C with the interpreter's lock held: nothing of this process runs meanwhile."""
    import ctypes

    Path(path).touch()
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def ways_of_inputs(dask_worker: Any) -> dict[str, int]:
    """How many keys this worker has fetched, by path."""
    found: dict[str, int] = {}
    for row in dask_worker.machine.fetcher.report:
        found[row.path] = found.get(row.path, 0) + row.keys
    return found


# --- tasks that use the cluster themselves -------------------------------------------------------------


def fib(n: int) -> int:
    import zdist

    if n < 2:
        return n
    client = zdist.get_client()
    a, b = client.submit(fib, n - 1), client.submit(fib, n - 2)
    return sum(client.gather([a, b]))


def nested(depth: int) -> int:
    import zdist

    if depth == 0:
        return 0
    return 1 + zdist.get_client().submit(nested, depth - 1).result()


def fan_out(n: int) -> int:
    import zdist

    with zdist.worker_client() as client:
        return sum(client.gather(client.map(inc, range(n))))


def step_out(gate: Gate, name: Any) -> Any:
    import zdist

    zdist.secede()
    gate.pass_through(name)
    zdist.rejoin()
    return name


class Box:
    """A container that nobody can look into."""

    def __init__(self, content: Any) -> None:
        self.content = content


def content(box: Box) -> Any:
    return box.content


def submit_inside(x: int) -> Any:
    import zdist

    return zdist.get_client().submit(inc, x)


def speak(text: str) -> int:
    import sys

    import zdist

    zdist.print(text)
    zdist.print("aside:", text, file=sys.stderr)
    return len(text)


def caution(text: str) -> int:
    import zdist

    zdist.warn(text, RuntimeWarning)
    return len(text)


def log_something(text: str) -> None:
    import logging

    logging.getLogger("zdist.tests").warning(text)


def marked(nbytes: int) -> Any:
    """A result that knows which object it was where it was made."""
    import numpy

    class Marked(list):  # type: ignore[type-arg]
        pass

    value = Marked([numpy.zeros(nbytes, dtype="u1")])
    value.made = (os.getpid(), id(value))
    return value


def is_the_one_made(value: Any) -> tuple[bool, bool]:
    """Is it that very object, and was it made in this process?"""
    return id(value) == value.made[1], os.getpid() == value.made[0]


def same_objects(nbytes: int, how: str, direct: bool | None) -> list[tuple[bool, bool]]:
    """Submit and gather results that are made on this worker."""
    import zdist

    client, here = zdist.get_client(), zdist.get_worker().address
    futures = [client.submit(marked, nbytes, workers=[here], pure=False) for _ in range(3)]
    if how == "wait":
        zdist.wait(futures)
    if how == "result":
        values = [future.result() for future in futures]
    elif how == "iterator":
        values = list(client.gather(iter(futures), direct=direct))
    else:
        values = client.gather(futures, direct=direct)
    ones = [is_the_one_made(value) for value in values]
    again = client.gather(futures, direct=direct)
    return [*ones, *[(a is b, True) for a, b in zip(values, again, strict=True)]]


class Keys:
    """Carries futures to a task by their keys, so that they arrive as futures and not as values."""

    def __init__(self, futures: Any) -> None:
        self.futures = futures
        self.keys = [future.key for future in futures]

    def __getstate__(self) -> Any:
        return {"keys": self.keys}


def gather_inside(given: Keys) -> Any:
    import zdist

    client = zdist.get_client()
    return [int(array[0]) for array in client.gather([zdist.Future(key, client) for key in given.keys])]


def level(depth: int, width: int) -> int:
    """A tree of tasks that gather tasks."""
    import zdist

    if not depth:
        return 1
    client = zdist.get_client()
    return 1 + sum(client.gather([client.submit(level, depth - 1, width, pure=False) for _ in range(width)]))


def level_by(depth: int, how: str) -> int:
    """The same in a chain, by another way of waiting."""
    import zdist

    if not depth:
        return 0
    client = zdist.get_client()
    future = client.submit(level_by, depth - 1, how, pure=False)
    if how == "iterator":
        (below,) = client.gather(iter([future]))
    elif how == "wait":
        zdist.wait([future])
        below = future.result()
    elif how == "as_completed":
        ((_, below),) = zdist.as_completed([future], with_results=True)
    else:
        below = future.result()
    return 1 + below


def away_and_back(gate: Gate) -> list[bool]:
    """Whether this task is out of its pool: before, and after a gather that had to wait."""
    import zdist
    from zdist import context

    task = context.current.get()
    client = zdist.get_client()
    seen = [task.seceded]
    client.gather(client.submit(wait_at, gate, pure=False))
    seen.append(task.seceded)
    with contextlib.suppress(TimeoutError):
        client.gather(client.submit(slow_inc, 1, 0.3, pure=False), timeout=0.05)
    return [*seen, task.seceded]


_inside = 0
_most = 0
_counting = threading.Lock()


def crowd(n: int) -> int:
    """Gather, then work: how many worked at the same time on this worker, at most."""
    import zdist

    global _inside, _most
    client = zdist.get_client()
    client.gather([client.submit(inc, i, pure=False) for i in range(n)])
    with _counting:
        _inside += 1
        _most = max(_most, _inside)
    end = time.monotonic() + 0.02
    while time.monotonic() < end:
        pass
    with _counting:
        _inside -= 1
    return _most


# --- bad input ---------------------------------------------------------------------------------------


class OwnError(Exception):
    """Pickles only with help: its arguments are not those of __init__."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code

    def __reduce__(self) -> Any:
        return OwnError, (self.code, str(self).split(": ", 1)[1])


class LockError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raise_own(code: int) -> None:
    raise OwnError(code, "with a code")


def raise_with_a_lock() -> None:
    raise LockError


def raise_unpicklable() -> None:
    class Hopeless(Exception):
        lock = threading.Lock()

    raise Hopeless("of a class that cannot be pickled")


def return_unpicklable() -> Any:
    return threading.Lock()


def explode(text: str) -> Any:
    raise ImportError(text)


class Explosive:
    """Pickles well and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return explode, ("cannot be loaded here",)

    def __call__(self, x: Any) -> Any:
        return x


class ExplosiveHere:
    """Unpickles in the worker, but not in a process that has ZDIST_TEST_CLIENT set."""

    def __reduce__(self) -> Any:
        return _explode_here, ()


def _explode_here() -> Any:
    if os.environ.get("ZDIST_TEST_CLIENT"):
        raise ImportError("cannot be loaded at the client")
    return ExplosiveHere()


def return_explosive() -> Any:
    return ExplosiveHere()


def explosive_with(nbytes: int) -> Any:
    """A large one."""
    return ExplosiveHere(), bytes(nbytes)


class ExitHere:
    """Unpickling it ends the program, in a process that has ZDIST_TEST_CLIENT set."""

    def __reduce__(self) -> Any:
        return _exit_here, ()


def _exit_here() -> Any:
    if os.environ.get("ZDIST_TEST_CLIENT"):
        raise SystemExit("while it was unpickled")
    return ExitHere()


def exiting() -> Any:
    return ExitHere()


def small_and_large(small: int, large: int) -> Any:
    import numpy

    return numpy.zeros(small, dtype="u1"), numpy.ones(large, dtype="u1")


def raise_kind(kind: type[BaseException]) -> None:
    raise kind("from a task")


def exit_hard(code: int) -> None:
    os._exit(code)
