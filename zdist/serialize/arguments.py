"""A task's arguments: futures anywhere inside become references to keys, and so does what is too big to travel inline.

Three shapes, told apart by what the payload unpickles to: ``(args, kwargs)``; ``(args, kwargs, {place: key or keys})``
where references stand at the top level or fill a list there (no pickler of our own is needed, which divides the cost of
a chain's link or a merge by three); and a key alone, of the client-held ``Packed`` arguments. References deeper inside
are calls of ``_reference`` in the pickle, which the loader answers with ``resolve``; the DEEP bit says that there are
some.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from zdist.errors import SerializationError
from zdist.limits import INLINE_ARGS
from zdist.serialize.blob import DEEP, Blob, Piece, Stream, parse, single
from zdist.serialize.references import references
from zdist.serialize.values import (
    PLAIN,
    PROTOCOL,
    base_table,
    decode,
    encode,
    reduce_array,
    simple,
    take_buffers,
    type_name,
)

Find = Callable[[Any], str]
Places = dict[int | str, str | tuple[str, ...]]  # by position or name: a key, or those of a list


class Packed:
    """The stream of arguments that are too big to travel inline; held by the client under a key of its own."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces

    @property
    def nbytes(self) -> int:
        return sum(memoryview(piece).nbytes for piece in self.pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, ([pickle.PickleBuffer(piece) for piece in self.pieces],)


class _Ref:
    """Stands for a top-level argument that is a key, while the others are pickled."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key


def _reference(key: str) -> Any:
    raise SerializationError(f"a reference to key {key!r} can only be loaded among a task's arguments")


def dumps_args(
    args: tuple[Any, ...], kwargs: dict[str, Any], find: Find | None = None, *, what: str = "arguments"
) -> tuple[bytes, tuple[str, ...]]:
    """Pickle a task's arguments: (payload, keys they depend on, in order, each once).

    Registered references (futures) anywhere inside become the key that they stand for.

    Args:
        find: called once for each object too big to travel inline (INLINE_ARGS: bytes, bytearrays and strings at top
            level, numpy arrays anywhere, all arguments together as a ``Packed``); answers the key of a client-held
            copy, which becomes a dependency. It must freeze the object at once by ``dumps``. None: all travels inline.
        what: names the arguments in the error's text, as in "arguments of inc".

    Raises:
        SerializationError: something cannot be pickled; the text says which argument.
    """
    for arg in args:
        kind = type(arg)
        if kind not in PLAIN and ((kind is not str and kind is not bytes) or len(arg) >= INLINE_ARGS):
            break
    else:
        if not kwargs:
            data = pickle.dumps((args, kwargs), PROTOCOL)
            if len(data) < INLINE_ARGS or find is None:
                return single(0, data), ()
    return _dumps_mixed(args, kwargs, find, what)


def _dumps_mixed(
    args: tuple[Any, ...], kwargs: dict[str, Any], find: Find | None, what: str
) -> tuple[bytes, tuple[str, ...]]:
    """Arguments with references, containers or large objects."""
    places: Places = {}
    positional = list(args)
    named = dict(kwargs)
    flat = True
    for items in (enumerate(args), kwargs.items()) if kwargs else (enumerate(args),):
        for place, arg in items:
            kind = type(arg)
            if kind in PLAIN:
                continue
            get_key = references.get(kind)
            if get_key is not None:
                places[place] = get_key(arg)
            elif kind is list and (keys := _keys(arg)):
                places[place] = keys
            elif find is not None and _big(arg, kind):
                places[place] = _held(arg, find, args, kwargs, places)
            else:
                flat = flat and simple(arg, kind)
                continue
            if isinstance(place, int):
                positional[place] = None
            else:
                named[place] = None
    if flat:
        data = pickle.dumps((tuple(positional), named, places) if places else (args, kwargs), PROTOCOL)
        if len(data) < INLINE_ARGS or find is None:
            deps: dict[str, None] = {}
            for key in places.values():
                if isinstance(key, tuple):
                    deps.update(dict.fromkeys(key))
                else:
                    deps[key] = None
            return single(0, data), tuple(deps)
    _fill(positional, named, places, _Ref)
    return _dumps_deep((tuple(positional), named), find, what)


def _keys(items: list[Any]) -> tuple[str, ...]:
    """The keys of a list of futures and nothing else."""
    kinds = set(map(type, items))
    get_key = references.get(kinds.pop()) if len(kinds) == 1 else None
    return tuple(map(get_key, items)) if get_key is not None else ()


def _fill(positional: list[Any], named: dict[str, Any], places: Places, value: Callable[[str], Any]) -> None:
    """Put what stands for each key where it belongs."""
    for place, key in places.items():
        put = [value(each) for each in key] if isinstance(key, tuple) else value(key)
        if isinstance(place, int):
            positional[place] = put
        else:
            named[place] = put


def _big(obj: Any, kind: type) -> bool:
    """Whether an object becomes a client-held key of its own."""
    if kind is str or kind is bytes or kind is bytearray:
        return len(obj) >= INLINE_ARGS
    array = getattr(sys.modules.get("numpy"), "ndarray", None)
    return kind is array and obj.nbytes >= INLINE_ARGS and not obj.dtype.hasobject


def _held(obj: Any, find: Find, args: tuple[Any, ...], kwargs: dict[str, Any], places: Places) -> str:
    """The key of a big top-level object: that of the same object further ahead, or a new one."""
    for place, key in places.items():
        if (args[place] if isinstance(place, int) else kwargs[place]) is obj:
            return str(key)
    return find(obj)


def _dumps_deep(
    content: tuple[tuple[Any, ...], dict[str, Any]], find: Find | None, what: str
) -> tuple[bytes, tuple[str, ...]]:
    deps: dict[str, None] = {}
    found: dict[int, str] = {}
    buffers: list[bytes | memoryview] = []

    def refer(key: str) -> tuple[Any, ...]:
        deps[key] = None
        return _reference, (key,)

    def reduce_big_array(array: Any) -> Any:
        if find is None or not _big(array, type(array)):
            return reduce_array(array)
        key = found.get(id(array))
        if key is None:
            key = found[id(array)] = find(array)
        return refer(key)

    def restart() -> None:
        deps.clear()
        buffers.clear()

    table = dict(base_table())
    numpy = sys.modules.get("numpy")
    if getattr(numpy, "ndarray", None) in table:
        table[numpy.ndarray] = reduce_big_array  # type: ignore[union-attr]
    for cls, get_key in references.items():
        table[cls] = lambda obj, get_key=get_key: refer(get_key(obj))
    table[_Ref] = lambda ref: refer(ref.key)
    try:
        # what find was not asked about stays shared here: Packed is frozen by it, otherwise it is joined below
        serializer, data = encode(content, what, table, take_buffers(buffers, share=True), restart)
    except SerializationError as error:
        raise _blame(content, table, what, error) from error.__cause__
    if deps:
        serializer |= DEEP
    if not buffers and (find is None or len(data) < INLINE_ARGS):
        return single(serializer, data), tuple(deps)
    blob = Blob.of(serializer, [data, *buffers])
    if find is None:
        return blob.tobytes(), tuple(deps)
    key = find(Packed(blob.pieces))
    return single(0, pickle.dumps(key, PROTOCOL)), (key, *(dep for dep in deps if dep != key))


def _blame(
    content: tuple[tuple[Any, ...], dict[str, Any]], table: Any, what: str, error: SerializationError
) -> SerializationError:
    """The error, naming the first argument that cannot be pickled by itself."""
    args, kwargs = content
    for place, arg in (*enumerate(args), *kwargs.items()):
        try:
            encode(arg, what, table)
        except SerializationError as alone:
            name = f"number {place}" if isinstance(place, int) else repr(place)
            reason = alone.__cause__ or alone
            return SerializationError(
                f"{what}: argument {name} of type {type_name(arg)} cannot be pickled: "
                f"{type(reason).__name__}: {reason}; make or open such an object inside the task"
            )
    return error


class _Unpickler(pickle.Unpickler):
    """Answers references by ``resolve``."""

    def __init__(self, pickled: Piece, buffers: list[Piece], resolve: Callable[[str], Any]) -> None:
        super().__init__(io.BytesIO(pickled), buffers=buffers)
        self._resolve = resolve

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reference" and module == __name__:
            return self._resolve
        return super().find_class(module, name)


def loads_args(
    payload: Stream, resolve: Callable[[str], Any], *, what: str = "arguments", owner: Any = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments, each reference replaced by ``resolve(key)``, which may be asked more than once for one key.

    Load the task's function first: it brings the client's import path.

    Raises:
        SerializationError: as ``loads``. What ``resolve`` raises for a reference at the top level comes as it is.
    """
    parsed = parse(payload)
    if parsed[0] & DEEP:
        content = decode(parsed, what, owner, lambda data, buffers: _Unpickler(data, buffers, resolve).load())
    else:
        content = decode(parsed, what, owner)
    if type(content) is str:
        packed = resolve(content)
        # the held copy serves other runs too: read-only pieces make buffers be copied out of it
        pieces = [memoryview(piece).toreadonly() for piece in packed.pieces]
        return loads_args(pieces, resolve, what=what, owner=owner)
    if type(content) is not tuple or len(content) not in (2, 3):
        raise SerializationError(f"{what}: the payload is not a task's arguments")
    if len(content) == 2:
        return content
    args, kwargs, places = content
    positional = list(args)
    _fill(positional, kwargs, places, resolve)
    return tuple(positional), kwargs
