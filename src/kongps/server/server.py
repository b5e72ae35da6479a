"""From settings to a running server: the socket, signals, shutdown."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from threading import Thread  # before a plugin may replace it
from typing import TYPE_CHECKING, Any, Callable

from kongps._version import __version__
from kongps.core.connection import Unfinished, serve
from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.io.loop import Loop
from kongps.core.io.memory import give_back_memory
from kongps.core.report import report
from kongps.core.runners.watchdog import INTERRUPT
from kongps.errors import ServerError
from kongps.plugins.loader import load_directory
from kongps.server.commands import Methods
from kongps.server.placement import Handlers, LoopLike

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

logger = logging.getLogger("kongps")

# Longest path of a unix socket on Linux: sun_path has 108 bytes with the one that ends it.
LONGEST_SOCKET_PATH = 107

# The permission by which a server that is to stop says that its socket may be replaced: the sticky
# bit, which means nothing on a socket.
OFFERED = stat.S_ISVTX

# Seconds between looks at what changes slowly: events that Kong gave up, a parent that is gone.
WATCH_INTERVAL = 1.0

# Seconds between looks at whether the last running event has ended, once the server is to stop.
DRAIN_INTERVAL = 0.02

# Seconds that plugins get at least to close their instances at the server's end.
CLOSE_TIMEOUT = 1.0

# Seconds that a server waits for the one before it to let go of the socket. That one may be busy
# with a handler, or may have yet to see that the Kong that started it is gone (WATCH_INTERVAL).
HAND_OVER_TIME = 3.0

# Seconds between looks at whether it has.
HAND_OVER_INTERVAL = 0.02

# Seconds that a server that ends waits for the lock on its socket's directory. Servers keep it for
# a moment; others may keep it for long.
LONGEST_LOCK = 0.2

# Seconds that a server goes on after a signal to stop, while Kong has connections open and no new
# server listens. One that is started at the same time listens after a third of that (Python, the
# core, a plugin), and what is restarted the other way round waits for the old one to end.
SUCCESSOR_TIME = 1.0

# Seconds that a process gets to end, beyond the shutdown timeout, after it was told to by a signal:
# a handler that never returns, or a thread of a plugin, must not keep it.
STOP_GRACE = 2.0

# What SIGUSR1 has logged.
NUMBERS = (
    "%(Events)d live events, %(Instances)d instances, %(Connections)d connections, "
    "%(EventsHandled)d events handled, %(Memory)d bytes of memory, pid %(Pid)d"
)

# Seconds between the times when the store of instances learns which are in use, and is trimmed.
TRIM_INTERVAL = 3600.0

# Seconds between the times when freed memory goes back to the system, and the most of all time that
# it may take: 1 ms with 5 MB free, 10 ms with 60,000 free pieces among others in 500 MB, and 30 to
# 50 ms the first time after 400 MB were freed.
MEMORY_INTERVAL = 10.0
MEMORY_SHARE = 0.001


def make_dispatcher(
    plugins: dict[str, Plugin], loop: LoopLike | None = None, **options: Any
) -> Dispatcher:
    """A dispatcher that serves some plugins, without a server around it.

    :param plugins: the plugins by name.
    :param loop: what has this thread call something, for plugins with handlers elsewhere: those
        that say ``blocking = True`` or are ``async def``.
    :param options: of :class:`kongps.core.dispatch.Dispatcher`, such as ``event_timeout``.
    """
    handlers = Handlers(loop, mode="inline")
    dispatcher = Dispatcher(handlers.inline, **options)
    Methods(dispatcher, plugins, handlers=handlers)
    return dispatcher


def _prepare(plugins: dict[str, Plugin]) -> None:
    """Imports now what an instance will need: the first request must not wait for it."""
    for plugin in plugins.values():
        assert plugin.kong


def open_socket(
    path: str, mode: int = 0o600, backlog: int = 4096, patience: float = 0.0
) -> socket.socket:
    """Opens the listening socket; whoever sees its path can connect to it at once.

    A socket left by a server that is dead, or offered by one that is to stop, is replaced. The new
    one is bound under another name and renamed, so that no moment passes with wrong permissions or
    with nobody listening.

    :param path: where to put it.
    :param mode: its permissions.
    :param backlog: connections that may wait to be accepted.
    :param patience: seconds to wait for a live server there to end.
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
    deadline = time.monotonic() + patience
    while True:
        with _locked(directory):
            if not _is_taken(path):
                return _listen(path, fresh, mode, backlog)
        if time.monotonic() >= deadline:
            raise ServerError(
                f"another server listens on {path}; stop it or give another path with --socket"
            )
        time.sleep(HAND_OVER_INTERVAL)


