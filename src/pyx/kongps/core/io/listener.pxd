"""A listening socket, and what makes the streams of those who connect."""

from kongps.core.io.loop cimport Watched


cdef class Listener(Watched):
    cdef object listening         # the socket.socket; keeps fd open
    cdef object accept_stream
    cdef double reported_at       # when the log last said that no connection can be accepted

    cdef int pause(self, int error) except -1
