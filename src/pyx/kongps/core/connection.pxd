"""Connections from Kong: the one place where sockets and protocols meet."""

from kongps.core.io.buffer cimport Buffer
from kongps.core.workers.journal cimport ReceiveArea, Slot
from kongps.core.io.stream cimport Stream
from kongps.core.wire.protocol cimport Elsewhere, Outlet, Protocol
from kongps.core.session cimport Session


cdef class Unfinished:
    cdef size_t held
    cdef size_t most


cdef class Holder:
    cdef int hand_back(self, Connection connection) except -1


cdef class Connection(Stream):
    cdef Session session
    cdef Buffer nothing   # stands for the outbox until the protocol is known
    cdef Unfinished unfinished
    cdef size_t held      # its part of `unfinished`
    # In a worker:
    cdef unsigned int number      # of its slot
    cdef Slot* slot               # NULL: it is not accounted for
    cdef ReceiveArea* desk               # where what comes for it is put first
    cdef Elsewhere elsewhere
    cdef Holder holder            # None: it is kept

    cdef int speak(self, Protocol protocol) except -1
    cdef bint is_idle(self) except -1
    cdef int take_over(self, bytes replayed, bint let_through) except -1
    cdef bint has_input(self) except -1
    cdef int count(self) except -1
    cdef int pump(self, double now) except -1
    cdef int refuse(self, object error) except -1


cdef class ConnectionOutlet(Outlet):
    cdef Connection connection
