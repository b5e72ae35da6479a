"""MsgPack:1 from Kong's side: connections, the keepalive pool, one call at a time on each."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from kongps.testing.values import LuaError, pack, unpacker

__all__ = [
    "Connection",
    "Exchanger",
    "Pending",
    "Pool",
    "RpcError",
    "SessionConnection",
    "SocketConnection",
]

_READ_SIZE = 65536
_POLL = 0.0005  # seconds between looks at an in-process session whose answer is not there yet


class RpcError(Exception):
    """A call that brought no result.

    :ivar kind: ``"answer"`` (the server answered with an error), ``"connect"`` (it was not
        there), ``"timeout"`` or ``"closed"``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Connection(Protocol):
    """One connection to a plugin server."""

    number: int

    def send(self, data: bytes) -> None:
        """Send a whole message; OSError when the connection is gone."""

    def receive(self, deadline: float) -> Any:
        """The next message; TimeoutError past ``deadline`` (of time.monotonic), OSError or
        EOFError when the connection is gone."""

    def close(self) -> None:
        """Close it."""


class SocketConnection:
    """A connection to a plugin server's unix socket."""

    def __init__(self, path: str, number: int, timeout: float) -> None:
        self.number = number
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise
        self._unpacker = unpacker()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, deadline: float) -> Any:
        while True:
            try:
                return next(self._unpacker)
            except StopIteration:
                pass
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(_READ_SIZE)
            except socket.timeout:
                raise TimeoutError from None
            if not data:
                raise EOFError("closed")
            self._unpacker.feed(data)

    def close(self) -> None:
        self._socket.close()


class Session(Protocol):
    """What :class:`kongps.core.session.Session` offers."""

    def receive_data(self, data: bytes) -> None: ...

    def data_to_send(self) -> bytes: ...


class SessionConnection:
    """A connection to a plugin server in this process: no socket, no thread."""

    def __init__(self, session: Session, number: int) -> None:
        self.number = number
        self._session = session
        self._unpacker = unpacker()
        self._closed = False

    def send(self, data: bytes) -> None:
        from kongps.errors import ProtocolError

        if self._closed:
            raise BrokenPipeError("closed")
        try:
            self._session.receive_data(data)
        except ProtocolError:
            self._closed = True

    def receive(self, deadline: float) -> Any:
        while True:
            self._unpacker.feed(self._session.data_to_send())
            try:
                return next(self._unpacker)
            except StopIteration:
                pass
            if self._closed:
                raise EOFError("closed")
            if time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(_POLL)

    def close(self) -> None:
        self._closed = True


class Pool:
    """An nginx worker's pool of connections to one plugin server, as Kong's cosockets keep it.

    A call takes the connection that was put back last, or opens one when none is idle; after its
    answer the connection goes back. So a call finds any connection that an earlier one used.

    :param connect: opens a connection, given its number.
    :param order: which idle connection is taken: ``"lifo"`` as Kong does, or ``"fifo"``, which
        takes turns, so that the steps of one event come on as many connections as there are.
    :param size: how many idle ones are kept; further ones are closed (nginx keeps 30).
    """

    def __init__(
        self, connect: Callable[[int], Connection], *, order: str = "lifo", size: int = 30
    ) -> None:
        if order not in ("lifo", "fifo"):
            raise ValueError(f"order {order!r}: not 'lifo' or 'fifo'")
        self._connect = connect
        self._order = order
        self._size = size
        self._idle: deque[Connection] = deque()
        self.opened = 0

    @property
    def idle(self) -> int:
        """How many connections wait in the pool."""
        return len(self._idle)

    def take(self) -> Connection:
        """An idle connection, or a new one; RpcError when there is nobody to connect to."""
        if self._idle:
            return self._idle.pop() if self._order == "lifo" else self._idle.popleft()
        return self._open()

    def _open(self) -> Connection:
        try:
            connection = self._connect(self.opened + 1)
        except OSError as error:
            raise RpcError("connect", f"trying to connect: {error}") from None
        self.opened += 1
        return connection

    def open(self, count: int) -> None:
        """Have at least ``count`` idle connections."""
        while len(self._idle) < count:
            self._idle.append(self._open())

    def put(self, connection: Connection) -> None:
        """Put a connection back."""
        self._idle.append(connection)
        if len(self._idle) > self._size:
            self._idle.popleft().close()

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().close()


class Exchanger:
    """Calls over a pool: numbers them, sends them, reads their answers."""

    def __init__(self, pool: Pool, notify: Callable[[str, Any], None]) -> None:
        self.pool = pool
        self._notify = notify
        self._sequence = 0

    def begin(self, method: str, args: list[Any]) -> Pending:
        """Send a call; RpcError when it cannot be sent."""
        self._sequence += 1
        number = self._sequence
        connection = self.pool.take()
        try:
            data = pack([0, number, method, args])
        except (TypeError, ValueError, OverflowError) as error:
            connection.close()
            raise LuaError(f"pack: {error}", drops_connection=True) from None
        try:
            connection.send(data)
        except OSError as error:
            # Kong reads on a connection that it could not write to, and finds it closed.
            connection.close()
            raise RpcError("closed", f"closed: {error}") from None
        return Pending(connection, number)

    def end(self, pending: Pending, timeout: float) -> Any:
        """The result of a call that was begun.

        :raises RpcError: there is none.
        :raises LuaError: what came is not the answer to this call; the connection is closed.
        """
        connection = pending.connection
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = connection.receive(deadline)
            except TimeoutError:
                # Kong puts it back all the same; a late answer then breaks the next call on it.
                self.pool.put(connection)
                raise RpcError("timeout", "timeout") from None
            except (OSError, EOFError):
                connection.close()
                raise RpcError("closed", "closed") from None
            except ValueError as error:
                connection.close()
                raise LuaError(f"the plugin server sent no MessagePack: {error}") from None
            if not isinstance(message, list) or not message:
                connection.close()
                raise LuaError(f"RPC response expected from the plugin server, got {message!r}")
            if message[0] == 2 and len(message) == 3:
                self._notify(str(message[1]), message[2])
                continue
            if message[0] != 1 or len(message) != 4:
                connection.close()
                raise LuaError(f"RPC response expected from the plugin server, got {message!r}")
            if message[1] != pending.number:
                connection.close()
                raise LuaError(
                    f"unexpected response id: expected {pending.number}, got {message[1]}"
                )
            self.pool.put(connection)
            if message[2] is not None:
                raise RpcError("answer", str(message[2]))
            return message[3]


class Pending:
    """A call that was sent and not yet answered."""

    __slots__ = ("connection", "number")

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
