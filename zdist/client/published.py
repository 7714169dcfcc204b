"""Datasets, metadata and topics: what clients of a cluster leave for each other. Names: dask.distributed 2021.10."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

from zdist import serialize
from zdist.client.sharing import Sharing
from zdist.core.entry import Reply

__all__ = ["Datasets", "Published"]

_NONE: Any = object()


class Published(Sharing):
    """The part of the client for datasets, metadata and topics. They survive a broker that is killed; topics do not."""

    # --- datasets -----------------------------------------------------------------------------------------

    def publish_dataset(self, *args: Any, name: Any = None, override: bool = False, **kwargs: Any) -> Any:
        """Leave something under a name for all clients; futures in it stay alive until it is unpublished.

        ``publish_dataset(x=df)`` or ``publish_dataset(df, name="x")``.

        Parameters:
            args: the one thing that gets ``name``, which is a text, a number, or a tuple of such.
            kwargs: others by their names.
            override: take the place of what is there under the name.

        Raises KeyError if a name is taken, TypeError for one that cannot be, ValueError for more than 1 MiB (publish
        futures of large data) or without a name, SerializationError.
        """
        if name is None:
            if args:
                raise ValueError(
                    "publish_dataset needs a name: publish_dataset(x=data) or publish_dataset(data, name=)"
                )
        else:
            if len(args) != 1 or kwargs:
                raise ValueError("with name= publish_dataset takes one object")
            _dataset_name(name)
            kwargs = {name: args[0]}
        return self._sync(self._publish(kwargs, override))

    async def _publish(self, things: dict[Any, Any], override: bool) -> None:
        for name, value in things.items():
            payload, keys, kept = await self.frozen(value, f"dataset {name!r}")
            if not (await self.operate("dataset", _dataset_name(name), "publish", (payload, keys, override)))[1]:
                raise KeyError(f"there is a dataset {name!r} already; unpublish it, or publish with override=True")
            del kept

    def get_dataset(self, name: Any, default: Any = _NONE) -> Any:
        """What was published under a name. Raises KeyError if there is nothing and no default is given."""
        return self._sync(self._dataset(name, default))

    async def _dataset(self, name: Any, default: Any) -> Any:
        found = self.thawed((await self.operate("dataset", _dataset_name(name), "get"))[1], f"dataset {name!r}")
        if found:
            return found[0]
        if default is _NONE:
            raise KeyError(f"there is no dataset {name!r}")
        return default

    def unpublish_dataset(self, name: Any) -> Any:
        """Take a dataset away; its futures live as long as anybody else has them. Raises KeyError."""
        return self._sync(self._unpublish(name))

    async def _unpublish(self, name: Any) -> None:
        if not (await self.operate("dataset", _dataset_name(name), "delete"))[1]:
            raise KeyError(f"there is no dataset {name!r}")

    def list_datasets(self) -> Any:
        """The names of all datasets."""
        return self._sync(self._datasets())

    async def _datasets(self) -> tuple[Any, ...]:
        return tuple(_tuples(json.loads(name)) for name in (await self.operate("dataset", "all", "list"))[1])

    @property
    def datasets(self) -> Datasets:
        """All datasets as a mapping; for clients that are not asynchronous."""
        return Datasets(self)

    # --- metadata -----------------------------------------------------------------------------------------

    def set_metadata(self, key: Any, value: Any) -> Any:
        """Keep a value under a key, or under a path of keys, for all clients. Values have 1 MiB at most."""
        path = list(key) if isinstance(key, list | tuple) else [key]
        return self._sync(self._set_metadata(path, value))

    async def _set_metadata(self, path: list[Any], value: Any) -> None:
        rows = []
        for leaf, part in _leaves(path, value):
            payload, keys, _ = await self.frozen(part, f"metadata {leaf}")
            if keys:
                raise ValueError(f"metadata {leaf}: futures would not stay alive there; publish them as a dataset")
            rows.append((_path(leaf), payload))
        await self.operate("metadata", "all", "set", (tuple(rows), (_path(path),)))

    def get_metadata(self, keys: Any, default: Any = _NONE) -> Any:
        """What is kept under a key or a path of keys; of a path that others continue, a dictionary. Raises KeyError."""
        path = list(keys) if isinstance(keys, list | tuple) else [keys]
        return self._sync(self._get_metadata(path, default))

    async def _get_metadata(self, path: list[Any], default: Any) -> Any:
        start = _path(path)
        tree: dict[Any, Any] = {}
        rows = (await self.operate("metadata", "all", "get", (start,)))[1]
        for where, payload in sorted(rows, key=lambda row: len(row[0])):
            at = tree
            names: list[str] = ["", *json.loads(f"[{where[len(start) :].rstrip(',')}]")]
            last = names.pop()
            for name in names:
                if not isinstance(at.get(name), dict):
                    at[name] = {}
                at = at[name]
            at[last] = serialize.loads(payload, what=f"metadata {where}", owner=self)
        if "" in tree:
            return tree[""]
        if default is _NONE:
            raise KeyError(f"there is no metadata {path}")
        return default

    # --- topics -------------------------------------------------------------------------------------------

    def log_event(self, topic: str | list[str], msg: Any) -> Any:
        """Tell all who have subscribed to a topic (or several).

        Parameters:
            topic: its name, or a list of names.
            msg: what the handlers get; no more than 1 MiB when pickled, and without futures.

        Raises ValueError for another, SerializationError.
        """
        return self._sync(self._log_event([topic] if isinstance(topic, str) else list(topic), msg))

    async def _log_event(self, topics: list[str], msg: Any) -> None:
        payload, keys, _ = await self.frozen(msg, f"an event of {topics}")
        if keys:
            raise ValueError("futures in events would not stay alive; put them into a Queue or Variable")
        for topic in topics:
            await self.operate("topic", topic, "log", (time.time(), payload))

    def get_events(self, topic: str) -> Any:
        """The last events of a topic (1,000 at most), as tuples of when (seconds since 1970) and what."""
        return self._sync(self._events(topic))

    async def _events(self, topic: str) -> tuple[tuple[float, Any], ...]:
        rows = (await self.operate("topic", topic, "events"))[1]
        return tuple((when, serialize.loads(payload, what=topic, owner=self)) for _, when, payload in rows)

    def subscribe_topic(self, topic: str, handler: Callable[[tuple[float, Any]], Any]) -> Any:
        """Call ``handler((when, what))`` for each event of a topic from now on, one after the other.

        On a thread of this client, or on the loop of an asynchronous one; there it may be a coroutine function.
        """
        return self._sync(self._subscribe(topic, handler))

    async def _subscribe(self, topic: str, handler: Callable[[tuple[float, Any]], Any]) -> None:
        mine = Subscription(self, topic, handler)
        if self._subscriptions.setdefault(topic, mine) is not mine:
            raise ValueError(f"this client has subscribed to {topic!r} already")
        try:
            mine.begin((await self.operate("topic", topic, "position"))[1])
        except BaseException:
            if self._subscriptions.get(topic) is mine:
                del self._subscriptions[topic]
            raise

    def unsubscribe_topic(self, topic: str) -> Any:
        """No more events of a topic. Raises ValueError if it was not subscribed to."""
        return self._sync(self._unsubscribe(topic))

    async def _unsubscribe(self, topic: str) -> None:
        known = self._subscriptions.pop(topic, None)
        if known is None:
            raise ValueError(f"this client has not subscribed to {topic!r}")
        known.end()

    _subscriptions: dict[str, Subscription]


class Subscription:
    """A question that is asked again each time that it was answered: what is new of a topic?"""

    position: tuple[int, int]

    def __init__(self, client: Published, topic: str, handler: Callable[..., Any]) -> None:
        self.client = client
        self.topic = topic
        self.handler = handler
        self.number: int | None = None  # of the question that is open
        self.over = False
        self.tasks: set[asyncio.Future[Any]] = set()  # of a handler that is a coroutine function

    def begin(self, position: tuple[int, int]) -> None:
        """Ask for what comes after this position."""
        self.position = position
        if not self.over:
            self._ask()

    def _ask(self) -> None:
        self.number = self.client.share("topic", self.topic, "next", self.position, self._told)

    def _told(self, reply: Reply) -> None:
        if reply.ok and not self.over:
            self.client._chore(partial(self._deliver, *reply.value[1]))

    def _deliver(self, epoch: int, number: int, events: Any) -> None:
        self.position = (epoch, number)
        for _, when, payload in events:
            if self.over:
                return
            try:
                done = self.handler((when, serialize.loads(payload, what=self.topic, owner=self.client)))
                if inspect.isawaitable(done):
                    task = asyncio.ensure_future(done)
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
            except Exception:
                logging.getLogger("zdist.client").exception("the handler of topic %s failed", self.topic)
        if not self.over and self.client._driver is not None:
            self._ask()

    def end(self) -> None:
        """Ask no more."""
        self.over = True
        if self.number is not None:
            self.client.cancel_op(self.number)


class Datasets(MutableMapping[Any, Any]):
    """What has been published, by name."""

    def __init__(self, client: Published) -> None:
        self.client = client

    def __getitem__(self, name: Any) -> Any:
        return self.client.get_dataset(name)

    def __setitem__(self, name: Any, value: Any) -> None:
        self.client.publish_dataset(value, name=name, override=True)

    def __delitem__(self, name: Any) -> None:
        self.client.unpublish_dataset(name)

    def __contains__(self, name: Any) -> bool:
        return name in self.client.list_datasets()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.client.list_datasets())

    def __len__(self) -> int:
        return len(self.client.list_datasets())


def _dataset_name(name: Any) -> str:
    """A name as the broker has it. Raises TypeError for one that cannot be."""
    try:
        hash(name)
        return json.dumps(name)
    except TypeError:
        raise TypeError(f"the name of a dataset is a text, a number, or a tuple of such, not {name!r:.80}") from None


def _tuples(name: Any) -> Any:
    return tuple(map(_tuples, name)) if isinstance(name, list) else name


def _path(keys: list[Any]) -> str:
    return "".join(json.dumps(str(key)) + "," for key in keys)


def _leaves(path: list[Any], value: Any) -> Iterator[tuple[list[Any], Any]]:
    """A dictionary is kept entry by entry, so that its entries can be asked for and changed one by one."""
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        for key, part in value.items():
            yield from _leaves([*path, key], part)
    else:
        yield path, value
