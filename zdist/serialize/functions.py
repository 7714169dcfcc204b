"""Functions: pickled once, named by the digest of their bytes, and by a second digest of what they compute."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack

from zdist.errors import SerializationError
from zdist.limits import FUNCTION_CACHE, FUNCTION_CACHE_BYTES, MAX_FRAME, MAX_KEY
from zdist.protocol.messages import function_digest
from zdist.serialize.blob import CLOUD, Blob, Piece, parse
from zdist.serialize.imports import extend_path, import_path, importable
from zdist.serialize.naming import digest_of, global_names
from zdist.serialize.values import base_table, by_value_modules, decode, encode


class FunctionBlob:
    """A pickled function: ``digest`` (SHA-256, 32 bytes) of ``data``, and its name."""

    __slots__ = ("_code_digest", "data", "digest", "name")

    def __init__(self, digest: bytes, name: str, data: bytes) -> None:
        self.digest = digest
        self.name = name
        self.data = data
        self._code_digest = b""

    def code_digest(self, fn: Callable[..., Any]) -> bytes:
        """32 bytes that name the computation, of the function that was pickled; made when first asked for.

        It depends neither on the import path nor on file and line, and is the same in every process of one Python
        version. Raises SerializationError for what has no content.
        """
        if not self._code_digest:
            self._code_digest = digest_of(fn, f"function {self.name}")
        return self._code_digest


class _Entry(NamedTuple):
    function: weakref.ref[Any]
    blob: FunctionBlob
    watched: tuple[tuple[Any, str, Any], ...]
    path: list[str]


_MISSING: Final = object()
_cache: dict[tuple[int, str], _Entry] = {}  # by identity and title
_lock = threading.Lock()


def dumps_function(fn: Callable[..., Any], title: str = "") -> FunctionBlob:
    """Pickle a function for the workers, with this process's import path beside it.

    A function is pickled once, and again when it or what it refers to (closure, defaults, globals, also those of
    functions that travel with it) has become another object. A list or dict changed in place is not noticed: pass such
    a thing as an argument. Bound methods, partials and callable instances have state and are pickled each time.

    Args:
        title: what it is called in messages, and measured as; by default its own name.

    Raises:
        SerializationError: neither pickle nor cloudpickle can do it; the text names the function.
    """
    entry = _cache.get((id(fn), title))
    if entry is not None and entry.function() is fn and entry.path == sys.path and _unchanged(fn, entry.watched):
        return entry.blob
    name = title[:MAX_KEY] or function_name(fn)
    what = f"function {name}"
    serializer, code = encode(fn, what, base_table())
    data = Blob.of(serializer, [code, msgpack.packb([name, import_path()])]).tobytes()
    if len(data) > MAX_FRAME:
        hint = "scatter the data that it refers to and pass it as an argument"
        raise SerializationError(f"{what} has {len(data)} bytes pickled, {MAX_FRAME} are possible; {hint}")
    blob = FunctionBlob(function_digest(data), name, data)
    if isinstance(fn, types.FunctionType):
        _remember(fn, title, blob, _watch(fn) if serializer & CLOUD else ())
    elif importable(fn, by_value_modules()):
        _remember(fn, title, blob, ())
    return blob


def loads_function(data: Piece, digest: bytes, *, owner: Any = None) -> Callable[..., Any]:
    """The function, after its import path has been appended to this process's.

    Raises:
        SerializationError: the bytes are not those that the digest names, or the function cannot be unpickled here.
    """
    found = function_digest(data)
    if found != digest:
        raise SerializationError(f"a function's bytes have digest {found.hex()[:16]}…, not {digest.hex()[:16]}…")
    serializer, code, frames = parse(data)
    if len(frames) != 1:
        raise SerializationError("a function's payload does not have two frames")
    name, path = msgpack.unpackb(frames[0])
    extend_path(path)
    fn = decode((serializer, code, []), f"function {name}", owner)
    if not callable(fn):
        raise SerializationError(f"function {name} came back as {type(fn).__name__}, which cannot be called")
    return fn  # type: ignore[no-any-return]


def function_name(fn: Any) -> str:
    """How a function is called in keys and messages."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", None)
    return (name if isinstance(name, str) else type(fn).__name__)[:MAX_KEY]


def _remember(fn: Any, title: str, blob: FunctionBlob, watched: tuple[tuple[Any, str, Any], ...]) -> None:
    key = (id(fn), title)

    def forget(ref: weakref.ref[Any]) -> None:  # may run inside the lock, so it takes none
        entry = _cache.get(key)
        if entry is not None and entry.function is ref:
            _cache.pop(key, None)

    with _lock, contextlib.suppress(TypeError):  # some callables take no weak references
        entry = _Entry(weakref.ref(fn, forget), blob, watched, list(sys.path))
        _cache.pop(key, None)
        _cache[key] = entry
        kept = sum(len(entry.blob.data) for entry in list(_cache.values()))
        for oldest in list(_cache)[:-1]:
            if len(_cache) <= FUNCTION_CACHE and kept <= FUNCTION_CACHE_BYTES:
                break
            gone = _cache.pop(oldest, None)
            kept -= len(gone.blob.data) if gone is not None else 0


def _watch(fn: types.FunctionType) -> tuple[tuple[Any, str, Any], ...]:
    """What a function carried by value refers to: (holder, name, object now); None as the holder is the function."""
    by_value = by_value_modules()
    seen: set[int] = set()
    watched: list[tuple[Any, str, Any]] = []
    ahead: list[Any] = [fn]
    while ahead:
        current = ahead.pop()
        if not isinstance(current, types.FunctionType) or id(current) in seen:
            continue
        if current is not fn and importable(current, by_value):
            continue
        seen.add(id(current))
        holder = None if current is fn else current
        parts: list[tuple[Any, str, Any]] = []
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            parts.append((holder, name, getattr(current, name)))
        for cell in current.__closure__ or ():
            parts.append((cell, "cell_contents", getattr(cell, "cell_contents", _MISSING)))
        for name in global_names(current.__code__):
            parts.append((current.__globals__, name, current.__globals__.get(name, _MISSING)))
        for part in parts:
            if part[2] is not fn:  # the cache must not keep it alive
                watched.append(part)
                ahead.append(part[2])
    return tuple(watched)


def _unchanged(fn: Any, watched: tuple[tuple[Any, str, Any], ...]) -> bool:
    for holder, name, value in watched:
        if type(holder) is dict:
            now = holder.get(name, _MISSING)
        else:
            now = getattr(fn if holder is None else holder, name, _MISSING)
        if now is not value:
            return False
    return True
