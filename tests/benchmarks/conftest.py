"""Benchmarks need pytest-benchmark (``pip install zdist[bench]``); without it they are not collected."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("pytest_benchmark") else ["test_*.py"]
