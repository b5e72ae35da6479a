"""Instances on disk, so that an id that Kong holds outlives the server's memory of it.

Kong 2.4 to 2.8 over ProtoBuf:1 never starts an instance again, and 3.9 asks for one that is gone
without end. So every instance's id, plugin and configuration are kept in a small database beside
the socket. Configurations hold secrets: the database is for the server's user alone, and nothing
of one gets into a log line or an error. What goes wrong with the database never reaches Kong.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from kongps.core.report import report
from kongps.server.database import Database, transaction, used_size

__all__ = ["InstanceStore", "StoredInstance", "store_path"]

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


class InstanceStore:
    """The instances kept. No method raises; a store that does not work any more finds none.

    :param path: the database's file; its directory is made for it.
    :param shared: whether several processes have it open at a time, and know of each other's
        instances by it. Then no configuration is too large for it.
    """

    def __init__(self, path: str, *, shared: bool = False) -> None:
        self.path = path
        self.shared = shared
        self._database = Database(path, shared)
        self._added = 0
        self.trim()

    @property
    def working(self) -> bool:
        """Whether instances are kept."""
        return self._database.working

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
        done = self._database.run(
            "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?, ?, ?)",
            (id, name, config, started, time.time(), _checksum(id, name, config, started)),
        )
        self._added += len(name) + len(config) + ROW_SIZE
        return done is not None

    def find(self, id: int) -> StoredInstance | None:
        """The instance with an id, if it is kept and not closed."""
        rows = self._database.run(
            "SELECT plugin, config, started, checksum, last_used < ? FROM instances "
            "WHERE id = ? AND config IS NOT NULL",
            (time.time() - USED_AGAIN_AFTER, id),
        )
        if not rows:
            return None
        plugin, config, started, checksum, long_ago = rows[0]
        if not isinstance(config, bytes) or checksum != _checksum(id, plugin, config, started):
            # SQLite does not see every damage; Kong starts an instance again that is not there.
            report(logging.WARNING, "instance %d in %s is damaged: passed over", id, self.path)
            return None
        if long_ago:
            self.touch([id])
        return StoredInstance(id, plugin, config, started)

    def knows(self, id: int) -> bool:
        """Whether an id was given out, as far as is remembered."""
        return bool(self._database.run("SELECT 1 FROM instances WHERE id = ?", (id,)))

    def close_instance(self, id: int) -> None:
        """Forgets the configuration of an instance that Kong has closed."""
        self._database.run(
            "UPDATE instances SET config = NULL, last_used = ? WHERE id = ?", (time.time(), id)
        )

    def touch(self, ids: Iterable[int]) -> None:
        """Notes that instances are in use."""
        now = time.time()
        self._database.run_many(
            "UPDATE instances SET last_used = ? WHERE id = ?", [(now, id) for id in ids]
        )

    def trim(self) -> None:
        """Forgets instances that were closed long ago, and those over the count or the size."""
        self._added = 0
        self._database.run(
            "DELETE FROM instances WHERE (config IS NULL) = 1 AND last_used < ?",
            (time.time() - MAX_AGE,),
        )
        count = self._database.run("SELECT count(*) FROM instances", ()) or [(0,)]
        if count[0][0] > MAX_STORED:
            self._database.run(
                "DELETE FROM instances WHERE id IN (SELECT id FROM instances "
                "ORDER BY config IS NULL, last_used DESC LIMIT -1 OFFSET ?)",
                (MAX_STORED,),
            )
        self._database.do(_trim_size)

    def close(self) -> None:
        """Closes the database; what is in it stays."""
        self._database.close()


def _trim_size(connection: sqlite3.Connection) -> None:
    """Forgets what was unused for longest while all takes more than it may."""
    if used_size(connection) <= MAX_STORED_SIZE:
        return
    with transaction(connection):
        missing = used_size(connection) - MAX_STORED_SIZE
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
