"""What to change, for each thing that can be wrong between a client, a broker and workers."""

from __future__ import annotations

from typing import Final

__all__ = ["ADVICE", "advice"]

_OPEN_PORTS: Final = (
    "Open the workers' ports for this machine: `zdist worker --data-ports LO-HI` fixes them, and the firewall of their "
    "host (or the cloud's) has to let them through."
)
_ADVERTISE: Final = (
    "Start the node with `--advertise HOST`, a name or IP under which this machine reaches it; behind NAT, give it "
    "`--data-ports LO-HI` as well and forward these ports."
)

ADVICE: Final = {
    # the broker
    "broker-unresolved": "Check the spelling; use the IP, or add the name to the DNS or /etc/hosts of this machine.",
    "broker-refused": "Start `zdist broker` there; compare host and port with the line it prints. One that listens "
    "on the loopback is reached from its own machine only (`--bind tcp://HOST:PORT --insecure` changes that).",
    "broker-dropped": "Open the port in the firewall between this machine and the broker; check that the host is up.",
    "broker-no-route": "Check the network of this machine and the host's address.",
    "broker-foreign": "Another program has this port: compare host and port with the line that `zdist broker` printed.",
    "broker-mute": "See whether the broker's process runs or is stopped (Ctrl-Z, a debugger), and whether the port is "
    "the broker's.",
    "broker-missing": "Start `zdist broker` with this path, on this machine; ipc does not reach further.",
    "broker-denied": "Run as the user who started the broker, or bind it to a tcp address.",
    "broker-stranger": "Give the control address, which is the one that `zdist broker` prints; the relay and the "
    "workers have sockets of their own. If it is that one, the broker hangs: see its log.",
    "broker-refusal": "See the broker's log.",
    "broker-lost": "See the broker's log: it answered at first and then no more.",
    "token-missing": "Run as the user who started the broker, or copy its token file here and give `--token-file` (or "
    "the token itself in ZDIST_TOKEN).",
    "token-wrong": "The broker has got another token since, or it is that of another broker: copy its token file anew, "
    "and look for a ZDIST_TOKEN that is left over.",
    "token-file": "Give the path of a token file that only this user can read (chmod 600).",
    "version": "Install the same version of zdist here and there.",
    "relay-closed": "Let the broker bind its relay to a fixed port (broker.bulk_bind in its YAML file) and open that "
    "too; or set broker.address to a host that this machine can reach. Without it data comes by peer paths only.",
    "relay-deaf": "See the worker's log: its connection to the broker's relay is broken, or slower than --timeout.",
    "no-workers": "Start some: `zdist worker ADDRESS`. If they run, see their logs: they say why they do not get here.",
    # the workers' own sockets
    "peer-none": "It has no socket for data; data goes by relay.",
    "peer-loopback": _ADVERTISE,
    "peer-unresolved": "Start the node with `--advertise IP`, or make its host's name known to this machine (DNS, "
    "/etc/hosts).",
    "peer-refused": f"{_ADVERTISE} If the address is right, a firewall rejects it. {_OPEN_PORTS}",
    "peer-dropped": f"{_OPEN_PORTS} Or the address is one that cannot be reached from here: `--advertise HOST`.",
    "peer-no-route": _ADVERTISE,
    "peer-foreign": f"Another program answers at the advertised address. {_ADVERTISE}",
    "peer-mute": "See whether the worker's process is stopped; or another program answers at the advertised address.",
    "peer-missing": "Its socket file is gone: was the runtime directory cleaned up? Restart the node.",
    "peer-denied": "The worker runs as another user: have it listen on tcp (`--advertise HOST`).",
    "peer-stranger": "Several nodes advertise one address (NAT?): give each `--data-ports LO-HI` of its own, forwarded "
    "to it, and `--advertise HOST`.",
    "peer-token": f"A worker of another cluster answers there. {_ADVERTISE}",
    "peer-silent": "The socket is there but the worker does not answer: a task holds its GIL in C code, or its process "
    "is stopped or overloaded. Look again when it is idle.",
    "peer-deaf": "Small packets pass and large ones do not, or it is slower than --timeout: check the MTU on the way "
    "(VPN, overlay network).",
}


def advice(fault: str) -> str:
    """What to do about it, in a sentence or two; "" if that is up to the reader."""
    return ADVICE.get(fault, "")
