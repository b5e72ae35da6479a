"""Log records to stderr, one line each: Kong copies them line by line into its own log."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

# What stands for a line's end within a record in the text format.
NEWLINE = " | "


def _timestamp(record: logging.LogRecord) -> str:
    """When `record` was made, UTC, to the millisecond, as RFC 3339 writes it."""
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{second}.{int(record.msecs):03d}Z"


class _Formatter(logging.Formatter):
    def traceback(self, record: logging.LogRecord) -> str | None:
        """The traceback of a record, as it came with it or as Python prints it."""
        if record.exc_text is None and record.exc_info:
            return self.formatException(record.exc_info)
        return record.exc_text


class TextFormatter(_Formatter):
    """``2026-01-31T12:00:00.000Z [error] kongps: the message``, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if traceback := self.traceback(record):
            text = f"{text}\n{traceback}"
        line = f"{_timestamp(record)} [{record.levelname.lower()}] {record.name}: {text}"
        return NEWLINE.join(line.splitlines())


class JSONFormatter(_Formatter):
    """One JSON object: time, level, logger, message and, for an exception, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if traceback := self.traceback(record):
            fields["traceback"] = traceback
        return json.dumps(fields, ensure_ascii=False)


def set_up(level: str = "info", format: str = "text") -> None:
    """Sends the records of every logger to stderr.

    :param level: least level shown, one of ``LOG_LEVELS`` in ``settings.py``.
    :param format: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    for name in (None, "kongps"):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(level.upper())
    # The server's own records do not pass what a plugin hangs into the root logger.
    logging.getLogger("kongps").propagate = False
