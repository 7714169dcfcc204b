"""How fast the parts are that every task passes, each by itself: codec, names, arguments, results, the planner.

One call handles 1,000 records, so a figure in milliseconds is one in microseconds for each.
"""

from __future__ import annotations

from typing import Any

import pytest

from zdist import serialize
from zdist.core.gather import plan_gather
from zdist.core.links import OPEN, Links
from zdist.protocol import messages as m
from zdist.protocol.codec import decode, encode

COUNT = 1000
FN = m.function_digest(b"code")
KEYS = [f"inc-{n:032x}" for n in range(COUNT)]
CODE = b"c" * 32

MESSAGES: dict[str, Any] = {
    "submit": m.Submit(FN, False, 1, (), tuple([(key, b"a" * 30, ()) for key in KEYS])),
    "run": m.Run(FN, tuple([(key, n, n, 1, b"a" * 30, ()) for n, key in enumerate(KEYS)])),
    "done": m.Done(tuple([(key, n, 10, 20, b"v" * 20, "int") for n, key in enumerate(KEYS)])),
    "finished": m.Finished(tuple([(key, n, 20, b"v" * 20, (), "int") for n, key in enumerate(KEYS)])),
    "release": m.Release(tuple([(key, 1) for key in KEYS])),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_encode(benchmark: Any, kind: str) -> None:
    packet = m.Packet("c-1", 1, 0, (MESSAGES[kind],))
    assert benchmark(encode, packet)


@pytest.mark.parametrize("kind", MESSAGES)
def test_decode(benchmark: Any, kind: str) -> None:
    frames = encode(m.Packet("c-1", 1, 0, (MESSAGES[kind],)))
    assert benchmark(decode, frames).messages == (MESSAGES[kind],)


def test_arguments_out(benchmark: Any) -> None:
    calls = [(n, "text", 1.5) for n in range(COUNT)]
    packed = benchmark(lambda: [serialize.dumps_args(call, {}, None, what="arguments") for call in calls])
    assert serialize.loads_args(packed[7][0], lambda key: key) == ((7, "text", 1.5), {})


def test_arguments_in(benchmark: Any) -> None:
    packed = [serialize.dumps_args((n, "text", 1.5), {}, None, what="arguments")[0] for n in range(COUNT)]
    assert benchmark(lambda: [serialize.loads_args(each, lambda key: key) for each in packed])[7][0][0] == 7


def test_results_out(benchmark: Any) -> None:
    values = [(n, [1.5, "text"]) for n in range(COUNT)]
    packed = benchmark(lambda: [serialize.dumps_inline(value, 1 << 14) for value in values])
    assert serialize.loads(packed[7]) == values[7]


def test_results_in(benchmark: Any) -> None:
    packed = [serialize.dumps((n, [1.5, "text"])).tobytes() for n in range(COUNT)]
    assert benchmark(lambda: [serialize.loads(each) for each in packed])[7] == (7, [1.5, "text"])


def test_names(benchmark: Any) -> None:
    calls = [(n, "text", 1.5) for n in range(COUNT)]
    assert len(set(benchmark(lambda: [serialize.token(CODE, call, {}) for call in calls]))) == COUNT


@pytest.mark.parametrize("workers", [2, 100])
def test_plan(benchmark: Any, workers: int) -> None:
    links = Links()
    links.learn([(f"w-{n}", f"tcp://h:{n}", f"{n}", "h", "n-1") for n in range(workers)])
    for link in links.peers.values():
        link.state = OPEN
    wants = [(key, 100, (f"w-{n % workers}",)) for n, key in enumerate(KEYS)]
    batches = benchmark(plan_gather, wants, links)
    assert sum(len(batch.keys) for batch in batches) == COUNT
