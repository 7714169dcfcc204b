"""dask's graphs and collections as calls of zdist; needs dask.

Graphs of both kinds: of `dask._task_spec` nodes (dask from 2024.12 on) and of tuples. Where a node is a function with
arguments, that function is the task: it is sent once, and the broker learns how long it takes. Fused and nested tasks
become programs (`zdist.client.program`), so nothing of dask is loaded or run on the workers on their account.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from zdist.client.future import Future
from zdist.client.graph import Graph, text
from zdist.client.program import Builder, identity, make_dict, make_list, make_set, make_tuple, run_node, sorted_keys
from zdist.client.submitting import options_of
from zdist.protocol.messages import Options

try:
    import dask
    from dask.base import is_dask_collection
    from dask.order import order
    from dask.utils import ensure_dict, key_split
except ImportError as error:
    raise ImportError(f"dask's collections need dask: pip install zdist[dask] ({error})") from error

try:
    from dask import _task_spec as spec
except ImportError:  # before 2024.12
    spec = None

__all__ = ["compute", "graph_of", "normalize", "persist"]

_INLINE: Final = (int, float, complex, bool, str, bytes, slice, type(None))  # literals that travel with each dependent

#: What each client has persisted and is alive, by dask's keys.
_persisted: weakref.WeakKeyDictionary[Any, weakref.WeakValueDictionary[Any, Future]] = weakref.WeakKeyDictionary()


# --- collections ------------------------------------------------------------------------------------------


def compute(
    client: Any, collections: Any, options: tuple[Any, ...], *, optimize_graph: bool, traverse: bool, **kwargs: Any
) -> Any:
    """Futures of collections; see ``Client.compute``."""
    single = not isinstance(collections, list | tuple | set | frozenset)
    items = [collections] if single else list(collections)
    if traverse:
        items = [
            dask.delayed(item) if isinstance(item, list | set | tuple | dict | Iterator) else item for item in items
        ]
    variables = [item for item in items if is_dask_collection(item)]
    futures: Iterable[Any] = ()
    if variables and hasattr(dask.base, "collections_to_expr"):
        get = _futures_of(client, options)
        futures = dask.compute(*variables, scheduler=get, optimize_graph=optimize_graph, traverse=False, **kwargs)
    elif variables:
        futures = _compute_tuples(client, variables, options, optimize_graph, kwargs)
    coming = iter(futures)
    found = [next(coming) if is_dask_collection(item) else item for item in items]
    return found[0] if single else found


def _compute_tuples(
    client: Any, variables: list[Any], options: tuple[Any, ...], optimize_graph: bool, kwargs: dict[str, Any]
) -> Any:
    """With a dask that puts collections together itself: its last step becomes a task."""
    dsk = dict(ensure_dict(dask.base.collections_to_dsk(variables, optimize_graph, **kwargs)))
    names = []
    for number, item in enumerate(variables):
        finish, extra = item.__dask_postcompute__()
        names.append(f"finalize-{number}-{text(item.__dask_keys__()):.40}")
        dsk[names[-1]] = (finish, item.__dask_keys__(), *extra)
    return _futures_of(client, options)(dsk, names)


def persist(client: Any, collections: Any, options: tuple[Any, ...], *, optimize_graph: bool, **kwargs: Any) -> Any:
    """Collections with futures in their graphs; see ``Client.persist``."""
    single = not isinstance(collections, list | tuple | set | frozenset)
    items = [collections] if single else list(collections)
    for item in items:
        if not is_dask_collection(item):
            raise TypeError(f"persist takes dask collections, got {type(item).__name__}")
    get = _futures_of(client, options, note=True)
    found = list(dask.persist(*items, scheduler=get, optimize_graph=optimize_graph, traverse=False, **kwargs))
    return found[0] if single else found


def _futures_of(client: Any, options: tuple[Any, ...], note: bool = False) -> Callable[..., Any]:
    """A scheduler function that gives futures. ``note``: `normalize` is to find them."""

    def get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
        futures = client.submit_graph(graph_of(dsk, options), keys)
        if note:
            _persisted.setdefault(client, weakref.WeakValueDictionary()).update(zip(keys, futures, strict=True))
        return futures

    return get


def normalize(client: Any, collection: Any) -> Any:
    """See ``Client.normalize_collection``."""
    known: Mapping[Any, Future] = _persisted.get(client, {})
    dsk = dict(ensure_dict(collection.__dask_graph__()))
    found = {key: known[key] for key in list(known) if key in dsk and known[key].status in ("pending", "finished")}
    if not found:
        return collection
    rebuild, state = collection.__dask_postpersist__()
    wanted = list(dask.core.flatten(collection.__dask_keys__()))
    graph = graph_of({**dsk, **found}, ())
    return rebuild({key: graph.dsk[key] for key in graph.arrange(wanted)}, *state)


# --- graphs ---------------------------------------------------------------------------------------------


def graph_of(dsk: Any, options: tuple[Any, ...]) -> Graph:
    """The graph in whatever dask hands to a scheduler: a mapping, or an expression that has one."""
    layers: dict[str, dict[Any, Any]] = {}
    if not isinstance(dsk, Mapping):
        layers = dsk.__dask_annotations__()
        dsk = dsk.__dask_graph__()
    for layer in getattr(dsk, "layers", {}).values():
        for name, value in (getattr(layer, "annotations", None) or {}).items():
            layers.setdefault(name, {}).update(dict.fromkeys(layer, value))
    dsk = ensure_dict(dsk)
    if spec is None:
        return TupleGraph(dsk, options, layers)
    return NodeGraph(spec.convert_legacy_graph(dsk), options, layers)


class TupleGraph(Graph):
    """A graph in dask's order, with dask's annotations: ``layers`` by name and key, ``around`` those of the call."""

    def __init__(self, dsk: Mapping[Any, Any], options: tuple[Any, ...], layers: dict[str, dict[Any, Any]]) -> None:
        super().__init__(dsk, options)
        self.layers = {name: values for name, values in layers.items() if values}
        self.around: dict[str, Any] = dask.get_annotations() if hasattr(dask, "get_annotations") else {}

    def options_for(self, key: Any) -> tuple[Any, ...]:
        if not self.layers and not self.around:
            return self.options
        told = {**self.around, **{name: values[key] for name, values in self.layers.items() if key in values}}
        told = {name: value(key) if callable(value) else value for name, value in told.items()}
        own = Options(*self.options)
        workers = told.get("workers") or own.workers
        return options_of(
            workers,
            dict(told.get("resources") or own.resources),
            int(told.get("retries") or own.retries),
            int(told.get("priority") or own.priority),
            bool(workers and (told.get("allow_other_workers") or own.allow_other)),
            own.tags,
        )

    def arrange(self, wanted: Iterable[Any]) -> list[Any]:
        found = super().arrange(wanted)
        place = order({key: self.dsk[key] for key in found})
        return sorted(found, key=place.__getitem__)


class NodeGraph(TupleGraph):
    """A graph of nodes."""

    def needs(self, key: Any) -> Collection[Any]:
        return self.dsk[key].dependencies  # type: ignore[no-any-return]

    def step(self, key: Any) -> Any:
        node = self.dsk[key]
        kind = type(node)
        if kind is spec.Alias:
            return self.made[node.target]
        if kind is spec.DataNode:
            value = node.value
            if isinstance(value, (*_INLINE, Future)) or self.left[key] == 1:
                return value
            return self.call(key, identity, [value], {}, key_split(key))
        try:
            if kind is spec.Task and node.func is not spec._execute_subgraph:
                args = [self._filled(arg) for arg in node.args]
                kwargs = {name: self._filled(arg) for name, arg in node.kwargs.items()}
                return self.call(key, node.func, args, kwargs, key_split(key))
            if kind in _MAKERS:
                return self.call(key, identity, [self._filled(node)], {}, key_split(key))
        except _Nested:
            pass
        builder = Builder()
        try:
            self._place(builder, node, {})
        except _Strange:
            values = {need: self.made[need] for need in node.dependencies}
            return self.call(key, run_node, [node, values], {}, key_split(key))
        return self.call(key, builder.finish(self.programs), builder.inputs, {}, key_split(key))

    def _filled(self, item: Any) -> Any:
        """An argument with futures or literals in place of references. Raises _Nested if there is a task in it."""
        kind = type(item)
        if kind is spec.TaskRef:
            return self.made[item.key]
        if kind is spec.Alias:
            return self.made[item.target]
        if kind in _MAKERS:
            return item.constructor([self._filled(part) for part in item.args])
        if kind is spec.DataNode:
            return item.value
        if isinstance(item, spec.GraphNode | spec.TaskRef):
            raise _Nested
        return item

    def _place(self, builder: Builder, item: Any, inner: dict[Any, int]) -> int:
        """Where a program finds the value of a node, reference or literal. ``inner``: that of keys fused into it."""
        kind = type(item)
        if kind is spec.TaskRef or kind is spec.Alias:
            key = item.key if kind is spec.TaskRef else item.target
            place = inner.get(key)
            return builder.input(self.made[key]) if place is None else place
        if kind is spec.DataNode:
            return builder.input(item.value)
        if kind in _MAKERS:
            return builder.call(_MAKERS[kind], [self._place(builder, part, inner) for part in item.args])
        if kind is spec.Task:
            if item.func is spec._execute_subgraph:
                return self._place_fused(builder, *item.args, inner=inner)
            args = [self._place(builder, arg, inner) for arg in item.args]
            kwargs = {name: self._place(builder, arg, inner) for name, arg in item.kwargs.items()}
            return builder.call(item.func, args, kwargs)
        if isinstance(item, spec.GraphNode | spec.TaskRef):
            raise _Strange
        return builder.input(item)

    def _place_fused(
        self, builder: Builder, nodes: dict[Any, Any], out: Any, names: Any, *values: Any, inner: dict[Any, int]
    ) -> int:
        """What ``_execute_subgraph`` does with these arguments."""
        places = {name: self._place(builder, value, inner) for name, value in zip(names, values, strict=True)}

        def needs(key: Any) -> list[Any]:
            return [] if key in places else list(nodes[key].dependencies)

        for key in sorted_keys([out], {**nodes, **places}, needs):
            if key not in places:
                places[key] = self._place(builder, nodes[key], places)
        if places[out] >= 0:  # nothing but a literal
            return builder.call(identity, [places[out]])
        return places[out]


class _Nested(Exception):
    """There is a task among the arguments."""


class _Strange(Exception):
    """There is a node of a kind that only dask knows how to run."""


_MAKERS: Final[dict[Any, Callable[..., Any]]] = (
    {} if spec is None else {spec.List: make_list, spec.Tuple: make_tuple, spec.Set: make_set, spec.Dict: make_dict}
)
