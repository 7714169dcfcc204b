"""The commands as processes: what they print, how they end, and that they work together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ports import free_port

ROOT = Path(__file__).parents[2]
ZDIST = [sys.executable, "-P", "-m", "zdist"]
DEADLINE = 30.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tokens and state files of this test alone."""
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``zdist …`` in the background; all that still run at the end get SIGTERM, then SIGKILL."""
    with contextlib.ExitStack() as stack:

        def run(*args: str, program: list[str] = ZDIST) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*program, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
            stack.callback(end, process)
            return process

        yield run


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """Its next line of standard output."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], DEADLINE)[0], "it prints nothing"
    return process.stdout.readline().rstrip("\n")


def address_of(process: subprocess.Popen[str]) -> str:
    line = line_of(process)
    found = re.search(r"\w+://\S+", line)
    assert found is not None, (line, process.stderr and process.stderr.read())
    return found[0]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run([*ZDIST, *args], capture_output=True, text=True, timeout=DEADLINE, check=False)


# --- zdist broker -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_broker_prints_one_line_and_ends_within_two_seconds(start: Start, number: signal.Signals) -> None:
    broker = start("broker", "--bind", "tcp://127.0.0.1:0")
    assert re.fullmatch(r"broker at tcp://127\.0\.0\.1:[1-9]\d*", line_of(broker))
    sent = time.monotonic()
    broker.send_signal(number)
    out, _ = broker.communicate(timeout=DEADLINE)
    assert time.monotonic() - sent < 2.0
    assert (broker.returncode, out) == (0, "")


def test_broker_keeps_its_token_where_only_its_user_can_read_it(start: Start, runtime: Path) -> None:
    address_of(start("broker", "--bind", "tcp://127.0.0.1:0"))
    (token,) = runtime.glob("token-*")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text().strip()) >= 32


