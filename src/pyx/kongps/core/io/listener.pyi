from collections.abc import Callable
from socket import socket

from kongps.core.io.loop import Loop, Watched
from kongps.core.io.stream import Stream

class Listener(Watched):
    def __init__(
        self, listening: socket, accept_stream: Callable[[Loop], Stream | None]
    ) -> None: ...
    def start(self, loop: Loop) -> None: ...
