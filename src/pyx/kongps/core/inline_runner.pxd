"""Handlers in greenlets on the loop's thread: the fast path."""

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint64_t

from kongps.core.dispatch cimport Event, Runner
from kongps.core.greenlet cimport greenlet


cdef class Worker:
    """A greenlet that runs one handler after another."""
    cdef greenlet greenlet
    cdef InlineRunner runner
    cdef Event event


cdef class InlineRunner(Runner):
    cdef greenlet loop            # the greenlet that dispatches
    cdef Event current            # the event whose handler has the processor
    cdef list idle                # workers without an event
    cdef unsigned long thread     # the thread of `loop`
    # For a watchdog, which reads them without Python's lock.
    cdef uint64_t visits          # odd while plugin code has the thread
    cdef str hook                 # what runs if it is no event's handler
    cdef uint64_t suspect         # a visit that takes long, says the watchdog
    cdef bint interrupted         # an exception is on its way to this thread
    cdef bint dozing              # the watchdog sleeps until `rouse` is released
    cdef PyThread_type_lock rouse
    cdef object caught            # called with what a suspect was, when it ended unseen

    cdef int enter(self) noexcept
    cdef int leave(self, Event event) except -1
    cdef int switch_to(self, Event event) except -1
    cdef int give_back(self, Worker worker) except -1
