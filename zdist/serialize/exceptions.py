"""Exceptions to bytes and back: with causes, contexts, notes, groups and tracebacks, each part on its own.

A record is plain data. What cannot be pickled degrades alone: an attribute to its repr, an exception to RemoteError
with its text. An exception whose class does not say how it is pickled is rebuilt without calling its ``__init__``,
whose signature and side effects need not fit ``args``.
"""

from __future__ import annotations

import builtins
import pickle
import traceback
from types import SimpleNamespace, TracebackType
from typing import Any, Final

from tblib import Traceback

from zdist.errors import RemoteError
from zdist.limits import MAX_TEXT
from zdist.serialize.blob import Piece, single
from zdist.serialize.values import PROTOCOL, dumps, loads, type_name

_DEPTH: Final = 16  # causes, contexts and groups inside each other
_MEMBERS: Final = 1000  # exceptions in one payload
_FRAMES: Final = 100  # kept at each end of a traceback
_PLAIN_REDUCE: Final = (BaseException.__reduce__, BaseException.__reduce_ex__)


def dumps_error(exc: BaseException) -> bytes:
    """An exception's payload. Never raises; what cannot be pickled arrives as text."""
    try:
        return single(0, pickle.dumps(_Recorder().record(exc, 0), PROTOCOL))
    except Exception:
        record = {"type": type_name(exc), "text": _text(exc), "lines": ""}
        return single(0, pickle.dumps(record, PROTOCOL))


def loads_error(payload: Piece, text: str = "", *, owner: Any = None) -> BaseException:
    """The exception, with its traceback. Never raises.

    Args:
        text: what to show when the payload is of no use.

    Returns:
        The exception itself, or where its class cannot be had here a RemoteError with type, message and traceback.
    """
    try:
        record = loads(payload, what="exception", owner=owner)
        if type(record) is dict:
            return _rebuild(record, owner)
        problem = f"the payload holds {type_name(record)}"
    except Exception as error:
        problem = str(error)
    return RemoteError(f"{text or 'a task failed'}\n(its exception could not be read here: {problem})")


def _text(exc: BaseException) -> str:
    try:
        return str(exc)[:MAX_TEXT]
    except Exception as error:
        return f"<str() of the exception raised {type(error).__name__}>"


def _lines(exc: BaseException) -> str:
    """The traceback as text, with source lines of where it was raised."""
    try:
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__, limit=-_FRAMES))
    except Exception:
        text = f"{type_name(exc)}: {_text(exc)}\n"
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT // 2] + "\n…\n" + text[-MAX_TEXT // 2 :]


