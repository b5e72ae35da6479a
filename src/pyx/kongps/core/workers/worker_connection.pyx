"""What a worker has of Kong: connections from the supervisor, which may go to another worker.

What a connection owes Kong is noted in its slot of the journal, so that another worker can answer
for this one if it dies; see ``journal.pxd``.
"""

from logging import WARNING

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memset

from kongps.core.connection cimport Connection, Unfinished
from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.dispatch.event cimport fail_lost_event
from kongps.core.dispatch.event_table cimport phase_in_id
from kongps.core.io.buffer cimport buffer_size
from kongps.core.io.epoll cimport MSG_DONTWAIT, MSG_PEEK, recv
from kongps.core.io.loop cimport Loop
from kongps.core.io.stream cimport Stream
from kongps.core.session cimport Session
from kongps.core.wire.msgpack_rpc cimport MsgPackRPC
from kongps.core.wire.protobuf_rpc cimport ALL_IGNORED, ProtobufRPC
from kongps.core.wire.protocol cimport COMMAND, HANDLE_EVENT, STEP, STEP_ERROR, Call, Protocol
from kongps.core.workers.channel cimport CONNECTION, GIVEN_BACK, Channel, Message
from kongps.core.workers.journal cimport (
    EVENT_CALL, KONG_ENDS_IT, NOTHING, NOT_KNOWN, OTHER_CALL, REPLAYED_SIZE, SPEAKS_MSGPACK,
    SPEAKS_PROTOBUF, START_CALL, STEP_CALL, Journal, ReceiveArea, Slot,
)
from kongps.core.workers.relay cimport Routes

from kongps.core.report import report

cdef enum:
    NO_INSTANCE = 0   # the id of none; those of instances start at 1


cdef class WorkerSession(Session):
    """One connection from Kong in a worker.

    :param dispatcher, max_message: as :class:`Session` has them.
    :param routes: where the steps go whose events are in another worker.
    """
    cdef Slot* slot               # of the journal; NULL: the connection is not this worker's
    cdef Routes routes

    def __init__(self, Dispatcher dispatcher not None, size_t max_message, Routes routes not None):
        Session.__init__(self, dispatcher, max_message)
        self.routes = routes

    cdef int speak(self, Protocol protocol) except -1:
        Session.speak(self, protocol)
        if self.slot != NULL:
            self.slot.protocol = (
                SPEAKS_PROTOBUF if isinstance(protocol, ProtobufRPC) else SPEAKS_MSGPACK
            )
        return 0

    cdef int carry_out(self, Call call, double now) except -1:
        if self.slot != NULL:
            self.note(call)
        if (call.kind == STEP or call.kind == STEP_ERROR) and not self.routes.is_here(call.target):
            return self.routes.forward(self.protocol, call)
        return Session.carry_out(self, call, now)

    cdef int note(self, Call call) except -1:
        """Notes in the journal what has to be answered."""
        cdef bint is_step = call.kind == STEP or call.kind == STEP_ERROR
        self.slot.reading = False
        self.slot.unanswered = self.protocol.unanswered_functions()
        if is_step and self.slot.protocol == SPEAKS_PROTOBUF:
            return 0  # a part of the event that is noted
        if self.slot.outstanding != NOTHING:
            self.slot.more = True
        self.slot.sequence = call.sequence
        self.slot.event = call.target
        self.slot.phase = <uint8_t>call.phase
        if call.kind == HANDLE_EVENT:
            self.slot.event = 0
            self.slot.outstanding = EVENT_CALL
        elif call.kind == COMMAND:
            self.slot.outstanding = (
                START_CALL if call.method == "plugin.StartInstance" else OTHER_CALL
            )
        else:
            self.slot.outstanding = STEP_CALL
        return 0

    cdef bint expects_step(self) except -1:
        if self.protocol is not None and not self.routes.is_here(self.protocol.asked):
            return True  # only the other worker knows
        return Session.expects_step(self)