def test_broker_writes_the_token_elsewhere(start: Start, tmp_path: Path, runtime: Path) -> None:
    address_of(start("broker", "--bind", "tcp://127.0.0.1:0", "--token-file", str(tmp_path / "token")))
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert not list(runtime.glob("token-*"))


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.0.2.1:0"])
def test_broker_refuses_addresses_that_a_network_can_reach(address: str) -> None:
    done = run("broker", "--bind", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{address} can be reached over a network" in done.stderr
    assert "--insecure" in done.stderr
    assert "Traceback" not in done.stderr


def test_broker_refuses_a_port_that_cannot_be() -> None:
    done = run("broker", "--bind", "tcp://127.0.0.1:99999")
    assert (done.returncode, done.stdout) == (1, "")
    assert "command line: broker.bind: a port is at most 65535, and 99999 is more" in done.stderr


def test_broker_takes_such_an_address_with_leave(start: Start) -> None:
    assert address_of(start("broker", "--bind", "tcp://0.0.0.0:0", "--insecure")).startswith("tcp://")


def test_port_in_use(start: Start) -> None:
    address = address_of(start("broker", "--bind", "tcp://127.0.0.1:0"))
    done = run("broker", "--bind", address)
    assert (done.returncode, done.stdout) == (1, "")
    port = address.rpartition(":")[2]
    assert done.stderr == f"Error: cannot listen at {address}: port {port} is in use; choose another with --bind\n"


def test_broker_logs_json_where_no_terminal_is(start: Start) -> None:
    broker = start("broker", "--bind", "tcp://127.0.0.1:0")
    address = address_of(broker)
    broker.terminate()
    _, err = broker.communicate(timeout=DEADLINE)
    records = [json.loads(line) for line in err.splitlines()]
    assert all({"event", "level", "timestamp"} <= record.keys() for record in records)
    assert any(record.get("address") == address for record in records)


def test_broker_log_format_and_level(start: Start) -> None:
    broker = start("broker", "--bind", "tcp://127.0.0.1:0", "--log-format", "console")
    address_of(broker)
    broker.terminate()
    _, err = broker.communicate(timeout=DEADLINE)
    assert "broker.up" in err
    assert not err.startswith("{")
    quiet = start("broker", "--bind", "tcp://127.0.0.1:0", "--log-level", "error")
    address_of(quiet)
    quiet.terminate()
    assert quiet.communicate(timeout=DEADLINE)[1] == ""


def test_broker_configuration_and_command_line(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, port = tmp_path / "broker.yaml", free_port()
    file.write_text("broker:\n  bind: tcp://192.0.2.1:1\nlogging:\n  level: error\n")
    monkeypatch.setenv("ZDIST_BROKER__TOKEN_FILE", str(tmp_path / "token"))
    broker = start("broker", "--config", str(file), "--bind", f"tcp://127.0.0.1:{port}")
    assert address_of(broker) == f"tcp://127.0.0.1:{port}"
    assert (tmp_path / "token").exists()


def test_bad_configuration_is_told_with_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "broker.yaml"
    file.write_text("broker:\n  bnd: tcp://127.0.0.1:0\n")
    done = run("broker", "--config", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert f'{file}:2: broker.bnd: unknown key; did you mean "bind"?' in done.stderr


# --- zdist worker -------------------------------------------------------------------------------------


def test_broker_workers_and_a_program_as_in_the_readme(start: Start, tmp_path: Path) -> None:
    """Two nodes in processes of their own; the README's example, sync and async, in a fourth."""
    address = address_of(start("broker", "--bind", "tcp://127.0.0.1:0"))
    for name in ("left", "right"):
        start("worker", address, "--nworkers", "1", "--name", name)
    program = readme_blocks("python")[1].replace("tcp://127.0.0.1:7077", address)
    assert program.count(address) == 2
    script = tmp_path / "program.py"
    script.write_text(program)
    done = start(str(script), program=[sys.executable])
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert out.splitlines() == [str([x * x for x in range(10)])] * 2


def test_worker_options_reach_the_cluster(start: Start, tmp_path: Path) -> None:
    from zdist import Client

    address = address_of(start("broker", "--bind", "tcp://127.0.0.1:0"))
    file = tmp_path / "worker.yaml"
    file.write_text("nodes:\n  - {name: alpha, nworkers: 3, nthreads: 2, tags: [from-file]}\n  - {name: beta}\n")
    options = ["--nworkers", "2", "--resource", "gpu=2", "--memory-limit", "1GiB", "--config", str(file)]
    options += ["--shared-memory", "6MB"]
    node = start("worker", address, "--name", "alpha", *options)
    with Client(address, set_as_default=False, timeout=DEADLINE) as client:
        client.wait_for_workers(2, timeout=DEADLINE)
        workers = client.scheduler_info()["workers"]
        assert len(workers) == 2
        for worker in workers.values():
            assert worker["name"].startswith("alpha")
            assert worker["nthreads"] == 2
            assert worker["memory_limit"] == 1 << 30
            assert worker["resources"] == {"gpu": 2}
            assert list(worker["tags"]) == ["from-file"]
        limits = client.run(lambda dask_worker: dask_worker.memory.limit)
        assert list(limits.values()) == [3_000_000] * 2
    node.terminate()
    node.communicate(timeout=DEADLINE)
    assert node.returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resource", "gpu"], "'gpu' is not NAME=AMOUNT"),
        (["--memory-limit", "lots"], "command line: nodes[0].memory_limit"),
        (["--shared-memory", "lots"], "command line: nodes[0].shared_memory"),
        (["--data-ports", "9-1"], "command line: nodes[0].data_ports"),
        (["--nthreads", "0"], "command line: nodes[0].nthreads"),
        (["--nworkers", "0"], "command line: nodes[0].nworkers: should be greater than or equal to 1, not 0"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot read the configuration"),
        (["--token-file", "nowhere"], "cannot read token file nowhere"),
    ],
)
def test_worker_refuses_bad_options(options: list[str], said: str) -> None:
    done = run("worker", "tcp://127.0.0.1:1", *options)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "port 7181",
            'an address is "tcp://HOST:PORT", for instance "tcp://127.0.0.1:7077", or "ipc:///PATH", not \'port 7181\'',
        ),
        (
            "tcp://no-such-host.invalid:1",
            "the host name 'no-such-host.invalid' of tcp://no-such-host.invalid:1 cannot be",
        ),
        ("tcp://127.0.0.1:72613", "a port is at most 65535, and 72613 is more"),
        ("tcp://192.0.2.1:7077", "with a broker on another machine (tcp://192.0.2.1:7077) the workers' data sockets"),
    ],
)
def test_worker_names_the_address_that_is_wrong(address: str, said: str) -> None:
    done = run("worker", address)
    assert done.returncode == 1
    assert said in done.stderr
    assert "0.0.0.0" not in done.stderr
    assert "Traceback" not in done.stderr


