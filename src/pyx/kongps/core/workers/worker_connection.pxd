"""A connection from Kong that a worker has; it may go to another worker."""

from libc.stdint cimport uint32_t

from kongps.core.connection cimport Connection
from kongps.core.wire.protocol cimport Protocol
from kongps.core.workers.journal cimport ReceiveArea, Slot
from kongps.core.workers.worker_session cimport WorkerSession


cdef class WorkerConnection(Connection):
    cdef WorkerSession worker_session   # the session, by its own class
    cdef uint32_t number                # of its slot in the journal
    cdef Slot* slot                     # NULL: it is not this worker's any more
    cdef ReceiveArea* area              # where what comes for it is received
    cdef object return_idle             # called with it once it is idle; None: it is kept

    cdef int use_slot(self, uint32_t number, Slot* slot, ReceiveArea* area) except -1
    cdef int release_slot(self) except -1
    cdef int take_over(self, bytes replayed) except -1
    cdef int answer_for_dead(self, Slot left) except -1
    cdef Protocol restored_protocol(self, Slot left)
    cdef bint has_input(self) except -1
    cdef bint is_idle(self) except -1
