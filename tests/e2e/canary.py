"""Objects that leave a mark wherever they are unpickled."""

from __future__ import annotations

import os
from typing import Any

MARKS = "ZDIST_TEST_CANARY"


def sing(inside: Any) -> Canary:
    """Called by pickle in every process that unpickles a canary."""
    with open(os.environ[MARKS], "a") as file:
        file.write(f"{os.getpid()}\n")
    return Canary(inside)


class Canary:
    """Carries a value; `sing` tells who unpickled it."""

    def __init__(self, inside: Any = None) -> None:
        self.inside = inside

    def __reduce__(self) -> tuple[Any, ...]:
        return sing, (self.inside,)


class CanaryError(Exception):
    """An exception with a canary in it."""

    def __init__(self, canary: Canary) -> None:
        super().__init__("failed as told")
        self.canary = canary
