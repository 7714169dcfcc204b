"""What the broker finds in the shared memory of its own host."""

from __future__ import annotations

from zdist.core.store import part
from zdist.limits import WHOLE
from zdist.protocol.messages import Get
from zdist.transport.shm import peek
from zdist_broker.relay import Row

__all__ = ["look"]


def look(get: Get) -> tuple[Row, ...]:
    """The rows that answer a request, as its holder would; none unless all that it names lies in shared memory.

    Their payloads are mapped, not copied, and what is mapped stays as it is until they are gone.
    """
    rows, room = [], WHOLE
    keys = dict.fromkeys([row[0] for row in get.rows])
    try:
        found = dict(zip(keys, peek(get.holder, keys), strict=True))
    except (OSError, ValueError):
        return ()
    for key, offset, length in get.rows:
        if room <= 0 or offset < 0:
            continue
        attempt, blob = found[key]
        size, pieces = part(blob, offset, min(length, room))
        rows.append((key, attempt, blob.nbytes, offset, pieces))
        room -= size
    return tuple(rows)
