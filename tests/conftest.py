"""For all tests: a short directory for temporary files, also where they run on several processes."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Paths of ipc sockets have 107 bytes at most, and pytest-xdist makes those of its processes longer."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a script would ignore it
    if config.option.basetemp is None and not os.environ.get("PYTEST_XDIST_WORKER"):
        config.option.basetemp = tempfile.mkdtemp(prefix="zp-", dir="/tmp")
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))
