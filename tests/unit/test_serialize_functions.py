"""Functions: pickled once, loaded with the client's import path, and what goes wrong."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from zdist import serialize
from zdist.errors import SerializationError
from zdist.limits import FUNCTION_CACHE
from zdist.serialize import functions

ROOT = Path(__file__).parents[2]


def load(blob: serialize.FunctionBlob) -> Any:
    return serialize.loads_function(blob.data, blob.digest)


def plus_one(x: int) -> int:
    return x + 1


class Adder:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        return self.n + x

    def add(self, x: int) -> int:
        return self.n + x

    @staticmethod
    def two(x: int) -> int:
        return x + 2


def run(code: str, *args: str, cwd: Path | None = None, **env: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize(
    ("fn", "arg", "expected", "name"),
    [
        (plus_one, 1, 2, "plus_one"),
        (lambda x: x * 3, 2, 6, "<lambda>"),
        (len, "abc", 3, "len"),
        (str, 5, "5", "str"),
        (functools.partial(pow, 2), 5, 32, "pow"),
        (functools.partial(lambda a, b: a - b, 9), 5, 4, "<lambda>"),
        (Adder(3), 4, 7, "Adder"),
        (Adder(3).add, 4, 7, "add"),
        (Adder.two, 4, 6, "two"),
        ("abc".count, "b", 1, "count"),
    ],
)
def test_callables_of_every_kind(fn: Any, arg: Any, expected: Any, name: str) -> None:
    blob = serialize.dumps_function(fn)
    assert blob.name == name
    assert blob.digest == hashlib.sha256(blob.data).digest() and len(blob.code_digest(fn)) == 32
    assert load(blob)(arg) == expected


def test_closures_recursion_and_defaults() -> None:
    base = 10

    def outer(n: int, *, step: int = 2) -> int:
        return base if n <= 0 else outer(n - step) + 1

    assert load(serialize.dumps_function(outer))(6) == 13


def test_a_big_closure_is_pickled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(1 << 20)

    def size() -> int:
        return len(content)

    first = serialize.dumps_function(size)
    assert load(first)() == 1 << 20
    monkeypatch.setattr(functions, "encode", lambda *_: pytest.fail("pickled again"))
    assert serialize.dumps_function(size) is first


def test_what_a_function_refers_to_is_noticed_when_it_is_replaced() -> None:
    space: dict[str, Any] = {"__name__": "__main__", "factor": 2}
    exec("def inner(x): return x * factor\ndef outer(x): return inner(x)", space)
    outer = space["outer"]
    first = serialize.dumps_function(outer)
    digests = {first.code_digest(outer)}
    assert load(first)(5) == 10
    assert serialize.dumps_function(outer) is first
    space["factor"] = 3
    second = serialize.dumps_function(outer)
    digests.add(second.code_digest(outer))
    assert load(second)(5) == 15
    exec("def inner(x): return x - factor", space)
    third = serialize.dumps_function(outer)
    digests.add(third.code_digest(outer))
    assert load(third)(5) == 2
    assert len(digests) == 3


def test_a_closure_cell_that_changes_is_noticed() -> None:
    n = 1

    def get() -> int:
        return n

    assert load(serialize.dumps_function(get))() == 1
    n = 2
    assert load(serialize.dumps_function(get))() == 2


def test_state_of_callable_objects_is_taken_each_time() -> None:
    adder = Adder(1)
    serialize.dumps_function(adder)
    adder.n = 5
    assert load(serialize.dumps_function(adder))(1) == 6
    assert load(serialize.dumps_function(adder.add))(1) == 6


def test_the_cache_keeps_no_function_alive_and_is_bounded() -> None:
    def make(n: int) -> Any:
        def again(x: int) -> int:
            return n if x == 0 else again(x - 1)

        return again

    fn = make(1)
    serialize.dumps_function(fn)
    gone = weakref.ref(fn)
    del fn
    gc.collect()
    assert gone() is None
    kept = [lambda x, n=n: x + n for n in range(FUNCTION_CACHE + 20)]
    for each in kept:
        serialize.dumps_function(each)
    assert len(functions._cache) <= FUNCTION_CACHE
    assert serialize.dumps_function(kept[-1]) is serialize.dumps_function(kept[-1])


def test_functions_that_look_alike_are_told_apart() -> None:
    def make(n: int) -> Any:
        return lambda x: x + n

    digests = {
        serialize.dumps_function(fn).code_digest(fn)
        for fn in (
            make(1), make(2), lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, lambda x, y=1: x + 1, lambda y: y + 1,
            plus_one, len, str, Adder(1), Adder(2), Adder(1).add, Adder.two, functools.partial(plus_one, 1),
            functools.partial(plus_one, 2),
        )
    }  # fmt: skip
    assert len(digests) == 16
    fns = make(1), make(1)
    assert len({serialize.dumps_function(fn).code_digest(fn) for fn in fns}) == 1


def test_the_code_digest_depends_on_neither_import_path_nor_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def make(lines: int) -> Any:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec("\n" * lines + "def f(x):\n    return {x, 'a', 'b'}\n", space)
        return space["f"]

    fns = make(0), make(5)
    first = serialize.dumps_function(fns[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    second = serialize.dumps_function(fns[1])
    assert first.digest != second.digest and first.code_digest(fns[0]) == second.code_digest(fns[1])


def test_the_import_path_travels_and_is_appended(tmp_path: Path) -> None:
    """A module beside a script pickles by reference and is found on a worker that runs elsewhere."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    (project / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    data = run(
        "import sys, beside; from zdist import serialize\n"
        "sys.path.append('/no/such/folder')\n"
        "b = serialize.dumps_function(beside.triple); assert len(b.data) < 2000 and b'no/such' not in b.data\n"
        "sys.stdout.buffer.write(b.digest + b.data)",
        cwd=project,
    )
    (tmp_path / "fn").write_bytes(data)
    out = run(
        """
        import sys
        from zdist import serialize
        before = list(sys.path)
        data = open(sys.argv[1], "rb").read()
        fn = serialize.loads_function(data[32:], data[:32])
        assert fn(5) == 15 and sys.modules["beside"].__file__.startswith(sys.argv[2])
        assert sys.path[: len(before)] == before and sys.path[len(before):] == [sys.argv[2]], sys.path
        serialize.loads_function(data[32:], data[:32])
        assert len(sys.path) == len(before) + 1
        print("ok")
        """,
        str(tmp_path / "fn"),
        str(project),
        cwd=elsewhere,
    )
    assert out == b"ok\n"


