"""Structured logs: an event name and fields, no prose. Console on a terminal, JSON lines otherwise.

The pipeline is zdist's own: a program that uses structlog itself keeps its configuration. structlog is loaded with the
first record that is written, so a process that logs nothing never pays for it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any, Final, Literal, TextIO, cast

__all__ = ["FORMATS", "LEVELS", "Format", "Level", "Logger", "configure", "get_logger", "prepare", "settings"]

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]
LEVELS: Final[dict[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FORMATS: Final[tuple[str, ...]] = ("auto", "console", "json")


class _Sink:
    """Where records go; one per process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.format = "auto"
        self.level = "warning"
        self.threshold = LEVELS["warning"]
        self.stream: TextIO | None = None
        self.fields: dict[str, Any] = {}
        self.target: Any = None

    def open(self) -> Any:
        """Build the structlog pipeline."""
        import structlog

        stream = self.stream or sys.stderr
        terminal = stream is not None and stream.isatty()
        console = self.format == "console" or (self.format == "auto" and terminal)
        processors: list[Any] = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not console),
        ]
        if console:
            processors.append(
                structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)
            )
        else:
            processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        return structlog.wrap_logger(
            structlog.WriteLogger(stream),
            processors=processors,
            wrapper_class=structlog.make_filtering_bound_logger(self.threshold),
            context_class=dict,
            cache_logger_on_first_use=True,
        ).bind(**self.fields)

    def write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # the stream is closed, no file can be opened: work goes on
            getattr(self.target or self.prepare(), level)(event, **fields)

    def prepare(self) -> Any:
        """Open it, if that was not done. Raises OSError where no file can be opened."""
        with self.lock:
            target = self.target = self.target or self.open()
        return target


_sink = _Sink()


def configure(
    format: str | None = "auto",
    level: str | None = "info",
    *,
    stream: TextIO | None = None,
    **fields: Any,
) -> None:
    """Set how this process logs; until called it writes warnings and errors to standard error.

    Parameters: ``format`` one of "auto", "console", "json" (auto, or None: console on a terminal); ``level`` the least
    level that is written (None: info); ``stream`` defaults to standard error; ``fields`` stand in every record.
    Raises ValueError for another format or level.
    """
    format, level = format or "auto", level or "info"
    if format not in FORMATS:
        raise ValueError(f"log format {format!r} is none of {', '.join(FORMATS)}")
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    with _sink.lock:
        _sink.format, _sink.level, _sink.threshold = format, level, LEVELS[level]
        _sink.stream, _sink.fields, _sink.target = stream, fields, None


def prepare() -> None:
    """Load what records need now, and not with the first record: that may say that no more files can be opened."""
    _sink.prepare()


def settings() -> tuple[Format, Level]:
    """Format and level in force, to hand on to child processes."""
    return cast(Format, _sink.format), cast(Level, _sink.level)


class Logger:
    """Writes records that all carry ``fields``; cheap to make, and below the level nearly free to call."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def bind(self, **fields: Any) -> Logger:
        """A logger with more fields."""
        return Logger({**self.fields, **fields})

    def log(self, level: str, event: str, /, **fields: Any) -> None:
        """Write a record at a level given by name."""
        if LEVELS[level] >= _sink.threshold:
            _sink.write(level, event, {**self.fields, **fields})

    def debug(self, event: str, /, **fields: Any) -> None:
        self.log("debug", event, **fields)

    def info(self, event: str, /, **fields: Any) -> None:
        self.log("info", event, **fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        self.log("warning", event, **fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self.log("error", event, **fields)


def get_logger(role: str = "", **fields: Any) -> Logger:
    """A logger whose records say who writes ("broker", "w-…") and carry these fields."""
    return Logger({"role": role, **fields} if role else fields)
