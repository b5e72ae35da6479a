"""One connection from Kong without I/O: a protocol joined to the dispatcher."""

from kongps.core.dispatch cimport Dispatcher
from kongps.core.protocol cimport Call, Protocol


cdef class Session:
    cdef Dispatcher dispatcher
    cdef Protocol protocol
    cdef Call call

    cdef bint carry_out(self, size_t most_unsent) except -1
