"""Connections from Kong: the one place where sockets and protocols meet."""

from logging import WARNING

from kongps.core.buffer cimport Buffer, buffer_size
from kongps.core.dispatch cimport Dispatcher
from kongps.core.loop cimport MOST_UNSENT, Loop, Stream
from kongps.core.protocol cimport Outlet
from kongps.core.session cimport Session

from kongps.core.report import report
from kongps.errors import ProtocolError


cdef enum:
    # Bytes of unfinished messages that all connections together may hold, unless told otherwise:
    # four of the largest.
    MAX_UNFINISHED = 268435456


cdef class Unfinished:
    """What all connections together hold of messages that have not come whole.

    :param most: bytes that they may hold.
    """
    cdef size_t held
    cdef size_t most

    def __init__(self, size_t most=MAX_UNFINISHED):
        self.most = most


cdef class Connection(Stream):
    """One connection from Kong.

    :param dispatcher: whom its calls are for.
    :param unfinished: what it and others may hold together.
    """
    cdef Session session
    cdef Buffer nothing   # stands for the outbox until the protocol is known
    cdef Unfinished unfinished
    cdef size_t held      # its part of `unfinished`

    def __init__(self, Dispatcher dispatcher not None, Unfinished unfinished not None):
        self.session = Session(dispatcher)
        self.outbox = &self.nothing
        self.unfinished = unfinished

    cdef int received(self, const char* data, size_t size) except -1:
        try:
            self.session.receive(data, size)
        except ProtocolError as error:
            return self.refuse(error)
        if self.session.protocol is None:
            return 0
        if self.outbox is &self.nothing:
            self.outbox = &self.session.protocol.outbox
            self.session.protocol.outlet = ConnectionOutlet(self)
        return self.sent()

    cdef int count(self) except -1:
        """Counts what is left of the bytes that came; with too many, who holds most is closed."""
        cdef size_t held = 0
        cdef Connection most = self
        if self.fd >= 0:
            held = buffer_size(&self.session.protocol.inbox)
        if held == self.held:
            return 0
        self.unfinished.held += held - self.held
        self.held = held
        if self.unfinished.held <= self.unfinished.most:
            return 0
        for one in self.loop.watched:
            if isinstance(one, Connection) and (<Connection>one).held > most.held:
                most = <Connection>one
        report(
            WARNING, "closing a connection that holds %d bytes of a message that has not come "
            "whole: all together hold more than %d", most.held, self.unfinished.most,
        )
        return most.close()

    cdef int sent(self) except -1:
        cdef bint more = True
        try:
            while more and self.fd >= 0 and buffer_size(self.outbox) <= MOST_UNSENT:
                more = self.session.carry_out(MOST_UNSENT)
                self.note_held()
                self.flush()
        except ProtocolError as error:
            return self.refuse(error)
        if self.session.protocol.closing and buffer_size(self.outbox) == 0:
            return self.close()
        return self.count()

    cdef int note_held(self) except -1:
        """No more is read while too many calls are unanswered."""
        self.full = self.session.protocol.held >= self.session.protocol.most_held
        return 0

    cdef int refuse(self, object error) except -1:
        report(WARNING, "closing a connection: %s", error)
        self.flush()
        return self.close()

    cdef int lost(self) except -1:
        self.unfinished.held -= self.held
        self.held = 0
        if self.session.protocol is not None:
            self.session.protocol.outlet = None
        return self.session.lost()


cdef class ConnectionOutlet(Outlet):
    """A connection, as its protocol knows it."""
    cdef Connection connection

    def __init__(self, Connection connection not None):
        self.connection = connection

    cdef int send(self) except -1:
        cdef Connection connection = self.connection
        connection.flush()  # `sent` leaves an outbox with more than MOST_UNSENT to the loop
        return connection.sent()

    cdef int push(self) except -1:
        cdef Connection connection = self.connection
        cdef bint left = buffer_size(&connection.session.protocol.inbox) > 0
        if not left:
            connection.note_held()
        connection.flush()
        if left or connection.session.protocol.closing:
            connection.loop.call_soon_threadsafe(self.send_soon)
        return 0

    def send_soon(self):
        """Does what is left to do on the loop's thread."""
        self.connection.sent()


def serve(Loop loop not None, listening, Dispatcher dispatcher not None,
          Unfinished unfinished=None):
    """Serves Kong on a listening socket.

    :param loop: the loop that does it.
    :param listening: a ``socket.socket``, bound and listening.
    :param dispatcher: whom the calls are for.
    :param unfinished: what its connections, and others, may hold of unfinished messages.
    :returns: the listener.
    """
    cdef Unfinished shared = Unfinished() if unfinished is None else unfinished
    return loop.listen(listening, lambda _: Connection(dispatcher, shared))
