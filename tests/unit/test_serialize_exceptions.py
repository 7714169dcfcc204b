"""Exceptions arrive as themselves, with all that hangs on them, and never break anything on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zdist import errors, serialize
from zdist.serialize import exceptions

ROOT = Path(__file__).parents[2]


def travel(exc: BaseException, text: str = "") -> BaseException:
    return serialize.loads_error(serialize.dumps_error(exc), text)


def raised(exc: BaseException) -> BaseException:
    """The exception, after it has been raised in this function."""
    try:
        raise exc
    except BaseException as caught:
        return caught


class Strict(Exception):
    """Its ``__init__`` fits neither its args nor one call."""

    calls = 0

    def __init__(self, code: int, *, lock: Any) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.lock = lock
        Strict.calls += 1


class Reduced(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.sum = a + b
        self.parts = (a, b)

    def __reduce__(self) -> Any:
        return Reduced, self.parts


class Broken(Exception):
    """Its own way of pickling does not work."""

    def __reduce__(self) -> Any:
        return Broken, ("too", "many", "arguments"), {"x": threading.Lock()}


class Liar(Exception):
    """Comes back as something that is no exception."""

    def __reduce__(self) -> Any:
        return int, (5,)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class Hostile(Exception):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ZeroDivisionError

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__

    @property
    def __notes__(self) -> Any:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("a", 1),
        KeyError("k"),
        OSError(2, "No such file", "name"),
        FileNotFoundError(2, "No such file"),
        UnicodeDecodeError("utf8", b"\xff", 0, 1, "bad"),
        StopIteration(4),
        SystemExit(3),
        KeyboardInterrupt(),
        SyntaxError("m", ("f", 1, 2, "t")),
        json.JSONDecodeError("m", "doc", 1),
        subprocess.CalledProcessError(3, ["cmd"], output="out"),
        Reduced(1, 2),
        errors.UnknownKey("key k"),
        errors.CancelledError("by client c"),
        np.exceptions.AxisError(3, 2),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_exceptions_come_back_as_themselves(exc: BaseException) -> None:
    back = travel(exc)
    assert type(back) is type(exc)
    assert back.args == exc.args and str(back) == str(exc)
    assert {k: repr(v) for k, v in vars(back).items()} == {k: repr(v) for k, v in vars(exc).items()}
    for field in ("errno", "filename", "value", "code", "start", "lineno", "returncode", "sum"):
        assert getattr(back, field, None) == getattr(exc, field, None)


def test_init_is_not_called_and_an_unpicklable_attribute_comes_as_text() -> None:
    exc = Strict(7, lock=threading.Lock())
    calls = Strict.calls
    back = travel(exc)
    assert isinstance(back, Strict) and Strict.calls == calls
    assert str(back) == "code 7" and back.code == 7 and "lock object" in back.lock


def test_an_unpicklable_argument_comes_as_text() -> None:
    back = travel(ValueError("text", threading.Lock(), 3))
    assert type(back) is ValueError and back.args[0] == "text" and back.args[2] == 3 and "lock" in back.args[1]


@pytest.mark.parametrize("cls", [Broken, Liar, Mute])
def test_classes_with_a_broken_protocol_are_rebuilt_from_their_parts(cls: type[Exception]) -> None:
    back = travel(raised(cls("a", 2)))
    assert type(back) is cls and back.args == ("a", 2) and back.__traceback__ is not None


def test_dumping_never_raises() -> None:
    back = travel(raised(Hostile("x")))
    assert isinstance(back, Hostile | errors.RemoteError)


def test_the_traceback_is_kept() -> None:
    def inner() -> None:
        raise ValueError("deep down")

    def middle() -> None:
        inner()

    try:
        middle()
    except ValueError as caught:
        expected = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(caught.__traceback__)]
        back = travel(caught)
    found = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(back.__traceback__)]
    assert found == expected and found[-1][2] == "inner"
    assert 'raise ValueError("deep down")' in "".join(traceback.format_exception(back))
    with pytest.raises(ValueError, match="deep down") as again:
        raise back
    assert [f.name for f in traceback.extract_tb(again.value.__traceback__)][-1] == "inner"


def test_causes_contexts_and_notes_are_kept() -> None:
    def chain() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise TypeError("second")  # noqa: B904
        except TypeError as second:
            second.add_note("about the second")
            error = Strict(1, lock=None)
            error.add_note("one")
            error.add_note("two")
            raise error from second

    try:
        chain()
    except Strict as caught:
        back = travel(caught)
    assert back.__notes__ == ["one", "two"] and back.__suppress_context__
    cause = back.__cause__
    assert type(cause) is TypeError and cause is back.__context__
    assert cause.__notes__ == ["about the second"] and not cause.__suppress_context__
    assert type(cause.__context__) is KeyError and cause.__cause__ is None
    for each in (back, cause, cause.__context__):
        assert traceback.extract_tb(each.__traceback__)[-1].name == "chain"


def test_a_suppressed_context_stays_suppressed() -> None:
    try:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None
    except ValueError as caught:
        back = travel(caught)
    assert back.__suppress_context__ and back.__cause__ is None
    assert "hidden" not in "".join(traceback.format_exception(back))


@pytest.mark.parametrize("group", [ExceptionGroup, BaseExceptionGroup])
def test_groups_keep_their_members(group: Any) -> None:
    members = [raised(ValueError(1)), group("inner", [raised(Strict(2, lock=threading.Lock())), raised(KeyError("k"))])]
    if group is BaseExceptionGroup:
        members.append(raised(KeyboardInterrupt()))
    back = travel(raised(group("outer", members)))
    assert type(back) is type(group("", members)) and back.message == "outer"
    assert [type(e) for e in back.exceptions] == [type(e) for e in members]
    strict, key = back.exceptions[1].exceptions
    assert strict.code == 2 and key.args == ("k",)
    assert all(e.__traceback__ is not None for e in (back, back.exceptions[0], strict, key))


def test_a_group_class_of_the_users_own() -> None:
    class Many(ExceptionGroup[Exception]):
        def __new__(cls, excs: list[Exception], code: int) -> Many:
            self = super().__new__(cls, f"code {code}", excs)
            self.code = code
            return self

        code: int

    back = travel(Many([ValueError(1)], 5))
    assert type(back) is Many and back.code == 5 and back.message == "code 5" and back.exceptions[0].args == (1,)


def test_rings_and_long_chains_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    back = travel(one)
    assert back.__cause__ is not None and back.__cause__.args == ("two",)
    last: BaseException = ValueError(0)
    for i in range(5000):
        nxt = ValueError(i)
        nxt.__cause__ = last
        last = nxt
    assert travel(last).args == (4999,)


def test_a_recursion_error_keeps_both_ends() -> None:
    def forever() -> None:
        forever()

    try:
        forever()
    except RecursionError as caught:
        payload = serialize.dumps_error(caught)
        back = serialize.loads_error(payload)
    frames = traceback.extract_tb(back.__traceback__)
    assert type(back) is RecursionError and len(payload) < 100_000
    assert len(frames) <= 2 * exceptions._FRAMES and frames[0].name == "test_a_recursion_error_keeps_both_ends"


def test_local_exception_classes_arrive() -> None:
    class Local(Exception):
        pass

    back = travel(Local("x"))
    assert type(back) is Local and back.args == ("x",)


def test_a_class_the_client_cannot_import_becomes_a_remote_error(tmp_path: Path) -> None:
    (tmp_path / "far_away.py").write_text(
        textwrap.dedent(
            """
            import sys
            from zdist import serialize

            class FarError(Exception):
                pass

            class Argument:
                pass

            def work():
                try:
                    {}["k"]
                except KeyError as error:
                    far = FarError("three", 4)
                    far.add_note("a note")
                    raise far from error

            def known():
                raise ValueError("known", Argument())
            """
        )
    )
    code = (
        "import sys, far_away; from zdist import serialize\n"
        "for f in (far_away.work, far_away.known):\n"
        "    try: f()\n"
        "    except Exception as e: print(serialize.dumps_error(e).hex())"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    unknown, known = (bytes.fromhex(line) for line in done.stdout.split())
    back = serialize.loads_error(unknown)
    assert type(back) is errors.RemoteError
    text = str(back)
    assert text.startswith("far_away.FarError: ('three', 4)") and "No module named 'far_away'" in text
    assert "raise far from error" in text and back.__notes__ == ["a note"]
    assert type(back.__cause__) is KeyError
    assert traceback.extract_tb(back.__traceback__)[-1].name == "work"
    back = serialize.loads_error(known)
    assert type(back) is ValueError and back.args[0] == "known" and "No module named 'far_away'" in back.args[1]


@pytest.mark.parametrize("payload", [b"", b"garbage", b"\x94\x01\x00\x91\x01\xc4\x00N", serialize.dumps(5).tobytes()])
def test_an_unreadable_payload_becomes_a_remote_error_with_the_text(payload: bytes) -> None:
    back = serialize.loads_error(payload, "ValueError: what the worker said")
    assert type(back) is errors.RemoteError and str(back).startswith("ValueError: what the worker said\n")
    assert "could not be read here" in str(back)


def test_records_with_missing_parts_become_remote_errors() -> None:
    back = serialize.loads_error(serialize.dumps({"type": "x"}).tobytes(), "said")
    assert type(back) is errors.RemoteError and str(back).startswith("said")


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x, max_size=3) | st.tuples(x, x)), st.text()
)
def test_any_arguments(content: Any, note: str) -> None:
    exc = Strict(1, lock=content)
    exc.args = (content, note)
    exc.add_note(note)
    back = travel(exc)
    assert back.args == (content, note) and back.lock == content and back.__notes__ == [note]  # type: ignore[attr-defined]


def test_nothing_is_patched_globally() -> None:
    import copyreg

    before = dict(copyreg.dispatch_table)  # in which other libraries may have put something
    travel(raised(ValueError(1)))
    assert copyreg.dispatch_table == before
