"""How a server stops: from the first signal until nothing is accepted any more, and the limit."""

from __future__ import annotations

import logging
import os
import time
from threading import Thread  # before a plugin may replace it
from typing import TYPE_CHECKING, Callable

from kongps.core.report import report

if TYPE_CHECKING:
    from kongps.core.io.loop import Loop
    from kongps.server.sockets import SocketFiles
    from kongps.settings import Settings

logger = logging.getLogger("kongps")

# Seconds between looks at what changes slowly: events that Kong gave up, a parent that is gone.
WATCH_INTERVAL = 1.0

# Seconds between looks at whether the last running event has ended, once the server stops.
DRAIN_INTERVAL = 0.02

# Seconds that a server goes on after a stop signal, while Kong has connections open and no new
# server listens. One that is started at the same time listens after a third of that (Python, the
# core, a plugin), and one that is started after the old one has ended does not need it.
SUCCESSOR_TIME = 1.0

# Seconds that a process gets to end after a stop signal, beyond the shutdown timeout: a handler
# that never returns, or a thread of a plugin, must not keep it.
STOP_GRACE = 2.0


class GracefulStop:
    """Stops a server so that whoever connects meanwhile finds this one or the next.

    After a signal the server goes on, with its sockets offered to a new server, for at most
    ``SUCCESSOR_TIME``. Then the stop begins: no new connections.

    :param loop: the server's.
    :param sockets: its sockets.
    :param settings: its settings.
    :param parent: the process that started the server, watched if the settings say so.
    :param connections: gives the number of Kong's connections.
    :param begin: called when the stop begins and nothing is accepted any more.
    :param at_once: called when the stop is not to wait for events any more.

    :ivar begun: whether the stop has begun.
    :ivar deadline: when what has not ended is cut off, monotonic seconds; 0 before the stop.
    """

    def __init__(
        self,
        loop: Loop,
        sockets: SocketFiles,
        settings: Settings,
        parent: int,
        *,
        connections: Callable[[], int],
        begin: Callable[[], object],
        at_once: Callable[[], object],
    ) -> None:
        self._parent = parent if settings.parent_watch else None
        self._loop = loop
        self._sockets = sockets
        self._timeout = settings.shutdown_timeout
        self._connections = connections
        self._begin = begin
        self._at_once = at_once
        self._since: float | None = None  # the first signal
        self.begun = False
        self.deadline = 0.0

    @property
    def requested(self) -> bool:
        """Whether the server stops, or is about to."""
        return self.begun or self._since is not None

    @property
    def left(self) -> float:
        """Seconds until what has not ended is cut off."""
        return self.deadline - time.monotonic()

    def on_signal(self) -> None:
        """Stops when a new server listens, or soon; after a second signal, at once."""
        if self.requested:
            if not self.begun:
                self.stop()
            self.stop()
            return
        self._sockets.offer()
        self._since = time.monotonic()
        seconds = min(SUCCESSOR_TIME, self._timeout / 2)
        if self._connections() and seconds:
            logger.info(
                "stopping on a signal: serving until a new server listens, or %g s", seconds
            )
        self._await_successor(self._since + seconds)

    def _await_successor(self, until: float) -> None:
        """Begins the stop when a new server listens, Kong has no connections, or time is over."""
        if self.begun:
            return
        if self._connections() and not self._sockets.replaced and time.monotonic() < until:
            self._loop.call_later(DRAIN_INTERVAL, lambda: self._await_successor(until))
        else:
            self.stop()

    def stop(self) -> None:
        """Begins the stop; called again, it does not wait for events."""
        if self.begun:
            logger.warning("stopping at once, on a second request: not waiting for running events")
            self._at_once()
            return
        self.begun = True
        self.deadline = (self._since or time.monotonic()) + self._timeout
        self._sockets.remove()
        self._loop.close_listeners()
        self._begin()

    def watch(self) -> None:
        """Checks the sockets, and stops when the process that started the server is gone."""
        if self.begun:
            return
        self._sockets.check()
        if self._parent is not None and os.getppid() != self._parent:
            logger.info("the process that started this server is gone")
            self.stop()


def end_process_after(seconds: float) -> None:
    """Ends the process though plugin code holds it up.

    :param seconds: what it gets, beyond ``STOP_GRACE``.
    """
    Thread(
        target=_end_process, args=(seconds + STOP_GRACE,), daemon=True, name="kongps-stop"
    ).start()


def _end_process(delay: float) -> None:
    time.sleep(delay)
    report(logging.ERROR, "plugin code keeps the server from ending; ending it now")
    os._exit(1)
