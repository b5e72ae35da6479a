"""Handlers in a bounded pool of threads: those that block."""

from cpython.pythread cimport PyThread_type_lock

from kongps.core.runners.off_loop cimport HandlerTask, OffLoopRunner


cdef class HandlerThread(HandlerTask):
    """A thread of the pool, with the handler that it runs."""
    cdef ThreadRunner runner
    cdef PyThread_type_lock wake
    cdef object thread            # threading.Thread
    cdef bint given_up
    cdef bint calling             # it has posted something, and is not answered yet


cdef class ThreadRunner(OffLoopRunner):
    cdef readonly int most        # threads that may have work
    cdef readonly int stuck       # threads whose event was given up, and that have not come back
    cdef readonly int threads     # all there are
    cdef int started              # ever; for their names
    cdef list idle                # the one last used is used next
    cdef object waiting           # collections.deque: events and work without a thread
    cdef dict by_ident
    cdef bint reported_full       # the log has said that so many are stuck that no more are made,
    cdef bint reported_refused    # and that the system makes none

    cdef HandlerThread free_thread(self)
    cdef int give(self, HandlerThread thread, object job) except -1
    cdef int try_to_spawn(self) except -1
    cdef int spawn(self) except -1
    cdef int dismiss(self, HandlerThread thread) except -1
    cdef int lose(self, HandlerThread thread) except -1
    cdef int next_job(self, HandlerThread thread) except -1
