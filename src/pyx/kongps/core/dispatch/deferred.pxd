"""The result of a command that is not known yet."""

from libc.stdint cimport int64_t

from kongps.core.wire.protocol cimport Protocol


cdef class DeferredResult:
    cdef Protocol protocol            # None until it is known who waits for it
    cdef int64_t sequence
    cdef object result
    cdef str error
    cdef bint known

    cdef int answer_to(self, Protocol protocol, int64_t sequence) except -1
    cdef int answer(self) except -1
