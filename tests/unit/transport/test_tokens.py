"""The cluster token: where it lies, who may read it, and what is left of brokers that are gone."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from zdist.errors import AuthenticationError
from zdist.transport.security import TokenSource, find_token, publish_token, token_path, write_token

HERE = "tcp://127.0.0.1:7077"


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv("ZDIST_RUNTIME_DIR", str(path))
    monkeypatch.delenv("ZDIST_TOKEN", raising=False)
    return path


def test_a_token_is_found_by_address_while_its_broker_lives() -> None:
    published = publish_token("secret", HERE)
    assert find_token("tcp://localhost:7077") == "secret"
    assert stat.S_IMODE(token_path(HERE).stat().st_mode) == 0o600
    published.remove()
    assert find_token(HERE) == ""


def test_a_token_outlives_its_broker_for_a_day_so_that_the_next_one_there_has_it() -> None:
    """Other brokers that start meanwhile leave it alone."""
    live, dead, old = (publish_token(str(port), f"tcp://127.0.0.1:{port}") for port in (1, 2, 3))
    dead.release()
    old.release()
    for port in (1, 3):
        os.utime(token_path(f"tcp://127.0.0.1:{port}"), (0, 0))
    another = publish_token("4", "tcp://127.0.0.1:4")
    assert [find_token(f"tcp://127.0.0.1:{port}") for port in (1, 2, 3, 4)] == ["1", "2", "", "4"]
    live.touch()
    assert token_path("tcp://127.0.0.1:1").stat().st_mtime > time.time() - 60
    live.remove()
    another.remove()


def test_a_source_looks_again_each_time_and_keeps_what_it_had() -> None:
    source = TokenSource(HERE)
    assert source() == ""
    published = publish_token("first", HERE)
    assert source() == "first"
    published.remove()
    assert source() == "first"
    published = publish_token("second", HERE)
    assert source() == "second"
    published.remove()


def test_a_source_wants_the_file_that_it_is_given(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="cannot read token file"):
        TokenSource(HERE, tmp_path / "none")
    write_token("secret", tmp_path / "token")
    source = TokenSource(HERE, tmp_path / "token")
    (tmp_path / "token").unlink()
    assert source() == "secret"


def test_a_token_file_in_a_directory_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "token"
    with pytest.raises(
        AuthenticationError, match=rf"cannot write token file {path}: there is no directory {path.parent}"
    ):
        write_token("secret", path)
    assert not (tmp_path / "no").exists()
