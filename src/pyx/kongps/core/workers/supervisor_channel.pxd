"""A worker's end of the channel to the supervisor: its connections come from there."""

from libc.stdint cimport uint32_t

from kongps.core.connection cimport Unfinished
from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.workers.channel cimport Channel
from kongps.core.workers.journal cimport Journal
from kongps.core.workers.relay cimport Routes


cdef class SupervisorChannel(Channel):
    cdef Journal journal
    cdef int area
    cdef Dispatcher dispatcher
    cdef Unfinished unfinished
    cdef size_t max_message
    cdef Routes routes
    cdef bint retiring

    cdef int take(self, uint32_t number, int fd, bytes replayed) except -1
