"""What is said of a worker's death. PURE."""

from __future__ import annotations

import signal

from zdist import limits

__all__ = ["death_text"]


def death_text(name: str, pid: int, hostname: str, code: int, lines: list[str], why: str = "") -> str:
    """Say which process ended, where and how, with its last lines."""
    if why:
        how = f"was killed by its node: {why}"
    elif code < 0:
        try:
            label = f" ({signal.Signals(-code).name})"
        except ValueError:
            label = ""
        how = f"was killed by signal {-code}{label}"
    else:
        how = f"exited with code {code}"
    text = f"worker {name} (pid {pid} on host {hostname}) {how}"
    if lines:
        text += "; last lines:\n" + "\n".join(lines)
    return text[: limits.MAX_TEXT]
