"""A worker's sessions: the journal knows their calls, and steps reach the worker with their event."""

from libc.stdint cimport uint8_t

from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.session cimport Session
from kongps.core.wire.protobuf_rpc cimport ProtobufRPC
from kongps.core.wire.protocol cimport COMMAND, HANDLE_EVENT, STEP, STEP_ERROR, Call, Protocol
from kongps.core.workers.journal cimport (
    EVENT_CALL, NOTHING, OTHER_CALL, SPEAKS_MSGPACK, SPEAKS_PROTOBUF, START_CALL, STEP_CALL, Slot,
)
from kongps.core.workers.relay cimport Routes


cdef class WorkerSession(Session):
    """One connection from Kong in a worker.

    :param dispatcher, max_message: as :class:`Session` has them.
    :param routes: where the steps go whose events are in another worker.
    """

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
