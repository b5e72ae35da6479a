"""The database of the store of instances: opening it, and everything that may go wrong with it."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from typing import Any, Callable, TypeVar

from kongps.core.report import report

_T = TypeVar("_T")

# Changes when the tables do; a database of another version is replaced by an empty one.
VERSION = 2

# Seconds that another process, the server before this one, may hold the database.
LOCK_TIMEOUT = 2.0

# Attempts to open a shared one while others hold it.
OPEN_ATTEMPTS = 5

# Rollback journal, not WAL: a child process that a plugin forks may close its copy unharmed. What
# has been written survives the end of the process; the end of the machine ends Kong too.
_SETTINGS = (
    "PRAGMA journal_mode = TRUNCATE",
    "PRAGMA synchronous = OFF",
    "PRAGMA secure_delete = ON",
)

# A closed instance keeps its row, without configuration, so that its id is not given out again.
_TABLE = """
CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    plugin TEXT NOT NULL,
    config BLOB,
    started REAL NOT NULL,
    last_used REAL NOT NULL,
    checksum INTEGER NOT NULL
)
"""

# So that trimming, which the server before this one may have to wait for, does not read them all.
_INDEX = "CREATE INDEX IF NOT EXISTS instances_to_trim ON instances (config IS NULL, last_used)"


class Database:
    """A SQLite database with one table. No method raises.

    A broken database is replaced by an empty one; without one that cannot be used the server goes
    on, and every operation returns None.

    :param path: the file; its directory is made for it.
    :param shared: whether several processes have it open at a time.
    """

    def __init__(self, path: str, shared: bool) -> None:
        self.path = path
        self._shared = shared
        self._file: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._descriptor: int | None = None
        self._lost: list[sqlite3.Connection] = []
        self._locked = False
        try:
            self._open_patiently()
        except (OSError, sqlite3.Error, _Foreign) as error:
            self._replace(error)

    @property
    def working(self) -> bool:
        """Whether it can be used."""
        return self._connection is not None

    def run(self, statement: str, values: tuple[Any, ...]) -> list[Any] | None:
        """Executes a statement.

        :returns: the rows; None when it was not executed.
        """
        return self.do(lambda connection: connection.execute(statement, values).fetchall())

    def run_many(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """Executes a statement for each of some rows, all or none."""

        def run(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.executemany(statement, rows)

        self.do(run)

    def close(self) -> None:
        """Closes the database; what is in it stays."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._is_lost():
            self._lost.append(connection)  # never closed: its file descriptor is another file's
            return
        with contextlib.suppress(sqlite3.Error):
            connection.close()

    # --- what may go wrong -----------------------------------------------------------------------

    def do(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Calls something with the connection.

        :returns: what it returned; None when it failed.
        """
        locked: Exception | None = None
        for _ in range(2):
            if self._connection is None:
                return None
            try:
                if self._is_lost():
                    report(logging.ERROR, "plugin code has closed %s: opening it again", self.path)
                    self._reopen()
                elif self._shared and self._file != _identity(self.path):
                    self._reopen()  # another process has replaced it
                done = work(self._connection)
            except (OSError, sqlite3.Error, OverflowError, _Foreign) as error:
                if _is_locked(error):
                    locked = error
                    if self._shared:
                        continue
                    break
                self._replace(error)
            else:
                if self._locked:
                    self._wait_for_locks(LOCK_TIMEOUT)
                return done
        if locked is not None:
            self._wait_no_more(locked)
        return None

    def _wait_no_more(self, error: Exception) -> None:
        """Another process holds the database: goes on without it for as long as that is so."""
        if self._shared:  # by workers, who cannot do without it
            report(logging.WARNING, "another process holds %s: %s", self.path, error)
        elif not self._locked:
            self._wait_for_locks(0.0)
            report(
                logging.WARNING,
                "instances are not kept for a restart while another process holds %s: %s",
                self.path,
                error,
            )

    def _wait_for_locks(self, seconds: float) -> None:
        """Sets how long SQLite waits for a lock from now on."""
        self._locked = not seconds
        if self._connection is not None:
            self._connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def _is_lost(self) -> bool:
        """Whether plugin code has closed SQLite's file descriptor."""
        return self._descriptor is not None and _identity(self._descriptor) != self._file

    def _reopen(self) -> None:
        self.close()
        self._open()

    def _replace(self, error: Exception) -> None:
        """Replaces a broken database by an empty one; gives up one that cannot be used."""
        self.close()
        broken = isinstance(error, _Foreign) and error.replaceable
        broken = broken or (
            isinstance(error, sqlite3.DatabaseError)
            and not isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError))
        )
        if broken:
            try:
                for suffix in ("", "-journal"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path + suffix)
                self._open()
            except (OSError, sqlite3.Error, _Foreign) as second:
                self.close()
                error = second
            else:
                report(
                    logging.WARNING,
                    "the instances in %s could not be read (%s): it was replaced by an empty store",
                    self.path,
                    error,
                )
                return
        reason = error.strerror if isinstance(error, OSError) else error
        report(
            logging.WARNING,
            "instances are not kept for a restart: %s cannot be used: %s",
            self.path,
            reason,
        )

    # --- opening ---------------------------------------------------------------------------------

    def _open_patiently(self) -> None:
        """Opens the database, also when several processes do so at once."""
        for _ in range(OPEN_ATTEMPTS - 1 if self._shared else 0):
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                self.close()
                if not _is_locked(error):
                    raise
        return self._open()

    def _open(self) -> None:
        """Opens the database, made when it is not there.

        :raises OSError, sqlite3.Error, _Foreign: when it cannot be used.
        """
        _own_directory(os.path.dirname(self.path))
        _own_file(self.path)
        connection = sqlite3.connect(
            self.path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = lambda text: text.decode(errors="replace")
        self._connection = connection
        self._file = _identity(self.path)
        self._descriptor = _descriptor_of(self._file)
        for setting in _SETTINGS:
            connection.execute(setting)
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and tables == 0:
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise _Foreign("another version of kongps made it", replaceable=True)
            connection.execute(_INDEX)
        finally:
            connection.execute("COMMIT")
        connection.execute(
            "SELECT id, plugin, config, started, last_used, checksum FROM instances LIMIT 1"
        )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is executed in the block is kept, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def used_size(connection: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something; SQLite keeps others for later."""
    numbers = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    pages, free, size = numbers
    return int((pages - free) * size)


def _identity(file: str | int) -> tuple[int, int] | None:
    """Device and inode of a file, by its path or a file descriptor."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _descriptor_of(file: tuple[int, int] | None) -> int | None:
    """The file descriptor of a file, which SQLite does not give; None when it cannot be found."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return None
    return next((fd for fd in numbers if _identity(fd) == file), None)


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


class _Foreign(Exception):
    """A file or a directory that is not this server's own."""

    def __init__(self, reason: str, *, replaceable: bool = False) -> None:
        super().__init__(reason)
        self.replaceable = replaceable


def _own_directory(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise _Foreign(f"{path} is no directory of this server's user")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)


def _own_file(path: str) -> None:
    """Makes the file, for its owner alone; what is there already has to be such a file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise _Foreign("it is no file of this server's user")
        os.fchmod(handle, 0o600)
    finally:
        os.close(handle)
