"""The supervisor's side of connections: each goes to the worker that has fewest."""

from libc.stdint cimport uint32_t

from kongps.core.io.listener cimport Listener
from kongps.core.io.loop cimport Watched
from kongps.core.workers.channel cimport Channel
from kongps.core.workers.journal cimport Journal


cdef class SharedConnection(Watched):
    cdef ConnectionBroker broker
    cdef uint32_t number          # of its slot in the journal
    cdef WorkerChannel channel    # None: no worker has it


cdef class WorkerChannel(Channel):
    cdef ConnectionBroker broker
    cdef readonly int area
    cdef set connections


cdef class ConnectionBroker:
    cdef Journal journal
    cdef dict shared              # SharedConnection by the number of its slot
    cdef list channels            # of the workers that get connections
    cdef list waiting             # SharedConnection for which there is no worker

    cdef WorkerChannel least_loaded(self)
    cdef int place(self, SharedConnection one, bytes replayed) except -1


cdef class SharedListener(Listener):
    cdef ConnectionBroker broker
