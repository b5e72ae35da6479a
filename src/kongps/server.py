"""From settings to a running server: the socket, signals, shutdown."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

from kongps._version import __version__
from kongps.core.connection import serve
from kongps.core.dispatch import Dispatcher
from kongps.core.inline_runner import InlineRunner
from kongps.core.loop import Loop
from kongps.errors import ServerError
from kongps.loader import load_directory
from kongps.methods import Methods

if TYPE_CHECKING:
    from kongps.plugin import Plugin
    from kongps.settings import Settings

logger = logging.getLogger("kongps")

# Longest path of a unix socket on Linux: sun_path has 108 bytes with the one that ends it.
LONGEST_SOCKET_PATH = 107

# Seconds between looks at what changes slowly: events that Kong gave up, a parent that is gone.
WATCH_INTERVAL = 1.0

# Seconds between looks at whether the last running event has ended, once the server is to stop.
DRAIN_INTERVAL = 0.02


def make_dispatcher(plugins: dict[str, Plugin], **options: Any) -> Dispatcher:
    """A dispatcher that serves some plugins, without a server around it.

    :param plugins: the plugins by name.
    :param options: of :class:`kongps.core.dispatch.Dispatcher`, such as ``event_timeout``.
    """
    dispatcher = Dispatcher(InlineRunner(), **options)
    Methods(dispatcher, plugins)
    return dispatcher


def _prepare(plugins: dict[str, Plugin]) -> None:
    """Imports now what an instance will need: the first request must not wait for it."""
    for plugin in plugins.values():
        assert plugin.kong


def open_socket(path: str, mode: int = 0o600, backlog: int = 4096) -> socket.socket:
    """Opens the listening socket; whoever sees its path can connect to it at once.

    A socket left by a server that is dead is replaced. The new one is bound under another name
    and renamed, so that no moment passes with wrong permissions or with nobody listening.

    :param path: where to put it.
    :param mode: its permissions.
    :param backlog: connections that may wait to be accepted.
    :raises ServerError: when the path cannot be used, or a live server listens there.
    """
    directory = os.path.dirname(path) or "."
    # The same directory: a rename does not cross file systems.
    fresh = os.path.join(directory, f".kps{os.getpid()}")
    for name in (path, fresh):
        if len(os.fsencode(name)) > LONGEST_SOCKET_PATH:
            raise ServerError(
                f"the socket's path {path} is too long: Linux allows {LONGEST_SOCKET_PATH} bytes; "
                "give a shorter one with --socket"
            )
    if not os.path.isdir(directory):
        raise ServerError(
            f"the directory {directory} of the socket does not exist; create it or give another "
            "path (--socket, or --kong-prefix for Kong's prefix)"
        )
    _check_free(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove(fresh)
        listening.bind(fresh)
        os.chmod(fresh, mode)
        listening.listen(backlog)
        os.rename(fresh, path)
    except OSError as error:
        listening.close()
        _remove(fresh)
        raise ServerError(f"cannot open the socket {path}: {error.strerror}") from None
    return listening


def _check_free(path: str) -> None:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ServerError(f"cannot use the socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(kind):
        raise ServerError(
            f"{path} exists and is no socket; remove it or give another path with --socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # its server is dead
        except FileNotFoundError:
            return  # removed meanwhile
        except OSError as error:
            if isinstance(error, (BlockingIOError, TimeoutError, socket.timeout)):
                pass  # alive, and its queue is full
            else:
                raise ServerError(f"cannot use the socket {path}: {error.strerror}") from None
    raise ServerError(
        f"another server listens on {path}; stop it or give another path with --socket"
    )


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class Server:
    """A plugin server.

    :param settings: what it is told.
    :raises ServerError: when the plugins directory cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loop = Loop()
        self.dispatcher = Dispatcher(InlineRunner(), event_timeout=settings.event_timeout)
        if not os.path.isdir(settings.plugins_directory):
            raise ServerError(
                f"the plugins directory {settings.plugins_directory!r} does not exist"
            )
        loaded = load_directory(settings.plugins_directory, lua_style=settings.lua_style)
        for error in loaded.errors:
            logger.error("%s", error)
        self.plugins = loaded.plugins
        _prepare(self.plugins)
        self.methods = Methods(
            self.dispatcher,
            loaded.plugins,
            directory=settings.plugins_directory,
            errors={error.plugin: str(error) for error in loaded.errors},
        )
        self._listening: socket.socket | None = None
        self._socket_file: tuple[int, int] | None = None
        self._parent = os.getppid()
        self._stop_at: float | None = None

    def open(self) -> None:
        """Opens the socket; Kong can connect from now on.

        :raises ServerError: when the path cannot be used, or a live server listens there.
        """
        settings = self.settings
        self._listening = open_socket(
            settings.socket, settings.socket_mode, settings.listen_queue_size
        )
        made = os.stat(settings.socket)
        self._socket_file = (made.st_dev, made.st_ino)
        serve(self.loop, self._listening, self.dispatcher)

    def run(self) -> None:
        """Serves until told to stop: by SIGTERM, SIGINT, ``stop`` or the parent's end.

        On the main thread it takes over the two signals while it runs.
        """
        if self._listening is None:
            self.open()
        self.loop.call_every(WATCH_INTERVAL, self._watch)
        restore = self._take_signals()
        logger.info(
            "kongps %s serves %s on %s (pid %d)",
            __version__, ", ".join(self.plugins) or "no plugin", self.settings.socket, os.getpid(),
        )  # fmt: skip
        try:
            self.loop.run()
        finally:
            restore()
            self._close()
        logger.info("kongps has stopped")

    def stop(self) -> None:
        """Stops: no new connections, running events get ``shutdown_timeout`` to finish.

        From any thread, or a signal handler. A second call does not wait for events.
        """
        self.loop.call_soon_threadsafe(self._begin_stop)

    def _take_signals(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        old_fd = signal.set_wakeup_fd(self.loop.wakeup_fd, warn_on_full_buffer=False)
        old = {
            number: signal.signal(number, lambda *_: self.stop())
            for number in (signal.SIGTERM, signal.SIGINT)
        }

        def restore() -> None:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)

        return restore

    def _begin_stop(self) -> None:
        if self._stop_at is not None:
            logger.warning("told to stop again: not waiting for running events")
            self.loop.stop()
            return
        self._stop_at = time.monotonic() + self.settings.shutdown_timeout
        logger.info("stopping; %d events are running", self.dispatcher.live_events)
        self.loop.close_listeners()
        self._remove_socket()
        self._drain()

    def _drain(self) -> None:
        assert self._stop_at is not None
        if self.dispatcher.live_events and time.monotonic() < self._stop_at:
            self.loop.call_later(DRAIN_INTERVAL, self._drain)
        else:
            self.loop.stop()

    def _watch(self) -> None:
        given_up = self.dispatcher.abandon_idle_events()
        if given_up:
            logger.info("Kong gave up %d events; they were ended", given_up)
        if self.settings.parent_watch and self._stop_at is None and os.getppid() != self._parent:
            logger.info("the process that started this server is gone")
            self._begin_stop()

    def _close(self) -> None:
        left = self.dispatcher.abandon_all_events()
        if left:
            logger.warning("%d events had not ended in time", left)
        self.loop.close_listeners()
        self.loop.close_streams()
        self._remove_socket()
        self.methods.close_all()

    def _remove_socket(self) -> None:
        """Removes the socket, unless another server has put its own there meanwhile."""
        try:
            there = os.stat(self.settings.socket)
            if (there.st_dev, there.st_ino) == self._socket_file:
                os.unlink(self.settings.socket)
        except FileNotFoundError:
            pass
