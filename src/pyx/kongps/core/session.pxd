"""One connection from Kong without I/O: a protocol joined to the dispatcher."""

from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.io.buffer cimport Buffer
from kongps.core.wire.protocol cimport Call, Outlet, Protocol


cdef class Session:
    cdef Dispatcher dispatcher
    cdef readonly Protocol protocol   # None until it is recognised
    cdef Outlet outlet                # what sends its bytes; None without a connection
    cdef Buffer* outbox               # the protocol's
    cdef Buffer opening               # the first bytes, until the protocol is recognised
    cdef Buffer nothing               # what there is to send until then
    cdef size_t max_message
    cdef Call call

    cdef int feed(self, const char* data, size_t size) except -1
    cdef bint pump(self, size_t most_unsent, double now) except -1
    cdef int carry_out(self, Call call, double now) except -1
    cdef int recognise(self) except -1
    cdef int speak(self, Protocol protocol) except -1
    cdef bint full(self) noexcept
    cdef bint is_closing(self) noexcept
    cdef size_t unread(self) noexcept
    cdef bint idle(self) except -1
    cdef bint expects_step(self) except -1
    cdef int lost(self) except -1
