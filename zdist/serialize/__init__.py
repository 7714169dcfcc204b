"""Objects to bytes and back. Only clients and workers load this package; a broker never does.

Whoever can write these bytes can run code where they are loaded: that is what a task fabric is for, and why the
cluster token guards every socket.

A *blob* is a value's immutable bytes as one linear stream, ``ENVELOPE frame0 frame1 …``: the envelope is
``msgpack([scheme, serializer, [frame lengths], tag])``, frame0 the pickle, further frames its large out-of-band
buffers. A small value's payload is that stream as one ``bytes``.
"""

from __future__ import annotations

from zdist.serialize.arguments import Packed, dumps_args, loads_args
from zdist.serialize.blob import Blob
from zdist.serialize.exceptions import dumps_error, loads_error
from zdist.serialize.functions import FunctionBlob, dumps_function, function_name, loads_function
from zdist.serialize.naming import token
from zdist.serialize.references import owner, register_reference
from zdist.serialize.values import dumps, dumps_inline, loads, loads_each, type_name

__all__ = [
    "Blob",
    "FunctionBlob",
    "Packed",
    "dumps",
    "dumps_args",
    "dumps_error",
    "dumps_function",
    "dumps_inline",
    "function_name",
    "loads",
    "loads_args",
    "loads_each",
    "loads_error",
    "loads_function",
    "owner",
    "register_reference",
    "token",
    "type_name",
]
