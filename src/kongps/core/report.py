"""The server's own log, for places where logging must not fail.

What a plugin hangs into the logging module may raise, or call back into the PDK. A record that
cannot be logged goes to stderr as it is.
"""

from __future__ import annotations

import logging
import os
import traceback
from types import FrameType

logger = logging.getLogger("kongps")

# Characters of a traceback that Kong is told: nginx cuts a line of its log at 2048 bytes.
LONGEST_TOLD = 1500


def report(level: int, message: str, *args: object, error: BaseException | None = None) -> None:
    """Logs a record; whatever goes wrong with that stays here.

    :param level: of :mod:`logging`.
    :param message: the text, with places for `args`.
    :param error: an exception whose traceback goes with it.
    """
    try:
        logger.log(level, message, *args, exc_info=error)
    except BaseException:  # a plugin's handler or filter may raise anything
        try:
            text = f"kongps: {message % args} (this could not be logged)\n"
            os.write(2, text.encode("utf-8", "backslashreplace"))
        except BaseException:
            pass


def told_of(what: str, error: BaseException) -> str:
    """One line for Kong's log about an exception in a handler.

    :param what: what has happened, where.
    :param error: the exception; the end of its traceback follows.
    :returns: text that can be sent.
    """
    try:
        # The first frame is the runner's.
        frames = error.__traceback__ and error.__traceback__.tb_next
        lines = "".join(traceback.format_exception(type(error), error, frames))
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
