from collections.abc import Callable, Iterable
from socket import socket

from kongps.core.connection import Unfinished
from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.io.loop import Loop
from kongps.core.workers.journal import Journal
from kongps.core.workers.relay import Routes

def signal_at_end_of_parent(number: int) -> None: ...

class Channel:
    def __init__(
        self,
        talk: Callable[[bytes, list[int]], object],
        ended: Callable[[], object] | None,
    ) -> None: ...
    def start(self, loop: Loop, fd: int) -> None: ...
    def tell(self, data: bytes, fds: Iterable[int] = ()) -> None: ...
    def hang_up(self) -> None: ...

class WorkerChannel(Channel):
    @property
    def desk(self) -> int: ...
    @property
    def load(self) -> int: ...
    def __init__(
        self,
        board: ConnectionBroker,
        desk: int,
        talk: Callable[[bytes, list[int]], object],
        ended: Callable[[], object] | None,
    ) -> None: ...

class ConnectionBroker:
    @property
    def connections(self) -> int: ...
    def __init__(self, journal: Journal) -> None: ...
    def listen(self, loop: Loop, listening: socket) -> None: ...
    def open(self, lines: Iterable[WorkerChannel]) -> None: ...
    def close(self, line: WorkerChannel) -> None: ...
    def bereave(self, line: WorkerChannel) -> int: ...

class SupervisorChannel(Channel):
    def __init__(
        self,
        journal: Journal,
        desk: int,
        dispatcher: Dispatcher,
        unfinished: Unfinished,
        routes: Routes,
        talk: Callable[[bytes, list[int]], object],
        ended: Callable[[], object] | None,
    ) -> None: ...
    def retire(self) -> None: ...
