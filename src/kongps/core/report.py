"""The server's own log, for places where logging must not fail.

What a plugin hangs into the logging module may raise, or call back into the PDK. A record that
cannot be logged goes to stderr as it is.
"""

from __future__ import annotations

import logging
import os
import traceback

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
