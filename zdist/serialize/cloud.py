"""The cloudpickle side, loaded when it is first needed."""

from __future__ import annotations

import functools
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from zdist.serialize.imports import importable
from zdist.serialize.values import PROTOCOL, cloudpickle

if TYPE_CHECKING:
    CloudPickler = pickle.Pickler
else:
    CloudPickler = cloudpickle().CloudPickler


class Cloud(CloudPickler):
    """CloudPickler with reducers of ours before its own."""

    def __init__(
        self,
        file: Any,
        table: Mapping[Any, Callable[[Any], Any]],
        callback: Callable[[pickle.PickleBuffer], bool] | None,
    ) -> None:
        # the C pickler reads the table in its constructor
        own: Any = CloudPickler.dispatch_table
        self.dispatch_table = ChainMap({CACHED: reduce_cached}, dict(table), own)
        super().__init__(file, PROTOCOL, buffer_callback=callback)


CACHED = type(functools.lru_cache(maxsize=1)(len))


def reduce_cached(wrapper: Any) -> Any:
    """A function under lru_cache: by name where that can be imported, else the function anew under an empty cache."""
    if importable(wrapper):
        return wrapper.__reduce__()
    parameters = wrapper.cache_parameters()
    return _cached, (wrapper.__wrapped__, parameters["maxsize"], parameters["typed"])


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize=maxsize, typed=typed)(function)
