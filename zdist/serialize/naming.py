"""Names by content: the same in every process, whatever the hash seed, and wherever in memory things lie.

An object's name is built from the names of its parts, so it does not depend on which parts happen to be one object, as
pickle bytes do. Sets are sorted by their members' names; dicts count in insertion order; arrays by dtype, shape, order
and bytes; functions and classes by module and name where they can be imported, else by their code and what that refers
to, without file and line; futures by their key; all else by what it tells pickle. Names agree between processes of one
Python version. An object that only cloudpickle can handle is named by cloudpickle's bytes, which may differ from
process to process: then two clients compute it twice, and nothing else happens.
"""

from __future__ import annotations

import contextlib
import copyreg
import dis
import functools
import pickle
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

from zdist.errors import SerializationError
from zdist.limits import KIB, MIB, OWN_FRAME
from zdist.serialize.imports import importable
from zdist.serialize.references import references
from zdist.serialize.values import by_value_modules, cloudpickle, dumps, type_name

_REPR: Final = frozenset({int, float, bool, str, type(None)})  # whose repr says all
_RUN: Final = 8  # from this length on a run of plain members is named in one go
_LONG: Final = b"\xff"  # instead of a length
_BULK: Final = 4 * KIB  # bytes from which BLAKE3, which works on many blocks at once, is the faster digest
_SPREAD: Final = 4 * MIB  # bytes from which it takes all cores: hashing takes longer than copying
_CONSTANTS: Final = {None: b"N", True: b"T", False: b"O", Ellipsis: b"E", NotImplemented: b"I"}
_SKIPPED: Final = frozenset(
    {"__dict__", "__weakref__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "_abc_impl"}
)


def token(code_digest: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """32 hex digits that name a computation: a function (its ``code_digest``) on these arguments.

    Raises:
        SerializationError: an argument has no content to be named by; it could not be sent either.
    """
    if not kwargs:
        for arg in args:
            if type(arg) not in _REPR:
                break
        else:
            try:
                return blake2b(code_digest + repr(args).encode(), digest_size=16).hexdigest()
            except ValueError:  # an integer of thousands of digits
                pass
    content = _flat(args, kwargs) or _content((args, kwargs), "arguments")
    return blake2b(code_digest + content, digest_size=16).hexdigest()


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
    """All that plain values and futures say; None where there is anything else."""
    positional: list[Any] = []
    for arg in args:
        if type(arg) in _REPR:
            positional.append(arg)
        else:
            get_key = references.get(type(arg))
            if get_key is None:
                return None
            positional.append((get_key(arg),))  # no plain value looks like this
    named: dict[str, Any] = {}
    for name, arg in kwargs.items():
        if type(arg) in _REPR:
            named[name] = arg
        else:
            get_key = references.get(type(arg))
            if get_key is None:
                return None
            named[name] = (get_key(arg),)
    try:
        return repr((positional, named)).encode()
    except ValueError:
        return None


def digest_of(obj: Any, what: str) -> bytes:
    """32 bytes that name an object by content. Raises SerializationError."""
    return blake2b(_content(obj, what), digest_size=32).digest()


def _content(obj: Any, what: str) -> bytes:
    try:
        return b"\0" + _Namer().name(obj)
    except RecursionError:  # pickle can go a little deeper
        return b"\1" + dumps(obj, what=what).tobytes()


def global_names(code: types.CodeType) -> list[str]:
    """Names that a code object, or one inside it, looks up as globals."""
    names = {str(ins.argval): None for ins in dis.get_instructions(code) if ins.opname.endswith("_GLOBAL")}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names.update(dict.fromkeys(global_names(const)))
    return list(names)


def _atom(tag: bytes, payload: Any) -> bytes:
    """A self-delimiting name, of bounded length, for these bytes."""
    n = memoryview(payload).nbytes
    if n > _BULK:
        return tag + _LONG + _bulk(payload, n)
    if n > 64:
        return tag + _LONG + blake2b(payload, digest_size=32).digest()
    return tag + bytes([n]) + bytes(payload)


def _bulk(payload: Any, nbytes: int) -> bytes:
    from blake3 import blake3

    return blake3(payload, max_threads=blake3.AUTO if nbytes > _SPREAD else 1).digest()


def _node(tag: bytes, parts: Iterable[bytes]) -> bytes:
    return tag + _LONG + blake2b(b"".join(parts), digest_size=32).digest()


def _run(obj: Any, tag: bytes) -> bytes:
    """The name of a long enough run of plain members, in one go; nothing for any other."""
    if len(obj) >= _RUN and _REPR.issuperset(map(type, obj)):
        try:
            return _atom(tag + b"r", repr(obj).encode())
        except ValueError:  # an integer of thousands of digits
            pass
    return b""


class _Namer:
    """Names the objects of one call; what was named once is not walked again."""

    __slots__ = ("by_value", "known", "open")

    def __init__(self) -> None:
        self.known: dict[int, tuple[bytes, Any]] = {}  # by identity; the object is kept so that the identity stays its
        self.open: dict[int, int] = {}  # being named, by depth: where a cycle closes
        self.by_value = tuple(by_value_modules())

    def name(self, obj: Any) -> bytes:
        kind = type(obj)
        if kind is int:
            return _atom(b"i", hex(obj).encode())
        if kind is str:
            return _atom(b"s", obj.encode("utf-8", "surrogatepass"))
        if kind is float:
            return _atom(b"f", repr(obj).encode())
        if kind is bytes:
            return _atom(b"b", obj)
        if kind in _CONSTANT_TYPES:
            return _CONSTANTS[obj]
        identity = id(obj)
        found = self.known.get(identity)
        if found is not None:
            return found[0]
        if identity in self.open:
            return _atom(b"^", str(len(self.open) - self.open[identity]).encode())
        self.open[identity] = len(self.open)
        try:
            if (
                kind is list or kind is tuple
            ):  # here and not in a method: what nests deepest should use one frame a level
                tag = b"(" if kind is tuple else b"["
                name = _run(obj, tag)
                if not name:
                    parts = []
                    for part in obj:
                        parts.append(self.name(part))
                    name = _node(tag, parts)
            elif kind is dict:
                parts = []
                for key, value in obj.items():
                    parts.append(self.name(key))
                    parts.append(self.name(value))
                name = _node(b"{", parts)
            else:
                name = self._compound(obj, kind)
        finally:
            del self.open[identity]
        self.known[identity] = (name, obj)
        return name

    def all(self, objs: Iterable[Any]) -> list[bytes]:
        return [self.name(obj) for obj in objs]

    def _compound(self, obj: Any, kind: type) -> bytes:
        if kind is set or kind is frozenset:
            return _node(b"<" if kind is set else b">", sorted(self.all(obj)))
        for cls, get_key in references.items():
            if isinstance(obj, cls):
                return _atom(b"F", get_key(obj).encode())
        special = _SPECIAL.get(kind)
        if special is not None:
            return special(self, obj)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(obj, numpy.ndarray | numpy.generic) and not obj.dtype.hasobject:
            return self._array(obj)
        if isinstance(obj, type):
            return self._class(obj)
        return self._reduced(obj, kind)

    def _array(self, array: Any) -> bytes:
        order = b"F" if array.flags.f_contiguous and not array.flags.c_contiguous else b"C"
        flat = array.T if order == b"F" else array
        data = None
        if flat.nbytes >= OWN_FRAME and flat.flags.c_contiguous:
            with contextlib.suppress(TypeError, ValueError):  # of a type that no other buffer has
                data = memoryview(flat).cast("B")  # where it lies: a copy would take longer than all the rest
        if data is None:
            data = flat.tobytes()
        dtype = repr(array.dtype.descr if array.dtype.names else array.dtype.str)
        head = repr((type_name(array), dtype, array.shape)).encode()
        return _node(b"A", (order, _atom(b"h", head), _atom(b"d", data)))

    def _function(self, fn: types.FunctionType) -> bytes:
        if importable(fn, self.by_value):
            return _atom(b"g", f"{fn.__module__}:{fn.__qualname__}".encode())
        cells = [getattr(cell, "cell_contents", _EMPTY) for cell in fn.__closure__ or ()]
        used = {name: fn.__globals__[name] for name in sorted(global_names(fn.__code__)) if name in fn.__globals__}
        parts = (fn.__code__, fn.__name__, fn.__defaults__, fn.__kwdefaults__, cells, used, fn.__dict__)
        return _node(b"f", self.all(parts))

    def _code(self, code: types.CodeType) -> bytes:
        flat = (
            code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_code,
            code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_exceptiontable,
        )  # fmt: skip
        return _node(b"c", self.all((*flat, code.co_consts)))

    def _class(self, cls: type) -> bytes:
        if importable(cls, self.by_value):
            return _atom(b"g", f"{cls.__module__}:{cls.__qualname__}".encode())
        members = [(name, value) for name, value in sorted(vars(cls).items()) if name not in _SKIPPED]
        parts = [self.name(cls.__name__), self.name(type(cls)), self.name(cls.__bases__)]
        for name, value in members:
            parts.append(self.name(name))
            try:
                parts.append(self.name(value))
            except SerializationError:  # slots and the like: their name says what they are
                parts.append(_atom(b"?", type_name(value).encode()))
        return _node(b"k", parts)

    def _reduced(self, obj: Any, kind: type) -> bytes:
        try:
            reducer: Callable[[Any], Any] | None = copyreg.dispatch_table.get(kind)
            reduced = reducer(obj) if reducer is not None else obj.__reduce_ex__(5)
            if isinstance(reduced, tuple):
                function, args, *rest = reduced
                parts = self.all((function, args))
                for part in rest[:1]:
                    parts.append(self.name(part))
                for part in rest[1:3]:
                    parts.append(_node(b"~", self.all(part if part is not None else ())))
                return _node(b"r", parts)
            if importable(obj, self.by_value) or _global(obj, kind, reduced):
                return _atom(b"g", f"{_module(obj, kind)}:{reduced}".encode())
        except (RecursionError, SerializationError):
            raise
        except Exception:  # not picklable by itself
            pass
        try:
            return _atom(b"p", cloudpickle().dumps(obj))
        except Exception as error:
            raise SerializationError(
                f"object of type {type_name(obj)} cannot be pickled, so it has no content to be named by: "
                f"{type(error).__name__}: {error}"
            ) from error


def _module(obj: Any, kind: type) -> str:
    module = getattr(obj, "__module__", None)
    return module if isinstance(module, str) else kind.__module__


def _global(obj: Any, kind: type, name: str) -> bool:
    """Whether an object that pickles as a global name is one that others can import."""
    module = _module(obj, kind)
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return module != "__main__" and found is obj


class _Empty:
    """An empty closure cell."""


_EMPTY: Final = _Empty()
_CONSTANT_TYPES: Final = frozenset(map(type, _CONSTANTS))
_CACHED: Final = type(functools.lru_cache(maxsize=1)(len))


def _name_cached(namer: _Namer, obj: Any) -> bytes:
    if importable(obj, namer.by_value):
        return _atom(b"g", f"{obj.__module__}:{obj.__qualname__}".encode())
    return _node(b"l", namer.all((obj.__wrapped__, obj.cache_parameters())))


_SPECIAL: Final[Mapping[type, Callable[[_Namer, Any], bytes]]] = {
    types.FunctionType: _Namer._function,
    types.CodeType: _Namer._code,
    types.MappingProxyType: lambda namer, obj: _node(b":", [namer.name(dict(obj))]),
    types.ModuleType: lambda namer, obj: _atom(b"m", obj.__name__.encode()),
    types.MethodType: lambda namer, obj: _node(b"M", namer.all((obj.__func__, obj.__self__))),
    types.CellType: lambda namer, obj: _node(b"e", [namer.name(getattr(obj, "cell_contents", _EMPTY))]),
    property: lambda namer, obj: _node(b"P", namer.all((obj.fget, obj.fset, obj.fdel))),
    classmethod: lambda namer, obj: _node(b"C", [namer.name(obj.__func__)]),
    staticmethod: lambda namer, obj: _node(b"S", [namer.name(obj.__func__)]),
    complex: lambda namer, obj: _atom(b"j", struct.pack("<dd", obj.real, obj.imag)),
    bytearray: lambda namer, obj: _atom(b"y", obj),
    memoryview: lambda namer, obj: _node(b"V", namer.all((obj.format, obj.shape, obj.tobytes()))),
    pickle.PickleBuffer: lambda namer, obj: _atom(b"b", obj.raw()),
    _CACHED: _name_cached,
}
