"""Every configuration key, its type, its default and what it means; the samples in ``conf/`` show them in use."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from zdist.errors import ConfigError
from zdist.limits import ALLOWED_DEATHS, DRAIN, INLINE_RESULT, OWN_FRAME

__all__ = ["BrokerConfig", "ClientConfig", "Config", "LoggingConfig", "NodeConfig", "parse_ports", "parse_size"]

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30,
                 "ti": 2**40}  # fmt: skip
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def parse_size(value: object) -> object:
    """Bytes from a number or a text such as "4 GiB", "500MB"; 0 stands for no limit."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError('a size is a number of bytes or a text such as "4 GiB" or "500 MB"')
        return int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    return value


def parse_ports(value: object) -> object:
    """A range of ports from "LO-HI", [LO, HI] or one port."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        low, _, high = value.partition("-")
        value = [int(part) if part.strip().isdecimal() else part for part in (low, high or low)]
    if isinstance(value, list):
        if [type(part) for part in value] != [int, int]:
            raise ValueError('ports are given as "LO-HI" or [LO, HI], for instance "40000-40100"')
        value = tuple(value)
    if isinstance(value, tuple) and not 0 < value[0] <= value[1] < 65536:
        raise ValueError("ports lie between 1 and 65535, the lower one first")
    return value


def check_address(value: object) -> object:
    """A ZeroMQ address: tcp with host and port, which is also meant without a scheme, or ipc with a path.

    ZeroMQ would take a port of more than 16 bits, and use another.
    """
    if not isinstance(value, str):
        return value
    address = value if "://" in value else f"tcp://{value}"
    if not re.fullmatch(r"tcp://.+:(\d+|\*)|ipc://.+", address):
        raise ValueError('an address is "tcp://HOST:PORT", for instance "tcp://127.0.0.1:7077", or "ipc:///PATH"')
    port = address.rpartition(":")[2]
    if address.startswith("tcp://") and port != "*" and int(port) > 65535:
        raise ValueError(f"a port is at most 65535, and {port} is more")
    return address


Address = Annotated[str, BeforeValidator(check_address)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Ports = Annotated[tuple[int, int], BeforeValidator(parse_ports)]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # YAML has lists, not tuples


class Section(BaseModel):
    """Unknown keys are errors, and a text is not taken for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BrokerConfig(Section):
    """The broker, and where others find it."""

    bind: Address = Field("tcp://127.0.0.1:7077", description="control address to listen on; port 0 takes a free one")
    bulk_bind: Address | None = Field(None, description="address for relayed data; unset: a free port beside bind")
    address: Address | None = Field(None, description="where workers and clients reach the broker; unset: as bound")
    token_file: str | None = Field(
        None, description="file of the cluster token; unset: the user's own, found by address"
    )
    insecure: bool = Field(
        False, description="allow addresses that a network can reach, also for workers' data; nothing is encrypted"
    )

    inline_result: Annotated[Size, Field(le=OWN_FRAME)] = Field(
        INLINE_RESULT, description="results up to this size travel with the news that they are there; 0: none do"
    )
    allowed_deaths: int = Field(
        ALLOWED_DEATHS, ge=0, description="workers that may die under a task before it fails with KilledWorker"
    )

    def reach(self) -> str:
        """Where to connect. Raises ConfigError if only the address to listen on is known and nobody can dial that."""
        address = self.address or self.bind
        if address.startswith("tcp://"):
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            if port in ("0", "*") or host in ("*", "0.0.0.0", "[::]"):
                raise ConfigError(f"broker.address: {address} cannot be dialled; set the host and port to connect to")
        return address


class NodeConfig(Section):
    """One node: a supervisor and its workers on one host."""

    host: str = Field("localhost", description="host that runs the node; only this machine is started by cluster up")
    name: str | None = Field(
        None, description="name of the node, prefix of its workers' names; unset: made from the host"
    )
    nworkers: int | None = Field(None, ge=1, description="worker processes; unset: one per core")
    nthreads: int = Field(1, ge=1, description="threads of each worker")
    tags: Names = Field((), description="labels that submit(workers=...) style restrictions can ask for")
    preload: Names = Field((), description="modules or .py files that each worker loads before it takes work")
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="amounts of named resources that tasks can claim, per worker"
    )
    memory_limit: Size = Field(0, description='memory of each worker, for instance "4 GiB"; 0: no limit')
    drain: float = Field(DRAIN, ge=0, description="seconds that SIGTERM leaves for tasks to end and data to be copied")
    shared_memory: Size | None = Field(
        None,
        description="shared memory that the node's workers may fill together; 0: use none; unset: half of what is free",
    )
    data_ports: Ports | None = Field(
        None, description='ports of the workers\' data sockets, "LO-HI"; unset: any free one'
    )
    advertise: str | None = Field(
        None, description="host name or IP under which others reach this node; unset: found out"
    )


class ClientConfig(Section):
    """What Client.from_yaml uses."""

    name: str | None = Field(None, description="name of the client in logs and reports")
    timeout: Annotated[float, Field(gt=0)] = Field(10.0, description="seconds to wait for the broker")
    direct_to_workers: bool | None = Field(
        None, description="true: never by relay, false: only by relay, unset: per batch"
    )
    gather_paths: Annotated[tuple[Literal["local", "shm", "peer", "relay"], ...], Field(strict=False)] | None = Field(
        None, description="paths that gather may use; unset: all"
    )
    shared_memory: Size | None = Field(
        None, description="shared memory for large arguments and scattered data; 0: none; unset: half of what is free"
    )


class LoggingConfig(Section):
    """Logs of broker and nodes."""

    format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is written")


class Config(Section):
    """All of it. ``nodes`` lists the machines of a cluster; a single worker command takes the entry of its name."""

    broker: BrokerConfig = Field(default_factory=BrokerConfig)
    nodes: Annotated[tuple[NodeConfig, ...], Field(strict=False)] = ()
    client: ClientConfig = Field(default_factory=ClientConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
