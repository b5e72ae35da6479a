"""Instances on disk, so that an id that Kong holds outlives the server's memory of it.

Kong 2.4 to 2.8 over ProtoBuf:1 never starts an instance again, and 3.9 asks for one that is gone
without end. So every instance's id, plugin and configuration are kept in a small database beside
the socket. Configurations hold secrets: the database is for the server's user alone, and nothing
of one gets into a log line or an error. What goes wrong with the database never reaches Kong.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

from kongps.core.report import report

_T = TypeVar("_T")

# Seconds after which the id of a closed instance may be given out again. One that Kong has not
# closed has no age: Kong may hold an id for long before it uses it again, and Kong 2.4 to 2.8
# never recover from one that is gone.
MAX_AGE = 7 * 24 * 3600.0

# Most instances kept; closed ones are forgotten first, then those unused for longest. Each nginx
# worker that ends leaves those that it has started.
MAX_STORED = 100_000

# Bytes of all that is kept; of instances that Kong has not closed, those unused for longest are
# forgotten first. Ten thousand bytes for each of the most instances: what one with a certificate
# takes. It is looked at after each eighth of them.
MAX_STORED_SIZE = 1 << 30

# Bytes that an instance takes at least, in the table and its index.
ROW_SIZE = 80

# Seconds after which an instance that is found again is noted as used.
USED_AGAIN_AFTER = 3600.0

# Largest configuration kept, in bytes.
MAX_CONFIG_SIZE = 1 << 20

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


@dataclass(frozen=True)
class StoredInstance:
    """An instance as it was started; its configuration does not show in ``repr``.

    :ivar config: JSON text, as Kong sent it.
    """

    id: int
    plugin: str
    config: bytes
    started: float

    def __repr__(self) -> str:
        return f"<StoredInstance {self.id} of {self.plugin}>"


def store_path(socket: str) -> str:
    """The database of the server on a socket: in a directory of its own beside it."""
    return os.path.join(f"{os.path.abspath(socket)}.d", "instances.sqlite")


class Database:
    """A SQLite database with one table. No method raises.

    A broken database is replaced by an empty one; without one that cannot be used the server goes
    on, and every operation returns None.

    :param path: the file; its directory is made for it.
    :param shared: whether several processes have it open at a time.
    """

    def __init__(self, path: str, shared: bool) -> None:
        self.path = path
        self.shared = shared
        self._file: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._descriptor: int | None = None
        self._lost: list[sqlite3.Connection] = []
        self._locked = False
        try:
            self._open_patiently()
        except (OSError, sqlite3.Error) as error:
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
                elif self.shared and self._file != _identity(self.path):
                    self._reopen()  # another process has replaced it
                done = work(self._connection)
            except (OSError, sqlite3.Error, OverflowError) as error:
                if _is_locked(error):
                    locked = error
                    if self.shared:
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
        if self.shared:  # by workers, who cannot do without it
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
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, (sqlite3.OperationalError, sqlite3.ProgrammingError)
        ):
            try:
                for suffix in ("", "-journal"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path + suffix)
                self._open()
            except (OSError, sqlite3.Error) as second:
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
        for _ in range(OPEN_ATTEMPTS - 1 if self.shared else 0):
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                self.close()
                if not _is_locked(error):
                    raise
        return self._open()

    def _open(self) -> None:
        """Opens the database, made when it is not there.

        :raises OSError, sqlite3.Error: when it cannot be used.
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
        with _transaction(connection):
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and tables == 0:
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise sqlite3.DatabaseError("another version of kongps made it")
            connection.execute(_INDEX)
        connection.execute(
            "SELECT id, plugin, config, started, last_used, checksum FROM instances LIMIT 1"
        )


