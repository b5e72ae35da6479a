"""Handlers in a bounded pool of threads: those that block."""

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_type_lock

from kongps.core.runners.off_loop cimport OffLoopRunner, HandlerTask
from kongps.core.dispatch.dispatcher cimport Event, Runner


cdef class HandlerThread(HandlerTask):
    """A thread of the pool, with the handler that it runs."""
    cdef ThreadRunner runner
    cdef PyThread_type_lock wake
    cdef object thread            # threading.Thread
    cdef bint given_up
    cdef bint saying             # it says something, and is not answered yet
    cdef double since             # when its handler last got an answer, monotonic seconds
    cdef double longest           # seconds that its handler took between two PDK calls


cdef class ThreadRunner(OffLoopRunner):
    cdef readonly int most        # threads that may have work
    cdef readonly int stuck       # threads whose event was given up, and that have not come back
    cdef readonly int threads     # all there are
    cdef int started              # ever; for their names
    cdef list idle                # the one last used is used next
    cdef object waiting           # collections.deque: events and work without a thread
    cdef dict by_ident
    cdef bint told_full
    cdef bint told_refused        # the log has been told that no thread can be made
    cdef dict trials              # TrialRunner by plugin's name and phase

    cdef bint has_free(self)
    cdef HandlerThread free_thread(self)
    cdef int give(self, HandlerThread thread, object job) except -1
    cdef int try_to_spawn(self) except -1
    cdef int spawn(self) except -1
    cdef int judge(self, HandlerThread thread) except -1


cdef class TrialRunner(Runner):
    cdef Runner inline
    cdef ThreadRunner threads
    cdef object passed
    cdef double threshold
    cdef int most_inline
    cdef int needed               # quick events
    cdef int left                 # of them, still
    cdef list inline_events       # those of this trial that may not have ended

    cdef int judge(self, double seconds) except -1
