"""Steps on their way to the worker in which their event lives, and the answers on their way back."""

from libc.stdint cimport int64_t

from kongps.core.io.loop cimport Loop
from kongps.core.wire.protocol cimport Call, Protocol


cdef class Routes:
    cdef readonly int worker
    cdef bint lost_events_pass
    cdef dict relays              # Relay by the worker at its other end
    cdef Loop loop

    cdef bint is_here(self, int64_t event) noexcept
    cdef int forward(self, Protocol origin, Call call) except -1
    cdef int abandon(self, int64_t event) except -1
    cdef int fail(self, Protocol origin, int64_t sequence, int64_t event) except -1