def _listen(path: str, fresh: str, mode: int, backlog: int) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove(fresh)
        listening.bind(fresh)
        os.chmod(fresh, mode & ~OFFERED)
        listening.listen(backlog)
        os.rename(fresh, path)
    except OSError as error:
        listening.close()
        _remove(fresh)
        raise ServerError(f"cannot open the socket {path}: {error.strerror}") from None
    return listening


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Keeps other servers from putting a socket into a directory for a moment."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ServerError(f"cannot use the directory {directory}: {error.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        _unlock(handle)


@contextlib.contextmanager
def _locked_if_possible(directory: str) -> Iterator[None]:
    """The same for a server that ends: it does not fail, and does not wait for long."""
    handle = -1
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        deadline = time.monotonic() + LONGEST_LOCK
        while time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(HAND_OVER_INTERVAL)
    try:
        yield
    finally:
        if handle >= 0:
            _unlock(handle)


def _unlock(handle: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)  # also for a child that a plugin has forked meanwhile
    os.close(handle)


def _is_taken(path: str) -> bool:
    """Whether a live server listens on a path, and means to go on.

    :raises ServerError: when no socket can be put there.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ServerError(f"cannot use the socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(kind):
        raise ServerError(
            f"{path} exists and is no socket; remove it or give another path with --socket"
        )
    if kind & OFFERED:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False  # its server is dead
        except FileNotFoundError:
            return False  # removed meanwhile
        except OSError as error:
            if isinstance(error, (BlockingIOError, TimeoutError, socket.timeout)):
                pass  # alive, and its queue is full
            else:
                raise ServerError(f"cannot use the socket {path}: {error.strerror}") from None
    return True


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _end_process(delay: float) -> None:
    time.sleep(delay)
    report(logging.ERROR, "plugin code keeps the server from ending; ending it now")
    os._exit(1)


# What a child process that a handler forks has to let go of; a running server adds itself.
_in_child: list[Callable[[], None]] = []


def _after_fork() -> None:
    for let_go in list(_in_child):
        let_go()


os.register_at_fork(after_in_child=_after_fork)


class SocketFiles:
    """The sockets that are ours, as files: nobody else's are removed.

    :ivar offered: whether a new server may put its own in their places.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[int, int]] = {}  # path: device and inode
        self._lost = False
        self.offered = False

    @property
    def paths(self) -> list[str]:
        """Where they are."""
        return list(self._made)

    def open(self, path: str, mode: int, backlog: int, patience: float) -> socket.socket:
        """Opens a listening socket; see ``open_socket``."""
        listening = open_socket(path, mode, backlog, patience)
        made = os.stat(path)
        self._made[path] = (made.st_dev, made.st_ino)
        return listening

    def look_after(self) -> None:
        """Says so, once, when one was removed or replaced."""
        if self._lost or self.offered:
            return
        for path in self._made:
            if not self._is_ours(path):
                self._lost = True
                logger.error(
                    "the socket %s was removed or replaced: Kong cannot connect to this server "
                    "any more; start it again",
                    path,
                )
                return

    def offer(self) -> None:
        """Lets a new server put its own in their places, once; until it does, these go on."""
        if self.offered:
            return  # by now the files may be a new server's
        self.offered = True
        for path in reversed(self._made):  # who takes the first one tries the other at once
            with contextlib.suppress(OSError):
                if self._is_ours(path):
                    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | OFFERED)

    @property
    def replaced(self) -> bool:
        """Whether none of them is in its place any more."""
        return not any(self._is_ours(path) for path in self._made)

    def remove(self) -> None:
        """Removes them, once, the first one last.

        To be done while they still listen: until they are closed, no other file has their numbers.
        """
        while self._made:
            path = next(reversed(self._made))
            with _locked_if_possible(os.path.dirname(path) or "."):
                if self._is_ours(path):
                    _remove(path)
            del self._made[path]

    def _is_ours(self, path: str) -> bool:
        try:
            there = os.stat(path)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == self._made[path]


