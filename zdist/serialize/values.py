"""Values to blobs and back: pickle protocol 5 with out-of-band buffers, cloudpickle where pickle does not do."""

from __future__ import annotations

import copyreg
import importlib
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from zdist.errors import SerializationError
from zdist.limits import OWN_FRAME
from zdist.serialize.blob import CLOUD, MAX_BUFFERS, Blob, Piece, Stream, parse, single
from zdist.serialize.references import local, references

Table = Mapping[Any, Callable[[Any], Any]]

PROTOCOL: Final = 5
PLAIN: Final = frozenset({int, float, bool, type(None)})  # pickled by themselves, whatever else is registered
_SIMPLE: Final = PLAIN | {str, bytes}  # the same, of any size
_MAIN: Final = b"__main__"

_base: dict[Any, Callable[[Any], Any]] = {}
_base_made_of: tuple[int, bool] = (-1, False)
_cloud: Any = None


class TooBig(Exception):
    """The pickle grew over the limit; ends the pickling early."""


class _Bounded:
    """A file for the pickler that takes up to ``room`` bytes."""

    __slots__ = ("parts", "room")

    def __init__(self, room: int) -> None:
        self.parts: list[Any] = []
        self.room = room

    def write(self, data: Any) -> int:
        n = memoryview(data).nbytes
        self.room -= n
        if self.room < 0:
            raise TooBig
        self.parts.append(bytes(data))
        return n

    def getvalue(self) -> bytes:
        return b"".join(self.parts)


class _Raw:
    """Top-level bytes: pickle would copy them into its stream."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.data), (pickle.PickleBuffer(self.data),)


def reduce_array(array: Any) -> Any:
    """A numpy array always comes back writable, also a read-only one; a slice of one goes as a buffer too."""
    flags = array.flags
    if not flags.forc or not flags.writeable:  # in this order: some of the first kind warn when they are asked
        array = array.copy(order="F" if flags.fnc else "C")
    return array.__reduce_ex__(PROTOCOL)


def base_table() -> dict[Any, Callable[[Any], Any]]:
    """Reducers by type for every pickler of this package; callers copy it before they change it."""
    global _base, _base_made_of
    numpy = sys.modules.get("numpy")
    made_of = (len(copyreg.dispatch_table), numpy is not None)
    if made_of != _base_made_of:
        _base = dict(copyreg.dispatch_table)
        if numpy is not None and hasattr(numpy, "ndarray"):  # not half way through its import
            _base[numpy.ndarray] = reduce_array
            _base_made_of = made_of
    return _base


def cloudpickle() -> Any:
    """The cloudpickle module, loaded when first needed: it takes longer to import than all of the client."""
    global _cloud
    if _cloud is None:
        _cloud = importlib.import_module("cloudpickle")
    return _cloud


def by_value_modules() -> Any:
    """Names of modules that the user has told cloudpickle to carry by value."""
    loaded = _cloud or sys.modules.get("cloudpickle")
    registered = getattr(loaded, "list_registry_pickle_by_value", None)  # another thread may be importing it just now
    return registered() if registered is not None else ()


def encode(
    obj: Any,
    what: str,
    table: Table,
    callback: Callable[[pickle.PickleBuffer], bool] | None = None,
    restart: Callable[[], None] | None = None,
    limit: int | None = None,
) -> tuple[int, bytes]:
    """Serializer bits and pickle of an object.

    ``callback`` sees each out-of-band buffer and answers whether it goes into the pickle; ``restart`` is called when
    cloudpickle begins anew. Raises SerializationError, or TooBig over ``limit`` bytes.
    """
    if not by_value_modules():
        try:
            file: Any = io.BytesIO() if limit is None else _Bounded(limit)
            pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=callback)
            pickler.dispatch_table = table
            pickler.dump(obj)
            data: bytes = file.getvalue()
            if _MAIN not in data:
                return 0, data
        except TooBig:
            raise
        except Exception:  # whatever the reason is, cloudpickle has the last word and its error is told
            pass
    if restart is not None:
        restart()
    from zdist.serialize.cloud import Cloud

    try:
        file = io.BytesIO() if limit is None else _Bounded(limit)
        Cloud(file, table, callback).dump(obj)
        return CLOUD, file.getvalue()
    except TooBig:
        raise
    except Exception as error:
        raise SerializationError(
            f"{what} of type {type_name(obj)} cannot be pickled: {type(error).__name__}: {error}"
        ) from error


def simple(obj: Any, kind: type) -> bool:
    """Whether plain ``pickle.dumps`` says it all: nothing inside can be a reference, a class or a large buffer."""
    if kind in _SIMPLE:
        return True
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return _SIMPLE.issuperset(map(type, obj))
    return kind is dict and _SIMPLE.issuperset(map(type, obj)) and _SIMPLE.issuperset(map(type, obj.values()))


def type_name(obj: Any) -> str:
    """Module and name of an object's class, as messages show it."""
    cls = type(obj)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def _noting(refs: dict[str, None]) -> dict[Any, Callable[[Any], Any]]:
    """The base table, with registered references pickled as they ask to be and noted in ``refs``."""
    table = dict(base_table())
    for cls, get_key in references.items():

        def note(obj: Any, get_key: Callable[[Any], str] = get_key) -> Any:
            refs[get_key(obj)] = None
            return obj.__reduce_ex__(PROTOCOL)

        table[cls] = note
    return table