class InstanceStore(Database):
    """The instances kept. No method raises; a store that does not work any more finds none.

    :param path: the database's file; its directory is made for it.
    :param shared: whether several processes have it open at a time, and know of each other's
        instances by it. Then no configuration is too large for it.
    """

    def __init__(self, path: str, *, shared: bool = False) -> None:
        super().__init__(path, shared)
        self._added = 0
        self.trim()

    @property
    def is_to_be_trimmed(self) -> bool:
        """Whether so much was added since the last time that trimming should not wait."""
        return self._added > MAX_STORED_SIZE // 8

    def add(self, id: int, plugin: str, config: bytes, started: float) -> bool:
        """Keeps an instance; returns whether it is kept."""
        if len(config) > MAX_CONFIG_SIZE and not self.shared:
            report(
                logging.WARNING,
                "instance %d of plugin %s is not kept for a restart: its configuration is larger "
                "than %d bytes",
                id,
                plugin,
                MAX_CONFIG_SIZE,
            )
            return False
        name = _text(plugin)
        done = self.run(
            "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?, ?, ?)",
            (id, name, config, started, time.time(), _checksum(id, name, config, started)),
        )
        self._added += len(name) + len(config) + ROW_SIZE
        return done is not None

    def find(self, id: int) -> StoredInstance | None:
        """The instance with an id, if it is kept and not closed."""
        rows = self.run(
            "SELECT plugin, config, started, checksum, last_used < ? FROM instances "
            "WHERE id = ? AND config IS NOT NULL",
            (time.time() - USED_AGAIN_AFTER, id),
        )
        if not rows:
            return None
        plugin, config, started, checksum, long_ago = rows[0]
        if not isinstance(config, bytes) or checksum != _checksum(id, plugin, config, started):
            # SQLite does not see every damage; Kong starts an instance again that is not there.
            report(logging.WARNING, "instance %d in %s is damaged; it is ignored", id, self.path)
            return None
        if long_ago:
            self.touch([id])
        return StoredInstance(id, plugin, config, started)

    def knows(self, id: int) -> bool:
        """Whether an id was given out, as far as is remembered."""
        return bool(self.run("SELECT 1 FROM instances WHERE id = ?", (id,)))

    def close_instance(self, id: int) -> None:
        """Forgets the configuration of an instance that Kong has closed."""
        self.run(
            "UPDATE instances SET config = NULL, last_used = ? WHERE id = ?", (time.time(), id)
        )

    def touch(self, ids: Iterable[int]) -> None:
        """Notes that instances are in use."""
        rows = [(time.time(), id) for id in ids]

        def note(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                connection.executemany("UPDATE instances SET last_used = ? WHERE id = ?", rows)

        self.do(note)

    def trim(self) -> None:
        """Forgets instances that were closed long ago, and those over the count or the size."""
        self._added = 0
        self.run(
            "DELETE FROM instances WHERE (config IS NULL) = 1 AND last_used < ?",
            (time.time() - MAX_AGE,),
        )
        count = self.run("SELECT count(*) FROM instances", ()) or [(0,)]
        if count[0][0] > MAX_STORED:
            self.run(
                "DELETE FROM instances WHERE id IN (SELECT id FROM instances "
                "ORDER BY config IS NULL, last_used DESC LIMIT -1 OFFSET ?)",
                (MAX_STORED,),
            )
        self.do(_trim_size)


def _trim_size(connection: sqlite3.Connection) -> None:
    """Forgets what was unused for longest while all takes more than it may."""
    if _used_size(connection) <= MAX_STORED_SIZE:
        return
    with _transaction(connection):
        missing = _used_size(connection) - MAX_STORED_SIZE
        forgotten = []
        for id, size in connection.execute(
            "SELECT id, length(config) FROM instances WHERE (config IS NULL) = 0 ORDER BY last_used"
        ):
            if missing <= 0:
                break
            missing -= size + ROW_SIZE
            forgotten.append((id,))
        connection.executemany("DELETE FROM instances WHERE id = ?", forgotten)


def _checksum(id: int, plugin: str, config: bytes, started: float) -> int:
    return zlib.crc32(config, zlib.crc32(f"{id} {plugin} {started!r}".encode()))


def _text(name: str) -> str:
    """A plugin's name as SQLite takes it; a name that it does not take is no plugin's."""
    return name.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is executed in the block is kept, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _used_size(connection: sqlite3.Connection) -> int:
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


def _own_directory(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"{path} is no directory of this server's user")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)


def _own_file(path: str) -> None:
    """Makes the file, for its owner alone; what is there already has to be such a file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is no file of this server's user")
        os.fchmod(handle, 0o600)
    finally:
        os.close(handle)
