"""A network of our own in one machine: hosts as namespaces, wires as veth pairs, a router with a firewall, and in them
real brokers, nodes and clients.

Each host is a network and a mount namespace (with a /dev/shm of its own) that lives as long as one process, and each
process lives as long as its standard input. So nothing needs a name outside, and everything is gone with the process
that made the lab, however that ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["Agent", "Host", "Lab", "LabError", "RemoteError", "namespaces_refused"]

HERE: Final = Path(__file__).parent
START: Final = 30.0  # seconds that a process may take until it is there
END: Final = 10.0  # and until it has ended
NET: Final = "10.77"
CONTROL: Final = 7077
BULK: Final = 7078
PROXY: Final = 7099
BURST: Final = "256kb"  # of a shaped wire; more than the largest packet that a veth hands over
QUEUE: Final = "20ms"  # what a shaped wire keeps waiting before it drops


class LabError(Exception):
    """The laboratory itself does not work."""


class RemoteError(Exception):
    """What an agent was asked for has raised; the first argument is the type's name."""


def tool(name: str) -> str:
    """Path of an administrator's program. Raises LabError where it is not installed."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise LabError(f"{name} is not installed; the packages iproute2, nftables and util-linux have what is needed")
    return found


def run(command: Sequence[str], given: str = "") -> str:
    """Run a program to its end. Raises LabError with what it wrote if it fails."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=START)
    if done.returncode:
        raise LabError(f"{' '.join(command)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@functools.cache
def namespaces_refused() -> str:
    """Why there can be no laboratory here; empty if there can."""
    try:
        with Lab() as lab:
            lab.host("probe")
            lab.firewall("tcp dport 9 drop")
            lab.shape(lab.router, "probe", 100)
    except (LabError, OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return ""


class Process:
    """A process that ends when its standard input closes; ``line`` reads what it says."""

    def __init__(self, what: str, command: Sequence[str], env: dict[str, str] | None = None, log: Any = None) -> None:
        self.what = what
        self.buffer = b""
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0, env=env,
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def line(self, timeout: float = START) -> str:
        """The next line. Raises LabError when it ends or says nothing for so many seconds."""
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            if not select.select([self.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise LabError(f"{self.what} has said nothing for {timeout:g} s")
            data = os.read(self.stdout.fileno(), 1 << 16)
            if not data:
                raise LabError(f"{self.what} has ended with code {self.process.wait(END)}")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def say(self, line: str) -> None:
        self.stdin.write(line.encode() + b"\n")

    def close(self, kill: bool = False) -> None:
        """Let it end; whoever stays is killed. Idempotent."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        if kill:
            self.process.kill()
        try:
            self.process.wait(END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.stdout.close()


class Host:
    """A machine: namespaces for network and mounts, held by a process. ``folder`` is removed with it, however that
    ends; ``router`` is the one whose /dev/shm is seen instead of its own if that is wanted."""

    def __init__(self, name: str, number: int, folder: Path | None = None, router: Host | None = None) -> None:
        self.name = name
        self.address = f"{NET}.{number}.2"
        self.gateway = f"{NET}.{number}.1"
        begin = 'mount -t tmpfs -o mode=1777 tmpfs /dev/shm && "$0" link set lo up && echo up && '
        begin += "exec cat" if folder is None else 'cat; rm -rf "$1"'
        command = [tool("unshare"), "--net", "--mount", "sh", "-c", begin, tool("ip"), str(folder or "")]
        self.holder = Process(f"host {name}", command, log=subprocess.STDOUT)
        try:
            if (said := self.holder.line()) != "up":
                raise LabError(f"no namespaces for host {name}: {said}")
        except LabError:
            self.holder.close(kill=True)
            raise
        self.pid = self.holder.process.pid
        self.shared = self.pid if router is None else router.pid

    def inside(self, command: Sequence[str], own_shm: bool = True) -> list[str]:
        """The command, to be run on this host; without ``own_shm`` it sees a /dev/shm that all hosts share."""
        mounts = f"/proc/{self.pid if own_shm else self.shared}/ns/mnt"
        enter = [tool("nsenter"), f"--net=/proc/{self.pid}/ns/net", f"--mount={mounts}", f"--wdns={os.getcwd()}"]
        return [*enter, "--", *command]

    def run(self, *command: str, given: str = "") -> str:
        return run(self.inside([tool(command[0]), *command[1:]]), given)


class Lab:
    """Hosts around a router. Use as a context manager; everything made here ends with it.

    ``own_shm``: each host has a /dev/shm of its own, as machines have; else all see one.
    """

    def __init__(self, own_shm: bool = True) -> None:
        self.own_shm = own_shm
        self.folder = Path(tempfile.mkdtemp(prefix=f"zlab-{os.environ.get('ZDIST_TEST_MARK', '')[:8]}-", dir="/tmp"))
        self.hosts: dict[str, Host] = {}
        self.processes: list[Process] = []
        self.agents: list[Agent] = []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ZDIST_") or "TEST" in k}
        self.environment["ZDIST_RUNTIME_DIR"] = str(self.folder / "run")
        self.token_file = str(self.folder / "token")
        self.log = open(self.folder / "log", "ab")  # noqa: SIM115 (closed with the lab)
        try:
            self.router = Host("router", 0, self.folder)
            settings = {"ip_forward": 1, "icmp_ratelimit": 0}  # refusals are told each time
            for name, number in settings.items():
                self.router.run("sh", "-c", f"echo {number} > /proc/sys/net/ipv4/{name}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the network ---------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """A new host with a wire to the router, whose end there is called like the host."""
        number = len(self.hosts) + 1
        host = self.hosts[name] = Host(name, number, router=self.router)
        wire = f"link add {name} type veth peer name eth0 netns {host.pid}"
        self.router.run("ip", *wire.split())
        self.router.run("ip", "address", "add", f"{host.gateway}/24", "dev", name)
        self.router.run("ip", "link", "set", name, "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", host.gateway)
        return host

    def firewall(
        self,
        *forward: str,
        objects: Sequence[str] = (),
        mark: Sequence[str] = (),
        incoming: Sequence[str] = (),
        outgoing: Sequence[str] = (),
    ) -> None:
        """Replace the router's rules: for what passes through (with the named ``objects`` that these use), for
        addresses on their way in and out, and to mark connections (``ct mark set 7``: see `shape_marked`)."""
        chains: dict[tuple[str, str, str], tuple[Sequence[str], Sequence[str]]] = {
            ("inet", "marks", "filter hook prerouting priority -150"): ([], mark),
            ("ip", "incoming", "nat hook prerouting priority -100"): ([], incoming),
            ("inet", "passing", "filter hook forward priority 0"): (objects, forward),
            ("ip", "outgoing", "nat hook postrouting priority 100"): ([], outgoing),
            ("inet", "shaped", "filter hook postrouting priority 200"): ([], ["ct mark 7 meta priority set 1:2"]),
        }
        text = "flush ruleset\n"
        for (family, name, hook), (declared, inside) in chains.items():
            body = "\n".join([*declared, "chain c {", f"type {hook}; policy accept;", *inside, "}"])
            text += f"table {family} {name} {{\n{body}\n}}\n"
        self.router.run("nft", "-f", "-", given=text)

    def passed(self, quota: str) -> int:
        """Bytes that a quota of the firewall has counted."""
        listed = json.loads(self.router.run("nft", "-j", "list", "quotas"))["nftables"]
        return sum(int(entry["quota"]["used"]) for entry in listed if entry.get("quota", {}).get("name") == quota)

    def shape(self, host: Host, device: str, mbit: float) -> None:
        """Limit what leaves a host by a device, in Mbit/s."""
        limit = ["tbf", "rate", f"{mbit:g}mbit", "burst", BURST, "latency", QUEUE]
        host.run("tc", "qdisc", "replace", "dev", device, "root", *limit)

    def shape_marked(self, device: str, mbit: float) -> None:
        """Limit what leaves the router by a device and belongs to marked connections, in Mbit/s."""
        qdisc = f"qdisc replace dev {device} root handle 1: htb default 1"
        self.router.run("tc", *qdisc.split())
        for minor, rate in ((1, 40_000.0), (2, mbit)):
            line = f"class replace dev {device} parent 1: classid 1:{minor} htb rate {rate:g}mbit burst {BURST}"
            self.router.run("tc", *line.split())
        leaf = (
            f"qdisc replace dev {device} parent 1:2 handle 20: bfifo limit {max(262_144, int(mbit * 125_000 * 0.02))}"
        )
        self.router.run("tc", *leaf.split())

    def delay(self, milliseconds: float) -> None:
        """Start the proxy that delays what the firewall redirects to it (``redirect to :PROXY``), in each direction."""
        command = [sys.executable, "-P", str(HERE / "lab_proxy.py"), str(PROXY), str(milliseconds / 1000)]
        proxy = self._start("the proxy", self.router, command)
        if proxy.line() != "ready":
            raise LabError("the proxy did not start")

    # --- who lives in it -------------------------------------------------------------------------------

    def _start(self, what: str, host: Host, command: Sequence[str], **environment: str) -> Process:
        env = {**self.environment, **environment}
        process = Process(what, host.inside(command, self.own_shm), env, self.log)
        self.processes.append(process)
        return process

    def broker(self, inline_result: int = 0) -> str:
        """Start the broker on the host of that name; its address."""
        host = self.hosts["broker"]
        options = {
            "--bind": f"tcp://0.0.0.0:{CONTROL}", "--bulk-bind": f"tcp://0.0.0.0:{BULK}", "--advertise": host.address,
            "--token-file": self.token_file, "--inline-result": str(inline_result), "--log-format": "json",
        }  # fmt: skip
        command = [sys.executable, "-P", "-m", "zdist_broker", *(word for pair in options.items() for word in pair)]
        broker = self._start("the broker", host, [*command, "--insecure", "--lifeline"])
        broker.line()
        return self.address

    @property
    def address(self) -> str:
        return f"tcp://{self.hosts['broker'].address}:{CONTROL}"

    def node(self, name: str, workers: int = 1, advertise: str = "", ports: str = "40000-40100") -> Process:
        """Start a node on the host of that name; the workers are there when an agent's ``connect`` says so."""
        host = self.hosts[name]
        options = {
            "--control": self.address, "--token-file": self.token_file, "--name": name, "--nworkers": str(workers),
            "--data-bind": "tcp://0.0.0.0:0", "--data-ports": ports, "--advertise": advertise or host.address,
            "--log-format": "json", "--runtime": str(self.folder / "run" / name),
        }  # fmt: skip
        command = [sys.executable, "-P", "-m", "zdist.node", *(word for pair in options.items() for word in pair)]
        (self.folder / "run").mkdir(mode=0o700, exist_ok=True)
        (self.folder / "run" / name).mkdir(mode=0o700, exist_ok=True)
        return self._start(f"node {name}", host, [*command, "--insecure", "--lifeline"])

    def agent(self, host: str = "client") -> Agent:
        """A process on that host that does what clients do."""
        agent = Agent(
            self._start(f"client on {host}", self.hosts[host], [sys.executable, "-P", str(HERE / "agent.py")])
        )
        self.agents.append(agent)
        return agent

    # --- the end -----------------------------------------------------------------------------------------

    def _everywhere(self) -> list[Host]:
        """All hosts, the router last; without it if it could not be made."""
        return [*self.hosts.values(), *([self.router] if hasattr(self, "router") else [])]

    def segments(self) -> list[str]:
        """What zdist has left in the hosts' /dev/shm."""
        listed = [host.run("ls", "/dev/shm").split() for host in self._everywhere()]
        return [name for names in listed for name in names if "zdist" in name]

    def close(self) -> list[str]:
        """End everything, clients first. Returns what was left: segments and files that nobody has removed."""
        for process in reversed(self.processes):
            process.close()
        left: list[str] = []
        left += [str(p) for p in self.folder.glob("run/**/*") if not p.is_dir() and "token" not in p.name]
        with contextlib.suppress(LabError):
            left += self.segments()
        for host in self._everywhere():
            host.holder.close(kill=True)
        self.log.close()
        self.processes.clear()
        self.hosts.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def logged(self) -> str:
        """The last of what broker, nodes and clients have logged."""
        return (self.folder / "log").read_text(errors="replace")[-6000:]


class Agent:
    """A client's process on some host, which is asked for what `agent.py` can do."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def ask(self, what: str, patience: float = 60.0, **options: Any) -> Any:
        """Ask and wait so many seconds for the answer. Raises RemoteError if it raised there."""
        self.process.say(json.dumps([what, options]))
        good, value = json.loads(self.process.line(patience))
        if not good:
            raise RemoteError(*value)
        return value
