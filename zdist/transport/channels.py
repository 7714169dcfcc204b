"""The sockets of a driver, by the names of their channels: packets in, to an endpoint, and packets out."""

from __future__ import annotations

import time
from typing import Any, Final

import zmq

from zdist import limits
from zdist.core.endpoint import Endpoint
from zdist.core.machine import Route
from zdist.errors import ProtocolError
from zdist.log import get_logger
from zdist.protocol.codec import decode, encode
from zdist.transport import sockets
from zdist.transport.listeners import Listeners
from zdist.transport.memory import heaps

__all__ = ["Channels"]

# plain numbers: the arithmetic of pyzmq's enumerations costs microseconds
NOBLOCK: Final = int(zmq.NOBLOCK)
MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
POLLIN: Final = int(zmq.POLLIN)
EVENTS: Final = int(zmq.EVENTS)
RCVMORE: Final = int(zmq.RCVMORE)
Socket = zmq.Socket[bytes]


class Channels:
    """Sockets and a poller; whoever turns the loop calls `_drain` and `_send`."""

    def __init__(self, endpoint: Endpoint, context: sockets.Context, name: str) -> None:
        self.endpoint = endpoint
        self.context = context
        self.name = name
        self.log = get_logger(name)
        self._channels: dict[str, Socket] = {}
        self._addresses: dict[str, str] = {}
        self._names: dict[Any, str] = {}
        self._routes: dict[str, Route] = {}
        self._routers: set[str] = set()
        self._poller = zmq.Poller()
        self._listeners = Listeners(self.log, self._poller)
        self._dialled = 0  # connections, which take turns on the I/O threads
        self._dirty = True  # the machine may have something to send since the last turn

    # --- which there are ---------------------------------------------------------------------------

    def attach(self, channel: str, sock: Socket, *, router: bool) -> None:
        """Take a socket in under a channel's name."""
        self._channels[channel] = sock
        self._names[sock] = channel
        self._routes[channel] = Route(channel)
        if router:
            self._routers.add(channel)
            self._listeners.add(sock)
        self._poller.register(sock, zmq.POLLIN)

    def dial(self, channel: str, address: str) -> Socket:
        """Connect a channel; an old socket under the name is closed. Least recently used peers make room."""
        self._drop(channel)
        peers = [name for name in self._channels if "://" in name]
        if len(peers) >= limits.PEER_SOCKETS and "://" in channel:
            self._drop(peers[0])
        self._dialled += 1
        sock = sockets.dealer(self.context, address, 1 << self._dialled % sockets.IO_THREADS)
        self._addresses[channel] = address
        self.attach(channel, sock, router=False)
        return sock

    def _drop(self, channel: str) -> None:
        sock = self._channels.pop(channel, None)
        if sock is not None:
            self._poller.unregister(sock)
            del self._names[sock], self._routes[channel]
            sock.close(0)

    # --- in and out --------------------------------------------------------------------------------

    def _drain(self, sock: Socket, now: float) -> None:
        channel = self._names.get(sock)
        if channel is None:
            if not sock.closed:
                self._listeners.told(sock)
            return  # or it was dropped earlier in this turn
        router = channel in self._routers
        small = channel == "control"
        route = self._routes[channel]
        getsockopt, recv = sock.getsockopt, sock.recv
        taken = 0
        for count in range(limits.TURN_MESSAGES):
            if taken >= limits.TURN_BYTES or (count and time.monotonic() - now > limits.TURN_SECONDS):
                return
            if count and not int(getsockopt(EVENTS)) & POLLIN:  # a tenth of what the exception of a vain recv costs
                return
            try:
                frames: list[Any] = [recv(NOBLOCK)]
            except zmq.Again:
                return
            if router:
                route = Route(channel, frames.pop())
                frames.append(recv(NOBLOCK))  # a header is small, or full of small values: it is copied anyway
            while getsockopt(RCVMORE):
                frames.append(frame := recv(NOBLOCK, small))
                taken += 0 if small else len(frame)
                if len(frame) >= limits.LARGE_FRAME and not small:
                    heaps.note(frame, now)
            if router:
                many = len(frames) > 1 or (frames and len(frames[0]) > limits.STRANGER_HEADER)
                if many and not self.endpoint.admits(route, len(frames), sum(map(len, frames))):
                    error = ProtocolError(f"{len(frames)} frames, {sum(map(len, frames))} bytes, before a hello")
                    self.endpoint.garbled(route, error, now)
                    continue
            try:
                packet = decode(frames)
            except ProtocolError as exc:
                self.endpoint.garbled(route, exc, now)
            else:
                self.endpoint.receive(route, packet, now)

    def _send(self, route: Route, packet: Any, now: float) -> None:
        channel = route.channel
        sock = self._channels.get(channel)
        if sock is None:
            if "://" not in channel:
                return
            try:
                sock = self.dial(channel, channel)
            except (ValueError, zmq.ZMQError) as exc:  # somebody advertises what is no address; or no socket is left
                address, error = channel[: limits.MAX_NAME], str(exc)[: limits.MAX_REASON]
                self.log.warning("peer.undialled", address=address, error=error)
                self.endpoint.undelivered(route, now)
                return
        try:
            frames = encode(packet)
        except ProtocolError as exc:
            self.log.error("packet.unsent", channel=channel, error=str(exc))
            self._dirty = True
            self.endpoint.undeliverable(route, exc, now)
            return
        last = len(frames) - 1
        try:
            if channel in self._routers:
                sock.send(route.hop, MORE)
            if not last:
                sock.send(frames[0], NOBLOCK)
                return
            sock.send(frames[0], MORE)
            for i in range(1, last + 1):
                sock.send(_received(frames[i]), NOBLOCK if i == last else MORE, copy=False)
        except zmq.ZMQError as exc:
            if exc.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.endpoint.undelivered(route, now)


def _received(data: Any) -> Any:
    """What is passed on as it came: the frame itself, which ZeroMQ shares, not a buffer whose end it has to report."""
    frame: Any = data.obj if type(data) is memoryview else None
    return frame if type(frame) is zmq.Frame and len(frame) == data.nbytes else data
