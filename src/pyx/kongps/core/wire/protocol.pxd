"""What dispatch and a protocol say to each other.

A protocol takes the bytes of one connection and gives calls; it takes answers and gives bytes.
It knows no sockets and no plugins. MsgPack:1 is in ``msgpack_rpc``.
"""

from libc.stdint cimport int64_t, uint8_t

from kongps.core.io.buffer cimport Buffer
from kongps.core.wire.function cimport Function
from kongps.core.workers.journal cimport Slot

cdef enum:
    # Calls of one connection that may wait for answers. Kong has one; a peer that sends on without
    # an answer costs memory for each.
    MOST_CALLS = 8
    # Longest message taken from Kong, in bytes, unless told otherwise. A body passed through the
    # PDK is the only large thing in an event; nginx itself buffers request bodies of up to 1 MiB
    # by default.
    MAX_MESSAGE = 67108864

cdef enum CallKind:
    HANDLE_EVENT   # target: instance id; phase
    STEP           # target: event id; value: what the PDK function returned
    STEP_ERROR     # target: event id; value: the error text of the PDK function
    COMMAND        # method and value: any other method and its argument
    INVALID        # value: why the call cannot be carried out

cdef class Call:
    cdef CallKind kind
    cdef int64_t sequence   # to be repeated in the answer
    cdef int64_t target
    cdef int phase
    cdef object method
    cdef object value

cdef class Outlet:
    """Where a protocol's bytes leave when no call on its connection brought them about."""
    cdef int send(self) except -1
    cdef int push(self) except -1

cdef class Elsewhere:
    """Where the steps go whose events are not in this process."""
    cdef bint is_here(self, int64_t event) noexcept
    cdef int abandon(self, int64_t event) except -1
    cdef int forward(self, Protocol origin, int64_t sequence, int64_t event, const uint8_t* rest,
                     size_t size) except -1


cdef class Protocol:
    cdef Buffer inbox
    cdef Buffer outbox
    cdef Outlet outlet            # None without a connection
    cdef readonly str name
    cdef size_t longest           # bytes of the longest message taken
    cdef readonly bint closing    # to be closed when what is in the outbox has been sent
    cdef bint logs_failures       # Kong logs the text of an `answer_failure`
    cdef int64_t event            # the event that the connection belongs to; 0 for none
    cdef int64_t asked            # the event that Kong was asked something for last; 0 for none
    cdef int calls                # that came and are not answered
    cdef bint is_peer             # the other side is a worker of this server
    # In a worker:
    cdef Slot* slot               # where a call that is not answered is noted; NULL: nowhere
    cdef Elsewhere elsewhere

    cdef int receive(self, const char* data, size_t size) except -1
    cdef bint next_call(self, Call call) except -1
    cdef bint is_idle(self) except -1
    cdef int owed(self) except -1
    cdef bint ends_with_kong(self) noexcept
    cdef int give_up(self, int64_t sequence) except -1
    cdef int note(self, Call call) except -1
    cdef int hold(self, int64_t event) except -1
    cdef int send(self) except -1
    cdef int push(self) except -1
    cdef int answer_return(self, int64_t sequence, int64_t event) except -1
    cdef bint answer_pdk_call(self, int64_t sequence, int64_t event, Function function,
                              tuple args, bint pipelined) except -1
    cdef int answer_failure(self, int64_t sequence, int64_t event, str text) except -1
    cdef int answer_result(self, int64_t sequence, object result) except -1
    cdef int answer_error(self, int64_t sequence, str text) except -1
