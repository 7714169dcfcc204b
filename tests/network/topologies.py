"""The networks that the laboratory knows: what lies between client, broker and two workers, each on its own host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab import BULK, PROXY, Agent, Lab

__all__ = ["TOPOLOGIES", "Stage", "Topology", "stage"]

HOSTS: Final = ("broker", "client", "w1", "w2")
WORKERS: Final = ("w1", "w2")
SLOW: Final = 400.0  # Mbit/s of a slow wire,
DELAY: Final = 5.0  # and milliseconds that it adds in each direction
NEVER: Final = 1 << 40
CUT_AFTER: Final = 24 << 20  # bytes between client and workers after which `cut` cuts
ATTEND: Final = '{ "w1", "w2" }'
TO_WORKERS: Final = f'iifname "client" oifname {ATTEND}'
FROM_WORKERS: Final = f'iifname {ATTEND} oifname "client"'
CUT: Final = ("quota cut { over %d bytes }",)
BEYOND: Final = 'quota name "cut"'


@dataclass(frozen=True)
class Topology:
    """Rules of the router, and what a warm ``direct=None`` may use for large data: by peer, by relay."""

    name: str
    text: str
    peer: Sequence[str] = WORKERS  # workers whose peer path is open
    large: Sequence[str] = ("peer",)  # paths that carry most of the bytes
    forward: Sequence[str] = ()
    objects: Sequence[str] = ()
    mark: Sequence[str] = ()
    incoming: Sequence[str] = ()
    outgoing: Sequence[str] = ()
    slow: str = ""  # "broker": what goes over its wire; "marked": what is marked, towards the client
    delay: float = 0.0
    advertise: dict[str, str] = field(default_factory=dict)
    ports: str = "40000-40100"
    busy: str = ""  # what the workers' threads do while their data is gathered: "python", "gil"
    certain: bool = True  # how long anything takes is no matter of chance: a probe of an open path is answered in time
    cut: bool = False  # the peer path is cut in the middle of the first transfer

    def rules(self, lab: Lab, after: int = 0) -> None:
        """Put the rules in force; those of a cut path once so many bytes have passed."""
        objects = [text % after if "%d" in text else text for text in self.objects]
        groups = {"objects": objects, "mark": self.mark, "incoming": self.incoming, "outgoing": self.outgoing}
        lab.firewall(*self.forward, **groups)


def _redirect(rule: str) -> tuple[str, ...]:
    return (f"{rule} meta l4proto tcp redirect to :{PROXY}",)


BROKER: Final = "10.77.1.2"
CLIENT: Final = "10.77.2.2"
DROPPED: Final = (f"{TO_WORKERS} drop", f"{FROM_WORKERS} drop")
CLOSED: Final[dict[str, Any]] = {"peer": (), "large": ("relay",)}

_ALL: Final = (
    Topology("open", "everybody reaches everybody", large=("peer", "relay")),
    Topology(
        "nat-client",
        "the client is behind NAT and reaches only the broker",
        **CLOSED,
        forward=('iifname "client" oifname != "broker" reject', 'oifname "client" ct state new drop'),
        outgoing=('oifname "broker" ip saddr 10.77.2.0/24 masquerade',),
    ),
    Topology(
        "nat-workers",
        "the workers are behind NAT: they reach the broker, nobody reaches them",
        **CLOSED,
        forward=(f"oifname {ATTEND} ct state new drop",),
        outgoing=('oifname "broker" ip saddr { 10.77.3.0/24, 10.77.4.0/24 } masquerade',),
    ),
    Topology(
        "cut",
        "the peer path falls silent in the middle of a transfer",
        **CLOSED,
        objects=CUT,
        forward=(f"{FROM_WORKERS} {BEYOND} drop", f"{TO_WORKERS} {BEYOND} drop"),
        cut=True,
    ),
    Topology(
        "cut-reset",
        "the peer connections are reset in the middle of a transfer, and refused from then on",
        **CLOSED,
        objects=CUT,
        forward=tuple(f"{way} {BEYOND} meta l4proto tcp reject with tcp reset" for way in (FROM_WORKERS, TO_WORKERS)),
        cut=True,
    ),
    Topology("blackhole", "what goes from client to workers is dropped, without refusal", **CLOSED, forward=DROPPED),
    Topology(
        "refused",
        "connections from client to workers are refused",
        **CLOSED,
        forward=(f"{TO_WORKERS} meta l4proto tcp reject with tcp reset",),
    ),
    Topology(
        "one-way", "what workers send to the client directly is dropped", **CLOSED, forward=(f"{FROM_WORKERS} drop",)
    ),
    Topology(
        "lossy",
        "one packet in fifty between client and workers is lost",
        large=("peer", "relay"),
        certain=False,
        forward=tuple(f"{way} numgen random mod 100 < 2 drop" for way in (FROM_WORKERS, TO_WORKERS)),
    ),
    Topology(
        "slow-broker",
        "a slow broker link, a fast peer link",
        slow="broker",
        delay=DELAY,
        incoming=_redirect(f'iifname != "broker" ip daddr {BROKER}'),
    ),
    Topology(
        "slow-peer",
        "a fast broker, a slow peer link",
        large=("relay",),
        slow="marked",
        delay=DELAY,
        mark=(f'iifname "client" ip daddr != {BROKER} ct mark set 7',),
        incoming=_redirect(f'iifname "client" ip daddr != {BROKER}'),
    ),
    Topology(
        "mixed",
        "one of two workers can be reached",
        peer=("w2",),
        large=("peer", "relay"),
        forward=('iifname "client" oifname "w1" drop',),
    ),
    Topology(
        "wrong-refused",
        "the workers advertise an address where nobody listens",
        **CLOSED,
        advertise={"w1": "10.77.3.1", "w2": "10.77.4.1"},
    ),
    Topology(
        "wrong-other",
        "one worker advertises the address of the other",
        peer=("w2",),
        large=("peer", "relay"),
        advertise={"w1": "10.77.4.2"},
        ports="40000-40000",
    ),
    Topology(
        "wrong-unroutable",
        "the workers advertise addresses that lead nowhere",
        **CLOSED,
        advertise={"w1": "198.51.100.1", "w2": "198.51.100.2"},
    ),
    Topology(
        "busy-python", "the workers' threads run pure Python", large=("peer", "relay"), busy="python", certain=False
    ),
    Topology(
        "busy-gil",
        "the workers' threads hold the interpreter's lock in C",
        large=("peer", "relay"),
        busy="gil",
        certain=False,
    ),
)
TOPOLOGIES: Final = {topology.name: topology for topology in _ALL}
RELAY_CUT: Final = Topology(
    "relay-cut",
    "the way to the broker's bulk socket falls silent in the middle of a transfer",
    objects=CUT,
    forward=(
        f'iifname "client" ip daddr {BROKER} tcp dport {BULK} {BEYOND} drop',
        f'oifname "client" ip saddr {BROKER} tcp sport {BULK} {BEYOND} drop',
    ),
    cut=True,
)


class Stage:
    """A topology with everybody on it."""

    def __init__(self, topology: Topology, lab: Lab) -> None:
        self.topology = topology
        self.lab = lab
        self.token = ""
        self.patience = 60.0  # seconds for one answer
        self.agent: Agent = lab.agent()

    def connect(self, **options: Any) -> None:
        """A new client, once both workers are there."""
        self.agent.ask("connect", address=self.lab.address, workers=len(WORKERS), token=self.token, **options)

    def prepare(self, *groups: tuple[int, int], workers: Sequence[str] = WORKERS) -> None:
        """Results on the workers: (count, bytes) of each; then the workers are as busy as the topology says."""
        self.idle()
        self.agent.ask("prepare", self.patience, groups=groups, workers=workers)
        if self.topology.busy:
            flag = str(self.flag)
            self.agent.ask("busy", kind=self.topology.busy, flag=flag, workers=WORKERS)

    @property
    def flag(self) -> Path:
        return self.lab.folder / "busy"

    def idle(self) -> None:
        """End what keeps workers busy."""
        if self.flag.exists():
            self.agent.ask("idle", flag=str(self.flag))
            for path in self.lab.folder.glob("busy.*"):
                path.unlink()

    def rules(self, after: int = 0) -> None:
        """Begin anew to count the bytes after which the path is cut."""
        self.topology.rules(self.lab, after)

    def gather(self, direct: bool | None = None, **options: Any) -> dict[str, Any]:
        """Gather all that was prepared, by the connected client."""
        return dict(self.agent.ask("gather", self.patience, direct=direct, **options))

    def fresh(self, direct: bool | None = None, **options: Any) -> dict[str, Any]:
        """The same by a client that is made for it."""
        return dict(self.agent.ask("fresh", self.patience, direct=direct, **options))


@contextmanager
def stage(topology: Topology | str, own_shm: bool = True, left: list[str] | None = None) -> Iterator[Stage]:
    """Set a topology up; at its end everything is gone, and what was ``left`` behind is told."""
    found = TOPOLOGIES[topology] if isinstance(topology, str) else topology
    lab = Lab(own_shm)
    try:
        for name in HOSTS:
            lab.host(name)
        found.rules(lab, NEVER)  # before anybody connects: NAT looks at first packets only
        if found.delay:
            lab.delay(found.delay)
        if found.slow == "broker":
            lab.shape(lab.router, "broker", SLOW)
            lab.shape(lab.hosts["broker"], "eth0", SLOW)
        elif found.slow:
            lab.shape_marked("client", SLOW)
        lab.broker()
        for name in WORKERS:
            lab.node(name, advertise=found.advertise.get(name, ""), ports=found.ports)
        there = Stage(found, lab)
        there.token = Path(lab.token_file).read_text().strip()
        there.connect()
        yield there
        there.idle()
        there.agent.ask("close")
    except Exception as exc:
        exc.add_note(f"topology {found.name}; the last of the log:\n{lab.logged()}")
        raise
    finally:
        remains = lab.close()
        if left is not None:
            left += remains
