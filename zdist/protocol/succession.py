"""What is said to a broker that has taken another's place, and what it answers. PURE."""

from __future__ import annotations

from typing import Final, NamedTuple

from zdist.protocol.fields import Attempt, Key, Payload

__all__ = ["ANY", "ANY_SPEC", "SPEC", "TOLD", "Adopt", "Claim", "Unheard", "Unowned"]

SPEC: Final = -1  # in place of attempts
ANY: Final = -2
ANY_SPEC: Final = -3
TOLD: Final = -4


class Claim(NamedTuple):
    """Goes before a Submit or Want: keys of it that an earlier broker knew, and which attempt had finished them.

    ANY: whichever finished it counts; TOLD: the one that others claim; SPEC: need not be started, others were
    made of it; ANY_SPEC: ANY and SPEC. Values here come along: key, attempt, bytes, value, type name.
    """

    rows: tuple[tuple[Key, Attempt], ...]
    values: tuple[tuple[Key, Attempt, int, Payload, str], ...] = ()


class Unheard(NamedTuple):
    """Broker to client: nobody has told of these keys for another second, and they are sought on: key, generation."""

    rows: tuple[tuple[Key, int], ...]


class Unowned(NamedTuple):
    """What this worker runs for a broker that is no more: key, attempt."""

    rows: tuple[tuple[Key, Attempt], ...]


class Adopt(NamedTuple):
    """Broker to worker: these Unowned attempts are this broker's from now on. Those that do not run are Returned,
    unless their results have been announced as Held."""

    rows: tuple[tuple[Key, Attempt], ...]
