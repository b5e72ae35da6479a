from socket import socket

from kongps.core.dispatch import Dispatcher
from kongps.core.loop import Listener, Loop, Stream

class Connection(Stream):
    def __init__(self, dispatcher: Dispatcher) -> None: ...

def serve(loop: Loop, listening: socket, dispatcher: Dispatcher) -> Listener: ...
