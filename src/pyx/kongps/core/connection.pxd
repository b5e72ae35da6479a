"""Connections from Kong: where sockets and sessions meet."""

from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.io.stream cimport Stream
from kongps.core.session cimport Session
from kongps.core.wire.protocol cimport Outlet


cdef class Unfinished:
    cdef size_t held
    cdef readonly size_t most


cdef class Connection(Stream):
    cdef Session session
    cdef Unfinished unfinished
    cdef size_t held              # its part of `unfinished`

    cdef int join(self, Session session) except -1
    cdef int pump(self, double now) except -1
    cdef int pumped(self) except -1
    cdef bint ends_when_idle(self) noexcept
    cdef int count_unfinished(self) except -1
    cdef int refuse(self, object error) except -1


cdef class ConnectionOutlet(Outlet):
    cdef Connection connection
