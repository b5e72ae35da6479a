"""The far end of a link between two workers: the other one's calls come out of it.

A link speaks MsgPack:1, and carries the steps of many connections of Kong.
"""

from libc.stdint cimport SIZE_MAX, int64_t

from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.io.buffer cimport buffer_append
from kongps.core.session cimport Session
from kongps.core.wire.msgpack_rpc cimport MsgPackRPC
from kongps.core.wire.protocol cimport COMMAND, Call


cdef class PeerRPC(MsgPackRPC):
    """MsgPack:1 between two workers."""

    cdef int give_up(self, int64_t sequence) except -1:
        # An error of false, which no answer has: the connection that it came on is to be closed.
        self.begin_answer(sequence)
        return buffer_append(&self.outbox, b"\xc2\xc0", 2)


cdef class PeerSession(Session):
    """The calls of another worker.

    :param dispatcher: where the events of its steps are.
    :param commands: what answers its commands: takes the argument, returns the result.
    """

    def __init__(self, Dispatcher dispatcher not None, dict commands not None):
        Session.__init__(self, dispatcher, SIZE_MAX)  # who has received it from Kong has checked
        self.commands = commands
        self.speak(PeerRPC(SIZE_MAX))

    cdef int carry_out(self, Call call, double now) except -1:
        if call.kind != COMMAND:
            return Session.carry_out(self, call, now)
        return self.protocol.answer_result(call.sequence, self.commands[call.method](call.value))

    cdef bint full(self) noexcept:
        return False

    cdef bint expects_step(self) except -1:
        return True  # as long as there are two workers
