"""The server's own log, for places where logging must not fail.

What a plugin hangs into the logging module may raise, or call back into the PDK. A record that
cannot be logged goes to stderr as it is.
"""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("kongps")


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
