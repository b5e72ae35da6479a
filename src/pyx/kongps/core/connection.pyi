from socket import socket

from kongps.core.dispatch.dispatcher import Dispatcher
from kongps.core.io.listener import Listener
from kongps.core.io.loop import Loop
from kongps.core.io.stream import Stream

class Unfinished:
    def __init__(self, most: int = 268435456) -> None: ...

class Connection(Stream):
    def __init__(self, dispatcher: Dispatcher, unfinished: Unfinished) -> None: ...

def serve(
    loop: Loop, listening: socket, dispatcher: Dispatcher, unfinished: Unfinished | None = None
) -> Listener: ...