def test_all_data_ports_in_use_is_told(start: Start) -> None:
    address = address_of(start("broker", "--bind", "tcp://127.0.0.1:0"))
    port = address.rpartition(":")[2]
    worker = start("worker", address, "--nworkers", "1", "--data-ports", port)
    assert worker.stderr is not None
    said = next(line for line in worker.stderr if "cannot listen" in line)
    assert f"port {port} is in use; choose another with --data-ports" in said


def test_a_token_file_in_a_directory_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "token"
    done = run("broker", "--bind", "tcp://127.0.0.1:0", "--token-file", str(path))
    assert done.returncode == 1
    assert f"Error: cannot write token file {path}: there is no directory {path.parent}" in done.stderr
    assert not path.parent.exists()


def test_worker_asks_which_node_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("nodes:\n  - {name: a, host: x.invalid}\n  - {name: b, host: y.invalid}\n")
    assert "2 nodes (a, b); say with --name which" in run("worker", "--config", str(file)).stderr
    assert "none of them is named 'c'" in run("worker", "--config", str(file), "--name", "c").stderr


# --- zdist cluster ------------------------------------------------------------------------------------


def test_cluster_up_status_down(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "broker: {bind: 'tcp://127.0.0.1:0'}\nnodes:\n  - {name: n, nworkers: 2}\nlogging: {format: json}\n"
    )
    assert run("cluster", "status").returncode == 1
    try:
        up = run("cluster", "up", str(file))
        assert up.returncode == 0, up.stderr
        address = re.search(r"tcp://\S+", up.stdout)
        assert address is not None
        assert "with 2 workers" in up.stdout
        (about,) = json.loads(run("cluster", "status", "--json").stdout)
        assert about["address"] == address[0]
        assert about["running"]
        assert [process["alive"] for process in about["processes"]] == [True, True]
        assert len(about["workers"]) == 2
        shown = run("cluster", "status", str(file))
        assert shown.returncode == 0
        assert address[0] in shown.stdout
        for process in about["processes"]:
            assert process["log"] in shown.stdout  # in one piece, however narrow the terminal
        again = run("cluster", "up", str(file))
        assert again.returncode == 1
        assert "is up at" in again.stderr
        code = f"import zdist; print(zdist.Client.from_yaml({str(file)!r}).submit(sum, [1, 2]).result())"
        program = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert program.stdout == "3\n", program.stderr
    finally:
        down = run("cluster", "down")
    assert down.returncode == 0
    assert str(file) in down.stdout
    assert not any(is_running(process["pid"]) for process in about["processes"])
    assert run("cluster", "down", str(file)).returncode == 1


def is_running(pid: int) -> bool:
    """Whether it has not ended; one whose exit code nobody has fetched yet has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- the rest -----------------------------------------------------------------------------------------


def test_config_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_BROKER__INSECURE", "true")
    file = tmp_path / "a.yaml"
    file.write_text("logging:\n  level: debug\n")
    rows = json.loads(run("config", "show", str(file), "--json").stdout)
    assert rows["logging.level"] == {"value": "debug", "origin": f"{file}:2"}
    assert rows["broker.insecure"] == {"value": True, "origin": "environment ZDIST_BROKER__INSECURE"}
    assert rows["client.timeout"] == {"value": 10.0, "origin": "default"}
    lines = run("config", "show", str(file)).stdout.splitlines()
    assert any(re.fullmatch(rf'logging\.level +"debug" +{file}:2', line) for line in lines)


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("broker", "worker", "cluster", "config", "demo"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


def test_version() -> None:
    from zdist import __version__

    assert __version__ in run("--version").stdout


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def test_readme_opens_with_an_example_that_runs(tmp_path: Path) -> None:
    example = readme_blocks("python")[0]
    assert sum(bool(line) for line in example.splitlines()) <= 10
    script = tmp_path / "example.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["332833500", "[0, 1, 4, 9, 16]"]
    assert "inline" in done.stdout


def test_what_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`((?:tests|conf)/[\w./]*)`|\]\((\w+\.md)\)", text):
        assert (ROOT / "".join(path)).exists(), path
    setup = [block for block in readme_blocks("sh") if ".venv" in block]
    assert "".join(setup).splitlines() == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/zdist demo",
        ".venv/bin/pip install tox && .venv/bin/tox",
    ]
    run_script = (ROOT / ".ci" / "run").read_text()
    assert all(line in run_script for line in "".join(setup).splitlines())
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
