"""Well-typed messages with hostile values, from a source of randomness (hypothesis's or a seeded one)."""

from __future__ import annotations

import types
import typing
from random import Random
from typing import Any

from broker_world import FN, SLOW

from zdist import limits
from zdist.protocol.messages import Buffer, Message

FIRST = 1 << 40  # attempts of a broker of epoch 1 lie just above
TEXTS = (
    "a", "b", "c", "d", "e", "f", "g", "a", "b", "c", "c-1", "c-2", "w-1", "w-2", "n-1", "n-2", "tcp://w-1", "W-1", "",
    "client", "worker", "out", "log", "err", "who_has", "has_what", "restart", "scale", "wait_for_workers", "counts",
    "log_subscribe", "replicate", "rebalance", "retire", "restart_workers", "status", "running", "spec", "nbytes",
    "worker", "workers", "processing", "fence", "mem", "k" * (limits.MAX_KEY + 1), "x" * (limits.MAX_TEXT + 1),
    "\n\x1b[31m\0", "\U0001f600", "token",
)  # fmt: skip
NUMBERS = (
    *(
        0,
        1,
        2,
        3,
        1,
        2,
        3,
        5,
        10,
        100,
        -1,
        -2,
        -3,
        1 << 31,
        1 << 62,
        -(1 << 62),
        (1 << 63) - 1,
        -(1 << 63),
        (1 << 64) - 1,
    ),
    *range(FIRST + 1, FIRST + 12),
)
AMOUNTS = (0.0, 1.0, 0.5, -1.0, 1e308, float("inf"), float("-inf"), float("nan"), 3, 1 << 63)
BLOBS = (b"pickled fast", b"pickled slow", FN, SLOW, FN, b"", b"x" * 40, b"v" * 200, bytes(limits.OWN_FRAME + 1))
FREE = (None, True, False, 1.5, float("nan"), (), {}, {"a": 1}, {"token": ("a",)}, (1,), ("a", "b"), (("mem", 1.0),))


def value(random: Random, hint: Any, depth: int = 0) -> Any:
    """A value of the annotated type, mostly one that means something here."""
    if hint is Any:
        pick = random.randrange(8)
        if pick < 3:
            return random.choice(FREE)
        if pick == 3 and depth < 4:
            return tuple(value(random, Any, depth + 1) for _ in range(random.randrange(4)))
        return random.choice((TEXTS, NUMBERS, AMOUNTS, BLOBS)[pick - 4] if pick > 3 else FREE)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        return value(random, random.choice(args), depth)
    if origin is tuple and args[-1] is Ellipsis:
        return tuple(value(random, args[0], depth + 1) for _ in range(random.choice((0, 1, 1, 2, 3))))
    if origin is tuple:
        return tuple(value(random, arg, depth + 1) for arg in args)
    if origin is dict:
        return {random.choice(TEXTS): value(random, args[1], depth + 1) for _ in range(random.choice((0, 1, 2)))}
    if hint is bool:
        return random.random() < 0.5
    if hint is type(None):
        return None
    if hint is Buffer:
        return Buffer(random.choice(BLOBS))
    pool: dict[Any, tuple[Any, ...]] = {str: TEXTS, int: NUMBERS, float: AMOUNTS, bytes: BLOBS}
    return random.choice(pool[hint])


def message(random: Random, kind: type[Message]) -> Message:
    """A message of the type, every field well typed."""
    made: Message = kind._make(value(random, hint) for hint in typing.get_type_hints(kind).values())
    return made
