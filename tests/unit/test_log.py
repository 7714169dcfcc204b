from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from zdist import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = log.settings()
    yield
    log.configure(*before)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_records_have_event_fields_level_and_time() -> None:
    stream = io.StringIO()
    log.configure("json", "info", stream=stream, cluster="c1")
    log.get_logger("broker", name="x").bind(more=1).info("peer.joined", session="w-1", level_of=3)
    record = json.loads(stream.getvalue())
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "role": "broker", "name": "x", "more": 1, "session": "w-1", "level_of": 3, "cluster": "c1",
        "event": "peer.joined", "level": "info",
    }  # fmt: skip


def test_records_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    log.configure("json", "warning", stream=stream)
    logger = log.get_logger()
    for level in log.LEVELS:
        logger.log(level, level)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["warning", "error"]


@pytest.mark.parametrize(("stream", "is_json"), [(io.StringIO(), True), (Terminal(), False)])
def test_auto_is_console_on_a_terminal_and_json_elsewhere(stream: io.StringIO, is_json: bool) -> None:
    log.configure("auto", "info", stream=stream)
    log.get_logger().info("something.happened")
    assert "something.happened" in stream.getvalue()
    assert stream.getvalue().startswith("{") == is_json


def test_a_traceback_is_part_of_the_record() -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        log.get_logger().error("it.failed", exc_info=True)
    record = json.loads(stream.getvalue())
    assert "RuntimeError: boom" in record["exception"]


def test_values_that_json_does_not_know_are_shown_by_their_repr() -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)
    log.get_logger().info("e", value=b"x")
    assert json.loads(stream.getvalue())["value"] == repr(b"x")


def test_a_closed_stream_stops_nothing() -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)
    logger = log.get_logger()
    logger.info("one")
    stream.close()
    logger.info("two")
    assert stream.closed


@pytest.mark.parametrize("options", [{"format": "xml"}, {"level": "loud"}])
def test_unknown_format_or_level_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is none of"):
        log.configure(**options)


def test_structlog_is_loaded_by_the_first_record_and_left_as_the_program_set_it_up() -> None:
    program = (
        "import sys; from zdist import log\n"
        "assert 'structlog' not in sys.modules\n"
        "log.get_logger().info('below.the.level')\n"
        "assert 'structlog' not in sys.modules\n"
        "log.get_logger().warning('above.it')\n"
        "import structlog; assert not structlog.is_configured()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "above.it" in done.stderr


def test_a_process_that_can_open_no_file_goes_on() -> None:
    program = """
import os, resource, zdist.log
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(2))
except OSError:
    pass
zdist.log.get_logger("x").warning("first")  # would load structlog
os.close(taken.pop()), os.close(taken.pop()), os.close(taken.pop()), os.close(taken.pop())
zdist.log.get_logger("x").warning("second")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "first" not in done.stderr and "second" in done.stderr
