"""Readers of the relay that behave badly, and what they make of the broker's memory."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import zmq

from zdist import Client, Future, LocalCluster
from zdist.limits import CHUNK
from zdist.protocol.codec import decode, encode
from zdist.protocol.messages import BulkHello, Get, Hello, Message, Packet, Ping, Welcome


def block(i: int, nbytes: int) -> Any:
    """A value that fits in no cache, and tells which it is."""
    return np.full(nbytes // 8, i, "i8")


def broker_pid() -> int:
    """The broker process of this process's only local cluster."""
    (found,) = [p.pid for p in psutil.Process().children() if "zdist_broker" in " ".join(p.cmdline())]
    return found


class BrokerMemory:
    """How much the broker's resident memory grows, from here to its highest point."""

    def __init__(self, pid: int) -> None:
        self.status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the highest point is what it is now
        self.start = self._read("VmRSS")

    def _read(self, name: str) -> int:
        for line in self.status.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) << 10
        raise AssertionError(f"{self.status} does not tell {name}")

    @property
    def growth(self) -> int:
        """Bytes."""
        return self._read("VmHWM") - self.start


class RawReader:
    """A client without manners: it asks the relay for everything at once, reads nothing and never says Taken."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.session = f"c-{secrets.token_hex(8)}"
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.token = cluster.token
        self.control = self._dial(cluster.broker_address)
        self._say(self.control, Hello("client", self.token, 0, 0, {"name": "raw", "host": "", "pid": os.getpid()}))
        welcome = self._hear(self.control)
        assert isinstance(welcome, Welcome)
        self.bulk = self._dial(str(welcome.info["bulk"]))
        self._say(self.bulk, BulkHello(self.token))
        self.req = 0

    def _dial(self, address: str) -> zmq.Socket[bytes]:
        sock = self.context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RCVHWM, 1)  # what is not read stays with the broker
        sock.connect(address)
        return sock

    def _say(self, sock: zmq.Socket[bytes], *messages: Message) -> None:
        sock.send_multipart(encode(Packet(self.session, 0, 0, messages)))

    def _hear(self, sock: zmq.Socket[bytes]) -> Message:
        assert sock.poll(10_000), "the broker does not answer"
        return decode(sock.recv_multipart()).messages[0]

    def ping(self) -> None:
        """Stay alive for the broker."""
        self._say(self.control, Ping())

    def ask(self, futures: list[Future], nbytes: int) -> None:
        """Ask for all of these, a chunk with each request."""
        for future in futures:
            holder = future._entry.outcome[4][0]
            for offset in range(0, nbytes, CHUNK):
                self.req += 1
                row = (future.key, offset, min(CHUNK, nbytes - offset))
                self._say(self.bulk, Get(self.req, "", holder, self.session, (row,)))

    def __enter__(self) -> RawReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.context.destroy(0)


class Reader:
    """A client process that gathers by relay, all keys ``rounds`` times, once it is told to go."""

    def __init__(self, cluster: LocalCluster, keys: list[str], rounds: int = 1) -> None:
        code = (
            "import sys; from zdist import Client, Future; "
            "client = Client(sys.argv[1], token=sys.argv[2], set_as_default=False); "
            "futures = [Future(key, client) for key in sys.argv[4:]]; "
            "print('ready', flush=True); sys.stdin.readline()\n"
            "for _ in range(int(sys.argv[3])):\n"
            "    for value in client.gather(iter(futures), direct=False): print(len(value), flush=True)"
        )
        command = [sys.executable, "-c", code, cluster.broker_address, cluster.token, str(rounds), *keys]
        self.process = subprocess.Popen(  # unbuffered: `communicate` does not see what a buffer has taken in
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def ready(self) -> None:
        """Wait until it is connected."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == b"ready"

    def go(self) -> None:
        """Begin."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def stop_after_the_first(self) -> None:
        """Begin, and stop it after its first value; the next ones are on their way then."""
        self.ready()
        self.go()
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip(), "the reader has read nothing"
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> list[str]:
        """What it prints until its end."""
        self.process.send_signal(signal.SIGCONT)
        return self.process.communicate(timeout=60)[0].decode().split()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


def relay_all(client: Client, futures: list[Future], nbytes: int) -> None:
    """Bring these home by relay, one after the other in the hands of the caller, none kept."""
    for i, value in enumerate(client.gather(iter(futures), direct=False)):
        assert value.nbytes == nbytes and value[0] == value[-1] == i, f"value {i} is damaged"
