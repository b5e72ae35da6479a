"""One connection from Kong without I/O: a protocol joined to the dispatcher."""

from kongps.core.io.buffer cimport Buffer
from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.wire.protocol cimport Call, Protocol


cdef class Session:
    cdef Dispatcher dispatcher
    cdef readonly Protocol protocol   # None until it is recognised
    cdef Buffer opening               # the first bytes, until then
    cdef Call call

    cdef int receive(self, const char* data, size_t size) except -1
    cdef int recognise(self) except -1
    cdef bint carry_out(self, size_t most_unsent) except -1
    cdef bint full(self) noexcept
    cdef bint busy(self) except -1
    cdef int lost(self) except -1
