"""The operations on queues, variables, locks, … that clients share. PURE.

Each looks at cells and either changes them, or says that it has to WAIT. A value is its payload, which only clients and
workers open, and the keys of the futures in it. Kinds and their cells:

queue: number: value, in order · variable, dataset: value · event: true · metadata: path: value ·
lock, semaphore: fencing token: session, token, most · multilock (one for each of the names): session, token ·
plugin: number: part of a call, -1: how many
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from zdist.limits import ASK_ENTRIES, CALL_BYTES, MAX_KEY, MAX_NAMES, SHARED_CELL, SHARED_VALUE
from zdist_broker import parse
from zdist_broker.queries import Request
from zdist_broker.sharing import State
from zdist_broker.state import Client

__all__ = ["HOLDERS", "VERBS", "WAIT", "Op", "undo"]

WAIT: Final = object()
HOLDERS: Final = ("lock", "semaphore", "multilock")  # kinds whose cells belong to a session, and begin with it


class Verb(NamedTuple):
    """How its arguments are taken apart, how it is done, and whether its answer is a row of values."""

    parse: Callable[[tuple[Any, ...]], Any]
    do: Callable[[State, Op], Any]
    carries: bool = False


class Op:
    """An operation of a client."""

    __slots__ = ("args", "client", "kind", "known", "name", "req", "until", "verb")

    def __init__(
        self, client: Client, req: int, kind: str, name: str, verb: str, known: Verb, args: Any, until: float | None
    ) -> None:
        self.client = client
        self.req = req
        self.kind = kind
        self.name = name
        self.verb = verb
        self.known = known
        self.args = args
        self.until = until  # when its client does not wait any longer

    @property
    def place(self) -> tuple[str, str]:
        """Where it waits; multilocks wait together, since each is for several names."""
        return (self.kind, "" if self.kind == "multilock" else self.name)


# --- arguments --------------------------------------------------------------------------------------


def _nothing(args: tuple[Any, ...]) -> None:
    if args:
        raise ValueError(f"it takes no arguments, not {len(args)}")


def _fields(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(args) != count:
        raise ValueError(f"it takes {count} arguments, not {len(args)}")
    return args


def _whole(args: tuple[Any, ...]) -> int:
    return parse.whole("its argument", _fields(args, 1)[0], -1, 1 << 62)


def _value(payload: Any, keys: Any) -> tuple[bytes, tuple[str, ...]]:
    if type(payload) is not bytes:
        raise ValueError(f"a value is bytes, not {parse.shown(payload)}")
    if len(payload) > SHARED_VALUE:
        raise ValueError(
            f"a value of {len(payload)} bytes, at most {SHARED_VALUE} are possible; scatter it and share the future"
        )
    return payload, parse.keys("futures", keys)


def _one_value(args: tuple[Any, ...]) -> Any:
    return _value(*_fields(args, 2))


def _put_args(args: tuple[Any, ...]) -> Any:
    payload, keys, most = _fields(args, 3)
    return _value(payload, keys), parse.whole("maxsize", most, 0, 1 << 62)


def _publish_args(args: tuple[Any, ...]) -> Any:
    payload, keys, override = _fields(args, 3)
    return _value(payload, keys), override is True


def _names_args(args: tuple[Any, ...]) -> Any:
    names, count = _fields(args, 2)
    names = parse.names("names", names)
    return names, parse.whole("num_locks", count, 1, len(names))


def _rows_args(args: tuple[Any, ...]) -> Any:
    rows, gone = _fields(args, 2)
    if not isinstance(rows, tuple) or not isinstance(gone, tuple) or len(rows) + len(gone) > MAX_NAMES:
        raise ValueError(f"metadata: at most {MAX_NAMES} entries at once")
    pairs = [_fields(row, 2) for row in rows if isinstance(row, tuple)]
    return (
        [(parse.text("path", path, MAX_KEY), _value(payload, ())[0]) for path, payload in pairs],
        [parse.text("path", path, MAX_KEY) for path in gone],
    )


def _part_args(args: tuple[Any, ...]) -> Any:
    number, part = _fields(args, 2)
    return parse.whole("number", number, 0, CALL_BYTES // SHARED_VALUE), _value(part, ())[0]


def _path_args(args: tuple[Any, ...]) -> str:
    return parse.text("path", _fields(args, 1)[0], MAX_KEY)


def _event_args(args: tuple[Any, ...]) -> Any:
    when, payload = _fields(args, 2)
    return parse.amount("when", when), _value(payload, ())[0]


def _position_args(args: tuple[Any, ...]) -> Any:
    epoch, number = _fields(args, 2)
    return parse.whole("epoch", epoch, 0, 1 << 62), parse.whole("number", number, 0, 1 << 62)


# --- queues and variables ---------------------------------------------------------------------------


def _room(shared: State, value: tuple[bytes, Any]) -> None:
    if shared.store.room() < len(value[0]) + 2 * SHARED_CELL:
        raise Request(
            "the state that clients share is full; take something out of it, or share futures of large values"
        )


def _put(shared: State, op: Op) -> Any:
    value, most = op.args
    items = shared.store.items("queue", op.name)
    if most and len(items) >= most:
        return WAIT
    _room(shared, value)
    number = shared.store.next_token()  # which no other value ever has
    shared.change("queue", op.name, number, value)
    return number


def _get(shared: State, op: Op) -> Any:
    """So many items (-1: all that there are)."""
    items = shared.store.items("queue", op.name)
    count = len(items) if op.args < 0 else op.args
    if len(items) < count:
        return WAIT
    found = []
    for number in list(items)[:count]:
        found.append(items[number])
        shared.change("queue", op.name, number, None)
    return tuple(found)


def _close(shared: State, op: Op) -> Any:
    items = list(shared.store.items(op.kind, op.name))
    for item in items:
        shared.change(op.kind, op.name, item, None)
    return bool(items)


def _set(shared: State, op: Op) -> Any:
    _room(shared, op.args)
    shared.change(op.kind, op.name, "", op.args)
    return None


def _read(shared: State, op: Op) -> Any:
    value = shared.store.get(op.kind, op.name)
    return WAIT if value is None else (value,)


def _publish(shared: State, op: Op) -> bool:
    """Whether the name was free, or is to be used again."""
    value, override = op.args
    if not override and shared.store.get("dataset", op.name) is not None:
        return False
    _room(shared, value)
    shared.change("dataset", op.name, "", value)
    return True


def _read_now(shared: State, op: Op) -> Any:
    value = shared.store.get(op.kind, op.name)
    return () if value is None else (value,)


def _listed(shared: State, op: Op) -> Any:
    names = [name for kind, name in shared.store.cells if kind == op.kind]
    if len(names) > ASK_ENTRIES:
        raise Request(f"there are more than {ASK_ENTRIES}")
    return tuple(names)


# --- events and metadata ----------------------------------------------------------------------------


def _signal(shared: State, op: Op) -> Any:
    if not shared.store.get("event", op.name):
        shared.change("event", op.name, "", True)
    return None


def _clear(shared: State, op: Op) -> Any:
    if shared.store.get("event", op.name):
        shared.change("event", op.name, "", None)
    return None


def _await(shared: State, op: Op) -> Any:
    return True if shared.store.get("event", op.name) else WAIT


def _write(shared: State, op: Op) -> Any:
    rows, gone = op.args
    for prefix in gone:
        for path in [path for path in shared.store.items(op.kind, op.name) if path.startswith(prefix)]:
            shared.change(op.kind, op.name, path, None)
    for path, payload in rows:
        _room(shared, (payload, ()))
        shared.change(op.kind, op.name, path, payload)
    return None


def _metadata(shared: State, op: Op) -> Any:
    return tuple(
        (path, value) for path, value in shared.store.items(op.kind, op.name).items() if path.startswith(op.args)
    )


# --- what workers are set up with -------------------------------------------------------------------


def _part(shared: State, op: Op) -> None:
    number, part = op.args
    if not number:
        _close(shared, op)
    _room(shared, (part, ()))
    shared.change(op.kind, op.name, number, part)


def _whole_of(shared: State, op: Op) -> None:
    shared.change(op.kind, op.name, -1, b"%d" % op.args)


# --- locks ------------------------------------------------------------------------------------------


def _acquire(shared: State, op: Op) -> Any:
    held = shared.store.items(op.kind, op.name)
    others = [value[2] for value in held.values() if value[2] != op.args]
    if others:
        raise Request(f"{op.kind} {op.name} has {others[0]} leases, not {op.args}, for those who hold it now")
    if len(held) >= op.args:
        return WAIT
    token = shared.store.next_token()
    shared.change(op.kind, op.name, token, (op.client.session, token, op.args))
    return token


def _release(shared: State, op: Op) -> Any:
    """Whether it was held."""
    if shared.store.get(op.kind, op.name, op.args) is None:
        return False
    shared.change(op.kind, op.name, op.args, None)
    return True


def _acquire_several(shared: State, op: Op) -> Any:
    names, count = op.args
    taken: dict[str, None] = {}
    for other in shared.waiting.get(op.place, {}).values():
        if other is op:
            break
        taken |= dict.fromkeys(other.args[0])  # who came before is served before
    free = [name for name in names if name not in taken and not shared.store.items("multilock", name)]
    if len(free) < count:
        return WAIT
    token = shared.store.next_token()
    for name in free[:count]:
        shared.change("multilock", name, token, (op.client.session, token, 1))
    return token


def _release_several(shared: State, op: Op) -> Any:
    places = [place for place in shared.store.cells if place[0] == "multilock"]
    held = [name for _, name in places if shared.store.get("multilock", name, op.args) is not None]
    for name in held:
        shared.change("multilock", name, op.args, None)
    return bool(held)


# --- topics -----------------------------------------------------------------------------------------


def _log(shared: State, op: Op) -> Any:
    shared.topics.log(op.name, *op.args)
    shared.touched["topic", op.name] = None
    return None


def _next(shared: State, op: Op) -> Any:
    """Events after a position, and the position after these."""
    epoch, number = op.args
    found = shared.topics.after(op.name, number if epoch == shared.tables.epoch else 0)
    return (shared.tables.epoch, found[-1][0], found) if found else WAIT


def undo(shared: State, kind: str, name: str, verb: str, value: Any) -> None:
    """Its client did not wait for the answer: what it got is there again, what it put nobody gets any more."""
    if (kind, verb) == ("queue", "put"):
        if shared.store.get(kind, name, value) is not None:  # else somebody has it
            shared.change(kind, name, value, None)
    elif (kind, verb) == ("queue", "get"):
        items = shared.store.items(kind, name)
        first = min(next(iter(items), 0), 0)  # below zero, where nothing was put
        back = list(items.items())
        for number, _ in back:
            shared.change(kind, name, number, None)
        for number, item in [*((first - len(value) + i, item) for i, item in enumerate(value)), *back]:
            shared.change(kind, name, number, item)
    elif kind in HOLDERS and verb == "acquire":
        for place in [place for place in shared.store.cells if place[0] == kind]:
            if shared.store.get(*place, value) is not None:
                shared.change(*place, value, None)


VERBS: Final[dict[tuple[str, str], Verb]] = {
    ("", "confirm"): Verb(_nothing, lambda shared, op: None),
    ("", "cancel"): Verb(_whole, lambda shared, op: None),  # done by whoever knows what waits
    ("queue", "put"): Verb(_put_args, _put),
    ("queue", "get"): Verb(_whole, _get, True),
    ("queue", "size"): Verb(_nothing, lambda shared, op: len(shared.store.items("queue", op.name))),
    ("queue", "close"): Verb(_nothing, _close),
    ("variable", "set"): Verb(_one_value, _set),
    ("variable", "get"): Verb(_nothing, _read, True),
    ("variable", "delete"): Verb(_nothing, _close),
    ("event", "set"): Verb(_nothing, _signal),
    ("event", "clear"): Verb(_nothing, _clear),
    ("event", "wait"): Verb(_nothing, _await),
    ("event", "is_set"): Verb(_nothing, lambda shared, op: bool(shared.store.get("event", op.name))),
    ("lock", "acquire"): Verb(_whole, _acquire),
    ("lock", "release"): Verb(_whole, _release),
    ("lock", "held"): Verb(_nothing, lambda shared, op: len(shared.store.items("lock", op.name))),
    ("semaphore", "acquire"): Verb(_whole, _acquire),
    ("semaphore", "release"): Verb(_whole, _release),
    ("semaphore", "held"): Verb(_nothing, lambda shared, op: len(shared.store.items("semaphore", op.name))),
    ("multilock", "acquire"): Verb(_names_args, _acquire_several),
    ("multilock", "release"): Verb(_whole, _release_several),
    ("multilock", "held"): Verb(_nothing, lambda shared, op: len(shared.store.items("multilock", op.name))),
    ("dataset", "publish"): Verb(_publish_args, _publish),
    ("dataset", "get"): Verb(_nothing, _read_now, True),
    ("dataset", "delete"): Verb(_nothing, _close),
    ("dataset", "list"): Verb(_nothing, _listed),
    ("metadata", "set"): Verb(_rows_args, _write),
    ("metadata", "get"): Verb(_path_args, _metadata),
    ("plugin", "part"): Verb(_part_args, _part),
    ("plugin", "whole"): Verb(_whole, _whole_of),
    ("plugin", "delete"): Verb(_nothing, _close),
    ("topic", "log"): Verb(_event_args, _log),
    ("topic", "position"): Verb(_nothing, lambda shared, op: (shared.tables.epoch, shared.topics.number)),
    ("topic", "next"): Verb(_position_args, _next),
    ("topic", "events"): Verb(_nothing, lambda shared, op: shared.topics.after(op.name, 0)),
}
