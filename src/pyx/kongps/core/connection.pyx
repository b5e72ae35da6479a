"""Connections from Kong: where sockets and sessions meet."""

from logging import WARNING

from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.io.buffer cimport buffer_size
from kongps.core.io.listener cimport Listener
from kongps.core.io.loop cimport Loop
from kongps.core.io.stream cimport MOST_UNSENT, Stream
from kongps.core.session cimport Session
from kongps.core.wire.protocol cimport Outlet

from kongps.core.report import report
from kongps.errors import ProtocolError


cdef class Unfinished:
    """What all connections together hold of messages that have not come whole.

    :param most: limit, in bytes; above it the connection that holds most is closed.
    """

    def __init__(self, size_t most):
        self.most = most


cdef class Connection(Stream):
    """One connection from Kong.

    :param session: what its bytes mean.
    :param unfinished: the limit that it shares with others.
    """

    def __init__(self, Session session not None, Unfinished unfinished not None):
        self.unfinished = unfinished
        self.join(session)

    cdef int join(self, Session session) except -1:
        self.session = session
        session.outlet = ConnectionOutlet(self)
        if session.protocol is not None:
            session.protocol.outlet = session.outlet
        self.outbox = session.outbox
        return 0

    cdef int received(self, const char* data, size_t size, double now) except -1:
        try:
            self.session.feed(data, size)
        except ProtocolError as error:
            return self.refuse(error)
        self.outbox = self.session.outbox
        return self.pump(now)

    cdef int pump(self, double now) except -1:
        """Carries out what has come and sends the answers, as far as both can be done now."""
        cdef bint more = True
        try:
            while more and self.fd >= 0 and buffer_size(self.outbox) <= MOST_UNSENT:
                more = self.session.pump(MOST_UNSENT, now)
                self.full = self.session.protocol is not None and self.session.full()
                self.flush()
        except ProtocolError as error:
            return self.refuse(error)
        if self.session.is_closing() and buffer_size(self.outbox) == 0:
            return self.close()
        return self.pumped()

    cdef int pumped(self) except -1:
        """All that came has been carried out, or has to wait."""
        if self.ends_when_idle():
            self.close_if_idle()
        return self.count_unfinished()

    cdef bint ends_when_idle(self) noexcept:
        """Whether the connection is not kept for further calls."""
        return self.loop.draining

    cdef int count_unfinished(self) except -1:
        """Counts what is left of the bytes that came; above the limit the largest is closed."""
        cdef size_t held = self.session.unread() if self.fd >= 0 else 0
        cdef Connection largest = self
        if held == self.held:
            return 0
        self.unfinished.held += held - self.held
        self.held = held
        if self.unfinished.held <= self.unfinished.most:
            return 0
        for one in self.loop.watched.values():
            if isinstance(one, Connection) and (<Connection>one).held > largest.held:
                largest = <Connection>one
        report(
            WARNING, "closing a connection that holds %d bytes of a message that has not come "
            "whole: all connections together hold more than %d (--max-unfinished)",
            largest.held, self.unfinished.most,
        )
        return largest.close()

    cdef bint busy(self) except -1:
        return self.session.unread() > 0 or self.session.expects_step() or Stream.busy(self)

    cdef int refuse(self, object error) except -1:
        report(WARNING, "closing a connection: %s", error)
        self.flush()
        return self.close()

    cdef int lost(self) except -1:
        self.unfinished.held -= self.held
        self.held = 0
        self.session.outlet = None
        return self.session.lost()


cdef class ConnectionOutlet(Outlet):
    """A connection, as its protocol knows it."""

    def __init__(self, Connection connection not None):
        self.connection = connection

    cdef int send(self) except -1:
        cdef Connection connection = self.connection
        connection.flush()  # `pump` leaves an outbox with more than MOST_UNSENT to the loop
        return connection.pump(connection.loop.arrived)

    cdef int push(self) except -1:
        cdef Connection connection = self.connection
        cdef bint left = connection.session.unread() > 0
        if not left:
            connection.full = connection.session.full()
        connection.flush()
        if left or connection.session.is_closing() or connection.ends_when_idle():
            connection.loop.call_soon_threadsafe(self.send_soon)
        return 0

    def send_soon(self):
        """Does what is left to do on the loop's thread."""
        self.connection.pump(self.connection.loop.arrived)


def serve(Loop loop not None, listening, Dispatcher dispatcher not None,
          Unfinished unfinished not None, size_t max_message):
    """Serves Kong on a listening socket.

    :param loop: the loop that does it.
    :param listening: a ``socket.socket``, bound and listening.
    :param dispatcher: what carries out the calls.
    :param unfinished: the limit on unfinished messages that its connections share.
    :param max_message: bytes of the longest message taken.
    :returns: the listener.
    """
    listener = Listener(
        listening, lambda _: Connection(Session(dispatcher, max_message), unfinished)
    )
    listener.start(loop)
    return listener
