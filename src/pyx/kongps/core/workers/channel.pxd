"""Messages between the supervisor and a worker, with file descriptors or not."""

from libc.stdint cimport uint32_t

from kongps.core.io.loop cimport Watched

cdef enum Message:
    MESSAGE          # between the Python halves of both ends
    CONNECTION       # its number; with its file descriptor, and what was received for it
    GIVEN_BACK       # a connection's number


cdef class Channel(Watched):
    cdef object on_message        # called with bytes and file descriptors
    cdef object on_close          # called when the other end is gone
    cdef object unsent            # deque of (kind, number, data, fds, those to close then)

    cdef object on_socket(self, method, tuple args)
    cdef int post(self, Message kind, uint32_t number, bytes data, list fds, list owned) except -1
    cdef bint send_now(self, Message kind, uint32_t number, bytes data, list fds) except -1
    cdef int send_unsent(self) except -1
    cdef bint receive_one(self) except -1
    cdef int came(self, Message kind, uint32_t number, bytes data, list fds) except -1