def take_buffers(buffers: list[bytes | memoryview], share: bool) -> Callable[[pickle.PickleBuffer], bool]:
    """A buffer callback that takes large buffers out of the pickle, snapshotted unless ``share``."""

    def callback(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OWN_FRAME or len(buffers) >= MAX_BUFFERS:
            return True
        # read-only, so that loading the blob here never hands out the object's own memory
        buffers.append(raw.toreadonly() if share or type(raw.obj) is bytes else bytes(raw))
        return False

    return callback


def dumps(obj: Any, *, what: str = "value", share: bool = False) -> Blob:
    """Freeze a value into a blob.

    Args:
        what: names the value in the error's text, as in "result of inc-1".
        share: large buffers stay the object's own memory; the caller vouches that it does not change while the blob
            is used. Otherwise they are copied.

    Raises:
        SerializationError: neither pickle nor cloudpickle can do it.
    """
    if type(obj) in PLAIN:
        return Blob([single(0, pickle.dumps(obj, PROTOCOL))])
    if type(obj) in (bytes, bytearray) and len(obj) >= OWN_FRAME:
        obj = _Raw(obj)
    buffers: list[bytes | memoryview] = []
    refs: dict[str, None] = {}

    def restart() -> None:
        buffers.clear()
        refs.clear()

    serializer, data = encode(obj, what, _noting(refs), take_buffers(buffers, share), restart)
    return Blob.of(serializer, [data, *buffers], tuple(refs))


def dumps_inline(obj: Any, limit: int, *, what: str = "value") -> bytes | None:
    """A small value's whole stream, or None.

    None means that the pickle is longer than ``limit`` bytes, or that futures are inside: such a value stays where it
    is held, so that its futures stay alive until the receiver has registered them.

    Raises:
        SerializationError: the value cannot be pickled.
    """
    kind = type(obj)
    if kind in PLAIN or simple(obj, kind):
        if kind not in PLAIN and len(obj) > limit:  # a member takes a byte at least
            return None
        data = pickle.dumps(obj, PROTOCOL)
        return single(0, data) if len(data) <= limit else None
    nbytes = obj.nbytes if hasattr(kind, "nbytes") else 0  # of a proxy, such as an actor, it would be asked elsewhere
    if type(nbytes) is int and nbytes > limit:
        return None
    refs: dict[str, None] = {}
    try:
        serializer, data = encode(obj, what, _noting(refs), None, refs.clear, limit)
    except TooBig:
        return None
    return None if refs else single(serializer, data)


def loads(data: Stream, *, what: str = "value", owner: Any = None) -> Any:
    """A value from its stream.

    Args:
        data: the whole stream, or consecutive pieces of it. A large frame that is a whole piece of writable memory is
            used without a copy; arrays are always writable.
        what: names the value in the error's text.
        owner: what ``owner()`` answers meanwhile in this thread.

    Raises:
        SerializationError: the bytes are damaged, or something they refer to cannot be had in this process.
    """
    return decode(parse(data), what, owner)


def loads_each(
    streams: Sequence[tuple[str, Stream]], *, owner: Any = None
) -> tuple[list[Any], dict[int, SerializationError]]:
    """The values of many streams, each with the name that its error's text gives it; see `loads`.

    The second value has the error of each that cannot be had, by its place, where the list has None.
    """
    values: list[Any] = []
    errors: dict[int, SerializationError] = {}
    previous = local.owner
    if owner is not None:
        local.owner = owner
    try:
        for what, data in streams:
            try:
                _, pickled, buffers = parse(data)
                values.append(pickle.loads(pickled, buffers=buffers))
            except KeyboardInterrupt:  # Ctrl-C
                raise
            except BaseException as error:
                errors[len(values)] = _failure(error, what)
                values.append(None)
    finally:
        local.owner = previous
    return values, errors


def _failure(error: BaseException, what: str) -> SerializationError:
    """Whatever went wrong, it is this value's failure."""
    if isinstance(error, SerializationError):
        return error
    text = f"{what} could not be unpickled here: {type(error).__name__}: {error}"
    if isinstance(error, ImportError | AttributeError):
        text += "; the module must be importable in this process, in the same version as where the value was made"
    failure = SerializationError(text)
    failure.__cause__ = error
    return failure


def unpickle(pickled: Piece, buffers: list[Piece]) -> Any:
    """pickle.loads."""
    return pickle.loads(pickled, buffers=buffers)


def decode(
    parsed: tuple[int, Piece, list[Piece]],
    what: str,
    owner: Any = None,
    load: Callable[[Piece, list[Piece]], Any] = unpickle,
) -> Any:
    """Unpickle what ``parse`` found, in the name of ``owner``."""
    previous = local.owner
    if owner is not None:
        local.owner = owner
    try:
        return load(parsed[1], parsed[2])
    except (SerializationError, KeyboardInterrupt):  # Ctrl-C
        raise
    except BaseException as error:
        raise _failure(error, what) from error
    finally:
        local.owner = previous
