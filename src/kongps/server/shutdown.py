"""Signals, and how a server stops: from the first one until nothing is accepted any more."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from threading import Thread  # before a plugin may replace it
from typing import TYPE_CHECKING, Callable

from kongps._version import __version__
from kongps.core.report import report
from kongps.server.sockets import SocketFiles

if TYPE_CHECKING:
    from kongps.core.io.loop import Loop
    from kongps.settings import Settings

logger = logging.getLogger("kongps")

Handlers = Mapping[signal.Signals, Callable[[], object]]

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

# What a child process that a handler forks calls first; a running server adds its own.
_in_child: list[Callable[[], None]] = []


class ListeningServer:
    """A server that stops so that whoever connects meanwhile finds this one or the next.

    After a signal the server goes on, with its sockets offered to a new server, for at most
    ``SUCCESSOR_TIME``. Then the stop begins: no new connections.

    :param settings: its settings.

    :ivar sockets: its sockets.
    :ivar stopping: whether the stop has begun.
    :ivar deadline: when what has not ended is cut off, monotonic seconds; 0 before the stop.
    """

    loop: Loop

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sockets = SocketFiles()
        self.stopping = False
        self.deadline = 0.0
        self._parent = os.getppid()
        self._signalled: float | None = None  # when the first signal came

    # --- what differs ----------------------------------------------------------------------------

    def connections(self) -> int:
        """The number of Kong's connections."""
        raise NotImplementedError

    def begin_stop(self) -> None:
        """Begins to end: nothing is accepted any more."""
        raise NotImplementedError

    def stop_at_once(self) -> None:
        """Ends without waiting for events any more."""
        raise NotImplementedError

    def log_start(self, plugins: list[str], placements: list[str], more: str = "") -> None:
        """Logs what is served where, and where handlers run.

        :param plugins: the names of the plugins.
        :param placements: a line for each plugin.
        :param more: what else there is to know of the server.
        """
        what, where = ", ".join(plugins) or "no plugin", " and ".join(self.sockets.paths) + more
        logger.info("kongps %s serves %s on %s (pid %d)", __version__, what, where, os.getpid())
        for line in placements:
            logger.info("%s", line)

    # --- stopping --------------------------------------------------------------------------------

    @property
    def stop_requested(self) -> bool:
        """Whether the server stops, or is about to."""
        return self.stopping or self._signalled is not None

    @property
    def left(self) -> float:
        """Seconds until what has not ended is cut off."""
        return self.deadline - time.monotonic()

    def stop_on_signal(self) -> None:
        """Stops when a new server listens, or soon; after a second signal, at once."""
        if self.stop_requested:
            if not self.stopping:
                self.stop_now()
            self.stop_now()
            return
        self.sockets.offer()
        self._signalled = time.monotonic()
        seconds = min(SUCCESSOR_TIME, self.settings.shutdown_timeout / 2)
        if self.connections() and seconds:
            logger.info(
                "stopping on a signal: serving until a new server listens, or %g s", seconds
            )
        self._await_successor(self._signalled + seconds)

    def _await_successor(self, until: float) -> None:
        """Begins the stop when a new server listens, Kong has no connections, or time is over."""
        if self.stopping:
            return
        if self.connections() and not self.sockets.replaced and time.monotonic() < until:
            self.loop.call_later(DRAIN_INTERVAL, lambda: self._await_successor(until))
        else:
            self.stop_now()

    def stop_now(self) -> None:
        """Begins the stop; called again, it does not wait for events."""
        if self.stopping:
            logger.warning("stopping at once, on a second request: not waiting for running events")
            self.stop_at_once()
            return
        self.stopping = True
        self.deadline = (self._signalled or time.monotonic()) + self.settings.shutdown_timeout
        self.close_sockets()
        self.begin_stop()

    def close_sockets(self) -> None:
        """Removes the sockets and accepts nothing any more."""
        self.sockets.remove()
        self.loop.close_listeners()

    def watch(self) -> None:
        """Checks the sockets, and stops when the process that started the server is gone."""
        if self.stopping:
            return
        self.sockets.check()
        if self.settings.parent_watch and os.getppid() != self._parent:
            logger.info("the process that started this server is gone")
            self.stop_now()


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


@contextlib.contextmanager
def signal_handlers(
    loop: Loop, handlers: Handlers, in_child: Callable[[], object] | None = None
) -> Iterator[None]:
    """Handles signals during a block, on the main thread; on another one, none are handled.

    :param loop: the loop that a signal wakes.
    :param handlers: by signal, what is called in the signal handler itself.
    :param in_child: called in a child process that is forked during the block, without the
        handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old_fd = signal.set_wakeup_fd(loop.wakeup_fd, warn_on_full_buffer=False)
    old = {
        number: signal.signal(number, lambda *_, call=call: call())
        for number, call in handlers.items()
    }

    def restore() -> None:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)

    def forked() -> None:
        restore()
        _in_child.remove(forked)
        if in_child is not None:
            in_child()

    if in_child is not None:
        _in_child.append(forked)
    try:
        yield
    finally:
        if forked in _in_child:
            _in_child.remove(forked)
        restore()


def _after_fork() -> None:
    for call in list(_in_child):
        call()


os.register_at_fork(after_in_child=_after_fork)
