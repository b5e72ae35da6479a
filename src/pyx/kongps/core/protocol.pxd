"""What dispatch and a protocol say to each other.

A protocol takes the bytes of one connection and gives calls; it takes answers and gives bytes.
It knows no sockets and no plugins. MsgPack:1 is in ``msgpack_rpc``.
"""

from libc.stdint cimport int64_t

from kongps.core.buffer cimport Buffer
from kongps.core.function cimport Function

cdef enum:
    # Calls of one connection that may wait for answers. Kong has one; a peer that sends on without
    # an answer costs memory for each, as much as an answer may have.
    MOST_HELD = 8

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

cdef class Protocol:
    cdef Buffer inbox
    cdef Buffer outbox
    cdef Outlet outlet            # None without a connection
    cdef readonly str name
    cdef readonly bint closing    # to be closed when what is in the outbox has been sent
    cdef bint logs_failures       # Kong logs the text of an `answer_failure`
    cdef int64_t event            # the event that the connection belongs to; 0 for none
    cdef int held                 # calls of events that are answered later
    cdef int most_held            # with so many, no further call is carried out

    cdef int receive(self, const char* data, size_t size) except -1
    cdef bint next_call(self, Call call) except -1
    cdef int hold(self, int64_t event) except -1
    cdef int send(self) except -1
    cdef int push(self) except -1
    cdef int answer_return(self, int64_t sequence, int64_t event) except -1
    cdef bint answer_pdk_call(self, int64_t sequence, int64_t event, Function function,
                              tuple args, bint pipelined) except -1
    cdef int answer_failure(self, int64_t sequence, int64_t event, str text) except -1
    cdef int answer_result(self, int64_t sequence, object result) except -1
    cdef int answer_error(self, int64_t sequence, str text) except -1