class _Recorder:
    """Turns one exception, and those linked to it, into records."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.members = 0

    def record(self, exc: BaseException, depth: int) -> dict[str, Any]:
        self.members += 1
        self.open.add(id(exc))
        record: dict[str, Any] = {
            "type": type_name(exc),
            "text": _text(exc),
            "lines": _lines(exc) if not depth else "",
            "frames": _frames(exc.__traceback__),
            "suppress": exc.__suppress_context__,
            "notes": [str(note) for note in getattr(exc, "__notes__", None) or ()],
        }
        if exc.__cause__ is not None and self.follow(exc.__cause__, depth):
            record["cause"] = self.record(exc.__cause__, depth + 1)
        if exc.__context__ is not None and exc.__context__ is exc.__cause__:
            record["context"] = None  # the cause itself
        elif exc.__context__ is not None and self.follow(exc.__context__, depth):
            record["context"] = self.record(exc.__context__, depth + 1)
        if isinstance(exc, BaseExceptionGroup):
            inside = [self.record(inner, depth + 1) for inner in exc.exceptions if self.follow(inner, depth)]
            if inside:
                record["group"] = (str(exc.message), inside)
        record.update(_body(exc, "group" in record))
        self.open.discard(id(exc))
        return record

    def follow(self, exc: BaseException, depth: int) -> bool:
        return id(exc) not in self.open and depth < _DEPTH and self.members < _MEMBERS


def _frames(tb: TracebackType | None) -> list[tuple[str, str, int, int, str, str]]:
    """Rows: file, function, line, frame's line, module, module's file."""
    rows = []
    while tb is not None:
        code, names = tb.tb_frame.f_code, tb.tb_frame.f_globals
        module = (str(names.get("__name__", "?")), str(names.get("__file__", code.co_filename)))
        line = tb.tb_lineno or 0
        rows.append((code.co_filename, code.co_name, line, tb.tb_frame.f_lineno or line, *module))
        tb = tb.tb_next
    return rows if len(rows) <= 2 * _FRAMES else rows[:_FRAMES] + rows[-_FRAMES:]


def _traceback(rows: list[tuple[str, str, int, int, str, str]]) -> TracebackType | None:
    chain: Any = None
    for file, function, line, frame_line, module, module_file in reversed(rows):
        code = SimpleNamespace(co_filename=file, co_name=function)
        names = {"__name__": module, "__file__": module_file}
        frame = SimpleNamespace(f_globals=names, f_code=code, f_lineno=frame_line)
        chain = SimpleNamespace(tb_frame=frame, tb_lineno=line, tb_next=chain)
    rebuilt: TracebackType | None = Traceback(chain).as_traceback() if chain is not None else None
    return rebuilt


def _body(exc: BaseException, group: bool) -> dict[str, Any]:
    """The exception itself: "own" by its own way of pickling, else "parts" to rebuild it from."""
    cls = type(exc)
    if not group and (cls.__reduce__ is not BaseException.__reduce__ or cls.__reduce_ex__ is not object.__reduce_ex__):
        try:
            own = dumps(exc, what="exception").tobytes()
            if type_name(loads(own)) == type_name(exc) and _text(loads(own)) == _text(exc):
                return {"own": own}
        except Exception:  # its own way does not work; the parts may
            pass
    try:
        kind = dumps(cls, what="exception").tobytes()
    except Exception:
        return {}
    state = object.__getstate__(exc)  # not what a class makes of it
    own, slots = state if isinstance(state, tuple) else (state, {})
    args = () if group else exc.args
    return {
        "kind": kind,
        "args": [_part(arg) for arg in args],
        "state": {str(name): _part(value) for name, value in (own or {}).items() if name != "__notes__"},
        "slots": {name: _part(value) for name, value in slots.items()},
    }


def _part(value: Any) -> bytes:
    """An argument or attribute, its repr where it cannot be pickled."""
    try:
        part = dumps(value).tobytes()
        loads(part)
        return part
    except Exception:
        pass
    try:
        return dumps(repr(value)[:MAX_TEXT]).tobytes()
    except Exception:
        return dumps(f"<{type_name(value)}>").tobytes()


def _rebuild(record: dict[str, Any], owner: Any) -> BaseException:
    try:
        exc = _revive(record, owner)
    except Exception as error:
        reason = f"\n(the exception could not be rebuilt here: {error})" if "kind" in record or "own" in record else ""
        lines = record.get("lines") or ""
        exc = RemoteError(
            f"{record['type']}: {record['text']}{reason}" + (f"\n\nOn the worker:\n{lines}" if lines else "")
        )
    for note in record.get("notes", ()):
        exc.add_note(note)
    if "cause" in record:
        exc.__cause__ = _rebuild(record["cause"], owner)
    if "context" in record:
        exc.__context__ = _rebuild(record["context"], owner) if record["context"] is not None else exc.__cause__
    exc.__suppress_context__ = record.get("suppress", False)
    return exc.with_traceback(_traceback(record.get("frames", [])))


def _revive(record: dict[str, Any], owner: Any) -> BaseException:
    if "own" in record:
        exc = loads(record["own"], what="exception", owner=owner)
        if "__notes__" in vars(exc):
            del exc.__notes__
        return _checked(exc)
    if "kind" not in record:
        raise RemoteError("it cannot be pickled")
    cls = loads(record["kind"], what="its class", owner=owner)
    base = next(parent for parent in cls.__mro__ if parent.__module__ == builtins.__name__)
    if "group" in record:
        message, members = record["group"]
        exc = base.__new__(cls, message, [_rebuild(member, owner) for member in members])
    else:
        args = [_lenient(part, owner) for part in record["args"]]
        exc = base.__new__(cls, *args)
        base.__init__(exc, *args)
        exc.args = tuple(args)
    for name, part in record["state"].items():
        exc.__dict__[name] = _lenient(part, owner)
    for name, part in record["slots"].items():
        object.__setattr__(exc, name, _lenient(part, owner))
    return _checked(exc)


def _lenient(part: bytes, owner: Any) -> Any:
    """An argument or attribute; text where it cannot be had here."""
    try:
        return loads(part, owner=owner)
    except Exception as error:
        return f"<{error}>"


def _checked(exc: Any) -> BaseException:
    if not isinstance(exc, BaseException):
        raise RemoteError(f"it came back as {type_name(exc)}")
    return exc
