"""One accepted connection: bytes both ways."""

from kongps.core.io.buffer cimport Buffer
from kongps.core.io.loop cimport Watched

cdef enum:
    # A peer that lets this many answer bytes pile up is not read from until they are gone. One
    # answer may be larger by itself.
    MOST_UNSENT = 1048576


cdef class Stream(Watched):
    cdef Buffer* outbox
    cdef bint ended               # the peer sends no more
    cdef bint shared              # other processes have it open: closing it says so to the peer
    cdef bint full                # what the peer sends is not read for now

    cdef int received(self, const char* data, size_t size, double now) except -1
    cdef int pump(self, double now) except -1
    cdef int lost(self) except -1
    cdef int flush(self) except -1
    cdef bint busy(self) except -1
