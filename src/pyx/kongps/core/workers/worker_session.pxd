"""A worker's sessions: the journal knows their calls, and steps reach the worker with their event."""

from kongps.core.session cimport Session
from kongps.core.wire.protocol cimport Call
from kongps.core.workers.journal cimport Slot
from kongps.core.workers.relay cimport Routes


cdef class WorkerSession(Session):
    cdef Slot* slot               # of the journal; NULL: the connection is not this worker's
    cdef Routes routes

    cdef int note(self, Call call) except -1
