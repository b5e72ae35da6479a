"""A server in one process: its sockets, its store, and how it stops."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

from kongps.core.connection import serve
from kongps.errors import ServerError
from kongps.server.commands import log_numbers
from kongps.server.core import ServingCore
from kongps.server.shutdown import (
    DRAIN_INTERVAL,
    WATCH_INTERVAL,
    Handlers,
    ListeningServer,
    end_process_after,
)

if TYPE_CHECKING:
    import socket

    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

logger = logging.getLogger("kongps")


class Server(ListeningServer):
    """A plugin server.

    :param settings: its settings.
    :param plugins: the plugins to serve; those of the plugins directory when None.
    :raises ServerError: when the plugins directory cannot be read, or is refused.
    """

    def __init__(self, settings: Settings, plugins: dict[str, Plugin] | None = None) -> None:
        super().__init__(settings)
        self.core = ServingCore(settings, plugins)
        self.loop = self.core.loop  # `call_soon_threadsafe` of it is for other threads
        self._signals = 0

    def connections(self) -> int:
        """The number of Kong's connections."""
        return self.loop.streams

    def open(self) -> None:
        """Opens the socket; Kong can connect from now on.

        :raises ServerError: when the path cannot be used, or a live server listens there.
        """
        self.sockets.open_all(self.settings, self._listen)
        self._open_store()

    def _listen(self, listening: socket.socket) -> None:
        serve(
            self.loop,
            listening,
            self.core.dispatcher,
            self.core.unfinished,
            self.settings.max_message,
        )

    def _open_store(self) -> None:
        """Opens the store of instances: of the server whose socket it stands beside, no other's."""
        if self.settings.no_instance_store:
            return
        try:
            from kongps.server.store import InstanceStore, store_path
        except ImportError as error:  # a Python built without SQLite
            logger.warning("instances are not kept for a restart: %s", error)
            return
        self.core.instances.store = InstanceStore(store_path(self.settings.socket))

    def run(self) -> None:
        """Serves until it is stopped: by SIGTERM, SIGINT, ``stop`` or the parent's end.

        On the main thread it handles the two signals while it runs, and SIGUSR1, which logs what
        it holds.

        :raises ServerError: when plugin code has closed file descriptors that the server needs.
        """
        if not self.sockets.paths:
            self.open()
        loop = self.loop
        loop.call_every(WATCH_INTERVAL, self.watch)
        handlers: Handlers = {
            signal.SIGTERM: self._on_stop_signal,
            signal.SIGINT: self._on_stop_signal,
            signal.SIGUSR1: partial(loop.call_soon_threadsafe, self._on_sigusr1),
            signal.SIGHUP: partial(loop.call_soon_threadsafe, self._on_sighup),
        }
        with self.core.running(handlers):
            self.log_start(list(self.core.plugins), self.core.placements())
            try:
                loop.run()
            finally:
                self.close_sockets()
        if loop.failed is not None:
            raise ServerError(loop.failed)
        logger.info("kongps has stopped")

    def _on_sigusr1(self) -> None:
        log_numbers(self.core.commands.numbers())

    def _on_sighup(self) -> None:
        logger.warning(
            "SIGHUP: the plugins are not reloaded; that needs --workers 2 or more, or --reload"
        )

    # --- stopping --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stops: no new connections, running events get ``shutdown_timeout`` to finish.

        From any thread, or a signal handler. A second call does not wait for events.
        """
        self.loop.call_soon_threadsafe(self.stop_now)

    def _on_stop_signal(self) -> None:
        """Stops, and ends the process when plugin code holds up the loop. In the signal handler."""
        self.sockets.offer()  # now, while the loop may be busy: a new server may wait
        end_process_after(0.0 if self._signals else self.settings.shutdown_timeout)
        self._signals += 1
        self.loop.call_soon_threadsafe(self.stop_on_signal)

    def stop_at_once(self) -> None:
        """Ends without waiting for events any more."""
        self.loop.stop()

    def begin_stop(self) -> None:
        """Logs it, and ends when nothing is left to do."""
        logger.info("stopping; %d events are running", self.core.dispatcher.live_events)
        # Who has just connected gets that long to send a request.
        self.loop.call_later(DRAIN_INTERVAL, self._drain)

    def _drain(self) -> None:
        """Ends the loop when nothing is left to do.

        While events are under way connections stay open: over MsgPack:1 the steps of an event come
        on any of them. Kong has them in its pool and goes on using them, which is well until a new
        server listens; then each is closed when what came on it is done.
        """
        loop, left = self.loop, self.left
        if self.core.dispatcher.live_events:
            replaced = os.path.exists(self.settings.socket)
            loop.draining = replaced or left < self.settings.shutdown_timeout / 2
        else:
            loop.close_idle_streams()
        # Without a connection no event can go on: Kong has abandoned it.
        if loop.streams and left > 0:
            loop.call_later(DRAIN_INTERVAL, self._drain)
        else:
            self.core.end(self.deadline)
