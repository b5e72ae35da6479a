from socket import socket

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.io.listener import Listener
from kongps.core.io.loop import Loop
from kongps.core.io.stream import Stream
from kongps.core.session import Session

class Unfinished:
    @property
    def most(self) -> int: ...
    def __init__(self, most: int) -> None: ...

class Connection(Stream):
    def __init__(self, session: Session, unfinished: Unfinished) -> None: ...

def serve(
    loop: Loop,
    listening: socket,
    dispatcher: Dispatcher,
    unfinished: Unfinished,
    max_message: int,
) -> Listener: ...
