"""The one driver: sockets in, an endpoint's decisions, sockets out.

A turn waits for sockets, drains them up to a bound, lets the endpoint decide, does its commands and sends one packet
per destination. The sockets belong to whichever thread drives: a background thread normally, but a thread that waits
for something (`drive`) takes them and turns the loop itself, which saves a hand-over between threads in each round
trip. ``lock`` guards the machine and is not held while waiting.
"""

from __future__ import annotations

# the same without wrappers that turn handlers into enumeration members, four times a round trip
import _signal  # type: ignore[import-not-found]
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

from zdist import limits
from zdist.core.endpoint import Dial, Endpoint, Redial
from zdist.core.machine import Log
from zdist.errors import ClusterClosed
from zdist.transport import sockets
from zdist.transport.channels import Channels
from zdist.transport.memory import heaps

__all__ = ["Loop"]

PARK = 0.02  # the background thread leaves the sockets alone for so long after a guest has driven
NAP = 0.004  # and looks in this interval whether something waits to be sent,
LOOK_AGAIN: Final = 0.25  # or in this one while a guest drives, less and less often if it is still the same

MANY_CORES: Final = len(os.sched_getaffinity(0)) > 1

SIGINT: Final = int(signal.SIGINT)


class Loop(Channels):
    """Sockets, a poller and the turn; see the module's text. ``execute`` does the commands that are not the loop's."""

    now = staticmethod(time.monotonic)

    def __init__(
        self,
        endpoint: Endpoint,
        execute: Callable[[Any], None],
        *,
        name: str,
        context: sockets.Context | None = None,
    ) -> None:
        super().__init__(endpoint, context or sockets.common.enter(), name)
        self.execute = execute
        self.lock = threading.RLock()
        self._shares = context is None
        self.failure: BaseException | None = None
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        heaps.join()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._polling = False
        self._turns = threading.Condition(threading.Lock())
        self._driving = False
        self._yielding = False  # the background thread drives, which makes way for guests
        self._guest = 0  # the thread in `drive` that has the sockets
        self._guests = 0  # threads in `drive` that wait for the sockets
        self._last_guest = 0.0
        self.imminent: Callable[[], bool] | None = None  # is what is waited for expected at once?
        self._quick = False  # it came quickly the last time
        self._interrupted = False
        self._closed = False
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    # --- one turn ----------------------------------------------------------------------------------

    def _turn(self, timeout: float | None, until: Callable[[], bool] | None = None) -> None:
        """Send what is ready, wait for sockets at most ``timeout`` seconds, take in and answer what came; the answers
        wait for the next turn if ``until()`` is true at once."""
        with self.lock:
            now = time.monotonic()
            if self._dirty:
                self._settle(now)
            heaps.sweep(now)
            self._listeners.look(now)
            pause = min(self.endpoint.deadline(), heaps.due, self._listeners.due) - now
            if timeout is not None and timeout < pause:
                pause = timeout
            self._polling = True
            if self._dirty or (self._guests and self._yielding):
                pause = 0  # seen after _polling is set: who came before it, by `wake` or as a guest, wrote no wake-up
        ready = self._wait(pause)
        with self.lock:
            self._polling = False
            now = time.monotonic()
            for sock, _event in ready:
                if sock == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake_fd)
                else:
                    self._drain(sock, now)
            if until is not None and until():
                self._dirty = True
            else:
                self._settle(now)

    def _wait(self, pause: float) -> list[Any]:
        """What is ready, within ``pause`` seconds. What has come quickly of late, and is ``imminent`` again, is looked
        for a moment without sleeping: waking up costs more than that."""
        poll = self._poller.poll
        # rounded up: a loop that wakes just before its deadline would spin until it is there
        longest = -1 if pause == float("inf") else 0 if pause <= 0 else int(pause * 1000) + 1
        if self.imminent is None or self._yielding or pause <= 0 or not self.imminent():
            return poll(longest)
        began = time.monotonic()
        while self._quick and time.monotonic() - began < limits.LOOK_OUT:
            if ready := poll(0):
                return ready
        ready = poll(longest)
        self._quick = MANY_CORES and time.monotonic() - began < 3 * limits.LOOK_OUT
        return ready

    def _settle(self, now: float) -> None:
        """End of a turn: timers, commands, and one packet per destination."""
        self._dirty = False
        endpoint = self.endpoint
        endpoint.turn(now)
        while endpoint.commands:
            commands = endpoint.commands[:]
            endpoint.commands.clear()
            for command in commands:
                self._do(command)
        for route, packet in endpoint.flush(now):
            self._send(route, packet, now)

    def _do(self, command: Any) -> None:
        kind = type(command)
        if kind is Log:
            getattr(self.log, command.level)(command.event, **command.fields)
        elif kind is Dial:
            self.dial(command.channel, command.address)
        elif kind is Redial:
            if command.channel in self._addresses:
                self.dial(command.channel, self._addresses[command.channel])
        else:
            self.execute(command)

    # --- who drives ----------------------------------------------------------------------------------

    def wake(self) -> None:
        """After a machine call from another thread: what it queued is sent soon (at once if somebody waits in poll)."""
        self._dirty = True
        if self._polling:
            self._polling = False
            os.eventfd_write(self._wake_fd, 1)
        elif self._thread is None and not self._driving:
            with self._turns:
                self._turns.notify_all()

    def interrupt(self) -> None:
        """Make whoever drives look at its ``until`` now; safe in a signal handler."""
        os.eventfd_write(self._wake_fd, 1)

    def hand_over(self) -> None:
        """The calling thread will be busy for long: the background thread takes the sockets now."""
        self._last_guest = 0.0
        if self._driving:
            self.wake()
        else:
            with self._turns:
                self._turns.notify_all()

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """Turn the loop in the calling thread until ``until()`` or the timeout (seconds); what ``until()`` then says.

        At least one turn is made. If another thread drives, wait and look again after each of its turns; with a
        timeout of 0 return at once. Raises ClusterClosed when the loop is closed, or in a forked child.
        """
        if self._pid != os.getpid():
            raise ClusterClosed("sockets do not survive a fork; make a new Client in the child process")
        began = time.monotonic()
        end = None if timeout is None else began + timeout
        handler: Any = None
        try:
            if not self._take_over(until, end):
                return until()
            # Ctrl-C must not strike in the middle of a transition: it is noted, and handled between two turns
            if threading.current_thread() is threading.main_thread():
                found = _signal.getsignal(SIGINT)
                if callable(found):
                    _signal.signal(SIGINT, self._note_interrupt)
                    handler = found
            while True:
                left = None if end is None else end - time.monotonic()
                self._turn(left if left is None or left > 0 else 0, until)
                if self._interrupted and handler is not None:
                    self._interrupted = False
                    handler(SIGINT, None)  # raises KeyboardInterrupt, unless somebody wants it otherwise
                if until() or (left is not None and left <= 0):
                    return until()
                if self._closed or self.failure is not None:
                    raise self._over()
                if self._guests:
                    with self._turns:
                        self._turns.notify_all()
        except zmq.ZMQError as exc:
            raise self._over() from exc
        finally:
            if self._guest == threading.get_ident():
                with self._turns:
                    self._driving, self._guest = False, 0
                    self._last_guest = time.monotonic()
                    if self._guests or self._last_guest - began > LOOK_AGAIN:  # the background thread looks seldom now
                        self._turns.notify_all()
            if handler is not None:
                _signal.signal(SIGINT, handler)
                if self._interrupted:  # since the last turn
                    self._interrupted = False
                    handler(SIGINT, None)

    def _note_interrupt(self, _number: int, _frame: Any) -> None:
        self._interrupted = True
        self.interrupt()

    def _take_over(self, until: Callable[[], bool], end: float | None) -> bool:
        """Wait for the sockets; False if ``until()`` came true, or the time ran out, before they were free."""
        with self._turns:
            while True:
                if self._closed or self.failure is not None:
                    raise self._over()
                if not self._driving:
                    self._guest = threading.get_ident()
                    self._driving = self._dirty = True
                    return True
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._guests += 1
                try:
                    if self._polling and self._yielding:
                        os.eventfd_write(self._wake_fd, 1)
                    self._turns.wait(left)
                finally:
                    self._guests -= 1
                if until():
                    return False

    def _over(self) -> ClusterClosed:
        return ClusterClosed(
            f"{self.name} is closed" if self.failure is None else f"{self.name} failed: {self.failure!r}"
        )

    def start(self) -> None:
        """Start the background thread, which drives whenever nobody else does."""
        self._thread = threading.Thread(target=self._background, name=f"zdist-{self.name}", daemon=True)
        self._thread.start()

    def _background(self) -> None:
        while not self._closed:
            long = LOOK_AGAIN
            with self._turns:
                while self._driving or self._guests or time.monotonic() - self._last_guest < PARK:
                    if self._closed:
                        return
                    guest, driven = self._last_guest, self._driving
                    self._turns.wait(long if driven else NAP)
                    long = min(2 * long, 8 * LOOK_AGAIN) if driven and guest == self._last_guest else LOOK_AGAIN
                    if not self._driving and not self._guests and self._must_send():
                        break
                self._driving = self._yielding = self._dirty = True
            try:
                while not (self._closed or self._guests):
                    self._turn(None)
            except BaseException as exc:
                self.failure = exc
                if not self._closed:
                    self.log.error("loop.failed", error=repr(exc), exc_info=True)
                    self.failed(exc)
                return
            finally:
                with self._turns:
                    self._driving = self._yielding = False
                    self._turns.notify_all()

    def _must_send(self) -> bool:
        machine = getattr(self.endpoint, "machine", None)
        if machine is None:
            return False
        due = machine.deadline()  # what a machine groups at the end of a turn shows as a deadline that has passed
        return bool(machine.out) or (due is not None and due <= time.monotonic())

    def failed(self, exc: BaseException) -> None:
        """Hook: the background thread has met a defect and has ended."""

    # --- end ---------------------------------------------------------------------------------------

    def close(self, timeout: float = 1.0) -> None:
        """Flush, stop the background thread and close every socket within ``timeout`` seconds; idempotent."""
        with self._turns:
            if self._closed:
                return
            self._closed = True
            self._turns.notify_all()
        if self._pid != os.getpid():
            return
        os.eventfd_write(self._wake_fd, 1)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        with self._turns:
            deadline = time.monotonic() + timeout
            while self._driving and time.monotonic() < deadline:
                os.eventfd_write(self._wake_fd, 1)
                self._turns.wait(0.01)
        with self.lock:
            if self.failure is None:
                with contextlib.suppress(zmq.ZMQError):
                    self._settle(time.monotonic())
            self._listeners.shut()
            for channel, sock in self._channels.items():
                sock.close(0 if "://" in channel else int(timeout * 1000))  # a peer may be out of reach for ever
            self._channels.clear()
            if self._shares:
                sockets.common.leave(self.context)
            else:
                self.context.term()
            os.close(self._wake_fd)
            heaps.leave()