cdef class WorkerConnection(Connection):
    """One connection from Kong in a worker.

    :param session, unfinished: as :class:`Connection` has them.
    """
    cdef WorkerSession worker_session   # the session, by its own class
    cdef uint32_t number                # of its slot in the journal
    cdef Slot* slot                     # NULL: it is not this worker's any more
    cdef ReceiveArea* area              # where what comes for it is received
    cdef object return_idle             # called with it once it is idle; None: it is kept

    def __init__(self, WorkerSession session not None, Unfinished unfinished not None):
        Connection.__init__(self, session, unfinished)
        self.worker_session = session

    cdef int use_slot(self, uint32_t number, Slot* slot, ReceiveArea* area) except -1:
        self.number = number
        self.slot = self.worker_session.slot = slot
        self.area = area
        return 0

    cdef int release_slot(self) except -1:
        """Writes to the journal no more: another worker may have the connection."""
        self.slot = self.worker_session.slot = NULL
        return 0

    cdef int ready(self, unsigned int events) except -1:
        if self.slot == NULL:
            return Stream.ready(self, events)
        self.area.size = 0
        memset(self.area.data, 0, REPLAYED_SIZE)
        self.slot.reading = True
        Stream.ready(self, events)
        if self.slot != NULL:
            self.slot.reading = False
        return 0

    cdef int received(self, const char* data, size_t size, double now) except -1:
        if self.slot != NULL:
            self.area.size = <int64_t>size
        return Connection.received(self, data, size, now)

    cdef int pumped(self) except -1:
        if self.slot != NULL:
            self.slot.unread = self.fd >= 0 and self.session.unread() > 0
            if self.session.protocol is not None:
                self.slot.unanswered = self.session.protocol.unanswered_functions()
        if self.return_idle is None or self.loop.draining:
            return Connection.pumped(self)
        # One that is not idle stays open: Kong may still answer what a dead worker has asked.
        self.count_unfinished()
        if self.is_idle():
            self.return_idle(self)
        return 0

    cdef bint ends_when_idle(self) noexcept:
        return self.return_idle is not None or Connection.ends_when_idle(self)

    cdef int flush(self) except -1:
        cdef Protocol protocol = self.session.protocol
        cdef bint last
        if self.slot == NULL or buffer_size(self.outbox) == 0:
            return Stream.flush(self)
        last = protocol.unanswered_calls == 0
        self.slot.sending = last
        Stream.flush(self)
        if self.slot == NULL:
            return 0
        self.slot.unsent = buffer_size(self.outbox) > 0
        if last and not self.slot.unsent:
            self.slot.outstanding = KONG_ENDS_IT if protocol.closed_by_kong() else NOTHING
            self.slot.more = False
        self.slot.unanswered = protocol.unanswered_functions()
        self.slot.sending = False
        return 0

    cdef bint is_idle(self) except -1:
        """Whether another worker may have the connection as it is."""
        return not self.ended and self.fd >= 0 and self.session.idle()

    cdef int lost(self) except -1:
        if self.slot != NULL:
            self.slot.held = False
        self.release_slot()
        return Connection.lost(self)

    # --- answering for a worker that has died ------------------------------------------------

    cdef int take_over(self, bytes replayed) except -1:
        """Answers for the worker that had the connection and has died; see ``journal.pxd``.

        `replayed` is what that worker had received when it died and had not come to read.
        """
        cdef Slot left = self.slot[0]
        memset(self.slot, 0, sizeof(Slot))
        self.slot.held = True
        if left.unsent or left.more or (left.unread and left.outstanding == NOTHING):
            return self.close()
        if left.sending:
            # Was it sent? If Kong has sent something since, it was. Else a closed connection tells
            # Kong, which then hardly ever waits for an answer.
            if not self.has_input():
                return self.close()
            left.outstanding = NOTHING
        if left.outstanding == NOTHING:
            if left.reading and not self.has_input():
                if not replayed:
                    return self.close()
                return self.received(
                    PyBytes_AS_STRING(replayed), <size_t>len(replayed), self.loop.arrived
                )
            return 0
        self.session.speak(self.restored_protocol(left))
        self.outbox = self.session.outbox
        self.slot.sequence = left.sequence
        self.slot.phase = left.phase
        self.slot.outstanding = left.outstanding
        if left.outstanding == KONG_ENDS_IT:
            return 0
        self.session.protocol.unanswered_calls = 1
        self.answer_for_dead(left)
        return self.pump(self.loop.arrived)

    cdef Protocol restored_protocol(self, Slot left):
        """The protocol of the connection, as far as it can be known."""
        cdef ProtobufRPC protobuf
        cdef bint is_command = left.outstanding == START_CALL or left.outstanding == OTHER_CALL
        if left.protocol != SPEAKS_PROTOBUF:
            return MsgPackRPC(self.session.max_message)
        protobuf = ProtobufRPC(self.session.max_message)
        if left.unread or left.reading or left.outstanding == KONG_ENDS_IT:
            protobuf.restore(not is_command, ALL_IGNORED)
        else:
            protobuf.restore(not is_command, left.unanswered)
        return protobuf

    cdef int answer_for_dead(self, Slot left) except -1:
        """Answers the call that the worker has left."""
        cdef Protocol protocol = self.session.protocol
        if left.outstanding == START_CALL:
            # An error would make some versions of Kong hang or give up; with an id that is not
            # there they start the instance again.
            return protocol.answer_result(
                left.sequence, {"Name": "", "Id": NO_INSTANCE, "Config": {}, "StartTime": 0.0}
            )
        if left.outstanding == OTHER_CALL:
            return protocol.answer_error(left.sequence, "the worker that had the call has died")
        if left.outstanding == STEP_CALL:
            # The event may live on in another worker; but what Kong has sent for it is lost.
            left.phase = <uint8_t>phase_in_id(left.event)
            if self.worker_session.routes.is_here(left.event):
                self.session.dispatcher.abandon_event(left.event)
            else:
                self.worker_session.routes.abandon(left.event)
        fail_lost_event(
            protocol, left.sequence, left.event, left.phase,
            self.worker_session.routes.lost_events_pass,
        )
        if (
            left.protocol == SPEAKS_PROTOBUF and (<ProtobufRPC>protocol).ignored == ALL_IGNORED
            and not protocol.closed_by_kong()
        ):
            protocol.close()  # it is not known which frames are answers
        return 0

    cdef bint has_input(self) except -1:
        """Whether Kong has sent something that is still to be received."""
        cdef char ignored
        return recv(self.fd, &ignored, 1, MSG_PEEK | MSG_DONTWAIT) > 0


