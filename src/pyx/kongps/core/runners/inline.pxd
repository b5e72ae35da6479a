"""Handlers in greenlets on the loop's thread: the fast path."""

from kongps.core.dispatch.event cimport Event, Runner
from kongps.core.runners.greenlet cimport greenlet
from kongps.core.runners.watchdog cimport Visits


cdef class HandlerGreenlet:
    """A greenlet that runs one handler after another."""
    cdef greenlet greenlet
    cdef InlineRunner runner
    cdef Event event


cdef class InlineRunner(Runner):
    cdef greenlet loop            # the greenlet that dispatches
    cdef list idle                # HandlerGreenlets without an event
    cdef Visits visits
    cdef object submit            # runs something in a thread; None: there are none

    cdef int switch_to(self, Event event, bint to_end) except -1
    cdef int give_back(self, HandlerGreenlet one) except -1
    cdef int read_body(self, Event event) except -1
