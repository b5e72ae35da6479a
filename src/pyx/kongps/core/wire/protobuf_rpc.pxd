"""ProtoBuf:1, Kong's protocol of length-prefixed Protocol Buffers messages.

The states of a connection, and the moves between them:

    READY         Kong may send a call; answers to calls without a result may still come before it
      -> COMMAND_CAME, EVENT_CAME
    COMMAND_CAME  a command is to be answered
      -> READY
    EVENT_CAME    an event is under way, and its handler does not wait for Kong
      -> AWAITING     Kong has been asked for something that the handler waits for
      -> READY        it has returned
      -> EXITING      Kong has been asked to end the request
      -> OUT_OF_STEP  a frame has come before the call that it would answer
    AWAITING      the handler waits for the answer to the last of its calls
      -> EVENT_CAME
    EXITING       Kong has been asked for an exit and answers what was asked before
    OUT_OF_STEP   what comes next is an error
    CLOSING       the connection is to be closed; every state may move here, and none from here
"""

from libc.stdint cimport int64_t, uint8_t

from kongps.core.wire.function cimport Function
from kongps.core.wire.protobuf cimport Span
from kongps.core.wire.protobuf_types cimport MessageType
from kongps.core.wire.protocol cimport Call, Protocol


cdef enum:
    # Largest frame with a call of Kong, in bytes: the configuration of an instance is the only
    # large thing in one. Below 0xca0000, so that the length of no such frame starts as a
    # MsgPack:1 request does; `session.pyx` has the proof.
    MAX_CALL_SIZE = 8388608
    MAX_ARGUMENTS = 67108864  # bytes of a PDK call's arguments
    # Bytes of PDK calls that may wait in the outbox before one of them is waited for.
    MAX_PIPELINED = 16384
    ALL_IGNORED = 2147483647   # answers, of a connection that Kong is to close


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


cdef enum RpcState:
    READY
    COMMAND_CAME
    EVENT_CAME
    AWAITING
    EXITING
    OUT_OF_STEP
    CLOSING


cdef class ProtobufRPC(Protocol):
    cdef RpcState state
    cdef int64_t sequence         # of the call that the connection is busy with
    cdef object unanswered        # a deque of Rpc: the calls that Kong has not answered yet
    cdef Rpc answered             # the one that the last step answers,
    cdef tuple awaited_args       # and its arguments
    cdef int ignored              # answers of Kong that nobody waits for, before all others

    cdef int move(self, RpcState to) except -1
    cdef int restore(self, bint is_event, int ignored) except -1
    cdef bint read_call(self, Call call, const uint8_t* data, size_t size) except -1
    cdef int read_event(self, Span* span, Call call) except -1
    cdef bint read_command(self, Call call, const uint8_t* data, size_t size) except -1
    cdef bint read_answer(self, Call call, const uint8_t* data, size_t size) except -1
    cdef bint ignore_answer(self) except -1
    cdef int exited(self) except -1
    cdef int write_return(self, int64_t sequence) except -1
    cdef int answered_call(self) except -1
