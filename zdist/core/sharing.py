"""Blobs that are fetched through the memory of this host, in two steps. PURE.

First the driver looks whether they lie in the holder's shared memory (Map): that takes no message, so it also works
while the holder holds its interpreter's lock. What is not there yet the holder is asked to put there, by any way, and
then the driver looks again. What cannot be had like this is asked for as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zdist.core.links import SHM
from zdist.core.steering import Steering
from zdist.core.transfer import Request, Transfer
from zdist.protocol.fields import serves
from zdist.protocol.messages import Data

__all__ = ["Sharing"]

BUSY_PAUSE: Final = 0.05  # after the answer "busy"


class Sharing(Steering):
    """The part of the fetcher that knows what becomes of requests on shm links."""

    def finish(self, transfer: Transfer, data: Any, nbytes: int, path: str) -> None:
        """A transfer is complete; the Fetcher tells its callers."""
        raise NotImplementedError

    def mapped(self, req: int, found: Mapping[str, Any], closed: str, now: float) -> None:
        """The driver's answer to a Map: blobs by key, each with ``attempt`` and ``nbytes``; ``closed`` says why nothing
        can be had of this holder's memory, "" if it can."""
        request = self.requests.open.get(req)
        if request is None:
            return  # nobody wants it any more
        self.requests.looking.pop(req, None)
        link, rows = request.link, request.rows
        link.progress = now
        for key, blob in found.items():
            transfer, _, _, epoch = rows[key]
            if not transfer.done and epoch == transfer.epoch:
                if not serves(blob.attempt, transfer.attempt):
                    continue
                transfer.active -= 1
                transfer.attempt = blob.attempt
                link.carried_keys += 1
                link.carried_bytes += blob.nbytes
                self.finish(transfer, blob, blob.nbytes, SHM)
            del rows[key]
        if request.shared and rows and not closed:
            closed = f"what {link.name} says lies in its shared memory is not there"
        if closed:
            link.closed(closed, now)
            self.plan(self.evacuate(link), now)
        elif rows:
            self.requests.share(request, now)
        else:
            link.opened()
            self.requests.release(request)
        self.requests.settle(link, now)
        self.pump(now)

    def shared(self, request: Request, message: Data, now: float) -> None:
        """The holder's answer: what of it lies in its shared memory now, and what does not."""
        if request.shared:
            return  # said twice
        rows, bytes_only = request.rows, []
        request.link.progress = now
        there = {key: attempt for key, attempt, _ in message.shared}
        why = {key: (code, text) for key, code, text in message.absent}
        for key, (transfer, offset, length, epoch) in list(rows.items()):
            if key in there:
                if serves(there[key], transfer.attempt):
                    continue
                why[key] = ("unknown", "has an earlier computation or other data of that name only")
            del rows[key]
            if transfer.done or epoch != transfer.epoch:
                continue
            transfer.active -= 1
            transfer.again(offset, offset + length)
            code, text = why.get(key, ("heap", ""))
            if code == "unpicklable":
                self.fail(transfer, code, text, now)
            elif code == "busy":
                self.at(now + BUSY_PAUSE, transfer)
            elif code == "unknown":
                self.lose(transfer, request.link.holder, text or code, now)
            else:
                bytes_only.append(transfer)
        if rows:
            request.shared = True
            self.requests.look(request)
        else:
            self.requests.release(request)
            self.requests.settle(request.link, now)
        self.unshare(bytes_only, now)

    def give_up_shared(self) -> None:
        """Requests on shm links that nobody wants any more are over."""
        for link in self.links.shms.values():
            for req in list(link.requests):
                request = self.requests.open[req]
                if all(row[0].done for row in request.rows.values()):
                    self.requests.give_up(request)
