"""Connections on their way from the supervisor to a worker."""

from libc.stdint cimport uint32_t

from kongps.core.connection cimport Connection, Holder, Unfinished
from kongps.core.dispatch.dispatcher cimport Dispatcher
from kongps.core.workers.journal cimport Journal
from kongps.core.io.listener cimport Listener
from kongps.core.io.loop cimport Watched
from kongps.core.workers.relay cimport Routes

cdef enum Message:
    TALK             # bytes between the Python halves of both ends, with file descriptors or not
    CONNECTION       # its number; with its file descriptor, and what was received for it
    HANDED_BACK      # its number


cdef class Channel(Watched):
    cdef object talk              # called with bytes and file descriptors
    cdef object ended             # called when the other end is gone
    cdef object unsent            # deque of (kind, number, data, fds, whether to close them)

    cdef int say(self, Message kind, uint32_t number, bytes data, list fds, bint close) except -1
    cdef bint send_now(self, Message kind, uint32_t number, bytes data, list fds) except -1
    cdef int send_rest(self) except -1
    cdef int heard(self, Message kind, uint32_t number, bytes data, list fds) except -1


cdef class SharedConnection(Watched):
    cdef ConnectionBroker board
    cdef uint32_t number
    cdef WorkerChannel line                # None: no worker has it


cdef class WorkerChannel(Channel):
    cdef ConnectionBroker board
    cdef readonly int desk
    cdef set connections


cdef class ConnectionBroker:
    cdef Journal journal
    cdef dict passed              # SharedConnection by the number of its slot
    cdef list lines
    cdef list waiting             # SharedConnection for which there is no worker

    cdef WorkerChannel least_loaded(self)
    cdef int place(self, SharedConnection one, bytes replayed) except -1


cdef class SharedListener(Listener):
    cdef ConnectionBroker board


cdef class SupervisorChannel(Channel):
    cdef Journal journal
    cdef int desk
    cdef Dispatcher dispatcher
    cdef Unfinished unfinished
    cdef Routes routes
    cdef Holder holder
    cdef bint retiring

    cdef int take(self, uint32_t number, int fd, bytes replayed) except -1


cdef class SupervisorChannelHolder(Holder):
    cdef SupervisorChannel intake