def test_functions_of_main_travel_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, functools
            from collections import Counter
            from zdist import serialize
            LIMIT = 3
            class Box:
                def __init__(self, x): self.x = x
            @functools.lru_cache
            def fib(n):
                return n if n < 2 else fib(n - 1) + fib(n - 2)
            def helper(x):
                return Box(x + LIMIT)
            def work(x):
                return helper(x).x + fib(10) + Counter("aab")["a"]
            blob = serialize.dumps_function(work)
            sys.stdout.buffer.write(blob.digest + blob.data)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr.decode()
    assert serialize.loads_function(done.stdout[32:], done.stdout[:32])(1) == 4 + 55 + 2
    sys.path.remove(str(tmp_path))


def test_modules_registered_by_value_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carried_module.py").write_text("def quadruple(x):\n    return 4 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import carried_module  # type: ignore[import-not-found]

    by_reference = serialize.dumps_function(carried_module.quadruple)
    cloudpickle.register_pickle_by_value(carried_module)
    try:
        value = serialize.dumps([carried_module.quadruple]).tobytes()
    finally:
        cloudpickle.unregister_pickle_by_value(carried_module)
    monkeypatch.undo()
    del sys.modules["carried_module"]
    assert serialize.loads(value)[0](2) == 8
    assert b"quadruple" in by_reference.data


def test_an_unpicklable_function_is_named() -> None:
    lock = threading.Lock()

    def locked() -> Any:
        return lock

    with pytest.raises(SerializationError, match=r"function locked of type function cannot be pickled: TypeError: can"):
        serialize.dumps_function(locked)


def test_a_function_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_behind.py").write_text("def work(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import left_behind  # type: ignore[import-not-found]

    blob = serialize.dumps_function(left_behind.work)
    monkeypatch.undo()
    del sys.modules["left_behind"]
    (tmp_path / "left_behind.py").unlink()
    with pytest.raises(
        SerializationError, match=r"function work could not be unpickled here: ModuleNotFoundError: .*le"
    ):
        load(blob)
    sys.path.remove(str(tmp_path))


def test_bytes_that_do_not_match_their_digest_are_not_loaded() -> None:
    blob = serialize.dumps_function(plus_one)
    data = bytearray(blob.data)
    data[20] ^= 1
    with pytest.raises(SerializationError, match=f"not {blob.digest.hex()[:16]}"):
        serialize.loads_function(data, blob.digest)
    value = serialize.dumps(5).tobytes()
    with pytest.raises(SerializationError, match="two frames"):
        serialize.loads_function(value, hashlib.sha256(value).digest())
