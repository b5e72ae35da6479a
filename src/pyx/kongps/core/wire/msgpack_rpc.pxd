"""MsgPack:1, Kong's MessagePack-RPC."""

from libc.stdint cimport int64_t, uint8_t

from kongps.core.wire.msgpack cimport Reader, Scanner
from kongps.core.wire.protocol cimport Call, Protocol

cdef class MsgPackRPC(Protocol):
    cdef Scanner scanner

    cdef bint read_message(self, Reader* reader, Call call) except -1
    cdef int read_event(self, Reader* reader, Call call) except -1
    cdef int read_step(self, Reader* reader, Call call) except -1
    cdef bint forward(self, Call call, const Reader* reader, const uint8_t* rest) except -1
    cdef int64_t step_target(self, Reader reader) noexcept
    cdef int begin_answer(self, int64_t sequence) except -1


cdef class PeerRPC(MsgPackRPC):
    pass
