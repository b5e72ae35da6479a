"""Connections from Kong: the one place where sockets and protocols meet."""

import logging

from kongps.core.buffer cimport buffer_size
from kongps.core.dispatch cimport Dispatcher
from kongps.core.loop cimport MOST_UNSENT, Loop, Stream
from kongps.core.session cimport Session

from kongps.errors import ProtocolError

logger = logging.getLogger("kongps")


cdef class Connection(Stream):
    """One connection from Kong.

    :param dispatcher: whom its calls are for.
    """
    cdef Session session

    def __init__(self, Dispatcher dispatcher not None):
        self.session = Session(dispatcher)
        self.outbox = &self.session.protocol.outbox

    cdef int received(self, const char* data, size_t size) except -1:
        self.session.protocol.receive(data, size)
        return self.sent()

    cdef int sent(self) except -1:
        cdef bint more = True
        try:
            while more and self.fd >= 0 and buffer_size(self.outbox) <= MOST_UNSENT:
                more = self.session.carry_out(MOST_UNSENT)
                self.flush()
        except ProtocolError as error:
            logger.warning("closing a connection: %s", error)
            self.flush()
            self.close()
        return 0


def serve(Loop loop not None, listening, Dispatcher dispatcher not None):
    """Serves Kong on a listening socket.

    :param loop: the loop that does it.
    :param listening: a ``socket.socket``, bound and listening.
    :param dispatcher: whom the calls are for.
    :returns: the listener.
    """
    return loop.listen(listening, lambda _: Connection(dispatcher))
