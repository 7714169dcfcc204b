"""zdist as a scheduler of dask. What needs dask itself is in `zdist.integrations.dask_graph`."""

from __future__ import annotations

from typing import Any

from zdist import context

__all__ = ["DaskGet", "dask_get", "serve", "withdraw"]


class DaskGet:
    """A scheduler for dask: ``get(dsk, keys)`` and, for collections that stay on the workers, ``persist``."""

    def __init__(self, client: Any = None) -> None:
        self._client = client

    @property
    def client(self) -> Any:
        """The client that was given, or the current one. Raises ValueError if there is none, TypeError."""
        client = context.find_client() if self._client is None else self._client
        if client is None:
            raise ValueError("dask_get() found no client in this process: make one with zdist.Client(...) first")
        if client.asynchronous:
            raise TypeError("dask waits for its scheduler, so it needs a client that is not asynchronous")
        return client

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        return _tuples(self.client.get(dsk, keys, **kwargs), keys)

    def persist(self, collections: Any, **kwargs: Any) -> Any:
        """What ``dask.persist`` and ``collection.persist`` come to."""
        return self.client.persist(collections, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> DaskGet:
        """Itself: dask copies the configuration that it stands in."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process its current client: there the same cluster is another client's."""
        return dask_get, ()

    def __repr__(self) -> str:
        return f"<dask_get of {self._client or 'the current client'}>"


def _tuples(found: Any, keys: Any) -> Any:
    """Values in tuples where their keys are in lists, as dask's own schedulers give them."""
    return tuple(map(_tuples, found, keys)) if isinstance(keys, list) else found


def dask_get(client: Any = None) -> DaskGet:
    """A scheduler function for dask, as in ``x.compute(scheduler=zdist.dask_get(client))`` or
    ``dask.config.set(scheduler=zdist.dask_get())``.

    The whole graph goes out at once, in dask's order; results that only other tasks need stay on the workers, and are
    dropped when these are done.

    Parameters:
        client: a `Client` that is not asynchronous; None for the one that is current when something is computed.

    Raises, when something is computed: ValueError if there is no client, TypeError for an asynchronous one.
    """
    return DaskGet(client)


_default = DaskGet()


def serve() -> None:
    """Be what dask computes with, unless it has been told of another scheduler; dask is imported already."""
    import dask

    if dask.config.get("scheduler", None) is None:
        dask.config.set(scheduler=_default)


def withdraw() -> None:
    """The last client is closed: dask computes with what it likes again."""
    import dask

    if context.find_client() is None and dask.config.get("scheduler", None) is _default:
        dask.config.set(scheduler=None)
