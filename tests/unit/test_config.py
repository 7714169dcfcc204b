from __future__ import annotations

import re
from pathlib import Path

import pytest

from zdist.config import Settings, load
from zdist.config.schema import parse_ports, parse_size
from zdist.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
SAMPLES = sorted(CONF.glob("*.yaml"))


def read(tmp_path: Path, text: str, **options: object) -> Settings:
    path = tmp_path / "zdist.yaml"
    path.write_text(text)
    return load(path, environ={}, **options)  # type: ignore[arg-type]


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return str(caught.value)


# --- the samples --------------------------------------------------------------------------------------


def test_samples_are_all_there() -> None:
    assert {path.stem for path in SAMPLES} >= {"local", "broker", "worker", "cluster", "logging"}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_sample_is_valid_and_sets_something(path: Path) -> None:
    settings = load(path, environ={})
    assert any(origin.startswith(str(path)) for _, _, origin in settings.rows())


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_sample_is_commented_for_a_reader(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert sum("#" in line for line in lines) * 5 >= sum(bool(line.strip()) for line in lines)


def test_what_a_sample_comments_out_is_valid_too(tmp_path: Path) -> None:
    text = (CONF / "broker.yaml").read_text()
    active = re.sub(r"^  # (token_file|address): ", r"  \1: ", text, flags=re.MULTILINE)
    config = read(tmp_path, active).config
    assert config.broker.token_file == "/etc/zdist/token"
    assert config.broker.reach() == "tcp://broker.example.org:7077"


# --- precedence and origins ---------------------------------------------------------------------------


def test_defaults_without_any_source() -> None:
    settings = load(environ={})
    assert settings.config.broker.bind == "tcp://127.0.0.1:7077"
    assert settings.config.nodes == ()
    assert {origin for _, _, origin in settings.rows()} == {"default"}


def test_each_source_beats_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("broker:\n  bind: tcp://127.0.0.1:1\n  token_file: f\nlogging:\n  level: debug\n")
    environ = {"ZDIST_BROKER__BIND": "tcp://127.0.0.1:2", "ZDIST_BROKER__TOKEN_FILE": "e"}
    settings = load(path, environ=environ, overrides={"broker.bind": "tcp://127.0.0.1:3", "broker.insecure": None})
    rows = {key: (value, origin) for key, value, origin in settings.rows()}
    assert rows["broker.bind"] == ("tcp://127.0.0.1:3", "command line")
    without = load(None, environ={"ZDIST_BROKER__BIND": "127.0.0.1:2"}, overrides={"broker.address": "[::1]:7077"})
    assert (without.config.broker.bind, without.config.broker.address) == ("tcp://127.0.0.1:2", "tcp://[::1]:7077")
    assert rows["broker.token_file"] == ("e", "environment ZDIST_BROKER__TOKEN_FILE")
    assert rows["logging.level"] == ("debug", f"{path}:5")
    assert rows["broker.insecure"] == (False, "default")
    assert rows["broker.bulk_bind"] == (None, "default")


def test_environment_reaches_into_lists_and_mappings(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("nodes:\n  - name: one\n    resources: {gpu: 1}\n")
    environ = {
        "ZDIST_NODES__0__NTHREADS": "3",
        "ZDIST_NODES__0__RESOURCES__LICENCE": "0.5",
        "ZDIST_NODES__1__TAGS": "[a, b]",
        "ZDIST_NODES__1__NAME": "123",  # a text stays a text
    }
    first, second = load(path, environ=environ).config.nodes
    assert (first.name, first.nthreads, first.resources) == ("one", 3, {"gpu": 1.0, "licence": 0.5})
    assert (second.name, second.tags) == ("123", ("a", "b"))


def test_a_whole_entry_from_the_environment_has_its_origin_in_every_value() -> None:
    settings = load(environ={"ZDIST_NODES__0": "{name: n, tags: [x]}"})
    assert settings.origin(("nodes", 0, "name")) == "environment ZDIST_NODES__0"
    assert settings.origin(("nodes", 0, "nthreads")) == "default"


def test_other_variables_of_zdist_are_not_configuration() -> None:
    environ = {"ZDIST_TOKEN": "x", "ZDIST_RUNTIME_DIR": "/y", "ZDIST_TEST__THING": "1", "ZDIST_BROKER__BIND": ""}
    assert load(environ=environ).config == load(environ={}).config


def test_environment_is_the_process_environment_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZDIST_LOGGING__LEVEL", "error")
    assert load().config.logging.level == "error"


# --- bad input ----------------------------------------------------------------------------------------


def test_unknown_key_names_file_line_path_allowed_and_nearest(tmp_path: Path) -> None:
    text = refused(tmp_path, "nodes:\n  - host: localhost\n    nworker: 3\n")
    assert f"{tmp_path}/zdist.yaml:3: nodes[0].nworker: unknown key" in text
    assert 'did you mean "nworkers"?' in text
    assert "Allowed here: host, name, nworkers, nthreads" in text


def test_unknown_section_without_a_near_name(tmp_path: Path) -> None:
    text = refused(tmp_path, "zzz: 1\n")
    assert "zdist.yaml:1: zzz: unknown key. Allowed here: broker, nodes, client, logging" in text
    assert "did you mean" not in text


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("nodes:\n  - nworkers: many\n", "2: nodes[0].nworkers", "should be a valid integer, not 'many'"),
        ("nodes:\n  - nworkers: true\n", "2: nodes[0].nworkers", "should be a valid integer, not True"),
        ("nodes:\n  - nworkers: -1\n", "2: nodes[0].nworkers", "greater than or equal to 1"),
        ("nodes:\n  - tags: [a, 3]\n", "2: nodes[0].tags[1]", "should be a valid string, not 3"),
        ("nodes:\n  - memory_limit: lots\n", "2: nodes[0].memory_limit", "4 GiB"),
        ("nodes:\n  - data_ports: 9-1\n", "2: nodes[0].data_ports", "the lower one first"),
        ("nodes: {}\n", "1: nodes", "should be a list, not {}"),
        ("broker: 7\n", "1: broker", "should be a mapping, not 7"),
        ('broker: {insecure: "yes"}\n', "1: broker.insecure", "should be a valid boolean"),
        ("broker:\n  bind: 127.0.0.1\n", "2: broker.bind", "tcp://HOST:PORT"),
        (
            "broker:\n  bind: 127.0.0.1:99999\n",
            "2: broker.bind",
            "a port is at most 65535, and 99999 is more",
        ),
        ("client:\n  timeout: 0\n", "2: client.timeout", "greater than 0"),
        ("client:\n  gather_paths: [pear]\n", "2: client.gather_paths[0]", "'local', 'shm', 'peer' or 'relay'"),
        ("logging:\n  level: loud\n", "2: logging.level", "'debug', 'info', 'warning' or 'error', not 'loud'"),
        ("broker: {bind: a, bind: b}\n", "1: broker.bind", "already"),
        ("a: [\n", "2", "not valid YAML"),
        ("- a\n", "zdist.yaml", "allowed there: broker, nodes, client, logging"),
        ("? [a]\n: b\n", "1", "not valid YAML"),
        ("nodes:\n  - {name: 2024-13-45}\n", "2", "not valid YAML: '2024-13-45' is no timestamp"),
        ("nodes:\n  - nthreads: !!int abc\n", "2", "not valid YAML: 'abc' is no int"),
        ("a: !!timestamp x\n", "1", "'x' is no timestamp"),
        ("a: !!bool x\n", "1", "'x' is no bool"),
        ("a: !!int ''\n", "1", "'' is no int"),
        ("a: \0\n", "zdist.yaml", "not valid YAML"),
        ("nodes:\n  - data_ports: [9, 1]\n", "2: nodes[0].data_ports", "the lower one first"),
        ("nodes:\n  - data_ports: [1, 2, 3]\n", "2: nodes[0].data_ports", 'given as "LO-HI" or [LO, HI]'),
        ("nodes:\n  - data_ports: [1, b]\n", "2: nodes[0].data_ports", 'given as "LO-HI" or [LO, HI]'),
        ("a: !!python/object:os.system {}\n", "1", "not valid YAML"),
    ],
)
def test_bad_file_is_refused_with_place_and_reason(tmp_path: Path, text: str, where: str, what: str) -> None:
    said = refused(tmp_path, text)
    assert where in said
    assert what in said


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    assert len(refused(tmp_path, "broker: {bnd: 1}\nlogging: {level: loud}\n").splitlines()) == 2


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read the configuration: No such file"):
        load(tmp_path / "nowhere.yaml", environ={})
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "binary.yaml", environ={})


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "# nothing\n").config == load(environ={}).config


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("ZDIST_BROKER__BINDD", "x", 'broker.bindd: unknown key; did you mean "bind"?'),
        ("ZDIST_NODES__2__NAME", "x", "the list has 0 entries"),
        ("ZDIST_NODES__FIRST", "x", "nodes: should be a list"),
        ("ZDIST_NODES__0__NTHREADS", "two", "should be a valid integer, not 'two'"),
        ("ZDIST_NODES__0__TAGS", "[a", "not valid YAML"),
        ("ZDIST_NODES__0__NTHREADS", "2024-13-45", "not valid YAML"),
        ("ZDIST_BROKER__BIND__X", "1", "broker.bind"),
    ],
)
def test_bad_variable_is_refused_by_name(name: str, value: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={name: value})
    assert f"environment {name}" in str(caught.value)
    assert what in str(caught.value)


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("4 GiB", 4 << 30), ("500MB", 500_000_000), ("1.5k", 1500), ("12", 12), (7, 7), ("2Ki", 2048)]
)
def test_sizes(text: object, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(("text", "value"), [("5-7", (5, 7)), ("80", (80, 80)), (80, (80, 80)), ([5, 7], (5, 7))])
def test_ports(text: object, value: tuple[int, int]) -> None:
    assert parse_ports(text) == value


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "tcp://0.0.0.0:7077", "tcp://*:7077", "tcp://127.0.0.1:*"])
def test_an_address_that_nobody_can_dial_is_not_handed_out(bind: str) -> None:
    with pytest.raises(ConfigError, match=r"broker\.address"):
        load(environ={}, overrides={"broker.bind": bind}).config.broker.reach()
    address = "tcp://example.org:7077"
    assert load(environ={}, overrides={"broker.bind": bind, "broker.address": address}).config.broker.reach() == address


def test_configuration_cannot_be_changed_afterwards() -> None:
    config = load(environ={}).config
    with pytest.raises(ValueError, match="frozen"):
        config.broker.bind = "tcp://127.0.0.1:1"  # type: ignore[misc]
