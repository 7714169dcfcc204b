"""A client's options where they were not given, and the errors that say why a broker takes no client."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from zdist.core.gather import PATHS
from zdist.errors import AuthenticationError, VersionMismatch, ZdistError

__all__ = ["configured", "paths", "refusal"]


def configured(name: str) -> Any:
    """What the environment says of an option that was not given. Raises ConfigError."""
    if f"ZDIST_CLIENT__{name.upper()}" not in os.environ:  # pydantic takes a tenth of a second to load
        return None
    from zdist.config import load

    return getattr(load().config.client, name)


def paths(given: Sequence[str] | None) -> tuple[str, ...]:
    """The transfer paths that may be used, in the order of preference. Raises ValueError."""
    if given is None:
        return tuple(PATHS)
    if isinstance(given, str):
        given = (given,)
    unknown = [path for path in given if path not in ("local", "inline", "shm", *PATHS)]
    if unknown or not any(path in PATHS for path in given):
        raise ValueError(f"gather_paths={tuple(given)!r}: name at least one of {', '.join(PATHS)}")
    return tuple(path for path in PATHS if path in given)


def refusal(address: str, code: str, text: str) -> Exception:
    """The error for a broker's Refused."""
    if code == "token":
        return AuthenticationError(
            f"the broker at {address} refused this client: {text}. Run as the user who started the broker, or give "
            "token_file= (or ZDIST_TOKEN)"
        )
    if code == "version":
        return VersionMismatch(f"the broker at {address} refused this client: {text}")
    return ZdistError(f"the broker at {address} refused this client: {text} ({code})")
