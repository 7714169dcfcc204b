"""The driver of a client, worker or node: a loop with a control and a bulk connection and maybe a data socket."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from zdist import limits
from zdist.core.endpoint import PeerEndpoint, PeerMachine
from zdist.transport import sockets
from zdist.transport.loop import Loop

__all__ = ["Driver"]


class Driver(Loop):
    """Connects a machine to the broker at ``control``; see `Loop` for the threads.

    ``token``: the cluster token, or a function that finds it, asked before each hello. ``patience``: seconds without a
    broker's answer after which that is logged, once.
    ``data_bind`` (``tcp://HOST:0``, ``ipc:///PATH``) gives the machine a data socket of its own, on a port out of
    ``ports`` if given; ``advertise`` is the host that others dial. Raises AddressRefused or OSError from binding.
    """

    def __init__(
        self,
        machine: PeerMachine,
        *,
        session: str,
        token: str | Callable[[], str],
        control: str,
        name: str,
        execute: Callable[[Any], None],
        data_bind: str | None = None,
        ports: tuple[int, int] | None = None,
        advertise: str | None = None,
        insecure: bool = False,
        background: bool = True,
        patience: float = limits.NOTICE,
    ) -> None:
        find = token if callable(token) else lambda: token
        endpoint = PeerEndpoint(machine, session, find(), find_token=find, address=control, patience=patience)
        super().__init__(endpoint, execute, name=name)
        self.peer = endpoint
        self.machine = machine
        self.control = control
        self.background = background
        self.data_address: str | None = None
        try:
            if data_bind is not None:
                sock = sockets.router(self.context, largest=limits.MAX_REQUEST)
                self.attach("data", sock, router=True)
                self.data_address = sockets.bind(
                    sock, data_bind, insecure=insecure, ports=ports, advertise=advertise, option="--data-ports"
                )
            self.dial("control", control)
        except BaseException:
            super().close(0)
            raise

    @property
    def connected(self) -> bool:
        """Has the broker welcomed this session, and is it heard?"""
        return self.peer.up

    @property
    def away(self) -> str:
        """Why no broker is there, once that has been logged; "" while one is."""
        return self.peer.away

    @property
    def confirmed(self) -> bool:
        """Has the broker confirmed all that it was sent?"""
        return not self.peer.session.unacked

    def retire(self) -> None:
        """The session is over: no broker is greeted any more."""
        self.peer.over = True

    def start(self) -> None:
        """Begin to say hello; with a background thread unless made with ``background=False``."""
        if self.background:
            super().start()

    def failed(self, exc: BaseException) -> None:
        """The loop ended by a defect: the machine is told, so that nobody waits for ever."""
        with self.lock:
            self.machine.refused("defect", f"{type(exc).__name__}: {exc}", time.monotonic())
            for command in self.machine.commands[:]:
                with contextlib.suppress(Exception):
                    self._do(command)
            self.machine.commands.clear()

    def close(self, timeout: float = 1.0, reason: str = "closed") -> None:
        """Say goodbye, send what is queued, and close; idempotent."""
        with self.lock:
            self.peer.leave(reason)
        super().close(timeout)
        if self.data_address is not None:
            sockets.unlink_ipc(self.data_address)
