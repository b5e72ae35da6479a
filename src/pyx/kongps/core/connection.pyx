"""Connections from Kong: the one place where sockets and protocols meet."""

from logging import WARNING

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from kongps.core.io.buffer cimport buffer_size
from kongps.core.dispatch.dispatcher cimport Dispatcher, event_phase, fail_dead_event
from kongps.core.workers.journal cimport (
    KONG_ENDS_IT, NOTHING, OTHER_CALL, REPLAYED_SIZE, SPEAKS_MSGPACK, SPEAKS_PROTOBUF, START_CALL,
    STEP_CALL, Slot,
)
from kongps.core.io.listener cimport Listener
from kongps.core.io.loop cimport Loop
from kongps.core.io.stream cimport MOST_UNSENT, Stream
from kongps.core.wire.msgpack_rpc cimport MsgPackRPC
from kongps.core.wire.protobuf_rpc cimport ALL_IGNORED, ProtobufRPC
from kongps.core.wire.protocol cimport Outlet, Protocol
from kongps.core.session cimport Session

from kongps.core.report import report
from kongps.errors import ProtocolError


cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_PEEK
        MSG_DONTWAIT
    ssize_t recv(int fd, void* data, size_t size, int flags)

cdef enum:
    NO_INSTANCE = 0   # the id of none; those of instances start at 1

cdef enum:
    # Bytes of unfinished messages that all connections together may hold, unless told otherwise:
    # four of the largest.
    MAX_UNFINISHED = 268435456


cdef class Unfinished:
    """What all connections together hold of messages that have not come whole.

    :param most: bytes that they may hold.
    """
    def __init__(self, size_t most=MAX_UNFINISHED):
        self.most = most


cdef class Holder:
    """Whom a connection goes to that is idle and not kept."""

    cdef int hand_back(self, Connection connection) except -1:
        raise NotImplementedError


