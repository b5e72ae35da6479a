"""ProtoBuf:1, Kong's protocol of length-prefixed Protocol Buffers messages."""

from libc.stdint cimport int64_t, uint8_t

from kongps.core.wire.function cimport Function
from kongps.core.wire.protobuf cimport MessageType
from kongps.core.wire.protocol cimport Call, Protocol


cdef enum:
    # Largest frame with a call of Kong, in bytes: the configuration of an instance is the only
    # large thing in one. Below 0xca0000, so that the length of no such frame starts as a
    # MsgPack:1 request does; `session.pyx` has the proof.
    MAX_CALL_SIZE = 8388608
    # Bytes of PDK calls that may wait in the outbox before one of them is waited for.
    MAX_PIPELINED = 16384
    ALL_IGNORED = 2147483647   # of a connection that Kong is to close


cdef enum Form:
    # What becomes of a result message.
    NOTHING      # Empty: there is no result
    ONLY_FIELD   # String, Int, …: the field's value, None when it is not there
    WHOLE        # a Value, Struct, …, or the dict of its fields; None when there is none


cdef class Rpc:
    """How one PDK function travels."""
    cdef Function function
    cdef bytes head               # the frame with its name
    cdef MessageType input
    cdef MessageType output
    cdef Py_ssize_t most_args
    cdef Form form
    cdef object before
    cdef bint only_for_false
    cdef object after
    cdef object absent


cdef class ProtobufRPC(Protocol):
    cdef object unanswered        # a deque of Rpc: the calls that Kong has not answered yet
    cdef bint awaiting            # a handler waits for the answer of the last of them
    cdef bint ending              # to be closed once Kong has answered them
    cdef int ignored              # answers of Kong to calls of a worker that is dead
    cdef bint out_of_step         # something came before the call that it would answer
    cdef tuple awaited_args

    cdef bint read_call(self, Call call, const uint8_t* data, size_t size) except -1
    cdef bint read_answer(self, Call call, const uint8_t* data, size_t size) except -1
    cdef bint ignore_answer(self) except -1
    cdef int write_return(self, int64_t sequence) except -1