cdef class SupervisorChannel(Channel):
    """A worker's end of the channel to the supervisor.

    :param journal: where it notes what it owes to Kong.
    :param area: which receive area of the journal it has.
    :param dispatcher: what carries out the calls.
    :param unfinished: the limit on unfinished messages that its connections share.
    :param max_message: bytes of the longest message taken.
    :param routes: where the steps go whose events are in another worker.
    :param on_message, on_close: as :class:`Channel` has them.
    """
    cdef Journal journal
    cdef int area
    cdef Dispatcher dispatcher
    cdef Unfinished unfinished
    cdef size_t max_message
    cdef Routes routes
    cdef bint retiring

    def __init__(self, Journal journal not None, int area, Dispatcher dispatcher not None,
                 Unfinished unfinished not None, size_t max_message, Routes routes not None,
                 on_message, on_close):
        Channel.__init__(self, on_message, on_close)
        self.journal = journal
        self.area = area
        self.dispatcher = dispatcher
        self.unfinished = unfinished
        self.max_message = max_message
        self.routes = routes

    def start(self, Loop loop not None, int fd):
        """Begins to receive; what comes for any connection goes to the receive area.

        :param fd: the socket, non-blocking; it is closed with the channel.
        """
        loop.receive_buffer = self.journal.area(self.area).data
        Channel.start(self, loop, fd)

    def retire(self):
        """Gives every connection back that is idle, now or later."""
        cdef WorkerConnection connection
        self.retiring = True
        for one in list(self.loop.watched.values()):
            if isinstance(one, WorkerConnection) and (<WorkerConnection>one).slot != NULL:
                connection = <WorkerConnection>one
                connection.return_idle = self.give_back
                if connection.is_idle():
                    self.give_back(connection)

    def give_back(self, WorkerConnection connection not None):
        """Gives a connection back to the supervisor, for another worker."""
        cdef uint32_t number = connection.number
        connection.slot.reading = False
        connection.release_slot()
        connection.shared = False  # it stays open
        connection.close()
        self.post(GIVEN_BACK, number, b"", [], [])

    cdef int came(self, Message kind, uint32_t number, bytes data, list fds) except -1:
        if kind != CONNECTION:
            return Channel.came(self, kind, number, data, fds)
        if not fds:
            report(WARNING, "a connection was lost on its way to a worker")
            self.journal.slot(number).held = False
            return 0
        return self.take(number, fds[0], data)

    cdef int take(self, uint32_t number, int fd, bytes replayed) except -1:
        cdef Slot* slot = self.journal.slot(number)
        cdef WorkerConnection connection = WorkerConnection(
            WorkerSession(self.dispatcher, self.max_message, self.routes), self.unfinished
        )
        connection.use_slot(number, slot, self.journal.area(self.area))
        connection.shared = True
        if self.retiring:
            connection.return_idle = self.give_back
        self.loop.add_stream(connection, fd)
        if slot.protocol != NOT_KNOWN or slot.reading or slot.unread:
            connection.take_over(replayed)
        if self.retiring and connection.slot != NULL and connection.is_idle():
            self.give_back(connection)
        return 0
