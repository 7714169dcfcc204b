"""Keys that were not taken from a client: what it makes of one is not made of another client's call of that name. PURE.

It may have submitted that before it knew. Its next submission, want or hold of the key makes it good again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zdist_broker.state import Client

__all__ = ["made_of", "note", "settle"]

MOST: Final = 10_000  # remembered for each client


def note(client: Client, key: str, rejected: bool) -> None:
    """The key was not taken: it stands for something else (``rejected``), or inputs are lacking."""
    if key in client.wants:  # it has been taken before, as something else
        return
    client.untaken.pop(key, None)
    if len(client.untaken) >= MOST:
        del client.untaken[next(iter(client.untaken))]
    client.untaken[key] = rejected


def settle(client: Client, keys: Iterable[str]) -> None:
    """The client speaks of these keys anew."""
    if client.untaken:
        for key in keys:
            client.untaken.pop(key, None)


def made_of(client: Client, needs: Iterable[str]) -> str:
    """One of these keys that was not taken; "" if there is none."""
    untaken = client.untaken
    return next((name for name in needs if name in untaken), "") if untaken else ""
