"""Log lines: structlog on stderr and never on stdout, which belongs to the answers of stdio and the shell."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from mlx_serving.config.schema import Telemetry

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class StderrLogger:
    """Writes finished lines. A stderr that nobody holds any more is no reason for an actor to fail."""

    def msg(self, line: str) -> None:
        stream = sys.stderr
        if stream is None or stream.closed:
            return
        try:
            stream.write(line + "\n")
            stream.flush()
        except OSError:
            return

    debug = info = warning = error = critical = exception = msg


class _LibraryHandler(logging.Handler):
    """Log records of libraries, in the same form as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        self.acquire()
        try:
            StderrLogger().msg(self.format(record))
        finally:
            self.release()


_libraries = _LibraryHandler()


def configure_logging(telemetry: Telemetry) -> None:
    """Set form and least level for this process; call again when the level changes.

    Libraries are heard from `warning` up, and in full at level `debug`.
    """
    level = _LEVELS[telemetry.log_level]
    renderers = _renderers(telemetry.log_format)
    structlog.configure(
        processors=[*_SHARED, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: StderrLogger(),
        # A cached logger would keep its level when the level changes.
        cache_logger_on_first_use=False,
    )
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    _libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[remove_meta, *renderers],
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    root.setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    if _libraries not in root.handlers:
        root.addHandler(_libraries)


def get_logger(actor: str) -> FilteringBoundLogger:
    """The logger of an actor; every line carries its name. It follows later calls of `configure_logging`."""
    logger: FilteringBoundLogger = structlog.get_logger(actor=actor)
    return logger


def _renderers(form: str) -> list[Any]:
    if form == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colors = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    traceback = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=traceback)]
