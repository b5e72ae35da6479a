"""Listening sockets: a dead or stopping server's is replaced, and no server removes another's."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Callable

from kongps.errors import ServerError
from kongps.settings import LONGEST_SOCKET_PATH

if TYPE_CHECKING:
    from kongps.settings import Settings

logger = logging.getLogger("kongps")

# The permission by which a server that stops offers its socket to the next one: the sticky bit,
# which means nothing on a socket.
OFFERED = stat.S_ISVTX

# Seconds that a server waits for the one before it to give up the socket. That one may be busy with
# a handler, or may not have noticed yet that the Kong that started it is gone (WATCH_INTERVAL).
PREDECESSOR_TIME = 3.0

# Seconds between looks at whether it has, and at whether a lock is free.
RETRY_INTERVAL = 0.02

# Seconds that a server that ends waits for the lock on its socket's directory. Servers hold it for
# a moment; other programs may hold it for long.
LOCK_TIMEOUT = 0.2
FOREVER = float("inf")


def open_socket(path: str, mode: int, backlog: int, patience: float) -> socket.socket:
    """Opens a listening socket; whoever sees its path can connect to it at once.

    A socket that a dead server has left, or that a stopping one offers, is replaced. The new one is
    bound under another name and renamed, so that it never has the wrong permissions and there is
    always a server that listens.

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
        time.sleep(RETRY_INTERVAL)


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
def _locked(directory: str, patience: float = FOREVER) -> Iterator[None]:
    """Keeps other servers from putting a socket into a directory for a moment.

    :param directory: the directory.
    :param patience: seconds to wait for the lock; after them, and where there are no locks, the
        block runs without it.
    :raises ServerError: when the directory cannot be used, for who waits for ever.
    """
    handle = -1
    deadline = time.monotonic() + patience
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        while time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(RETRY_INTERVAL)
    except OSError as error:
        if handle < 0 and patience == FOREVER:
            raise ServerError(f"cannot use the directory {directory}: {error.strerror}") from None
    try:
        yield
    finally:
        if handle >= 0:
            with contextlib.suppress(OSError):  # also for a child that a plugin forked meanwhile
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _is_taken(path: str) -> bool:
    """Whether a live server listens on a path and does not offer it.

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
            f"{path} exists and is not a socket; remove it or give another path with --socket"
        )
    if kind & OFFERED:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False  # its server is dead, or it was removed just now
        except (BlockingIOError, socket.timeout):
            pass  # alive, and its queue is full
        except OSError as error:
            raise ServerError(f"cannot use the socket {path}: {error.strerror}") from None
    return True


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


class SocketFiles:
    """The listening sockets of this server, as files.

    :ivar offered: whether a new server may replace them.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[int, int]] = {}  # path: device and inode
        self._lost = False
        self.offered = False

    @property
    def paths(self) -> list[str]:
        """Where they are."""
        return list(self._made)

    def open_all(self, settings: Settings, listen: Callable[[socket.socket], object]) -> None:
        """Opens the socket that the settings name, and the second one if they name one.

        :param listen: takes each, bound and listening.
        :raises ServerError: when the first cannot be opened; the second is not vital.
        """
        mode, backlog = settings.socket_mode, settings.listen_queue_size
        listen(self.open(settings.socket, mode, backlog, PREDECESSOR_TIME))
        if settings.second_socket:
            try:
                # Without waiting: a server that ends removes its second socket first.
                listen(self.open(settings.second_socket, mode, backlog, 0.0))
            except ServerError as error:
                logger.warning("%s", error)

    def open(self, path: str, mode: int, backlog: int, patience: float) -> socket.socket:
        """Opens a listening socket; see ``open_socket``."""
        listening = open_socket(path, mode, backlog, patience)
        made = os.stat(path)
        self._made[path] = (made.st_dev, made.st_ino)
        return listening

    def check(self) -> None:
        """Logs, once, that one was removed or replaced."""
        if self._lost or self.offered:
            return
        for path in self._made:
            if not self._is_ours(path):
                self._lost = True
                logger.error(
                    "the socket %s was removed or replaced: Kong cannot connect to this server "
                    "any more; restart it",
                    path,
                )
                return

    def offer(self) -> None:
        """Lets a new server replace them, once; until it does, this one listens on."""
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

        To be called while they still listen: until they are closed, no other file can have their
        inode numbers.
        """
        while self._made:
            path = next(reversed(self._made))
            with _locked(os.path.dirname(path) or ".", LOCK_TIMEOUT):
                if self._is_ours(path):
                    _remove(path)
            del self._made[path]

    def _is_ours(self, path: str) -> bool:
        try:
            there = os.stat(path)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == self._made[path]
