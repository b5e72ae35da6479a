"""What serves events in one process; a server and each worker have one."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kongps.core.connection import Unfinished
from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.io.loop import Loop
from kongps.core.io.memory import give_back_memory
from kongps.core.runners.watchdog import INTERRUPT
from kongps.errors import ServerError
from kongps.plugins.loader import load_directory
from kongps.server.commands import Commands
from kongps.server.instances import Instances
from kongps.server.placement import LoopLike, Placement
from kongps.server.shutdown import DRAIN_INTERVAL, WATCH_INTERVAL, Handlers, signal_handlers
from kongps.settings import Settings

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin

logger = logging.getLogger("kongps")

# Seconds that plugins get at least to close their instances at the server's end.
CLOSE_TIMEOUT = 1.0

# Seconds between the times when the store of instances learns which are in use, and is trimmed.
TRIM_INTERVAL = 3600.0

# Seconds between the times when freed memory goes back to the system, and the share of all time
# that it may take: 1 ms with 5 MB free, 10 ms with 60,000 free pieces among others in 500 MB, and
# 30 to 50 ms the first time after 400 MB were freed.
MEMORY_INTERVAL = 10.0
MEMORY_SHARE = 0.001


class ServingCore:
    """The loop, the plugins with their instances, and where their handlers run.

    :param settings: the server's settings.
    :param plugins: the plugins to serve; those of the plugins directory when None.
    :raises ServerError: when the plugins directory cannot be read, or is refused.

    :ivar errors: why plugins of the directory could not be loaded, by name.
    """

    def __init__(self, settings: Settings, plugins: dict[str, Plugin] | None = None) -> None:
        self.settings = settings
        self.loop = Loop(settings.max_connections)
        self.unfinished = Unfinished(settings.max_unfinished)
        self.placement = Placement(self.loop, settings)
        self.dispatcher = _dispatcher(settings, self.placement)
        self.errors: dict[str, str] = {}
        if plugins is None:
            plugins, self.errors = _load(settings)
        self.plugins = plugins
        # The plugin of a lost event is not known: it may be one that says "closed".
        self.dispatcher.lost_events_pass = settings.on_error == "open" and not any(
            plugin.on_error == "closed" for plugin in plugins.values()
        )
        for plugin in plugins.values():
            assert plugin.kong  # imported now, for the first request not to wait for it
        self.instances = Instances(
            self.dispatcher,
            plugins,
            self.errors,
            self.placement,
            max_instances=settings.max_instances,
            call_later=self.loop.call_later,
        )
        self.commands = Commands(
            self.instances, lambda: self.loop.streams, settings.plugins_directory
        )
        self._give_back_at = 0.0

    def placements(self) -> list[str]:
        """Where the handlers of each plugin run and why, a line for each."""
        return [self.placement.describe(plugin) for plugin in self.plugins.values()]

    # --- running ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self, handlers: Handlers) -> Iterator[None]:
        """Everything but the loop itself runs during the block; at its end all is closed.

        :param handlers: by signal, what is called in the signal handler itself.
        """
        self.loop.call_every(WATCH_INTERVAL, self._watch)
        self.loop.call_every(TRIM_INTERVAL, self.instances.trim_store)
        self.loop.call_every(MEMORY_INTERVAL, self._give_back_memory)
        all_handlers = {INTERRUPT: self.placement.watchdog.interrupted, **handlers}
        try:
            with signal_handlers(self.loop, all_handlers, self._forked):
                self.placement.watchdog.start()
                yield
        finally:
            self._close()

    def _watch(self) -> None:
        self.placement.watchdog.beat()
        self.dispatcher.end_late_handlers()
        self.placement.end_late()
        self.dispatcher.abandon_idle_events()
        if self.settings.instance_ttl:
            self.instances.close_idle(self.settings.instance_ttl)
        self.loop.check()

    def _give_back_memory(self) -> None:
        now = time.monotonic()
        if now >= self._give_back_at:
            self._give_back_at = now + give_back_memory() / MEMORY_SHARE

    def _forked(self) -> None:
        """In a child process that a handler has forked."""
        self.placement.after_fork()
        self.loop.forked()

    # --- ending ----------------------------------------------------------------------------------

    def end(self, deadline: float) -> None:
        """Ends the loop when the plugins' instances have closed, or had their time to.

        :param deadline: when they have had it, monotonic seconds; they get at least
            ``CLOSE_TIMEOUT``.
        """
        self._end_events()
        self.instances.close_all()
        self._await_closes(max(deadline, time.monotonic() + CLOSE_TIMEOUT))

    def _await_closes(self, deadline: float) -> None:
        if self.instances.closing and time.monotonic() < deadline:
            self.loop.call_later(DRAIN_INTERVAL, lambda: self._await_closes(deadline))
        else:
            self.loop.stop()

    def _end_events(self) -> None:
        left = self.dispatcher.abandon_all_events()
        if left:
            logger.warning("%d events had not ended in time", left)
        self.loop.close_streams()

    def _close(self) -> None:
        self._end_events()
        self.instances.close_all()
        if self.instances.closing:
            logger.warning("%d instances had not closed in time", self.instances.closing)
        self.placement.stop()


def _load(settings: Settings) -> tuple[dict[str, Plugin], dict[str, str]]:
    """Loads the plugins directory: the plugins, and why others could not be loaded."""
    if not os.path.isdir(settings.plugins_directory):
        raise ServerError(f"the plugins directory {settings.plugins_directory!r} does not exist")
    loaded = load_directory(
        settings.plugins_directory,
        lua_style=not settings.no_lua_style,
        checked=not settings.allow_unsafe_plugins,
    )
    for error in loaded.errors:
        logger.error("%s", error)
    return loaded.plugins, {error.plugin: str(error) for error in loaded.errors}


def _dispatcher(settings: Settings, placement: Placement) -> Dispatcher:
    dispatcher = Dispatcher(
        placement.inline,
        handler_timeout=settings.handler_timeout or float("inf"),
        event_timeout=settings.event_timeout,
        pipelining=not settings.no_pipelining,
        on_error=settings.on_error,
        max_events=settings.max_events,
    )
    placement.dispatcher = dispatcher
    return dispatcher


def make_dispatcher(
    plugins: dict[str, Plugin], loop: LoopLike | None = None, *, settings: Settings | None = None
) -> Dispatcher:
    """A dispatcher that serves some plugins, without a server around it.

    :param plugins: the plugins by name.
    :param loop: calls functions on this thread, for plugins with handlers elsewhere: those with
        ``blocking = True`` or ``async def``.
    :param settings: the defaults with ``handlers`` inline when None.
    """
    settings = settings or Settings(handlers="inline")
    placement = Placement(loop, settings)
    dispatcher = _dispatcher(settings, placement)
    instances = Instances(
        dispatcher, plugins, {}, placement, max_instances=settings.max_instances, call_later=None
    )
    Commands(instances, int, "")
    return dispatcher
