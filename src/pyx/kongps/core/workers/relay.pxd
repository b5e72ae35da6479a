"""Steps on their way to the worker in which their event lives, and the answers on their way back."""

from libc.stdint cimport int64_t, uint8_t

from kongps.core.io.buffer cimport Buffer
from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.io.loop cimport Loop
from kongps.core.io.stream cimport Stream
from kongps.core.wire.msgpack cimport Scanner
from kongps.core.wire.protocol cimport Call, Protocol


cdef class Relayed:
    cdef Protocol origin          # where the answer goes, as `sequence`,
    cdef int64_t sequence
    cdef int64_t event
    cdef object answered          # or what is called with it


cdef class Relay(Stream):
    cdef Buffer inbox
    cdef Buffer calls
    cdef Scanner scanner
    cdef dict waiting             # by number
    cdef int64_t last_number
    cdef bint flushing            # at the end of the loop's turn
    cdef Routes routes
    cdef readonly int worker
    cdef list touched             # protocols with answers to send

    cdef int begin(self, Relayed relayed) except -1
    cdef int flush_soon(self) except -1
    cdef int forward(self, Protocol origin, Call call) except -1
    cdef int read_answer(self, const uint8_t* data, size_t size) except -1


cdef class Routes:
    cdef readonly int worker
    cdef bint lost_events_pass
    cdef dict relays              # Relay by the worker at its other end
    cdef Loop loop

    cdef bint is_here(self, int64_t event) noexcept
    cdef int forward(self, Protocol origin, Call call) except -1
    cdef int abandon(self, int64_t event) except -1
    cdef int fail(self, Protocol origin, int64_t sequence, int64_t event) except -1
