"""get, compute and persist: dask graphs and collections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zdist import context
from zdist.client.batch import Batch
from zdist.client.gathering import Gathering
from zdist.client.submitting import Submitting, options_of

__all__ = ["Graphs"]


class Graphs(Submitting, Gathering):
    """The part of the client for dask. Names and semantics as in dask.distributed 2021.10."""

    def get(
        self,
        dsk: Any,
        keys: Any,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        sync: bool = True,
        asynchronous: bool | None = None,
        direct: bool | None = None,
        retries: int | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Compute keys of a dask graph.

        Only what the keys need is computed. A result is named by its key and by what it is computed of, so equal tasks
        of several graphs that are alive are computed once, and other tasks of the same name are kept apart.

        Parameters:
            dsk: ``{key: task}`` where a task is a tuple of a function and its arguments, another key, or a literal.
                Arguments may be keys, tasks, and lists of these, and futures. Or what dask makes: graphs of nodes,
                HighLevelGraph, expressions.
            keys: a key, or a list (of lists) of keys.
            sync: False to get futures instead of values.
            workers, allow_other_workers, resources, retries, priority: as in `submit`.
            asynchronous, direct: as in `gather`.
            kwargs: not used; what dask passes on to any scheduler.

        Raises:
            KeyError: a key that the graph does not have.
            ValueError: the graph has a cycle.
        """
        from zdist.client.graph import Graph

        options = options_of(workers, resources, retries, priority, allow_other_workers, None)
        graph = Graph(dsk, options)
        if not graph.is_plain():
            from zdist.integrations.dask_graph import graph_of

            graph = graph_of(dsk, options)
        results = self.submit_graph(graph, keys)
        return results if not sync else self.gather(results, direct=direct, asynchronous=asynchronous)

    def submit_graph(self, graph: Any, keys: Any) -> Any:
        """Futures of a ``graph`` (``zdist.client.graph.Graph``) in the shape of ``keys``."""
        with Batch(self) as batch:
            return graph.results(keys, batch)

    def compute(
        self,
        collections: Any,
        sync: bool = False,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        traverse: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Compute dask collections: a future for each, whose result is what ``collection.compute()`` gives.

        Parameters:
            collections: a collection, or a list, tuple or set of collections; what is none comes back as it is.
            sync: True for values instead of futures.
            optimize_graph: False to run the graphs as they are.
            traverse: look for collections in lists, tuples, sets and dicts among ``collections``.
            workers, allow_other_workers, resources, retries, priority: as in `submit`. What ``dask.annotate`` says of
                single tasks goes before.
            kwargs: for dask's optimizations.

        Raises:
            ImportError: dask is not installed (``pip install zdist[dask]``).
            SerializationError: something in the graph cannot be pickled.
        """
        from zdist.integrations.dask_graph import compute

        options = options_of(workers, resources, retries, priority, allow_other_workers, None)
        futures = compute(self, collections, options, optimize_graph=optimize_graph, traverse=traverse, **kwargs)
        return self.gather(futures) if sync else futures

    def persist(
        self,
        collections: Any,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Start to compute dask collections on the workers: the same collections, with futures in their graphs.

        Returns at once; results stay on the workers as long as the new collections (or ones made of them) live.
        Parameters and errors: as of `compute`, and TypeError for what is no collection.
        """
        from zdist.integrations.dask import serve
        from zdist.integrations.dask_graph import persist

        if context.find_client() is self and not self.asynchronous:
            serve()  # what is made of them has futures in it
        options = options_of(workers, resources, retries, priority, allow_other_workers, None)
        return persist(self, collections, options, optimize_graph=optimize_graph, **kwargs)

    def normalize_collection(self, collection: Any) -> Any:
        """The collection with futures in place of tasks of equal keys that this client has persisted and that live."""
        from zdist.integrations.dask_graph import normalize

        return normalize(self, collection)
