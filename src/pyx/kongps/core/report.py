"""The server's own log, for places where logging must not fail.

What a plugin hangs into the logging module may raise, or call back into the PDK. A record that
cannot be logged goes to stderr as it is.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType

logger = logging.getLogger("kongps")

# Characters of a traceback that Kong gets to log: nginx cuts a line of its log at 2048 bytes.
LONGEST_TOLD = 1500

# What stands in an exception's text for a value of the configuration.
HIDDEN = "***"

# Characters of the shortest value that is hidden: a shorter one is no secret, and is in any text.
SHORTEST_HIDDEN = 4

# Characters by which a value is found that an exception shows only the beginning of.
LONGEST_PROBE = 32


def report(
    level: int,
    message: str,
    *args: object,
    error: BaseException | None = None,
    config: object = None,
) -> None:
    """Logs a record; whatever goes wrong with that stays here.

    :param level: of :mod:`logging`.
    :param message: the text, with places for `args`.
    :param error: an exception whose traceback goes with it.
    :param config: a configuration; the exception's text shows no text that is in it.
    """
    try:
        if not logger.isEnabledFor(level):
            return
        record = logger.makeRecord(logger.name, level, __file__, 0, message, args, None, "report")
        if error is not None:
            record.exc_text = traceback_of(error, error.__traceback__, config).rstrip("\n")
        logger.handle(record)
    except BaseException:  # a plugin's handler or filter may raise anything
        try:
            text = f"kongps: {message % args} (this could not be logged)\n"
            os.write(2, text.encode("utf-8", "backslashreplace"))
        except BaseException:
            pass


def traceback_of(error: BaseException, frames: TracebackType | None, config: object) -> str:
    """A traceback as Python prints it, without the secrets of a configuration.

    :param error: the exception.
    :param frames: where it was raised.
    :param config: no text in it is shown, but in lines of code.
    """
    hidden = sorted(_texts(config), key=len, reverse=True)
    return "".join(
        part if part.lstrip(" |").startswith('File "') else _hide(part, hidden)
        for part in traceback.format_exception(type(error), error, frames)
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= SHORTEST_HIDDEN:
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)


def _hide(text: str, values: list[str]) -> str:
    for value in values:
        for form in {value, repr(value)[1:-1]}:
            probe, rest = form[:LONGEST_PROBE], form[LONGEST_PROBE:]
            start = text.find(probe)
            while start >= 0:
                end = start + len(probe)
                for shown, one in zip(text[end:], rest):
                    if shown != one:
                        break
                    end += 1
                text = f"{text[:start]}{HIDDEN}{text[end:]}"
                start = text.find(probe, start + len(HIDDEN))
    return text


def describe_failure(what: str, error: BaseException, config: object = None) -> str:
    """One line for Kong's log about an exception in a handler.

    :param what: what has happened, where.
    :param error: the exception; the end of its traceback follows.
    :param config: the configuration of the handler's instance; no text in it is shown.
    :returns: text that can be sent.
    """
    try:
        # The first frame is the runner's.
        frames = error.__traceback__ and error.__traceback__.tb_next
        lines = traceback_of(error, frames, config)
        text = " | ".join(line.strip() for line in lines.splitlines() if line.strip(" ^~"))
        if len(text) > LONGEST_TOLD:
            text = f"…{text[-LONGEST_TOLD:]}"
        return f"{what}: {text}".encode("utf-8", "backslashreplace").decode()
    except BaseException:  # the exception is the plugin's own class, and may raise in turn
        return what


def place_of(frame: FrameType | None, path: str) -> str | None:
    """Where a thread is, for the log.

    :param frame: the innermost frame; None where there is none.
    :param path: the plugin's file, whose own line is named first.
    :returns: such as ``line 12 of my_plugin.py in access, in socket.py:705 in readinto``.
    """
    if frame is None:
        return None
    inner = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {_name(frame)}"
    outer: FrameType | None = frame
    while outer is not None and outer.f_code.co_filename != path:
        outer = outer.f_back
    if outer is None:
        return inner
    own = f"line {outer.f_lineno} of {os.path.basename(path)} in {_name(outer)}"
    return own if outer is frame else f"{own}, in {inner}"


def _name(frame: FrameType) -> str:
    return getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
