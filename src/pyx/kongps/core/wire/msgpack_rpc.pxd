"""MsgPack:1, Kong's MessagePack-RPC."""

from libc.stdint cimport int64_t

from kongps.core.wire.msgpack cimport Reader, Scanner
from kongps.core.wire.protocol cimport Call, Protocol

cdef class MsgPackRPC(Protocol):
    cdef Scanner scanner

    cdef bint read_message(self, Reader* reader, Call call) except -1
    cdef int read_event(self, Reader* reader, Call call) except -1
    cdef int find_step(self, Reader* reader, Call call) except -1
    cdef int begin_answer(self, int64_t sequence) except -1