class HandOver:
    """From a signal to stop until the stop begins: nobody who connects is to find no server.

    :param loop: the server's.
    :param sockets: its sockets, which a new server may replace from then on.
    :param connections: tells how many Kong has open.
    :param shutdown_timeout: seconds from the signal until what has not ended is cut off.
    :param stopping: tells whether the stop has begun.
    :param begin_stop: begins it; called again, it does not wait for what is under way.
    :ivar since: when the first signal came, monotonic seconds; None before.
    """

    def __init__(
        self,
        loop: Loop,
        sockets: SocketFiles,
        connections: Callable[[], int],
        shutdown_timeout: float,
        stopping: Callable[[], bool],
        begin_stop: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sockets = sockets
        self._connections = connections
        self._seconds = min(SUCCESSOR_TIME, shutdown_timeout / 2)
        self._stopping = stopping
        self._begin_stop = begin_stop
        self._until = 0.0
        self.since: float | None = None

    def signalled(self) -> None:
        """Serves on while a new server may be about to listen, then stops; told again, at once."""
        if self.since is not None and not self._stopping():
            self._begin_stop()
        if self._stopping():
            self._begin_stop()
            return
        self._sockets.offer()
        self.since = time.monotonic()
        self._until = self.since + self._seconds
        if self._connections() and self._seconds:
            logger.info(
                "told to stop: until a new server listens, or %g s, it goes on", self._seconds
            )
        self._look()

    def _look(self) -> None:
        """Stops when a new server listens, Kong has left, or time is over."""
        if self._stopping():
            return
        if self._connections() and not self._sockets.replaced and time.monotonic() < self._until:
            self._loop.call_later(DRAIN_INTERVAL, self._look)
        else:
            self._begin_stop()


class Server:
    """A plugin server.

    :param settings: what it is told.
    :param plugins: the plugins to serve; those of the plugins directory when None.
    :raises ServerError: when the plugins directory cannot be read, or is refused.
    """

    def __init__(self, settings: Settings, plugins: dict[str, Plugin] | None = None) -> None:
        self._parent = os.getppid()
        self.settings = settings
        self.loop = Loop(settings.max_connections)
        self._unfinished = Unfinished(settings.max_unfinished)
        forever = float("inf")
        self.handlers = Handlers(
            self.loop,
            mode=settings.handlers,
            threads=settings.handler_threads,
            block_threshold=settings.block_threshold or forever,
            handler_timeout=settings.handler_timeout or forever,
        )
        self.dispatcher = Dispatcher(
            self.handlers.inline,
            handler_timeout=settings.handler_timeout or forever,
            event_timeout=settings.event_timeout,
            pipelining=not settings.no_pipelining,
            on_error=settings.on_error,
            max_events=settings.max_events,
            max_message=settings.max_message,
        )
        errors: dict[str, str] = {}
        if plugins is None:
            if not os.path.isdir(settings.plugins_directory):
                raise ServerError(
                    f"the plugins directory {settings.plugins_directory!r} does not exist"
                )
            loaded = load_directory(
                settings.plugins_directory,
                lua_style=not settings.no_lua_style,
                checked=not settings.allow_unsafe_plugins,
            )
            for error in loaded.errors:
                logger.error("%s", error)
            errors = {error.plugin: str(error) for error in loaded.errors}
            plugins = loaded.plugins
        self.plugins = plugins
        self.errors = errors
        # Whose event was lost, nobody can tell: it may have been one of a plugin that says no.
        self.dispatcher.lets_lost_pass = settings.on_error == "open" and not any(
            plugin.on_error == "closed" for plugin in plugins.values()
        )
        _prepare(plugins)
        self.methods = Methods(
            self.dispatcher,
            plugins,
            directory=settings.plugins_directory or None,
            errors=errors,
            max_instances=settings.max_instances,
            connections=lambda: self.loop.streams,
            handlers=self.handlers,
            call_later=self.loop.call_later,
        )
        self._sockets = SocketFiles()
        self._stop_at: float | None = None
        self._hand_over = HandOver(
            self.loop,
            self._sockets,
            lambda: self.loop.streams,
            settings.shutdown_timeout,
            lambda: self._stop_at is not None,
            self._begin_stop,
        )
        self._signals = 0
        self._give_back_at = 0.0

    def open(self) -> None:
        """Opens the socket; Kong can connect from now on.

        :raises ServerError: when the path cannot be used, or a live server listens there.
        """
        self._open(self.settings.socket, HAND_OVER_TIME)
        if self.settings.second_socket:
            try:
                # Not waited for: a server that ends lets go of it before it does of the first.
                self._open(self.settings.second_socket, 0.0)
            except ServerError as error:
                logger.warning("%s", error)
        self._open_store()

    def _open(self, path: str, patience: float) -> None:
        settings = self.settings
        listening = self._sockets.open(
            path, settings.socket_mode, settings.listen_queue_size, patience
        )
        serve(self.loop, listening, self.dispatcher, self._unfinished)

    def _open_store(self) -> None:
        """Opens the store of instances: of the server whose socket it stands beside, no other's."""
        if self.settings.no_instance_store:
            return
        try:
            from kongps.server.store import InstanceStore, store_path
        except ImportError as error:  # a Python built without SQLite
            logger.warning("instances are not kept for a restart: %s", error)
            return
        self.methods.store = InstanceStore(store_path(self.settings.socket))

    def run(self) -> None:
        """Serves until told to stop: by SIGTERM, SIGINT, ``stop`` or the parent's end.

        On the main thread it takes over the two signals while it runs, and SIGUSR1, which has it
        log what it holds.

        :raises ServerError: when a plugin has closed file descriptors of the server.
        """
        if not self._sockets.paths:
            self.open()
        self._call_regularly()
        restore = self._take_signals()
        logger.info(
            "kongps %s serves %s on %s (pid %d)",
            __version__, ", ".join(self.plugins) or "no plugin", " and ".join(self._sockets.paths),
            os.getpid(),
        )  # fmt: skip
        self.handlers.watchdog.start()
        try:
            self.loop.run()
        finally:
            restore()
            self._close()
        if self.loop.failed is not None:
            raise ServerError(self.loop.failed)
        logger.info("kongps has stopped")

    def _call_regularly(self) -> None:
        self.loop.call_every(WATCH_INTERVAL, self._watch)
        self.loop.call_every(TRIM_INTERVAL, self.methods.trim_store)
        self.loop.call_every(MEMORY_INTERVAL, self._give_back_memory)

    def _give_back_memory(self) -> None:
        now = time.monotonic()
        if now >= self._give_back_at:
            self._give_back_at = now + give_back_memory() / MEMORY_SHARE

    def stop(self) -> None:
        """Stops: no new connections, running events get ``shutdown_timeout`` to finish.

        From any thread, or a signal handler. A second call does not wait for events.
        """
        self.loop.call_soon_threadsafe(self._begin_stop)

    def _signalled(self) -> None:
        """Stops, and sees to it that the process ends when plugin code holds up the loop."""
        self._sockets.offer()  # now, not when the loop has its turn: a new server may wait
        self._end_if_held_up(self.settings.shutdown_timeout if not self._signals else 0.0)
        self._signals += 1
        self.loop.call_soon_threadsafe(self._hand_over.signalled)

    def _end_if_held_up(self, patience: float) -> None:
        """Ends the process, though plugin code holds it up.

        :param patience: seconds that it gets, beyond ``STOP_GRACE``.
        """
        Thread(
            target=_end_process, args=(patience + STOP_GRACE,), daemon=True, name="kongps-stop"
        ).start()

    def _take_signals(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        old_fd = signal.set_wakeup_fd(self.loop.wakeup_fd, warn_on_full_buffer=False)
        old = {
            number: signal.signal(number, lambda *_: self._signalled())
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        old[INTERRUPT] = signal.signal(INTERRUPT, lambda *_: self.handlers.watchdog.interrupted())
        for number, call in (
            (signal.SIGUSR1, self._tell_numbers), (signal.SIGHUP, self._hung_up)
        ):  # fmt: skip
            old[number] = signal.signal(
                number, lambda *_, call=call: self.loop.call_soon_threadsafe(call)
            )

        def forked() -> None:
            restore()
            self.handlers.after_fork()
            self.loop.forked()

        _in_child.append(forked)

        def restore() -> None:
            _in_child.remove(forked)
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)

        return restore

    def _tell_numbers(self) -> None:
        logger.info(NUMBERS, self.methods.numbers())

    def _hung_up(self) -> None:
        logger.warning(
            "SIGHUP: the plugins are not loaded anew; that needs --workers 2 or more, or --reload"
        )

    def _begin_stop(self) -> None:
        if self._stop_at is not None:
            logger.warning("told to stop again: not waiting for running events")
            self.loop.stop()
            return
        began = self._hand_over.since or time.monotonic()
        self._stop_at = began + self.settings.shutdown_timeout
        logger.info("stopping; %d events are running", self.dispatcher.live_events)
        self._sockets.remove()
        self.loop.close_listeners()
        # Those who had just connected get that long to say what they want.
        self.loop.call_later(DRAIN_INTERVAL, self._drain)

    def _drain(self) -> None:
        """Ends the loop when nothing is left to do.

        While events are under way connections stay open: over MsgPack:1 the steps of an event come
        on any of them. Kong has them in its pool and goes on using them, which is well until a new
        server listens; then each is closed when what came on it is done.
        """
        assert self._stop_at is not None
        left = self._stop_at - time.monotonic()
        if self.dispatcher.live_events:
            replaced = os.path.exists(self.settings.socket)
            self.loop.draining = replaced or left < self.settings.shutdown_timeout / 2
        else:
            self.loop.close_idle_streams()
        # Without a connection no event can go on: Kong has given it up.
        if self.loop.streams and left > 0:
            self.loop.call_later(DRAIN_INTERVAL, self._drain)
        else:
            self._end()

    def _end(self) -> None:
        """Ends the loop when the plugins' instances have closed, or had their time to."""
        self._end_events()
        self.methods.close_all()
        self._stop_at = max(self._stop_at or 0.0, time.monotonic() + CLOSE_TIMEOUT)
        self._await_closes()

    def _await_closes(self) -> None:
        assert self._stop_at is not None
        if self.methods.closing and time.monotonic() < self._stop_at:
            self.loop.call_later(DRAIN_INTERVAL, self._await_closes)
        else:
            self.loop.stop()

    def _watch(self) -> None:
        self.handlers.watchdog.beat()
        self.dispatcher.end_late_handlers()
        self.handlers.end_late()
        self.dispatcher.abandon_idle_events()
        if self.settings.instance_ttl:
            self.methods.close_idle(self.settings.instance_ttl)
        self.loop.check()
        if self._stop_at is None:
            self._sockets.look_after()
        if self.settings.parent_watch and self._stop_at is None and os.getppid() != self._parent:
            logger.info("the process that started this server is gone")
            self._begin_stop()

    def _end_events(self) -> None:
        left = self.dispatcher.abandon_all_events()
        if left:
            logger.warning("%d events had not ended in time", left)
        self.loop.close_streams()

    def _close(self) -> None:
        self._sockets.remove()
        self.loop.close_listeners()
        self._end_events()
        self.methods.close_all()
        if self.methods.closing:
            logger.warning("%d instances had not closed in time", self.methods.closing)
        self.handlers.stop()
