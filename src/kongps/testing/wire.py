"""Kong's side of the wire, for either protocol: connections and the keepalive pool."""

from __future__ import annotations

import functools
import socket
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kongps.core.io.loop_lock import LoopLock
    from kongps.core.session import Session

_READ_SIZE = 65536
_POLL = 0.0005  # seconds between looks at an in-process session whose answer is not there yet


class RpcError(Exception):
    """A call that brought no result.

    :ivar kind: ``"answer"`` (the server answered with an error), ``"method"`` (it asked for a PDK
        function that does not exist), ``"connect"`` (it was not there), ``"timeout"`` or
        ``"closed"``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Reader(Protocol):
    """Cuts the bytes of one connection into messages."""

    def feed(self, data: bytes) -> None: ...

    def __next__(self) -> Any: ...


class Connection:
    """One connection to a plugin server.

    :ivar waits: how often something was sent and the server's answer waited for.
    """

    def __init__(self, reader: Reader) -> None:
        self.waits = 0
        self._reader = reader
        self._has_sent = False

    def send(self, data: bytes) -> None:
        """Send a whole message; OSError when the connection is gone."""
        self._has_sent = True
        self._write(data)

    def receive(self, deadline: float) -> Any:
        """The next message; TimeoutError past ``deadline`` (of time.monotonic), OSError when the
        connection is gone, ValueError for what is no message."""
        while True:
            try:
                return next(self._reader)
            except StopIteration:
                pass
            if self._has_sent:
                self.waits += 1
                self._has_sent = False
            self._reader.feed(self._read(deadline))

    @property
    def alive(self) -> bool:
        """Whether it can be used again: nginx drops idle connections that the server closes."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it."""
        raise NotImplementedError

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def _read(self, deadline: float) -> bytes:
        raise NotImplementedError


class SocketConnection(Connection):
    """A connection to a plugin server's unix socket."""

    def __init__(
        self,
        path: str,
        reader: Reader,
        timeout: float,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        super().__init__(reader)
        self._timeout = timeout
        self.socket = socket.socket(socket.AF_UNIX, kind)
        try:
            self.socket.settimeout(timeout)
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise

    def _write(self, data: bytes) -> None:
        self.socket.settimeout(self._timeout)
        self.socket.sendall(data)

    def _read(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(_READ_SIZE)
        except socket.timeout:
            raise TimeoutError from None
        if not data:
            raise ConnectionError("the plugin server closed the connection")
        return data

    @property
    def alive(self) -> bool:
        self.socket.settimeout(0)
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self.socket.close()


class Calls:
    """Calls in this thread what handlers in other threads ask for, as a server's loop would.

    :ivar lock: never shared: everything is called here.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], object]] = SimpleQueue()

    @functools.cached_property
    def lock(self) -> LoopLock:
        from kongps.core.io.loop_lock import LoopLock

        return LoopLock()

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        """Let :meth:`run` call ``callback``. From any thread."""
        self._waiting.put(callback)

    def run(self, seconds: float) -> None:
        """Call what was asked for; wait for it if there is nothing yet."""
        try:
            self._waiting.get(timeout=seconds)()
            while True:
                self._waiting.get_nowait()()
        except Empty:
            pass


class SessionConnection(Connection):
    """A connection to a plugin server in this process: no socket, no thread."""

    def __init__(self, session: Session, reader: Reader, calls: Calls | None = None) -> None:
        super().__init__(reader)
        self.session = session
        self._calls = calls or Calls()
        self._closed = False

    def _write(self, data: bytes) -> None:
        from kongps.errors import ProtocolError

        if not self.alive:
            raise BrokenPipeError("closed")
        try:
            self.session.receive_data(data)
        except ProtocolError:
            self.close()

    def _read(self, deadline: float) -> bytes:
        while True:
            data = self.session.data_to_send()
            if data:
                return data
            if not self.alive:
                self.close()
                raise ConnectionError("the plugin server closed the connection")
            if time.monotonic() >= deadline:
                raise TimeoutError
            self._calls.run(_POLL)

    @property
    def alive(self) -> bool:
        return not (self._closed or self.session.closing)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.session.connection_lost()


class Pool:
    """An nginx worker's pool of connections to one plugin server, as Kong's cosockets keep it.

    A call takes the connection that was put back last, or opens one when none is idle; after its
    answer the connection goes back. So a call finds any connection that an earlier one used.

    :param connect: opens a connection.
    :param order: which idle connection is taken: ``"lifo"`` as Kong does, or ``"fifo"``, which
        takes turns, so that the steps of one event come on as many connections as there are.
    :param size: how many idle ones are kept; further ones are closed (nginx keeps 30).
    """

    def __init__(
        self, connect: Callable[[], Connection], *, order: str = "lifo", size: int = 30
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
        """An idle connection, or a new one; RpcError when there is no server to connect to."""
        while self._idle:
            found = self._idle.pop() if self._order == "lifo" else self._idle.popleft()
            if found.alive:
                return found
            found.close()
        return self._open()

    def _open(self) -> Connection:
        try:
            connection = self._connect()
        except OSError as error:
            raise RpcError("connect", f"trying to connect: {error}") from None
        self.opened += 1
        return connection

    def open(self, count: int) -> None:
        """Open connections until ``count`` are idle."""
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
