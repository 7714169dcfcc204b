"""From a task's value to what is reported and kept: how big it is, and its bytes where they are wanted at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from zdist import limits
from zdist.errors import SerializationError
from zdist.protocol.actors import ACTOR, Seed
from zdist.protocol.messages import Attempt, Buffer, Key, Payload
from zdist.serialize import dumps, dumps_inline
from zdist.transport.shm import SharedMemory

__all__ = ["Frozen", "freeze", "freeze_kept", "raw", "sizeof", "type_name"]

CONTAINERS: Final = frozenset((list, tuple, dict, set, frozenset))
SAMPLE: Final = 8  # elements of a container that stand for all of them
NAMES: Final = 1024  # type names remembered

_names: dict[type, str] = {}


# payload (small enough to travel with the report), or blob, or error (why there are no bytes), or none of the three;
# the size in bytes; and whether the live object is kept beside a blob. A plain tuple: one is made per task.
Frozen: TypeAlias = "tuple[bytes | None, Any, str, int, bool]"


def raw(payload: Payload) -> bytes | bytearray | memoryview:
    """The bytes of a payload."""
    return payload.data if type(payload) is Buffer else payload  # type: ignore[return-value]


def type_name(value: Any) -> str:
    """The name of a value's type, with its module unless it is a builtin."""
    kind = type(value)
    name = _names.get(kind)
    if name is None:
        module = kind.__module__
        name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
        if kind is Seed:
            name = ACTOR
        if len(_names) >= NAMES:
            _names.clear()
        _names[kind] = name = name[: limits.MAX_KEY]
    return name


def _nbytes(value: Any) -> int:
    """What it says of itself, else -1. Its class is asked first: a proxy, such as an actor, would ask elsewhere."""
    nbytes = value.nbytes if hasattr(type(value), "nbytes") else None
    return nbytes if type(nbytes) is int else -1


def sizeof(value: Any) -> int:
    """About how many bytes a value takes, cheaply: containers by a sample of what is in them. Never raises."""
    try:
        nbytes = _nbytes(value)
        if nbytes >= 0:
            return nbytes
        size = sys.getsizeof(value)
        if isinstance(value, list | tuple | set | frozenset | dict) and value:
            items = value.values() if isinstance(value, dict) else value
            sample = [item for item, _ in zip(items, range(SAMPLE), strict=False)]
            inner = [nbytes if (nbytes := _nbytes(item)) > 0 else sys.getsizeof(item) for item in sample]
            size += sum(inner) * len(value) // len(inner)
        return size
    except Exception:  # an object that does not want to be measured
        return sys.getsizeof(object())


def freeze(
    value: Any,
    deliver: int,
    key: Key,
    inline: int = limits.INLINE_RESULT,
    memory: SharedMemory | None = None,
    attempt: Attempt = 0,
    crowded: Callable[[int], bool] | None = None,
) -> Frozen:
    """Make the bytes of a task's value if they are ``inline`` at most, or with ``deliver`` in any case: with 2 in
    shared ``memory``, if there is room. Where memory is ``crowded`` for that size no copy is made: the value goes to
    disk from where it is."""
    if type(value) is Seed:  # not inline: whoever looks for an actor has to ask where it lives
        return None, None, "", sizeof(value), True
    try:
        if inline and (type(value) not in CONTAINERS or len(value) <= inline // 2):  # two bytes an item at least
            payload = dumps_inline(value, inline, what="result")
            if payload is not None:
                return payload, None, "", len(payload), True
        if deliver and not (crowded is not None and crowded(sizeof(value))):
            unshared = _unshared(value)  # on its own: as an argument beside `value` it would count one reference more
            near = deliver > 1 and memory is not None
            blob = dumps(value, what="result", share=unshared or near)
            if near:
                assert memory is not None
                segment = memory.write(key, attempt, blob)
                if segment is not None:
                    return None, segment, "", segment.nbytes, bool(blob.refs)
                if not unshared:
                    blob = blob.snapshot()
            return None, blob, "", blob.nbytes, bool(blob.refs)
    except SerializationError as exc:
        return None, None, f"task {key}: {exc}", sizeof(value), True
    except Exception as exc:
        error = f"task {key}: result of type {type_name(value)} cannot be pickled: {type(exc).__name__}: {exc}"
        return None, None, error, sizeof(value), True
    return None, None, "", sizeof(value), True


def freeze_kept(
    value: Any, key: Key, memory: SharedMemory | None = None, attempt: Attempt = 0
) -> tuple[Any, str, bool]:
    """The bytes of a value that is held and may be in use, which somebody asks for: a blob, or None and why; and
    whether the object has to stay beside it. With ``memory``: shared, if there is room."""
    try:
        blob = dumps(value, what="result", share=memory is not None)
    except Exception as exc:
        return None, f"task {key}: {exc}", True
    if memory is None:
        return blob, "", True
    segment = memory.write(key, attempt, blob)
    if segment is None:
        return blob.snapshot(), "", True
    return segment, "", bool(blob.refs) or blob.large * 8 < blob.nbytes * 7  # else it is had again for next to nothing


def _references(value: Any) -> int:
    return sys.getrefcount(value)


def _measure() -> int:
    """References to an object that only the caller of `freeze` knows, as `_references` counts them there."""

    def outer(value: Any) -> int:
        return inner(value)

    def inner(value: Any) -> int:
        return _references(value)

    value = object()
    return outer(value)


_ALONE: Final = _measure()


def _unshared(value: Any) -> bool:
    """Can nobody change this value's memory once it is kept as bytes only? True for what cannot change, and for an
    array that owns its memory and that nothing but the caller of ``freeze`` refers to."""
    if type(value) is bytes or type(value) is str:
        return True
    numpy = sys.modules.get("numpy")
    array = getattr(numpy, "ndarray", None)
    return array is not None and type(value) is array and value.base is None and _references(value) <= _ALONE