cdef class Connection(Stream):
    """One connection from Kong.

    :param dispatcher: whom its calls are for.
    :param unfinished: what it and others may hold together.
    """

    def __init__(self, Dispatcher dispatcher not None, Unfinished unfinished not None):
        self.session = Session(dispatcher)
        self.outbox = &self.nothing
        self.unfinished = unfinished

    cdef int received(self, const char* data, size_t size, double now) except -1:
        if self.slot != NULL:
            self.desk.size = <int64_t>size
        try:
            self.session.receive(data, size)
        except ProtocolError as error:
            return self.refuse(error)
        if self.session.protocol is None:
            if self.slot != NULL:
                self.slot.unread = True
            return 0
        if self.outbox is &self.nothing:
            self.speak(self.session.protocol)
        return self.pump(now)

    cdef int speak(self, Protocol protocol) except -1:
        """The protocol is known."""
        self.session.protocol = protocol
        self.outbox = &protocol.outbox
        protocol.outlet = ConnectionOutlet(self)
        protocol.slot = self.slot
        protocol.elsewhere = self.elsewhere
        if self.slot != NULL:
            self.slot.protocol = (
                SPEAKS_PROTOBUF if isinstance(protocol, ProtobufRPC) else SPEAKS_MSGPACK
            )
        return 0

    cdef int ready(self, unsigned int events) except -1:
        if self.slot == NULL:
            return Stream.ready(self, events)
        self.desk.size = 0
        memset(self.desk.data, 0, REPLAYED_SIZE)
        self.slot.reading = True
        Stream.ready(self, events)
        if self.slot != NULL:
            self.slot.reading = False
        return 0

    cdef int flush(self) except -1:
        cdef Protocol protocol = self.session.protocol
        cdef bint last
        if self.slot == NULL or buffer_size(self.outbox) == 0:
            return Stream.flush(self)
        last = protocol.calls == 0
        self.slot.sending = last
        Stream.flush(self)
        if self.slot == NULL:
            return 0
        self.slot.unsent = buffer_size(self.outbox) > 0
        if last and not self.slot.unsent:
            self.slot.outstanding = KONG_ENDS_IT if protocol.ends_with_kong() else NOTHING
            self.slot.more = False
        self.slot.unanswered = protocol.owed()
        self.slot.sending = False
        return 0

    cdef bint is_idle(self) except -1:
        if self.ended or self.fd < 0:
            return False
        if self.session.protocol is None:
            return buffer_size(&self.session.opening) == 0
        return self.session.protocol.is_idle()

    cdef int take_over(self, bytes replayed, bint let_through) except -1:
        """Answers for the worker that had the connection before this one; see ``journal.pxd``.

        `replayed` is what that worker had in hand at its death and did not come to read.
        """
        cdef Slot slot = self.slot[0]
        cdef Protocol protocol
        memset(self.slot, 0, sizeof(Slot))
        self.slot.held = True
        if slot.unsent or slot.more or (slot.unread and slot.outstanding == NOTHING):
            return self.close()
        if slot.sending:
            # Was it sent? If Kong says something again, it was. Else Kong is told by a closed
            # connection: it hardly ever waits for an answer then.
            if not self.has_input():
                return self.close()
            slot.outstanding = NOTHING
        if slot.outstanding == NOTHING:
            if slot.reading and not self.has_input():
                if not replayed:
                    return self.close()
                return self.received(
                    PyBytes_AS_STRING(replayed), <size_t>len(replayed), self.loop.arrived
                )
            return 0
        if slot.protocol == SPEAKS_PROTOBUF:
            protocol = ProtobufRPC()
            (<ProtobufRPC>protocol).ignored = (
                ALL_IGNORED if slot.unread or slot.reading or slot.outstanding == KONG_ENDS_IT
                else slot.unanswered
            )
        else:
            protocol = MsgPackRPC()
        protocol.longest = self.session.dispatcher.max_message
        self.speak(protocol)
        protocol.calls = 1
        self.slot.sequence = slot.sequence
        self.slot.phase = slot.phase
        self.slot.outstanding = slot.outstanding
        if slot.outstanding == KONG_ENDS_IT:
            protocol.calls = 0
            return 0
        if slot.outstanding == START_CALL:
            # An error would make some versions of Kong hang or give up; with an id that is not
            # there they start the instance again.
            protocol.answer_result(
                slot.sequence, {"Name": "", "Id": NO_INSTANCE, "Config": {}, "StartTime": 0.0}
            )
        elif slot.outstanding == OTHER_CALL:
            protocol.answer_error(slot.sequence, "the worker that had the call has died")
        else:
            if slot.outstanding == STEP_CALL:
                # It may live on in another worker; but what Kong has said is lost.
                slot.phase = <uint8_t>event_phase(slot.event)
                if self.elsewhere.is_here(slot.event):
                    self.session.dispatcher.abandon_event(slot.event)
                else:
                    self.elsewhere.abandon(slot.event)
            fail_dead_event(protocol, slot.sequence, slot.event, slot.phase, let_through)
            if slot.protocol == SPEAKS_PROTOBUF and (<ProtobufRPC>protocol).ignored == (
                ALL_IGNORED
            ) and not (<ProtobufRPC>protocol).ending:
                protocol.closing = True  # which frames are answers, nobody can tell
        return self.pump(self.loop.arrived)

    cdef bint has_input(self) except -1:
        cdef char[1] first
        return recv(self.fd, first, 1, MSG_PEEK | MSG_DONTWAIT) > 0

    cdef int count(self) except -1:
        """Counts what is left of the bytes that came; with too many, who holds most is closed."""
        cdef size_t held = 0
        cdef Connection most = self
        if self.fd >= 0:
            held = buffer_size(&self.session.protocol.inbox)
            if self.slot != NULL:
                self.slot.unread = held > 0
        if held == self.held:
            return 0
        self.unfinished.held += held - self.held
        self.held = held
        if self.unfinished.held <= self.unfinished.most:
            return 0
        for one in self.loop.watched.values():
            if isinstance(one, Connection) and (<Connection>one).held > most.held:
                most = <Connection>one
        report(
            WARNING, "closing a connection that holds %d bytes of a message that has not come "
            "whole: all together hold more than %d", most.held, self.unfinished.most,
        )
        return most.close()

    cdef int pump(self, double now) except -1:
        cdef bint more = True
        self.session.dispatcher.heard = now
        try:
            while more and self.fd >= 0 and buffer_size(self.outbox) <= MOST_UNSENT:
                more = self.session.carry_out(MOST_UNSENT)
                self.full = self.session.full()
                self.flush()
        except ProtocolError as error:
            return self.refuse(error)
        if self.session.protocol.closing and buffer_size(self.outbox) == 0:
            return self.close()
        if self.loop.draining:
            self.close_if_idle()
        elif self.holder is not None and self.is_idle():
            self.count()
            return self.holder.hand_back(self)
        return self.count()

    cdef bint busy(self) except -1:
        return self.session.busy() or Stream.busy(self)

    cdef int refuse(self, object error) except -1:
        report(WARNING, "closing a connection: %s", error)
        self.flush()
        return self.close()

    cdef int lost(self) except -1:
        self.unfinished.held -= self.held
        self.held = 0
        if self.session.protocol is not None:
            self.session.protocol.outlet = None
            self.session.protocol.slot = NULL
        if self.slot != NULL:
            self.slot.held = False
            self.slot = NULL
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
        cdef bint left = buffer_size(&connection.session.protocol.inbox) > 0
        if not left:
            connection.full = connection.session.full()
        connection.flush()
        if (
            left
            or connection.session.protocol.closing
            or connection.loop.draining
            or connection.holder is not None
        ):
            connection.loop.call_soon_threadsafe(self.send_soon)
        return 0

    def send_soon(self):
        """Does what is left to do on the loop's thread."""
        self.connection.pump(self.connection.loop.arrived)


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
    listener = Listener(listening, lambda _: Connection(dispatcher, shared))
    listener.start(loop)
    return listener
