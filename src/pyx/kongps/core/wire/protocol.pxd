"""The interface of a protocol: bytes in, calls out; replies in, bytes out.

A protocol does no I/O and knows no plugins. Each is one file: ``msgpack_rpc``, ``protobuf_rpc``.
"""

from libc.stdint cimport int64_t, uint8_t

from kongps.core.io.buffer cimport Buffer, buffer_size
from kongps.core.wire.function cimport Function

cdef enum:
    # Calls of one connection that may wait for answers. Kong has one; a peer that sends on without
    # an answer costs memory for each.
    MAX_UNANSWERED_CALLS = 8

cdef enum CallKind:
    HANDLE_EVENT   # target: instance id; phase
    STEP           # target: event id; the value is decoded by `read_step`
    STEP_ERROR     # target: event id; the value, decoded too, is the PDK function's error text
    COMMAND        # method and value: any other method and its argument
    INVALID        # value: why the call cannot be carried out

cdef class Call:
    cdef CallKind kind
    cdef int64_t sequence     # to be repeated in the answer
    cdef int64_t target
    cdef int phase
    cdef object method
    cdef object value
    # Of a step: what came, from behind the call's number, and in it the value; NULL for nil. They
    # stay where they are until the protocol is asked for its next call.
    cdef const uint8_t* raw
    cdef size_t raw_size
    cdef const uint8_t* raw_value


cdef class Outlet:
    """What sends the bytes of a protocol when no call on its connection brought them about."""
    cdef int send(self) except -1
    cdef int push(self) except -1


cdef class Protocol:
    cdef Buffer inbox
    cdef Buffer outbox
    cdef size_t taken             # bytes of the inbox that are the last call's
    cdef Outlet outlet            # None without a connection
    cdef readonly str name
    cdef size_t max_message       # bytes of the longest message taken
    cdef readonly bint closing    # the connection is to be closed once the outbox has been sent
    cdef bint logs_failures       # Kong logs the text of an `answer_failure`
    cdef int64_t event            # the event that the connection belongs to; 0 for none
    cdef int64_t asked            # the event that Kong was last asked something for; 0 for none
    cdef bint steps_are_calls     # that are to be answered, and no part of their event
    cdef int unanswered_calls

    cdef bint next_call(self, Call call) except -1
    cdef int read_step(self, Call call) except -1
    cdef bint is_idle(self) except -1
    cdef int unanswered_functions(self) except -1
    cdef bint closed_by_kong(self) noexcept
    cdef int close(self) except -1
    cdef int give_up(self, int64_t sequence) except -1
    cdef int hold(self, int64_t event) except -1
    cdef int answer_return(self, int64_t sequence, int64_t event) except -1
    cdef bint answer_pdk_call(self, int64_t sequence, int64_t event, Function function,
                              tuple args, bint pipelined) except -1
    cdef int answer_failure(self, int64_t sequence, int64_t event, str text) except -1
    cdef int answer_result(self, int64_t sequence, object result) except -1
    cdef int answer_error(self, int64_t sequence, str text) except -1
    cdef int answer_no_instance(self, int64_t sequence, str text) except -1


cdef inline bint take_call(Protocol protocol, Call call) except -1:
    """Fills `call` with the next complete call, which is to be answered; False without one.

    :raises ProtocolError: what came is not this protocol; the connection must be closed.
    """
    if not protocol.next_call(call):
        return False
    if call.kind != STEP or protocol.steps_are_calls:
        protocol.unanswered_calls += 1
    return True


cdef inline size_t unread(Protocol protocol) noexcept:
    """Bytes that have come and are of no call yet."""
    return buffer_size(&protocol.inbox) - protocol.taken


cdef inline int send_answer(Protocol protocol) except -1:
    """Sends what is in the outbox, brought about without a call on this connection."""
    cdef Outlet outlet = protocol.outlet  # kept: sending may lose the connection
    return 0 if outlet is None else outlet.send()


cdef inline int push_answer(Protocol protocol) except -1:
    """The same on a thread that has borrowed the loop's lock."""
    cdef Outlet outlet = protocol.outlet
    return 0 if outlet is None else outlet.push()
