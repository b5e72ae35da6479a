"""Connections from Kong: the one place where sockets and protocols meet."""

from logging import WARNING

from kongps.core.buffer cimport Buffer, buffer_size
from kongps.core.dispatch cimport Dispatcher
from kongps.core.loop cimport MOST_UNSENT, Loop, Stream
from kongps.core.session cimport Session

from kongps.core.report import report
from kongps.errors import ProtocolError


cdef class Connection(Stream):
    """One connection from Kong.

    :param dispatcher: whom its calls are for.
    """
    cdef Session session
    cdef Buffer nothing   # stands for the outbox until the protocol is known

    def __init__(self, Dispatcher dispatcher not None):
        self.session = Session(dispatcher)
        self.outbox = &self.nothing

    cdef int received(self, const char* data, size_t size) except -1:
        try:
            self.session.receive(data, size)
        except ProtocolError as error:
            return self.refuse(error)
        if self.session.protocol is None:
            return 0
        self.outbox = &self.session.protocol.outbox
        return self.sent()

    cdef int sent(self) except -1:
        cdef bint more = True
        try:
            while more and self.fd >= 0 and buffer_size(self.outbox) <= MOST_UNSENT:
                more = self.session.carry_out(MOST_UNSENT)
                self.flush()
        except ProtocolError as error:
            return self.refuse(error)
        if self.session.protocol.closing and buffer_size(self.outbox) == 0:
            return self.close()
        return 0

    cdef int refuse(self, object error) except -1:
        report(WARNING, "closing a connection: %s", error)
        self.flush()
        return self.close()

    cdef int lost(self) except -1:
        return self.session.lost()


def serve(Loop loop not None, listening, Dispatcher dispatcher not None):
    """Serves Kong on a listening socket.

    :param loop: the loop that does it.
    :param listening: a ``socket.socket``, bound and listening.
    :param dispatcher: whom the calls are for.
    :returns: the listener.
    """
    return loop.listen(listening, lambda _: Connection(dispatcher))
